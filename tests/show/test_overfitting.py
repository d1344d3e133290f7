"""Notebook 03: figures and tables from made-up courses, numbers of whole images, checked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.figures_read import drawn
from twinslib.evidence.course import Course
from twinslib.show import figures, overfit_tables
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
    validation; AT behind the others in grey, the band under the last five measurements."""
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


def by_method(table):
    return {row["method"]: row for row in table.to_dict("records")}


def test_best_is_chosen_on_validation_images():
    """Epoch 6 is best by validation, although test images are better at 8; the end is the mean of epochs 12 to 20."""
    row = by_method(overfit_tables.best_last_table(study(["at"], losses={"at": 10})))["AT"]
    assert (row["data set"], row["best epoch"], row["of epochs"], row["seeds"]) == ("CIFAR-10", "6", "20", "1")
    half = 196 * math.sqrt(0.3 * 0.7 / (N - 1))
    assert row["robust, best (PGD-10 at 8/255)"] == f"30.0 [{30 - half:.1f}, {30 + half:.1f}]"
    assert row["robust, last"].startswith("25.0 [") and row["clean, best"].startswith("53.0 [")
    assert row["clean, last"].startswith("58.0 [")  # 100 + 16 images on average
    assert row["robust, training images, last - best"] == "+30.0"  # 3 points an epoch, from 6 to 16 on average
    half = 196 * math.sqrt(0.05 * 0.95 / (N - 1))
    assert row["gap (points)"] == f"+5.0 [+{5 - half:.1f}, +{5 + half:.1f}]"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 5))
def test_early_stopping(values, patience):
    """It ends at the first measurement up to which the last `patience` all fail to beat the best before, else with the run."""
    ends = [t for t in range(patience, len(values)) if max(values[t - patience + 1:t + 1]) <= max(values[:t - patience + 1])]
    seen = values[:ends[0] + 1] if ends else values
    run = Course(run_of(), {}, [{"epoch": e, "val_robust_acc": v} for e, v in enumerate(values, start=1)], 0)
    assert overfit_tables.early_stop(run, patience) == (seen.index(max(seen)) + 1, len(seen) if ends else 20)


def test_early_stopped_line():
    """The network that patience keeps, and the share of the training up to the end of patience."""
    row = by_method(overfit_tables.best_last_table([finish(run_of())]))["AT, early stopped (patience 5)"]
    assert row["best epoch"] == "6" and row["training needed"] == "80 %" and row["robust, last"] == ""
    assert row["robust, best (PGD-10 at 8/255)"].startswith("30.0 [") and row["clean, best"].startswith("53.0 [")


def test_above_early_stopping():
    """The end of a method minus early-stopped AT on the same seeds and images: 200 images, 60 - 4 against 60."""
    courses = study(["at", "at_slow_fast"], losses={"at_slow_fast": 4})
    found = overfit_tables.above_early_stopping(courses, "cifar10", "at_slow_fast")
    assert (found.estimate, found.n) == (pytest.approx(-0.02), N)
    assert found.low == pytest.approx(-0.02 - 1.96 * math.sqrt(0.02 * 0.98 / (N - 1)), abs=1e-5)
    another = [finish(run_of("at", 1)), *courses[1:]]  # of another seed
    assert overfit_tables.above_early_stopping(another, "cifar10", "at_slow_fast") is None


def test_differences():
    """Method minus baseline for the planned pairs; the word is the interval's: below 0 smaller, with 0 unclear."""
    courses = study(losses={"at": 20, "twins_at": 0, "at_lr": 20, "at_cosine": 40}, done=[n for n in ALL if n != "at_awp"])
    table = {row["difference of gaps"]: row for row in overfit_tables.difference_table(courses).to_dict("records")}
    assert len(table) == len(overfit_tables.PAIRS)
    assert table["TWINS-AT - AT"]["points"].startswith("-10.0 [-14.") and table["TWINS-AT - AT"]["gap"] == "smaller"
    assert table["AT, cosine - AT"]["gap"] == "larger" and table["AT, lr × (1 + λ) - AT"]["gap"] == "unclear"
    assert (table["AT, AWP - AT"]["points"], table["AT, AWP - AT"]["seeds"], table["AT, AWP - AT"]["gap"]) == ("not run", "0", "")
    few = overfit_tables.difference_table(study(["twins_at", "trades", "twins_trades"]))
    assert few["difference of gaps"].tolist() == ["TWINS-TRADES - TRADES"]


def test_schedules():
    """Rates, the share of the run that they are small, gaps, and the public gap of the same schedule where there is one."""
    table = overfit_tables.schedule_table(study(losses={"at_cosine": 4}, done=["at", "at_cosine"])).set_index("schedule")
    assert table.index.tolist() == ["piecewise", "cosine", "cyclic", "slow start, fast decay"]
    small = table["share of the run below 0.2 × peak"].tolist()
    assert small == ["50 %", f"{100 - 100 * math.acos(-0.6) / math.pi:.0f} %", "20 %", "30 %"]
    assert [text.split()[0] for text in table["gap, public run from random weights"]] == ["7.4", "5.2", "1.1", "none"]
    assert table.loc["cosine", "gap (points)"].startswith("+2.0 [") and table.loc["cyclic", "gap (points)"] == "not run"
    assert table["last - AT early stopped (points)"].tolist()[2:] == ["not run"] * 2
    assert table.loc["cosine", "last - AT early stopped (points)"].startswith("-2.0 [")
    other = overfit_tables.schedule_table(study(datasets=["toy_target"]))
    assert set(other["gap, public run from random weights"]) == {"none known"}


def test_public_plateaus():
    """Four public runs of 110 epochs; the gap is last minus best as the logs have it."""
    table = overfit_tables.public_plateaus()
    assert (table["plateau (epochs)"] + table["epochs after it"]).tolist() == [110] * 4
    assert table["plateau (epochs)"].tolist() == [60, 70, 80, 90]
    assert table["gap (points)"].tolist() == ["+3.5", "+2.8", "+2.4", "+1.0"]


def test_random_start():
    """Robust error at the best epoch and the end, the gap and the epoch of the drop; the public run only beside the images that
    it stands for."""
    (ours, public) = overfit_tables.scratch_table([finish(run_of("at_random"), loss=20)]).values.tolist()
    assert ours[1:4] == ["ours", "70.0", "80.0"] and ours[4].startswith("+10.0 [") and ours[5:] == ["6", "10", 20]
    assert public[1:6] == ["public, PreAct ResNet-18", "46.5", "53.9", "+7.4", "106"]
    (other,) = overfit_tables.scratch_table([asked(run_of("at_random", dataset="toy_target"))]).values.tolist()
    assert other[2:6] == ["not run"] * 4


def test_caption():
    """Says by what and on how many images robust error is measured, and what the interval of a single seed speaks about."""
    courses = study(["at", "trades"], seeds=(0, 1, 2))
    caption = overfit_tables.caption([c for c in courses if c.spec.method.name == "at" or c.spec.seed == 0])
    assert "PGD-10 at 8/255, on 200 test images" in caption and "on 100 training images" in caption
    assert "Seeds 0, 1, 2." in caption and "a single seed speak about other test images only" in caption
    assert "single seed speak" not in overfit_tables.caption([c for c in courses if c.spec.method.name == "at"])


def test_nothing_finished():
    """Every table stands before any run is done, without a number of ours; what diverged says so."""
    assert overfit_tables.caption([]) == "No run is finished yet."
    for word in ("not run", "diverged"):
        courses = [asked(c.spec, word) for c in study()]
        assert overfit_tables.best_last_table(courses)["gap (points)"].tolist() == [word] * len(ALL)
        assert set(overfit_tables.difference_table(courses)["points"]) == {word}
        assert set(overfit_tables.schedule_table(courses)["robust, best"]) == {word}
        assert overfit_tables.scratch_table(courses).iloc[0, 2:6].tolist() == [word] * 4


@pytest.mark.parametrize("broken", range(4))
def test_sanity(broken):
    """All checks hold for whole courses; each fails for what it is about, and only that."""
    courses = study(["at", "twins_at"])
    assert list(overfit_tables.sanity(courses).values()) == [True] * 4 == list(overfit_tables.sanity([]).values())
    arrays = courses[0].arrays
    if broken == 0:
        arrays |= {name: values[:-1] for name, values in arrays.items()}
    elif broken == 1:
        arrays["epoch"] = np.where(arrays["epoch"] == 6, 7, arrays["epoch"])
    elif broken == 2:
        arrays["test_robust"] = np.roll(arrays["test_robust"], 150, 1)
    else:
        arrays |= {name: values[:, :150] for name, values in arrays.items() if name.startswith("test")}
    assert [not holds for holds in overfit_tables.sanity(courses).values()] == [i == broken for i in range(4)]
