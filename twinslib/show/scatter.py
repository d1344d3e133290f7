"""Scatters of two percentages: loud marks with intervals and arrows between them, quiet ones as numbered dots."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from .figures import PLAIN, SMALL, Panel, curves, legend, panels, styled

QUIET = {"color": "#767676", "linestyle": "none", "marker": "o", "markersize": 2.2}  # marks that only give the context
OUTSIDE = QUIET | {"marker": (3, 0, 90), "markersize": 4}
RADII = (6, 9, 12, 16, 21, 27, 34, 42)  # points from a dot to its number, tried in this order
TURNS = [math.pi * i / 8 for i in (0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15)]  # right, left, above, below first
TICKS = (1, 2, 5, 10, 20, 50)  # points between ticks


@styled
def scatter(marks: pd.DataFrame, looks: Mapping[str, dict], columns: Sequence[str], arrows: Sequence[tuple[str, str]],
            numbers: Mapping[str, str], texts: Mapping[str, str], *, words: Mapping[Panel, str], xlabel: str,
            ylabel: str) -> Figure:
    """A panel for each data set of `columns`; all span the same number of points, so that lengths can be compared between them.

    Quiet marks widen the panels to twice the span of the loud ones at most: what lies farther out is a triangle at the edge, with
    its place in numbers.

    Args:
        marks: of `figures.curves`, in percent, with both intervals.
        looks: of the loud lines. arrows: (from, to) lines. numbers: of the quiet lines. texts: of the legends, by line.
    """
    fig, axes = panels(("",), columns, wrap=3, height=2.25, sharex=False, sharey=False, above=0.75 + 0.14 * -(-len(numbers) // 3))
    bottom = list(axes.values())[-min(3, len(axes)):]
    bottom[len(bottom) // 2].set_xlabel(xlabel)
    fig.supylabel(ylabel)
    legend(fig, [(texts[line], look | {"linestyle": "none"}) for line, look in looks.items()], 4)
    key = [(f"{k} {texts[line]}", QUIET) for line, k in numbers.items()]
    legend(fig, [*key, ("outside (clean, robust)", OUTSIDE)] if key else [], 3, "outside lower center", fontsize=SMALL,
           labelspacing=0.3, handletextpad=0.4, columnspacing=1)
    loud = marks[marks["line"].isin(list(looks))]
    curves(axes, loud, looks, words=words | {panel: "" for panel in zip(marks["row"], marks["column"], strict=True)})
    boxes, span = _windows(marks, loud)
    at = {panel: {m.line: np.array([m.x, m.y]) for m in here.itertuples()} for panel, here in marks.groupby(["row", "column"])}
    for panel, (low, high) in boxes.items():
        ax, here = axes[panel], at[panel]
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), box_aspect=1)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MultipleLocator(next(t for t in TICKS if span / t < 6)))
        for start, end in ((a, b) for a, b in arrows if a in here and b in here):
            head = math.dist(here[start], here[end]) > span / 10  # a plain line where they are too near for one
            ax.annotate("", here[end], here[start], zorder=1.9, arrowprops={
                "arrowstyle": "-|>" if head else "-", "color": looks[end]["color"], "linewidth": 1.3, "shrinkA": 0,
                "shrinkB": 3 if head else 0})
        for point in (here[line] for line in numbers if line in here):
            way = np.sign(point - _inside(ax, point))
            triangle = {"marker": (3, 0, math.degrees(math.atan2(way[1], way[0])) - 90), "markersize": 4} if way.any() else {}
            ax.plot(*_inside(ax, point), zorder=1.8, clip_on=False, **QUIET | triangle)
    fig.draw_without_rendering()  # places the axes: only now distances on the page are known
    for panel, here in at.items():
        _number(axes[panel], {k: here[line] for line, k in numbers.items() if line in here},
                [here[m] for m in looks if m in here])
    return fig


def _windows(marks: pd.DataFrame, loud: pd.DataFrame) -> tuple[dict[Panel, np.ndarray], float]:
    """Lower left and upper right corner of each panel, and the span that they share."""
    boxes = {}
    for panel, here in marks.groupby(["row", "column"], sort=False):
        ends = loud.loc[loud.index.intersection(here.index)]
        ends = ends if len(ends) else here
        boxes[panel] = np.array([ends[["xlow", "low"]].min(), ends[["xhigh", "high"]].max()])
    reach = max((high - low).max() for low, high in boxes.values()) / 2
    for panel, here in marks.groupby(["row", "column"], sort=False):
        (low, high), points = boxes[panel], here[["x", "y"]].to_numpy(dtype=float)
        near = points[((points >= low - reach) & (points <= high + reach)).all(axis=1)]
        boxes[panel] = np.array([np.min([low, *near], axis=0), np.max([high, *near], axis=0)])
    span = min(100.0, 1.08 * max((high - low).max() for low, high in boxes.values()))
    starts = {panel: np.clip((low + high - span) / 2, 0, 100 - span) for panel, (low, high) in boxes.items()}
    return {panel: np.array([start, start + span]) for panel, start in starts.items()}, span


def _inside(ax: Axes, point: np.ndarray) -> np.ndarray:
    """The point itself, or the nearest one just within the panel."""
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    return np.where((point >= low) & (point <= high), point, np.clip(point, low + (high - low) / 40, high - (high - low) / 40))


def _number(ax: Axes, points: Mapping[str, np.ndarray], loud: Sequence[np.ndarray]) -> None:
    """Write each key of `points` as near to its point as it covers no other key or marker, if need be with a line to it; to the
    key of a point outside its percentages are added."""
    unit = 72 / ax.figure.dpi  # so that all lengths are in points of the page
    left, bottom, right, top = unit * ax.get_window_extent().get_points().ravel()
    dots = {key: unit * ax.transData.transform(_inside(ax, point)) for key, point in points.items()}
    taken = [(*dot, 2, 2) for dot in dots.values()]  # middle, and half of width and height
    taken += [(*(unit * ax.transData.transform(point)), 3.5, 3.5) for point in loud]
    for key, (x, y) in dots.items():
        inside = (_inside(ax, points[key]) == points[key]).all()
        text = key if inside else f"{key} ({points[key][0]:.0f}, {points[key][1]:.0f})"
        width, height, least = 2.1 * len(text) + 1, 3.2, math.inf
        for radius, turn in itertools.product(RADII, TURNS):
            u, v = x + math.cos(turn) * (radius + width - 3), y + math.sin(turn) * radius
            out = not (left + width < u < right - width and bottom + height + 1.5 < v < top - height)
            faults = 9 * out + sum(abs(u - a) < width + c and abs(v - b) < height + d for a, b, c, d in taken)
            if faults < least:
                least, place, lined = faults, (u, v), radius > RADII[0]
            if not faults:
                break
        taken.append((*place, width, height))
        line = {"arrowstyle": "-", "color": QUIET["color"], "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(text, _inside(ax, points[key]), (place[0] - x, place[1] - y), textcoords="offset points", ha="center",
                    va="center_baseline", fontsize=SMALL, color=PLAIN, in_layout=False, annotation_clip=False,
                    arrowprops=line if lined else None)
