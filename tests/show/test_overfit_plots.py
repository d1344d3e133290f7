"""Figures, tables and sentences on robust overfitting from made-up courses: numbers of whole images, checked by hand."""

import math

import numpy as np
import pytest

from tests.figures_read import drawn, intervals
from twinslib.evidence.course import Course
from twinslib.show import figures
from twinslib.show.overfit_plots import gap_plot, method_curves, plateau_curves, schedule_curves, scratch_curves
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec

N = 200  # test images
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
SCHEDULES = {"at_cosine": {"schedule": "cosine"}, "at_cyclic": {"schedule": "cyclic", "milestones": (0.4,)},
             "at_slow_fast": {"schedule": "slow_fast"}}
PLATEAUS = {"at_short_plateau": {"epochs": 18, "milestones": (6 / 18,)},
            "at_long_plateau": {"epochs": 34, "milestones": (22 / 34,)}}
METHODS = ["at", "twins_at", "at_lr", "trades", "twins_trades", "at_awp"]
ALL = [*METHODS, *SCHEDULES, "at_random", *PLATEAUS]
FIGURES = [method_curves, gap_plot, schedule_curves, scratch_curves, plateau_curves]


def run_of(name="at", seed=0, dataset="cifar10", **optim):
    scratch = name == "at_random" or name in PLATEAUS
    return RunSpec(data=DataSpec(name=dataset, train_images=1000, val_images=100), model=ModelSpec(arch="tiny_resnet"),
                   method=method(name), optim=OptimSpec(**{"epochs": 20, "lr": 0.1, "val_every": 2}
                                                        | SCHEDULES.get(name, {}) | PLATEAUS.get(name, {}) | optim),
                   attack=AttackSpec(), follow=FollowSpec(train_images=100, test_images=N, every=2), seed=seed,
                   **({} if scratch else {"source": SOURCE}))


def finish(spec, peak=6, loss=10, turn=0):
    """A run that has 10 robust test images before training, 60 up to epoch `peak`, which is best on validation images, 61 at
    the next measurement, and 60 - `loss` from then on; training images rise by 4 for each epoch. `turn`: which images."""
    epochs = np.arange(0, spec.optim.epochs + 1, 2)
    right = np.select([epochs == 0, epochs <= peak, epochs == peak + 2], [10, 60, 61], 60 - loss)
    robust, train = (np.arange(n) < k[:, None] for n, k in ((N, right), (100, 3 * epochs)))
    clean = np.arange(N) < (100 + epochs)[:, None]
    rows = [{"epoch": e, "lr": 0.1} | ({} if e % 2 else {"val_clean_acc": 0.5, "val_robust_acc": 0.4 if e == peak else 0.3})
            for e in range(1, spec.optim.epochs + 1)]
    arrays = {"epoch": epochs, "test_robust": np.roll(robust, turn, 1), "test_clean": clean, "train_robust": train}
    return Course(spec, arrays, rows, 1000)


def asked(spec, absent="not run"):
    """A run that is planned, or whatever is said of it."""
    return Course(spec, {}, [], 0, absent)


def study(names=ALL, seeds=(0,), done=None, datasets=("cifar10",), losses=None):
    """`done` names the methods that are finished, by default all; losses in images by method, default 10."""
    runs = [run_of(name, seed, dataset) for seed in seeds for dataset in datasets for name in names]
    return [finish(s, loss=(losses or {}).get(s.method.name, 10)) if done is None or s.method.name in done else asked(s)
            for s in runs]


def titled(fig):
    return {ax.get_title(): ax for ax in fig.axes if ax.get_title()}


# -- figures ----------------------------------------------------------------------------------------------------------
def test_method_curves():
    """A panel for each method: training and test error in percent, means over seeds, each seed thin with its best epoch by
    validation; AT behind the others dash-dotted, the band under the last five measurements."""
    runs = [finish(run_of("twins_at", k), peak=peak, loss=loss) for k, peak, loss in ((0, 6, 10), (1, 10, 16), (2, 6, 10))]
    fig = method_curves([finish(run_of()), *runs, asked(run_of("trades"))])
    ax = titled(fig)["TWINS-AT"]
    train, test, *rest = drawn(ax, figures.LOOKS["twins_at"])
    assert [y for _, y in train] == pytest.approx(100 - 3 * np.arange(0, 21, 2))
    assert test[0] == (0, 95) and test[-1] == (20, 76) and len(rest) == 6 + 3  # mean of 75, 78 and 75
    assert [line[0] for line in rest[-3:]] == [(6, 70), (10, 70), (6, 70)]
    assert drawn(ax, {"color": figures.PLAIN}) == drawn(titled(fig)["AT"], figures.LOOKS["at"])[1:2]
    assert [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches] == [(12, 20)]
    assert [t.get_text() for t in titled(fig)["TRADES"].texts] == ["not run"]


def test_schedule_curves():
    """Above each course its learning rate, at the epochs where it holds; shaded where it is below a fifth of the peak."""
    fig = schedule_curves(study(losses={"at_cyclic": 4}))
    at = {ax.get_title(): dict(drawn(ax)[0]) for ax in fig.axes[:4]}
    assert [at["piecewise"][e] for e in (0, 9.98, 10, 18)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert [at["cyclic"][e] for e in (0, 4, 8, 14)] == pytest.approx([0, 0.05, 0.1, 0.05])
    assert [at["slow start, fast decay"][e] for e in (0, 2, 8, 10)] == pytest.approx([0.02, 0.04, 0.1, 0.05])
    assert sorted({line[-1][1] for line in drawn(fig.axes[6]) if len(line) > 1}) == [40, 72, 75]
    assert [any(p.get_x() <= 15 <= p.get_x() + p.get_width() for p in ax.patches) for ax in fig.axes[:4]] == [1, 1, 0, 1]


def test_scratch_and_plateau_curves():
    """Ours by share of training, public points on the images that they stand for only; plateaus count from the first drop."""
    fig = scratch_curves(study(["at_random"], losses={"at_random": 20}))
    robust, clean = fig.axes
    theirs, training, _, ours = drawn(robust)[:4]
    assert dict(theirs)[100] == 54.4 and len(theirs) == 15 and training[-1][1] == 18.9 and ours[-1] == (100, 80)
    assert [drawn(clean)[1][i][1] for i in (0, -1)] == [50, 40]
    assert "1,000 images of CIFAR-10" in fig.get_supxlabel() and "PreAct ResNet-18, 200 epochs" in fig.get_supxlabel()
    elsewhere = scratch_curves(study(["at_random"], datasets=["toy_target"]))
    assert len(drawn(elsewhere.axes[0])) == 3 and "Public" not in elsewhere.get_supxlabel()
    fig = plateau_curves(study(list(PLATEAUS)))
    assert [(line[0][0], line[-1][0]) for line in drawn(fig.axes[0]) if len(line) > 1] == [(-6, 12)] * 2 + [(-22, 12)] * 2


def test_gap_plot():
    """Left own gaps, right differences, in points on one scale; a row says on how many seeds it rests."""
    courses = study(losses={"at": 20, "twins_at": 0}, done=["at", "twins_at"], seeds=(0, 1))
    left, right = gap_plot([c for c in courses if c.spec.seed == 0 or c.spec.method.name == "at"]).axes
    half = round(196 * math.sqrt(0.1 * 0.9 / (N - 1)), 3)
    assert sorted(x for line in drawn(left) for x, _ in line) == [0, 10] and [x for (x, _), in drawn(right)] == [-10]
    assert intervals(right)[0] == pytest.approx((-10 - half, -10 + half), abs=1e-3) and left.get_xlim() == right.get_xlim()
    assert [t.get_text() for t in left.get_yticklabels()][:2] == ["AT (2 seeds)", "TWINS-AT (1 seed)"]
    assert [t.get_text() for t in left.texts] == ["not run"] * (len(ALL) - 2)
