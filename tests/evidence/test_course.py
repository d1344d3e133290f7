"""Reading courses: rates, early losses, best and last epoch and gaps of made-up runs against calculations by hand."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests import store_made
from twinslib.evidence import course
from twinslib.evidence.course import Course
from twinslib.specs.jobs import Job
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec

BATCH, IMAGES = 4, 10  # three steps per epoch
Z, T = 1.959964, {1: 12.706205, 2: 4.302653}  # 97.5 % quantiles: normal, Student's t by degrees of freedom
FOLLOW = FollowSpec(record_every=3, train_images=2, test_images=3)


def spec(name="at", dataset="cifar10", seed=0, data=None, follow=FOLLOW, **switches):
    return RunSpec(data=DataSpec(name=dataset, **{"val_images": 20} | (data or {})), model=ModelSpec(arch="tiny_resnet"),
                   method=method(name, **switches), optim=OptimSpec(batch_size=BATCH), follow=follow, seed=seed)


def made(arrays, *keys, epochs=(), **more):
    """A course with these arrays; keys are method, data set and seed."""
    return Course(spec(*keys, **more), {k: np.array(v) for k, v in arrays.items()}, list(epochs), IMAGES)


def validated(values, every=1):
    """Per-epoch rows with robust validation accuracy after each `every`-th epoch."""
    rows = [{"epoch": e, "train_loss": 1.0} for e in range(1, every * len(values) + 1)]
    for i, value in enumerate(values):
        rows[every * (i + 1) - 1] |= {"val_robust_acc": value, "val_clean_acc": 1 - value}
    return rows


@pytest.mark.parametrize(("losses", "stable"), [
    ([1.0, 0.9, 1.0], True), ([1.0, 1.1, 0.5], False), ([1.0, math.nan, 0.5], False), ([math.inf, math.inf], False)])
def test_stable(losses, stable):
    """No epoch's training loss above the first's; equal is not above, and what is not finite is not stable."""
    rows = [{"epoch": i + 1, "train_loss": loss} for i, loss in enumerate(losses)]
    assert course.stable(made({}, epochs=rows)) == stable


def losses(first, second=None):
    """Recorded losses of the halves at the steps 0, 3, 6 ..., so at the epochs 0, 1, 2 ..."""
    second = [100.0] * len(first) if second is None else second
    return {"losses": np.array([first, second], np.float32).T, "steps": 3 * np.arange(len(first))}


@pytest.mark.parametrize(("name", "switches", "half", "weight"), [
    ("at", {}, 0, 1), ("twins_at", {}, 1, 1), ("at_split", {}, 1, 1),
    ("twins_at", {"twins_weight": 0.25, "normalize_loss": True}, 1, 1.25), ("at", {"normalize_loss": True}, 0, 1)])
def test_training_losses_by_hand(name, switches, half, weight):
    """The loss of the half with the deployed wing, its weight in the sum taken out."""
    run = made(losses([8, 6, 4], [1, 3, 5]), name)
    run = replace(run, spec=replace(run.spec, method=method(name, **switches)))
    frame = course.training_losses([made({}, "trades"), run])
    assert frame["loss"].tolist() == pytest.approx([weight * v for v in ([8, 6, 4], [1, 3, 5])[half]])
    assert frame["epoch"].tolist() == [0, 1, 2] and frame["method"].unique().tolist() == [name]


def test_escape_times_by_hand():
    """The first recorded loss below the middle of the baseline's first and lowest."""
    courses = [
        made(losses([4, 2, 0]), "at"),  # down to the threshold of 2, then below it
        made(losses([0] * 3, [5, 0, 9]), "twins_at"),  # the first half does not count, nor that it rises again
        made(losses([9, 9, 9]), "at_lr"), made(losses([9, 2, 2]), "trades"),
        made(losses([8, 2, 4]), "at", "cub64"), made(losses([4.5, 9, 9]), "trades", "cub64"),  # the lowest is not the last
        made(losses([1, 0, 0]), "trades", "cub64", 1),  # without its baseline
    ]
    assert course.escape_times(courses).values.tolist() == [
        ["cifar10", "at", 0, 2.0, 2.0], ["cifar10", "twins_at", 0, 2.0, 1.0], ["cifar10", "at_lr", 0, 2.0, math.inf],
        ["cifar10", "trades", 0, 2.0, math.inf], ["cub64", "at", 0, 5.0, 1.0], ["cub64", "trades", 0, 5.0, 0.0]]


def test_best_epoch():
    """The highest on validation images, of equals the first; rows without a measurement and test numbers are not looked at."""
    rows = validated([0.3, 0.5, 0.5, 0.4], every=2)
    assert course.best_epoch([row | {"test_robust_acc": row["epoch"] / 10} for row in rows]) == 4
    with pytest.raises(ValueError, match="validation images in the epochs, got none; set val_images"):
        course.best_epoch([{"epoch": 1, "test_robust_acc": 0.5, "val_clean_acc": 0.5}])


def robust(rows, epochs=None, clean=None):
    """Arrays of a run: a row of 0 and 1 per measured epoch, from epoch 0 if not said otherwise."""
    rows = np.array(rows, bool)
    return {"epoch": range(len(rows)) if epochs is None else epochs, "test_robust": rows,
            "test_clean": rows if clean is None else np.array(clean, bool)}


SEVEN = [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]  # after epochs 0 to 7


def test_gap_by_hand():
    """Robust at the best epoch minus the share of the last five measured epochs, or fewer but never the start."""
    run = made(robust(SEVEN), epochs=validated([0.4, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3]))
    assert course.LAST == 5 and run.best == 2
    assert run.end().tolist() == pytest.approx([0.6, 0.0, 0.4])  # epochs 3 to 7
    assert run.at("test_robust", 1).tolist() == [1, 1, 0] and run.gap.tolist() == pytest.approx([0.4, 1.0, 0.6])
    few = made(robust([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], epochs=[0, 2, 4, 6]))
    assert few.end().tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_epoch_that_was_not_measured():
    """A best epoch without a measurement on test images is refused, with what was measured and what to change."""
    run = made(robust([[1, 1, 1]] * 3, epochs=[0, 2, 4]), epochs=validated([0.1, 0.2, 0.4, 0.3]))
    with pytest.raises(ValueError, match=r"expected test_robust after epoch 3 .* only after \[0, 2, 4\]; make val_every"):
        course.gaps([run])


def crossed(values):
    """Mean and interval of values[seed][image], written out: t over the means of the seeds, z over the means of the images."""
    seeds, n = len(values), len(values[0])
    by_seed, by_image = [statistics.fmean(v) for v in values], [statistics.fmean(v) for v in zip(*values, strict=True)]
    square = Z ** 2 * statistics.variance(by_image) / n
    if seeds > 1:
        square += T[seeds - 1] ** 2 * statistics.variance(by_seed) / seeds
    mean = statistics.fmean(by_seed)
    return [pytest.approx(v, abs=1e-6) for v in (mean, mean - math.sqrt(square), mean + math.sqrt(square))]


GOOD, POOR, FAIR = [[1, 1, 1], [1, 1, 0], [1, 0, 0]], [[0, 1, 1], [1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [0, 1, 1]]


def test_gaps_by_hand():
    """Best, last and gap of each data set and method, over its seeds, each seed at its own best epoch."""
    start = [[1, 1, 1]]
    courses = [made(robust(start + GOOD, clean=start + FAIR), "at", "cub64", 0, epochs=validated([0.2, 0.5, 0.1])),
               made(robust(start + POOR, clean=start + GOOD), "at", "cub64", 1, epochs=validated([0.3, 0.2, 0.1])),
               made({"epoch": [0, 1]}, "natural", "cub64"),
               made(robust(start + GOOD), "twins_at", "cub64", 0, epochs=validated([0.2, 0.2, 0.4]))]
    found = {(r.method, r.measure): r for r in course.gaps(courses).itertuples()}
    assert (found["at", "gap"].dataset, found["at", "gap"].seeds, found["at", "gap"].n) == ("cub64", 2, 3)
    expected = {"best": [[1, 1, 0], [0, 1, 1]], "last": [[1, 2 / 3, 1 / 3], [1 / 3] * 3],
                "gap": [[0, 1 / 3, -1 / 3], [-1 / 3, 2 / 3, 2 / 3]],
                "clean_best": [[1, 1, 1], [1, 1, 1]], "clean_last": [[2 / 3, 1, 1], [1, 2 / 3, 1 / 3]]}
    for name, values in expected.items():
        assert [*found["at", name][6:]] == crossed(values), name
    assert found["twins_at", "gap"].seeds == 1 and [*found["twins_at", "gap"][6:]] == crossed([[0, -2 / 3, -1 / 3]])


@pytest.mark.parametrize("read", [
    course.quantities, course.rates, course.drift, course.training_losses, course.escape_times, course.gaps,
    lambda c: course.ratios(c, [("twins_at", "at")]), lambda c: course.early_losses(c, 5),
    lambda c: course.gap_differences(c, [("twins_at", "at")]),
])
def test_nothing_to_read(read):
    """Without runs, or with runs that measured nothing, frames are empty and have their columns."""
    for courses in ([], [made({})]):
        frame = read(courses)
        assert isinstance(frame, pd.DataFrame) and frame.empty and "dataset" in frame and "method" in frame


def finish(store, s, *, run=True, arrays=True):
    """Leave the files of a finished run, or some of them."""
    store_made.finish(store, s, course=robust(SEVEN[:4]) if arrays else None, epochs=validated([0.1, 0.3, 0.2]),
                      train_images=IMAGES + s.seed)
    if not run:
        (store.root / "runs" / f"{s.hash}.json").unlink()
    return Job("followed", s, ())


def test_finished_runs_are_read(store):
    """Finished and followed runs in the order of the jobs, with arrays, rows and images; others are only read as not run."""
    jobs = [finish(store, spec("twins_at", seed=1)), finish(store, spec("at"), run=False), finish(store, spec("at", seed=1)),
            finish(store, spec("trades"), arrays=False), Job("followed", spec("trades", seed=1), ()),
            finish(store, spec("natural", follow=None)), finish(store, spec("at", "cub64", data={"image_size": 64}))]
    found = course.finished(store, [*jobs, jobs[2]])
    assert [c.keys for c in found] == [["cifar10", "twins_at", 1], ["cifar10", "at", 1], ["cub64", "at", 0]]
    assert [c.train_images for c in found] == [IMAGES + 1, IMAGES + 1, IMAGES] and found[0].spec == jobs[0].spec
    assert found[0].best == 2 and np.array_equal(found[0].arrays["test_robust"], SEVEN[:4])
    assert [c.absent for c in course.read(store, jobs)] == ["", "not run", "", "not run", "not run", ""]


def test_two_runs_for_one_key_are_refused(store):
    """One data set, method and seed with two specs: it is not known which is meant."""
    one = spec("at", seed=3)
    jobs = [finish(store, one), finish(store, replace(one, optim=OptimSpec(batch_size=BATCH, lr=0.2)))]
    with pytest.raises(ValueError, match="one run per data set, method and seed, got two for cifar10, at, 3"):
        course.finished(store, jobs)


@pytest.mark.parametrize("change", [{"data": {"image_size": 64}}, {"data": {"exclude": ("cat",)}}, {"data": {"split_seed": 1}},
                                    {"follow": replace(FOLLOW, test_images=2)}])
def test_other_test_images_are_refused(store, change):
    """Runs on one data set whose test images differ are not compared; those on other data sets may have others."""
    specs = spec("at"), spec("twins_at", "cub64", **change), spec("twins_at", **change)
    jobs = [finish(store, s) for s in specs]
    assert len(course.finished(store, jobs[:2])) == 2
    with pytest.raises(ValueError, match="expected all runs on cifar10 on the same test images, got"):
        course.finished(store, jobs)
