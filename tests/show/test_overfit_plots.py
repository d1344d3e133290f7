"""Figures on robust overfitting from made-up courses: numbers of whole images, checked by hand."""

import dataclasses
import math
import statistics

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from tests.show.test_figures import assert_legible
from twinslib.evidence.course import Course
from twinslib.show import figures, overfit_plots
from twinslib.show.overfit_plots import gap_plot, method_curves, plateau_curves, schedule_curves, scratch_curves
from twinslib.specs import labels as specs_labels
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job

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


def job(name="at", seed=0, dataset="cifar10", **optim):
    scratch = name == "at_random" or name in PLATEAUS
    spec = RunSpec(data=DataSpec(name=dataset, train_images=1000, val_images=100), model=ModelSpec(arch="tiny_resnet"),
                   method=method(name), optim=OptimSpec(**{"epochs": 20, "lr": 0.1, "val_every": 2}
                                                        | SCHEDULES.get(name, {}) | PLATEAUS.get(name, {}) | optim),
                   attack=AttackSpec(), follow=FollowSpec(train_images=100, test_images=N, every=2), seed=seed,
                   **({} if scratch else {"source": SOURCE}))
    return Job("overfitting", spec, ())


def finish(job, peak=6, loss=10, turn=0):
    """A run that has 10 robust test images before training, 60 up to epoch `peak`, which is best on validation images, 61 at
    the next measurement, and 60 - `loss` from then on; training images rise by 4 for each epoch. `turn`: which images."""
    epochs = np.arange(0, job.spec.optim.epochs + 1, 2)
    right = np.select([epochs == 0, epochs <= peak, epochs == peak + 2], [10, 60, 61], 60 - loss)
    robust, train = (np.arange(n) < k[:, None] for n, k in ((N, right), (100, 3 * epochs)))
    clean = np.arange(N) < (100 + epochs)[:, None]
    rows = [{"epoch": e, "lr": 0.1} | ({} if e % 2 else {"val_clean_acc": 0.5, "val_robust_acc": 0.4 if e == peak else 0.3})
            for e in range(1, job.spec.optim.epochs + 1)]
    arrays = {"epoch": epochs, "test_robust": np.roll(robust, turn, 1), "test_clean": clean, "train_robust": train}
    return Course(job.spec, arrays, rows, 1000)


def study(names=ALL, seeds=(0,), done=None, datasets=("cifar10",), losses=None):
    """(courses, jobs): `done` names the methods that are finished, by default all; losses in images by method, default 10."""
    jobs = [job(name, seed, dataset) for seed in seeds for dataset in datasets for name in names]
    return [finish(j, loss=(losses or {}).get(j.spec.method.name, 10)) for j in jobs
            if done is None or j.spec.method.name in done], jobs


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def titled(fig):
    return {ax.get_title(): ax for ax in fig.axes if ax.get_title()}


def test_nothing_finished():
    """Every figure stands before any run is done, without a number of ours."""
    jobs = study()[1]
    for draw in FIGURES:
        fig = draw([], jobs)
        assert "not run" in {t.get_text() for ax in fig.axes for t in ax.texts}
        assert not any(line.get_label() in ("_mean", "_best", "_row") for ax in fig.axes for line in ax.lines)


# -- curves -----------------------------------------------------------------------------------------------------------
def test_method_curves_draw_the_courses():
    """A panel for each method and no schedule; solid is test, dashed training, in percent of error; the marker stands at the
    epoch that is best on validation images, the band under the last five measurements."""
    courses, jobs = study()
    panels = titled(method_curves(courses, jobs))
    assert list(panels) == [specs_labels.method_label(name) for name in METHODS]
    ax = panels["TWINS-AT"]
    (grey, train, test), (best,) = lines(ax, "_mean"), lines(ax, "_best")
    assert test.get_xdata().tolist() == list(range(0, 21, 2)) and test.get_linestyle() == "-" and train.get_linestyle() == "--"
    assert test.get_ydata() == pytest.approx([95, 70, 70, 70, 69.5, 75, 75, 75, 75, 75, 75])
    assert train.get_ydata() == pytest.approx(100 - 3 * np.arange(0, 21, 2))
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (6, pytest.approx(70))
    assert best.get_color() == test.get_color() == figures.LOOKS["twins_at"]["color"] != grey.get_color()
    (band,) = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (12, 20)
    assert len(lines(panels["AT"], "_mean")) == 2  # without itself in grey


def test_seeds_are_thin_lines():
    """With several seeds the line is their mean, each seed is thin, and each has its own best epoch."""
    runs = [finish(job(seed=seed), peak=peak, loss=loss) for seed, peak, loss in ((0, 6, 10), (1, 10, 16), (2, 6, 10))]
    ax = titled(method_curves(runs, [job(seed=seed) for seed in (0, 1, 2)]))["AT"]
    thin = lines(ax, "_seed")
    assert len(thin) == 6 and {line.get_linewidth() for line in thin} == {0.5}
    assert lines(ax, "_mean")[1].get_ydata()[-1] == pytest.approx(statistics.mean([75, 78, 75]))
    assert [line.get_xdata()[0] for line in lines(ax, "_best")] == [6, 10, 6]


def test_legend_names_what_is_drawn():
    """Single seeds are in the legend of a figure only if it draws them, whatever other figures do."""
    courses, jobs = study(["at", "at_random"], seeds=(0, 1))
    courses = [c for c in courses if c.spec.method.name == "at" or c.spec.seed == 0]
    for draw, wanted in ((method_curves, True), (scratch_curves, False)):
        assert ("single seeds" in [t.get_text() for t in draw(courses, jobs).legends[0].get_texts()]) == wanted


def test_missing_method_has_an_empty_panel():
    """It says so, and shows AT alone in grey."""
    panels = titled(method_curves(*study(["at", "trades"], done=["at"])))
    assert [t.get_text() for t in panels["TRADES"].texts] == ["not run"]
    (line,) = lines(panels["TRADES"], "_mean")
    assert line.get_ydata() == pytest.approx(lines(panels["AT"], "_mean")[1].get_ydata())


def test_schedule_curves():
    """Above each course its learning rate, at the epochs where it holds; shaded where it is below a fifth of the peak."""
    courses, jobs = study(losses={"at_cyclic": 4})
    fig = schedule_curves(courses, jobs)
    panels = titled(fig)
    assert list(panels) == ["piecewise", "cosine", "cyclic", "slow start, fast decay"]
    at = {name: dict(zip(np.round(ax.lines[0].get_xdata(), 6), ax.lines[0].get_ydata(), strict=True))
          for name, ax in panels.items()}
    assert [at["piecewise"][e] for e in (0, 9.98, 10, 18)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert [at["cyclic"][e] for e in (0, 4, 8, 14)] == pytest.approx([0, 0.05, 0.1, 0.05])
    assert [at["slow start, fast decay"][e] for e in (0, 2, 8, 10, 18)] == pytest.approx([0.02, 0.04, 0.1, 0.05, 0.1 / 32])
    assert at["cosine"][10] == pytest.approx(0.05)
    assert sorted({line.get_ydata()[-1] for line in lines(fig.axes[6], "_mean")}) == pytest.approx([40, 72, 75])
    shaded = [bool(ax.collections[0].get_paths()[0].contains_point((15, 0.5))) for ax in panels.values()]
    assert shaded == [True, True, False, True]


def test_scratch_curves():
    """Ours by share of training; the public points hollow at (epoch + 1) / 200, on the images that they stand for only."""
    courses, jobs = study(["at_random"], losses={"at_random": 20})
    fig = scratch_curves(courses, jobs)
    robust, clean = fig.axes
    _, test = lines(robust, "_mean")
    assert test.get_xdata() == pytest.approx(np.linspace(0, 100, 11)) and test.get_ydata()[-1] == pytest.approx(80)
    assert lines(clean, "_mean")[0].get_ydata()[[0, -1]] == pytest.approx([50, 40])
    hollow = [line for ax in (robust, clean) for line in ax.lines if line.get_markerfacecolor() == "white"]
    theirs, training, without = hollow
    points = dict(zip(theirs.get_xdata(), theirs.get_ydata(), strict=True))
    assert points[100] == pytest.approx(54.4) and points[50.5] == pytest.approx(48.4) and len(points) == 15
    assert training.get_ydata()[-1] == pytest.approx(18.9) and without.get_ydata()[-1] == pytest.approx(15.1)
    below = fig.get_supxlabel()
    assert "1,000 images of CIFAR-10" in below and "PreAct ResNet-18, 200 epochs" in below and below.count("PGD-10 at 8/255") == 2
    elsewhere = scratch_curves(*study(["at_random"], datasets=["toy_target"]))
    assert not any(len(line.get_xdata()) for ax in elsewhere.axes for line in ax.lines if line.get_markerfacecolor() == "white")
    assert "Public" not in elsewhere.get_supxlabel()


def test_plateaus_meet_at_the_drop():
    """Epochs count from the first drop of the rate, so both runs end at the same place."""
    fig = plateau_curves(*study(list(PLATEAUS)))
    ends = {line.get_color(): (line.get_xdata()[0], line.get_xdata()[-1]) for line in lines(fig.axes[0], "_mean")}
    assert ends == {"#0072B2": (-6, 12), "#D55E00": (-22, 12)}
    labels = [t.get_text() for t in fig.legends[0].get_texts()]
    assert labels[:2] == ["short plateau: 6 epochs", "long plateau: 22 epochs"]
    one = plateau_curves(*study(list(PLATEAUS), done=["at_long_plateau"]))
    assert one.legends[0].get_texts()[0].get_text() == "short plateau: 6 epochs (not run)"


# -- gaps -------------------------------------------------------------------------------------------------------------
def rows_of(ax):
    """Row label -> (value, low, high, filled) for the markers, in the order of the rows."""
    names = dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))
    out = {}
    for c in ax.containers:
        (line,), (bar,) = [c.lines[0]], c.lines[2][0].get_segments()
        out[names[line.get_ydata()[0]].replace("\n", " ")] = (line.get_xdata()[0], *bar[:, 0],
                                                               to_rgba(line.get_markerfacecolor()) != to_rgba("white"))
    return out


def test_gap_plot_draws_the_gaps():
    """Left own gaps, right differences, in points, on one scale; filled where the interval leaves out 0."""
    courses, jobs = study(losses={"at": 20, "twins_at": 0, "at_lr": 21}, done=["at", "twins_at", "at_lr"])
    left, right = gap_plot(courses, jobs).axes
    own, against = rows_of(left), rows_of(right)
    assert list(own) == ["AT", "TWINS-AT", "AT, lr × (1 + λ)"] and len(left.get_yticks()) == len(ALL)
    assert own["AT"][0] == pytest.approx(10) and own["AT"][3] and not own["TWINS-AT"][3]
    assert own["AT"][2] - 10 == pytest.approx(196 * math.sqrt(0.1 * 0.9 / (N - 1)), abs=1e-3)
    assert against["TWINS-AT − AT"][0] == pytest.approx(-10) and against["TWINS-AT − AT"][3]
    assert against["AT, lr × (1 + λ) − AT"][0] == pytest.approx(0.5) and not against["AT, lr × (1 + λ) − AT"][3]
    assert left.get_xlim() == right.get_xlim()
    assert [t.get_text() for t in left.texts] == ["not run"] * (len(ALL) - 3)


def test_gap_plot_says_where_seeds_are_fewer():
    """A row that rests on fewer seeds than others names them; with equal numbers none does."""
    courses, jobs = study(["at", "trades"], seeds=(0, 1))
    assert list(rows_of(gap_plot(courses, jobs).axes[0])) == ["AT", "TRADES"]
    left, right = gap_plot([c for c in courses if c.spec.method.name == "at" or c.spec.seed == 0], jobs).axes
    assert list(rows_of(left)) == ["AT", "TRADES (1 seed)"] and list(rows_of(right)) == ["TRADES − AT (1 seed)"]


# -- all --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("seeds, done", [((0, 1, 2), ALL), ((0,), ["at", "at_cosine", "at_long_plateau"])], ids=["full", "begun"])
def test_legible(draw, seeds, done):
    """At print width no text is below 7 points, none touches another and none leaves the page."""
    courses, jobs = study(seeds=seeds, done=done, losses={"at_cyclic": 50})
    fig = draw(courses, jobs)
    assert fig.get_figwidth() == figures.WIDTH
    assert_legible(fig, 7)


@pytest.mark.parametrize("draw", [method_curves, gap_plot])
def test_several_data_sets(draw):
    """Each data set has its panels or rows, with its name."""
    fig = draw(*study(["at", "twins_at"], datasets=("cifar10", "cub64")))
    names = list(titled(fig)) if draw is method_curves else [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names == ["AT\nCIFAR-10", "TWINS-AT\nCIFAR-10", "AT\nCUB-200 (2010)", "TWINS-AT\nCUB-200 (2010)"]


@pytest.mark.parametrize("draw", FIGURES)
def test_nothing_planned(draw):
    """Without a run that could be drawn the figure is refused; so are runs that are not followed on test images."""
    blind = dataclasses.replace(job().spec, follow=FollowSpec(train_images=100))
    for jobs in ([], [Job("overfitting", blind, ())], [dataclasses.replace(job(), ship=True)]):
        with pytest.raises(ValueError, match="expected at least one planned run .* got none; put its method into runs"):
            draw([], jobs)


@pytest.mark.parametrize("draw", [schedule_curves, scratch_curves, plateau_curves])
def test_one_data_set(draw):
    """Figures of one data set refuse two."""
    with pytest.raises(ValueError, match="expected one data set, got cifar10, cub64; pass the jobs of one"):
        draw(*study(datasets=("cifar10", "cub64")))


def test_same_courses_same_bytes(tmp_path):
    """Files are byte-identical for equal courses, whatever the user's settings."""
    courses, jobs = study(list(PLATEAUS))
    first = figures.save(plateau_curves(courses, jobs), tmp_path / "one")
    with plt.rc_context({"font.size": 20, "savefig.dpi": 30}):
        second = figures.save(plateau_curves(courses, jobs), tmp_path / "two")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_looks_differ():
    """Methods of one figure, strangers among them, differ in colour and marker; so do schedules."""
    for looks in (overfit_plots._looks([*METHODS, "mine"]), overfit_plots.OF_SCHEDULES, overfit_plots.OF_PLATEAUS):
        assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == len(looks)
