"""Robust overfitting in tables, from the courses of what is planned (`course.read`); nothing is computed anew here.

Tables are DataFrames of text: accuracy in percent, gaps in points, "not run" where a run is missing.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.effects import pair_label
from ..evidence import course, public
from ..evidence.course import Course, by_key
from ..specs.jobs import Job
from ..specs.labels import DATASETS, NOT_RUN, attack_label, dataset_label, eps_label, method_label, points, unique
from ..specs.run import RunSpec
from ..specs.schedules import factor
from .tables import number, plain, within

PATIENCE = 5  # validation measurements without a new best after which early stopping ends
SCHEDULES = ("at", "at_cosine", "at_cyclic", "at_slow_fast")  # AT from the start network, which differ in their schedule
PLATEAUS = ("at_short_plateau", "at_long_plateau")
SCRATCH = ("at_random", *PLATEAUS)  # from random weights
EARLY = ("at", "at_random")  # also shown as early stopping would leave them
PAIRS = (  # (method, baseline) whose gaps are compared
    ("twins_at", "at"), ("twins_at", "at_lr"), ("at_lr", "at"), ("at_awp", "at"), ("trades", "at"), ("twins_trades", "trades"),
    ("at_cosine", "at"), ("at_cyclic", "at"), ("at_slow_fast", "at"), ("at_slow_fast", "at_cosine"),
    ("at_slow_fast", "at_cyclic"), ("at_long_plateau", "at_short_plateau"),
)  # fmt: skip
SLOW = 0.2  # of the peak rate; below it a rate is called small
Plan = dict[tuple[str, str], RunSpec]  # (data set, method) -> spec of its first seed


def planned(courses: Sequence[Course]) -> Plan:
    """Runs that are followed on test images, by data set; in each first methods of their own, then schedules, then runs from
    random weights."""
    plan: Plan = {}
    for c in courses:
        plan.setdefault(tuple(c.keys[:2]), c.spec)
    rank = {name: i for i, name in enumerate((*SCHEDULES, *SCRATCH))}
    datasets = unique(d for d, _ in plan)
    return {key: plan[key] for key in sorted(plan, key=lambda key: (datasets.index(key[0]), rank.get(key[1], 0)))}


def absent(courses: Sequence[Course], dataset: str, *methods: str) -> str:
    """What stands for a number that needs all of `methods` on a data set and is not there: "diverged" where one of them did."""
    return next((word for (d, m, _), word in course.lost(courses).items() if d == dataset and m in methods), NOT_RUN)


def attack_text(specs: Sequence[RunSpec]) -> str:
    """PGD-10 at 8/255: the attack that the courses of `specs` are measured by."""
    return " or ".join(unique(f"{attack_label(f'pgd{s.follow.steps}')} at {eps_label(s.attack.eps, s.attack.threat)}"
                              for s in specs))


def caption(courses: Sequence[Course]) -> str:
    """By what robust error is measured, on how many images and over which seeds, from the runs themselves."""
    courses = [c for c in courses if not c.absent]
    if not courses:
        return "No run is finished yet."
    test, train = ("/".join(f"{n:,}" for n in sorted({c.arrays[key].shape[1] for c in courses if key in c.arrays}))
                   for key in ("test_robust", "train_robust"))
    seeds = sorted({c.spec.seed for c in courses})
    said = [f"Robust error: {attack_text([c.spec for c in courses])}, on {test} test images (wrong before the attack or at any "
            f"of its steps) and on {train or 'no'} training images (after its last step, without augmentation).",
            f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."]
    said += ["Lines are means over seeds, thin lines single seeds."] if len(seeds) > 1 else []
    single = min(map(len, by_key(courses).values()), default=1) == 1
    said += ["Intervals of a single seed speak about other test images only."] if single else []
    return " ".join(said)


def early_stop(c: Course, patience: int = PATIENCE) -> tuple[int, int]:
    """(epoch whose network early stopping keeps, epoch at which it ends training): when so many validation measurements in a row
    have not beaten the best before them, at the latest with the run."""
    best, since = None, 0
    for row in course.validated(c.epochs):
        if best is None or row["val_robust_acc"] > best["val_robust_acc"]:
            best, since = row, 0
        elif (since := since + 1) == patience:
            return best["epoch"], row["epoch"]
    return best["epoch"], c.spec.optim.epochs


def above_early_stopping(courses: Sequence[Course], dataset: str, method: str) -> stats.Interval | None:
    """Robust test accuracy of a method at its end (mean of the last measured epochs) minus that of the early-stopped AT, over the
    seeds and images of both, with a 95 % interval."""
    ours, theirs = (by_key(courses).get((dataset, m), ()) for m in (method, "at"))
    stopped = {c.spec.seed: c.at("test_robust", early_stop(c)[0]) for c in theirs}
    values = [c.end() - stopped[c.spec.seed] for c in ours if c.spec.seed in stopped]
    return stats.crossed_mean(np.stack(values)) if values else None


def schedule_label(spec: RunSpec) -> str:
    """slow start, fast decay; the others by their own name."""
    return {"slow_fast": "slow start, fast decay"}.get(spec.optim.schedule, spec.optim.schedule)


def rates(spec: RunSpec) -> pd.DataFrame:
    """x, epochs as real numbers, so narrow that jumps are upright, and y, the learning rate there."""
    o, steps = spec.optim, 1000
    return pd.DataFrame({"x": np.arange(steps) * o.epochs / steps,
                         "y": [o.lr * factor(o.schedule, i, steps, o.milestones, o.warmup) for i in range(steps)]})


def slow(spec: RunSpec) -> pd.Series:
    """Where `rates` are below SLOW times the peak."""
    return rates(spec)["y"] < SLOW * spec.optim.lr - 1e-12


def first_drop(spec: RunSpec) -> float | None:
    """Epoch at which a piecewise schedule first lowers its rate, else None."""
    o = spec.optim
    return o.epochs * o.milestones[0] if o.schedule == "piecewise" and o.milestones else None


def settings_table(jobs: Sequence[Job]) -> pd.DataFrame:
    """What was asked for, from the specs: a line for each group of methods that differ in nothing that is listed."""
    runs: dict[tuple, list[RunSpec]] = {}
    for job in jobs:
        runs.setdefault((job.spec.data.name, job.spec.method.name, job.ship), []).append(job.spec)
    methods_of: dict[tuple, list[str]] = {}
    for (dataset, method, ship), specs in runs.items():
        s = specs[0]
        start = "random weights" if s.source is None and s.weights is None else "start network"
        attack = f"PGD-{s.attack.steps} at {eps_label(s.attack.eps, s.attack.threat)}"
        line = {"data set": dataset_label(dataset), "start": "start network itself" if ship else start, "network": s.model.arch,
                "training images": s.data.train_images or f"all but {s.data.val_images}",
                "augmentation": s.data.augment.replace("_", ", "), "schedule": schedule_label(s), "epochs": s.optim.epochs,
                "peak lr": f"{s.optim.lr:g}", "batch": s.optim.batch_size, "weight decay": f"{s.optim.weight_decay:g}",
                "precision": s.optim.precision, "training attack": attack if s.method.attacks else "none",
                "seeds": _listed(unique(spec.seed for spec in specs))}
        methods_of.setdefault(tuple(line.items()), []).append(method_label(method))
    return pd.DataFrame([dict(key) | {"methods": "; ".join(unique(names))} for key, names in methods_of.items()])


def best_last_table(courses: Sequence[Course]) -> pd.DataFrame:
    """Robust and clean test accuracy at the epoch that is best on validation images and as the mean of the last five measured
    epochs, with 95 % intervals over seeds and images, the gap between the two robust ones, and what the same epochs change on
    training images; a line per planned method.

    A line "early stopped" follows AT and AT from random weights: the network that stopping after PATIENCE validation
    measurements without a new best keeps, and the share of the training that it takes to get it.
    """
    cell, found, plan, lines = _gaps(courses), by_key(courses), planned(courses), []
    best, change = f"robust, best ({attack_text(list(plan.values()))})", "robust, training images, last - best"
    measures = {best: "best", "robust, last": "last", "gap (points)": "gap", "clean, best": "clean_best",
                "clean, last": "clean_last"}
    for (dataset, method), spec in plan.items():
        group, word = found.get((dataset, method), ()), absent(courses, dataset, method)
        head = {"data set": dataset_label(dataset), "method": method_label(method), "seeds": str(len(group)),
                "of epochs": str(spec.optim.epochs)}
        lines.append(head | {title: cell(dataset, method, measure) for title, measure in measures.items()} | {
            "best epoch": _listed(c.best for c in group) or word, "training needed": "100 %" if group else word,
            change: _on_training_images(group) if group else word})
        if method in EARLY and group:
            kept, ends = zip(*map(early_stop, group), strict=True)
            robust, clean = (stats.crossed_mean(np.stack([c.at(key, epoch) for c, epoch in zip(group, kept, strict=True)]))[:3]
                             for key in ("test_robust", "test_clean"))
            lines.append(head | {
                "method": f"{head['method']}, early stopped (patience {PATIENCE})", "best epoch": _listed(kept),
                best: within(*robust), "clean, best": within(*clean),
                "training needed": f"{100 * np.mean(ends) / spec.optim.epochs:.0f} %"})
    columns = ["data set", "method", "seeds", "best epoch", "of epochs", *measures, "training needed", change]
    return pd.DataFrame(lines, columns=columns).fillna("")


def difference_table(courses: Sequence[Course]) -> pd.DataFrame:
    """Gap of a method minus gap of its baseline in points on the same test images and seeds, for those of PAIRS that are
    planned; below 0 the method overfits less."""
    found = {(d.dataset, d.method, d.baseline): d for d in course.gap_differences(courses, PAIRS).itertuples()}
    lines = []
    for dataset, pair in pairs(courses):
        d = found.get((dataset, *pair))
        word = "" if d is None else "larger" if d.low > 0 else "smaller" if d.high < 0 else "unclear"
        lines.append([dataset_label(dataset), pair_label(pair), str(d.seeds if d else 0),
                      number(d, points, absent(courses, dataset, *pair)), word])
    return pd.DataFrame(lines, columns=["data set", "difference of gaps", "seeds", "points", "gap"])


def schedule_table(courses: Sequence[Course]) -> pd.DataFrame:
    """AT by schedule: peak rate, share of the run at a small rate, best, last and gap, the end against AT early stopped, and
    the gap of public full-size runs from random weights (whose best epoch was chosen on test images)."""
    cell, theirs, lines = _gaps(courses), _public(), []
    for (dataset, method), spec in planned(courses).items():
        if method not in SCHEDULES:
            continue
        early = above_early_stopping(courses, dataset, method)
        reference = theirs.get((DATASETS.get(dataset, (None, None))[1], spec.optim.schedule))
        lines.append({"data set": dataset_label(dataset), "schedule": schedule_label(spec), "peak rate": f"{spec.optim.lr:g}",
                      f"share of the run below {SLOW:g} × peak": f"{100 * slow(spec).mean():.0f} %",
                      "robust, best": cell(dataset, method, "best"), "robust, last": cell(dataset, method, "last"),
                      "gap (points)": cell(dataset, method, "gap"),
                      "last - AT early stopped (points)": points(*early[:3]) if early else absent(courses, dataset, method, "at"),
                      "gap, public run from random weights": f"{100 * reference.gap:.1f} ({reference.rates})" if reference
                      else "none known"})
    return pd.DataFrame(lines)


def scratch_table(courses: Sequence[Course]) -> pd.DataFrame:
    """AT from random weights, next to the public run on the same images (whose best epoch was chosen on test images): robust
    test error in percent at its best epoch and at the end, and when the learning rate first drops."""
    cell, theirs, found, lines = _gaps(courses), _public(), by_key(courses), []
    for (dataset, method), spec in ((key, spec) for key, spec in planned(courses).items() if key[1] == "at_random"):
        drop, label = first_drop(spec), dataset_label(dataset)
        errors = [cell(dataset, method, name, lambda value, *_: f"{100 - 100 * value:.1f}") for name in ("best", "last")]
        epochs = _listed(c.best for c in found.get((dataset, method), ())) or absent(courses, dataset, method)
        lines.append([label, "ours", *errors, cell(dataset, method, "gap"), epochs, f"{drop:g}" if drop else "none",
                      spec.optim.epochs])
        known = theirs.get((DATASETS.get(dataset, (None, None))[1], "piecewise"))
        if known:
            lines.append([label, f"public, {known.model}", f"{100 * known.best:.1f}", f"{100 * known.last:.1f}",
                          f"{100 * known.gap:+.1f}", f"{known.best_epoch:g}", known.rates, known.epochs])
    return pd.DataFrame(lines, columns=["data set", "run", "robust error, best", "robust error, last", "gap (points)",
                                        "best epoch", "learning rate drops", "epochs"])


def public_plateaus() -> pd.DataFrame:
    """Public runs (Rice et al., authors' logs) that differ in when the rate drops once: robust test error best and last in
    percent and gap in points. Their length is fixed, so a longer plateau leaves fewer epochs at the small rate."""
    rows = public.overfitting_gaps()
    rows = rows[rows["schedule"].str.startswith("drop at ")].reset_index(drop=True)
    drop = rows["schedule"].str.removeprefix("drop at ").astype(int)
    return pd.DataFrame({"plateau (epochs)": drop, "epochs after it": rows["epochs"] - drop,
                         **{f"robust error, {name}": (100 * rows[name]).map("{:.1f}".format) for name in ("best", "last")},
                         "gap (points)": (100 * rows["gap"]).map("{:+.1f}".format), "model": rows["model"],
                         "source": rows["source"]})


def sanity(courses: Sequence[Course]) -> dict[str, bool]:
    """What must hold for best, last and gap to be believed, over all finished runs with robust test accuracy."""
    runs, sizes, whole, chosen, harder = [c for group in by_key(courses).values() for c in group], {}, True, True, True
    for c in runs:
        epochs, scores = c.arrays["epoch"].tolist(), {row["epoch"]: row["val_robust_acc"] for row in course.validated(c.epochs)}
        whole &= epochs == sorted(set(epochs)) and (epochs[0], epochs[-1]) == (0, c.spec.optim.epochs)
        chosen &= c.best in epochs and scores[c.best] == max(scores.values())
        harder &= not (c.arrays["test_robust"] & ~c.arrays["test_clean"]).any()
        sizes.setdefault(c.spec.data.name, set()).add(c.arrays["test_robust"].shape[1])
    return {"every course runs from before the first epoch to the last": whole,
            "no epoch is better on validation images than the best, which is measured on test images": chosen,
            "no test image is right under attack and wrong without": bool(harder),
            "all runs on a data set are measured on equally many test images": all(len(n) == 1 for n in sizes.values())}


def pairs(courses: Sequence[Course]) -> list[tuple[str, tuple[str, str]]]:
    """(data set, pair) for those of PAIRS of which both are planned there."""
    plan = {tuple(c.keys[:2]) for c in courses}
    return [(d, p) for d in unique(c.spec.data.name for c in courses) for p in PAIRS if all((d, name) in plan for name in p)]


def _gaps(courses: Sequence[Course]) -> Callable[..., str]:
    """(data set, method, measure) -> number of `course.gaps` as text, gaps in points, or what stands for it."""
    found = {(r.dataset, r.method, r.measure): r for r in course.gaps(courses).itertuples()}
    return lambda dataset, method, measure, form=None: number(
        found.get((dataset, method, measure)), form or (points if measure == "gap" else within), absent(courses, dataset, method))


def _public() -> dict:
    """Public gaps of the smaller network by data set and schedule."""
    return {(row.dataset, row.schedule): row for row in public.overfitting_gaps().itertuples()
            if row.model == "PreAct ResNet-18"}


def _on_training_images(group: Sequence[Course]) -> str:
    """Robust accuracy on training images at the end minus that at the best epoch in points, mean over seeds."""
    if any("train_robust" not in c.arrays for c in group):
        return ""
    change = np.mean([c.end("train_robust").mean() - c.at("train_robust", c.best).mean() for c in group])
    return plain(100 * change, "{:+.1f}")


def _listed(numbers) -> str:
    return ", ".join(map(str, numbers))
