"""Figures from tidy frames: a mark is a row, which names its panel, its line, its place and its interval.

A method has one colour, line style and marker in all figures, so that they read in grey and to the colour-blind (palette of Okabe
and Ito). What is not there is said: in the middle of an empty panel why, in a corner what diverged.
"""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from ..base.files import atomic_write
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, marked, method_label, unique

WIDTH = 7.0  # inches, the text width of a printed page
SMALL = 7  # points; no text is smaller
GREY, PLAIN, SHADE = "#8A8A8A", "#333333", "#EFEFEF"  # for comparison; for lines of every colour; behind lines
OTHERS = (  # for methods without a look of their own, by order
    {"color": "#009E73", "linestyle": (0, (8, 2)), "marker": "P"},
    {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "marker": "X"},
    {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "*"},
    {"color": "#8C510A", "linestyle": (0, (4, 1, 1, 1)), "marker": "h"},
)
LOOKS = {  # a family of methods shares a hue, of which TWINS has the darker one
    "at": {"color": "#56B4E9", "linestyle": "--", "marker": "o"},
    "twins_at": {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    "trades": {"color": "#E69F00", "linestyle": ":", "marker": "s"},
    "twins_trades": {"color": "#D55E00", "linestyle": "-.", "marker": "D"},
    "natural": {"color": "#555555", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
}
LOOKS |= {  # the same look only where two never meet in a figure
    "at_lr": OTHERS[0], "at_split": OTHERS[1], "frozen_at": OTHERS[2], "twins_shared": OTHERS[3], "at_awp": OTHERS[1],
    "at_cosine": LOOKS["trades"], "at_cyclic": OTHERS[1], "at_slow_fast": OTHERS[0], "at_random": LOOKS["twins_at"],
    "at_short_plateau": LOOKS["twins_at"], "at_long_plateau": LOOKS["twins_trades"],
    "aft": LOOKS["twins_trades"] | {"linestyle": "-"}, "at_scratch": LOOKS["at"], "trades_scratch": LOOKS["trades"],
    "aft_twins": LOOKS["twins_at"] | {"linestyle": (0, (10, 2, 2, 2))}, "aft_random": OTHERS[0], "aft_public": OTHERS[1],
    "aft_free": OTHERS[3], "fast_at": LOOKS["natural"], "free_at": OTHERS[2] | {"color": "#7B3294", "marker": "<"},
}
FLAGS = {  # what the words in a mark's `kind` change in the look of its line
    "points": {"linestyle": "none"}, "plain": {"marker": ""}, "solid": {"linestyle": "-", "marker": ""},
    "dashed": {"linestyle": (0, (4, 1.6)), "linewidth": 1.1, "marker": ""}, "hollow": {"markerfacecolor": "white"},
    "large": {"markersize": 5.5},
    "thin": {"linewidth": 0.5, "alpha": 0.55}, "band": {},
    "best": {"linestyle": "none", "markersize": 5.5, "markeredgecolor": "black", "markeredgewidth": 0.8, "zorder": 4},
    "seeds": {"linestyle": "none", "color": "#000000", "marker": ".", "markersize": 2.5, "zorder": 5},
    "ring": {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"},
    "end": {"linestyle": "none", "marker": "|", "markersize": 11, "markeredgewidth": 1.6, "clip_on": False},
    "thick": {"linestyle": "none", "marker": "", "elinewidth": 3, "alpha": 0.35},
}
RULE = {"color": "#555555", "linestyle": "-", "linewidth": 0.8, "zorder": 1}
DOT = {"linestyle": "none", "marker": "o", "color": "#555555"}  # of legend entries that stand for every colour
HOLLOW = DOT | {"markerfacecolor": "white"}
SINGLE_SEEDS = ("single seeds", FLAGS["seeds"] | {"markersize": 4})
DROP = {"color": GREY, "linestyle": ":", "linewidth": 0.9, "zorder": 1}
SAID = {"color": "#555555", "zorder": 6, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 2}}
WORDS = ("row", "column", "line", "kind", "strand", "text", "name", "absent")  # columns of marks, empty where they are not given
NUMBERS = ("x", "y", "low", "high", "xlow", "xhigh")
ACROSS = {"across": ["y"], "upright": ["x"], "shade": ["xlow", "xhigh"],
          "stretch": ["y", "xlow", "xhigh"]}  # kinds that are no points
SETTINGS = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "figure.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6, "lines.linewidth": 1.3, "lines.markersize": 4, "legend.handlelength": 3.4, "figure.dpi": 144,
    "savefig.dpi": 200, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}
Panel = tuple[str, str]  # row, column
Names = Mapping[str, str] | Iterable[str]
Entries = Sequence[tuple[str, dict]]  # of a legend: label and look
styled = plt.style.context(["default", SETTINGS])  # decorates what draws: the project's look, whatever the user's settings


def save(fig: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write path.png, of 256 colours, and path.pdf, each whole or not at all; the same figure gives the same bytes."""
    png, pdf = (Path(path).with_name(Path(path).name + suffix) for suffix in (".png", ".pdf"))
    drawn = io.BytesIO()
    styled(fig.savefig)(drawn, format="png")
    colours = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    atomic_write(png, lambda tmp: colours.save(tmp, "PNG", optimize=True, dpi=(SETTINGS["savefig.dpi"],) * 2))
    atomic_write(pdf, styled(lambda tmp: fig.savefig(tmp, format="pdf", metadata={"CreationDate": None})))
    return png, pdf


def sign(fig: Figure, preset: str) -> None:
    """Say at the bottom, after what the figure stands on, which preset it is of."""
    label = fig.get_supxlabel()
    text = next((t for t in fig.texts if label and t.get_text() == label), None) or fig.supxlabel("", fontsize=9)
    text.set_text(("; " if "\n" in label else "\n").join(filter(None, (label.removesuffix("."), f"preset {preset}"))))


def stands_on(images: Iterable[float] = (), seeds: Iterable[float] | pd.DataFrame = (), what: str = "test images") -> str:
    """How many images and seeds a figure stands on, as a range where its marks differ. Of seeds their numbers, or a frame with
    lines for each seed of a data set and method.

    >>> stands_on([1000, 300], [3, 3]), stands_on(seeds=[1])
    ('300 to 1,000 test images, 3 seeds', '1 seed')
    """
    said = []
    if isinstance(seeds, pd.DataFrame):
        seeds = seeds.groupby(["dataset", "method"])["seed"].nunique()
    for numbers, noun in ((images, what), (seeds, "seeds")):
        ends = unique(f"{end(numbers):,.0f}" for end in (min, max)) if len(numbers := [x for x in numbers if x > 0]) else []
        said += [f"{' to '.join(ends)} {noun[:-1] if ends == ['1'] else noun}"] * bool(ends)
    return ", ".join(said)


def looks(methods: Iterable[str]) -> dict[str, dict]:
    """method -> look; those that have none of their own share out what is left of OTHERS."""
    methods = unique(methods)
    taken = [LOOKS[m] for m in methods if m in LOOKS]
    spare = itertools.cycle([look for look in OTHERS if look not in taken] or OTHERS)
    return {m: LOOKS.get(m) or next(spare) for m in methods}


@styled
def nothing(word: str) -> Figure:
    """A figure that only says why it is empty."""
    fig = Figure(figsize=(WIDTH, 0.6))
    ax = fig.subplots()
    ax.set_axis_off()
    ax.text(0.5, 0.5, word, ha="center", va="center")
    return fig


@styled
def figure(marks: pd.DataFrame, looks: Mapping[str, dict], *, rows: Names = ("",), columns: Names | None = None,
           rule: float | None = None, log: str = "", longest: float = 100, ticks: int | Iterable[float] = 0,
           bottom: float | None = None, scale: float = 1.0,
           words: Mapping[Panel, str] | None = None, entries: Entries = (), per_line: int = 3, loc: str = "outside upper center",
           **more: object) -> Figure:
    """Small multiples: `panels` with the `curves` of `marks` and a `legend`.

    Args:
        columns: by default those of `marks`. rule: height of a line through all panels. bottom: of the vertical axes.
        log: which axes are logarithmic, "xy" for both, with decades instead of round numbers where the ends of one are more than
            `longest` apart. ticks: at most so many, at whole numbers, or where, on horizontal axes.
        looks, scale, words: of `curves`. entries, per_line, loc: of `legend`.
        more: columns of `marks` by their names there, such as x="epoch"; and options of `panels`.
    """
    given = {more.pop(name): name for name in (*WORDS, *NUMBERS) if name in more}
    marks = marks.rename(columns=given)
    fig, axes = panels(rows, unique(marks["column"]) if columns is None else columns, **more)
    curves(axes, marks, looks, scale=scale, words=words)
    for ax in axes.values():
        if rule is not None:
            ax.axhline(rule, **RULE)
        if bottom is not None:
            ax.set_ylim(bottom=bottom)
        for name in log:
            log_axis(getattr(ax, f"{name}axis"), longest)
        if isinstance(ticks, int) and ticks > 0:
            ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        elif not isinstance(ticks, int):
            ax.xaxis.set(major_locator=FixedLocator(sorted(set(ticks))), minor_locator=NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    legend(fig, entries, per_line, loc)
    return fig


def panels(rows: Names, columns: Names, *, height: float = 2.0, width: float = WIDTH, wrap: int = 0, above: float = 0.8,
           xlabel: str = "", ylabel: str = "", note: str = "", **grid: object) -> tuple[Figure, dict[Panel, Axes]]:
    """A figure with a panel for each row and column, or, of one row, with `wrap` panels to a line.

    Args:
        rows, columns: key -> what stands beside the row or above the column; keys alone are data sets.
        height: inches of a panel. above: inches of legend, titles and label.
        xlabel, ylabel: of all axes. note: on what all stands, below them (`stands_on`).
        grid: for `Figure.subplots`; by default all panels share both axes.
    """
    rows, columns = ((k if isinstance(k, Mapping) else {name: dataset_label(name) for name in k}) for k in (rows, columns))
    across = min(len(columns), wrap or len(columns))
    lines = len(rows) * -(-len(columns) // across)
    fig = Figure(figsize=(width, height * lines + above + 0.15))  # not pyplot's: nothing is shown by itself
    places = fig.subplots(lines, across, squeeze=False, **{"sharex": True, "sharey": True} | grid).flat
    axes = dict(zip(itertools.product(rows, columns), places, strict=False))
    for i, ((row, column), ax) in enumerate(axes.items()):
        ax.set_title(columns[column] if wrap or i < across else "")
        ax.set_ylabel(rows[row] if i % across == 0 else "")
        if i + across >= len(axes):  # the lowest of its column
            ax.xaxis.set_tick_params(labelbottom=True)
    for ax in list(fig.axes)[len(axes):]:
        ax.remove()
    fig.align_ylabels()
    fig.supxlabel("\n".join(filter(None, (xlabel, note))))
    fig.supylabel(ylabel)
    return fig, axes


def curves(axes: Mapping[Panel, Axes], marks: pd.DataFrame, looks: Mapping[str, dict], *, scale: float = 1.0,
           words: Mapping[Panel, str] | None = None) -> None:
    """Draw `marks` as lines with markers and intervals, one for each panel, `line`, `kind` and `strand`.

    Args:
        marks: WORDS and NUMBERS, as far as there are any: low to high is the interval of y, xlow to xhigh that of x; kind holds
            words of FLAGS; text stands at the upper right of its mark. absent is what is said of a y that is not there: a name
            of which all that was planned in a panel diverged stands in its corner. Of kind
            "across" is a line at y, "upright" one at x, "shade" all from xlow to xhigh, each through the whole panel; of kind
            "stretch" a line at y from xlow to xhigh.
        looks: line -> options of `Axes.errorbar`.
        scale: of y and its interval, such as 100 for percent.
        words: what a panel says in its middle; by default, where nothing is drawn, what diverged or "not run".
    """
    marks = marks.reindex(columns=unique([*marks, *WORDS, *NUMBERS]))
    marks = marks.astype(dict.fromkeys(NUMBERS, float) | dict.fromkeys(WORDS, object)).fillna(dict.fromkeys(WORDS, ""))
    marks[["y", "low", "high"]] *= scale
    for (row, column, line, kind, _), mine in marks.groupby(["row", "column", "line", "kind", "strand"], sort=False):
        ax, look, ends = axes[row, column], {"elinewidth": 0.8} | looks[line], {}
        if kind in ACROSS:
            draw = {"across": ax.axhline, "upright": ax.axvline, "shade": ax.axvspan, "stretch": ax.hlines}[kind]
            for at in mine[ACROSS[kind]].itertuples(index=False):
                draw(*at, **looks[line])
            continue
        if mine["x"].isna().all():  # of what is not there
            continue
        for flag in kind.split():
            look |= FLAGS[flag]
        if "band" in kind.split():
            ax.fill_between(mine["x"], mine["low"], mine["high"], color=look["color"], linewidth=0, alpha=0.2, zorder=1.5)
        elif mine["low"].notna().any():
            ends["yerr"] = [mine["y"] - mine["low"], mine["high"] - mine["y"]]
        if mine["xlow"].notna().any():
            ends["xerr"] = [mine["x"] - mine["xlow"], mine["xhigh"] - mine["x"]]
        ax.errorbar(mine["x"], mine["y"], **look, **ends)
        for mark in mine[mine["text"] != ""].itertuples():
            ax.annotate(mark.text, (mark.x, mark.y), (4, 3), textcoords="offset points", color=look["color"], fontsize=10,
                        annotation_clip=False)
    there, gone = marks["y"].notna() & ~marks["kind"].isin(list(ACROSS)), marks["absent"].str.startswith(DIVERGED)
    for (row, column), ax in axes.items():
        mine = (marks["row"] == row) & (marks["column"] == column)
        drawn, lost = marks[mine & there], marks[mine & gone]
        names = unique(name for name in lost["name"] if name and name not in set(drawn["name"]))
        if names:
            ax.text(0.98, 0.98, "\n".join([f"{DIVERGED}:", *names]), transform=ax.transAxes, ha="right", va="top", fontsize=SMALL,
                    **SAID)
        word = (words or {}).get((row, column), "" if len(drawn) else next(iter(lost["absent"]), NOT_RUN))
        if word:
            ax.text(0.5, 0.9 if len(drawn) else 0.5, word, transform=ax.transAxes, ha="center", va="center", **SAID)


def over_seeds(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean of `value` over the seeds, and low to high from the least to the greatest where there are several.

    >>> over_seeds(pd.DataFrame({"x": [1, 1, 2], "seed": [0, 1, 0], "loss": [2.0, 4.0, 1.0]}), ["x"], "loss").to_dict("list")
    {'x': [1, 2], 'y': [3.0, 1.0], 'low': [2.0, nan], 'high': [4.0, nan]}
    """
    seeds = frame.groupby([*by, "seed"], sort=False)[value].mean().groupby(level=by, sort=False)
    found = seeds.agg(y="mean", low="min", high="max")
    found.loc[seeds.size() < 2, ["low", "high"]] = float("nan")
    return found.reset_index()


def log_axis(axis: Axis, longest: float) -> None:
    """Logarithmic, with round numbers where its ends are at most `longest` apart, else with decades."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    if high / low > longest:
        axis.set_major_locator(LogLocator(numticks=5))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 3 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8), numticks=20))
        axis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axis.set_minor_locator(NullLocator())


def methods_legend(shown: Mapping[str, dict], there: Iterable[str], lost: Mapping[str, Iterable[float]], kind: str = "",
                   what: str = "seed") -> Entries:
    """Entries for methods that are `there`, with the seeds (or `what`) that diverged, then for those of which nothing is left."""
    there = set(there)
    entries = [(marked(m, lost.get(m, ()), left=True, what=what), look | FLAGS.get(kind, {})) for m, look in shown.items()
               if m in there]
    return entries + [(f"{method_label(m)} ({DIVERGED})", {"linestyle": "none"}) for m in lost if m not in there]


def legend(fig: Figure, entries: Entries, columns: int = 3, loc: str = "outside upper center", **options: object) -> None:
    """(label, look) above the panels or where `loc` says."""
    handles = [Line2D([], [], label=label, **{k: v for k, v in look.items() if k != "elinewidth"}) for label, look in entries]
    if handles:
        short = {"handlelength": 1} if all(look.get("linestyle") == "none" for _, look in entries) else {}
        fig.legend(handles=handles, loc=loc, ncols=columns, **short | options)
