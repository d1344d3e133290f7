"""Figures of certified accuracy as functions of frames (`smoothing_tables`); nothing is computed anew. Percent against the L2
radius in [0, 1] pixels; bars are 95 % intervals, hollow markers public numbers. A grey line is what the best constant answer
earns, a dagger marks what is close to one (`smoothing_tables.MARK`).

A pre-training, a noise level and a kind of fine-tuning each have one colour, line style and marker in all figures, so that they
read in grey and to the colour-blind (palette of Okabe and Ito).
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from ..evidence import public
from ..evidence.cells import Lost, Measured, absent, lost, planned
from ..specs import choices
from ..specs.labels import dataset_label, method_label, unique
from ..store.jobs import Job
from ..store.store import DIVERGED, NOT_RUN
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED
from .figures import LOOKS, OTHERS, WIDTH, noted, style
from .level_tables import MANY, ONE, envelope, family, label_shares, levels
from .norm_tables import LABELS, LONG, mismatch_name
from .smoothing_tables import CONSTANT, NORMS, dagger, main_lines, name

MIXED = {"color": "#0072B2", "linestyle": "-", "marker": "^"}
SINGLE = {"color": "#D55E00", "linestyle": (0, (1, 1)), "marker": "s"}
CLEAN = {"color": "#555555", "linestyle": "--", "marker": "v"}
THIRD = {"color": "#009E73", "linestyle": "-.", "marker": "D"}
PRETRAINED = {"clean": CLEAN, "mixed": MIXED, "mixed_batch": THIRD}
LEVELS = {0.0: CLEAN, 0.12: {"color": "#CC79A7", "linestyle": "-.", "marker": "X"},
          0.25: {"color": "#56B4E9", "linestyle": "--", "marker": "o"},
          0.5: {"color": "#009E73", "linestyle": "-", "marker": "s"},
          1.0: {"color": "#D55E00", "linestyle": (0, (1, 1)), "marker": "D"}}
FAMILIES = dict(zip(MANY, (SINGLE, CLEAN, THIRD), strict=True))
PUBLIC = {"Cohen et al. 2019": "o", "SmoothAdv": "s", "DMAE, continued pre-training": "D"}
PLAIN = "#333333"
HALF = {"color": "#8A8A8A", "linestyle": ":", "linewidth": 1.2}
END = 2.25  # the largest radius of a public number, and of the figure
CHANCE = {"color": "#8A8A8A", "linestyle": "-", "linewidth": 1.0}
MARKED = ("† close to a constant answer", {"linestyle": "none"})
ONE_LOOK = {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "*"}


def transfer_curves(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str, sigma: float) -> Figure:
    """Certified accuracy against the radius at one noise level: a column for each norm, above after fine-tuning on clean images,
    below with noise of the level; a line for each pre-training.

    Raises:
        ValueError: nothing of this is planned.
    """
    cells = unique(p.cell for p in planned(jobs) if p.dataset == dataset and p.certification.sigma == sigma and not p.cell.restat)
    fines, norms = ("clean", f"noise{float(sigma)}"), [n for n in NORMS if any(c.norm == n for c in cells)]
    singles = f"noise{float(sigma)}"
    there = {c.pretraining for c in cells if c.finetuning in fines}
    starts = [p for p in ("clean", singles, "mixed", "mixed_batch") if p in there]
    _check(starts)
    looks, main = PRETRAINED | {singles: SINGLE}, main_lines(frame)
    with style():
        fig = Figure(figsize=(WIDTH, 4.0))
        axes = fig.subplots(2, len(norms), sharex=True, sharey=True, squeeze=False)
        for ax, (fine, norm) in zip(axes.flat, [(f, n) for f in fines for n in norms], strict=True):
            for i, start in enumerate(starts):
                mine = family(main, dataset, Cell(pretraining=start, finetuning=fine, norm=norm), [sigma])
                _curve(ax, mine, shift=0.012 * (i - 1), **looks[start])
            cells = {name(start): (Cell(pretraining=start, finetuning=fine, norm=norm), sigma) for start in starts}
            _empty(ax, frame.attrs.get("lost"), dataset, cells)
            _chance(ax, main[(main["dataset"] == dataset) & (main["sigma"] == sigma)])
        for ax, norm in zip(axes[0], norms, strict=True):
            ax.set_title(NORMS[norm])
        for row, text in zip(axes, ("fine-tuned on\nclean images", f"fine-tuned\nwith σ {sigma:g}"), strict=True):
            row[0].set_ylabel(text)
        fig.supylabel("certified accuracy (%)")
        _radii(axes)
        fig.supxlabel(f"L2 radius, pixels in [0, 1] (certified at σ {sigma:g})")
        _legend(fig, [*((f"pre-training: {name(p)}", looks[p]) for p in starts), (CONSTANT, CHANCE), MARKED])
    return fig


def loss_plot(frame: pd.DataFrame) -> Figure:
    """From fine-tuning with noise (hollow) to fine-tuning on clean images (filled), mixed pre-training: a panel for each noise
    level, a line for each norm and for batch norm with other statistics (`norm_tables.losses`)."""
    sigmas = sorted(frame["sigma"].unique())
    kinds = list(LABELS)
    with style():
        fig = Figure(figsize=(WIDTH, 2.6))
        axes = fig.subplots(1, len(sigmas), sharex=True, sharey=True, squeeze=False)[0]
        for ax, sigma in zip(axes, sigmas, strict=True):
            here = {(r.norm, r.statistics): r for r in frame[frame["sigma"] == sigma].itertuples()}
            for y, kind in enumerate(kinds):
                row = here.get(kind)
                if row is None or math.isnan(row.clean):
                    ax.text(0.02, y, NOT_RUN if row is None else row.absent, transform=ax.get_yaxis_transform(), va="center",
                            fontsize=8)
                    continue
                color = {"batch": SINGLE, "group": MIXED, "layer": THIRD}[kind[0]]["color"]
                ends = [100 * min(max(row.noisy - x, 0), 1) for x in (row.high, row.low)]
                ax.plot([100 * row.noisy, 100 * row.clean], [y, y], color=color, linewidth=3, alpha=0.35)
                ax.plot(ends, [y, y], color=color, linewidth=0.8)
                ax.plot(100 * row.clean, y, "o", color=color, markersize=4)
                _dagger(ax, 100 * row.clean, y, row.constant, color)
                ax.plot(100 * row.noisy, y, "o", color=color, markerfacecolor="none", markersize=7)
            chance = frame.loc[frame["sigma"] == sigma, "chance"].max()
            if chance > 0:
                ax.axvline(100 * chance, **CHANCE, zorder=0)
            ax.set_title(f"σ {sigma:g}")
            ax.set_ylim(len(kinds) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(kinds)), list(LABELS.values()))
        axes[0].set_xlim(left=-0.04 * axes[0].get_xlim()[1])
        fig.supxlabel(f"certified accuracy at L2 radius {frame['radius'].iloc[0]:g} (%)")
        plain = {"linestyle": "none", "marker": "o", "color": PLAIN, "markersize": 5}
        fig.legend(handles=[Line2D([], [], label="fine-tuned with noise of the level", markerfacecolor="white", **plain),
                            Line2D([], [], label="fine-tuned on clean images (bar: 95 % interval of the loss)", **plain),
                            Line2D([], [], label=CONSTANT, **CHANCE), Line2D([], [], label=MARKED[0], **MARKED[1])],
                   loc="outside upper center", ncols=2, fontsize=8, handlelength=1)
    return fig


def mismatch_plot(frame: pd.DataFrame) -> Figure:
    """Mismatch of stored statistics by layer: a row for each measure (`noise.mismatch`), a column for each network, a line for
    each noise level; logarithmic, values below a thousandth at the edge."""
    cells = unique(frame["cell"])
    if not cells:
        with style():
            fig = Figure(figsize=(WIDTH, 1.5))
            _empty(fig.subplots(), word=DIVERGED if frame.attrs.get("lost") else NOT_RUN)
        return fig
    layers = {cell: unique(frame.loc[frame["cell"] == cell, "layer"]) for cell in cells}
    with style():
        fig = Figure(figsize=(WIDTH, 6.2))
        axes = fig.subplots(len(choices.MISMATCHES), len(cells), sharey="row", sharex="col", squeeze=False)
        for j, cell in enumerate(cells):
            mine = frame[frame["cell"] == cell]
            for i, measure in enumerate(choices.MISMATCHES):
                ax = axes[i, j]
                for sigma, group in mine.groupby("sigma"):
                    y = group.set_index("layer")[measure].reindex(layers[cell]).clip(lower=1e-3)
                    ax.plot(range(1, len(y) + 1), y, **LEVELS.get(sigma, CLEAN), markersize=3, linewidth=1)
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(numticks=4))
                ax.yaxis.set_minor_formatter(NullFormatter())
            axes[0, j].set_title(mismatch_name(cell).replace(", before", ",\nbefore").replace(" → ", " →\n"), fontsize=8)
            axes[-1, j].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for i, measure in enumerate(choices.MISMATCHES):
            axes[i, 0].set_ylabel(LONG[measure].replace(" / ", "\n/ ").replace("|log ratio of", "|log ratio of\n"), fontsize=8)
        fig.supxlabel("batch norm, from input to output")
        _legend(fig, [("clean images" if s == 0 else f"σ {s:g}", LEVELS.get(s, CLEAN)) for s in sorted(frame["sigma"].unique())],
                columns=4)
    return fig


def certified_curves(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str) -> Figure:
    """Certified accuracy against the radius at each noise level: left one network for all, in the middle one network for each
    level, right the best level at each radius of both, with as many draws for one as for the other; ticks on the axis mark the
    largest radius that the draws can give."""
    sigmas = levels(jobs)
    _check(sigmas)
    one, best = (family(_most_draws(frame), dataset, c, sigmas) for c in (ONE, MANY["one σ → same σ"]))
    with style():
        fig = Figure(figsize=(WIDTH, 3.4))
        axes = fig.subplots(1, 3, sharey=True)
        titles = "one network\n(mixed → clean)", "one network for each σ\n(one σ → same σ)"
        several = MANY["one σ → same σ"]
        for ax, lines, title, cell in zip(axes, (one, best), titles, (ONE, several), strict=False):
            for sigma in sigmas:
                mine = lines[lines["sigma"] == sigma]
                _curve(ax, mine, **LEVELS[sigma])
                top = mine["ceiling"].max()
                if top < END:
                    ax.plot(top, 0, "|", color=LEVELS[sigma]["color"], markersize=12, markeredgewidth=1.6, clip_on=False)
            ax.set_title(title + (f"\nn = {lines['n'].max():,}" if len(lines) else ""))
            _empty(ax, frame.attrs.get("lost"), dataset, {f"σ {s:g}": (cell.at(s), s) for s in sigmas})
            _chance(ax, lines)
        theirs = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc'")
        for sigma in sigmas:  # public: one network for each level too
            line = theirs[(theirs["method"] == "Cohen et al. 2019") & (theirs["sigma"] == sigma)]
            line = line[line["value"] > 0]
            axes[1].plot(line["radius"], 100 * line["value"], linestyle="none", marker=LEVELS[sigma]["marker"],
                         color=LEVELS[sigma]["color"], markerfacecolor="white")
        ax, main = axes[2], main_lines(frame)
        for cell, look in ((ONE, MIXED), (MANY["one σ → same σ"], SINGLE)):
            _curve(ax, envelope(family(main, dataset, cell, sigmas)), **look)
        _chance(ax, family(main, dataset, ONE, sigmas))
        for method, marker in PUBLIC.items():
            line = theirs[(theirs["method"] == method) & theirs["sigma"].isna()]
            ax.plot(line["radius"], 100 * line["value"], linestyle="none", marker=marker, color=PLAIN, markerfacecolor="white")
        ax.set_title("best σ at each radius" + (f"\nn = {main['n'].iloc[0]:,}" if len(main) else ""))
        for ax in axes:
            ax.set_xlim(-0.05, END + 0.05)
            ax.xaxis.set_major_locator(MultipleLocator(0.5))
        axes[0].set_ylim(0, None)
        axes[0].set_ylabel("certified accuracy (%)")
        fig.supxlabel("L2 radius, pixels in [0, 1]")
        _legend(fig, [*((f"σ {s:g}", LEVELS[s]) for s in sigmas), ("best σ, one network", MIXED),
                      ("best σ, one for each", SINGLE),
                      *((m, {"linestyle": "none", "marker": k, "color": PLAIN, "markerfacecolor": "white"})
                        for m, k in PUBLIC.items()),
                      ("largest radius possible", {"linestyle": "none", "marker": "|", "color": PLAIN, "markersize": 10}),
                      (CONSTANT, CHANCE), MARKED])
    return fig


def confidence_plot(found: Sequence[Measured], jobs: Sequence[Job], dataset: str) -> Figure:
    """Share of test images whose label gets at least so many of the votes, a panel for each noise level: one network against the
    one made for the level. What lies left of one half is wrong or abstains."""
    sigmas = levels(jobs)
    _check(sigmas)
    with style():
        fig = Figure(figsize=(WIDTH, 2.5))
        axes = fig.subplots(1, len(sigmas), sharey=True, sharex=True, squeeze=False)[0]
        for ax, sigma in zip(axes, sigmas, strict=True):
            for cell, look in ((ONE, MIXED), (MANY["one σ → same σ"], SINGLE)):
                shares = np.sort(label_shares(found, dataset, cell, sigma))
                if len(shares):
                    y = 100 * (1 - np.arange(len(shares)) / len(shares))
                    ax.step(shares, y, where="pre", color=look["color"], linestyle=look["linestyle"])
            _empty(ax, lost(found), dataset, {"one network": (ONE, sigma),
                                              "one for each σ": (MANY["one σ → same σ"].at(sigma), sigma)})
            chance = max((m.chance for m in found if not m.absent and (m.dataset, m.cell, m.sigma) == (dataset, ONE, sigma)),
                         default=0.0)
            if chance:
                ax.axhline(100 * chance, **CHANCE)
            ax.axvline(0.5, **HALF)
            ax.set(title=f"σ {sigma:g}", xlim=(0, 1), ylim=(0, 100))
        axes[0].set_ylabel("test images (%)")
        fig.supxlabel("at least this share of the votes for the label")
        _legend(fig, [("one network (mixed → clean)", MIXED | {"marker": ""}), ("one for each σ", SINGLE | {"marker": ""}),
                      ("one half", HALF), (CONSTANT, CHANCE)])
    return fig


def strength_plot(frame: pd.DataFrame) -> Figure:
    """Average certified radius by strength of clean fine-tuning, mixed and clean pre-training, against fine-tuning with noise
    (horizontal lines); a panel for each data set (`level_tables.strengths`)."""
    datasets = unique(frame["dataset"])
    _check(datasets)
    with style():
        fig = Figure(figsize=(WIDTH if len(datasets) > 1 else 5.5, 2.8))
        counts = [frame.loc[frame["dataset"] == d, "finetuning"].nunique() for d in datasets]
        axes = fig.subplots(1, len(datasets), sharey=True, squeeze=False, width_ratios=counts)[0]  # one width for each name
        for ax, dataset in zip(axes, datasets, strict=True):
            here = frame[frame["dataset"] == dataset]
            steps = unique(here.loc[here["finetuning"] != "noise*", "finetuning"])
            for pretraining, look in (("mixed", MIXED), ("clean", CLEAN)):
                mine = here[here["pretraining"] == pretraining].set_index("finetuning")
                ax.plot(range(len(steps)), mine["acr"].reindex(steps), **look)
                for x, step in enumerate(steps):
                    if step in mine.index:
                        _dagger(ax, x, mine.loc[step, "acr"], mine.loc[step, "constant"], look["color"])
                if "noise*" in mine.index and mine.loc["noise*", "acr"] == mine.loc["noise*", "acr"]:
                    ax.axhline(mine.loc["noise*", "acr"], color=look["color"], linewidth=0.9, linestyle=(0, (6, 3)))
            if here["chance"].max() > 0:
                ax.axhline(here["chance"].max(), **CHANCE)
            optim = here.set_index("finetuning")[["lr", "epochs"]]
            optim = optim[~optim.index.duplicated()]
            texts = [f"{name(s)}\nlr {optim.loc[s, 'lr']:g}, {optim.loc[s, 'epochs']:.0f} ep." for s in steps]
            ax.set_xticks(range(len(steps)), texts, fontsize=8)
            ax.set(title=dataset_label(dataset), xlim=(-0.4, len(steps) - 0.6), ylim=(0, None))
            gone = here[here.get("absent", pd.Series("", here.index)).str.startswith(DIVERGED)]
            noted(ax, [f"{name(r.pretraining)} → {name(r.finetuning)}" for r in gone.itertuples()])
            _empty(ax, word=DIVERGED if len(gone) else NOT_RUN)
        axes[0].set_ylabel("average certified radius,\nmean over σ")
        _legend(fig, [("mixed pre-training", MIXED), ("clean pre-training", CLEAN),
                      ("fine-tuned with noise of each σ", {"color": PLAIN, "linestyle": (0, (6, 3)), "linewidth": 0.9}),
                      (CONSTANT, CHANCE), ("† close to a constant answer at some σ", MARKED[1])])
    return fig


def crossed_curves(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str) -> Figure:
    """Networks of notebook 01, certified as they are: a panel for each noise level, a line for each method, and the one network
    of this notebook where it is certified at that level."""
    cells = unique(p.cell for p in planned(jobs) if p.cell.pretraining == CROSSED and p.dataset == dataset)
    _check(cells)
    sigmas = sorted({s for c in cells for s in levels(jobs, c)})
    main = main_lines(frame)
    strangers = [c.finetuning for c in cells if c.finetuning not in LOOKS]
    looks = {c: LOOKS.get(c.finetuning) or OTHERS[strangers.index(c.finetuning) % len(OTHERS)] for c in cells}
    with style():
        fig = Figure(figsize=(WIDTH, 2.8))
        axes = fig.subplots(1, len(sigmas), sharey=True, sharex=True, squeeze=False)[0]
        for ax, sigma in zip(axes, sigmas, strict=True):
            _curve(ax, family(main, dataset, ONE, [sigma]), **ONE_LOOK)
            for i, cell in enumerate(cells):
                _curve(ax, family(main, dataset, cell, [sigma]), shift=0.01 * (i + 1), **looks[cell])
            ax.set_title(f"σ {sigma:g}")
            _empty(ax, frame.attrs.get("lost"), dataset, {method_label(cell.finetuning): (cell, sigma) for cell in cells})
            _chance(ax, main[(main["dataset"] == dataset) & (main["sigma"] == sigma) & (main["pretraining"] == CROSSED)])
        _radii(axes)
        axes[0].set_ylabel("certified accuracy (%)")
        fig.supxlabel("L2 radius, pixels in [0, 1]")
        _legend(fig, [*((method_label(c.finetuning), looks[c]) for c in cells), ("mixed → clean (no attack)", ONE_LOOK),
                      (CONSTANT, CHANCE), MARKED])
    return fig


def _curve(ax: Axes, lines: pd.DataFrame, shift: float = 0.0, **look: object) -> None:
    if len(lines):
        lines = lines.sort_values("radius")
        lines = lines[lines["value"].shift(fill_value=1.0) > 0]  # to the first radius that nothing reaches
        y = 100 * lines["value"]
        ax.errorbar(lines["radius"] + shift, y, yerr=[y - 100 * lines["low"], 100 * lines["high"] - y], elinewidth=0.7, **look)
        whole = lines["constant"].all()
        for x, value, constant in zip(lines["radius"] + shift, y, lines["constant"], strict=True):
            _dagger(ax, x, value, constant, look["color"])
            if whole:  # one mark for the curve, many for an envelope of curves of which some are marked
                break


def _dagger(ax: Axes, x: float, y: float, constant: bool, color: object) -> None:
    """The mark of what is close to a constant answer, above its point on the right."""
    if constant and np.isfinite(y):
        ax.annotate(dagger(True).strip(), (x, y), (4, 3), textcoords="offset points", color=color, fontsize=10,
                    annotation_clip=False)


def _chance(ax: Axes, lines: pd.DataFrame) -> None:
    """What the best constant answer earns, as far as the draws of these lines can reach."""
    lines = lines[(lines["measure"] == "certified_acc") & (lines["chance"] > 0)]
    if len(lines):
        look = {"colors" if k == "color" else k: v for k, v in CHANCE.items()}
        ax.hlines(100 * lines["chance"].max(), 0, lines["radius"].max(), zorder=1, **look)


def _most_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, for each cell and noise level the lines with most draws."""
    key = ["dataset", "pretraining", "finetuning", "norm", "restat", "sigma"]
    return frame[frame["n"] == frame.groupby(key)["n"].transform("max")] if len(frame) else frame


def _radii(axes: np.ndarray) -> None:
    """Common limits, as far as a curve goes."""
    top = max((max(line.get_xdata()) for ax in axes.flat for line in ax.lines if len(line.get_xdata())), default=1.0)
    axes.flat[0].set(xlim=(-0.06, top + 0.06), ylim=(0, None))
    axes.flat[0].xaxis.set_major_locator(MultipleLocator(0.5 if top > 1.1 else 0.25))


def _empty(ax: Axes, gone: Lost | None = None, dataset: str = "", cells: dict[str, tuple[Cell, float]] | None = None,
           word: str = NOT_RUN) -> None:
    """Say so where nothing has been drawn yet, and which of `cells` (by name) diverged."""
    names = [label for label, needed in (cells or {}).items() if absent(gone or {}, dataset, [needed]) != NOT_RUN]
    noted(ax, names)
    word = DIVERGED if names else word
    if not any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in ax.lines):
        ax.text(0.5, 0.5, word, ha="center", transform=ax.transAxes)


def _legend(fig: Figure, looks: Sequence[tuple[str, dict]], columns: int = 3) -> None:
    fig.legend(handles=[Line2D([], [], label=label, **look) for label, look in looks], loc="outside upper center", ncols=columns,
               fontsize=8)


def _check(planned_: Sequence) -> None:
    if not len(planned_):
        raise ValueError("expected certifications of this figure among the jobs, got none; ask for another data set or level")
