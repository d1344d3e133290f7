"""Figures of certified accuracy, from made-up certifications and from none."""


import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.show.test_smoothing_tables import LEVELS, grid, half_constant, jobs  # noqa: F401, a fixture
from tests.smoothing_made import measured, reaching
from twinslib.base.sequential import ceiling
from twinslib.show import level_tables, norm_tables, smoothing_plots, smoothing_tables
from twinslib.specs.labels import NOT_RUN
from twinslib.store.statistics import STATISTICS


@pytest.mark.parametrize("made", [True, False], ids=["finished", "empty"])
def test_figures_are_drawn(made: bool) -> None:
    """Every figure of both notebooks can be drawn from results and from none; panels without a result say so."""
    found4, found5 = (grid("04"), grid("05")) if made else ([], [])
    frame4, frame5 = (smoothing_tables.estimates(f) for f in (found4, found5))
    lines = [["r", "toy_target", f"mixed/{f}/batch", 0, s, 9, layer, *[0.1 * (s + 0.1)] * 4]
             for f in ("-", "clean") for s in (0.0, 0.5) for layer in ("a", "b")]
    mismatch = pd.DataFrame(lines if made else [], columns=STATISTICS)
    figures = [smoothing_plots.transfer_curves(frame4, jobs("04"), "toy_target", 0.5),
               smoothing_plots.loss_plot(norm_tables.losses(found4, "toy_target", LEVELS)),
               smoothing_plots.mismatch_plot(mismatch),
               smoothing_plots.certified_curves(frame5, jobs("05"), "toy_target"),
               smoothing_plots.confidence_plot(found5, jobs("05"), "toy_target"),
               smoothing_plots.strength_plot(level_tables.strengths(frame5, jobs("05"))),
               smoothing_plots.crossed_curves(frame5, jobs("05"), "toy_target")]
    assert all(isinstance(f, Figure) for f in figures)
    texts = [[t.get_text() for ax in f.axes for t in ax.texts] for f in figures]
    assert all(NOT_RUN in t for t in texts) if not made else not any(NOT_RUN in t for t in texts)


def test_curves_show_their_frame() -> None:
    """A curve passes through its accuracies in percent up to the first radius that nothing reaches; its ceiling is marked."""
    found = [measured("mixed/clean/group", s, reaching(0.5, 0.25), n=200, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), jobs("05"), "toy_target")
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata()) > 1]
    assert [list(line.get_xdata()) for line in lines] == [[0, 0.25, 0.5, 0.75]] * 3
    assert all(list(line.get_ydata()) == pytest.approx([50, 50, 25, 0]) for line in lines)
    marks = sorted(line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "|")
    assert marks == pytest.approx([ceiling(200, 0.0005, s) for s in LEVELS])


def test_envelopes_stand_on_equal_draws() -> None:
    """A curve with more draws is shown on its own, with its number, and never held against others with fewer."""
    found = [measured(name, s, reaching(0.5, 0.25), dataset="toy_target") for s in LEVELS
             for name in ("mixed/clean/group", f"noise{s}/noise{s}/group")]
    found += [measured("mixed/clean/group", s, reaching(0.9, 0.8), n=100_000, dataset="toy_target") for s in LEVELS]
    left, middle, right = smoothing_plots.certified_curves(smoothing_tables.estimates(found), jobs("05"), "toy_target").axes
    assert [ax.get_title().split("n = ")[1] for ax in (left, middle, right)] == ["100,000", "10,000", "10,000"]
    curves = [list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 4 and line.get_linestyle() != "None"]
    assert curves[:2] == [pytest.approx([50, 50, 25, 0])] * 2


def test_a_figure_of_nothing_is_refused() -> None:
    """Another data set or level than planned is an error, not an empty picture."""
    with pytest.raises(ValueError, match="certifications of this figure among the jobs, got none"):
        smoothing_plots.transfer_curves(smoothing_tables.estimates([]), jobs("04"), "cifar10", 0.5)


def test_figures_mark_constant_answers_and_draw_chance(half_constant) -> None:  # noqa: F811
    """A dagger in the panels of σ 1 only, a grey line at the share of the most frequent label, both in the legend."""
    frame = smoothing_tables.estimates(half_constant)
    fig = smoothing_plots.certified_curves(frame, jobs("05"), "toy_target")
    drawn = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert drawn[0] == ["†"] and drawn[1] == [] and all(len(ax.collections) for ax in fig.axes)
    for ax in fig.axes:
        lines = [c for c in ax.collections if c.get_colors()[0][:3] == pytest.approx((0.541, 0.541, 0.541), abs=0.01)]
        assert [c.get_segments()[0][:, 1].tolist() for c in lines] == [[10.0, 10.0]]
    strength = smoothing_plots.strength_plot(level_tables.strengths(frame, jobs("05")))
    assert [t.get_text() for t in strength.axes[0].texts] == ["†", "†"]  # mixed and clean pre-training
    figures = [fig, strength, smoothing_plots.confidence_plot(half_constant, jobs("05"), "toy_target"),
               smoothing_plots.crossed_curves(frame, jobs("05"), "toy_target")]
    for figure in figures:
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        assert smoothing_tables.CONSTANT in labels and (figure is figures[2] or any("†" in label for label in labels))
