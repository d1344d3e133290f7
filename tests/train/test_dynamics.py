"""What rides on training: the laws of scale, losses and gradients of the halves, angles and drift."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.train.made import batch, network, spec, trained, winged
from twinslib.nets.norms import freeze_statistics, twinsify, wings
from twinslib.specs.run import FollowSpec
from twinslib.train.dynamics import QUANTITIES, Recorder, angle, followed_layers, scale_check, statistics, statistics_drift
from twinslib.train.objectives import split_wings
from twinslib.train.step import Step, generator


# -- laws of scale ---------------------------------------------------------------------------------------------------
def randomly(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Fill a convolution, batch norm or linear layer with random weights and statistics."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, p[0].numel() ** -0.5, generator=generator) if p.ndim > 1 else p.uniform_(-0.3, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
    return module


@st.composite
def cases(draw) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A random network of convolutions, each with a batch norm after it, in float64, and a batch for it."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 4))):
        width, kernel = draw(st.integers(2, 7)), draw(st.sampled_from([1, 3, 5]))
        conv = nn.Conv2d(channels, width, kernel, draw(st.integers(1, 2)), kernel // 2, bias=draw(st.booleans()))
        act = draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.SiLU()]))
        layers += [randomly(conv, g), randomly(nn.BatchNorm2d(width, eps=1e-15), g), act]  # the laws hold far above eps
        channels = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), randomly(nn.Linear(channels, 5), g)).double()
    n = draw(st.integers(6, 12))
    return net, torch.rand(n, 3, 8, 8, generator=g, dtype=torch.float64), torch.randint(0, 5, (n,), generator=g)


def gradient(net: nn.Module, layer: int, c: float, x: torch.Tensor, y: torch.Tensor,
             frozen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, gradient of the loss) of a convolution whose weight is multiplied by c; the given network stays as it is."""
    net = copy.deepcopy(net).train()
    if frozen:
        freeze_statistics(net)
    weight = net[layer].weight
    weight.data.mul_(c)
    spread = []
    net[layer].register_forward_hook(lambda m, args, out: spread.append(out.transpose(0, 1).flatten(1).var(1).min().item()))
    g, = torch.autograd.grad(F.cross_entropy(net(x), y), weight)
    assume(spread[0] > 1e-4 and g.norm() > 1e-7)  # a layer behind dead units has no gradient to speak of
    return weight.detach(), g


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0.1, 0.6) | st.floats(1.7, 10), st.booleans())
def test_laws_of_scale(case: tuple, c: float, frozen: bool) -> None:
    """With batch statistics every convolution's gradient goes as 1 / c, and is at right angles to the weight to rounding; with
    frozen ones neither holds. A random network may come near the second by chance: the cosine's median is 0.06, it is below
    1e-3 in 7 of 1,000 and so below 1e-8 about once in 1e7."""
    net, x, y = case
    for layer in range(0, len(net) - 3, 3):
        _, one = gradient(net, layer, 1.0, x, y, frozen)
        w, g = gradient(net, layer, c, x, y, frozen)
        away, cosine = (c * g - one).norm() / one.norm(), abs((w * g).sum()) / (w.norm() * g.norm())
        assert (away > 1e-3 and cosine > 1e-8) if frozen else (away <= 1e-7 and cosine <= 1e-9)


def test_the_frozen_wing_breaks_the_law() -> None:
    """In a two-wing network the adaptive half's gradient is at right angles to each convolution, the frozen half's is not."""
    net, (x, y) = twinsify(network()).double(), batch(16, torch.float64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    net.train()
    with wings(net, 8):
        logits = net(x)
    convolutions = [w for w in followed_layers(net).values() if w.ndim == 4]
    assert len(convolutions) > 3
    for half, holds in ((slice(0, 8), False), (slice(8, 16), True)):
        grads = torch.autograd.grad(F.cross_entropy(logits[half], y[half]), convolutions, retain_graph=True)
        for w, g in zip(convolutions, grads, strict=True):
            cosine = abs((w * g).sum() / (w.norm() * g.norm()))
            assert (cosine < 1e-8) if holds else (cosine > 1e-5)


@pytest.mark.parametrize("layer", [name for name in followed_layers(network()) if not name.endswith("fc")])
def test_scale_check(layer: str) -> None:
    """Its table shows both laws for batch statistics and neither for frozen ones; at factor 1 the two networks are one."""
    model, (x, y) = network(), batch(8)
    before = copy.deepcopy(model.state_dict())
    table = scale_check(model, layer, (0.5, 1, 4), x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    by_statistics, frozen = (table[table["statistics"] == name].reset_index(drop=True) for name in ("batch", "frozen"))
    assert by_statistics["w_norm"].tolist() == pytest.approx([f * by_statistics["w_norm"][1] for f in (0.5, 1, 4)])
    assert by_statistics["product"].tolist() == pytest.approx([by_statistics["product"][0]] * 3, rel=1e-6)
    assert by_statistics["cos_wg"].abs().max() < 1e-8
    assert frozen["product"].max() > 1.05 * frozen["product"].min() and frozen["cos_wg"].abs().min() > 1e-4
    plain = copy.deepcopy(model).double().train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    g, = torch.autograd.grad(F.cross_entropy(plain(x.double()), y), plain.get_parameter(f"{layer}.weight"))
    assert by_statistics["g_norm"][1] == pytest.approx(g.norm().item(), rel=1e-9)


@pytest.mark.parametrize(("layer", "factors", "message"), [
    ("network.conv2", (1,), "expected layer to be one of network.conv1, .*, got 'network.conv2'"),
    ("network.conv1", (), "expected positive factors, got \\[\\]"),
    ("network.conv1", (1, 0), "expected positive factors, got \\[1, 0\\]"),
])
def test_scale_check_refuses(layer: str, factors: tuple, message: str) -> None:
    """Unknown layers and factors that leave no direction are named."""
    with pytest.raises(ValueError, match=message):
        scale_check(network(), layer, factors, *batch(4))


# -- angles ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("radians", [0.0, 1e-9, 1e-7, 1e-4, 0.3, math.pi / 2, 3.0, math.pi])
def test_angle_is_accurate(radians: float) -> None:
    """Two vectors at a known angle, tiny and large ones, whatever their lengths."""
    g = np.random.default_rng(0)
    u = g.normal(size=50)
    u /= np.linalg.norm(u)
    v = g.normal(size=50)
    v -= (v @ u) * u
    v /= np.linalg.norm(v)
    a, b = 7.3 * u, 0.02 * (math.cos(radians) * u + math.sin(radians) * v)
    found = angle(torch.from_numpy(a).reshape(5, 10), torch.from_numpy(b).reshape(5, 10)).item()
    assert found == pytest.approx(radians, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("name", ["at", "twins_at"])
def test_angles_of_real_steps(name: str) -> None:
    """Over steps of SGD with momentum, decay and changing rates each angle is the arccos of the normalised inner product of the
    weights before and after, in float64; momentum and decay turn them otherwise than the gradient alone would."""
    s = spec(name, optim={"weight_decay": 0.2, "momentum": 0.9})
    model = winged(s, network()).double()
    recorder, snapshots, plain = Recorder(every=1), [], []
    step = Step(model, s, "cpu", recorder=recorder)
    for count, lr in enumerate((0.05, 0.1, 0.02)):
        snapshots.append([w.detach().numpy().copy() for w in followed_layers(model).values()])
        step(*batch(8, torch.float64), count, lr)
        plain.append([old - lr * w.grad.numpy() for old, w in zip(snapshots[-1], followed_layers(model).values(), strict=True)])
    snapshots.append([w.detach().numpy() for w in followed_layers(model).values()])

    def arccos(a: np.ndarray, b: np.ndarray) -> float:
        return math.acos((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))

    found = recorder.arrays()["angle"]
    for count in range(3):
        want = [arccos(a, b) for a, b in zip(snapshots[count], snapshots[count + 1], strict=True)]
        assert found[count] == pytest.approx(want, rel=1e-5)
        gradient_alone = [arccos(a, b) for a, b in zip(snapshots[count], plain[count], strict=True)]
        assert count == 0 or found[count] != pytest.approx(gradient_alone, rel=0.05)


# -- the recorder ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["at", "twins_at", "twins_shared", "twins_trades", "two_adaptive", "at_split", "frozen_at"])
def test_quantities_by_hand(name: str) -> None:
    """One step: losses and gradients of the halves, norms, cosine and angle of every layer against an independent calculation
    in NumPy."""
    s = replace(spec(name), optim=replace(spec(name).optim, weight_decay=0.1))
    model, (x, y) = winged(s, network()), batch(8)
    recorder = Recorder(every=1)
    step = Step(model, s, "cpu", recorder=recorder)
    old = {k: w.detach().numpy().astype(np.float64) for k, w in followed_layers(model).items()}
    other = copy.deepcopy(model)
    attack = Step(copy.deepcopy(model), s, "cpu").attackers[0]
    inputs = {"clean": x, "adversarial": attack(x, y, generator("cpu", s.seed, "attack", 0))}
    step(x, y, 0, 0.05)
    n, parts = split_wings(s.method, 8)
    halves, losses = [], [0.0, 0.0]
    for i, (part, weight) in enumerate(parts):
        net = copy.deepcopy(other)
        with wings(net, n):
            logits = {k: (torch.cat([net(v[p]) for p, _ in parts]) if s.method.wings == "split" else net(v))[part]
                      for k, v in inputs.items()}
        loss = F.cross_entropy(logits["adversarial"], y[part]) if s.method.objective == "at" else None
        if loss is None:
            p, q = (F.softmax(logits[k], 1) for k in ("clean", "adversarial"))
            loss = F.cross_entropy(logits["clean"], y[part]) + 6.0 * (p * (p.log() - q.log())).sum() / 8
        grads = torch.autograd.grad(weight * loss, list(followed_layers(net).values()))
        losses[i] = weight * loss.item()
        halves.append([g.numpy().astype(np.float64) for g in grads])
    found = recorder.arrays()
    assert found["layers"].tolist() == list(old) and found["steps"].tolist() == [0] and found["lr"].tolist() == [0.05]
    assert found["losses"].shape == (1, 2) and found["losses"][0] == pytest.approx(losses, rel=1e-4)
    for i, (name_of, now) in enumerate(followed_layers(model).items()):
        w, new, whole = old[name_of], now.detach().numpy().astype(np.float64), sum(h[i] for h in halves)
        length = np.linalg.norm
        want = {"w_norm": length(w), "g_norm": length(whole), "g_first": length(halves[0][i]),
                "g_second": length(halves[1][i]) if len(halves) == 2 else 0.0,
                "cos_wg": (w * whole).sum() / length(w) / length(whole),
                "angle": math.acos(min(1.0, (w * new).sum() / length(w) / length(new)))}
        for key in QUANTITIES:
            assert found[key][0, i] == pytest.approx(want[key], rel=2e-3, abs=3e-4), (name_of, key)


def test_only_every_kth_step() -> None:
    """Twenty images in batches of eight for two epochs are six steps; every second one is kept."""
    found = trained(replace(spec(), follow=FollowSpec(record_every=2)))[0].course
    assert found["steps"].tolist() == [0, 2, 4] and found["angle"].shape == (3, len(found["layers"]))
    assert (found["angle"] > 0).all() and (found["w_norm"] > 0).all()
    assert found["losses"].shape == (3, 2) and (found["losses"] > 0).all() and found["losses"].dtype == np.float32
    with pytest.raises(ValueError, match="every >= 1, got 0"):
        Recorder(every=0)


@pytest.mark.parametrize(("losses", "passes"), [(1, 0), (2, 2)])
def test_a_whole_batch_costs_no_further_pass(losses: int, passes: int, monkeypatch) -> None:
    """A backward pass per half where the batch is split; the whole loss's gradient is that of the step itself otherwise."""
    model, (x, y) = network(), batch(8)
    recorder, made = Recorder(every=1), []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: made.append(1) or real(*a, **k))
    parts = F.cross_entropy(model(x), y, reduction="none").chunk(losses)
    halves = torch.stack([part.sum() for part in parts])
    recorder.before(model, halves)
    assert len(made) == passes
    halves.sum().backward()
    recorder.gradients()
    recorder.after(0, 0.1)
    found = recorder.arrays()
    assert found["losses"][0] == pytest.approx([*halves.tolist(), 0.0][:2])
    assert losses == 2 or (np.array_equal(found["g_first"], found["g_norm"]) and not found["g_second"].any())


def test_nothing_recorded() -> None:
    """Before the first line the arrays are there, and empty."""
    found = Recorder(every=3).arrays()
    assert {name: a.shape for name, a in found.items()} == {
        "layers": (0,), "steps": (0,), "lr": (0,), "losses": (0, 2), **dict.fromkeys(QUANTITIES, (0, 0))}


def test_drift_by_hand() -> None:
    """Means move by half a standard deviation, variances by a factor of e; a dead channel does not count; other layers are
    refused."""
    before = {"bn": torch.tensor([[1.0, -2.0, 5.0], [4.0, 9.0, 0.0]])}
    now = {"bn": torch.tensor([[2.0, -0.5, 7.0], [4.0 * math.e, 9.0 / math.e, 0.0]])}
    ((layer, found),) = statistics_drift(before, now)
    assert layer == "bn" and found == pytest.approx({"mean_drift": 0.5, "log_var_drift": 1.0}, rel=1e-6)
    with pytest.raises(ValueError, match="expected the batch norms bn, got other"):
        statistics_drift(before, {"other": now["bn"]})


@pytest.mark.parametrize(("name", "moves"), [("at", True), ("twins_at", True), ("at_split", True), ("frozen_at", False)])
def test_drift_in_training(name: str, moves: bool) -> None:
    """One entry per batch norm and epoch: adaptive statistics move away from those before training, frozen ones do not."""
    run = replace(spec(name), follow=FollowSpec(record_every=3))
    before, (history, after) = winged(run, network()), trained(run)
    layers, found = list(statistics(before)), history.course
    assert list(zip(found["drift_epoch"], found["drift_layer"], strict=True)) == [(e, k) for e in (1, 2) for k in layers]
    last = {d: tuple(pair) for e, d, *pair in zip(*(found[f"drift_{k}"] for k in ("epoch", "layer", "mean", "log_var")),
                                                  strict=True) if e == 2}
    for layer, drift in statistics_drift(statistics(before), statistics(after)):
        assert last[layer] == (drift["mean_drift"], drift["log_var_drift"])
        assert (min(last[layer]) > 0) == moves


def test_statistics_are_those_of_the_adaptive_wing() -> None:
    """A network and its two-wing version have the same statistics under the same names; later the adaptive wing's count."""
    plain = network()
    twin = twinsify(plain)
    assert all(torch.equal(a, b) for a, b in zip(statistics(plain).values(), statistics(twin).values(), strict=True))
    assert list(statistics(plain)) == list(statistics(twin))
    twin.train()(batch(8)[0])
    assert not any(torch.equal(a, b) for a, b in zip(statistics(plain).values(), statistics(twin).values(), strict=True))
