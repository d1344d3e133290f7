"""Verdicts on claims about the course of training: rates of the weights, early losses, gaps (`rules.MEASURES`)."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import course, stats
from .config import RunSpec
from .course import Course
from .effects import METRICS, NOT, NOT_TESTED, PARTLY, REPRODUCED, Effect, pair_label
from .report import dataset_label, method_label, unique
from .rules import Rule
from .runs import Job, Store

Finding = tuple[str, str]  # verdict, why


def judge(store: Store, jobs: Sequence[Job], rule: Rule, diverged: Sequence[RunSpec]) -> dict:
    """verdict, why, effects (of the rule's pairs, on data sets with enough seeds), detail (all), remark.

    Args:
        jobs: finished runs that count. diverged: runs that ended without a result.
    """
    courses = [c for c in course.finished(store, jobs) if _measured(c, rule)]
    detail = EFFECTS[rule.measure](courses, rule)
    found = {(e.dataset, e.method, e.baseline): e.seeds for e in detail}
    seeds = {dataset: min(found.get((dataset, *pair), 0) for pair in rule.pairs) for dataset, _, _ in found}
    whole = {dataset for dataset, n in seeds.items() if n >= rule.min_seeds}
    effects = tuple(e for e in detail if e.dataset in whole and (e.method, e.baseline) in rule.pairs)
    out = {"effects": effects, "detail": tuple(detail), "remark": ""}
    if len(whole) < rule.min_datasets:
        there = ", ".join(f"{n} on {dataset_label(dataset)}" for dataset, n in seeds.items()) or "none"
        lost = ", ".join(unique(f"{method_label(s.method.name)} on {dataset_label(s.data.name)}" for s in diverged))
        return out | {"verdict": NOT_TESTED, "why": f"{rule.min_seeds} seeds of all that is compared are needed on "
                      f"{rule.min_datasets} data set{'s' if rule.min_datasets > 1 else ''}, finished of all of it: {there}"
                      + (f"; diverged: {lost}" if lost else "")}
    judged = [c for c in courses if c.spec.data.name in whole]
    verdict, why = VERDICTS[rule.measure](judged, effects, rule, diverged)
    if rule.controls and verdict in (REPRODUCED, PARTLY):
        out["remark"] = _against_controls(detail, rule, whole)
    return out | {"verdict": verdict, "why": why}


def _measured(c: Course, rule: Rule) -> bool:
    if rule.measure == "rate":
        return "w_norm" in c.arrays
    if rule.measure == "escape":
        return "train_loss" in c.arrays and set(range(1, rule.epochs + 1)) <= set(c.arrays["epoch"].tolist())
    attack, r = c.spec.attack, rule.robust
    right = attack.threat == r.threat and math.isclose(attack.eps, r.eps, rel_tol=1e-6)
    return right and "test_robust" in c.arrays and c.arrays["test_robust"].shape[1] >= r.min_images


# -- effects ----------------------------------------------------------------------------------------------------------
def _rates(courses: Sequence[Course], rule: Rule) -> list[Effect]:
    frame = course.ratios(courses, rule.pairs)
    return [Effect(method, baseline, metric, "none", dataset, 0, len(mine), *_over_seeds(np.log(mine[metric]), np.exp),
                   unit="times")
            for (dataset, method, baseline), mine in frame.groupby(["dataset", "method", "baseline"], sort=False)
            for metric in rule.metrics]


def _escapes(courses: Sequence[Course], rule: Rule) -> list[Effect]:
    out = []
    for (dataset, pair), seeds in _early(courses, rule).items():
        images = min(c.arrays["train_loss"].shape[1] for c in courses)
        mean = [float(np.mean(np.subtract(*losses))) for losses in seeds.values()]
        out.append(Effect(*pair, "loss", "none", dataset, images, len(seeds), *_over_seeds(np.array(mean)), unit="nats"))
    return out


def _gaps(courses: Sequence[Course], rule: Rule) -> list[Effect]:
    frame = course.gap_differences(courses, [*rule.pairs, *rule.controls])
    return [Effect(line.method, line.baseline, "gap", _attack(courses), line.dataset, line.n, line.seeds, line.value, line.low,
                   line.high) for line in frame.itertuples()]


def _own_gaps(courses: Sequence[Course], rule: Rule) -> list[Effect]:
    names = {name for name, _ in rule.pairs}
    return [Effect(line.method, line.method, "gap", _attack(courses), line.dataset, line.n, line.seeds, line.gap, line.gap_low,
                   line.gap_high) for line in course.gaps(courses).itertuples() if line.method in names]


def _early(courses: Sequence[Course], rule: Rule) -> dict:
    """(data set, pair) -> seed -> (losses of the method, of the baseline) after epochs 1 to `rule.epochs`."""
    frame = course.early_losses(courses, rule.epochs)
    found = {key: mine.loc[mine["epoch"] > 0, "loss"].to_numpy() for key, mine in frame.groupby(course.KEYS, sort=False)}
    out: dict = {}
    for pair in rule.pairs:
        for dataset, method, seed in found:
            if method == pair[0] and (dataset, pair[1], seed) in found:
                out.setdefault((dataset, pair), {})[seed] = found[dataset, method, seed], found[dataset, pair[1], seed]
    return out


def _over_seeds(values: np.ndarray, back: Callable = lambda x: x) -> tuple[float, float, float]:
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(back(values.mean())), math.nan, math.nan
    found = stats.student_interval(values)
    return tuple(float(back(x)) for x in found[:3])


def _attack(courses: Sequence[Course]) -> str:
    return f"pgd{courses[0].spec.follow.steps}"


# -- verdicts ---------------------------------------------------------------------------------------------------------
def _rate(courses: Sequence[Course], effects: Sequence[Effect], rule: Rule, diverged: Sequence[RunSpec]) -> Finding:
    frame = course.ratios(courses, rule.pairs)
    first, method = rule.pairs[0], rule.pairs[0][0]
    above = {(pair, metric): bool((_of(frame, pair)[metric] > 1).all()) for pair in rule.pairs for metric in rule.metrics}
    unstable = [c for c in courses if c.spec.method.name == method and not course.stable(c)]
    lost = [s for s in diverged if s.method.name == method]
    steady = not unstable and not lost
    why = "; ".join(f"{METRICS[metric]} over {method_label(pair[1])} above 1 in every seed: "
                    f"{'yes' if holds else 'no'}" for (pair, metric), holds in above.items())
    why += f"; stable: {'yes' if steady else 'no'}"
    if all(above.values()) and steady:
        return REPRODUCED, why
    return (PARTLY if above[first, "angle"] else NOT), why


def _escape(courses: Sequence[Course], effects: Sequence[Effect], rule: Rule, diverged: Sequence[RunSpec]) -> Finding:
    passed, said = {}, []
    for pair in rule.pairs:
        seeds = [losses for (_, p), by_seed in _early(courses, rule).items() if p == pair for losses in by_seed.values()]
        wins = [int((mine < theirs).sum()) for mine, theirs in seeds]
        passed[pair] = all(w >= rule.epochs - 1 for w in wins)
        said.append(f"{pair_label(pair)}: lower in at least {rule.epochs - 1} of {rule.epochs} epochs in "
                    f"{sum(w >= rule.epochs - 1 for w in wins)} of {len(wins)} runs")
    verdict = REPRODUCED if all(passed.values()) else PARTLY if passed[rule.pairs[0]] else NOT
    return verdict, "; ".join(said)


def _less(courses: Sequence[Course], effects: Sequence[Effect], rule: Rule, diverged: Sequence[RunSpec]) -> Finding:
    own = {(line.dataset, line.method): line.gap for line in course.gaps(courses).itertuples()}
    first = rule.pairs[0]
    smallest = min(gap for (_, method), gap in own.items() if method == first[1])
    if smallest < rule.margin:
        return NOT_TESTED, f"the gap of {method_label(first[1])} is {100 * smallest:.1f} points: no overfitting to reduce"
    return _below(effects, first)


def _below(effects: Sequence[Effect], first: tuple[str, str]) -> Finding:
    clear = [e for e in effects if e.high < 0]
    why = f"{len(clear)} of {len(effects)} intervals below 0, {sum(e.low > 0 for e in effects)} above"
    if len(clear) == len(effects):
        return REPRODUCED, why
    return (PARTLY if all(e.value < 0 for e in effects if (e.method, e.baseline) == first) else NOT), why


def _overfits(courses: Sequence[Course], effects: Sequence[Effect], rule: Rule, diverged: Sequence[RunSpec]) -> Finding:
    low = min(e.low for e in effects)
    why = f"lower end of the gap's interval: {100 * low:+.1f} points"
    return (REPRODUCED if low > rule.margin else PARTLY if low > 0 else NOT), why


def _plateau(courses: Sequence[Course], effects: Sequence[Effect], rule: Rule, diverged: Sequence[RunSpec]) -> Finding:
    own = {(line.dataset, line.method): line.gap for line in course.gaps(courses).itertuples()}
    said = ", ".join(f"{method_label(m)} {100 * own[d, m]:.1f}" for d in unique(d for d, _ in own) for m in rule.pairs[0])
    if any(max(own[d, m] for m in rule.pairs[0]) < rule.margin for d, _ in own):
        return NOT_TESTED, f"gaps in points: {said}; no overfitting to explain"
    above = all(e.low > 0 for e in effects)
    return (REPRODUCED if above else PARTLY if all(e.value > 0 for e in effects) else NOT), f"gaps in points: {said}"


def _against_controls(detail: Sequence[Effect], rule: Rule, whole: set[str]) -> str:
    gone, missing = [], []
    for pair in rule.controls:
        mine = [e for e in detail if (e.method, e.baseline) == pair and e.dataset in whole and e.seeds >= rule.min_seeds]
        if not all(e.high < 0 for e in mine):
            gone.append(pair_label(pair))
        elif len(mine) < len(whole):
            missing.append(pair_label(pair))
    parts = [f"explanation not supported: no clear difference in {', '.join(gone)}"] if gone else []
    parts += [f"controls without enough runs: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) or "the difference stands against all controls"


def _of(frame, pair: tuple[str, str]):
    return frame[(frame["method"] == pair[0]) & (frame["baseline"] == pair[1])]


EFFECTS = {"rate": _rates, "escape": _escapes, "less_overfitting": _gaps, "overfits": _own_gaps, "plateau": _gaps}
VERDICTS = {"rate": _rate, "escape": _escape, "less_overfitting": _less, "overfits": _overfits, "plateau": _plateau}
MEASURES = tuple(EFFECTS)
