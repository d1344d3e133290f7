"""Figures of adversarial fine-tuning from made-up frames, jobs and rows: what is drawn equals them, checked by hand."""

import dataclasses
import functools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from tests.show.test_figures import assert_legible
from twinslib.base import stats
from twinslib.evidence.networks import COLUMNS
from twinslib.show import aft_plots, figures
from twinslib.show.aft_plots import (
    cost_plot,
    course_plot,
    data_width_plot,
    embedding_plot,
    pareto,
    schedule_curves,
    schedule_plot,
)
from twinslib.show.embedding import Projection
from twinslib.specs.labels import method_label
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job

AA = "apgd-ce+apgd-t+fab-t+square"
EPS = 8 / 255
FULL = 4500
STARTED = ("aft", "aft_public", "aft_twins", "aft_free", "aft_l2")
MAIN = {  # method -> passes of its last epoch and of its best, of its start, images of 1,000 that are right: clean and PGD
    "aft": (30, None, 60, 790, 450), "at_scratch": (480, 260, 0, 780, 455), "aft_public": (30, None, None, 830, 470),
    "aft_random": (30, None, 0, 600, 380), "fast_at": (60, 56, 0, 760, 420), "free_at": (120, 110, 0, 740, 415),
    "aft_twins": (50, None, 60, 800, 440), "aft_free": (50, None, 60, 770, 430), "trades_scratch": (350, 300, 0, 750, 460)}
SCHEDULES = {"aft_constant": {"schedule": "constant"}, "aft_piecewise": {"schedule": "piecewise", "milestones": (0.5, 0.75)},
             "aft_cosine": {"schedule": "cosine"}, "aft_one_cycle": {"schedule": "one_cycle", "milestones": (0.3,)},
             "aft_fast_decay": {"schedule": "fast_decay"}, "aft_slow_start": {"schedule": "slow_start"},
             "aft_slow_fast_exp": {"schedule": "slow_fast_exp"}, "aft_eps_warmup": {"schedule": "slow_fast"}}


def line(name="aft", part="main", seed=0, at="last", attack="none", right=500, n=1000, passes=30.0, start=60.0, width=0,
         images=FULL, threat="linf", dataset="cifar10", lr=0.05):
    """A row of the frame; `start`: passes of the training of the start, None where it is not ours."""
    low, high = stats.clopper_pearson(right, n)[1:3]
    whole = np.nan if start is None else (passes + start) * FULL
    clean = attack == "none"
    values = dict.fromkeys(COLUMNS, "") | {
        "dataset": dataset, "part": part, "method": name, "width": width, "train_images": images, "trained_threat": threat,
        "lr": lr, "seed": seed, "at": at, "attack": attack, "threat": "none" if clean else threat, "eps": 0.0 if clean else EPS,
        "value": right / n, "low": low, "high": high, "n": n, "images_given": passes * FULL, "images_whole": whole,
        "run": f"{name}{part}{seed}{width}{images}"}
    return values


def both(name, clean, robust, **where):
    return [line(name, right=clean, **where), line(name, attack="pgd20", right=robust, **where)]


def frame(seeds=(0, 1, 2), done=None):
    """All parts on CIFAR-10 as planned, each seed two images better than the one before; AutoAttack on 100 images of seed 0."""
    found = whole_frame(tuple(seeds)).copy()
    return found if done is None else found[found["method"].isin(done)]


@functools.cache
def whole_frame(seeds):
    rows = []
    for seed in seeds:
        for name, (last, best, start, clean, robust) in MAIN.items():
            for at, passes, drop in (("best", best, 0), ("last", last, 20 if best else 0)):
                if passes:
                    where = {"seed": seed, "at": at, "passes": passes, "start": start}
                    rows += both(name, clean + 2 * seed, robust + 2 * seed - drop, **where)
                    rows += [line(name, attack=AA, right=robust // 10 - 3, n=100, **where)] * (seed == 0)
        for i, name in enumerate(SCHEDULES):
            rows += both(name, 700 + 10 * i + 2 * seed, 400 + 10 * i + 2 * seed, part="schedule", seed=seed)
        rows += both("aft_l2", 990, 980, threat="l2", seed=seed) + both("aft", 10, 10, at="start", seed=seed, passes=0)
    for name, less in (("aft", 0), ("aft_random", 100)):
        for images in (1100, 2200):
            rows += both(name, 500 + images // 100 - less, 300 + images // 100 - less, part="fraction", images=images)
        for width in (16, 64):
            rows += both(name, 600 + width - less, 350 + width - less, part="width", width=width)
    return pd.DataFrame(rows, columns=COLUMNS)


def job(name, part="main", seed=0, **optim):
    spec = RunSpec(data=DataSpec(name="cifar10", train_images=FULL), model=ModelSpec(arch="thin_resnet10"), seed=seed,
                   method=method(name), optim=OptimSpec(**{"epochs": 10, "schedule": "slow_fast", "lr": 0.05} | optim),
                   attack=AttackSpec(eps_warmup=0.5 if name == "aft_eps_warmup" else 0.0))
    return Job("aft", spec, (), labels=(("part", part), ("start", "natural")))


def jobs(seeds=(0, 1)):
    plan = [Job("aft_tuning", job("aft", lr=0.5).spec, ()), job("natural", "start")]
    for seed in seeds:
        plan += [job("aft", seed=seed), job("at_scratch", seed=seed, epochs=160)]
        plan += [job(name, "schedule", seed, **optim) for name, optim in SCHEDULES.items()]
        plan += [job("aft", "fraction", seed, epochs=99)]
    return plan


def epochs(robust, images=1000, forward=2):
    """Rows of a run measured where `robust` has a number."""
    return [{"epoch": i, "forward_images": forward * images, "backward_images": images}
            | ({} if value is None else {"val_robust_acc": value}) for i, value in enumerate(robust, start=1)]


def projection(trust=0.95, classes=10):
    places = np.random.default_rng(0).normal(size=(2, 20, 2))
    return Projection(places[0], places[1], np.arange(20) % classes, trust, 5, (0.6, 0.25))


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def called(ax, label):
    return [x for x in ax.lines if x.get_label() == label]


def points(ax):
    """colour and place of each marker with a bar -> ends of its bar."""
    return {(c.lines[0].get_color(), *(round(float(v[0]), 3) for v in c.lines[0].get_data())): c.lines[2][0].get_segments()[0]
            for c in ax.containers}


def titled(fig):
    return {ax.get_title(): ax for ax in fig.axes if ax.axison}


def legend(fig):
    return [t.get_text() for t in fig.legends[0].get_texts()]


# -- schedules ----------------------------------------------------------------------------------------------------------
def test_schedule_curves():
    """A panel for each schedule with the factors of its own optimiser in the middle of each epoch; AFT's in grey behind."""
    fig = schedule_curves(jobs())
    axes = titled(fig)
    assert list(axes) == ["AFT: slow start, fast decay", *(method_label(m).removeprefix("AFT, ") for m in SCHEDULES)]

    def middles(drawn):
        return np.interp(np.arange(10) + 0.5, *drawn.get_data())

    slow_fast = [0.2, 0.4, 0.6, 0.8, 1, 0.5, 0.25, 0.125, 1 / 16, 1 / 32]
    aft = axes.pop("AFT: slow start, fast decay")
    assert middles(aft.lines[0]) == pytest.approx(slow_fast) and len(aft.lines) == 1
    for ax in axes.values():
        assert middles(called(ax, "_aft")[0]) == pytest.approx(slow_fast)
    own = {title: middles(ax.lines[1]) for title, ax in axes.items()}
    assert own["second shape"] == pytest.approx([0.25, 0.5, 0.75, 1, *np.exp(-np.arange(1.0, 7))])
    assert own["piecewise"] == pytest.approx([1] * 5 + [0.1] * 2 + [own["piecewise"][7]] + [0.01] * 2)
    assert own["constant rate"] == pytest.approx(np.ones(10)) and own["no slow start"][:5] == pytest.approx(np.ones(5))
    assert [title for title, ax in axes.items() if called(ax, "_eps")] == ["ε warm-up"]
    radius = called(axes["ε warm-up"], "_eps")[0]
    assert np.interp([2.5, 5, 9], *radius.get_data()) == pytest.approx([0.5, 1, 1], abs=0.01)
    assert legend(fig)[-1] == "ε over its final value" and fig.get_supylabel() == "learning rate over its peak"


@pytest.mark.parametrize("some", [[], [Job("aft_tuning", job("aft").spec, ())], [job("at_scratch")],
                                  [dataclasses.replace(job("aft"), study="overfitting")]])
def test_no_schedule(some):
    """Without a schedule of this study the figure is refused."""
    with pytest.raises(ValueError, match="expected AFT or another schedule among the jobs, got none"):
        schedule_curves(some)


# -- cost ---------------------------------------------------------------------------------------------------------------
def test_cost_plot_draws_the_frame():
    """One seed: passes and accuracy of each network with the exact interval of the frame; robust by AutoAttack."""
    rows = frame(seeds=(0,))
    left, right = (fig := cost_plot(rows, "cifar10")).axes
    assert left.get_title() == "clean\n1,000 test images, 1 seed"
    assert right.get_title() == "AutoAttack at 8/255\n100 test images, 1 seed"
    for ax, attack in ((left, "none"), (right, AA)):
        mine = rows[(rows["part"] == "main") & (rows["attack"] == attack) & (rows["at"] != "start")
                    & (rows["trained_threat"] == "linf")]
        drawn = points(ax)
        assert len(drawn) == len(mine) == 13
        for row in mine.itertuples():
            bar = drawn[aft_plots.FINETUNED[row.method]["color"], row.images_given / FULL, round(100 * row.value, 3)]
            assert bar[:, 1] == pytest.approx([100 * row.low, 100 * row.high])
        assert ax.get_xscale() == "log"
    assert "passes" in fig.get_supxlabel() and "CIFAR-10" in fig.get_supxlabel() and left.get_ylabel() == "accuracy (%)"


def test_hollow_only_where_the_start_is_ours():
    """AFT, with two wings and Free at 60 passes more, joined with the filled marker; not random or public starts."""
    for ax in cost_plot(frame(), "cifar10").axes:
        hollow = {x.get_color(): float(x.get_xdata()[0]) for x in called(ax, "_whole")}
        assert hollow == {aft_plots.FINETUNED[m]["color"]: 60 + MAIN[m][0] for m in ("aft", "aft_twins", "aft_free")}
        assert {x.get_markerfacecolor() for x in called(ax, "_whole")} == {"white"}
        assert sorted(tuple(x.get_xdata()) for x in called(ax, "_start")) == [(30, 90), (50, 110), (50, 110)]


def test_best_and_last_are_joined():
    """Runs that keep their best epoch have two markers with a dashed line between; the best has a black edge."""
    ax = cost_plot(frame(), "cifar10").axes[0]
    ends = {x.get_color(): tuple(x.get_xdata()) for x in called(ax, "_joined")}
    assert ends == {aft_plots.FINETUNED[m]["color"]: (best, last) for m, (last, best, *_) in MAIN.items() if best}
    edged = {c.lines[0].get_color() for c in ax.containers if c.lines[0].get_markeredgecolor() == "black"}
    assert edged == set(ends) and {x.get_linestyle() for x in called(ax, "_joined")} == {"--"}


def test_means_over_seeds():
    """Three seeds: their mean with Student's interval; PGD where it is asked for."""
    left, right = cost_plot(frame(), "cifar10", attack="pgd20").axes
    assert (left.get_title(), right.get_title()) == ("clean\n1,000 test images, mean of 3 seeds",
                                                     "PGD-20 at 8/255\n1,000 test images, mean of 3 seeds")
    bar = points(right)[aft_plots.FINETUNED["aft"]["color"], 30, 45.2]
    assert bar[:, 1] == pytest.approx([100 * x for x in stats.student_interval([0.45, 0.452, 0.454])[1:3]])
    few = frame()
    few = few[(few["seed"] == 0) | (few["method"] == "aft")]
    assert cost_plot(few, "cifar10").axes[0].get_title() == "clean\n1,000 test images, mean of 1 to 3 seeds"


@pytest.mark.parametrize("attacks, chosen", [
    ({"aft": ["pgd20", AA], "fast_at": ["pgd20", AA]}, AA), ({"aft": ["pgd20", AA], "fast_at": ["pgd20"]}, "pgd20"),
    ({"aft": ["pgd20", "pgd100"], "fast_at": ["pgd20", "pgd100"]}, "pgd100"),
    ({"aft": ["pgd20", "apgd-ce"], "fast_at": ["apgd-ce", AA]}, "apgd-ce"), ({"aft": []}, None)])
def test_shared_attack(attacks, chosen):
    """What most methods have; of several the strongest."""
    rows = pd.DataFrame([line(m, attack=a) for m, names in attacks.items() for a in ["none", *names]])
    found = aft_plots.shared_attack(rows)
    assert (found and found[0]) == chosen


@pytest.mark.parametrize("costs, values, front", [
    ([], [], []), ([5], [1], [0]), ([1, 2, 3, 4], [5, 4, 7, 6], [0, 2]), ([3, 1, 2], [9, 1, 5], [1, 2, 0]),
    ([2, 2, 1], [5, 6, 1], [2, 1]), ([1, 2], [5, 5], [0])])
def test_pareto(costs, values, front):
    """From cheap to dear, each better than all that cost less; equal values go to the cheaper."""
    assert pareto(costs, values) == front


def test_front_is_drawn():
    """Clean: AFT from the public start at 30 passes beats all; with PGD too."""
    rows = frame(done=[m for m in MAIN if m != "aft_public"])
    fronts = [called(ax, "_front")[0] for ax in cost_plot(rows, "cifar10", attack="pgd20").axes]
    assert [list(f.get_xdata()) for f in fronts] == [[30, 50], [30, 260, 300]]
    assert fronts[1].get_ydata() == pytest.approx([45.2, 45.7, 46.2]) and fronts[0].get_drawstyle() == "steps-post"


def test_number_of_training_images():
    """0 in the frame stands for all images: their number is asked for."""
    rows = frame(seeds=(0,)).assign(train_images=0)
    with pytest.raises(ValueError, match="expected train_images above 0 for runs that name none, got 0; pass the number"):
        cost_plot(rows, "cifar10")
    assert min(x for _, x, _ in points(cost_plot(rows, "cifar10", train_images=FULL).axes[0])) == 30


def test_method_without_the_attack():
    """It is on the left only, and the legend says so."""
    rows = frame(seeds=(0,))
    rows = rows[(rows["method"] != "fast_at") | (rows["attack"] == "none")]
    left, right = (fig := cost_plot(rows, "cifar10")).axes
    assert len(left.containers) == 13 and len(right.containers) == 11
    assert "Fast-AT (right: not run)" in legend(fig) and "AFT" in legend(fig)


# -- dots and lines -----------------------------------------------------------------------------------------------------
def test_schedule_plot():
    """A row for AFT and for each schedule with its learning rate: mean and interval of the seeds, in percent."""
    rows = frame()
    rows.loc[rows["method"] == "aft_constant", "lr"] = 0.02
    left, right = (fig := schedule_plot(rows, "cifar10")).axes
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names[:2] == ["AFT\nlr 0.05", "AFT, constant rate\nlr 0.02"] and len(names) == 1 + len(SCHEDULES)
    assert right.get_title() == "PGD-20 at 8/255\n1,000 test images, mean of 3 seeds" and "CIFAR-10" in fig.get_supxlabel()
    for ax, first in ((left, 700), (right, 400)):
        drawn = {round(y): (x, bar[:, 0]) for (_, x, y), bar in points(ax).items()}
        for i in range(len(SCHEDULES)):
            values = [(first + 10 * i + 2 * seed) / 1000 for seed in range(3)]
            assert drawn[i + 1][0] == pytest.approx(100 * np.mean(values))
            assert drawn[i + 1][1] == pytest.approx([100 * x for x in stats.student_interval(values)[1:3]])
    assert left.lines[0].get_xdata() == pytest.approx([79.2] * 2) and right.lines[0].get_xdata() == pytest.approx([45.2] * 2)


def test_schedule_plot_of_what_is_there():
    """Planned schedules without a result are "not run"; fewer seeds are named."""
    rows = frame(done=["aft", "aft_cosine"])
    rows = rows[(rows["method"] == "aft") | (rows["seed"] == 0)]
    left, _ = schedule_plot(rows, "cifar10", ["aft", *SCHEDULES]).axes
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names[3] == "AFT, cosine\nlr 0.05 (1 seed)" and names[0] == "AFT\nlr 0.05"
    assert [t.get_text() for t in left.texts] == ["not run"] * 7 and len(left.containers) == 2


def test_data_width_plot():
    """Lines over the sizes, the full one from the main runs of the same seed; clean lighter; bars as in the frame."""
    left, right = (fig := data_width_plot(frame(), "cifar10", own_width=32)).axes
    for ax, places, clean, robust in ((left, (1100, 2200, 4500), (511, 522, 790), (311, 322, 450)),
                                      (right, (16, 32, 64), (616, 790, 664), (366, 450, 414))):
        drawn = {(c.lines[0].get_color(), c.lines[0].get_alpha()): c for c in ax.containers}
        assert len(drawn) == 4 and [t.get_text() for t in ax.get_xticklabels()] == [f"{x:,}" for x in places]
        aft = aft_plots.FINETUNED["aft"]["color"]
        for alpha, values in ((0.4, clean), (1.0, robust)):
            x, y = drawn[aft, alpha].lines[0].get_data()
            assert list(x) == list(places) and y == pytest.approx([v / 10 for v in values])
            bars = np.array(drawn[aft, alpha].lines[2][0].get_segments())[:, :, 1]
            assert bars == pytest.approx(np.array([[100 * e for e in stats.clopper_pearson(v, 1000)[1:3]] for v in values]))
        assert ax.get_title() == "1,000 test images, 1 seed"
    assert legend(fig)[0] == "AFT: PGD-20 at 8/255" and left.get_xlabel() == "training images"
    with pytest.raises(ValueError, match="expected width above 0"):
        data_width_plot(frame(), "cifar10", own_width=0)


# -- pictures and courses -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes, entries", [(4, 4 + 2), (12, 10 + 1 + 2)])
def test_embedding_plot(classes, entries):
    """Places of clean and attacked images with the colour of their class, titles with the number that says how faithful."""
    pictures = [(e, projection(t, classes)) for e, t in ((0, 0.91), (5, 0.95), (10, 0.99))]
    fig = embedding_plot(pictures, [f"class {i}" for i in range(classes)])
    assert [ax.get_title() for ax in fig.axes] == [
        "before: epoch 0\ntrustworthiness 0.91", "epoch 5\ntrustworthiness 0.95", "after: epoch 10\ntrustworthiness 0.99"]
    for ax, (_, p) in zip(fig.axes, pictures, strict=True):
        for drawn, places in zip(ax.collections, (p.clean, p.attacked), strict=True):
            assert (drawn.get_offsets() == places).all()
            wanted = [aft_plots.CLASSES[c] if c < 10 else aft_plots.GREY for c in p.labels]
            assert drawn.get_facecolors()[:, :3] == pytest.approx(np.array([to_rgba(c)[:3] for c in wanted]))
        assert "60 % of clean, 25 % of attacked" in ax.get_xlabel()
    assert len(legend(fig)) == entries and legend(fig)[0] == "class 0" and legend(fig)[-2:] == ["clean", "attacked"]
    assert ("other classes" in legend(fig)) == (classes > 10)


def test_course_plot():
    """Measured epochs by passes, one and a half thousand images each where two go forward and one back; a cross at a collapse,
    fast or slow, and a word where nothing ever was."""
    rows = {"aft": epochs([0.2, None, 0.4]), "fast_at": epochs([0.3, 0.4, 0.1, 0.3], forward=1), "free_at": [], "aft_random": []}
    ax, = (fig := course_plot(rows, 500)).axes
    drawn = {x.get_label(): x for x in ax.lines}
    assert list(drawn["AFT"].get_xdata()) == [3, 9] and drawn["AFT"].get_ydata() == pytest.approx([20, 40])
    assert list(drawn["Fast-AT"].get_xdata()) == [2, 4, 6, 8]
    assert np.allclose([x.get_xydata() for x in called(ax, "_collapsed")], [[[6, 10]]])
    assert legend(fig) == ["AFT", "Fast-AT", "Free-AT (not run)", "AFT, random start (not run)", "collapsed"]
    assert "collapsed" not in legend(course_plot({"aft": rows["aft"]}, 500)) and ax.get_xscale() == "log"
    other, = (fig := course_plot({"aft": epochs([0.3, 0.2, 0.1]), "fast_at": epochs([0, 0.02, 0])}, 500)).axes
    assert np.allclose([x.get_xydata() for x in called(other, "_collapsed")], [[[9, 10]]])
    assert legend(fig) == ["AFT", "Fast-AT (never robust)", "collapsed"]


# -- all ----------------------------------------------------------------------------------------------------------------
CLASS_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FIGURES = {
    "schedules": lambda rows, full: schedule_curves(jobs() if full else jobs()[:4]),
    "cost": lambda rows, full: cost_plot(rows, "cifar10"),
    "schedule": lambda rows, full: schedule_plot(rows, "cifar10", ["aft", *SCHEDULES]),
    "data_width": lambda rows, full: data_width_plot(rows, "cifar10", 32),
    "embedding": lambda rows, full: embedding_plot([(e, projection()) for e in (0, 5, 10)] if full else [], CLASS_NAMES),
    "course": lambda rows, full: course_plot(dict.fromkeys(MAIN, epochs([0.2, 0.3, 0.1] * 20 if full else [])), 500),
}


@pytest.mark.parametrize("seeds, done", [((0, 1, 2), None), ((0,), ["aft", "aft_cosine", "stranger"]), ((0,), [])],
                         ids=["full", "begun", "empty"])
@pytest.mark.parametrize("name", FIGURES)
def test_legible(name, seeds, done):
    """At print width no text is below 7 points, none touches another and none leaves the page; "not run" where nothing is."""
    fig = FIGURES[name](frame(seeds, done), done is None)
    assert fig.get_figwidth() == figures.WIDTH
    assert_legible(fig, 7)
    if done == [] and name != "schedules":
        assert any("not run" in t.get_text() for ax in fig.axes for t in ax.texts)


def test_looks_differ():
    """Methods differ in colour, marker and line style."""
    looks = aft_plots._looks([*MAIN])
    assert set(looks) == set(aft_plots.FINETUNED)
    for key in ("color", "marker", "linestyle"):
        assert len({look[key] for look in looks.values()}) == len(looks)
    assert len({look["marker"] for look in aft_plots._looks(["x", "y", "z"]).values()}) == 3


def test_same_frame_same_bytes(tmp_path):
    """Files are byte-identical for equal frames, whatever the user's settings."""
    first = figures.save(cost_plot(frame(), "cifar10"), tmp_path / "one")
    with plt.rc_context({"font.size": 20, "savefig.dpi": 30}):
        second = figures.save(cost_plot(frame(), "cifar10"), tmp_path / "two")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
