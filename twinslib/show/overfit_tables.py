"""Robust overfitting in tables and sentences, from the courses of finished runs (`course`); nothing is computed anew here.

Tables are DataFrames of text: accuracy in percent, gaps in points, "not run" where a run is missing. Sentences call unclear what
has 0 in its interval.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.effects import pair_label
from ..evidence import course, public
from ..evidence.course import LAST, Course
from ..specs.labels import DATASETS, attack_label, dataset_label, eps_label, joined, method_label, percent, points, unique
from ..specs.run import RunSpec
from ..specs.schedules import factor
from ..store.jobs import Job
from ..store.store import NOT_RUN

PATIENCE = 5  # validation measurements without a new best after which early stopping ends
SCHEDULES = ("at", "at_cosine", "at_cyclic", "at_slow_fast")  # AT from the start network, which differ in their schedule
SCRATCH = ("at_random", "at_short_plateau", "at_long_plateau")  # from random weights
PLATEAUS = ("at_short_plateau", "at_long_plateau")
EARLY = ("at", "at_random")  # also shown as early stopping would leave them
PAIRS = (  # (method, baseline) whose gaps are compared
    ("twins_at", "at"), ("twins_at", "at_lr"), ("at_lr", "at"), ("at_awp", "at"), ("trades", "at"), ("twins_trades", "trades"),
    ("at_cosine", "at"), ("at_cyclic", "at"), ("at_slow_fast", "at"), ("at_slow_fast", "at_cosine"),
    ("at_slow_fast", "at_cyclic"), ("at_long_plateau", "at_short_plateau"),
)  # fmt: skip
SLOW = 0.2  # of the peak rate; below it a rate is called small
NOTHING = "No run is finished yet."


def planned(jobs: Sequence[Job]) -> dict[tuple[str, str], RunSpec]:
    """(data set, method) of the runs whose course is followed on test images, in order, with the spec of the first seed."""
    out: dict[tuple[str, str], RunSpec] = {}
    for job in jobs:
        if job.spec.follow and job.spec.follow.test_images and not job.ship:
            out.setdefault((job.spec.data.name, job.spec.method.name), job.spec)
    return out


def ordered(jobs: Sequence[Job]) -> dict[tuple[str, str], RunSpec]:
    """`planned` by data set; in each first methods of their own, then schedules, then runs from random weights."""
    plan, groups = planned(jobs), [*SCHEDULES, *SCRATCH]
    datasets = unique(d for d, _ in plan)
    rank = {key: (datasets.index(key[0]), groups.index(key[1]) if key[1] in groups[1:] else 0) for key in plan}
    return dict(sorted(plan.items(), key=lambda item: rank[item[0]]))


def methods(jobs: Sequence[Job]) -> list[str]:
    """Planned methods that differ in more than their schedule and begin from the start network: AT, TWINS, AWP and the like."""
    return unique(m for _, m in ordered(jobs) if m == "at" or m not in (*SCHEDULES, *SCRATCH))


def by_key(courses: Sequence[Course]) -> dict[tuple[str, str], list[Course]]:
    """Finished runs with robust test accuracy, by data set and method."""
    out: dict[tuple[str, str], list[Course]] = {}
    for c in courses:
        if "test_robust" in c.arrays:
            out.setdefault((c.spec.data.name, c.spec.method.name), []).append(c)
    return out


def absent(courses: Sequence[Course], dataset: str, *methods: str) -> str:
    """What stands for a number that needs all of `methods` on a data set and is not there: "diverged" where one of them did."""
    return next((word for (d, m, _), word in course.lost(courses).items() if d == dataset and m in methods), NOT_RUN)


def attack_text(specs: Sequence[RunSpec]) -> str:
    """PGD-10 at 8/255: the attack that the courses of `specs` are measured by."""
    return " or ".join(unique(f"{attack_label(f'pgd{s.follow.steps}')} at {eps_label(s.attack.eps, s.attack.threat)}"
                              for s in specs))


def caption(courses: Sequence[Course]) -> str:
    """By what robust error is measured, on how many images and over which seeds, from the runs themselves."""
    gone, courses = course.lost_text(courses), [c for c in courses if not c.absent]
    if not courses:
        return gone or NOTHING
    test, train = ("/".join(f"{n:,}" for n in sorted({c.arrays[key].shape[1] for c in courses if key in c.arrays}))
                   for key in ("test_robust", "train_robust"))
    seeds = sorted({c.spec.seed for c in courses})
    single = min(map(len, by_key(courses).values()), default=1) == 1
    tail = ("Lines are means over seeds, thin lines single seeds. " if len(seeds) > 1 else "") + (
        "Intervals of a single seed speak about other test images only. " if single else "")
    return (f"Robust error: {attack_text([c.spec for c in courses])}, on {test} test images (wrong before the attack or at any "
            f"of its steps) and on {train or 'no'} training images (after its last step, without augmentation). "
            f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. {tail}{gone}").strip()


def early_stop(c: Course, patience: int = PATIENCE) -> tuple[int, int]:
    """(epoch whose network early stopping keeps, epoch at which it ends training): see `course.early_stop`."""
    kept = course.early_stop(c.epochs, patience)
    later = [row["epoch"] for row in c.epochs if "val_robust_acc" in row and row["epoch"] > kept]
    return kept, later[patience - 1] if len(later) >= patience else c.spec.optim.epochs


def above_early_stopping(courses: Sequence[Course], method: str, baseline: str = "at",
                         patience: int = PATIENCE) -> dict[str, stats.Interval]:
    """Robust test accuracy of a method at its end (mean of the last measured epochs) minus that of the early-stopped baseline,
    by data set, over the seeds and images of both, with a 95 % interval."""
    found, out = by_key(courses), {}
    for dataset in unique(d for d, _ in found):
        theirs = {c.spec.seed: c for c in found.get((dataset, baseline), ())}
        values = [course.last_epochs(c) - course.robust_at(theirs[c.spec.seed], early_stop(theirs[c.spec.seed], patience)[0])
                  for c in found.get((dataset, method), ()) if c.spec.seed in theirs]
        if values:
            out[dataset] = stats.crossed_mean(np.stack(values))
    return out


def ending(c: Course) -> np.ndarray:
    """The last measured epochs, whose mean stands for the end of training."""
    return c.arrays["epoch"][c.arrays["epoch"] > 0][-LAST:]


def schedule_label(spec: RunSpec) -> str:
    """slow start, fast decay; the others by their own name."""
    return {"slow_fast": "slow start, fast decay"}.get(spec.optim.schedule, spec.optim.schedule)


def small_share(spec: RunSpec) -> float:
    """Share of the run at a learning rate below SLOW times its peak."""
    o, steps = spec.optim, 1000
    return sum(factor(o.schedule, i, steps, o.milestones, o.warmup) < SLOW - 1e-9 for i in range(steps)) / steps


def first_drop(spec: RunSpec) -> float | None:
    """Epoch at which a piecewise schedule first lowers its rate, else None."""
    o = spec.optim
    return o.epochs * o.milestones[0] if o.schedule == "piecewise" and o.milestones else None


def settings_table(jobs: Sequence[Job]) -> pd.DataFrame:
    """What was asked for, from the specs: a line for each group of methods that differ in nothing that is listed."""
    methods_of: dict[tuple, list[str]] = {}
    runs: dict[tuple, list[RunSpec]] = {}
    for job in jobs:
        runs.setdefault((job.spec.data.name, job.spec.method.name, job.ship), []).append(job.spec)
    names = ["data set", "start", "network", "training images", "augmentation", "schedule", "epochs", "peak lr", "batch",
             "weight decay", "precision", "training attack", "seeds"]
    for (dataset, method, ship), specs in runs.items():
        s = specs[0]
        scratch = s.source is None and s.weights is None
        start = "start network itself" if ship else "random weights" if scratch else "start network"
        attacks = s.method.attacks
        key = (dataset_label(dataset), start, s.model.arch, s.data.train_images or f"all but {s.data.val_images}",
               s.data.augment.replace("_", ", "), schedule_label(s), s.optim.epochs, f"{s.optim.lr:g}", s.optim.batch_size,
               f"{s.optim.weight_decay:g}", s.optim.precision,
               f"PGD-{s.attack.steps} at {eps_label(s.attack.eps, s.attack.threat)}" if attacks else "none",
               _listed(unique(spec.seed for spec in specs)))
        methods_of.setdefault(key, []).append(method_label(method))
    return pd.DataFrame([dict(zip(names, key, strict=True)) | {"methods": "; ".join(unique(m))} for key, m in methods_of.items()],
                        columns=[*names, "methods"])


def best_last_table(courses: Sequence[Course], jobs: Sequence[Job], patience: int = PATIENCE) -> pd.DataFrame:
    """Robust and clean test accuracy at the epoch that is best on validation images and as the mean of the last five measured
    epochs, with 95 % intervals over seeds and images, and the gap between the two robust ones; a line per planned method.

    A line "early stopped" follows AT and AT from random weights: the network that stopping after `patience` validation
    measurements without a new best keeps, and the share of the training that it takes to get it.
    """
    frame, found, lines = _gaps(courses), by_key(courses), []
    attack = attack_text(list(planned(jobs).values()))
    best, last, gap = f"robust, best ({attack})", "robust, last", "gap (points)"
    columns = ["data set", "method", "seeds", "best epoch", "of epochs", best, last, gap, "clean, best", "clean, last",
               "training needed"]
    for (dataset, method), spec in ordered(jobs).items():
        head = {"data set": dataset_label(dataset), "method": method_label(method), "of epochs": str(spec.optim.epochs)}
        if (dataset, method) not in frame:
            lines.append(dict.fromkeys(columns, absent(courses, dataset, method)) | head | {"seeds": "0"})
            continue
        row = frame[dataset, method]
        lines.append(head | {"seeds": str(row.seeds), "best epoch": _listed(row.epochs), best: _percent(row, "best"),
                             last: _percent(row, "last"), gap: points(row.gap, row.gap_low, row.gap_high),
                             "clean, best": _percent(row, "clean_best"), "clean, last": _percent(row, "clean_last"),
                             "training needed": "100 %"})
        if method in EARLY:
            group = found[dataset, method]
            stops = [early_stop(c, patience) for c in group]
            robust, clean = (_within(*stats.crossed_mean(np.stack([_at(c, key, kept) for c, (kept, _) in
                                                                   zip(group, stops, strict=True)]))[:3])
                             for key in ("test_robust", "test_clean"))
            share = np.mean([end / c.spec.optim.epochs for c, (_, end) in zip(group, stops, strict=True)])
            lines.append(head | {"method": f"{head['method']}, early stopped (patience {patience})", "seeds": str(row.seeds),
                                 "best epoch": _listed([kept for kept, _ in stops]), best: robust, last: "",
                                 gap: "", "clean, best": clean, "clean, last": "",
                                 "training needed": f"{100 * share:.0f} %"})
    return pd.DataFrame(lines, columns=columns)


def difference_table(courses: Sequence[Course], jobs: Sequence[Job]) -> pd.DataFrame:
    """Gap of a method minus gap of its baseline in points on the same test images and seeds, for those of PAIRS that are
    planned; below 0 the method overfits less."""
    found = {(d.dataset, d.method, d.baseline): d for d in course.gap_differences(courses, PAIRS).itertuples()}
    lines = []
    for dataset, pair in pairs(jobs):
        d = found.get((dataset, *pair))
        lines.append({"data set": dataset_label(dataset), "difference of gaps": pair_label(pair),
                      "seeds": str(d.seeds if d else 0),
                      "points": points(d.value, d.low, d.high) if d else absent(courses, dataset, *pair),
                      "gap": _word(d.low, d.high) if d else ""})
    return pd.DataFrame(lines, columns=["data set", "difference of gaps", "seeds", "points", "gap"])


def schedule_table(courses: Sequence[Course], jobs: Sequence[Job], patience: int = PATIENCE) -> pd.DataFrame:
    """AT by schedule: peak rate, share of the run at a small rate, best, last and gap, the end against AT early stopped, and
    the gap of public full-size runs from random weights (whose best epoch was chosen on test images)."""
    frame, theirs, lines = _gaps(courses), _public(), []
    for (dataset, method), spec in ordered(jobs).items():
        if method not in SCHEDULES:
            continue
        row, early = frame.get((dataset, method)), above_early_stopping(courses, method, patience=patience).get(dataset)
        reference = theirs.get((DATASETS.get(dataset, (None, None))[1], spec.optim.schedule))
        word = absent(courses, dataset, method)
        lines.append({"data set": dataset_label(dataset), "schedule": schedule_label(spec), "peak rate": f"{spec.optim.lr:g}",
                      f"share of the run below {SLOW:g} × peak": f"{100 * small_share(spec):.0f} %",
                      "robust, best": _percent(row, "best") if row else word,
                      "robust, last": _percent(row, "last") if row else word,
                      "gap (points)": points(row.gap, row.gap_low, row.gap_high) if row else word,
                      "last - AT early stopped (points)": points(*early[:3]) if early else absent(courses, dataset, method, "at"),
                      "gap, public run from random weights": f"{100 * reference.gap:.1f} ({reference.rates})" if reference
                      else "none known"})
    return pd.DataFrame(lines)


def public_plateaus() -> pd.DataFrame:
    """Public runs (Rice et al., authors' logs) that differ in when the rate drops once: robust test error best and last in
    percent and gap in points. Their length is fixed, so a longer plateau leaves fewer epochs at the small rate."""
    rows = public.overfitting_gaps()
    rows = rows[rows["schedule"].str.startswith("drop at ")]
    drop = rows["schedule"].str.removeprefix("drop at ").astype(int)
    return pd.DataFrame({"plateau (epochs)": drop, "epochs after it": rows["epochs"] - drop,
                         **{f"robust error, {name}": (100 * rows[name]).map("{:.1f}".format) for name in ("best", "last")},
                         "gap (points)": (100 * rows["gap"]).map("{:+.1f}".format), "model": rows["model"],
                         "source": rows["source"]}).reset_index(drop=True)


def curves_reading(courses: Sequence[Course], jobs: Sequence[Job]) -> str:
    """How robust error changes from the best epoch to the end on test and on training images, for `methods`."""
    frame, found, out = _gaps(courses), by_key(courses), []
    for dataset in unique(d for d, _ in planned(jobs)):
        parts = []
        for method in methods(jobs):
            if (dataset, method) in frame and "train_robust" in found[dataset, method][0].arrays:
                parts.append(f"{method_label(method)} {_signed(frame[dataset, method].gap)} and "
                             f"{_signed(_train_change(found[dataset, method]))}")
        gone = any(d == dataset for d, _, _ in course.lost(courses))
        out.append(f"{dataset_label(dataset)}: " + (
            "from the best epoch to the end robust error changes, on test and on training images, by "
            f"{'; '.join(parts)} points." if parts else "no number." if gone else NOTHING))
    return " ".join([*out, _missing(courses, jobs, methods(jobs))]).strip()


def early_reading(courses: Sequence[Course], patience: int = PATIENCE) -> str:
    """What early stopping of AT takes and gains."""
    out = []
    for (dataset, method), group in by_key(courses).items():
        if method != "at":
            continue
        stops = [early_stop(c, patience) for c in group]
        gain = stats.crossed_mean(np.stack([course.robust_at(c, kept) - course.last_epochs(c)
                                            for c, (kept, _) in zip(group, stops, strict=True)]))
        share = np.mean([end / c.spec.optim.epochs for c, (_, end) in zip(group, stops, strict=True)])
        word = {"larger": "higher", "smaller": "lower"}.get(_word(gain.low, gain.high), "not clearly different")
        out.append(f"{dataset_label(dataset)}: AT stopped early takes {100 * share:.0f} % of the training; robust accuracy of "
                   f"the network kept minus that at the end is {points(*gain[:3])} points: {word}.")
    return joined(*out, course.lost_text([c for c in courses if c.spec.method.name == "at"]), otherwise=NOTHING)


def gap_reading(courses: Sequence[Course], jobs: Sequence[Job]) -> str:
    """Which gaps are above 0, and which are smaller or larger than that of AT."""
    out, frame, plan = [], _gaps(courses), ordered(jobs)
    found = course.gap_differences(courses, [pair for pair in PAIRS if pair[1] == "at"])
    for dataset in unique(d for d, _ in plan):
        own = [(method_label(m), row.seeds, row.gap, row.gap_low, row.gap_high) for d, m in plan
               if d == dataset and (row := frame.get((d, m)))]
        against = [(method_label(d.method), d.seeds, d.value, d.low, d.high) for d in found.itertuples() if d.dataset == dataset]
        out.append(_sorted(f"{dataset_label(dataset)}, gap", own)
                   + (f" {_sorted('Gap minus that of AT', against)}" if against else ""))
    return " ".join([*out, _missing(courses, jobs, unique(m for _, m in plan))]).strip()


def schedule_reading(courses: Sequence[Course], jobs: Sequence[Job]) -> str:
    """Whether the gap depends on the schedule, here and in public runs."""
    found, out, plan = course.gap_differences(courses, [p for p in PAIRS if p[0] == "at_slow_fast"]), [], planned(jobs)
    for dataset in unique(d for d, m in plan if m in SCHEDULES):
        mine = [(schedule_label(plan[dataset, d.baseline]), d.seeds, d.value, d.low, d.high) for d in found.itertuples()
                if d.dataset == dataset]
        out.append(_sorted(f"{dataset_label(dataset)}, gap under slow start, fast decay minus that under another schedule", mine))
    theirs = {row.schedule: row for row in _public().values()}
    shown = ", ".join(f"{name} {100 * theirs[name].gap:.1f}" for name in ("piecewise", "cosine", "cyclic"))
    return " ".join([*out, f"Gaps of public runs of {theirs['piecewise'].model} from random weights, in points: {shown}; none is "
                           "known for slow start, fast decay."])


def scratch_reading(courses: Sequence[Course]) -> str:
    """AT from random weights: best, end and gap, next to the public run."""
    frame, found, out = _gaps(courses), by_key(courses), []
    for (dataset, method), row in frame.items():
        if method != "at_random":
            continue
        group = found[dataset, method]
        share = np.mean([e / c.spec.optim.epochs for e, c in zip(row.epochs, group, strict=True)])
        text = (f"{dataset_label(dataset)}: AT from random weights has {100 - 100 * row.best:.1f} % robust test error at the "
                f"best epoch, after {100 * share:.0f} % of the training, and {100 - 100 * row.last:.1f} % at the end; gap "
                f"{points(row.gap, row.gap_low, row.gap_high)} points: {_above(row.gap_low, row.gap_high)}.")
        drops = [first_drop(c.spec) for c in group]
        if None not in drops:
            early = sum(e < drop for e, drop in zip(row.epochs, drops, strict=True))
            text += f" In {early} of {len(group)} runs the best epoch lies before the first drop of the learning rate."
        theirs = _public().get((DATASETS.get(dataset, (None, None))[1], "piecewise"))
        out.append(text + (f" Public run ({theirs.model}, {theirs.rates}): {100 * theirs.best:.1f} % at epoch "
                           f"{theirs.best_epoch:g}, chosen on test images, and {100 * theirs.last:.1f} % at the end, gap "
                           f"{100 * theirs.gap:+.1f} points." if theirs else ""))
    return " ".join(out) or _none("AT from random weights", courses, "at_random")


def plateau_reading(courses: Sequence[Course], jobs: Sequence[Job]) -> str:
    """Whether the gap after a long plateau differs from that after a short one."""
    frame, plan = _gaps(courses), planned(jobs)
    found, out = course.gap_differences(courses, [PLATEAUS[::-1]]), []
    for d in found.itertuples():
        said = []
        for name in PLATEAUS:
            row, drop = frame[d.dataset, name], first_drop(plan[d.dataset, name]) or 0
            said.append(f"{_signed(row.gap)} points after {drop:g} epochs at the peak rate")
        out.append(f"{dataset_label(d.dataset)}: the gap is {' and '.join(said)}; long minus short "
                   f"{points(d.value, d.low, d.high)}: {_word(d.low, d.high)}.")
    return " ".join(out) or _none("Plateaus", courses, *PLATEAUS)


def public_plateau_reading() -> str:
    """What the public runs that differ in the epoch of the drop say."""
    rows = public_plateaus()
    first, last = rows.iloc[0], rows.iloc[-1]
    return (f"Public runs of {first['model']}: as the plateau grows from {first.iloc[0]} to {last.iloc[0]} epochs the gap goes "
            f"from {first['gap (points)']} to {last['gap (points)']} points, but the epochs after it go from {first.iloc[1]} to "
            f"{last.iloc[1]}.")


def sanity(courses: Sequence[Course]) -> dict[str, bool]:
    """What must hold for best, last and gap to be believed, over all finished runs with robust test accuracy."""
    runs, sizes, out = [c for group in by_key(courses).values() for c in group], {}, [True] * 3
    for c in runs:
        epochs, best = c.arrays["epoch"].tolist(), course.best_epoch(c.epochs)
        scores = {row["epoch"]: row["val_robust_acc"] for row in c.epochs if "val_robust_acc" in row}
        out[0] &= epochs == sorted(set(epochs)) and (epochs[0], epochs[-1]) == (0, c.spec.optim.epochs)
        out[1] &= best in epochs and scores[best] == max(scores.values())
        out[2] &= not (c.arrays["test_robust"] & ~c.arrays["test_clean"]).any()
        sizes.setdefault(c.spec.data.name, set()).add(c.arrays["test_robust"].shape[1])
    return {"every course runs from before the first epoch to the last": out[0],
            "no epoch is better on validation images than the best, which is measured on test images": out[1],
            "no test image is right under attack and wrong without": bool(out[2]),
            "all runs on a data set are measured on equally many test images": all(len(n) == 1 for n in sizes.values())}


def pairs(jobs: Sequence[Job]) -> list[tuple[str, tuple[str, str]]]:
    """(data set, pair) for those of PAIRS of which both are planned there."""
    plan = planned(jobs)
    return [(d, p) for d in unique(d for d, _ in plan) for p in PAIRS if all((d, name) in plan for name in p)]


def _gaps(courses: Sequence[Course]) -> dict:
    """Lines of `course.gaps` by data set and method."""
    return {(row.dataset, row.method): row for row in course.gaps(courses).itertuples()}


def _public() -> dict:
    """Public gaps of the smaller network by data set and schedule."""
    return {(row.dataset, row.schedule): row for row in public.overfitting_gaps().itertuples()
            if row.model == "PreAct ResNet-18"}


def _train_change(group: Sequence[Course]) -> float:
    """Robust error on training images at the end minus that at the best epoch, mean over seeds."""
    return float(np.mean([_at(c, "train_robust", course.best_epoch(c.epochs)).mean()
                          - c.arrays["train_robust"][np.isin(c.arrays["epoch"], ending(c))].mean() for c in group]))


def _at(c: Course, name: str, epoch: int) -> np.ndarray:
    (place,) = np.flatnonzero(c.arrays["epoch"] == epoch)
    return c.arrays[name][place].astype(np.float64)


def _percent(row, name: str) -> str:
    return _within(*(getattr(row, name + end) for end in ("", "_low", "_high")))


def _within(value: float, low: float, high: float) -> str:
    """`percent`, its interval cut to what an accuracy can be."""
    return percent(value, max(low, 0.0), min(high, 1.0))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _word(low: float, high: float) -> str:
    return "larger" if low > 0 else "smaller" if high < 0 else "unclear"


def _above(low: float, high: float) -> str:
    return {"larger": "above 0", "smaller": "below 0"}.get(_word(low, high), "unclear")


def _sorted(lead: str, found: Sequence[tuple[str, int, float, float, float]]) -> str:
    """(label, seeds, value, low, high) in points, grouped by where the interval lies; says where fewer seeds stand behind one."""
    names = {"larger": f"{lead} above 0", "unclear": "Unclear, as the interval contains 0", "smaller": "Below 0"}
    groups: dict[str, list[str]] = {name: [] for name in names.values()}
    most = max((seeds for _, seeds, *_ in found), default=0)
    for label, seeds, value, low, high in found:
        few = f" ({seeds} seed{'s' if seeds > 1 else ''})" if seeds < most else ""
        groups[names[_word(low, high)]].append(f"{label} {_signed(value)}{few}")
    said = [f"{name}: {'; '.join(group) or 'none'}." for name, group in groups.items()]
    return " ".join(said) if found else f"{lead}: not measured yet."


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # no negative zero


def _none(what: str, courses: Sequence[Course], *methods: str) -> str:
    mine = [c for c in courses if c.spec.method.name in methods]
    return f"{what}: {course.lost_text(mine) or f'{NOT_RUN}.'}"


def _missing(courses: Sequence[Course], jobs: Sequence[Job], names: Sequence[str]) -> str:
    done = by_key(courses)
    said: dict[str, list[str]] = {}
    for d, m in planned(jobs):
        if m in names and (d, m) not in done:
            said.setdefault(absent(courses, d, m).capitalize(), []).append(method_label(m))
    return " ".join(f"{word}: {'; '.join(unique(labels))}." for word, labels in said.items())
