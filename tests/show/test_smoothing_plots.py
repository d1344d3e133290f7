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
    assert [ax.get_title() for ax in fig.axes] == [f"σ {s:g}" for s in LEVELS]
    for ax, s in zip(fig.axes, LEVELS, strict=True):
        (line,) = (c.lines[0] for c in ax.containers if c.lines[0].get_color() == smoothing_plots.MIXED["color"])
        assert list(line.get_xdata()) == [0, 0.25, 0.5, 0.75] and list(line.get_ydata()) == pytest.approx([50, 50, 25, 0])
        marks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "|"]
        assert marks == pytest.approx([ceiling(200, 0.0005, s)] if ceiling(200, 0.0005, s) < smoothing_plots.END else [])


def test_curves_stand_on_equal_draws() -> None:
    """A curve with more draws is never held against others with fewer; the number is said."""
    found = [measured(name, s, reaching(0.5, 0.25), dataset="toy_target") for s in LEVELS
             for name in ("mixed/clean/group", f"noise{s}/noise{s}/group")]
    found += [measured("mixed/clean/group", s, reaching(0.9, 0.8), n=100_000, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), "toy_target")
    assert "n = 10,000" in fig.get_supxlabel() and "100,000" not in fig.get_supxlabel()
    curves = [list(c.lines[0].get_ydata()) for ax in fig.axes for c in ax.containers if len(c.lines[0].get_xdata()) == 4
              and c.lines[0].get_color() in (smoothing_plots.MIXED["color"], smoothing_plots.SINGLE["color"])]
    assert curves == [pytest.approx([50, 50, 25, 0])] * 6


def test_figures_mark_constant_answers_and_draw_chance(half_constant) -> None:  # noqa: F811
    """A dagger at σ 1 only, a grey line at the share of the most frequent label, both in the legend where they are drawn."""
    frame = smoothing_tables.estimates(half_constant)
    fig = smoothing_plots.certified_curves(frame, "toy_target")
    drawn = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert drawn == [["†"] * (s == 1.0) for s in LEVELS] and all(len(ax.collections) for ax in fig.axes)
    for ax in fig.axes:
        lines = [c for c in ax.collections if c.get_colors()[0][:3] == pytest.approx((0.541, 0.541, 0.541), abs=0.01)]
        assert [c.get_segments()[0][:, 1].tolist() for c in lines] == [[10.0, 10.0]]
    strength = smoothing_plots.strength_plot(level_tables.strengths(frame, jobs("05")))
    assert [t.get_text() for t in strength.axes[0].texts] == ["†", "†"]  # mixed and clean pre-training
    figures = [fig, strength, smoothing_plots.confidence_plot(half_constant, "toy_target", LEVELS),
               smoothing_plots.crossed_curves(half_constant, "toy_target")]
    for figure in figures:
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        marked = any("†" in t.get_text() for ax in figure.axes for t in ax.texts)
        assert smoothing_tables.CONSTANT in labels and marked == any("†" in label for label in labels)
