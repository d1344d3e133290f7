"""Figures of adversarial fine-tuning as functions of frames (`networks.frame`), jobs and rows; nothing is computed anew.

Accuracies are in percent; bars are the 95 % intervals of `networks.averages`: over test images of one seed, else over seeds.
Drawn are networks trained and attacked in the maximum norm.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..base.collapse import NEVER, collapsed
from ..evidence.accuracy import lost
from ..evidence.networks import averages, images_passed, known
from ..specs import labels
from ..specs.choices import own_width
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, method_label, unique
from ..specs.schedules import climb
from ..specs.strength import strength
from ..studies.finetuning import STUDY
from .embedding import Projection
from .figures import DOT, GREY, HOLLOW, LOOKS, PLAIN, figure, looks, nothing
from .forest import forest, row_label
from .overfit_tables import rates

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


def cost_plot(frame: pd.DataFrame, dataset: str) -> Figure:
    """Clean and robust accuracy (`shared_attack`) against passes over the training set: filled with the start given, hollow with
    the natural training of the start where that is ours; black edges mark the epoch best on validation images, joined with the
    last one; in grey those that no other beats at the same or lower cost."""
    rows = _of(frame, dataset, "main")
    methods, gone, rows = unique(rows["method"]), lost(rows, "method"), rows.dropna(subset="value")
    rows = rows.assign(given=rows["images_given"] / rows["train_images"], whole=rows["images_whole"] / rows["train_images"])
    costs = rows.groupby(["method", "at", "attack", "eps"])[["given", "whole"]].mean().reset_index()
    found, titles = _panels(rows)
    found = found.assign(line=found["method"]).merge(costs, how="left")
    bare = found.assign(x=found["given"], low=np.nan, high=np.nan)
    start = bare[bare["whole"] > bare["given"]]  # not where it is unknown
    dear = bare.sort_values(["x", "value"], ascending=[True, False], kind="stable")
    best = dear["value"] > dear.groupby("column")["value"].transform(lambda values: values.cummax().shift(fill_value=-1))
    front = dear[best].sort_values("column", kind="stable").assign(line="front")
    marks = pd.concat([bare.sort_values("given").assign(kind="dashed"), front,
                       start.assign(x=start["whole"], xlow=start["given"], xhigh=start["whole"], kind="points hollow"),
                       found.assign(x=found["given"], kind=found["at"].map({"best": "best", "last": "points"}))])
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
    return figure(marks, shown | {"front": front}, columns=titles, y="value", scale=100, log="x", longest=2000,
                  words=_words(titles, found, gone), height=3.2, above=1.3, sharey=False, ylabel="accuracy (%)",
                  xlabel=f"{PASSES}, {dataset_label(dataset)}", entries=entries)


def schedule_plot(frame: pd.DataFrame, dataset: str, methods: Sequence[str]) -> Figure:
    """Clean and robust accuracy at the end of AFT and under each other schedule, a row each with the learning rate chosen for it,
    finished or not; a line where AFT is."""
    rows = _of(frame, dataset, "main", "schedule")
    rows = rows[(rows["at"] == "last") & ((rows["part"] == "schedule") | (rows["method"] == "aft"))]
    gone, rows, names = lost(rows, "method"), rows.dropna(subset="value"), {}
    marks, titles = _panels(rows)
    for method in methods:
        lr = " or ".join(f"{x:g}" for x in unique(rows.loc[rows["method"] == method, "lr"]))
        seeds = marks.loc[marks["method"] == method, "seeds"]
        names[method] = row_label(method_label(method) + (f", lr {lr}" if lr else ""), seeds, marks["seeds"])
    marks = marks.assign(x=100 * marks["value"], low=100 * marks["low"], high=100 * marks["high"], row=marks["method"])
    missing = pd.DataFrame({"row": m, "column": c, "absent": gone.get(m, NOT_RUN)} for m in methods for c in titles)
    aft = marks[marks["method"] == "aft"].assign(row="", kind="upright", line="rule")
    marks = pd.concat([marks.assign(line=marks["method"].map(lambda m: "aft" if m == "aft" else "other")), missing, aft])
    return forest(marks, names, {"aft": LOOKS["aft"], "other": OTHER_SCHEDULE, "rule": {"color": GREY, "linewidth": 0.8}},
                  titles, zero=False, sharex=False, xlabel=f"accuracy on {dataset_label(dataset)} at the last epoch (%)")


def data_width_plot(frame: pd.DataFrame, dataset: str) -> Figure:
    """Robust accuracy, and clean accuracy in lighter colour, against the number of training images and the width, of AFT and of
    the same training from random weights, at the last epoch.

    The runs with all images and own width count only for the seeds that the others have, so that lines stay with their seeds.
    """
    shown, every = looks(("aft", "aft_random")), _of(frame, dataset, "main", "fraction", "width")
    every = every[every["method"].isin(list(shown)) & (every["at"] == "last")]
    every["width"] = [width or own_width(arch) for width, arch in zip(every["width"], every["arch"], strict=True)]
    rows, marks, gone, titles = every.dropna(subset="value"), [], {}, {}
    key = shared_attack(rows)
    for part, column in (("fraction", "train_images"), ("width", "width")):
        some, full = rows[rows["part"] == part], rows[rows["part"] == "main"]
        here = pd.concat([some, full[full["seed"].isin(some["seed"])] if len(some) else full])
        here = here.drop_duplicates([column, "method", "seed", "attack", "eps", "n"])  # the full size may be in both
        found = [_panels(mine, key)[0].assign(x=x, part=part) for x, mine in here.groupby(column)]
        titles[part] = _basis(pd.concat(found)) if found else ""
        marks += found
        missing = every[every["value"].isna() & (every["part"] == part)]
        gone["", part] = [f"{method_label(m)}, {size:,}" for m, size in zip(missing["method"], missing[column], strict=True)]
    marks = pd.concat(marks or [_panels(rows)[0].assign(x=0, part="")])
    marks = marks.assign(kind=marks["column"].map({"clean": "faint", "robust": ""}), column=marks["part"])
    beside = marks["method"].map({"aft": 1.0, "aft_random": 1.02}).astype(float)  # so that bars do not hide each other
    fig = figure(marks.assign(x=marks["x"] * beside), shown, columns=titles, y="value", line="method", scale=100, gone=gone,
                 words=_words(titles, marks, lost(every, "method")), sharex=False, per_line=2,
                 ylabel=f"accuracy on {dataset_label(dataset)} (%)",
                 entries=[*((f"{method_label(m)}: {_header(key)}", look) for m, look in shown.items()),
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
                  scale=100, log="x", longest=2000, height=2.3, xlabel=PASSES, per_line=1, loc="outside right center",
                  ylabel="robust accuracy on validation images (%)",
                  entries=entries + [("collapsed", cross)] * ("collapsed" in set(marks["line"])))


def shared_attack(rows: pd.DataFrame) -> tuple[str, float] | None:
    """(attack, eps) that most methods and sizes of `rows` have, of several the strongest at the largest eps; None without any."""
    robust = rows[rows["attack"] != "none"].drop_duplicates(["attack", "eps", "method", "part", "train_images", "width"])
    counts = robust.value_counts(["attack", "eps"])
    return max(counts.keys(), key=lambda k: (counts[k], strength(k[0]), k[1]), default=None)


def _of(frame: pd.DataFrame, dataset: str, *parts: str) -> pd.DataFrame:
    """Lines of trained networks of these parts, in the maximum norm."""
    return known(frame[(frame["dataset"] == dataset) & frame["part"].isin(parts) & frame["at"].isin(("best", "last"))
                       & (frame["trained_threat"] == "linf") & frame["threat"].isin(("linf", "none"))])


def _panels(rows: pd.DataFrame, key: tuple[str, float] | None = None) -> tuple[pd.DataFrame, dict[str, str]]:
    """`averages` of measured lines without attack (column clean) and under `key`, by default `shared_attack` (robust); and the
    titles of both, with what they stand on."""
    key, found = key or shared_attack(rows), averages(rows, ["method", "at"])
    robust = (found["attack"] == key[0]) & (found["eps"] == key[1]) if key else pd.Series(False, found.index)
    shown = found.assign(column=robust.map({True: "robust", False: "clean"}))[robust | (found["attack"] == "none")]
    return shown, {c: "\n".join(filter(None, (text, _basis(shown[shown["column"] == c]))))
                   for c, text in (("clean", "clean"), ("robust", _header(key)))}


def _words(columns: Iterable[str], drawn: pd.DataFrame, gone: Mapping[str, str]) -> dict[tuple[str, str], str]:
    return {("", c): next(iter(gone.values()), NOT_RUN) for c in columns if c not in set(drawn["column"])}


def _header(key: tuple[str, float] | None) -> str:
    return labels.header(key[0], "linf", key[1]) if key else "robust"


def _basis(panel: pd.DataFrame) -> str:
    """A line for titles: images and seeds."""
    if panel.empty:
        return ""
    images, seeds = (" to ".join(f"{x:,}" for x in unique((panel[c].min(), panel[c].max()))) for c in ("n", "seeds"))
    return f"{images} test images, " + ("1 seed" if seeds == "1" else f"mean of {seeds} seeds")
