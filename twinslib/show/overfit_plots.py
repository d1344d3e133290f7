"""Figures of robust overfitting from the courses of finished runs (`course`); nothing is computed anew. Errors in percent.

A solid line is error on test images, a dashed one on training images: means over seeds, with each seed as a thin line. Hollow
markers on curves are public numbers.
"""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..claims.effects import pair_label
from ..evidence import course, public
from ..evidence.course import LAST, Course, by_key
from ..specs.labels import DATASETS, dataset_label, method_label, unique
from ..specs.run import RunSpec
from . import overfit_tables
from .figures import DOT, DROP, FLAGS, HOLLOW, LOOKS, PLAIN, SHADE, SMALL, figure, looks, nothing, stands_on
from .forest import fences, forest, row_label
from .overfit_tables import PLATEAUS, SCHEDULES, SCRATCH, SLOW, Plan, absent, attack_text, first_drop, rates, schedule_label

PARTS = {"train_robust": "dashed", "test_robust": "solid", "test_clean": "solid"}
RULES = {"behind": {"color": PLAIN, "linewidth": 0.9, "linestyle": (0, (5, 1.5, 1, 1.5))}, "drop": DROP,
         "shade": {"color": SHADE, "linewidth": 0, "zorder": 0}}
SHADED = {"color": SHADE, "linewidth": 7}
PUBLIC = {"color": "#555555", "linewidth": 0.8, "markersize": 4.2, "markerfacecolor": "white"}
THEIRS = {"public test": PUBLIC | {"marker": "o"}, "public training": PUBLIC | {"marker": "s", "linestyle": (0, (4, 1.6))}}


def method_curves(courses: Sequence[Course]) -> Figure:
    """Robust error by epoch, a panel for each data set and method that begins from the start network and has the usual schedule;
    a marker at the epoch that is best on validation images, grey for the last measured epochs, whose mean stands for the end;
    AT's test error in every panel."""
    plan, found, marks = _plan(courses, lambda m: m == "at" or m not in (*SCHEDULES, *SCRATCH), several=True), by_key(courses), []
    several = len({d for d, _ in plan}) > 1
    for (d, m), spec in plan.items():
        group = found.get((d, m), [])
        here = [_marks(group).assign(line=m)] + [_behind(found.get((d, "at"), []))] * (m != "at")
        drops = [x * spec.optim.epochs for x in spec.optim.milestones] if spec.optim.schedule == "piecewise" and group else []
        here.append(pd.DataFrame({"x": drops, "line": "drop", "kind": "upright"}))
        here += [pd.DataFrame({"xlow": [e[0]], "xhigh": e[-1], "line": "shade", "kind": "shade"})
                 for e in (c.ending for c in group[:1])]
        marks.append(pd.concat(here).assign(column=f"{d} {m}"))
    fig = figure(pd.concat(marks), looks(m for _, m in plan) | RULES, wrap=3, height=1.75, ticks=5, xlabel=_epochs(plan),
                 ylabel=_error(plan), note=_note(found, plan),
                 words={("", " ".join(key)): absent(courses, *key) for key in plan if key not in found},
                 columns={f"{d} {m}": method_label(m) + (f"\n{dataset_label(d)}" if several else "") for d, m in plan},
                 entries=[*_entries(plan, found), ("test images, AT", RULES["behind"]), (f"last {LAST} measurements", SHADED),
                          ("learning rate drops", DROP)])
    fig.axes[0].set_xlim(0, max(spec.optim.epochs for spec in plan.values()) * 1.02)
    return fig


def gap_plot(courses: Sequence[Course]) -> Figure:
    """Left the gap of each planned method, right differences of gaps (`overfit_tables.PAIRS`), in points with 95 % intervals over
    seeds and test images; filled where the interval leaves out 0. A row says on how many seeds it rests where that differs."""
    plan, pairs = _plan(courses, several=True), overfit_tables.pairs(courses)
    several = len({d for d, _ in plan}) > 1
    own = course.gaps(courses).query("measure == 'gap'").assign(baseline="")
    against = course.gap_differences(courses, unique(pair for _, pair in pairs))
    wanted = [("own", d, m, "", method_label(m)) for d, m in plan] + [("pair", d, *pair, pair_label(pair)) for d, pair in pairs]
    wanted = pd.DataFrame(wanted, columns=["column", "dataset", "method", "baseline", "row"])
    marks = wanted.merge(pd.concat([own, against]), how="left", on=["dataset", "method", "baseline"])
    marks["row"] += ", " + marks["dataset"].map(dataset_label) if several else ""
    marks["absent"] = [absent(courses, m.dataset, m.method, m.baseline) for m in marks.itertuples()]
    marks["kind"] = ((marks["low"] > 0) | (marks["high"] < 0)).map({True: "points", False: "points hollow"})
    marks = marks.assign(x=100 * marks["value"], low=100 * marks["low"], high=100 * marks["high"])
    limits = dict.fromkeys(("own", "pair"), fences(marks))  # on one scale: a difference can be held against a gap
    rows = {m.row: row_label(m.row, [m.seeds] * (m.seeds > 0), marks["seeds"].dropna(), 27) for m in marks.itertuples()}
    where = "" if several else f" on {dataset_label(marks['dataset'].iloc[0])}"
    return forest(marks, rows, {"": DOT | {"color": "#0072B2", "elinewidth": 1}}, {"own": "gap", "pair": "difference of gaps"},
                  limits=limits, own_rows=True, entries=[("interval leaves out 0", DOT), ("unclear: it contains 0", HOLLOW)],
                  xlabel=f"points of robust accuracy{where}, best epoch − end, with 95 % interval",
                  note=_note(by_key(courses), plan))


def schedule_curves(courses: Sequence[Course]) -> Figure:
    """A column for each schedule of AT: above its learning rate, below robust error by epoch, with the test error under the
    piecewise schedule dash-dotted; shaded where the rate is below a fifth of its peak."""
    plan, found, marks = _plan(courses, SCHEDULES.__contains__), by_key(courses), []
    for (d, m), spec in plan.items():
        steps, turns = rates(spec), overfit_tables.slow(spec).astype(int).diff().fillna(overfit_tables.slow(spec).astype(int))
        ends = [*steps["x"][turns == -1], spec.optim.epochs]
        shade = pd.DataFrame(zip(steps["x"][turns == 1], ends, strict=False), columns=["xlow", "xhigh"])
        shade = shade.assign(line="shade", kind="shade")
        error = [_marks(found.get((d, m), [])).assign(line=m)] + [_behind(found.get((d, "at"), []))] * (m != "at")
        marks += [pd.concat([*error, shade]).assign(row="error", column=m),
                  pd.concat([steps.assign(line=m, kind="solid"), shade]).assign(row="rate", column=m)]
    fig = figure(pd.concat(marks), looks(m for _, m in plan) | RULES, ticks=4, xlabel=_epochs(plan), sharex="col", sharey="row",
                 note=_note(found, plan),
                 rows={"rate": "learning rate", "error": _error(plan).replace(", ", "\n")}, height=1.4, height_ratios=(1, 2.3),
                 columns={m: schedule_label(spec) for (_, m), spec in plan.items()},
                 words={("error", key[1]): absent(courses, *key) for key in plan if key not in found},
                 entries=[*_entries(plan, found), ("test images, piecewise", RULES["behind"]),
                          (f"rate below {SLOW:g} × peak", SHADED)])
    fig.axes[0].set_ylim(bottom=0)
    for ax, spec in zip(fig.axes, plan.values(), strict=False):
        ax.set_xlim(0, spec.optim.epochs)
    return fig


def scratch_curves(courses: Sequence[Course]) -> Figure:
    """AT from random weights against the share of its training that is done: robust error left, clean test error right, with
    points of a public run on the same images (`public.overfitting_rows`), hollow; the text states both settings."""
    plan, found = _plan(courses, ("at_random",).__contains__), by_key(courses)
    ((dataset, method), spec), = plan.items()
    group, theirs = found.get((dataset, method), []), public.overfitting_rows()
    theirs = theirs[(theirs["what"] == "epoch") & (theirs["dataset"] == DATASETS.get(dataset, (None, None))[1])
                    & (theirs["model"] == "PreAct ResNet-18")]
    x = 100 * (theirs["epoch"] + 1) / theirs["epochs"]
    marks = [pd.DataFrame({"x": x, "y": 100 * theirs[name], "line": line, "column": column}) for name, line, column in (
        ("test_robust_error", "public test", "robust"), ("train_robust_error", "public training", "robust"),
        ("test_clean_error", "public test", "clean"))]
    for column, names in (("robust", ("train_robust", "test_robust")), ("clean", ("test_clean",))):
        mine = _marks(group, names, lambda c: 100 * c.arrays["epoch"] / c.spec.optim.epochs).assign(line=method)
        drop = pd.DataFrame({"x": [100 * (first_drop(spec) or np.nan) / spec.optim.epochs], "line": "drop", "kind": "upright"})
        marks.append(pd.concat([mine, drop]).assign(column=column))
    entries = (_entries(plan, found) if group else []) + [("first drop of the learning rate", DROP)]
    entries += [(f"{line.replace('public', 'public run,')} images", look) for line, look in THEIRS.items() if len(theirs)]
    panels = {"robust": "under attack", "clean": "without attack"}
    fig = figure(pd.concat(marks), looks([method]) | RULES | THEIRS, columns=panels, height=2.5, sharey=False, entries=entries,
                 words={} if group else {("", column): f"ours: {absent(courses, dataset, method)}" for column in panels})
    for ax, column in zip(fig.axes, panels, strict=True):
        ax.set(xlabel="share of the training done (%)", xlim=(0, 102), ylabel=f"{column} error (%)")
    fig.supxlabel("\n".join(_settings(group, spec, theirs)), fontsize=SMALL, color=PLAIN)
    return fig


def plateau_curves(courses: Sequence[Course]) -> Figure:
    """AT from random weights with a short and a long plateau at the peak rate: robust error by epochs after the first drop of
    the rate, from which on both have the same schedule."""
    plan, found = _plan(courses, PLATEAUS.__contains__), by_key(courses)
    if not set(plan) & set(found):
        return nothing(f"{' and '.join(method_label(m) for _, m in plan)}:\n{absent(courses, next(iter(plan))[0], *PLATEAUS)}")
    marks = [_marks(found.get(key, []), x=lambda c: c.arrays["epoch"] - (first_drop(c.spec) or 0.0)).assign(line=key[1])
             for key in plan]
    marks.append(pd.DataFrame({"x": [0.0], "line": "drop", "kind": "upright"}))
    entries = [(f"{method_label(key[1]).rsplit(', ', 1)[-1]}: {first_drop(spec) or 0:g} epochs"
                + ("" if key in found else f" ({absent(courses, *key)})"), LOOKS[key[1]] | {"linestyle": "-"})
               for key, spec in plan.items()]
    return figure(pd.concat(marks).assign(column=""), looks(m for _, m in plan) | RULES, height=2.1, per_line=1,
                  entries=[*entries, *_entries(plan, found), ("learning rate drops", DROP)], loc="outside right center",
                  xlabel="epochs after the first drop of the learning rate", ylabel=_error(plan), note=_note(found, plan))


def _plan(courses: Sequence[Course], which: Callable[[str], bool] = bool, several: bool = False) -> Plan:
    """What is planned of such methods; refused if nothing is, or unless `several` on more than one data set."""
    plan = {key: spec for key, spec in overfit_tables.planned(courses).items() if which(key[1])}
    if not plan:
        raise ValueError("expected at least one planned run with test_images to follow, got none; put its method into runs")
    if len({d for d, _ in plan}) > 1 and not several:
        raise ValueError(f"expected one data set, got {', '.join(unique(d for d, _ in plan))}; pass the runs of one")
    return plan


def _epochs(plan: Plan) -> str:
    return f"epoch of training on {' and '.join(unique(dataset_label(d) for d, _ in plan))}"


def _note(found: dict[tuple[str, str], list[Course]], plan: Plan) -> str:
    """On how many test images and seeds the planned methods stand, as far as they are finished."""
    groups = [[c for c in found.get(key, ()) if "test_robust" in c.arrays] for key in plan]
    return stands_on([c.arrays["test_robust"].shape[1] for group in groups for c in group], map(len, groups))


def _error(plan: Plan) -> str:
    return f"robust error (%), {attack_text(list(plan.values()))}"


def _marks(group: Sequence[Course], names: Sequence[str] = ("train_robust", "test_robust"),
           x: Callable[[Course], np.ndarray] = lambda c: c.arrays["epoch"]) -> pd.DataFrame:
    """Errors of one method: means over the seeds at the epochs that all have, each of several seeds, and their best epochs."""
    each = [pd.DataFrame({"strand": str(c.spec.seed), "kind": PARTS[name], "epoch": c.arrays["epoch"], "x": x(c),
                          "y": 100 - 100 * c.arrays[name].mean(1), "best": c.arrays["epoch"] == c.best})
            for c in group for name in names if name in c.arrays]
    if not each:
        return pd.DataFrame({"x": [], "y": [], "kind": "", "strand": ""})
    every = pd.concat(each)
    means = every.groupby(["kind", "epoch"], sort=False).agg(x=("x", "first"), y=("y", "mean"), seeds=("y", "size")).reset_index()
    best = every[every["best"] & (every["kind"] == "solid")].assign(kind="best") if "test_robust" in names else every[:0]
    thin = every.assign(kind=every["kind"] + " thin") if len(group) > 1 else every[:0]
    return pd.concat([means[means["seeds"] == len(group)].assign(strand=""), thin, best])[["x", "y", "kind", "strand"]]


def _behind(group: Sequence[Course]) -> pd.DataFrame:
    marks = _marks(group, ("test_robust",))
    return marks[marks["kind"] == "solid"].assign(line="behind", kind="")


def _entries(plan: Plan, found: dict[tuple[str, str], list[Course]]) -> list[tuple[str, dict]]:
    """What lines and markers mean, in the colour of the only method or for every colour."""
    look = LOOKS[next(iter(plan))[1]] if len(plan) == 1 else {"color": PLAIN, "marker": "o"}
    several = len({c.spec.seed for key in plan for c in found.get(key, ())}) > 1
    names = {"test images": "solid", "training images": "dashed", "best on validation images": "best"}
    return [(name, look | FLAGS[flag]) for name, flag in names.items()] + (
        [("single seeds", look | FLAGS["solid"] | FLAGS["thin"])] * several)


def _settings(group: Sequence[Course], spec: RunSpec, theirs: pd.DataFrame) -> list[str]:
    """One line about our runs and one about the public run."""
    images = f"{group[0].train_images:,}" if group else f"{spec.data.train_images:,}" if spec.data.train_images else "all"
    augment = {"none": "no augmentation"}.get(spec.data.augment, spec.data.augment.replace("_", ", "))
    out = [f"Ours: {spec.model.arch}, {images} images of {dataset_label(spec.data.name)}, {augment}, {spec.optim.epochs} epochs, "
           f"trained with PGD-{spec.attack.steps}, measured by {attack_text([spec])}."]
    out += [f"Public run ({r.source}): {r.model}, {r.epochs} epochs, learning rate {r.rates}, measured by PGD-10 at 8/255 after "
            f"its last step; {r.settings}." for r in theirs[:1].itertuples()]
    return [line for text in out for line in textwrap.wrap(text, 125)]
