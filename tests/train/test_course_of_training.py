"""Free and Fast adversarial training against the textbook, passes against counts by hand, best weights, eps warm-up, features."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.train.made import close, device_set, equal, network, spec, state, trained
from tests.train.test_resume import keeping_best
from twinslib.attack import masks
from twinslib.attack import pgd as attack_pgd
from twinslib.attack.pgd import pgd
from twinslib.base.collapse import NEVER, collapsed
from twinslib.evidence import course
from twinslib.nets.fold import FoldedCopy
from twinslib.specs.run import AttackSpec, FollowSpec, RunSpec
from twinslib.specs.schedules import climb
from twinslib.train import loop
from twinslib.train.loop import fit
from twinslib.train.step import Step

EPS = 16 / 255


def free(m: int = 3) -> RunSpec:
    return replace(spec("at", optim={"batch_size": 8, "val_every": 1}, replays=m), attack=AttackSpec(eps=EPS))


def batches(n: int, *sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(n)
    return [(torch.rand(size, 3, 16, 16, generator=g), torch.randint(0, 10, (size,), generator=g)) for size in sizes]


def test_free_equals_the_textbook() -> None:
    """Weights and perturbation after every step are those of Free-m written out (Shafahi et al. 2019, Algorithm 1): m updates
    per batch in training mode, one backward pass for weights and images, a perturbation that outlives its batch; the last
    batch is smaller, a later one is whole again."""
    run, lr, m = free(), 0.05, 3
    ours, hand = network(), network()
    step = Step(ours, run, "cpu")
    optimizer = torch.optim.SGD(hand.train().parameters(), lr=lr, momentum=0.9, weight_decay=run.optim.weight_decay)
    delta, count = torch.zeros(8, 3, 16, 16), 0
    for x, y in batches(1, 8, 8, 5, 8):
        for _ in range(m):
            step(x, y, count, lr)
            count += 1
            x_adv = (x + delta[:len(x)]).clamp(0, 1).requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(hand(x_adv), y).backward()
            moved = (x_adv.detach() - x + EPS * x_adv.grad.sign()).clamp(-EPS, EPS)
            delta[:len(x)] = (x + moved).clamp(0, 1) - x
            optimizer.step()
            torch.testing.assert_close(step.free.delta, delta, rtol=0, atol=1e-6)
            close(ours, hand, atol=1e-6)
    assert delta.abs().max() <= EPS + 1e-6 and delta.abs().max() > EPS / 2


def test_free_replays_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop gives each batch m times in a row, with the crop that the perturbation was made for."""
    passed, call = [], Step.__call__

    def watched(self, x, y, count, lr, strength=1.0):
        passed.append((x.clone(), y.clone()))
        return call(self, x, y, count, lr, strength)

    monkeypatch.setattr(Step, "__call__", watched)
    data = device_set()
    fit(free(3), network(), data, device="cpu")
    assert len(passed) == 2 * 3 * 3  # two epochs of three batches, the last of four images
    groups = [passed[i:i + 3] for i in range(0, len(passed), 3)]
    assert all(torch.equal(x, g[0][0]) and torch.equal(y, g[0][1]) for g in groups for x, y in g)
    assert not any(torch.equal(a[0][0], b[0][0]) for a, b in itertools.combinations(groups, 2) if len(a[0][0]) == len(b[0][0]))
    for epoch in (groups[:3], groups[3:]):
        assert torch.equal(torch.cat([g[0][1] for g in epoch]).sort().values, data.train_y.sort().values)


@pytest.mark.parametrize(("name", "switches", "forward", "backward"), [
    ("natural", {}, 1, 1), ("at", {}, 3, 3), ("trades", {"loss": "kl"}, 5, 4),  # attacks of two steps; kl: the clean answer too
    ("twins_trades", {}, 4, 4), ("at_split", {}, 3, 3), ("at_awp", {}, 4, 4), ("free_at", {"replays": 3}, 3, 3),
    ("distill", {}, 4, 3), ("joint", {}, 5, 5), ("linear_probe", {}, 1, 1),
])
def test_passes_equal_a_count_by_hand(name: str, switches: dict, forward: int, backward: int) -> None:
    """Images forward and backward in each epoch, per training image, with a last batch that is smaller."""
    loss = (switches := dict(switches)).pop("loss", "ce")
    run = replace(spec(name, optim={"val_every": 1}, **switches), attack=AttackSpec(steps=2, loss=loss))
    if name != "linear_probe" and name != "at_awp":
        run = replace(run, follow=FollowSpec(record_every=1, test_images=5, steps=2))
    history, _ = trained(run)
    assert [(r["forward_images"], r["backward_images"]) for r in history.epochs] == [(20 * forward, 20 * backward)] * 2


def test_the_best_weights_are_those_of_the_best_epoch(monkeypatch) -> None:
    """Of four epochs whose robust validation accuracies are 0.2, 0.4, 0.4, 0.3 the second's weights are kept."""
    values, states = iter([0.2, 0.4, 0.4, 0.3]), []
    row = loop._epoch_row

    def measured(run, model, *rest):
        states.append(state(model))
        return row(run, model, *rest) | {"val_robust_acc": next(values)}

    monkeypatch.setattr(loop, "_epoch_row", measured)
    history, model = trained(keeping_best(spec("at", optim={"epochs": 4})))
    assert course.best_epoch(history.epochs) == 2 and equal(history.best, states[1]) and equal(model, states[3])
    assert not any(torch.equal(history.best[k], states[3][k]) for k in history.best if k.endswith("conv1.weight"))


@pytest.mark.parametrize(("robust", "images", "classes", "kind", "epoch"), [
    *((robust, 10**6, 10, kind, epoch) for robust, kind, epoch in [
        ([0.2, 0.3, 0.32, 0.3, 0.31], None, None), ([0.2, 0.3, 0.151], None, None), ([], None, None), ([None, None], None, None),
        ([0.4, 0.3, 0.25, 0.21], None, None), ([None, 0.3, None, 0.1], "at once", 4), ([0.15, 0.07], "at once", 2),
        ([0.28, 0.145, 0.0], "at once", 3), ([0.28, 0.17, 0.09, 0.0], "slowly", 3), ([0.01, 0.05, 0.007], NEVER, 2)]),
    ([0.03, 0.015, 0.015], 200, 200, None, None), ([0.1, 0.05], 200, 200, None, None), ([0.1, 0.05], 2000, 200, "at once", 2),
    ([], 0, 10, None, None), ([0.14, 0.0], 100, 10, NEVER, 1), ([0.9, 0.3], 200, 2, "at once", 2),
])
def test_collapse(robust: list, images: int, classes: int, kind: str | None, epoch: int | None) -> None:
    """Half of the best so far lost, at one measurement or by and by, is found at the first measurement that shows it."""
    rows = [{"epoch": i + 1} | ({} if value is None else {"val_robust_acc": value}) for i, value in enumerate(robust)]
    found = collapsed(rows, images=images, classes=classes)
    assert (found and found.kind, found and found.epoch) == (kind, epoch)


@pytest.mark.parametrize(("name", "attack", "step"), [
    ("trades", AttackSpec(steps=1, loss="kl", step_size=0.5 / 255), 4 / 255), ("free_at", AttackSpec(eps=EPS), 8 / 255),
    ("at", AttackSpec(threat="l2", eps=0.5, step_size=0.4, steps=1), 0.25), ("at", AttackSpec(eps=0.0), 2 / 255),
])
def test_one_attack_measures_all_methods(name: str, attack: AttackSpec, step: float, monkeypatch) -> None:
    """On validation images and where a run is followed: threat and eps of training, steps of eps / 2."""
    seen = []

    def watched(kind: str):
        measure = getattr(masks, kind)
        return lambda *args, **kwargs: (seen.append((kind, len(args[2]), kwargs)), measure(*args, **kwargs))[1]

    for kind in ("pgd_mask", "pgd_losses"):
        monkeypatch.setattr(masks, kind, watched(kind))
    run = replace(spec(name, optim={"epochs": 1, "val_steps": 3}), attack=attack,
                  follow=FollowSpec(train_images=4, test_images=5, steps=2))
    trained(run)
    assert {(kind, n) for kind, n, _ in seen} == {("pgd_mask", 10), ("pgd_mask", 5), ("pgd_losses", 4)}
    for _, n, call in seen:
        assert (call["threat"], call["eps"], call["steps"]) == (attack.threat, attack.eps, 3 if n == 10 else 2)
        assert call["step_size"] == pytest.approx(step, rel=1e-12) and call.get("loss", "ce") == "ce"


def test_eps_climbs(monkeypatch) -> None:
    """Both eps and step size are the climb's share of the spec's at each step, in the step's own attack."""
    seen = []

    def watched(*args, **kwargs):
        seen.append((kwargs["eps"], kwargs["step_size"]))
        return pgd(*args, **kwargs)

    monkeypatch.setattr(attack_pgd, "pgd", watched)
    run = replace(spec("at", optim={"val_every": 0}), attack=AttackSpec(eps=EPS, step_size=EPS / 2, steps=2, eps_warmup=0.5))
    fit(run, network(), device_set(), device="cpu")
    shares = [climb(step, 6, 0.5) for step in range(6)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert seen == [(pytest.approx(EPS * s), pytest.approx(EPS / 2 * s)) for s in shares]


def test_features_are_what_goes_into_the_head() -> None:
    """Features of the start and of the last network, with the head of each, give its logits, clean and attacked."""
    run = replace(spec("at"), follow=FollowSpec(features=6, feature_epochs=(0, 2), steps=3))
    start, model, data = network(), network(), device_set()
    arrays = fit(run, model, data, device="cpu").course
    assert arrays["feature_epoch"].tolist() == [0, 2] and arrays["feature_label"].tolist() == data.test_y[:6].tolist()
    x, y = data.test_x[:6].float() / 255, data.test_y[:6]
    for i, net in enumerate((start, model)):
        g = torch.Generator().manual_seed(run.seed)
        x_adv = pgd(FoldedCopy(net), x, y, **run.attack.measured(3), generator=g)
        for kind, images in (("clean", x), ("attacked", x_adv)):
            features = torch.from_numpy(arrays[f"features_{kind}"][i]).float()
            assert features.shape == (6, 32)
            torch.testing.assert_close(net.network.fc(features), net.eval()(images), rtol=1e-2, atol=1e-2)
    assert not np.array_equal(arrays["features_clean"], arrays["features_attacked"])
