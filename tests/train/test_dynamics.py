"""What rides on training: the laws of scale, losses and gradients of the halves, angles and drift."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.train.made import batch, network, spec, trained, winged
from twinslib.nets.norms import wings
from twinslib.specs.run import FollowSpec
from twinslib.train.dynamics import QUANTITIES, Recorder, angle, followed_layers, scale_check, statistics, statistics_drift
from twinslib.train.objectives import split_wings
from twinslib.train.step import Step, generator


@pytest.mark.parametrize("layer", ["network.conv1", "network.blocks.1.conv2"])
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
    for name, factors, message in (("network.conv2", (1,), "layer to be one of network.conv1, .*, got 'network.conv2'"),
                                   (layer, (), "positive factors, got \\[\\]"), (layer, np.array([1, 0]), "positive factors")):
        with pytest.raises(ValueError, match=message):
            scale_check(model, name, factors, x, y)


@pytest.mark.parametrize("radians", [0.0, 1e-9, 1e-4, 0.3, math.pi / 2, math.pi])
def test_angle_is_accurate(radians: float) -> None:
    """Two vectors at a known angle, tiny and large ones, whatever their lengths."""
    u, v = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64))[0].T
    found = angle(7.3 * u.view(5, 10), 0.02 * (math.cos(radians) * u + math.sin(radians) * v).view(5, 10)).item()
    assert found == pytest.approx(radians, rel=1e-6, abs=1e-15)


def test_angles_of_real_steps() -> None:
    """Each angle is the arccos of the inner product of the normalised weights before and after its step, in float64."""
    s = spec("at", optim={"weight_decay": 0.2, "momentum": 0.9})
    model = network().double()
    recorder, snapshots = Recorder(every=1), []
    step = Step(model, s, "cpu", recorder=recorder)
    for count, lr in enumerate((0.05, 0.1, 0.02, None)):
        snapshots.append([w.detach().clone() for w in followed_layers(model).values()])
        if lr:
            step(*batch(8, torch.float64), count, lr)
    for found, old, new in zip(recorder.arrays()["angle"], snapshots, snapshots[1:], strict=False):
        want = [math.acos((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(old, new, strict=True)]
        assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["twins_at", "twins_trades", "at_split", "frozen_at"])
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
    assert {name: a.shape for name, a in Recorder(every=3).arrays().items()} == {
        "layers": (0,), "steps": (0,), "lr": (0,), "losses": (0, 2), **dict.fromkeys(QUANTITIES, (0, 0))}
    with pytest.raises(ValueError, match="every >= 1, got 0"):
        Recorder(every=0)


def test_drift_by_hand() -> None:
    """Means move by half a standard deviation, variances by a factor of e; a dead channel does not count."""
    before = {"bn": torch.tensor([[1.0, -2.0, 5.0], [4.0, 9.0, 0.0]])}
    now = {"bn": torch.tensor([[2.0, -0.5, 7.0], [4.0 * math.e, 9.0 / math.e, 0.0]])}
    ((layer, found),) = statistics_drift(before, now)
    assert layer == "bn" and found == pytest.approx({"mean_drift": 0.5, "log_var_drift": 1.0}, rel=1e-6)
    with pytest.raises(ValueError, match="expected the batch norms bn, got other"):
        statistics_drift(before, {"other": now["bn"]})


@pytest.mark.parametrize(("name", "moves"), [("twins_at", True), ("frozen_at", False)])
def test_drift_in_training(name: str, moves: bool) -> None:
    """One entry per batch norm and epoch: adaptive statistics move away from those before training, frozen ones do not."""
    run = replace(spec(name), follow=FollowSpec(record_every=3))
    before, (history, after) = winged(run, network()), trained(run)
    layers, found = list(statistics(before)), history.course
    assert list(zip(found["drift_epoch"], found["drift_layer"], strict=True)) == [(e, k) for e in (1, 2) for k in layers]
    last = zip(found["drift_mean"][len(layers):], found["drift_log_var"][len(layers):], strict=True)
    for (_, drift), got in zip(statistics_drift(statistics(before), statistics(after)), last, strict=True):
        assert got == (drift["mean_drift"], drift["log_var_drift"]) and (min(got) > 0) == moves
