"""Figures of adversarial fine-tuning as functions of frames (`networks.frame`), jobs and rows; nothing is computed anew.

Accuracies are in percent; bars are the 95 % intervals of `networks.averages`: over test images of one seed, else over seeds.
Drawn are networks trained and attacked in the maximum norm.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..base.collapse import NEVER, collapsed
from ..base.stats import clopper_pearson
from ..evidence.accuracy import lost
from ..evidence.networks import averages, images_passed, known
from ..specs import labels
from ..specs.choices import own_width
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, method_label, unique
from ..specs.schedules import climb
from ..specs.strength import strength
from ..studies.finetuning import STUDY
from . import aft_tables
from .embedding import Projection
from .figures import GREY, LOOKS, figure, log_axis, looks, nothing, stands_on
from .forest import forest
from .overfit_tables import rates

OTHER_SCHEDULE = {"color": "#0072B2", "marker": "o"}
ENDS = {"last": OTHER_SCHEDULE, "best": {"color": "#D55E00", "marker": "D", "markersize": 3.6}}
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
    """What each method of the main part cost and what it reached, a row each from the cheapest: passes over the training set,
    hollow with the natural training of the start where that is ours; clean and robust accuracy (`shared_attack`). A second mark
    is the network of the epoch that is best on validation images."""
    rows = _of(frame, dataset, "main")
    gone, names = lost(rows, "method"), {m: method_label(m) for m in unique(rows["method"])}
    if rows["value"].isna().all():
        return nothing(next(iter(gone.values()), NOT_RUN))
    rows = rows.dropna(subset="value").assign(given=lambda f: f["images_given"] / f["train_images"],
                                              whole=lambda f: f["images_whole"] / f["train_images"])
    costs = rows.drop_duplicates(["method", "at", "seed"]).groupby(["method", "at"])[["given", "whole"]].mean().reset_index()
    costs = costs.assign(column="passes", x=costs["given"])
    start = costs[costs["whole"] > costs["given"]]  # not where it is unknown
    found, titles = _panels(rows)
    values = found.assign(x=100 * found["value"], low=100 * found["low"], high=100 * found["high"])
    marks = pd.concat([costs, start.assign(x=start["whole"], kind="points hollow"), values])
    missing = [{"row": m, "column": c, "absent": word} for m, word in gone.items() for c in ("passes", *titles)]
    marks = pd.concat([marks.assign(row=marks["method"], line=marks["at"], lane=marks["at"]), pd.DataFrame(missing)])
    cheapest = costs.groupby("method")["given"].min()
    order = {m: names[m] for m in sorted(names, key=lambda m: cheapest.get(m, np.inf))}
    entries = [("last epoch", ENDS["last"]), ("best epoch on validation images", ENDS["best"]),
               ("training of the start included", ENDS["last"] | {"markerfacecolor": "white"})]
    entries = [(text, look | {"linestyle": "none"}) for text, look in entries]
    panels = {"passes": "passes over the\ntraining set"}
    panels |= {c: text.replace("\n", " (%)\n").replace(", ", ",\n") for c, text in titles.items()}
    fig = forest(marks.sort_values("lane", ascending=False, kind="stable"), order, ENDS, panels, zero=False, sharex=False,
                 entries=entries, xlabel=f"{dataset_label(dataset)}; bars: 95 % intervals")
    log_axis(fig.axes[0].xaxis, 2000)
    return fig


def schedule_plot(frame: pd.DataFrame, dataset: str, methods: Sequence[str]) -> Figure:
    """Accuracy at the end of AFT under each other schedule minus that under its own, paired on test images and seeds, clean on
    the left, the strongest PGD on the right; a row each with the learning rate chosen for it, finished or not. A star marks what
    was trained in another precision than AFT."""
    rows = _of(frame, dataset, "main", "schedule")
    rows = rows[(rows["at"] == "last") & ((rows["part"] == "schedule") | (rows["method"] == "aft"))]
    gone, rows, marks, names = lost(rows, "method"), rows.dropna(subset="value"), [], {}
    each = {m: rows[rows["method"] == m] for m in methods}
    ours, attack = each.get("aft", rows[:0]), aft_tables.strongest_pgd(rows[rows["part"] == "schedule"])
    usual, others = set(ours["precision"]), set()
    for method in (m for m in methods if m != "aft"):
        lr, other = " or ".join(f"{x:g}" for x in unique(each[method]["lr"])), set(each[method]["precision"]) - usual
        others |= other if usual else set()
        names[method] = method_label(method).removeprefix("AFT, ") + (f", lr {lr}" if lr else "") + " *" * bool(usual and other)
        word = gone.get(method, gone.get("aft", NOT_RUN))
        for column, name in (("clean", "none"), ("robust", attack)):
            found = aft_tables.difference(each[method], ours, name)
            numbers = [100 * x for x in found[2:5]] if found.seeds else [np.nan] * 3
            marks.append([method, column, "other", *numbers, found.images if found.seeds else 0, found.seeds, word])
    marks = pd.DataFrame(marks, columns=["row", "column", "line", "x", "low", "high", "n", "seeds", "absent"])
    rate = " or ".join(f"{x:g}" for x in unique(ours["lr"]))
    eps = next(iter(rows.loc[rows["attack"] == attack, "eps"]), None)
    note = f"{dataset_label(dataset)}: the same {stands_on(marks['n'], marks['seeds'])}".removesuffix(": the same ")
    if others:
        note += f"\n* trained in {' or '.join(sorted(others))}, AFT in {' or '.join(sorted(usual))}: differs in that too"
    fig = forest(marks, names, {"other": OTHER_SCHEDULE}, {"clean": "clean", "robust": _header((attack, eps) if eps else None)},
                 xlabel=f"points above AFT with its own schedule{f', lr {rate}' if rate else ''}, last epoch; 95 % intervals",
                 note=note)
    for ax in fig.axes:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return fig


def data_width_plot(frame: pd.DataFrame, dataset: str) -> Figure:
    """Clean and robust accuracy against the number of training images and the width, of AFT and of the same training from random
    weights, at the last epoch.

    The runs with all images and own width count only for the seeds that the others have, so that lines stay with their seeds.
    """
    shown, every = looks(("aft", "aft_random")), _of(frame, dataset, "main", "fraction", "width")
    every = every[every["method"].isin(list(shown)) & (every["at"] == "last")]
    every["width"] = [width or own_width(arch) for width, arch in zip(every["width"], every["arch"], strict=True)]
    rows = every.dropna(subset="value")
    marks = [_panels(rows[:0])[0].assign(x=0.0, part="")]
    key, parts = shared_attack(rows), {"fraction": "train_images", "width": "width"}
    for part, column in parts.items():
        some, full = rows[rows["part"] == part], rows[rows["part"] == "main"]
        here = pd.concat([some, full[full["seed"].isin(some["seed"])] if len(some) else full])
        here = here.drop_duplicates([column, "method", "seed", "attack", "eps", "n"])  # the full size may be in both
        marks += [_panels(mine, key)[0].assign(x=x, part=part) for x, mine in here.groupby(column)]
        gone = every[every["value"].isna() & (every["part"] == part)]
        sizes = gone["method"].map(method_label) + gone[column].map(", {:,}".format)
        marks.append(gone[["method", "part", "absent"]].assign(column="robust", name=sizes))
    marks = pd.concat(marks)
    beside = marks["method"].map({"aft": 1.0, "aft_random": 1.02}).astype(float)  # so that bars do not hide each other
    panels = {"clean": "clean (%)", "robust": f"{_header(key)} (%)"}
    word = next(iter(lost(every, "method").values()), NOT_RUN)
    drawn = marks.dropna(subset="value")
    there = set(zip(drawn["column"], drawn["part"], strict=True))
    fig = figure(marks.assign(row=marks["column"], column=marks["part"], x=marks["x"] * beside), shown, y="value", line="method",
                 rows=panels, columns=dict.fromkeys(parts, ""), scale=100, log="x", ticks=marks["x"].dropna(), height=1.5,
                 words={(r, c): word for r in panels for c in parts if (r, c) not in there}, sharex="col", sharey="row",
                 note=f"{dataset_label(dataset)}: {stands_on(marks['n'], marks['seeds'])}; bars: 95 % intervals",
                 entries=[(method_label(m), look) for m, look in shown.items()])
    for ax, label in zip(fig.axes[-2:], ("training images", "width (channels of the first stage)"), strict=True):
        ax.set_xlabel(label)
    return fig


def embedding_plot(projections: Sequence[tuple[int, Projection]]) -> Figure:
    """Test images in the plane, a panel for each epoch: a dot is a clean image, from which a line leads to the cross of the same
    image attacked; above how faithful the picture is, below `Projection.agreement`."""
    if not projections:
        return nothing(f"{NOT_RUN} or {DIVERGED}")
    shown = {"clean": {"color": "#0072B2", "marker": "o", "markersize": 2.8, "markeredgewidth": 0, "linestyle": "none"},
             "attacked": {"color": "#D55E00", "marker": "x", "markersize": 3.4, "markeredgewidth": 0.8, "linestyle": "none"},
             "way": {"color": GREY, "linewidth": 0.5, "marker": "", "zorder": 1}}
    when = {0: "before: ", len(projections) - 1: "after: "} if len(projections) > 1 else {}
    marks = []
    for i, (_, p) in enumerate(projections):
        ways = np.stack([p.clean, p.attacked, np.full_like(p.clean, np.nan)], axis=1).reshape(-1, 2)  # a gap after each
        marks += [pd.DataFrame(places, columns=["x", "y"]).assign(line=line, column=i)
                  for line, places in (("way", ways), ("clean", p.clean), ("attacked", p.attacked))]
    fig = figure(pd.concat(marks), shown, sharex=False, sharey=False, height=2.7, note=stands_on([len(projections[0][1].labels)]),
                 columns={i: f"{when.get(i, '')}epoch {epoch}\ntrustworthiness {p.trustworthiness:.2f}"
                          for i, (epoch, p) in enumerate(projections)},
                 entries=[("clean", shown["clean"]), ("attacked", shown["attacked"]), ("the same image", shown["way"])])
    for ax, (_, p) in zip(fig.axes, projections, strict=True):
        own = "own class nearest:\n{:.0f} % of clean, {:.0f} % of attacked".format(*(100 * share for share in p.agreement))
        ax.set(xticks=[], yticks=[], box_aspect=1)
        ax.set_xlabel(own, fontsize=8)
        ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.6)
    return fig


def course_plot(store_rows: Mapping[str, Sequence[dict]], train_images: int, val_images: int) -> Figure:
    """Robust accuracy on validation images while training, against passes over the training set with the start given: a panel for
    each method, with the others in grey behind it, and the 95 % interval over the validation images of each epoch as a band; a
    cross where a run collapsed (`collapsed`), and the title says which diverged.

    Args:
        store_rows: method -> per-epoch rows of its run (`networks.rows_of`), none where it is not finished.
        train_images: that a pass goes over. val_images: that accuracies stand on.
    """
    shown, lines, crosses, titles = looks(store_rows), {}, [], {}
    for method, rows in store_rows.items():
        measured = [(images_passed(rows[:i]) / train_images, row["epoch"],
                     *clopper_pearson(round(row["val_robust_acc"] * val_images), val_images)[:3])
                    for i, row in enumerate(rows, start=1) if "val_robust_acc" in row]
        mine = pd.DataFrame(measured, columns=["x", "epoch", "y", "low", "high"])
        found, word = collapsed(rows, images=val_images), rows[-1].get("absent", "") if rows else NOT_RUN
        never = found is not None and found.kind == NEVER
        word = word or (NEVER if never else "" if measured else NOT_RUN)
        titles[method] = method_label(method) + (f" ({word})" if word else "")
        crosses.append(mine[mine["epoch"] == (found.epoch if found and not never else None)].assign(
            line="collapsed", column=method, low=np.nan, high=np.nan))
        lines[method] = mine
    marks = [lines[other].assign(line="behind", kind="plain", strand=other, column=m, low=np.nan, high=np.nan)
             for m in lines for other in lines if other != m]
    marks = pd.concat([*marks, *(mine.assign(line=m, column=m, kind="band") for m, mine in lines.items()), *crosses])
    cross = {"linestyle": "none", "marker": "x", "color": "black", "markersize": 8, "markeredgewidth": 1.6, "zorder": 4}
    behind = {"color": "#BBBBBB", "linewidth": 0.8, "zorder": 1}
    entries = [("the other methods", behind)] + [("collapsed", cross)] * any(map(len, crosses))
    return figure(marks, {m: look | {"markersize": 2.5} for m, look in shown.items()} | {"collapsed": cross, "behind": behind},
                  columns=titles, wrap=3, scale=100, log="x", ticks=(1, 3, 10, 30, 100, 300, 1000), height=1.5, xlabel=PASSES,
                  ylabel="robust accuracy on\nvalidation images (%)", entries=entries,
                  note=f"{stands_on([val_images], [1], 'validation images')}; bands: 95 % over the images",
                  words={("", m): titles[m].rpartition("(")[2].rstrip(")") for m, mine in lines.items() if mine.empty})


def shared_attack(rows: pd.DataFrame) -> tuple[str, float] | None:
    """(attack, eps) that most methods and sizes of `rows` have, of several the one on the most images, of these the strongest at
    the largest eps; None without any."""
    robust = rows[rows["attack"] != "none"].drop_duplicates(["attack", "eps", "method", "part", "train_images", "width"])
    counts, images = robust.value_counts(["attack", "eps"]), robust.groupby(["attack", "eps"])["n"].min()
    return max(counts.keys(), key=lambda k: (counts[k], images[k], strength(k[0]), k[1]), default=None)


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
    titles = {"clean": "clean", "robust": _header(key)}
    bases = {c: stands_on(shown.loc[shown["column"] == c, "n"], shown.loc[shown["column"] == c, "seeds"]) for c in titles}
    return shown, {c: "\n".join(filter(None, (text, bases[c]))) for c, text in titles.items()}


def _header(key: tuple[str, float] | None) -> str:
    return labels.header(key[0], "linf", key[1]) if key else "robust"

