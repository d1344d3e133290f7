"""Figures of robust overfitting from the courses of finished runs (`course`); nothing is computed anew. Errors in percent.

In every panel a solid line is robust error on test images, a dashed one on training images: means over seeds, with each seed as
a thin line. Hollow markers on curves are public numbers.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, MultipleLocator

from ..claims.effects import pair_label
from ..evidence import course, public
from ..evidence.course import LAST, Course
from ..specs.labels import DATASETS, dataset_label, method_label, unique
from ..specs.run import RunSpec
from ..specs.schedules import factor
from ..store.jobs import Job
from . import overfit_tables
from .figures import LOOKS, OTHERS, SMALL, WIDTH, style, tick
from .overfit_tables import PLATEAUS, SCHEDULES, SLOW, absent, attack_text, by_key, first_drop, ordered, schedule_label

FOLLOWED = LOOKS | {"at_lr": OTHERS[0], "at_awp": OTHERS[1]}
OF_SCHEDULES = {"at": LOOKS["at"], "at_cosine": {"color": "#E69F00", "marker": "s"},
                "at_cyclic": {"color": "#CC79A7", "marker": "X"}, "at_slow_fast": {"color": "#009E73", "marker": "P"}}
OF_PLATEAUS = {"at_short_plateau": {"color": "#0072B2", "marker": "^"}, "at_long_plateau": {"color": "#D55E00", "marker": "D"}}
SCRATCH = {"color": "#0072B2", "marker": "^"}
THEIRS = {"color": "#555555", "linewidth": 0.8, "markersize": 4.2, "markerfacecolor": "white"}
GREY = "#8A8A8A"
BAND = "#EFEFEF"
TRAIN = (0, (4, 1.6))
PLAIN = "#333333"  # of legend entries that stand for every colour


def method_curves(courses: Sequence[Course], jobs: Sequence[Job]) -> Figure:
    """Robust error by epoch, a panel for each data set and method of `overfit_tables.methods`; a marker at the epoch that is best
    on validation images, grey for the last measured epochs, whose mean stands for the end; AT's test error in every panel.

    Raises:
        ValueError: no run with a course is planned.
    """
    names = overfit_tables.methods(jobs)
    plan = [(key, spec) for key, spec in ordered(jobs).items() if key[1] in names]
    _check(plan)
    found, looks = by_key(courses), _looks(names)
    with style():
        fig, axes = _grid(len(plan), columns=min(3, len(plan)))
        for ax, ((dataset, method), spec) in zip(axes, plan, strict=False):
            ax.set_title(_title(method_label(method), dataset, plan))
            group = found.get((dataset, method), [])
            if method != "at" and (dataset, "at") in found:
                _mean(ax, found[dataset, "at"], "test_robust", color=GREY, linewidth=0.9)
            if group:
                epochs = overfit_tables.ending(group[0])
                ax.axvspan(epochs[0], epochs[-1], color=BAND, linewidth=0, zorder=0)
                _drops(ax, spec)
            _course(ax, group, looks[method], absent(courses, dataset, method))
        axes[0].set_xlim(0, max(spec.optim.epochs for _, spec in plan) * 1.02)
        axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        fig.supxlabel(_epoch_label(plan))
        fig.supylabel(_error_label(plan))
        handles = [*_handles(_of(plan, found)), Line2D([], [], color=GREY, linewidth=0.9, label="test images, AT"),
                   Patch(color=BAND, label=f"last {LAST} measurements"), _drop_handle()]
        fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    return fig


def gap_plot(courses: Sequence[Course], jobs: Sequence[Job]) -> Figure:
    """Left the gap of each planned method, right differences of gaps (`overfit_tables.PAIRS`), in points with 95 % intervals over
    seeds and test images; filled where the interval leaves out 0. A row says on how many seeds it rests where others have more.

    Raises:
        ValueError: no run with a course is planned.
    """
    plan = ordered(jobs)
    _check(plan)
    datasets = unique(d for d, _ in plan)
    several = len(datasets) > 1
    own = {(row.dataset, row.method): (row.gap, row.gap_low, row.gap_high, row.seeds)
           for row in course.gaps(courses).itertuples()}
    pairs = overfit_tables.pairs(jobs)
    against = {(row.dataset, (row.method, row.baseline)): (row.value, row.low, row.high, row.seeds)
               for row in course.gap_differences(courses, list(dict.fromkeys(p for _, p in pairs))).itertuples()}
    most = max((found[3] for found in own.values()), default=0)
    left = [(_label(method_label(m), d, several, own.get((d, m)), most), own.get((d, m)) or absent(courses, d, m))
            for d, m in plan]
    right = [(_label(pair_label(p), d, several, against.get((d, p)), most), against.get((d, p)) or absent(courses, d, *p))
             for d, p in pairs]
    rows = max(sum(1 + label.count("\n") for label, _ in side) for side in (left, right))
    with style():
        fig = Figure(figsize=(WIDTH, 0.125 * rows + 0.09 * max(len(left), len(right)) + 0.75))
        axes = fig.subplots(1, 2)
        for ax, side, title in zip(axes, (left, right), ("gap", "difference of gaps"), strict=True):
            _dots(ax, side)
            ax.set_title(title)
        ends = [100 * x for _, found in (*left, *right) if not isinstance(found, str) for x in found[1:3]]
        span = (min([*ends, 0.0]), max([*ends, 0.0]))
        margin = 0.05 * max(span[1] - span[0], 1)
        for ax in axes:  # one scale: a difference can be held against a gap
            ax.set_xlim(span[0] - margin, span[1] + margin)
            ax.xaxis.set_major_locator(MultipleLocator(tick(max(span[1] - span[0], 1))))
        where = "" if several else f" on {dataset_label(datasets[0])}"
        fig.supxlabel(f"points of robust accuracy{where}, best epoch − end, with 95 % interval")
        plain = {"linestyle": "none", "marker": "o", "color": PLAIN, "markersize": 4}
        fig.legend(handles=[Line2D([], [], label="interval leaves out 0", **plain),
                            Line2D([], [], label="unclear: it contains 0", markerfacecolor="white", **plain)],
                   loc="outside upper center", ncols=2, fontsize=8, handlelength=1)
    return fig


def schedule_curves(courses: Sequence[Course], jobs: Sequence[Job]) -> Figure:
    """A column for each schedule of AT: above its learning rate, below robust error by epoch, with the test error under the
    piecewise schedule in grey; shaded where the rate is below a fifth of its peak.

    Raises:
        ValueError: no schedule is planned, or schedules of several data sets.
    """
    plan = [(key, spec) for key, spec in ordered(jobs).items() if key[1] in SCHEDULES]
    _check(plan)
    _one_data_set(plan)
    found = by_key(courses)
    with style():
        fig = Figure(figsize=(WIDTH, 3.6))
        axes = fig.subplots(2, len(plan), sharex="col", sharey="row", height_ratios=(1, 2.3), squeeze=False)
        for i, ((dataset, method), spec) in enumerate(plan):
            top, ax = axes[:, i]
            epochs, rates = _rates(spec)
            top.set_title(schedule_label(spec))
            top.plot(epochs, rates, color=OF_SCHEDULES[method]["color"])
            for here in (top, ax):
                here.fill_between(epochs, 0, 1, where=rates < SLOW * spec.optim.lr - 1e-12, transform=here.get_xaxis_transform(),
                                  color=BAND, linewidth=0, zorder=0)
            if method != "at" and (dataset, "at") in found:
                _mean(ax, found[dataset, "at"], "test_robust", color=GREY, linewidth=0.9)
            _course(ax, found.get((dataset, method), []), OF_SCHEDULES[method], absent(courses, dataset, method))
            ax.set_xlim(0, spec.optim.epochs)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0, 0].set(ylabel="learning rate", ylim=(0, None))
        axes[0, 0].yaxis.set_major_locator(MaxNLocator(3))
        axes[1, 0].set_ylabel(_error_label(plan, break_line=True))
        fig.supxlabel(_epoch_label(plan))
        handles = [*_handles(_of(plan, found)), Line2D([], [], color=GREY, linewidth=0.9, label="test images, piecewise"),
                   Patch(color=BAND, label=f"rate below {SLOW:g} × peak")]
        fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    return fig


def scratch_curves(courses: Sequence[Course], jobs: Sequence[Job]) -> Figure:
    """AT from random weights against the share of its training that is done: robust error left, clean test error right, with
    points of a public run on the same images (`public.overfitting_rows`), hollow; the legend states both settings.

    Raises:
        ValueError: AT from random weights is not planned, or on several data sets.
    """
    plan = [(key, spec) for key, spec in ordered(jobs).items() if key[1] == "at_random"]
    _check(plan)
    _one_data_set(plan)
    ((dataset, _), spec), = plan
    group, reference = by_key(courses).get((dataset, "at_random"), []), _reference(dataset)
    with style():
        fig = Figure(figsize=(WIDTH, 3.3))
        robust, clean = fig.subplots(1, 2)
        _course(robust, group, SCRATCH, absent(courses, dataset, "at_random"), share=True)
        if group:
            _lines(clean, group, "test_clean", share=True, color=SCRATCH["color"])
        for ax, key, marker in ((robust, "test_robust_error", "o"), (robust, "train_robust_error", "s"),
                                (clean, "test_clean_error", "o")):
            ax.plot(100 * (reference["epoch"] + 1) / reference["epochs"], 100 * reference[key], marker=marker,
                    linestyle=TRAIN if key.startswith("train") else "-", **THEIRS)
        for ax in (robust, clean):
            ax.set(xlabel="share of the training done (%)", xlim=(0, 102))
            if first_drop(spec):
                ax.axvline(100 * first_drop(spec) / spec.optim.epochs, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
        robust.set(ylabel="robust error (%)", title="under attack")
        clean.set(ylabel="clean error (%)", title="without attack")
        handles = [*(_handles(group, SCRATCH) if group else []), _drop_handle("first drop of the learning rate")]
        if len(reference):
            handles += [Line2D([], [], marker="o", label="public run, test images", **THEIRS),
                        Line2D([], [], marker="s", linestyle=TRAIN, label="public run, training images", **THEIRS)]
        fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
        fig.supxlabel("\n".join(_settings(group, spec, reference)), fontsize=SMALL, color="#333333")
    return fig


def plateau_curves(courses: Sequence[Course], jobs: Sequence[Job]) -> Figure:
    """AT from random weights with a short and a long plateau at the peak rate: robust error by epochs after the first drop of
    the rate, from which on both have the same schedule.

    Raises:
        ValueError: no plateau is planned, or on several data sets.
    """
    plan = [(key, spec) for key, spec in ordered(jobs).items() if key[1] in PLATEAUS]
    _check(plan)
    _one_data_set(plan)
    found = by_key(courses)
    with style():
        fig = Figure(figsize=(WIDTH, 2.9))
        ax = fig.subplots()
        handles = []
        for (dataset, method), spec in plan:
            drop, group = first_drop(spec) or 0.0, found.get((dataset, method), [])
            if group:
                _course(ax, group, OF_PLATEAUS[method], "", shift=drop)
            name = method_label(method).rsplit(", ", 1)[-1]
            handles.append(Line2D([], [], **OF_PLATEAUS[method], label=f"{name}: {drop:g} epochs"
                                  + ("" if group else f" ({absent(courses, dataset, method)})")))
        if not any(key in found for key, _ in plan):
            _say(ax, absent(courses, plan[0][0][0], *PLATEAUS))
            ax.set(xticks=[], yticks=[])
        ax.axvline(0, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
        ax.set(xlabel="epochs after the first drop of the learning rate", ylabel=_error_label(plan))
        fig.legend(handles=[*handles, *_handles(_of(plan, found)), _drop_handle()], loc="outside right center", fontsize=8)
    return fig


def _check(plan) -> None:
    if not plan:
        raise ValueError("expected at least one planned run with test_images to follow, got none; put its method into runs")


def _one_data_set(plan) -> None:
    datasets = unique(d for (d, _), _ in plan)
    if len(datasets) > 1:
        raise ValueError(f"expected one data set, got {', '.join(datasets)}; pass the jobs of one")


def _looks(methods: Sequence[str]) -> dict[str, dict]:
    strangers = [m for m in methods if m not in FOLLOWED]
    spare = [look for look in OTHERS if look not in FOLLOWED.values()]
    return {m: FOLLOWED.get(m) or spare[strangers.index(m) % len(spare)] for m in methods}


def _grid(n: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Panels with common axes, those left over switched off."""
    lines = -(-n // columns)
    fig = Figure(figsize=(WIDTH, 1.75 * lines + 0.8))  # not pyplot's: nothing is shown by itself
    axes = list(fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for i, ax in enumerate(axes):
        if i >= n:
            ax.set_axis_off()
        elif i + columns >= n:  # the lowest of its column
            ax.xaxis.set_tick_params(labelbottom=True)
    return fig, axes


def _epoch_label(plan) -> str:
    return f"epoch of training on {' and '.join(dataset_label(d) for d in unique(d for (d, _), _ in plan))}"


def _error_label(plan, break_line: bool = False) -> str:
    return f"robust error (%){chr(10) if break_line else ', '}{attack_text([spec for _, spec in plan])}"


def _title(name: str, dataset: str, plan) -> str:
    return name if len({d for (d, _), _ in plan}) == 1 else f"{name}\n{dataset_label(dataset)}"


def _label(name: str, dataset: str, several: bool, found: tuple | None, most: int, width: int = 27) -> str:
    """A row's label, in lines broken before a minus or after a comma, with the number of seeds if it is below `most`."""
    parts = name.split(" - ")
    parts = [name] if len(name) <= width else [parts[0], *(f"- {part}" for part in parts[1:])]
    lines: list[str] = []
    for part in parts:
        lines.append("")
        for piece in part.split(", "):
            longer = f"{lines[-1]}, {piece}" if lines[-1] else piece
            lines = [*lines[:-1], longer] if len(longer) <= width else [*lines[:-1], f"{lines[-1]},", piece]
    if several:
        lines.append(dataset_label(dataset))
    if found and found[3] < most:
        tail = f"({found[3]} seed{'s' if found[3] > 1 else ''})"
        lines = [*lines[:-1], f"{lines[-1]} {tail}"] if len(lines[-1]) + 1 + len(tail) <= width else [*lines, tail]
    return "\n".join(lines).replace("- ", "− ")


def _course(ax: Axes, group: Sequence[Course], look: dict, word: str, share: bool = False, shift: float = 0.0) -> None:
    """Robust error of one method's seeds on test and training images, and their best epochs; `word` where there is none."""
    if not group:
        _say(ax, word)
        return
    if "train_robust" in group[0].arrays:
        _lines(ax, group, "train_robust", share, shift, color=look["color"], linestyle=TRAIN, linewidth=1.1)
    _lines(ax, group, "test_robust", share, shift, color=look["color"])
    for c in group:
        best = course.best_epoch(c.epochs)
        ax.plot(_x(c, share, shift)[c.arrays["epoch"] == best], 100 - 100 * course.robust_at(c, best).mean(), linestyle="none",
                marker=look["marker"], color=look["color"], markeredgecolor="black", markeredgewidth=0.7, markersize=5.5,
                zorder=4, label="_best")


def _lines(ax: Axes, group: Sequence[Course], name: str, share: bool = False, shift: float = 0.0, **look) -> None:
    """The mean over seeds, and each seed where there are several."""
    if len(group) > 1:
        for c in group:
            ax.plot(_x(c, share, shift), _error(c, name), **look | {"linewidth": 0.5}, alpha=0.55, label="_seed")
    _mean(ax, group, name, share, shift, **look)


def _mean(ax: Axes, group: Sequence[Course], name: str, share: bool = False, shift: float = 0.0, **look) -> None:
    """Over the epochs that all seeds have."""
    epochs = sorted(set.intersection(*(set(c.arrays["epoch"].tolist()) for c in group)))
    first = group[0]
    x = _x(first, share, shift)[np.isin(first.arrays["epoch"], epochs)]
    ax.plot(x, np.mean([_error(c, name)[np.isin(c.arrays["epoch"], epochs)] for c in group], axis=0), **look, label="_mean")


def _x(c: Course, share: bool, shift: float) -> np.ndarray:
    return c.arrays["epoch"] * (100 / c.spec.optim.epochs if share else 1.0) - shift


def _error(c: Course, name: str) -> np.ndarray:
    return 100 - 100 * c.arrays[name].mean(1)


def _rates(spec: RunSpec) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, as real numbers, and the learning rate there."""
    o, steps = spec.optim, 1000
    factors = np.array([factor(o.schedule, i, steps, o.milestones, o.warmup) for i in range(steps)])
    return np.arange(steps) * o.epochs / steps, o.lr * factors


def _drops(ax: Axes, spec: RunSpec) -> None:
    for m in spec.optim.milestones if spec.optim.schedule == "piecewise" else ():
        ax.axvline(m * spec.optim.epochs, color=GREY, linestyle=":", linewidth=0.9, zorder=1)


def _drop_handle(label: str = "learning rate drops") -> Line2D:
    return Line2D([], [], color=GREY, linestyle=":", linewidth=0.9, label=label)


def _of(plan, found: dict[tuple[str, str], list[Course]]) -> list[Course]:
    """The finished runs of a figure."""
    return [c for key, _ in plan for c in found.get(key, ())]


def _handles(courses: Sequence[Course], look: dict | None = None) -> list[Line2D]:
    """What lines and markers mean, in grey or in the one look of the figure."""
    color, marker = (look["color"], look["marker"]) if look else (PLAIN, "o")
    out = [Line2D([], [], color=color, label="test images"),
           Line2D([], [], color=color, linestyle=TRAIN, linewidth=1.1, label="training images"),
           Line2D([], [], color=color, marker=marker, linestyle="none", markeredgecolor="black", markeredgewidth=0.7,
                  markersize=5.5, label="best on validation images")]
    if len({c.spec.seed for c in courses}) > 1:
        out.append(Line2D([], [], color=color, linewidth=0.5, alpha=0.55, label="single seeds"))
    return out


def _dots(ax: Axes, rows: Sequence[tuple[str, tuple | str]]) -> None:
    """A line for each row: marker and interval in points, or the word that stands for them."""
    ax.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    y, ticks = 0.0, []
    for i, (label, found) in enumerate(rows):
        height = 1.4 * (1 + label.count("\n")) + 1
        if i % 2 == 0:
            ax.axhspan(y, y + height, color="#F5F5F5", linewidth=0, zorder=0)
        ticks.append(y + height / 2)
        if isinstance(found, str):
            ax.annotate(found, (0, ticks[-1]), (4, 0), textcoords="offset points", va="center", fontsize=SMALL, color="#555555")
        else:
            value, low, high, _ = found
            clear = low > 0 or high < 0
            ax.errorbar(100 * value, ticks[-1], xerr=[[100 * (value - low)], [100 * (high - value)]], color="#0072B2", marker="o",
                        markersize=4, markerfacecolor="#0072B2" if clear else "white", elinewidth=1, zorder=3, label="_row")
        y += height
    ax.set_yticks(ticks, [label for label, _ in rows], fontsize=7.5)
    ax.set_ylim(y, 0)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)


def _say(ax: Axes, word: str) -> None:
    ax.text(0.5, 0.9, word, ha="center", va="center", transform=ax.transAxes, color="#555555",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2})


def _reference(dataset: str) -> pd.DataFrame:
    """Points of the public run on the images of `dataset` by the smaller network; none for other images."""
    rows = public.overfitting_rows()
    known = DATASETS.get(dataset, (None, None))[1]
    return rows[(rows["what"] == "epoch") & (rows["dataset"] == known) & (rows["model"] == "PreAct ResNet-18")]


def _settings(group: Sequence[Course], spec: RunSpec, reference: pd.DataFrame) -> list[str]:
    """One line about our runs and one about the public run."""
    images = f"{group[0].train_images:,}" if group else f"{spec.data.train_images:,}" if spec.data.train_images else "all"
    augment = {"none": "no augmentation"}.get(spec.data.augment, spec.data.augment.replace("_", ", "))
    out = [f"Ours: {spec.model.arch}, {images} images of {dataset_label(spec.data.name)}, {augment}, {spec.optim.epochs} epochs, "
           f"trained with PGD-{spec.attack.steps}, measured by {attack_text([spec])}."]
    if len(reference):
        r = reference.iloc[0]
        out.append(f"Public run ({r['source']}): {r['model']}, {r['epochs']} epochs, "
                   f"learning rate {r['rates']}, measured by PGD-10 at 8/255 after its last step; {r['settings']}.")
    return [line for text in out for line in textwrap.wrap(text, 125)]
