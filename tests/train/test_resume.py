"""A run that is stopped or killed goes on bit for bit, and nothing that is measured changes it."""

from dataclasses import replace

import pytest
import torch

from tests.train.made import KINDS, device_set, equal, network, spec, trained
from twinslib.base.errors import Diverged
from twinslib.specs.run import AttackSpec, FollowSpec, NoiseSpec, RunSpec
from twinslib.specs.schedules import SCHEDULES, factor
from twinslib.train import loop
from twinslib.train.loop import fit
from twinslib.train.step import OutOfTime, Step

FOLLOW = FollowSpec(record_every=1, train_images=4, test_images=5, features=3, feature_epochs=(0, 1, 2), steps=1)
def followed(name: str) -> RunSpec:
    """A run of which everything is followed that is defined for its method."""
    run = spec(name, optim={"val_every": 1, "val_steps": 2})
    run = replace(run, noise=NoiseSpec(sigmas=(0.25, 0.5)) if "noise" in name else None)
    recordable = not (run.method.awp_gamma or run.method.trains == "head")
    return replace(run, follow=replace(FOLLOW, record_every=int(recordable)))


def keeping_best(run: RunSpec) -> RunSpec:
    """`run` with validation images, whose best epoch is kept."""
    return replace(run, data=replace(run.data, val_images=10), optim=replace(run.optim, keep_best=True, val_every=1))


def check_same(one: tuple, other: tuple) -> None:
    """Weights, statistics, rows, best weights and arrays are equal to the bit."""
    (a, model), (b, again) = one, other
    assert equal(model, again) and a.epochs == b.epochs and equal(a.best, b.best) and equal(a.course, b.course)


@pytest.mark.parametrize("name", [*KINDS, "mixed_noise"])
def test_any_method_resumed(name: str, tmp_path) -> None:
    """Stopped in the middle of an epoch and at its end, a run of any method ends with the same weights, rows and arrays."""
    run = followed(name)
    steps = 6 * run.method.replays
    whole = trained(run)
    check_same(whole, trained(run, checkpoint=tmp_path / "c", stops={2, steps // 2, steps - 1}))
    plain, model = trained(replace(run, follow=None, optim=replace(run.optim, val_every=0)))
    assert equal(model, whole[1]) and whole[0].course and plain.course == {}
    for row, measured in zip(plain.epochs, whole[0].epochs, strict=True):
        assert row.items() < measured.items() and ("val_robust_acc" in measured) == run.method.attacks


@pytest.mark.parametrize("run", [
    keeping_best(replace(spec("at", replays=3), attack=AttackSpec(eps=16 / 255, eps_warmup=0.7))), followed("twins_trades")],
    ids=["free", "followed"])
def test_stopped_after_every_step(run: RunSpec, tmp_path) -> None:
    """In the middle of replays too; the best weights are those of the undisturbed run."""
    check_same(trained(run), trained(run, checkpoint=tmp_path / "c", stops=range(1, 6 * run.method.replays)))


@pytest.mark.parametrize("killed", [2, 5])
def test_killed_and_resumed(killed: int, tmp_path) -> None:
    """Killed without a word, a run goes on from the end of the last whole epoch, or from the start, to the same arrays."""
    def die(step: int, total: int) -> None:
        if step == killed:
            raise KeyboardInterrupt

    run, steps = followed("twins_at"), []
    with pytest.raises(KeyboardInterrupt):
        trained(run, checkpoint=tmp_path / "c", on_step=die)
    again = trained(run, checkpoint=tmp_path / "c", on_step=lambda step, total: steps.append(step))
    assert steps[0] == (1 if killed < 3 else 4)
    check_same(trained(run), again)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_compounds_when_resumed(schedule: str, tmp_path, monkeypatch) -> None:
    """A run stopped after each of its ten steps takes each of them once, at the base rate times the schedule's factor."""
    seen = []

    class Watched(Step):
        def __call__(self, x, y, count, lr, strength):
            seen.append((count, lr))
            return super().__call__(x, y, count, lr, strength)

    monkeypatch.setattr(loop, "Step", Watched)
    run = spec("natural", optim={"schedule": schedule, "milestones": (0.4,), "epochs": 5, "batch_size": 10, "val_every": 0})
    results = []
    for stops in ((), range(1, 10)):
        seen.clear()
        results.append(trained(run, checkpoint=tmp_path / str(len(results)), stops=stops))
        assert seen == [(step, pytest.approx(0.05 * factor(schedule, step, 10, (0.4,)))) for step in range(10)]
        assert [row["lr"] for row in results[-1][0].epochs] == [lr for _, lr in seen[1::2]]
    check_same(*results)


def test_global_random_state_is_not_used() -> None:
    """Two runs under different global seeds are equal."""
    results = []
    for seed in (1, 2):
        model = network()
        torch.manual_seed(seed)
        results.append(trained(spec("at"), model=model))
    check_same(*results)


def test_checkpoint_of_another_spec_is_refused(tmp_path) -> None:
    """A checkpoint names its spec; another spec does not continue from it."""
    with pytest.raises(OutOfTime):
        fit(spec("at"), network(), device_set(), device="cpu", checkpoint=tmp_path / "c", stop=lambda: True)
    with pytest.raises(ValueError, match="expected run "):
        trained(replace(spec("at"), seed=1), checkpoint=tmp_path / "c")


def test_divergence(tmp_path) -> None:
    """An absurd rate or NaN at the start raises Diverged with the rows of finite epochs; no checkpoint is written after it."""
    path = tmp_path / "c"
    with pytest.raises(Diverged, match="lower lr") as error:
        trained(spec("at", optim={"lr": 1e30}), checkpoint=path)
    assert not path.exists() and error.value.epochs == []
    broken = network()
    torch.nn.init.constant_(broken.network.fc.weight, float("nan"))
    with pytest.raises(Diverged, match="fc.weight"):
        trained(spec("at"), model=broken)

    run, model, stops = spec("at", optim={"epochs": 4, "val_every": 0}), network(), iter([False] * 3 + [True])

    def spoil(done: int, total: int) -> None:
        if done == 7:
            torch.nn.init.constant_(model.network.fc.bias, float("nan"))

    with pytest.raises(OutOfTime):
        fit(run, network(), device_set(), device="cpu", checkpoint=path, stop=lambda: next(stops))
    with pytest.raises(Diverged, match="in epoch 3 of at") as error:
        trained(run, model=model, checkpoint=path, on_step=spoil)
    assert error.value.epochs == trained(run)[0].epochs[:2]
