"""Forests: values with their intervals, a row for each thing compared, what is missing in words."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFT, CARETRIGHT

from ..specs.labels import NOT_RUN, unique
from .figures import RULE, SAID, SMALL, Entries, Names, curves, legend, panels, styled

FENCE = 2.0  # a value farther than this many quartile ranges outside the quartiles stretches no axis


@styled
def forest(marks: pd.DataFrame, labels: Mapping[str, str], looks: Mapping[str, dict], columns: Names, *,
           limits: Mapping[str, tuple[float, float]] | None = None, zero: bool = True, own_rows: bool = False,
           entries: Entries = (), per_line: int = 3, **more: object) -> Figure:
    """A row for each of `labels`, from above, and a panel for each column.

    Args:
        marks: column, row, x and, where they are needed, what `figures.curves` knows, with low to high the interval of x; lane:
            what stands on a line of its own within a row; shift: points of the page below its lane; absent: what is said where
            a row has no x in a column, by default "not run". Marks without a row go through the whole panel.
        labels: row -> what stands beside it, in its lines. looks: line -> look.
        limits: column -> ends of the axis. What lies beyond is an arrow head at the edge, with its number if that is finite.
        zero: mark 0 by a line. own_rows: each panel has the rows that `marks` has for it.
        entries, per_line: of `figures.legend`. more: of `figures.panels`.
    """
    marks = marks.reindex(columns=unique([*marks, "row", "line", "lane", "shift", "absent", "kind", "low", "high"]))
    words = {"row": "", "line": "", "lane": "", "absent": NOT_RUN, "kind": "points"}
    marks = marks.astype(dict.fromkeys(words, object)).fillna(words | {"shift": 0.0})
    there, beyond = marks[marks["x"].notna() & (marks["row"] != "")], _beyond(marks, limits or {})
    fig, axes = panels(("",), columns, **{"height": 1, "above": 0, "sharey": not own_rows} | more)
    numbered, places, heights = {(m.row, m.lane) for m, _, number in beyond if number}, {}, []
    for group in ([[c] for c in columns] if own_rows else [list(columns)]):
        top, middles, mine = 0.0, {}, marks[marks["column"].isin(group)]
        rows = {row: label for row, label in labels.items() if not own_rows or row in set(mine["row"])}
        for i, (row, label) in enumerate(rows.items()):
            lanes = unique(there.loc[there["column"].isin(group) & (there["row"] == row), "lane"])
            rooms = {lane: 8.5 if (row, lane) in numbered else 4.4 for lane in lanes}
            height = max(sum(rooms.values()), 9.5 * (1 + label.count("\n"))) + 4  # points of the page
            places |= {(c, row, lane): top + (height - sum(rooms.values())) / 2 + room / 2 + sum(list(rooms.values())[:k])
                       for c in group for k, (lane, room) in enumerate(rooms.items())}
            middles[top + height / 2] = label
            for column in group:
                ax, here = axes["", column], mine[(mine["row"] == row) & (mine["column"] == column)]
                if i % 2 == 0:
                    ax.axhspan(top, top + height, color="#F3F3F3", linewidth=0, zorder=0)
                if here["x"].isna().all():
                    ax.text(0.02, top + height / 2, next(iter(here["absent"]), NOT_RUN) or NOT_RUN, va="center", fontsize=SMALL,
                            transform=ax.get_yaxis_transform(), color=SAID["color"])
            top += height
        axes["", group[0]].set_yticks(list(middles), middles.values(), fontsize=7.5)
        axes["", group[0]].set_ylim(top, 0)
        heights.append(top)
    y = [places[m.column, m.row, m.lane] + m.shift for m in there.itertuples()]
    curves(axes, pd.concat([there.assign(y=y), marks[marks["row"] == ""]]).assign(row="").rename(
        columns={"low": "xlow", "high": "xhigh"}), looks, words=dict.fromkeys(axes, ""))
    for m, sign, number in beyond:
        ax, place = axes["", m.column], (limits[m.column][(sign + 1) // 2], places[m.column, m.row, m.lane] + m.shift)
        ax.plot(*place, marker=CARETRIGHT if sign > 0 else CARETLEFT, color=looks[m.line]["color"], markersize=4.5,
                markeredgewidth=0, zorder=2.9, clip_on=False)
        ax.annotate(number, place, (-6 * sign, 0), textcoords="offset points", ha="right" if sign > 0 else "left", va="center",
                    fontsize=SMALL, zorder=3.5, in_layout=False, annotation_clip=False,
                    bbox={"facecolor": "#F9F9F9", "edgecolor": "none", "pad": 0.4})
    for (_, column), ax in axes.items():
        ax.set(**{"xlim": limits[column]} if limits else {})
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        if zero:
            ax.axvline(0, **RULE)
    legend(fig, entries, per_line, handlelength=2)
    fig.set_figheight(max(heights) / 72 + 0.95 + 0.2 * -(-len(entries) // per_line))
    return fig


def _beyond(marks: pd.DataFrame, limits: Mapping[str, tuple[float, float]]) -> list[tuple]:
    """(mark, -1 or 1 for the end that it or its interval leaves, its number if it does so itself and has one)."""
    out = []
    for m in marks[marks["column"].isin(list(limits))].dropna(subset="x").itertuples():
        for sign, edge in zip((-1, 1), limits[m.column], strict=True):
            if np.nanmax(sign * np.array([m.x, m.low, m.high])) > sign * edge:
                far = sign * m.x > sign * edge and np.isfinite(m.x)
                out.append((m, sign, f"{m.x:+.1f}".replace("-", "−") if far else ""))
    return out


def fences(marks: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis that holds 0 and all values and intervals but those far from most (Tukey's fences).

    >>> fences(pd.DataFrame({"x": [-1, 0, 1, 2, 90], "low": [-2, -1, 0, 1, 89], "high": [0, 1, 2, 3, 91]}))
    (-2.2, 3.2)
    """
    ends = pd.Series(marks[["x", "low", "high"]].to_numpy(dtype=float).ravel()).dropna()
    first, third = ends.quantile([0.25, 0.75]) if len(ends) else (0.0, 0.0)
    reach = FENCE * max(third - first, 1.0)
    kept = [*ends[ends.between(first - reach, third + reach)], 0.0]
    margin = 0.04 * max(max(kept) - min(kept), 2.0)
    return float(min(kept) - margin), float(max(kept) + margin)


def row_label(name: str, seeds: Iterable[float] = (), every: Iterable[float] = (), width: int = 32) -> str:
    """A row's label in lines of `width`, broken before its minus; with the number of seeds if that differs among `every`.

    >>> row_label("AT, slow start, fast decay - AT, cosine", [3], [3, 1])
    'AT, slow start, fast decay\\n- AT, cosine (3 seeds)'
    """
    counts = unique(f"{count:.0f}" for count in (min(seeds, default=0), max(seeds, default=0)) if count)
    several = len(set(every)) > 1 and counts
    tail = f" ({' to '.join(counts)} seed{'' if counts == ['1'] else 's'})" if several else ""
    tail = tail.lstrip().replace(" ", "\u00a0").rjust(len(tail))  # is not broken
    parts = [name + tail] if len(name + tail) <= width else (name + tail).replace(" - ", "\n- ", 1).split("\n")
    lines = [textwrap.wrap(part, width, break_on_hyphens=False) for part in parts]
    return "\n".join(itertools.chain(*lines)).replace("\u00a0", " ")
