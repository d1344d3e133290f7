"""Notebook 03: tables from made-up courses, numbers of whole images, checked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.show.test_overfit_plots import ALL, N, asked, finish, run_of, study
from twinslib.evidence.course import Course
from twinslib.show import overfit_tables


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
