"""Notebook 02: figures from made-up courses, against calculations by hand."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from tests.show.test_figures import assert_legible
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


LAW = pd.DataFrame([["batch", 1.0, 2.0, 3.0, 6.0, 1e-15], ["batch", 2.0, 4.0, 1.5, 6.0, -4e-15],
                    ["frozen", 1.0, 2.0, 6.0, 12.0, 0.03], ["frozen", 2.0, 4.0, 6.0, 24.0, -0.2]],
                   columns=["statistics", "factor", "w_norm", "g_norm", "product", "cos_wg"])


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
    """Whatever is finished, figures are made; what has nothing to show says so."""
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
