"""The training step against the textbook, and what a run must keep: frozen statistics, resume, finite numbers."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from twinslib.attack import pgd as attack_pgd
from twinslib.base.errors import Diverged
from twinslib.data.sets import DeviceSet
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.nets.norms import TwinNorm, freeze_statistics, to_plain, twin_norms, twinsify
from twinslib.specs.method import METHODS, method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.specs.schedules import SCHEDULES, factor
from twinslib.train import loop
from twinslib.train import step as train_step
from twinslib.train.loop import fit
from twinslib.train.step import OutOfTime, Step, generator

LAMBDA = 0.4


def spec(name: str = "twins_at", *, optim: dict | None = None, **switches) -> RunSpec:
    if name.startswith("twins"):
        switches = {"twins_weight": LAMBDA} | switches
    optim = OptimSpec(**({"epochs": 2, "batch_size": 8, "lr": 0.05, "val_every": 2} | (optim or {})))
    data, model = DataSpec(name="toy_target", image_size=16, augment="crop"), ModelSpec(arch="tiny_resnet")
    source = None
    if name not in ("natural", "at", "trades", "twins_at", "twins_trades"):  # those need none
        source = RunSpec(data=replace(data, name="toy_source"), model=model, method=method("at"), attack=AttackSpec(steps=1),
                         optim=optim)
    return RunSpec(data=data, model=model, method=method(name, **switches), attack=AttackSpec(steps=2), optim=optim,
                   source=source)


def winged(run: RunSpec, model: torch.nn.Module) -> torch.nn.Module:
    """The network with the branches of the run's method."""
    second = "frozen" if run.method.wings == "twins" else "adaptive"
    return twinsify(model, share_affine=run.method.share_affine, second=second) if run.method.two_branches else model


def network(seed: int = 0) -> torch.nn.Module:
    """A tiny network whose statistics and affine parameters differ from their initial values."""
    model = make_model("tiny_resnet", 10, seed=seed)
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


def batch(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.rand(n, 3, 16, 16, generator=g).to(dtype), torch.randint(0, 10, (n,), generator=g)


def device_set(n: int = 20) -> DeviceSet:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n + 10, 3, 16, 16), generator=g, dtype=torch.uint8)
    y = torch.randint(0, 10, (n + 10,), generator=g)
    return DeviceSet(x[:n], y[:n], x[n:], y[n:], x[n:], y[n:], tuple("0123456789"))


def textbook(model: torch.nn.Module, inputs: dict, y: torch.Tensor, objective: str, weight: float, beta: float,
             second_trains: bool = False):
    """Two separate networks, one per wing, written out; returns loss, gradients by name of the two-wing network, networks."""
    frozen, adaptive = copy.deepcopy(model), copy.deepcopy(model)
    frozen.train(second_trains)
    adaptive.train()
    half, n = len(y) // 2, len(y)
    parts = []
    for net, rows in ((frozen, slice(0, half)), (adaptive, slice(half, n))):
        adv = net(inputs["adversarial"][rows])
        if objective == "at":
            parts.append(F.cross_entropy(adv, y[rows]))
        else:
            clean = net(inputs["clean"][rows])
            p, q = clean.softmax(1), adv.softmax(1)
            parts.append(F.cross_entropy(clean, y[rows]) + beta * (p * (p.log() - q.log())).sum() / n)
    loss = weight * parts[0] + parts[1]
    loss.backward()
    norms = {name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    gradients = {}
    for (name, f), (_, a) in zip(frozen.named_parameters(), adaptive.named_parameters(), strict=True):
        layer, _, leaf = name.rpartition(".")
        if layer in norms:
            gradients |= {f"{layer}.frozen.{leaf}": f.grad, f"{layer}.adaptive.{leaf}": a.grad}
        else:
            gradients[name] = f.grad + a.grad
    return loss, gradients, frozen, adaptive


def check_against_textbook(twin: torch.nn.Module, loss: torch.Tensor, want: torch.Tensor, gradients: dict) -> None:
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-8)
    got = dict(twin.named_parameters())
    assert got.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(got[name].grad, gradient, rtol=1e-5, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("n", [8, 9, 3])
@pytest.mark.parametrize("objective", ["at", "trades"])
@pytest.mark.parametrize("wings", ["twins", "two_adaptive"])
def test_two_wings_equal_two_networks(wings: str, objective: str, n: int) -> None:
    """Loss, all gradients and the statistics agree with two separate textbook networks, of which the first is in eval mode
    for TWINS and in training mode for the control with two adaptive branches (float64, 1e-5)."""
    model = network().double()
    x, y = batch(n, torch.float64)
    inputs = {"clean": x, "adversarial": (x + 0.05 * torch.sign(torch.randn_like(x))).clamp(0, 1)}
    *want, frozen, adaptive = textbook(model, inputs, y, objective, LAMBDA, 6.0, wings == "two_adaptive")
    run = spec(f"twins_{objective}", wings=wings)
    twin = winged(run, model)
    check_against_textbook(twin, Step(twin, run, "cpu").loss(inputs, y)[0], *want)
    for name, layer in twin_norms(twin):
        for wing, plain in ((layer.frozen, frozen), (layer.adaptive, adaptive)):
            for statistic in ("running_mean", "running_var", "num_batches_tracked"):
                torch.testing.assert_close(getattr(wing, statistic), getattr(plain.get_submodule(name), statistic))
        moved = [not torch.equal(wing.running_mean, model.get_submodule(name).running_mean)
                 for wing in (layer.frozen, layer.adaptive)]
        assert moved == [wings == "two_adaptive", True]


def test_shared_affine_gradient_is_the_sum_of_both_wings() -> None:
    """With share_affine the one gamma's gradient is the sum of the gradients of two separate ones."""
    model = network().double()
    x, y = batch(8, torch.float64)
    results = {}
    for share in (False, True):
        twin = twinsify(model, share_affine=share)
        Step(twin, spec(share_affine=share), "cpu").loss({"clean": x, "adversarial": x}, y)[0].backward()
        results[share] = [layer for _, layer in twin_norms(twin)]
    for own, shared in zip(results[False], results[True], strict=True):
        torch.testing.assert_close(shared.adaptive.weight.grad, own.adaptive.weight.grad + own.frozen.weight.grad)


def test_attack_equals_textbook_attack_on_the_adaptive_wing() -> None:
    """The folded copy's PGD examples equal textbook PGD against the adaptive wing in eval mode (float64)."""
    twin = twinsify(network().double())
    for _, layer in twin_norms(twin):  # wings that differ, so that attacking the wrong one is noticed
        layer.adaptive.running_mean += 0.3
    x, y = batch(6, torch.float64)
    from twinslib.attack.pgd import pgd

    got = pgd(FoldedCopy(twin, dtype=torch.float64), x, y, eps=0.1, step_size=0.03, steps=3, random_start=False)
    plain = copy.deepcopy(twin).eval()
    x_adv = x.clone()
    for _ in range(3):
        x_adv.requires_grad_()
        gradient, = torch.autograd.grad(F.cross_entropy(plain(x_adv), y), x_adv)
        x_adv = torch.clamp(torch.min(torch.max(x_adv.detach() + 0.03 * gradient.sign(), x - 0.1), x + 0.1), 0, 1)
    torch.testing.assert_close(got, x_adv, rtol=0, atol=1e-6)


def at_gradient(run: RunSpec, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor,
                frozen: bool) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients) of a step on given adversarial images; with `frozen` the statistics stay."""
    model = copy.deepcopy(model)
    step = Step(model, run, "cpu")
    if frozen:
        freeze_statistics(model)
    loss, _, _ = step.loss({"clean": x, "adversarial": x}, y)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_split_equals_at_with_frozen_statistics(weight: float) -> None:
    """With frozen statistics the halves do not see each other, so the control of split batches is AT: with the normalised
    loss at weight 1 exactly, without it 1 + lambda times; at other weights it is AT with weighted halves."""
    model, (x, y) = network().double(), batch(8, torch.float64)
    loss, gradients = at_gradient(spec("at"), model, x, y, True)
    halves = [at_gradient(spec("at"), model, x[h], y[h], True)[1] for h in (slice(0, 4), slice(4, 8))]
    for normalize in (True, False):
        run = spec("at_split", twins_weight=weight, normalize_loss=normalize)
        got_loss, got = at_gradient(run, model, x, y, True)
        scale = 1 / (1 + weight) if normalize else 1.0
        for g, plain, first, second in zip(got, gradients, *halves, strict=True):
            torch.testing.assert_close(g, scale * (weight * first + second), rtol=1e-9, atol=1e-12)
            if weight == 1:
                torch.testing.assert_close(g, 2 * scale * plain, rtol=1e-9, atol=1e-12)
        if weight == 1:
            assert got_loss == pytest.approx(2 * scale * loss, rel=1e-12)


def test_split_differs_from_at_where_statistics_adapt() -> None:
    """In ordinary training each half is normalised by itself, so loss and gradients are not AT's."""
    model, (x, y) = network().double(), batch(8, torch.float64)
    loss, gradients = at_gradient(spec("at"), model, x, y, False)
    split_loss, split = at_gradient(spec("at_split", normalize_loss=True), model, x, y, False)
    assert abs(split_loss - loss) > 1e-4
    assert all(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(split, gradients, strict=True))


@pytest.mark.parametrize("n", [8, 9, 1])
def test_split_updates_statistics_once_per_half(n: int) -> None:
    """The halves pass one after the other: losses and running statistics are those of two ordinary passes in that order."""
    model, (x, y) = network().double(), batch(n, torch.float64)
    hand = copy.deepcopy(model).train()
    halves = [h for h in (slice(0, n // 2), slice(n // 2, n)) if h.stop > h.start]
    want = sum(F.cross_entropy(hand(x[h]), y[h]) for h in halves)
    torch.testing.assert_close(Step(model, spec("at_split"), "cpu").loss({"clean": x, "adversarial": x}, y)[0], want)
    for (name, got), buffer in zip(model.named_buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(got, buffer)
        assert "num_batches" not in name or got == len(halves)


def test_frozen_statistics_of_one_network() -> None:
    """Loss and gradients are those of the network in eval mode; training with measurements leaves all statistics
    bit-identical and moves all weights."""
    model, (x, y) = network().double(), batch(8, torch.float64)
    hand = copy.deepcopy(model).eval()
    want = F.cross_entropy(hand(x), y)
    want.backward()
    loss, gradients = at_gradient(spec("frozen_at"), model, x, y, False)
    assert loss == pytest.approx(want.item(), rel=1e-12) != at_gradient(spec("at"), model, x, y, False)[0]
    for got, p in zip(gradients, hand.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad)
    model = network()
    before = copy.deepcopy(model.state_dict())
    fit(spec("frozen_at", optim={"val_every": 1}), model, device_set(), device="cpu")
    statistics = {k for k, _ in model.named_buffers()}
    assert len(statistics) > 10
    for k, value in model.state_dict().items():
        assert torch.equal(value, before[k]) is (k in statistics), k


@pytest.mark.parametrize(("name", "attacked"), [
    ("twins_at", ["adaptive"] * 4), ("twins_attack_frozen", ["frozen"] * 4),
    ("twins_attack_alternating", ["adaptive", "frozen"] * 2), ("two_adaptive", ["adaptive"] * 4),
])
def test_which_wing_is_attacked(name: str, attacked: list[str], monkeypatch) -> None:
    """Step by step, the logits of what is attacked are those of that wing in eval mode as it is then, not of the other."""
    run = spec(name)
    twin = winged(run, network())
    for _, layer in twin_norms(twin):
        layer.adaptive.running_mean += 0.3
    x, y = batch(6)
    seen = []

    def record(forward, images, labels, **settings):
        assert settings.pop("generator").initial_seed() == generator("cpu", 0, "attack", len(seen)).initial_seed()
        logits = {wing: to_plain(twin, wing).eval()(x) for wing in ("adaptive", "frozen")}
        near = [wing for wing, z in logits.items() if torch.allclose(forward(images), z, rtol=1e-3, atol=1e-4)]
        seen.append(near)
        return images

    monkeypatch.setattr(attack_pgd, "pgd", record)
    step = Step(twin, run, "cpu")
    for count in range(4):
        step(x, y, count, 0.05)
    assert seen == [[wing] for wing in attacked]


@pytest.mark.parametrize(("name", "precision"), [
    *((name, "float32") for name in METHODS),
    *((name, "bfloat16") for name in ("natural", "at", "trades", "twins_at", "twins_trades", "distill", "joint", "l2sp",
                                      "at_split")),
])
def test_every_method_learns_a_batch(name: str, precision: str) -> None:
    """Loss falls on one repeated batch, in both precisions; the source images of joint training vary."""
    run = spec(name, optim={"precision": precision})
    step = Step(winged(run, network()), run, "cpu", start=network(), source=device_set())
    x, y = batch(16)
    lr = 2.0 if run.method.trains == "head" else 0.2 if run.method.wings == "frozen" else 0.05  # features of random images
    lr = 0.2 if run.method.replays > 1 else lr  # its first batch is not attacked yet
    losses = [step(x, y, count, lr)[0].item() for count in range(12)]
    assert losses[-1] < 0.9 * losses[0]


KINDS = ("natural", "at", "trades", "twins_at", "twins_trades", "at_split", "two_adaptive", "distill", "feature_distill", "l2sp",
         "joint", "frozen_at", "at_awp", "free_at", "linear_probe")


def deep_network() -> torch.nn.Module:
    """A network whose last maps have one pixel, so that one image brings its norms a single value per channel."""
    return make_model("thin_resnet10", 10, width=8, seed=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_last_batch_of_any_size(name: str) -> None:
    """Batches and halves of one image train without an error in every method, and all weights move and stay finite; so does a
    set that is smaller than a batch, and batches of one image are refused before any work where they leave a half empty."""
    for n, size in ((9, 8), (10, 8), (3, 8), (1, 8), (3, 1)):
        run = spec(name, optim={"batch_size": size, "epochs": 1, "val_every": 0})
        model = winged(run, deep_network())
        before, call = copy.deepcopy(model.state_dict()), dict(device="cpu", start=deep_network(), source=device_set())
        if run.method.halves and min(n, size) == 1:
            with pytest.raises(ValueError, match=f"of at least 2 for method '{name}', got batch_size {size} and {n} images"):
                fit(run, model, device_set(n), **call)
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            continue
        rows = fit(run, model, device_set(n), **call).epochs
        assert len(rows) == 1 and rows[0]["train_loss"] > 0 and all(torch.isfinite(v).all() for v in model.state_dict().values())
        assert not torch.equal(model.network.fc.weight, before["network.fc.weight"])


def test_no_images_are_refused() -> None:
    """An empty training set is no finished run."""
    with pytest.raises(ValueError, match="at least 1 for method 'at', got batch_size 8 and 0 images"):
        fit(spec("at"), network(), device_set(0), device="cpu")


def test_the_rule_for_one_image() -> None:
    """Norms that meet one value per channel take their running statistics and keep them, others those of the image, alike in an
    ordinary network and in the adaptive wing; afterwards the network is as it was, without hooks, after an error too."""
    x, y = batch(1)
    plain, hand, twin, sizes = deep_network(), deep_network().eval(), twinsify(deep_network()), {}
    for name, norm in hand.named_modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda _, inputs, name=name: sizes.update({name: inputs[0].shape[2]}))
    hand(x)
    single = [name for name, size in sizes.items() if size == 1]
    hand.train()
    before = copy.deepcopy(plain.state_dict())
    for name in single:
        hand.get_submodule(name).eval()
    steps = Step(plain, spec("at"), "cpu"), Step(twin, spec(), "cpu")
    losses = [step.loss({"clean": x, "adversarial": x}, y)[0] for step in steps]
    torch.testing.assert_close(losses, [F.cross_entropy(hand(x), y)] * 2)
    for (name, got), want, other in zip(plain.named_buffers(), hand.buffers(), to_plain(twin).buffers(), strict=True):
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(other, want)
        assert torch.equal(got, before[name]) is (name.rpartition(".")[0] in single or "normalize" in name)
    norms = [m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert 0 < len(single) < len(norms) and all(m.training and not m._forward_pre_hooks for m in norms)
    plain.network.fc.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Step(plain, spec("at"), "cpu").loss({"clean": x, "adversarial": x}, y)
    assert all(m.training and not m._forward_pre_hooks for m in norms)


def test_frozen_statistics_are_bit_identical_after_training() -> None:
    """Training with attacks and measurements leaves the frozen wing's buffers untouched and moves everything else."""
    twin = twinsify(network())
    before = copy.deepcopy(twin.state_dict())
    fit(spec("twins_trades"), twin, device_set(), device="cpu")
    after = twin.state_dict()
    frozen = [k for k in before if ".frozen.running" in k or ".frozen.num_batches" in k]
    assert frozen and all(torch.equal(before[k], after[k]) for k in frozen)
    moving = [k for k in before if k not in frozen and not k.startswith("normalize")]
    assert all(not torch.equal(before[k], after[k]) for k in moving)


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 4)])
def test_stopped_and_resumed_equals_undisturbed(tmp_path, stops: tuple[int, ...]) -> None:
    """A run stopped in the middle of an epoch or at its end goes on to bit-identical weights and rows."""
    run = spec("twins_at")
    whole = twinsify(network())
    history = fit(run, whole, device_set(), device="cpu")
    left, step_count = list(stops), [0]

    def on_step(done: int, total: int) -> None:
        step_count[0] = done

    checkpoint = tmp_path / "run.ckpt"
    while True:
        model = twinsify(network(seed=0))
        try:
            resumed = fit(run, model, device_set(), device="cpu", checkpoint=checkpoint, on_step=on_step,
                          stop=lambda: bool(left) and step_count[0] == left[0])
            break
        except OutOfTime:
            left.pop(0)
    assert not left and resumed.epochs == history.epochs
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_compounds_when_resumed(tmp_path, monkeypatch, schedule: str) -> None:
    """A run stopped after each of its ten steps takes each of them once, at the base rate times the schedule's factor, and ends
    with the weights of an undisturbed run; an epoch's row shows the rate of its last step."""
    seen = []

    class Watched(Step):
        def __call__(self, x, y, count, lr, strength):
            seen.append((count, lr))
            return super().__call__(x, y, count, lr, strength)

    monkeypatch.setattr(loop, "Step", Watched)
    run = spec("natural", optim={"schedule": schedule, "milestones": (0.4,), "epochs": 5, "batch_size": 10, "val_every": 0})
    trained = []
    for stop in (lambda: False, lambda: True):
        seen.clear()
        while True:
            model = network(0)
            try:
                history = fit(run, model, device_set(), device="cpu", checkpoint=tmp_path / f"{len(trained)}", stop=stop)
                break
            except OutOfTime:
                pass
        trained.append((model.state_dict(), history.epochs))
        assert seen == [(step, pytest.approx(0.05 * factor(schedule, step, 10, (0.4,)))) for step in range(10)]
        assert [row["lr"] for row in history.epochs] == [lr for _, lr in seen[1::2]]
    (once, rows), (often, again) = trained
    assert rows == again and all(torch.equal(a, b) for a, b in zip(once.values(), often.values(), strict=True))


def test_global_random_state_is_neither_used_nor_moved() -> None:
    """Two runs under different global seeds are equal, and the global stream is where it was."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = make_model("tiny_resnet", 10, seed=0)
        fit(spec("at"), model, device_set(), device="cpu")
        assert torch.equal(before, torch.get_rng_state())
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


def test_divergence_is_reported_and_the_last_checkpoint_stays(tmp_path) -> None:
    """An absurd rate or NaN in the start weights raises Diverged; a checkpoint is never written after it."""
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Diverged, match="lower lr") as error:
        fit(spec("at", optim={"lr": 1e30}), network(), device_set(), device="cpu", checkpoint=checkpoint)
    assert not checkpoint.exists() and error.value.epochs == []
    broken = network()
    with torch.no_grad():
        broken.network.fc.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="fc.weight"):
        fit(spec("at"), broken, device_set(), device="cpu")


def test_what_a_run_that_diverges_later_leaves(tmp_path) -> None:
    """The error carries the rows of the epochs that were finite, those of an earlier stretch too."""
    run, model, data, stops = spec("at", optim={"epochs": 4, "val_every": 0}), network(), device_set(), iter([False] * 3 + [True])

    def broken(done: int, total: int) -> None:
        if done == 7:
            torch.nn.init.constant_(model.network.fc.bias, float("nan"))

    rows = fit(run, network(), data, device="cpu").epochs
    with pytest.raises(OutOfTime):
        fit(run, network(), data, device="cpu", checkpoint=tmp_path / "c", stop=lambda: next(stops))
    with pytest.raises(Diverged, match="in epoch 3 of at") as error:
        fit(run, model, data, device="cpu", checkpoint=tmp_path / "c", on_step=broken)
    assert error.value.epochs == rows[:2]


def test_checkpoint_of_another_spec_is_refused(tmp_path) -> None:
    """A checkpoint names its spec; another spec does not continue from it."""
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(OutOfTime):
        fit(spec("at"), network(), device_set(), device="cpu", checkpoint=checkpoint, stop=lambda: True)
    with pytest.raises(ValueError, match="expected checkpoint of config"):
        fit(replace(spec("at"), seed=1), network(), device_set(), device="cpu", checkpoint=checkpoint)


def test_generators_of_purposes_and_counts_differ() -> None:
    """Equal arguments give equal streams; any other seed, purpose or count another one."""
    def draw(*args) -> float:
        return torch.rand(1, generator=train_step.generator("cpu", *args)).item()

    assert draw(0, "attack", 1) == draw(0, "attack", 1)
    assert len({draw(*a) for a in [(0, "attack", 1), (1, "attack", 1), (0, "order", 1), (0, "attack", 2)]}) == 4


def test_wings_see_their_own_halves() -> None:
    """In a training pass the first half meets the frozen wing, the second half the adaptive one."""
    twin = twinsify(network())
    seen = {}
    layer = next(m for m in twin.modules() if isinstance(m, TwinNorm))
    layer.frozen.register_forward_hook(lambda m, args, out: seen.update(frozen=len(args[0])))
    layer.adaptive.register_forward_hook(lambda m, args, out: seen.update(adaptive=len(args[0])))
    x, y = batch(9)
    Step(twin, spec(), "cpu").loss({"clean": x, "adversarial": x}, y)
    assert seen == {"frozen": 4, "adaptive": 5}
