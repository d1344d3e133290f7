"""What rides on training: the laws of scale, gradients of the halves, angles and drift, and that nothing else changes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import batch, device_set, network, spec, winged

from twinslib.config import METHODS
from twinslib.dynamics import QUANTITIES, Recorder, angle, followed_layers, statistics, statistics_drift
from twinslib.norms import freeze_statistics, twinsify, wings
from twinslib.objectives import split_wings
from twinslib.train import OutOfTime, Step, fit, generator


def scaled_gradient(model, layer: str, c: float, x, y, frozen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, gradient of the loss) of a convolution whose weight is multiplied by c; the given network stays as it is."""
    model = copy.deepcopy(model).double().train()
    if frozen:
        freeze_statistics(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-12  # the laws hold for variances far above it
    weight = model.get_parameter(f"{layer}.weight")
    weight.data.mul_(c)
    F.cross_entropy(model(x), y).backward()
    return weight.detach(), weight.grad


CONVOLUTIONS = [name for name in followed_layers(network()) if not name.endswith("fc")]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(CONVOLUTIONS), st.floats(0.2, 5.0))
def test_laws_of_scale(seed: int, layer: str, c: float) -> None:
    """With batch statistics the gradient goes as 1 / c and is at right angles to the weight; with frozen ones neither holds."""
    model, (x, y) = network(seed % 97), batch(8, torch.float64)
    _, one = scaled_gradient(model, layer, 1.0, x, y, frozen=False)
    w, g = scaled_gradient(model, layer, c, x, y, frozen=False)
    assert (g * c - one).norm() <= 1e-6 * one.norm()
    assert abs((w * g).sum()) <= 1e-8 * w.norm() * g.norm()


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_laws_fail_with_frozen_statistics(layer: str) -> None:
    """Under frozen statistics a weight three times as large has no gradient a third as large, nor one at right angles to it."""
    model, (x, y) = network(3), batch(8, torch.float64)
    _, one = scaled_gradient(model, layer, 1.0, x, y, frozen=True)
    w, g = scaled_gradient(model, layer, 3.0, x, y, frozen=True)
    assert (3 * g - one).norm() > 0.1 * one.norm()
    assert abs((w * g).sum()) > 1e-3 * w.norm() * g.norm()


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


def run(name: str, recorder: Recorder | None, **options):
    """A short training with the recorder; returns (start network, trained network)."""
    s = spec(name)
    model = winged(s, network())
    before = copy.deepcopy(model)
    fit(s, model, device_set(), device="cpu", start=network(1), source=device_set() if s.method.source_weight else None,
        recorder=recorder, **options)
    return before, model


@pytest.mark.parametrize("name", METHODS)
def test_recorder_changes_nothing(name: str) -> None:
    """Weights and statistics after training are bit-identical with and without it, for every method."""
    (_, off), (_, on) = run(name, None), run(name, Recorder(every=2))
    assert all(torch.equal(a, b) for a, b in zip(off.state_dict().values(), on.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["at", "twins_at", "twins_shared", "twins_trades", "two_adaptive", "at_split", "frozen_at"])
def test_quantities_by_hand(name: str) -> None:
    """One step: norms, halves' gradients, cosine and angle of every layer against an independent calculation in NumPy."""
    s = replace(spec(name), optim=replace(spec(name).optim, weight_decay=0.1))
    model, (x, y) = winged(s, network()), batch(8)
    recorder = Recorder(every=1)
    step = Step(model, s, "cpu", recorder=recorder)
    old = {k: w.detach().numpy().astype(np.float64) for k, w in followed_layers(model).items()}
    other = copy.deepcopy(model)
    inputs = {"clean": x, "adversarial": Step(copy.deepcopy(model), s, "cpu").attackers[0](x, y, generator("cpu", s.seed,
                                                                                                      "attack", 0))}
    step(x, y, 0, 0.05)
    n, parts = split_wings(s.method, 8)
    halves = []
    for part, weight in parts:
        net = copy.deepcopy(other)
        with wings(net, n):
            logits = {k: (torch.cat([net(v[p]) for p, _ in parts]) if s.method.wings == "split" else net(v))[part]
                      for k, v in inputs.items()}
        loss = F.cross_entropy(logits["adversarial"], y[part]) if s.method.objective == "at" else None
        if loss is None:
            p, q = (F.softmax(logits[k], 1) for k in ("clean", "adversarial"))
            loss = F.cross_entropy(logits["clean"], y[part]) + 6.0 * (p * (p.log() - q.log())).sum() / 8
        grads = torch.autograd.grad(weight * loss, list(followed_layers(net).values()))
        halves.append([g.numpy().astype(np.float64) for g in grads])
    found = recorder.arrays()
    assert found["layers"].tolist() == list(old) and found["steps"].tolist() == [0] and found["lr"].tolist() == [0.05]
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
    recorder = Recorder(every=2)
    run("twins_at", recorder)
    found = recorder.arrays()
    assert found["steps"].tolist() == [0, 2, 4] and found["angle"].shape == (3, len(found["layers"]))
    assert (found["angle"] > 0).all() and (found["w_norm"] > 0).all()
    with pytest.raises(ValueError, match="every >= 1, got 0"):
        Recorder(every=0)


@pytest.mark.parametrize("name", ["at", "twins_trades", "joint"])
def test_recorder_resumes(tmp_path, name: str) -> None:
    """Stopped after the third step and resumed, it has kept the same lines and drift as an undisturbed run."""
    whole, calls, recorder = Recorder(every=1), iter([False, False, True]), Recorder(every=1)
    run(name, whole)
    with pytest.raises(OutOfTime):
        run(name, recorder, checkpoint=tmp_path / "c", stop=lambda: next(calls))
    again = Recorder(every=1)
    run(name, again, checkpoint=tmp_path / "c")
    assert again.drift == whole.drift
    for key, value in whole.arrays().items():
        assert np.array_equal(again.arrays()[key], value), key


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
    """One line per batch norm and epoch: adaptive statistics move away from those before training, frozen ones do not."""
    recorder = Recorder(every=3)
    before, after = run(name, recorder)
    assert [(d["epoch"], d["layer"]) for d in recorder.drift] == [(e, k) for e in (1, 2) for k in statistics(before)]
    last = {d["layer"]: d for d in recorder.drift if d["epoch"] == 2}
    for layer, found in statistics_drift(statistics(before), statistics(after)):
        assert {k: last[layer][k] for k in found} == found
        assert (min(found.values()) > 0) == moves


def test_statistics_are_those_of_the_adaptive_wing() -> None:
    """A network and its two-wing version have the same statistics under the same names; later the adaptive wing's count."""
    plain = network()
    twin = twinsify(plain)
    assert all(torch.equal(a, b) for a, b in zip(statistics(plain).values(), statistics(twin).values(), strict=True))
    assert list(statistics(plain)) == list(statistics(twin))
    twin.train()(batch(8)[0])
    assert not any(torch.equal(a, b) for a, b in zip(statistics(plain).values(), statistics(twin).values(), strict=True))
