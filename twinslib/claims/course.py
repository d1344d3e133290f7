"""Claims about the course of training: rates of the weights, early losses, gaps."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..evidence import course, frame
from ..evidence.course import Course
from ..evidence.frame import Row
from ..specs.labels import dataset_label, method_label, unique
from ..specs.run import RunSpec
from ..studies.rules import Rule
from .effects import METRICS, Effect, by_dataset, compared, pair_label
from .verdict import PARTLY, REPRODUCED, Evidence, against_controls, asked_of, joined, level, sifted, too_few

MEASURES = ("rate", "escape", "less_overfitting", "overfits", "plateau")
LENGTHS = ("equal length", "equal epochs after the drop")  # at which plateaus are compared
UNITS = {"rate": {"over": "ratios", "unit": "times"}, "escape": {"over": "seeds", "unit": "nats"}}


def rows(courses: Sequence[Course], rule: Rule) -> list[Row]:
    """What a rule of `MEASURES` looks at: of a run that recorded it the rates and whether it is stable, the losses after each of
    the first epochs, or its gap by image, of a short plateau also that up to the epoch of `_cut`."""
    out = []
    for c in courses:
        a, metrics = c.arrays, {}
        if rule.measure == "rate" and "w_norm" in a:
            metrics = course.rates([c]).iloc[0][list(course.RATES)].to_dict() | {"stable": course.stable(c)}
        if rule.measure == "escape" and "train_loss" in a and set(range(1, rule.epochs + 1)) <= set(a["epoch"].tolist()):
            early = course.early_losses([c], rule.epochs)
            metrics = {"loss": early.loc[early["epoch"] > 0, "loss"].to_numpy()}
        images = a["train_loss"].shape[1] if rule.measure == "escape" and metrics else 0
        out += [Row("", c.spec, (), name, np.atleast_1d(value), images=images) for name, value in metrics.items()]
        if rule.robust and "test_robust" in a:
            end = _cut(c, courses, rule) if rule.measure == "plateau" else None
            out += [_gap(c, "last")] + ([_gap(course.until(c, end), LENGTHS[1])] if end is not None else [])
    return out


def _gap(c: Course, at: str) -> Row:
    ends = c.at("test_robust", c.best).mean(), c.end().mean()
    return Row("", c.spec, (), "gap", c.gap, f"pgd{c.spec.follow.steps}", c.spec.attack.threat, c.spec.attack.eps,
               at, len(c.arrays["test_robust"][0]), ends=ends)


def _cut(c: Course, courses: Sequence[Course], rule: Rule) -> int | None:
    """The epoch at which a run has had as many epochs after the drop of its rate as that with the longer plateau has in all; None
    where no such run trains for as long."""
    (long, _), o = rule.pairs[0], c.spec.optim
    if c.spec.method.name == long:
        return o.epochs
    other = next((x.spec.optim for x in courses if (x.spec.method.name, x.spec.data.name) == (long, c.spec.data.name)), None)
    if other is None or other.epochs != o.epochs:
        return None
    return o.epochs - (round((1 - o.milestones[0]) * o.epochs) - round((1 - other.milestones[0]) * other.epochs))


def weigh(found: Sequence[Row], guess: Mapping[str, float], rule: Rule, diverged: Sequence[RunSpec] = ()) -> Evidence:
    """What finished runs say on a rule of `MEASURES`. `found`: `rows` of them. `diverged`: runs that ended without a result."""
    here = {d: frame.where(found, dataset=d) for d in unique(row.dataset for row in found)}
    seeds = {d: min(len(compared(mine, rule, pair, rule.metrics[0])) for pair in rule.pairs) for d, mine in here.items()}
    whole = [d for d in here if seeds.get(d, 0) >= rule.min_seeds]

    def measured(wide: float) -> list[Effect]:
        return [e for mine in here.values() for pair in (*rule.pairs, *rule.controls)
                for e in _effects(mine, guess, rule, pair, wide)]

    def decisive(detail: Sequence[Effect]) -> list[Effect]:
        return [e for e in detail if e.dataset in whole and e.pair in rule.pairs]

    detail = measured(level(sum(bool(asked_of(rule, e)) for e in decisive(measured(0.95)))))
    effects, lack = decisive(detail), too_few(rule, seeds)
    if lack and diverged:
        lost = unique(f"{method_label(s.method.name)} on {dataset_label(s.data.name)}" for s in diverged)
        lack += f"; diverged: {', '.join(lost)}"
    out = sifted(rule, effects, detail, lack or ("" if effects else "the runs that are compared differ in their length"))
    if out.lack:
        return out
    judged = {d: mine for d, mine in here.items() if any(e.dataset == d for e in out.effects)}
    out = joined(out, CONDITIONS.get(rule.measure, lambda *_: Evidence())(judged, rule, diverged))
    controls = {pair: [e for e in detail if e.pair == pair and e.dataset in whole and e.seeds >= rule.min_seeds]
                for pair in rule.controls}
    return dataclasses.replace(out, remark=against_controls(
        rule, controls, len(whole), "explanation not supported: no clear difference", "the difference stands"))


def _effects(mine: Sequence[Row], guess: Mapping[str, float], rule: Rule, pair: tuple[str, str], wide: float) -> list[Effect]:
    """Of one data set and pair: in each measure, or for plateaus at equal length and at equally many epochs after the drop (none
    where the lengths differ)."""
    options = {"level": wide} | UNITS.get(rule.measure, {})
    if rule.measure != "plateau":
        return [e for metric in rule.metrics for e in by_dataset(mine, rule, pair, metric, guess, **options)]
    cut = by_dataset(mine, rule, pair, "gap", guess, at=(LENGTHS[1],) * 2, part=LENGTHS[1], where=LENGTHS[1], **options)
    whole = by_dataset(mine, rule, pair, "gap", guess, part=LENGTHS[0], where=LENGTHS[0], **options)
    return [*whole, *cut] if cut else []


def _steady(judged: Mapping[str, list[Row]], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    """The angle above that of every rival in each seed, the rate above the first one's, and nothing unstable."""
    def above(pair: tuple[str, str], metric: str) -> bool:
        return all(a.hits[0] > b.hits[0] for mine in judged.values() for a, b in compared(mine, rule, pair, metric))

    method, first = rule.pairs[0][0], rule.pairs[0]
    angle = {pair: above(pair, "angle") for pair in rule.pairs}
    stable = [a.hits[0] for mine in judged.values() for pair in rule.pairs for a, _ in compared(mine, rule, pair, "stable")]
    steady = all(stable) and method not in {s.method.name for s in diverged}
    words = [f"{METRICS['angle']} over {method_label(pair[1])} above 1 in every seed: {'yes' if yes else 'no'}"
             for pair, yes in angle.items()]
    return Evidence(holds={REPRODUCED: all(angle.values()) and above(first, "lr_over_w2") and steady, PARTLY: angle[first]},
                    said="; ".join([*words, f"stable: {'yes' if steady else 'no'}"]))


def _every_seed(judged: Mapping[str, list[Row]], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    """Lower in all but one epoch, in each run."""
    passed, words = {}, []
    for pair in rule.pairs:
        wins = [int((a.hits < b.hits).sum()) >= rule.epochs - 1 for mine in judged.values()
                for a, b in compared(mine, rule, pair, "loss")]
        passed[pair] = all(wins)
        words.append(f"{pair_label(pair)}: lower in at least {rule.epochs - 1} of {rule.epochs} epochs in {sum(wins)} of "
                     f"{len(wins)} runs")
    return Evidence(holds={REPRODUCED: all(passed.values()), PARTLY: passed[rule.pairs[0]]}, said="; ".join(words))


def _something_to_reduce(judged: Mapping[str, list[Row]], rule: Rule, diverged: Sequence[RunSpec]) -> Evidence:
    """The baseline must have a gap that could be smaller."""
    first = rule.pairs[0]
    for d, mine in judged.items():
        own = float(np.mean([b.hits.mean() for _, b in compared(mine, rule, first, "gap")]))
        if own < rule.margin:
            return Evidence(lack=f"the gap of {method_label(first[1])} on {dataset_label(d)} is {100 * own:.1f} points: no "
                            "overfitting to reduce")
    return Evidence()


CONDITIONS = {"rate": _steady, "escape": _every_seed, "less_overfitting": _something_to_reduce}
