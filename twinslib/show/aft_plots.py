"""Figures of adversarial fine-tuning as functions of frames (`networks.frame`), jobs and rows; nothing is computed anew.

Accuracies are in percent; bars are the 95 % intervals of `accuracy.estimates`: over test images of one seed, else over seeds.
Drawn are networks trained and attacked in the maximum norm.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..base.collapse import NEVER, collapsed
from ..evidence import accuracy
from ..evidence.networks import images_passed, lost
from ..specs import labels
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, method_label, unique
from ..specs.schedules import climb
from ..specs.strength import strength
from ..studies.finetuning import STUDY
from .embedding import Projection
from .figures import DOT, GREY, HOLLOW, LOOKS, PLAIN, figure, looks, nothing
from .forest import forest, row_label
from .overfit_plots import rates

OTHER_SCHEDULE = {"color": "#0072B2", "marker": "o"}
CLASSES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#CDBE00", "#000000", "#8C510A", "#999999")
PASSES = "passes over the training set (forward and backward together are one)"


def schedule_curves(jobs: Sequence[Job]) -> Figure:
    """Learning rate over its peak by epoch: a panel for AFT and for each other schedule, with AFT's behind it in grey; where the
    radius of the attack climbs too, a thin dashed line for that."""
    plan, marks, steps = {}, [], 1000
    for job in jobs:
        part = dict(job.labels).get("part")
        if job.study == STUDY and (part == "schedule" or (part == "main" and job.spec.method.name == "aft")):
            plan.setdefault(job.spec.method.name, job.spec)
    if not plan:
        raise ValueError("expected AFT or another schedule among the jobs, got none; pass the jobs of the whole plan")
    for name, spec in plan.items():
        drawn = {"behind": plan.get("aft"), "other": spec} if name != "aft" else {"aft": spec}
        for line, s in drawn.items():
            if s:
                marks.append(rates(s).assign(column=name, line=line, y=lambda marks, s=s: marks["y"] / s.optim.lr))
        if spec.attack.eps_warmup:
            climbs = [climb(k, steps, spec.attack.eps_warmup) for k in range(steps)]
            x = np.linspace(0, spec.optim.epochs, steps)
            marks.append(pd.DataFrame({"x": x, "y": climbs, "column": name, "line": "radius"}))
    marks = pd.concat(marks).assign(kind="plain")
    shown = {"aft": LOOKS["aft"], "other": OTHER_SCHEDULE, "behind": {"color": GREY, "linewidth": 0.9},
             "radius": {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2))}}
    names = {"aft": "AFT", "other": "other schedule", "behind": "AFT, for comparison", "radius": "ε over its final value"}
    titles = {m: method_label(m).removeprefix("AFT, ") for m in plan}
    if "aft" in plan and plan["aft"].optim.schedule == "slow_fast":
        titles["aft"] = "AFT: slow start, fast decay"
    fig = figure(marks, shown, columns=titles, wrap=3, height=1.3, xlabel="epoch of fine-tuning",
                 ylabel="learning rate over its peak", per_line=4,
                 entries=[(text, shown[k] | {"marker": ""}) for k, text in names.items() if k in set(marks["line"])])
    fig.axes[0].set(xlim=(0, max(spec.optim.epochs for spec in plan.values())), ylim=(0, 1.06), yticks=(0, 0.5, 1))
    return fig


def cost_plot(frame: pd.DataFrame, dataset: str, *, train_images: int = 0) -> Figure:
    """Clean and robust accuracy (`shared_attack`) against passes over the training set: filled with the start given, hollow with
    the natural training of the start where that is ours; black edges mark the epoch best on validation images, joined with the
    last one.

    Args:
        train_images: of runs whose `train_images` is 0, which stands for all.
    Raises:
        ValueError: such runs are there and `train_images` is not given.
    """
    rows = _of(frame, dataset, "main")
    methods, gone, rows = unique(rows["method"]), lost(rows), rows.dropna(subset="value")
    given = _known(rows["train_images"], train_images, "train_images")
    key = shared_attack(rows)
    found = _columns(means(rows.assign(given=rows["images_given"] / given, whole=rows["images_whole"] / given)), key)
    found = found.assign(line=found["method"], x=found["given"])
    bare = found.assign(low=np.nan, high=np.nan)
    start = bare[bare["whole"] > bare["given"]]  # not where it is unknown
    front = [mine.iloc[pareto(mine["given"], mine["value"])].assign(line="front") for _, mine in bare.groupby("column")]
    marks = pd.concat([bare.sort_values("given").assign(kind="dashed"), *front,
                       start.assign(x=start["whole"], xlow=start["given"], xhigh=start["whole"], kind="points hollow"),
                       found.assign(kind=found["at"].map({"best": "best", "last": "points"}))])
    shown = {m: look | {"markersize": 5} for m, look in looks(methods).items()}
    front = {"color": GREY, "linewidth": 0.8, "drawstyle": "steps-post", "zorder": 1}
    seen = set(found.loc[found["column"] == "robust", "method"])
    entries = [(method_label(m) + ("" if m in seen else f" ({gone[m]})" if m in gone else f" (right: {NOT_RUN})"),
                look | {"linestyle": "none"}) for m, look in shown.items()]
    entries += [("last epoch, start given", DOT),
                ("best on validation images", DOT | {"color": "#BBBBBB", "markeredgecolor": "black"}),
                ("epochs of the same runs", {"color": PLAIN, "linestyle": "--", "linewidth": 0.8}),
                ("training of the start included", HOLLOW | {"linestyle": "-", "linewidth": 0.5}),
                ("best at its cost, start given", front)]
    return figure(marks, shown | {"front": front}, columns=_titles(found, key), y="value", scale=100, log="x", longest=2000,
                  words=_words(("clean", "robust"), found, gone), height=3.2, above=1.3, sharey=False, ylabel="accuracy (%)",
                  xlabel=f"{PASSES}, {dataset_label(dataset)}", entries=entries)


def schedule_plot(frame: pd.DataFrame, dataset: str, methods: Sequence[str]) -> Figure:
    """Clean and robust accuracy at the end of AFT and under each other schedule, a row each with the learning rate chosen for it,
    finished or not; a line where AFT is."""
    rows = _of(frame, dataset, "main", "schedule")
    rows = rows[(rows["at"] == "last") & ((rows["part"] == "schedule") | (rows["method"] == "aft"))]
    gone, rows = lost(rows), rows.dropna(subset="value")
    key, names = shared_attack(rows), {}
    marks = _columns(means(rows), key)
    for method in methods:
        lr = " or ".join(f"{x:g}" for x in unique(rows.loc[rows["method"] == method, "lr"]))
        names[method] = row_label(method_label(method) + (f", lr {lr}" if lr else ""),
                                  marks.loc[marks["method"] == method, "seeds"],
                                  marks["seeds"])
    titles = _titles(marks, key)
    marks = marks.assign(x=100 * marks["value"], low=100 * marks["low"], high=100 * marks["high"], row=marks["method"])
    missing = pd.DataFrame({"row": m, "column": c, "absent": gone.get(m, NOT_RUN)} for m in methods for c in ("clean", "robust"))
    aft = marks[marks["method"] == "aft"].assign(row="", kind="upright", line="rule")
    marks = pd.concat([marks.assign(line=marks["method"].map(lambda m: "aft" if m == "aft" else "other")), missing, aft])
    return forest(marks, names, {"aft": LOOKS["aft"], "other": OTHER_SCHEDULE, "rule": {"color": GREY, "linewidth": 0.8}},
                  titles, zero=False, sharex=False, xlabel=f"accuracy on {dataset_label(dataset)} at the last epoch (%)")


def data_width_plot(frame: pd.DataFrame, dataset: str, own_width: int, *, train_images: int = 0) -> Figure:
    """Robust accuracy, and clean accuracy in lighter colour, against the number of training images and the width, of AFT and of
    the same training from random weights, at the last epoch.

    The runs with all images and own width count only for the seeds that the others have, so that lines stay with their seeds.

    Args:
        own_width: of the arch, for runs whose `width` is 0. train_images: likewise of runs whose `train_images` is 0.
    """
    shown, own = looks(("aft", "aft_random")), {"train_images": train_images, "width": own_width}
    every = _of(frame, dataset, "main", "fraction", "width")
    every = every[every["method"].isin(list(shown)) & (every["at"] == "last")]
    marks, gone, titles = [pd.DataFrame({"x": [], "value": [], "method": "", "column": ""})], {}, {}
    rows = every.dropna(subset="value")
    key = shared_attack(rows)
    for part, column in (("fraction", "train_images"), ("width", "width")):
        some, full = rows[rows["part"] == part], rows[rows["part"] == "main"]
        here = pd.concat([some, full[full["seed"].isin(some["seed"])] if len(some) else full])
        here = here.assign(x=_known(here[column], own[column], column))
        here = here.drop_duplicates(["x", "method", "seed", "attack", "eps", "n"])  # the full size may be in both
        found = [_columns(means(mine), key).assign(x=x) for x, mine in here.groupby("x")]
        titles[part] = _basis(pd.concat(found)) if found else ""
        marks += [mine.assign(kind=mine["column"].map({"clean": "faint", "robust": ""}), column=part) for mine in found]
        missing = every[every["value"].isna() & (every["part"] == part)]
        sizes = zip(missing["method"], missing[column], strict=True)
        gone["", part] = [f"{method_label(m)}, {size or own[column]:,}" for m, size in sizes]
    marks = pd.concat(marks)
    beside = marks["method"].map({"aft": 1.0, "aft_random": 1.02}).astype(float)  # so that bars do not hide each other
    fig = figure(marks.assign(x=marks["x"] * beside), shown, columns=titles, y="value", line="method", scale=100, gone=gone,
                 words=_words(titles, marks, lost(every)), sharex=False, ylabel=f"accuracy on {dataset_label(dataset)} (%)",
                 per_line=2, entries=[*((f"{method_label(m)}: {_header(key)}", look) for m, look in shown.items()),
                                      *((f"{method_label(m)}: clean", look | {"alpha": 0.4}) for m, look in shown.items())])
    for ax, part, label in zip(fig.axes, titles, ("training images", "width (channels of the first stage)"), strict=True):
        ax.set(xscale="log", xlabel=label)
        sizes = sorted(unique(marks.loc[marks["column"] == part, "x"]))
        ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        ax.minorticks_off()
    return fig


def embedding_plot(projections: Sequence[tuple[int, Projection]], class_names: Sequence[str]) -> Figure:
    """Test images in the plane, a panel for each epoch: dots clean, crosses attacked, a colour for each class (grey from the
    eleventh on); above how faithful the picture is, below `Projection.agreement`."""
    if not projections:
        return nothing(f"{NOT_RUN} or {DIVERGED}")
    present = sorted({int(c) for _, p in projections for c in np.unique(p.labels)})
    dot = {"marker": "o", "markersize": 2.8, "markeredgewidth": 0, "linestyle": "none"}
    shown = {c: dot | {"color": color} for c, color in itertools.zip_longest(present, CLASSES[:len(present)], fillvalue=GREY)}
    when = {0: "before: ", len(projections) - 1: "after: "} if len(projections) > 1 else {}
    marks = [pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "line": p.labels.astype(int), "kind": kind, "column": i})
             for i, (_, p) in enumerate(projections) for places, kind in ((p.clean, ""), (p.attacked, "cross"))]
    entries = [(class_names[c], look | {"markersize": 4}) for c, look in list(shown.items())[:len(CLASSES)]]
    entries += [("other classes", DOT | {"color": GREY})] * (len(present) > len(CLASSES))
    fig = figure(pd.concat(marks), shown, sharex=False, sharey=False, height=2.7, per_line=6,
                 columns={i: f"{when.get(i, '')}epoch {epoch}\ntrustworthiness {p.trustworthiness:.2f}"
                          for i, (epoch, p) in enumerate(projections)},
                 entries=[*entries, ("clean", DOT | {"color": PLAIN}), ("attacked", DOT | {"color": PLAIN, "marker": "x"})])
    for ax, (_, p) in zip(fig.axes, projections, strict=True):
        own = "own class nearest:\n{:.0f} % of clean, {:.0f} % of attacked".format(*(100 * share for share in p.agreement))
        ax.set(xticks=[], yticks=[], box_aspect=1)
        ax.set_xlabel(own, fontsize=8)
        ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.6)
    return fig


def course_plot(store_rows: Mapping[str, Sequence[dict]], train_images: int) -> Figure:
    """Robust accuracy on validation images while training, against passes over the training set with the start given; a cross
    where a run collapsed (`collapsed`, for ten classes and 500 images), the legend says which diverged.

    Args:
        store_rows: method -> per-epoch rows of its run (`networks.rows_of`), none where it is not finished.
        train_images: that a pass goes over.
    """
    shown, marks, entries = looks(store_rows), [], []
    for method, rows in store_rows.items():
        measured = [(images_passed(rows[:i]) / train_images, row["val_robust_acc"], row["epoch"])
                    for i, row in enumerate(rows, start=1) if "val_robust_acc" in row]
        mine = pd.DataFrame(measured, columns=["x", "y", "epoch"]).assign(line=method)
        found, word = collapsed(rows), rows[-1].get("absent", "") if rows else NOT_RUN
        never = found is not None and found.kind == NEVER
        word = word or (NEVER if never else "" if measured else NOT_RUN)
        entries.append((method_label(method) + (f" ({word})" if word else ""), shown[method]))
        marks += [mine, mine[mine["epoch"] == (found.epoch if found and not never else None)].assign(line="collapsed")]
    marks = pd.concat(marks).assign(column="")
    cross = {"linestyle": "none", "marker": "x", "color": "black", "markersize": 8, "markeredgewidth": 1.6, "zorder": 4}
    return figure(marks, {m: look | {"markersize": 3} for m, look in shown.items()} | {"collapsed": cross}, columns={"": ""},
                  scale=100,
                  log="x", longest=2000, height=2.3, xlabel=PASSES, ylabel="robust accuracy on validation images (%)", per_line=1,
                  entries=entries + [("collapsed", cross)] * ("collapsed" in set(marks["line"])), loc="outside right center")


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method, `at`, attack and eps: `accuracy.estimates` (the mean where there are several seeds), the number of
    seeds, and means over them of the columns of passes, if `rows` has them."""
    key, costs = ["method", "at", "attack", "eps"], [c for c in ("given", "whole") if c in rows]
    out = [accuracy.one_line(accuracy.estimates(mine.assign(metric="accuracy", images=mine["n"]))).assign(at=at)
           for at, mine in rows.groupby("at", sort=False)]
    if not out:
        return pd.DataFrame(columns=[*key, "n", "value", "low", "high", "seeds", *costs])
    found = pd.concat(out, ignore_index=True)
    found["seeds"] = found["seed"].str.extract(r"mean of (\d+)", expand=False).fillna("1").astype(int)
    found[["low", "high"]] = found[["low", "high"]].clip(0, 1)
    return found.merge(rows.groupby(key)[costs].mean().reset_index(), on=key) if costs else found


def shared_attack(rows: pd.DataFrame) -> tuple[str, float] | None:
    """(attack, eps) that most methods and sizes of `rows` have, of several the strongest at the largest eps; None without any."""
    robust = rows[rows["attack"] != "none"].drop_duplicates(["attack", "eps", "method", "part", "train_images", "width"])
    counts = robust.value_counts(["attack", "eps"])
    return max(counts.keys(), key=lambda k: (counts[k], strength(k[0]), k[1]), default=None)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats in value at the same or lower cost, from cheap to dear.

    >>> pareto([3, 1, 2, 2], [9, 5, 4, 7])
    [1, 3, 0]
    """
    costs, values = np.asarray(costs, float), np.asarray(values, float)
    front: list[int] = []
    for i in np.lexsort((-values, costs)):
        if not front or values[i] > values[front[-1]]:
            front.append(int(i))
    return front


def _of(frame: pd.DataFrame, dataset: str, *parts: str) -> pd.DataFrame:
    """Rows of trained networks of these parts, in the maximum norm."""
    return frame[(frame["dataset"] == dataset) & frame["part"].isin(parts) & frame["at"].isin(("best", "last"))
                 & (frame["trained_threat"] == "linf") & frame["threat"].isin(("linf", "none"))]


def _columns(found: pd.DataFrame, key: tuple[str, float] | None) -> pd.DataFrame:
    """Of `means` those that are shown, with the panel that each belongs to."""
    robust = (found["attack"] == key[0]) & (found["eps"] == key[1]) if key else pd.Series(False, found.index)
    column = robust.map({True: "robust", False: "clean"})
    return found.assign(column=column)[robust | (found["attack"] == "none")]


def _titles(found: pd.DataFrame, key: tuple[str, float] | None) -> dict[str, str]:
    shown = _columns(found, key)
    return {c: "\n".join(filter(None, (text, _basis(shown[shown["column"] == c])))) for c, text in (("clean", "clean"),
                                                                                                 ("robust", _header(key)))}


def _words(columns: Iterable[str], drawn: pd.DataFrame, gone: Mapping[str, str]) -> dict[tuple[str, str], str]:
    return {("", c): next(iter(gone.values()), NOT_RUN) for c in columns if c not in set(drawn["column"])}


def _known(values: pd.Series, own: int, name: str) -> pd.Series:
    """With `own` in the place of 0, which stands for it."""
    if own <= 0 and (values == 0).any():
        raise ValueError(f"expected {name} above 0 for runs that name none, got {own}; pass the number of the data set or arch")
    return values.where(values > 0, own)


def _header(key: tuple[str, float] | None) -> str:
    return labels.header(key[0], "linf", key[1]) if key else "robust"


def _basis(panel: pd.DataFrame) -> str:
    """A line for titles: images and seeds."""
    if panel.empty:
        return ""
    images, seeds = (" to ".join(f"{x:,}" for x in unique((panel[c].min(), panel[c].max()))) for c in ("n", "seeds"))
    return f"{images} test images, " + ("1 seed" if seeds == "1" else f"mean of {seeds} seeds")
