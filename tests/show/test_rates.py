"""Notebook 02: figures and tables from made-up courses, against calculations by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest

from tests.figures_read import drawn
from twinslib.evidence import course
from twinslib.evidence.course import Course
from twinslib.show import figures, rate_plots, rate_tables
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec

METHODS = ["at", "at_lr", "at_split", "twins_at", "frozen_at", "twins_shared"]
LAYERS = ["network.conv1", "network.blocks.0.conv1", "network.blocks.0.downsample.0", "network.blocks.1.conv2", "network.fc"]
STEPS = np.arange(0, 12, 2)  # of three epochs with four steps each
T2 = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
SIZE = {"at": 1.0, "at_lr": 2.0, "at_split": 1.5, "twins_at": 3.0, "frozen_at": 0.5, "twins_shared": 3.1}  # of a step
LOSS = {"at": 0.0, "at_lr": -0.2, "at_split": 0.1, "twins_at": 0.3, "frozen_at": 0.5, "twins_shared": 0.3}


def made(name="at", dataset="cifar10", seed=0, **switches):
    """A run whose angles are SIZE times (place + seed / 10), whose weights are 1 to 4 long, doubled at the last step by methods
    with frozen statistics, and whose loss falls from 3 to 2 + LOSS."""
    m = method(name, **switches)
    spec = RunSpec(data=DataSpec(name=dataset, train_images=32, val_images=10), model=ModelSpec(arch="tiny_resnet"), method=m,
                   optim=OptimSpec(batch_size=8, epochs=3), follow=FollowSpec(record_every=2, train_images=2), seed=seed,
                   source=SOURCE)
    shape, frozen = (len(STEPS), len(LAYERS)), m.wings in ("twins", "frozen")
    lr = np.where(np.arange(len(STEPS)) < 4, 0.4, 0.1) * (2 if name == "at_lr" else 1)
    w = np.ones(shape) * [1, 2, 3, 4, 100]
    w[-1] *= 2 if frozen else 1
    signs = np.where(np.arange(len(STEPS)) % 2, -1, 1)[:, None]
    halves = np.array([m.twins_weight if m.halves else 1.0, 1.0]) / (1 + m.twins_weight if m.normalize_loss else 1)
    first = halves[0] * (3.0 if frozen else 1.0) * np.ones(shape) * (1 + np.arange(5))
    second = halves[1] * np.ones(shape) * (1 + np.arange(5)) if m.halves else np.zeros(shape)
    fall = np.clip(1 - np.arange(6) / (2 + SIZE[name]), 0, 1)
    adaptive = 2 + LOSS[name] + (1 - LOSS[name]) * fall
    epochs = np.arange(4)
    losses = 2 + LOSS[name] + (1 - LOSS[name]) * (1 - epochs / 3) + 0.1 * seed * (epochs > 0) * (name == "twins_at")
    arrays = {
        "layers": np.array(LAYERS), "steps": STEPS, "lr": lr, "w_norm": w, "g_norm": np.sqrt(first ** 2 + second ** 2),
        "g_first": first, "g_second": second, "cos_wg": signs * np.ones(shape) * (0.02 if frozen else 1e-5),
        "angle": 1e-3 * SIZE[name] * (np.arange(5) + 1 + seed / 10) * np.ones(shape),
        "losses": np.stack([adaptive * 9, adaptive] if m.halves else [adaptive, 0 * adaptive], axis=1),
        "epoch": epochs, "train_loss": np.stack([losses - 0.5, losses + 0.5], axis=1),
        "drift_epoch": np.repeat([1, 2, 3], 4), "drift_layer": np.tile(["a", "b", "c", "d"], 3),
        "drift_mean": SIZE[name] * np.repeat([1, 2, 3], 4) * np.tile([1, 2, 3, 4], 3) / 10, "drift_log_var": np.ones(12)}
    return Course(spec, arrays, [{"epoch": e, "train_loss": 3.0 - e} for e in (1, 2, 3)], 32)


def study(names=METHODS, datasets=("cifar10",), seeds=(0, 1, 2)):
    return [made(name, dataset, seed) for seed, dataset, name in itertools.product(seeds, datasets, names)]


LAW = pd.DataFrame([["batch", 1.0, 2.0, 3.0, 6.0, 1e-15], ["batch", 2.0, 4.0, 1.5, 6.0, -4e-15],
                    ["frozen", 1.0, 2.0, 6.0, 12.0, 0.03], ["frozen", 2.0, 4.0, 6.0, 24.0, -0.2]],
                   columns=["statistics", "factor", "w_norm", "g_norm", "product", "cos_wg"])


# -- figures ----------------------------------------------------------------------------------------------------------
def test_layer_courses():
    """Columns are convolutions of the main path; means over the recorded steps of an epoch, the weights over their start."""
    fig = rate_plots.layer_courses(study(["at", "twins_at"]), "cifar10", ["at", "twins_at"])
    assert [ax.get_title().split()[0] for ax in fig.axes[:3]] == ["first", "middle", "last"]
    assert drawn(fig.axes[1], figures.LOOKS["twins_at"]) == [[(0.5, 1), (1.5, 1), (2.5, 1.5)]]
    frame = pd.DataFrame({"layer": LAYERS[:3], "depth": [0, 1, 2]})
    assert rate_plots.three_layers(frame) == {"first": LAYERS[0], "middle": LAYERS[1]}
    assert rate_plots.three_layers(frame[:1]) == {"first": LAYERS[0]}


def test_by_layer_by_hand():
    """Convolutions alone, numbered; means over steps of rates, norms and |cos|; growth of the weights over the whole run."""
    frame = course.by_layer([made("at", seed=2), made("twins_at")])
    assert frame["place"].tolist() == [1, 2, 3, 4] * 2 and set(frame["layer"]) == set(LAYERS[:-1])
    at, twins = frame[frame["method"] == "at"], frame[frame["method"] == "twins_at"]
    mean_lr = (4 * 0.4 + 2 * 0.1) / 6
    assert at["lr_over_w2"].tolist() == pytest.approx([mean_lr / k ** 2 for k in (1, 2, 3, 4)])
    assert at["relative_step"].tolist() == pytest.approx([mean_lr] * 4)
    assert at["angle"].tolist() == pytest.approx([1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3])
    assert at["cos_wg"].tolist() == pytest.approx([1e-5] * 4) and twins["cos_wg"].tolist() == pytest.approx([0.02] * 4)
    assert at["growth"].tolist() == [1.0] * 4 and twins["growth"].tolist() == [2.0] * 4
    assert at[["g_first", "g_second"]].isna().all(axis=None)


@pytest.mark.parametrize("switches", [{"twins_weight": 2.0}, {"twins_weight": 0.4, "normalize_loss": True}])
def test_halves_at_equal_weight(switches):
    """Whatever lambda, and whether or not the sum is divided, gradients of the halves are those of plain means of losses."""
    frame = course.by_layer([made("twins_at", **switches)])
    assert frame["g_first"].tolist() == pytest.approx([3, 6, 9, 12]) and frame["g_second"].tolist() == pytest.approx([1, 2, 3, 4])


def test_layer_ratios_by_hand():
    """For pairs of the same data set and seed, in the order of the runs."""
    frame = rate_tables.layer_ratios([made("at", "cub64"), made("twins_at", "cub64"), made("at_lr", "cub64", 1)])
    assert frame[["dataset", "method", "baseline", "seed", "place"]].values.tolist() == [
        ["cub64", "twins_at", "at", 0, k] for k in (1, 2, 3, 4)]
    # the mean of lr / w^2 over steps: 0.4 four times, 0.1 once, 0.1 / 4 once for TWINS
    assert frame["angle"].tolist() == pytest.approx([3] * 4) and frame["lr_over_w2"].tolist() == pytest.approx([1.725 / 1.8] * 4)


def test_differences_by_hand():
    """Losses after epochs 1 to 3 minus those of the same seed, not before training; times to the threshold likewise."""
    courses = study(["at", "twins_at"], seeds=(0, 1)) + [made("twins_at", seed=5)]
    frame = rate_tables.loss_differences(courses)
    assert frame[["seed", "epoch"]].values.tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert frame["value"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.3, 0.4])
    # AT: 3, 2.67, 2.33, 2 ...; the threshold 2.5 is passed at the third line (one epoch); TWINS-AT: 3, 2.86, 2.72, 2.58, 2.44
    times = rate_tables.time_differences(courses)[["method", "baseline", "seed", "value"]]
    assert times.values.tolist() == [["twins_at", "at", 0, 1.0], ["twins_at", "at", 1, 1.0]]


def test_rate_table():
    """Means over seeds of medians over convolutions, in the units of the headings; a loss that rises is not stable."""
    courses = study(["at", "twins_at"])
    courses[-1] = dataclasses.replace(courses[-1], epochs=[{"train_loss": 2.0}, {"train_loss": 2.1}])
    frame = rate_tables.rate_table(courses)
    half = 1e3 * T2 * 1e-4 / math.sqrt(3)
    assert frame["method"].tolist() == ["AT", "TWINS-AT"] and frame["seeds"].tolist() == [3, 3]
    assert frame["angle per step (mrad)"][0] == f"2.60 [{2.6 - half:.2f}, {2.6 + half:.2f}]"
    assert frame["lr/‖w‖² (10⁻⁴)"][0].startswith(f"{1e4 * 0.3 * (1 / 4 + 1 / 9) / 2:.2f} [")
    assert frame["growth of ‖w‖ (%)"].tolist() == ["+0.0 [+0.0, +0.0]", "+100.0 [+100.0, +100.0]"]
    assert frame["stable"].tolist() == ["yes", "no"]


def test_ratio_table():
    """Geometric means over seeds with intervals, and in how many convolutions each is above 1."""
    courses = study(["at", "at_lr", "twins_at"])
    frame = rate_tables.ratio_table(courses)
    assert frame["ratio"].tolist() == ["TWINS-AT / AT", "TWINS-AT / AT, lr × (1 + λ)"]
    assert frame["angle per step"].tolist() == ["3.00 [3.00, 3.00]", "1.50 [1.50, 1.50]"]
    assert frame["lr/‖w‖²"].tolist() == ["0.96 [0.96, 0.96]", "0.48 [0.48, 0.48]"]
    assert set(frame[rate_tables.ABOVE]) == {"0, 4, 4 of 4"}
    assert rate_tables.ratio_table(courses[:3])["angle per step"].tolist() == ["3.00", "1.50"]


def test_time_table():
    """Means and differences; a seed that never gets there makes the mean `never`, and is counted as later."""
    courses = study(["at", "at_lr", "twins_at"], seeds=(0, 1))
    courses[-1].arrays["losses"][:] = 9.0
    frame = rate_tables.time_table(courses)
    assert frame.iloc[:, 3:].values.tolist() == [["1.00", "", "", "0.5"], ["1.00", "+0.00 [+0.00, +0.00]", "0, 0", "0.5"],
                                                 ["never", "never", "0, 2", "0.5"]]


def test_accuracy_table():
    """Clean / robust means in percent with the seeds behind them; what is missing says so, what is not planned is empty."""
    rows = [["cifar10", "grid", m, rate, seed, metric, 6, 0.3 + 0.01 * seed - 0.2 * (metric == "robust"), ""]
            for m in ("at", "at_lr") for rate in (0.003, 0.03) for seed in range(3) for metric in ("clean", "robust")]
    rows += [["cifar10", "long", "at", 0.003, 0, metric, 24, 0.33, ""] for metric in ("clean", "robust")]
    found = pd.DataFrame(rows, columns=["dataset", "part", "method", "rate", "seed", "metric", "epochs", "value", "absent"])
    gone = (found["method"] == "at_lr") & (found["rate"] == 0.03)
    found.loc[gone, ["value", "absent"]] = [math.nan, "not run"]
    assert rate_tables.accuracy_table(found).values.tolist() == [
        ["CIFAR-10", 6, "AT", "31.0 / 11.0 (3)", "31.0 / 11.0 (3)"],
        ["CIFAR-10", 6, "AT, lr × (1 + λ)", "31.0 / 11.0 (3)", "not run"], ["CIFAR-10", 24, "AT", "33.0 / 33.0 (1)", ""]]
    assert rate_tables.accuracy_table(found.assign(value=math.nan, absent="diverged")).iloc[0, 3] == "diverged"


TABLES = (rate_tables.rate_table, rate_tables.wing_table, rate_tables.drift_table, rate_tables.ratio_table,
          rate_tables.loss_table)


def test_what_diverged_has_a_line():
    """Of a method without a run that is left, and of each pair with it; nothing finished gives empty tables."""
    gone = dataclasses.replace(made("twins_at"), arrays={}, absent="diverged")
    for table, lines in zip(TABLES, (2, 2, 2, 3, 3), strict=True):
        out = table([made("at"), gone])
        assert len(out) == lines and (out.iloc[-1, 3:] == "diverged").all() and out["seeds"].iloc[-1] == 0
        assert table([]).empty and list(table([]).columns) == list(out.columns)


def corrupted(index, name, value):
    """The study with one array of one run, or its rows, changed."""
    courses = study(["at", "twins_at", "at_split"], seeds=(0,))
    if name == "epochs":
        courses[index] = dataclasses.replace(courses[index], epochs=value)
    else:
        courses[index].arrays[name] = courses[index].arrays[name] * value
    return courses


def test_checks_hold():
    """All hold for sound runs, for a part of them, and for none."""
    for courses in (study(), study(["at"]), []):
        assert all(value is True for value in rate_tables.checks(courses).values())


@pytest.mark.parametrize(("index", "name", "value", "fact"), [
    (2, "cos_wg", [1, 1, 120, 1, 1], "batch statistics alone"), (1, "cos_wg", 1e-3, "ten times"),
    (1, "g_norm", 2, "whole gradient"), (2, "g_norm", 2, "whole gradient"), (1, "train_loss", 1.01, "same loss"),
    (0, "epochs", [{"train_loss": 1.0}, {"train_loss": 1.5}], "training loss"),
])
def test_checks_fail(index, name, value, fact):
    """Each fails by a fault of its own, and no other with it."""
    assert [f for f, holds in rate_tables.checks(corrupted(index, name, value)).items() if not holds] == [
        f for f in rate_tables.checks([]) if fact in f]
