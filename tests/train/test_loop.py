"""The training step against the textbook, and what a run must keep: frozen statistics, small batches, finite numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.train.made import KINDS, LAMBDA, batch, close, device_set, equal, gradients, network, spec, state, winged
from twinslib.attack import pgd as attack_pgd
from twinslib.nets.models import make_model
from twinslib.nets.norms import to_plain, twin_norms, twinsify
from twinslib.train.loop import fit
from twinslib.train.step import Step, generator


def textbook(model: nn.Module, inputs: dict, y: torch.Tensor, objective: str, second_trains: bool):
    """Two separate networks, one per wing, written out; returns loss, gradients by name of the two-wing network, networks."""
    nets = frozen, adaptive = copy.deepcopy(model).train(second_trains), copy.deepcopy(model).train()
    half, n = len(y) // 2, len(y)
    parts = []
    for net, rows in zip(nets, (slice(0, half), slice(half, n)), strict=True):
        adv = net(inputs["adversarial"][rows])
        if objective == "at":
            parts.append(F.cross_entropy(adv, y[rows]))
        else:
            clean = net(inputs["clean"][rows])
            p, q = clean.softmax(1), adv.softmax(1)
            parts.append(F.cross_entropy(clean, y[rows]) + 6.0 * (p * (p.log() - q.log())).sum() / n)
    loss = LAMBDA * parts[0] + parts[1]
    found = {}
    for (name, f), a in zip(gradients(loss, frozen).items(), gradients(loss, adaptive).values(), strict=True):
        layer, _, leaf = name.rpartition(".")
        if isinstance(model.get_submodule(layer), nn.BatchNorm2d):
            found |= {f"{layer}.frozen.{leaf}": f, f"{layer}.adaptive.{leaf}": a}
        else:
            found[name] = f + a
    return loss, found, frozen, adaptive


@pytest.mark.parametrize("n", [8, 3])
@pytest.mark.parametrize("objective", ["at", "trades"])
@pytest.mark.parametrize("wings", ["twins", "two_adaptive"])
def test_two_wings_equal_two_networks(wings: str, objective: str, n: int) -> None:
    """Loss, all gradients and the statistics agree with two separate textbook networks."""
    model = network().double()
    x, y = batch(n, torch.float64)
    inputs = {"clean": x, "adversarial": (x + 0.05 * torch.sign(torch.randn_like(x))).clamp(0, 1)}
    want, wanted, frozen, adaptive = textbook(model, inputs, y, objective, wings == "two_adaptive")
    run = spec(f"twins_{objective}", wings=wings)
    twin = winged(run, model)
    loss = Step(twin, run, "cpu").loss(inputs, y)[0]
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-8)
    close(gradients(loss, twin), wanted, atol=1e-8)
    for name, layer in twin_norms(twin):
        for wing, plain in ((layer.frozen, frozen), (layer.adaptive, adaptive)):
            close(dict(wing.named_buffers()), dict(plain.get_submodule(name).named_buffers()))
        moved = [not torch.equal(wing.running_mean, model.get_submodule(name).running_mean)
                 for wing in (layer.frozen, layer.adaptive)]
        assert moved == [wings == "two_adaptive", True]


@pytest.mark.parametrize(("name", "attacked"), [
    ("two_adaptive", ["adaptive"] * 2), ("twins_attack_frozen", ["frozen"] * 2),
    ("twins_attack_alternating", ["adaptive", "frozen"])])
def test_which_wing_is_attacked(name: str, attacked: list[str], monkeypatch) -> None:
    """Step by step, the logits of what is attacked are those of that wing in eval mode as it is then, not of the other."""
    run = spec(name)
    twin = winged(run, network())
    for _, layer in twin_norms(twin):
        layer.adaptive.running_mean += 0.3
    (x, y), seen = batch(6), []

    def record(forward, images, labels, **settings):
        assert settings.pop("generator").initial_seed() == generator("cpu", 0, "attack", len(seen)).initial_seed()
        logits = {wing: to_plain(twin, wing).eval()(x) for wing in ("adaptive", "frozen")}
        seen.append([wing for wing, z in logits.items() if torch.allclose(forward(images), z, rtol=1e-3, atol=1e-4)])
        return images

    monkeypatch.setattr(attack_pgd, "pgd", record)
    step = Step(twin, run, "cpu")
    for count in range(2):
        step(x, y, count, 0.05)
    assert seen == [[wing] for wing in attacked]
    purposes = [(0, "attack", 1), (1, "attack", 1), (0, "order", 1), (0, "attack", 2)]
    assert len({generator("cpu", *purpose).initial_seed() for purpose in purposes}) == 4


@pytest.mark.parametrize(("n", "weight", "normalize"), [(9, 1.0, False), (9, 0.4, False), (9, 0.4, True), (1, 1.0, False)])
def test_halves_pass_one_after_the_other(n: int, weight: float, normalize: bool) -> None:
    """Loss, gradients and statistics of the control of split batches are those of two ordinary passes in that order, weighed."""
    model, (x, y) = network().double(), batch(n, torch.float64)
    hand = copy.deepcopy(model).train()
    halves = [(h, w) for h, w in ((slice(0, n // 2), weight), (slice(n // 2, n), 1.0)) if h.stop > h.start]
    want = sum(w * F.cross_entropy(hand(x[h]), y[h]) for h, w in halves) / (1 + weight if normalize else 1)
    step = Step(model, spec("at_split", twins_weight=weight, normalize_loss=normalize), "cpu")
    loss = step.loss({"clean": x, "adversarial": x}, y)[0]
    torch.testing.assert_close(loss, want)
    close(gradients(loss, model), gradients(want, hand))
    close(dict(model.named_buffers()), dict(hand.named_buffers()))


@pytest.mark.parametrize("name", ["twins_trades", "frozen_at", "natural", "natural_frozen", "linear_probe"])
def test_frozen_stays_frozen_in_training(name: str) -> None:
    """Training leaves frozen statistics, and all but the head of a linear probe, bit-identical and moves everything else."""
    run = spec(name, optim={"val_every": 1})
    model = winged(run, network())
    before, buffers = state(model), {k for k, _ in model.named_buffers()}
    fit(run, model, device_set(), device="cpu")
    still = buffers if "frozen" in name else {k for k in buffers if ".frozen." in k or k.startswith("normalize.")}
    still = {k for k in before if ".fc." not in k} if name == "linear_probe" else still
    assert still == {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}


@pytest.mark.parametrize(("name", "precision"), [
    *((name, "float32") for name in KINDS), *((name, "bfloat16") for name in ("trades", "twins_at", "distill", "joint"))])
def test_every_method_learns_a_batch(name: str, precision: str) -> None:
    """Loss falls on one repeated batch, in both precisions; the source images of joint training vary."""
    run = spec(name, optim={"precision": precision})
    step = Step(winged(run, network()), run, "cpu", start=network(), source=device_set())
    x, y = batch(16)
    lr = 0.5 if run.method.trains == "head" else 0.2 if run.method.wings == "frozen" else 0.05  # features of random images
    lr = 0.2 if run.method.replays > 1 else lr  # its first batch is not attacked yet
    losses = [step(x, y, count, lr)[0].item() for count in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def deep_network() -> nn.Module:
    """A network whose last maps have one pixel, so that one image brings its norms a single value per channel."""
    return make_model("thin_resnet10", 10, width=8, seed=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_last_batch_of_any_size(name: str) -> None:
    """Batches and halves of one image train without an error in every method, and all weights move and stay finite."""
    for n, size in ((9, 8), (3, 8), (1, 8), (3, 1), (0, 8)):
        run = spec(name, optim={"batch_size": size, "epochs": 1, "val_every": 0})
        model = winged(run, deep_network())
        before, call = state(model), dict(device="cpu", start=deep_network(), source=device_set())
        if min(n, size) < (2 if run.method.halves else 1):
            with pytest.raises(ValueError, match=f"method '{name}', got batch_size {size} and {n} images"):
                fit(run, model, device_set(n), **call)
            assert equal(model, before)
            continue
        rows = fit(run, model, device_set(n), **call).epochs
        assert len(rows) == 1 and rows[0]["train_loss"] > 0 and all(torch.isfinite(v).all() for v in state(model).values())
        assert not torch.equal(model.network.fc.weight, before["network.fc.weight"])


def test_the_rule_for_one_image() -> None:
    """Norms that meet one value per channel take their running statistics and keep them, in ordinary networks and wings."""
    x, y = batch(1)
    plain, hand, twin = deep_network(), deep_network().train(), twinsify(deep_network())
    single = [name for name, m in hand.named_modules() if isinstance(m, nn.BatchNorm2d) and m.num_features == 64]
    for name in single:  # those of the last stage, whose maps have one pixel
        hand.get_submodule(name).eval()
    losses = [Step(net, run, "cpu").loss({"clean": x, "adversarial": x}, y)[0]
              for net, run in ((plain, spec("at")), (twin, spec()))]
    torch.testing.assert_close(losses, [F.cross_entropy(hand(x), y)] * 2)
    close(dict(plain.named_buffers()), dict(hand.named_buffers()))
    close(dict(to_plain(twin).named_buffers()), dict(hand.named_buffers()))
    plain.network.fc.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Step(plain, spec("at"), "cpu").loss({"clean": x, "adversarial": x}, y)
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert 0 < len(single) < len(norms) and all(m.training and not m._forward_pre_hooks for m in norms)
