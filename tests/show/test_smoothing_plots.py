"""Figures of certified accuracy, from made-up certifications and from none."""


import pytest

from tests.show.test_smoothing_tables import LEVELS, grid, half_constant, jobs  # noqa: F401, a fixture
from tests.smoothing_made import measured, reaching
from twinslib.base.bounds import ceiling
from twinslib.show import level_tables, smoothing_plots, smoothing_tables


def test_curves_show_their_frame() -> None:
    """A curve passes through its accuracies in percent up to the first radius that nothing reaches; its ceiling is marked."""
    found = [measured("mixed/clean/group", s, reaching(0.5, 0.25), n=200, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), "toy_target")
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
    left, middle, right = smoothing_plots.certified_curves(smoothing_tables.estimates(found), "toy_target").axes
    assert [ax.get_title().split("n = ")[1] for ax in (left, middle, right)] == ["100,000", "10,000", "10,000"]
    curves = [list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 4 and line.get_linestyle() != "None"]
    assert curves[:2] == [pytest.approx([50, 50, 25, 0])] * 2


def test_figures_mark_constant_answers_and_draw_chance(half_constant) -> None:  # noqa: F811
    """A dagger in the panels of σ 1 only, a grey line at the share of the most frequent label, both in the legend."""
    frame = smoothing_tables.estimates(half_constant)
    fig = smoothing_plots.certified_curves(frame, "toy_target")
    drawn = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert drawn[0] == ["†"] and drawn[1] == [] and all(len(ax.collections) for ax in fig.axes)
    for ax in fig.axes:
        lines = [c for c in ax.collections if c.get_colors()[0][:3] == pytest.approx((0.541, 0.541, 0.541), abs=0.01)]
        assert [c.get_segments()[0][:, 1].tolist() for c in lines] == [[10.0, 10.0]]
    strength = smoothing_plots.strength_plot(level_tables.strengths(frame, jobs("05")))
    assert [t.get_text() for t in strength.axes[0].texts] == ["†", "†"]  # mixed and clean pre-training
    figures = [fig, strength, smoothing_plots.confidence_plot(half_constant, "toy_target", LEVELS),
               smoothing_plots.crossed_curves(frame, "toy_target")]
    for figure in figures:
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        assert smoothing_tables.CONSTANT in labels and (figure is figures[2] or any("†" in label for label in labels))
