"""The experiment on learning rates as it is shown: frame, table, sentences and figure of made-up runs."""

import itertools

import numpy as np
import pandas as pd

from tests import store_made
from tests.figures_read import drawn
from twinslib.show import figures, rate_plots, rate_tables
from twinslib.specs.labels import NOT_RUN
from twinslib.store.store import Store
from twinslib.studies import plan as studies_plan

RATES, METHODS, SETS = (0.003, 0.03, 0.3), ("at", "at_lr", "at_split", "twins_at"), ("cifar10", "caltech64")
ATTACKS = {"clean": "clean", "robust": "PGD-20 at 8/255"}


def made(without=lambda row: False) -> pd.DataFrame:
    """Three seeds; AT is best at 0.03, TWINS-AT two points above it at 0.003 and one below at 0.3; one run of more epochs."""
    rows = []
    for dataset, method, rate, seed, metric in itertools.product(SETS, METHODS, RATES, range(3), rate_plots.METRICS):
        value = {0.003: 0.30, 0.03: 0.50, 0.3: 0.40}[rate] + 0.01 * seed - 0.2 * (metric == "robust")
        value += {0.003: 0.02, 0.03: 0.0, 0.3: -0.01}[rate] * (method == "twins_at")
        rows.append([dataset, "grid", method, rate, seed, metric, ATTACKS[metric], 6, 1000, value, ""])
    rows += [["cifar10", "long", "at", 0.003, 0, m, ATTACKS[m], 24, 1000, 0.33, ""]
             for m in rate_plots.METRICS]
    frame = pd.DataFrame(rows, columns=[*rate_tables.BY_RATE, "metric", "attack", "epochs", "n", "value", "absent"])
    gone = frame.apply(without, axis=1)
    frame.loc[gone, "value"], frame.loc[gone, "absent"] = np.nan, NOT_RUN
    return frame


def test_frame_of_a_store(tmp_path) -> None:
    """A run of the grid that is finished has its accuracies, one that diverged says so, the others are not run."""
    store, plan = Store("toy", root=tmp_path), studies_plan.plan("toy", "02")[0]
    jobs = [job for job in plan(best=store.best) if job.study == "learning_rates"]
    job, other = jobs[0], jobs[1]
    store_made.finish(store, job.spec, {e: np.arange(e.images) < 0.25 * e.images for e in job.evals})
    store_made.diverge(store, other.spec)
    found = rate_tables.accuracies(store, plan(best=store.best))
    assert len(found) == 2 * len(jobs)  # clean and robust; no course among them
    lines = found.groupby(rate_tables.BY_RATE)["absent"].first()
    assert found.loc[found["value"].notna(), "value"].tolist() == [0.25, 0.25]
    assert sorted(lines.value_counts().items()) == [("", 1), ("diverged", 1), (NOT_RUN, len(jobs) - 2)]


def test_figure() -> None:
    """Means over seeds in the look of their method, the best rate in a ring, more epochs hollow; a row for each metric."""
    ax = rate_plots.accuracy_by_rate(made(), ("robust",)).axes[0]
    grid, more, ring = drawn(ax, figures.LOOKS["at"])
    assert (grid, more, ring) == ([(0.003, 11), (0.03, 31), (0.3, 21)], [(0.003, 33)], [(0.03, 31)])
    assert len(rate_plots.accuracy_by_rate(made()).axes) == 4


def test_bars_say_whose_they_are() -> None:
    """A rate that alone has several seeds has a bar from lowest to highest beside one-seed rates, and the note says both."""
    found = made(lambda row: row["part"] == "long" or row["method"] in ("at_lr", "at_split") or row["rate"] == 0.3
                 or (row["seed"] > 0 and row["rate"] > 0.003)).query("value == value")
    fig = rate_plots.accuracy_by_rate(found, ("robust",))
    ends = {tuple(np.round(path.vertices[:, 1], 1)) for ax in fig.axes for c in ax.collections for path in c.get_paths()}
    assert {(10, 12), (12, 14)} <= ends and "bars: lowest to highest seed, of one seed 95 %" in fig.get_supxlabel()
