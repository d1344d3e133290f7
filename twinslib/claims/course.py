"""Evidence on claims about the course of training: rates of the weights, early losses, gaps."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from ..base import stats
from ..evidence import course
from ..evidence.course import Course
from ..specs.labels import dataset_label, method_label, unique
from ..specs.run import RunSpec
from ..store.jobs import Job
from ..store.store import Store
from ..studies.rules import Rule
from .effects import METRICS, PARTLY, REPRODUCED, Effect, Evidence, apart, asked_of, level, said, too_few
from .effects import pair_label as label
from .transfer import chance

MEASURES = ("rate", "escape", "less_overfitting", "overfits", "plateau")


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run that the rule compares."""
    names = {name for pair in (*rule.pairs, *rule.controls) for name in pair}
    return bool(job.spec.follow) and not job.ship and job.spec.method.name in names


def evidence(store: Store, jobs: Sequence[Job], rule: Rule, diverged: Sequence[RunSpec] = ()) -> Evidence:
    """What finished runs that count say on a rule of `MEASURES`.

    Args:
        diverged: runs that ended without a result.
    """
    courses = [c for c in course.finished(store, jobs) if _measured(c, rule)]
    guess = chance(store, jobs)
    datasets = unique(c.spec.data.name for c in courses)
    pairs = [*rule.pairs, *rule.controls]
    by_pair = {d: {pair: _seeds(courses, d, pair) for pair in pairs} for d in datasets}
    seeds = {d: min(len(by_pair[d][pair]) for pair in rule.pairs) for d in datasets if by_pair[d]}
    whole = [d for d in datasets if seeds.get(d, 0) >= rule.min_seeds]

    def measured(wide: float) -> list[Effect]:
        return [e for d in datasets for pair in pairs if by_pair[d][pair]
                for e in EFFECTS[rule.measure](by_pair[d][pair], d, pair, rule, guess.get(d, math.nan), wide)]

    def decisive(detail: Sequence[Effect]) -> list[Effect]:
        return [e for e in detail if e.dataset in whole and (e.method, e.baseline) in rule.pairs]

    detail = measured(0.95)
    wide = level(sum(asked_of(rule, e) for e in decisive(detail)))
    detail = detail if wide == 0.95 else measured(wide)
    effects = decisive(detail)
    near = apart(effects, rule)
    out = {"detail": tuple(detail), "flagged": tuple(near)}
    lack = too_few(rule, seeds)
    if lack:
        lost = ", ".join(unique(f"{method_label(s.method.name)} on {dataset_label(s.data.name)}" for s in diverged))
        return Evidence(**out, lack=lack + (f"; diverged: {lost}" if lost else ""))
    if not effects:
        return Evidence(**out, lack="the runs that are compared differ in their length")
    clear = tuple(e for e in effects if e not in near)
    if not clear:
        names = ", ".join(unique(f"{dataset_label(e.dataset)}, {100 * min(e.ours, e.theirs):.1f} %" for e in near))
        return Evidence(**out, lack=f"near chance ({100 * near[0].chance:.1f} %) at one end: {names}")
    own = CONDITIONS[rule.measure](by_pair, [d for d in whole if any(e.dataset == d for e in clear)], rule, diverged)
    if own.lack:
        return dataclasses.replace(own, **out, effects=clear)
    words = said(rule, clear) + (f"; {own.said}" if own.said else "")
    remark = _against_controls(detail, rule, whole) if rule.controls else ""
    return dataclasses.replace(own, **out, effects=clear, everywhere=tuple(effects) if near else (), said=words, remark=remark)


def _measured(c: Course, rule: Rule) -> bool:
    if rule.measure == "rate":
        return "w_norm" in c.arrays
    if rule.measure == "escape":
        return "train_loss" in c.arrays and set(range(1, rule.epochs + 1)) <= set(c.arrays["epoch"].tolist())
    attack, r = c.spec.attack, rule.robust
    right = attack.threat == r.threat and math.isclose(attack.eps, r.eps, rel_tol=1e-6)
    return right and "test_robust" in c.arrays and c.arrays["test_robust"].shape[1] >= r.min_images


def _seeds(courses: Sequence[Course], dataset: str, pair: tuple[str, str]) -> dict[int, tuple[Course, Course]]:
    """Seed -> the courses of both methods of a pair."""
    mine = {(c.spec.method.name, c.spec.seed): c for c in courses if c.spec.data.name == dataset}
    return {seed: (c, mine[pair[1], seed]) for (name, seed), c in mine.items() if name == pair[0] and (pair[1], seed) in mine}


Seeds = dict[int, tuple[Course, Course]]


def _rates(seeds: Seeds, dataset: str, pair: tuple[str, str], rule: Rule, guess: float, wide: float) -> list[Effect]:
    frame = course.ratios([c for both in seeds.values() for c in both], [pair])
    return [Effect(*pair, metric, "none", dataset, 0, len(seeds), *_over_seeds(np.log(frame[metric]), wide, np.exp), unit="times",
                   level=wide) for metric in rule.metrics]


def _escapes(seeds: Seeds, dataset: str, pair: tuple[str, str], rule: Rule, guess: float, wide: float) -> list[Effect]:
    images = min(c.arrays["train_loss"].shape[1] for both in seeds.values() for c in both)
    mean = [float(np.mean(np.subtract(*losses))) for losses in _early(seeds, rule)]
    return [Effect(*pair, "loss", "none", dataset, images, len(seeds), *_over_seeds(mean, wide), unit="nats", level=wide)]


def _gaps(seeds: Seeds, dataset: str, pair: tuple[str, str], rule: Rule, guess: float, wide: float,
          cut: Callable[[Course], Course] = lambda c: c, part: str = "") -> list[Effect]:
    """Gap of the method minus that of the baseline, or the gap itself where both are the same."""
    both = [[cut(c) for c in found] for found in seeds.values()]
    same = pair[0] == pair[1]
    values = np.stack([course.gap_values(a) - (0 if same else course.gap_values(b)) for a, b in both])
    ends = [float(np.mean([[course.robust_at(found[i], course.best_epoch(found[i].epochs)).mean(),
                            course.last_epochs(found[i]).mean()] for found in both], axis=0).min()) for i in (0, 1)]
    found = stats.crossed_mean(values, wide)
    return [Effect(*pair, "gap", f"pgd{both[0][0].spec.follow.steps}", dataset, found.n, len(seeds), *found[:3], level=wide,
                   ours=ends[0], theirs=ends[1], chance=guess, part=part, where=part)]


def _plateaus(seeds: Seeds, dataset: str, pair: tuple[str, str], rule: Rule, guess: float, wide: float) -> list[Effect]:
    """At equal length, and at equally many epochs after the drop of the rate; none where the lengths differ."""
    long, short = next(iter(seeds.values()))
    if long.spec.optim.epochs != short.spec.optim.epochs:
        return []
    after = [round((1 - c.spec.optim.milestones[0]) * c.spec.optim.epochs) for c in (long, short)]
    end = short.spec.optim.epochs - (after[1] - after[0])

    def cut(c: Course) -> Course:
        return c if c.spec.method.name == pair[0] else course.until(c, end)

    return [*_gaps(seeds, dataset, pair, rule, guess, wide, part="equal length"),
            *_gaps(seeds, dataset, pair, rule, guess, wide, cut, part="equal epochs after the drop")]


def _early(seeds: Seeds, rule: Rule) -> list[tuple[np.ndarray, np.ndarray]]:
    """By seed the losses of the method and of the baseline after epochs 1 to `rule.epochs`."""
    out = []
    for both in seeds.values():
        frames = [course.early_losses([c], rule.epochs) for c in both]
        out.append(tuple(f.loc[f["epoch"] > 0, "loss"].to_numpy() for f in frames))
    return out


def _over_seeds(values: Sequence[float], wide: float, back: Callable = lambda x: x) -> tuple[float, float, float]:
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(back(values.mean())), math.nan, math.nan
    return tuple(float(back(x)) for x in stats.student_interval(values, wide)[:3])


def _steady(found: dict, whole: Sequence[str], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    method, first = rule.pairs[0][0], rule.pairs[0]
    above = {pair: all((_ratios(found[d][pair], pair)[metric] > 1).all() for d in whole for metric in ("angle",)) for pair in
             rule.pairs}
    rate = all((_ratios(found[d][first], first)["lr_over_w2"] > 1).all() for d in whole)
    unstable = [c for d in whole for pair in rule.pairs for c, _ in found[d][pair].values() if not course.stable(c)]
    steady = not unstable and not [s for s in diverged if s.method.name == method]
    words = "; ".join([*(f"{METRICS['angle']} over {method_label(pair[1])} above 1 in every seed: {'yes' if yes else 'no'}"
                         for pair, yes in above.items()), f"stable: {'yes' if steady else 'no'}"])
    return Evidence(holds={REPRODUCED: all(above.values()) and rate and steady, PARTLY: above[first]}, said=words)


def _ratios(seeds: Seeds, pair: tuple[str, str]):
    return course.ratios([c for both in seeds.values() for c in both], [pair])


def _every_seed(found: dict, whole: Sequence[str], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    passed, words = {}, []
    for pair in rule.pairs:
        wins = [int((mine < theirs).sum()) for d in whole for mine, theirs in _early(found[d][pair], rule)]
        passed[pair] = all(w >= rule.epochs - 1 for w in wins)
        words.append(f"{label(pair)}: lower in at least {rule.epochs - 1} of {rule.epochs} epochs in "
                     f"{sum(w >= rule.epochs - 1 for w in wins)} of {len(wins)} runs")
    return Evidence(holds={REPRODUCED: all(passed.values()), PARTLY: passed[rule.pairs[0]]}, said="; ".join(words))


def _something_to_reduce(found: dict, whole: Sequence[str], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    """The baseline must have a gap that could be smaller."""
    first = rule.pairs[0]
    for d in whole:
        own = stats.crossed_mean(np.stack([course.gap_values(c) for _, c in found[d][first].values()])).estimate
        if own < rule.margin:
            return Evidence(lack=f"the gap of {method_label(first[1])} on {dataset_label(d)} is {100 * own:.1f} points: no "
                            "overfitting to reduce")
    return Evidence()


def _nothing(found: dict, whole: Sequence[str], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    return Evidence()


def _against_controls(detail: Sequence[Effect], rule: Rule, whole: Sequence[str]) -> str:
    gone, missing = [], []
    for pair in rule.controls:
        mine = [e for e in detail if (e.method, e.baseline) == pair and e.dataset in whole and e.seeds >= rule.min_seeds]
        if not all(e.high < 0 for e in mine):
            gone.append(label(pair))
        elif len(mine) < len(whole):
            missing.append(label(pair))
    parts = [f"explanation not supported: no clear difference in {', '.join(gone)}"] if gone else []
    parts += [f"controls without enough runs: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) or "the difference stands against all controls"


EFFECTS = {"rate": _rates, "escape": _escapes, "less_overfitting": _gaps, "overfits": _gaps, "plateau": _plateaus}
CONDITIONS = {"rate": _steady, "escape": _every_seed, "less_overfitting": _something_to_reduce, "overfits": _nothing,
              "plateau": _nothing}
