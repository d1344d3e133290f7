"""The training step against the textbook, and what a run must keep: frozen statistics, resume, finite numbers."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from twinslib import train
from twinslib.config import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec, method
from twinslib.data import DeviceSet
from twinslib.fold import FoldedCopy
from twinslib.models import make_model
from twinslib.norms import TwinNorm, twin_norms, twinsify
from twinslib.train import Diverged, OutOfTime, Step, fit, generator

LAMBDA = 0.4


def spec(name: str = "twins_at", *, optim: dict | None = None, **switches) -> RunSpec:
    if name.startswith("twins"):
        switches = {"twins_weight": LAMBDA} | switches
    return RunSpec(data=DataSpec(name="toy_target", image_size=16, augment="crop"), model=ModelSpec(arch="tiny_resnet"),
                   method=method(name, **switches), attack=AttackSpec(steps=2),
                   optim=OptimSpec(**({"epochs": 2, "batch_size": 8, "lr": 0.05, "val_every": 2} | (optim or {}))))


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


def textbook(model: torch.nn.Module, inputs: dict, y: torch.Tensor, objective: str, weight: float, beta: float):
    """Two separate networks, one per wing, written out; returns loss and gradients by name of the two-wing network."""
    frozen, adaptive = copy.deepcopy(model), copy.deepcopy(model)
    frozen.eval()
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
    return loss, gradients, adaptive


@pytest.mark.parametrize("n", [8, 9, 3])
@pytest.mark.parametrize("objective", ["at", "trades"])
def test_two_wings_equal_two_networks(objective: str, n: int) -> None:
    """Loss, all gradients and the adaptive statistics agree with two separate textbook networks (float64, 1e-5)."""
    model = network().double()
    x, y = batch(n, torch.float64)
    inputs = {"clean": x, "adversarial": (x + 0.05 * torch.sign(torch.randn_like(x))).clamp(0, 1)}
    want, gradients, adaptive = textbook(model, inputs, y, objective, LAMBDA, 6.0)
    twin = twinsify(model)
    loss, _ = Step(twin, spec(f"twins_{objective}"), "cpu").loss(inputs, y)
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-8)
    got = dict(twin.named_parameters())
    assert got.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(got[name].grad, gradient, rtol=1e-5, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    for name, layer in twin_norms(twin):
        torch.testing.assert_close(layer.adaptive.running_var, adaptive.get_submodule(name).running_var)


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
    from twinslib.attacks import pgd

    got = pgd(FoldedCopy(twin, dtype=torch.float64), x, y, eps=0.1, step_size=0.03, steps=3, random_start=False)
    plain = copy.deepcopy(twin).eval()
    x_adv = x.clone()
    for _ in range(3):
        x_adv.requires_grad_()
        gradient, = torch.autograd.grad(F.cross_entropy(plain(x_adv), y), x_adv)
        x_adv = torch.clamp(torch.min(torch.max(x_adv.detach() + 0.03 * gradient.sign(), x - 0.1), x + 0.1), 0, 1)
    torch.testing.assert_close(got, x_adv, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["natural", "at", "trades", "twins_at", "twins_trades"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_method_learns_a_batch(name: str, precision: str) -> None:
    """Loss falls on one repeated batch, in both precisions."""
    model = network()
    model = twinsify(model) if name.startswith("twins") else model
    step = Step(model, spec(name, optim={"precision": precision}), "cpu")
    x, y = batch(16)
    losses = [step(x, y, generator("cpu", 0, "attack", i), 0.05)[0].item() for i in range(12)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("n", [17, 16])
def test_odd_batches_and_single_images(n: int) -> None:
    """A last batch of one image (one wing only) trains without an error and leaves all weights finite."""
    model = twinsify(network())
    fit(spec("twins_trades", optim={"batch_size": 8, "epochs": 1}), model, device_set(n), device="cpu")
    assert all(torch.isfinite(p).all() for p in model.parameters())


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
    with pytest.raises(Diverged, match="lower lr"):
        fit(spec("at", optim={"lr": 1e30}), network(), device_set(), device="cpu", checkpoint=checkpoint)
    assert not checkpoint.exists()
    broken = network()
    with torch.no_grad():
        broken.network.fc.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="fc.weight"):
        fit(spec("at"), broken, device_set(), device="cpu")


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
        return torch.rand(1, generator=train.generator("cpu", *args)).item()

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
