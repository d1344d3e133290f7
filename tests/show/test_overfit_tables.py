"""Notebook 03: tables from made-up courses, numbers of whole images, checked by hand."""

import dataclasses
import math

import numpy as np
import pytest

from tests.show.test_overfit_plots import ALL, SOURCE, N, finish, job, study
from twinslib.show import overfit_tables
from twinslib.specs.jobs import Job


def by_method(table):
    return {row["method"]: row for row in table.to_dict("records")}


def test_settings():
    """Methods that are run alike share a line; another schedule, length, rate, start or number of seeds has its own."""
    jobs = [Job("overfitting", SOURCE, (), ship=True), *study(seeds=(0, 1))[1], job("at_lr", 2, lr=0.2)]
    table = overfit_tables.settings_table([j for j in jobs if j.spec.method.name != "at_lr" or j.spec.seed == 2])
    lines = {row["methods"]: row for row in table.to_dict("records")}
    assert list(lines) == ["AT", "AT; TWINS-AT; TRADES; TWINS-TRADES; AT, AWP", "AT, cosine", "AT, cyclic",
                           "AT, slow start, fast decay", "AT, random start", "AT, random start, short plateau",
                           "AT, random start, long plateau", "AT, lr × (1 + λ)"]
    assert (lines["AT"]["data set"], lines["AT"]["start"]) == ("Tiny-ImageNet", "start network itself")
    assert [(row["seeds"], row["peak lr"]) for row in lines.values()][1:] == [("0, 1", "0.1")] * 7 + [("2", "0.2")]
    assert lines["AT, random start, long plateau"]["epochs"] == 34
    assert lines["AT, random start"]["start"] == "random weights" and lines["AT, cosine"]["start"] == "start network"
    assert lines["AT, slow start, fast decay"]["schedule"] == "slow start, fast decay"
    assert set(table["training attack"]) == {"PGD-10 at 8/255"} and lines["AT, cosine"]["training images"] == 1000


def test_best_is_chosen_on_validation_images():
    """Epoch 6 is best by validation, although test images are better at 8; the end is the mean of epochs 12 to 20."""
    courses, jobs = study(["at"], losses={"at": 10})
    row = by_method(overfit_tables.best_last_table(courses, jobs))["AT"]
    assert (row["data set"], row["best epoch"], row["of epochs"], row["seeds"]) == ("CIFAR-10", "6", "20", "1")
    half = 196 * math.sqrt(0.3 * 0.7 / (N - 1))
    assert row["robust, best (PGD-10 at 8/255)"] == f"30.0 [{30 - half:.1f}, {30 + half:.1f}]"
    assert row["robust, last"].startswith("25.0 [") and row["clean, best"].startswith("53.0 [")
    assert row["clean, last"].startswith("58.0 [")  # 100 + 16 images on average
    assert row["robust, training images, last - best"] == "+30.0"  # 3 points an epoch, from 6 to 16 on average
    half = 196 * math.sqrt(0.05 * 0.95 / (N - 1))
    assert row["gap (points)"] == f"+5.0 [+{5 - half:.1f}, +{5 + half:.1f}]"


def test_missing_runs_are_called_so():
    """What is planned and not finished has a line without a number, in the plan's order: methods, schedules, random start."""
    courses, jobs = study(done=["at"])
    table = by_method(overfit_tables.best_last_table(courses, jobs))
    assert list(table) == ["AT", "AT, early stopped (patience 5)", "TWINS-AT", "AT, lr × (1 + λ)", "TRADES", "TWINS-TRADES",
                           "AT, AWP", "AT, cosine", "AT, cyclic", "AT, slow start, fast decay", "AT, random start",
                           "AT, random start, short plateau", "AT, random start, long plateau"]
    for name in ("TWINS-AT", "AT, random start"):
        assert table[name]["seeds"] == "0" and table[name]["gap (points)"] == table[name]["best epoch"] == "not run"


@pytest.mark.parametrize("patience, kept, end", [(2, 6, 10), (5, 6, 16), (7, 6, 20), (8, 6, 20)])
def test_early_stopping(patience, kept, end, monkeypatch):
    """Training ends so many measurements (every 2 epochs) after the best of them, at the latest with the run."""
    monkeypatch.setattr(overfit_tables, "PATIENCE", patience)
    run = finish(job())
    assert overfit_tables.early_stop(run) == (kept, end)
    row = by_method(overfit_tables.best_last_table([run], [job()]))[f"AT, early stopped (patience {patience})"]
    assert row["best epoch"] == "6" and row["training needed"] == f"{5 * end} %" and row["robust, last"] == ""
    assert row["robust, best (PGD-10 at 8/255)"].startswith("30.0 [") and row["clean, best"].startswith("53.0 [")


def test_early_stopping_keeps_an_earlier_best(monkeypatch):
    """A later and higher validation peak is not seen where patience ends before it."""
    run = finish(job(), peak=16)
    run.epochs[1]["val_robust_acc"] = 0.35  # epoch 2
    for patience, found in ((3, (2, 8)), (8, (16, 20))):
        monkeypatch.setattr(overfit_tables, "PATIENCE", patience)
        assert overfit_tables.early_stop(run) == found


def test_above_early_stopping():
    """The end of a method minus early-stopped AT on the same seeds and images: 200 images, 60 - 4 against 60."""
    courses, _ = study(["at", "at_slow_fast"], losses={"at_slow_fast": 4})
    found = overfit_tables.above_early_stopping(courses, "at_slow_fast")["cifar10"]
    assert (found.estimate, found.n) == (pytest.approx(-0.02), N)
    assert found.low == pytest.approx(-0.02 - 1.96 * math.sqrt(0.02 * 0.98 / (N - 1)), abs=1e-5)
    lonely = [c for c in courses if c.spec.method.name == "at_slow_fast"]
    assert overfit_tables.above_early_stopping(lonely, "at_slow_fast") == {}
    assert overfit_tables.above_early_stopping([finish(job("at", 1)), *lonely], "at_slow_fast") == {}  # another seed


def test_differences():
    """Method minus baseline for the planned pairs; the word is the interval's: below 0 smaller, with 0 unclear."""
    courses, jobs = study(losses={"at": 20, "twins_at": 0, "at_lr": 20, "at_cosine": 40}, done=[n for n in ALL if n != "at_awp"])
    table = {row["difference of gaps"]: row for row in overfit_tables.difference_table(courses, jobs).to_dict("records")}
    assert len(table) == len(overfit_tables.PAIRS)
    assert table["TWINS-AT - AT"]["points"].startswith("-10.0 [-14.") and table["TWINS-AT - AT"]["gap"] == "smaller"
    assert table["AT, cosine - AT"]["gap"] == "larger" and table["AT, lr × (1 + λ) - AT"]["gap"] == "unclear"
    assert (table["AT, AWP - AT"]["points"], table["AT, AWP - AT"]["seeds"], table["AT, AWP - AT"]["gap"]) == ("not run", "0", "")
    few = overfit_tables.difference_table(*study(["twins_at", "trades", "twins_trades"]))
    assert few["difference of gaps"].tolist() == ["TWINS-TRADES - TRADES"]


def test_schedules():
    """Rates, the share of the run that they are small, gaps, and the public gap of the same schedule where there is one."""
    courses, jobs = study(losses={"at_cosine": 4}, done=["at", "at_cosine"])
    table = overfit_tables.schedule_table(courses, jobs).set_index("schedule")
    assert table.index.tolist() == ["piecewise", "cosine", "cyclic", "slow start, fast decay"]
    small = table["share of the run below 0.2 × peak"].tolist()
    assert small == ["50 %", f"{100 - 100 * math.acos(-0.6) / math.pi:.0f} %", "20 %", "30 %"]
    assert [text.split()[0] for text in table["gap, public run from random weights"]] == ["7.4", "5.2", "1.1", "none"]
    assert table.loc["cosine", "gap (points)"].startswith("+2.0 [") and table.loc["cyclic", "gap (points)"] == "not run"
    assert table["last - AT early stopped (points)"].tolist()[2:] == ["not run"] * 2
    assert table.loc["cosine", "last - AT early stopped (points)"].startswith("-2.0 [")
    other = overfit_tables.schedule_table(*study(datasets=["toy_target"]))
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
    found = [finish(job("at_random"), loss=20)]
    (ours, public) = overfit_tables.scratch_table(found, [job("at_random")]).values.tolist()
    assert ours[1:4] == ["ours", "70.0", "80.0"] and ours[4].startswith("+10.0 [") and ours[5:] == ["6", "10", 20]
    assert public[1:6] == ["public, PreAct ResNet-18", "46.5", "53.9", "+7.4", "106"]
    (other,) = overfit_tables.scratch_table([], [job("at_random", dataset="toy_target")]).values.tolist()
    assert other[2:6] == ["not run"] * 4


def test_caption():
    """Says by what and on how many images robust error is measured, and what the interval of a single seed speaks about."""
    courses, _ = study(["at", "trades"], seeds=(0, 1, 2))
    caption = overfit_tables.caption([c for c in courses if c.spec.method.name == "at" or c.spec.seed == 0])
    assert "PGD-10 at 8/255, on 200 test images" in caption and "on 100 training images" in caption
    assert "Seeds 0, 1, 2." in caption and "a single seed speak about other test images only" in caption
    assert "single seed speak" not in overfit_tables.caption([c for c in courses if c.spec.method.name == "at"])


def test_nothing_finished():
    """Every table stands before any run is done, without a number of ours; what diverged says so."""
    jobs = study()[1]
    assert overfit_tables.caption([]) == "No run is finished yet."
    gone = [dataclasses.replace(finish(j), arrays={}, absent="diverged") for j in jobs]
    for courses, word in (([], "not run"), (gone, "diverged")):
        assert overfit_tables.best_last_table(courses, jobs)["gap (points)"].tolist() == [word] * len(ALL)
        assert set(overfit_tables.difference_table(courses, jobs)["points"]) == {word}
        assert set(overfit_tables.schedule_table(courses, jobs)["robust, best"]) == {word}
        assert overfit_tables.scratch_table(courses, jobs).iloc[0, 2:6].tolist() == [word] * 4


def test_accuracies_stay_in_range():
    """The interval of an accuracy near 0 is cut at 0."""
    run = finish(job(), loss=60)
    run.arrays["test_robust"][:] = False
    run.arrays["test_robust"][:, 0] = True
    row = overfit_tables.best_last_table([run], [job()]).iloc[0]
    assert row["robust, last"] == "0.5 [0.0, 1.5]"


@pytest.mark.parametrize("broken", range(4))
def test_sanity(broken):
    """All checks hold for whole courses; each fails for what it is about, and only that."""
    courses, _ = study(["at", "twins_at"])
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
