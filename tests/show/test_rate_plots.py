"""Notebook 02: rates by layer, tables, sentences and figures from made-up courses, against calculations by hand; the page."""

import dataclasses
import itertools
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from tests.show.test_figures import assert_legible
from twinslib.base import markdown
from twinslib.evidence import course
from twinslib.evidence.course import Course
from twinslib.show import figures, pages, rate_plots, rate_tables
from twinslib.specs.method import method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job
from twinslib.store.store import Store

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


def drawn(fig, method):
    """Lines of a method's colour, by panel."""
    return [[line for line in ax.lines if to_hex(line.get_color()) == to_hex(rate_plots.FOLLOWED[method]["color"])]
            for ax in fig.axes]


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


# -- frames -----------------------------------------------------------------------------------------------------------
def test_by_layer_by_hand():
    """Convolutions alone, numbered; means over steps of rates, norms and |cos|; growth of the weights over the whole run."""
    frame = rate_tables.by_layer([made("at", seed=2), made("twins_at")])
    assert frame["place"].tolist() == [1, 2, 3, 4] * 2 and set(frame["layer"]) == set(LAYERS[:-1])
    at, twins = frame[frame["method"] == "at"], frame[frame["method"] == "twins_at"]
    mean_lr = (4 * 0.4 + 2 * 0.1) / 6
    assert at["lr_over_w2"].tolist() == pytest.approx([mean_lr / k ** 2 for k in (1, 2, 3, 4)])
    assert at["relative_step"].tolist() == pytest.approx([mean_lr] * 4)
    assert at["angle"].tolist() == pytest.approx([1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3])
    assert at["cos_wg"].tolist() == pytest.approx([1e-5] * 4) and twins["cos_wg"].tolist() == pytest.approx([0.02] * 4)
    assert at["growth"].tolist() == [1.0] * 4 and twins["growth"].tolist() == [2.0] * 4
    assert at[["g_first", "g_second"]].isna().all(axis=None)


@pytest.mark.parametrize("switches", [{"twins_weight": 0.4}, {"twins_weight": 0.4, "normalize_loss": True},
                                      {"twins_weight": 2.0}])
def test_halves_at_equal_weight(switches):
    """Whatever lambda, and whether or not the sum is divided, gradients of the halves are those of plain means of losses."""
    frame = rate_tables.by_layer([made("twins_at", **switches)])
    assert frame["g_first"].tolist() == pytest.approx([3, 6, 9, 12]) and frame["g_second"].tolist() == pytest.approx([1, 2, 3, 4])


def test_ratios_by_hand():
    """Layer by layer and of the medians, for pairs of the same data set and seed, in the order of the runs; as `course.ratios`
    where both say something."""
    courses = [made("at", "cub64", 0), made("twins_at", "cub64", 0), made("at", "cifar10", 1), made("twins_at", "cifar10", 1),
               made("twins_at", "cifar10", 2), made("at_lr", "cifar10", 1)]
    layers, runs = rate_tables.layer_ratios(courses), rate_tables.run_ratios(courses)
    keys = ["dataset", "method", "baseline", "seed"]
    assert runs[keys].values.tolist() == [["cub64", "twins_at", "at", 0], ["cifar10", "twins_at", "at", 1],
                                          ["cifar10", "twins_at", "at_lr", 1]]
    assert layers[keys].drop_duplicates().values.tolist() == runs[keys].values.tolist() and len(layers) == 12
    assert runs["angle"].tolist() == pytest.approx([3, 3, 1.5]) and layers["angle"].tolist() == pytest.approx([3] * 8 + [1.5] * 4)
    # the mean of lr / w^2 over steps: 0.4 four times, 0.1 once, 0.1 / 4 once for TWINS
    assert runs["lr_over_w2"].tolist() == pytest.approx([1.725 / 1.8, 1.725 / 1.8, 1.725 / 3.6])
    courses[1].arrays["angle"][:, 0] *= 100  # moves a mean, not a median
    runs, theirs = (ratios(courses, rate_tables.PAIRS) for ratios in (rate_tables.run_ratios, course.ratios))
    assert theirs[keys].values.tolist() == runs[keys].values.tolist()
    for name in course.RATES:
        assert theirs[name].tolist() == pytest.approx(runs[name].tolist())


def test_differences_by_hand():
    """Losses after epochs 1 to 3 minus those of the same seed, not before training; times to the threshold likewise."""
    courses = study(["at", "twins_at"], seeds=(0, 1)) + [made("twins_at", seed=5)]
    frame = rate_tables.loss_differences(courses)
    assert frame[["seed", "epoch"]].values.tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert frame["value"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.3, 0.4])
    assert rate_tables.loss_differences(courses, epochs=2)["epoch"].max() == 2
    # AT: 3, 2.67, 2.33, 2 ...; the threshold 2.5 is passed at the third line (one epoch); TWINS-AT: 3, 2.86, 2.72, 2.58, 2.44
    times = rate_tables.time_differences(courses)[["method", "baseline", "seed", "value"]]
    assert times.values.tolist() == [["twins_at", "at", 0, 1.0], ["twins_at", "at", 1, 1.0]]


def test_over_seeds():
    """Student's interval, also of logarithms; none of one seed or of times that are never reached."""
    half = T2 * np.std([1, 2, 6], ddof=1) / math.sqrt(3)
    assert rate_tables.over_seeds([1, 2, 6]) == pytest.approx((3, 3 - half, 3 + half))
    assert rate_tables.over_seeds(np.log([1.0, 2.0, 4.0]), np.exp)[0] == pytest.approx(2)
    for values in ([1.5], [1.5, math.inf]):
        value, low, high = rate_tables.over_seeds(values)
        assert value == np.mean(values) and math.isnan(low) and math.isnan(high)


# -- tables and sentences ---------------------------------------------------------------------------------------------
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


def test_ratio_table_and_reading():
    """Geometric means over seeds with intervals; the sentence counts convolutions above 1."""
    courses = study(["at", "at_lr", "twins_at"])
    frame = rate_tables.ratio_table(courses)
    assert frame["ratio"].tolist() == ["TWINS-AT / AT", "TWINS-AT / AT, lr × (1 + λ)"]
    assert frame["angle per step"].tolist() == ["3.00 [3.00, 3.00]", "1.50 [1.50, 1.50]"]
    assert frame["lr/‖w‖²"].tolist() == ["0.96 [0.96, 0.96]", "0.48 [0.48, 0.48]"]
    assert rate_tables.ratio_table(courses[:3])["angle per step"].tolist() == ["3.00", "1.50"]
    assert rate_tables.ratio_reading(courses) == (
        "TWINS-AT on CIFAR-10 against AT; AT, lr × (1 + λ): larger lr/‖w‖² in 0, 0; lr‖g‖/‖w‖ in 4, 4; angle per step in 4, 4 "
        "of 4 convolutions.")


def test_loss_table_and_reading():
    """A column per epoch, and how often below 0, in the table by seed and in the sentence over all."""
    courses = study(["at", "at_lr", "twins_at"])
    for c in courses:
        if c.keys == ["cifar10", "twins_at", 2]:
            c.arrays["train_loss"][2] -= 1
    frame = rate_tables.loss_table(courses, epochs=3)
    half = T2 * 0.1 / math.sqrt(3)
    assert list(frame.columns[3:]) == ["epoch 1", "epoch 2", "epoch 3", "epochs below 0, by seed"]
    assert frame["difference"].tolist() == ["TWINS-AT - AT", "TWINS-AT - AT, lr × (1 + λ)"]
    assert frame["epoch 1"][0] == f"+0.20 [{0.2 - half:+.2f}, {0.2 + half:+.2f}]"
    assert frame["epochs below 0, by seed"].tolist() == ["0, 0, 1", "0, 0, 1"]
    said = rate_tables.loss_reading(courses)
    assert "TWINS-AT is below that of AT in 1 of 9 (mean +0.19 nats); AT, lr × (1 + λ) in 1 of 9" in said


def test_times_in_words():
    """Means and differences; a seed that never gets there makes the mean `never`, and is counted as later."""
    courses = study(["at", "at_lr", "twins_at"], seeds=(0, 1))
    courses[-1].arrays["losses"][:] = 9.0
    frame = rate_tables.time_table(courses)
    assert frame[["epochs", "minus AT"]].values.tolist() == [["1.00", ""], ["1.00", "+0.00 [+0.00, +0.00]"], ["never", "never"]]
    assert rate_tables.time_reading(courses) == (
        "On CIFAR-10, against AT: AT, lr × (1 + λ) sooner in 0, later in 0 of 2 seeds; TWINS-AT sooner in 0, later in 2 of 2 "
        "seeds. The recorded steps are 0.5 epochs apart.")


def test_other_sentences():
    """Growth, gradients of the halves, cosines and drift, each as a number of the frames."""
    courses = study()
    courses[0].arrays["w_norm"][-1] *= 1 - 1e-6  # no negative zero
    assert "AT +0.0 %; TWINS-AT +100.0 %." in rate_tables.growth_reading(courses, ["at", "twins_at"])
    said = rate_tables.wing_reading(courses)
    assert "AT, split batch 1.00; TWINS-AT 3.00; TWINS-AT, shared affine 3.00" in said
    assert "|cos(w, g)| with frozen statistics 0.02; without 1e-05." in said
    said = rate_tables.drift_reading(courses)
    assert "so many standard deviations of the start: AT 0.75; AT, lr × (1 + λ) 1.50; AT, split batch 1.12" in said


LAW = pd.DataFrame([["batch", 1.0, 2.0, 3.0, 6.0, 1e-15], ["batch", 2.0, 4.0, 1.5, 6.0, -4e-15],
                    ["frozen", 1.0, 2.0, 6.0, 12.0, 0.03], ["frozen", 2.0, 4.0, 6.0, 24.0, -0.2]],
                   columns=["statistics", "factor", "w_norm", "g_norm", "product", "cos_wg"])


def test_scale_reading():
    """Says whether the product is constant, how far the cosine is from 0, and how the gradients compare at factor 1."""
    assert rate_tables.scale_reading(LAW) == (
        "With batch statistics ‖g‖·‖w‖ is constant to 1 part in 10⁶ and |cos(w, g)| is at most 4e-15; with frozen statistics "
        "‖g‖·‖w‖ changes by a factor of up to 2 and |cos(w, g)| is at most 0.2. At c = 1 the frozen gradient is 2.0 times the "
        "other.")


# -- checks -----------------------------------------------------------------------------------------------------------
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
    for courses in (study(), study(["at"]), study(["twins_at"]), []):
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


# -- figures ----------------------------------------------------------------------------------------------------------
def test_ratio_figure():
    """A row per data set, a column per rate; lines are geometric means over seeds in the baseline's look, every seed a dot."""
    courses = study(["at", "at_lr", "twins_at"], ("cifar10", "cub64"))
    courses[2].arrays["angle"] *= 8
    fig = rate_plots.layer_ratios(rate_tables.layer_ratios(courses))
    assert [ax.get_title() for ax in fig.axes[:3]] == list(rate_tables.RATES.values())
    assert [ax.get_ylabel() for ax in fig.axes[::3]] == ["CIFAR-10", "CUB-200 (2010)"]
    line, dots = drawn(fig, "at")[2]
    assert line.get_ydata() == pytest.approx([3 * 2] * 4) and line.get_xdata().tolist() == [1, 2, 3, 4]
    assert sorted(dots.get_ydata()) == pytest.approx([3] * 8 + [24] * 4) and dots.get_linestyle() == "None"
    assert drawn(fig, "at_lr")[5][0].get_ydata() == pytest.approx([1.5] * 4)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["TWINS-AT / AT", "TWINS-AT / AT, lr × (1 + λ)"]
    assert all(ax.get_yscale() == "log" and [0, 1] in [list(line.get_xdata()) for line in ax.lines] for ax in fig.axes)


def test_course_figure():
    """Rows are quantities, columns the first, middle and last convolution of the main path; epochs are means of their steps."""
    frame = course.quantities(study(["at", "twins_at"]))
    fig = rate_plots.layer_courses(frame, "cifar10", ["at", "twins_at"])
    assert [ax.get_title().split("\n")[1] for ax in fig.axes[:3]] == ["conv1", "blocks.0.conv1", "blocks.1.conv2"]
    assert [ax.get_ylabel() for ax in fig.axes[::3]] == ["‖w‖ / start", "‖g‖", "lr/‖w‖²", "angle (mrad)"]
    panels = drawn(fig, "twins_at")
    assert panels[1][0].get_ydata() == pytest.approx([1, 1, 1.5]) and panels[1][0].get_xdata().tolist() == [0.5, 1.5, 2.5]
    assert panels[11][0].get_ydata() == pytest.approx([3 * 4.1] * 3)
    low, high = (getattr(panels[11][0].axes.collections[1].get_datalim(fig.axes[11].transData), f"y{i}") for i in (0, 1))
    assert (low, high) == pytest.approx((3 * 4, 3 * 4.2))
    assert drawn(fig, "at")[7][0].get_ydata() == pytest.approx([0.1, 0.1, 0.025])


def test_three_layers():
    """A network with a single convolution has a single column; shortcuts are never chosen."""
    frame = pd.DataFrame({"layer": LAYERS[:3], "depth": [0, 1, 2]})
    assert rate_plots.three_layers(frame) == {"first": LAYERS[0], "middle": LAYERS[1]}
    assert rate_plots.three_layers(frame[:1]) == {"first": LAYERS[0]}


def test_wing_figure():
    """Left the halves, the first hollow, of methods that have halves; right the cosines of all; bars span the seeds."""
    courses = study(["at", "twins_at"])
    courses[1].arrays["g_first"] *= 2
    left, right = rate_plots.wings(rate_tables.by_layer(courses), ["at", "twins_at"]).axes
    assert [c.lines[0].get_markerfacecolor() for c in left.containers] == ["white", rate_plots.FOLLOWED["twins_at"]["color"]]
    assert left.containers[0].lines[0].get_ydata() == pytest.approx([4, 8, 12, 16])
    assert left.containers[0].lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([3, 6])
    assert left.containers[1].lines[0].get_ydata() == pytest.approx([1, 2, 3, 4])
    assert [c.lines[0].get_ydata()[0] for c in right.containers] == pytest.approx([1e-5, 0.02])


def test_drift_figure():
    """Left by epoch the mean over layers, right by layer the last epoch, numbered from 1."""
    fig = rate_plots.drift(course.drift(study(["at", "at_lr"])), ["at", "at_lr"])
    (left,), (right,) = drawn(fig, "at_lr")
    assert left.get_ydata() == pytest.approx([0.5, 1.0, 1.5]) and left.get_xdata().tolist() == [1, 2, 3]
    assert right.get_ydata() == pytest.approx([0.6, 1.2, 1.8, 2.4]) and right.get_xdata().tolist() == [1, 2, 3, 4]


def test_escape_figure():
    """Top the losses, bottom TWINS-AT minus each baseline with Student's interval and every seed, in the baseline's look."""
    courses = study(["at", "at_lr", "twins_at"])
    losses, differences = course.early_losses(courses, 5), rate_tables.loss_differences(courses)
    top, bottom = rate_plots.escape(losses, differences, ["at", "at_lr", "twins_at"]).axes
    assert top.lines[2].get_ydata() == pytest.approx([3, 2 + 0.3 + 0.7 * 2 / 3 + 0.1, 2 + 0.3 + 0.7 / 3 + 0.1, 2.4])
    half = T2 * 0.1 / math.sqrt(3)
    bars = [c for c in bottom.containers if to_hex(c.lines[0].get_color()) == to_hex(figures.LOOKS["at"]["color"])]
    assert [c.lines[0].get_ydata()[0] for c in bars] == pytest.approx([0.2, 0.3, 0.4])
    assert bars[0].lines[2][0].get_segments()[0][:, 1] == pytest.approx([0.2 - half, 0.2 + half])
    assert [round(c.lines[0].get_xdata()[0]) for c in bars] == [1, 2, 3]
    assert bottom.get_ylabel() == "TWINS-AT minus it (nats)"
    dots = [line for line in bottom.lines if line.get_marker() == "." and len(line.get_xdata()) == 3]
    assert sorted(dots[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3]) and len(dots) == 6


def test_time_figure():
    """Rows are methods in order, markers means, dots seeds; a seed that never gets there is a triangle at the edge."""
    found = course.escape_times(study(["at", "at_lr", "twins_at"]))
    found.loc[(found["method"] == "twins_at") & (found["seed"] == 1), "epochs"] = math.inf
    (ax,) = rate_plots.times(found, METHODS).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["AT", "AT, lr × (1 + λ)", "TWINS-AT"]
    marks = [(line.get_marker(), line.get_xdata()[0], round(float(line.get_ydata()[0]))) for line in ax.lines
             if line.get_marker() != "."]
    assert marks == [("o", 1.0, 0), ("P", 1.0, 1), (">", ax.get_xlim()[1], 2)]
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "."] == [3, 3, 2]


def test_scale_figure():
    """Products and absolute cosines against the factor, on logarithmic axes, a line for each kind of statistics."""
    left, right = rate_plots.scale_law(LAW).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[6, 6], [12, 24]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[1e-15, 4e-15], [0.03, 0.2]]
    assert {ax.get_yscale() for ax in (left, right)} == {"log"}


FIGURES = {
    "ratios": lambda cs, _: rate_plots.layer_ratios(rate_tables.layer_ratios(cs)),
    "courses": lambda cs, methods: rate_plots.layer_courses(course.quantities(cs), "cifar10", methods),
    "wings": lambda cs, methods: rate_plots.wings(rate_tables.by_layer(cs), methods),
    "drift": lambda cs, methods: rate_plots.drift(course.drift(cs), methods),
    "escape": lambda cs, methods: rate_plots.escape(course.early_losses(cs, 5), rate_tables.loss_differences(cs), methods),
    "times": lambda cs, methods: rate_plots.times(course.escape_times(cs), methods)}


@pytest.mark.parametrize("datasets", [("cifar10",), ("cifar10", "dogs64")], ids=["one set", "two sets"])
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_are_legible(draw, datasets):
    """At print width no text is below 7 points, none touches another, none leaves the page, with all methods."""
    courses = study(datasets=datasets, seeds=(0, 1))
    for c in courses:
        c.arrays["cos_wg"] = c.arrays["cos_wg"] * np.geomspace(1, 40, 5)
        c.arrays["g_first"] = c.arrays["g_first"] * 1.31
    fig = draw(courses, METHODS)
    assert fig.get_figwidth() <= 7
    assert_legible(fig, 7)


@pytest.mark.parametrize("courses", [[], study(["at"], seeds=(0,)), study(["twins_at"], seeds=(3,)),
                                     [made("at"), made("twins_at", "cub64"), made("at_lr", seed=1)]],
                         ids=["none", "at", "twins", "nothing in common"])
def test_missing_runs(courses):
    """Whatever is finished, tables, sentences and figures are made; what has nothing to show says so."""
    assert len(rate_tables.rate_table(courses)) == len(courses)
    assert rate_tables.ratio_table(courses).empty and rate_tables.loss_table(courses).empty
    for reading in (rate_tables.wing_reading, rate_tables.drift_reading):
        assert (reading(courses) == rate_tables.NOTHING) == (not courses)
    for reading in (rate_tables.ratio_reading, rate_tables.loss_reading, rate_tables.time_reading):
        assert reading(courses) == rate_tables.NOTHING
    empty = [name for name, draw in FIGURES.items() if [t.get_text() for t in draw(courses, METHODS).texts] == ["not run"]]
    timed = any(c.spec.method.name == "at" for c in courses)  # the threshold is AT's
    assert empty == ([*FIGURES] if not courses else ["ratios"] if timed else ["ratios", "times"])


def test_methods_have_looks():
    """All that are drawn differ in colour, line and marker; others are refused."""
    looks = [rate_plots.FOLLOWED[m] for m in METHODS]
    assert all(len({str(look[key]) for look in looks}) == 6 for key in ("color", "linestyle", "marker"))
    assert rate_plots.FOLLOWED["at"] == figures.LOOKS["at"]
    Line2D([], [], **looks[-1])  # a look that matplotlib knows
    with pytest.raises(ValueError, match="expected method to be one of .*at_split.*, got 'at_awp'"):
        rate_plots.drift(course.drift(study(["at"])), ["at", "at_awp"])


def test_same_frames_same_bytes(tmp_path):
    """Equal frames give equal files, whatever the user's settings."""
    one, two = (rate_plots.times(course.escape_times(study(seeds=(0,))), METHODS) for _ in range(2))
    first = figures.save(one, tmp_path / "one")
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        second = figures.save(two, tmp_path / "two")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


# -- the page ---------------------------------------------------------------------------------------------------------
HEADINGS = [
    "# Effective learning rate, preset small", "## Claims", "## Accuracy against the learning rate", "## Rates", "## Ratios",
    "## Wings", "## Drift", "## Leaving the start"]


@pytest.fixture
def store(tmp_path):
    return Store("small", root=tmp_path)


def finish(store, c):
    """Leave what a finished run leaves that was followed."""
    for folder, value in (("runs", {"spec": json.loads(canonical_json(c.spec)), "epochs": c.epochs, "train_images": 32}),
                          ("provenance", {"train": {"seconds": 1.0}})):
        (store.root / folder).mkdir(exist_ok=True)
        (store.root / folder / f"{c.spec.hash}.json").write_text(json.dumps(value))
    (store.root / "courses").mkdir(exist_ok=True)
    np.savez(store.root / "courses" / f"{c.spec.hash}.npz", **c.arrays)
    return Job("rates", c.spec, ())


def test_page(store):
    """Below each heading what the frames of the finished runs give; the same store gives the same page."""
    courses = study(["at", "twins_at"])
    jobs = [*(finish(store, c) for c in courses), Job("rates", made("at_lr").spec, ())]
    text = pages.rates(store, jobs)
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS
    for part in (rate_tables.ratio_reading(courses), rate_tables.wing_reading(courses), rate_tables.time_reading(courses),
                 markdown.to_markdown(rate_tables.rate_table(courses)), markdown.to_markdown(rate_tables.loss_table(courses))):
        assert part.strip() in text
    assert "| C5 " in text and "| C6 " in text and text.endswith("|\n") and "\n\n\n" not in text
    assert pages.rates(store, jobs) == text


def test_page_with_nothing_finished(store):
    """The page has all its headings before any run is done."""
    text = pages.rates(store, [Job("rates", made().spec, ())])
    assert "No run is finished yet." in text
    assert [line for line in text.splitlines() if line.startswith("#")] == HEADINGS and rate_tables.NOTHING in text
