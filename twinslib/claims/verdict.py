"""The five words of a verdict, and how a rule's bounds turn intervals into one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from ..specs.labels import dataset_label, unique
from ..studies.rules import Bound, Rule
from .effects import Effect, pair_label

REPRODUCED, PARTLY, INCONCLUSIVE, NOT = "reproduced", "partly", "inconclusive", "not"
NOT_TESTED = "not tested at this scale"
SAID = {REPRODUCED: "reproduced", PARTLY: "partly reproduced", INCONCLUSIVE: "inconclusive", NOT: "not reproduced",
        NOT_TESTED: NOT_TESTED}  # the ledger's words, with what they leave out
NOT_JUDGED = "not judged"  # what a study of one's own says of a claim, with its effects; no verdict
VERDICTS = (REPRODUCED, PARTLY, INCONCLUSIVE, NOT, NOT_TESTED)
CREDIT = {REPRODUCED: 2, PARTLY: 1}  # how much a verdict grants the claim; the other three grant nothing
NEAR = 0.05  # accuracy above that of guessing


@dataclass(frozen=True)
class Evidence:
    """What finished runs say on a rule."""

    effects: tuple[Effect, ...] = ()  # decide
    flagged: tuple[Effect, ...] = ()  # on data sets near chance, shown and left out
    everywhere: tuple[Effect, ...] = ()  # what would decide with those left in; none where nothing is left out
    detail: tuple[Effect, ...] = ()  # all that is measured
    holds: Mapping[str, bool] = field(default_factory=dict)  # conditions beside the intervals, by the verdict that needs them
    said: str = ""  # in words
    lack: str = ""  # why nothing can be judged; then there is no verdict
    remark: str = ""  # on a verdict that grants something
    verdict: str = ""  # where a rule is more than bounds on intervals, what it comes to


def level(intervals: int) -> float:
    """Of each of so many intervals that decide together: 95 % for one or two, then such that all their 5 % are one.

    A verdict that grants something needs an interval above what has no effect, and "not" one below what is claimed. Of k
    intervals, each missing on that side with (1 - level) / 2, one does with at most 5 %.
    """
    return 1 - 0.1 / max(intervals, 2)


def names(bound: Bound, e: Effect) -> bool:
    return set(bound.of) <= e.words


def asked_of(rule: Rule, e: Effect) -> list[Bound]:
    """The bounds of `rule.asked` that name the effect."""
    return [b for bounds in rule.asked for b in bounds if names(b, e)]


def ends(rule: Rule, e: Effect) -> tuple[float, float]:
    """The interval, turned round where a smaller value is what is claimed."""
    return (-e.high, -e.low) if rule.lower else (e.low, e.high)


def above(rule: Rule, bound: Bound, e: Effect) -> bool:
    """True if the interval lies above what is asked."""
    return ends(rule, e)[0] > bound.above


def below(rule: Rule, bound: Bound, e: Effect) -> bool:
    """True if the interval lies wholly below what is claimed."""
    return bound.claimed is not None and ends(rule, e)[1] < bound.claimed


def decide(rule: Rule, effects: Sequence[Effect], holds: Mapping[str, bool] | None = None) -> str:
    """The verdict on intervals alone.

    Reproduced: of one alternative of `rule.asked` all bounds hold, each for at least one effect. Partly: of one of
    `rule.partly`. Not: in each alternative of `rule.asked` an effect is `below` and not `above`. Else inconclusive.

    Args:
        holds: conditions beside the intervals; a verdict whose condition fails is not given.
    """
    def hold(bound: Bound) -> bool:
        mine = [e for e in effects if names(bound, e)]
        reached = all(bound.reach is None or ends(rule, e)[1] >= bound.reach for e in mine)
        return bool(mine) and reached and all(above(rule, bound, e) for e in mine)

    for verdict, alternatives in ((REPRODUCED, rule.asked), (PARTLY, rule.partly)):
        if (holds or {}).get(verdict, True) and any(all(map(hold, bounds)) for bounds in alternatives):
            return verdict
    refuted = [any(names(b, e) and below(rule, b, e) and not above(rule, b, e) for b in bounds for e in effects)
               for bounds in rule.asked]
    return NOT if refuted and all(refuted) else INCONCLUSIVE


def lesser(verdict: str, other: str) -> str:
    """`verdict`, or where `other` grants the claim less, that much less: partly, or inconclusive."""
    if CREDIT.get(other, 0) >= CREDIT.get(verdict, 0):
        return verdict
    return PARTLY if other == PARTLY else INCONCLUSIVE


def agreed(verdict: str, everywhere: str) -> str:
    """What remains of a verdict on what is not near chance beside that on everything: leaving out can only withhold, so nothing
    is granted, and nothing denied, that would not be with everything."""
    return INCONCLUSIVE if verdict == NOT != everywhere else lesser(verdict, everywhere)


def judge(rule: Rule, found: Evidence) -> str:
    """The verdict on evidence, by `decide`; where data sets near chance are left out, what is `agreed` with them."""
    if found.lack:
        return NOT_TESTED
    verdict = found.verdict or decide(rule, found.effects, found.holds)
    return agreed(verdict, decide(rule, found.everywhere, found.holds)) if found.everywhere else verdict


def chance_margin(rule: Rule) -> float:
    """Accuracy above guessing up to which a network counts as near chance, as a fraction. Such a network decides nothing; under a
    rule that judges nothing ("shown") it is only flagged."""
    return NEAR if rule.measure == "shown" else rule.chance


def apart(effects: Sequence[Effect], rule: Rule, *by: str) -> list[Effect]:
    """All effects on those data sets (or what else the attributes `by` tell apart) on which one of them is near chance."""
    place = attrgetter(*(by or ("dataset",)))
    near = {place(e) for e in effects if e.near_chance(chance_margin(rule))}
    return [e for e in effects if place(e) in near]


def sifted(rule: Rule, effects: Sequence[Effect], detail: Sequence[Effect], lack: str = "", least: int = 1,
           by: Sequence[str] = ()) -> Evidence:
    """Effects that would decide, without those near chance (`apart`), which are flagged; none where something is lacking.
    `least`: on so many data sets each comparison must be left. `by`: attributes of places that are left out one by one."""
    near = apart(effects, rule, *by)
    clear = tuple(e for e in effects if e not in near)
    left = [{e.dataset for e in clear if e.comparison == c} for c in unique(e.comparison for e in effects)]
    if near and not lack and any(len(datasets) < least for datasets in left):
        lack = f"near chance: {', '.join(unique(dataset_label(e.dataset) for e in near))}; too few data sets are left"
    out = Evidence(flagged=tuple(near), detail=tuple(detail), lack=lack)
    return out if lack else replace(out, effects=clear, everywhere=tuple(effects) if near else (), said=said(rule, clear))


def joined(found: Evidence, own: Evidence) -> Evidence:
    """Evidence of intervals together with conditions beside them."""
    return replace(found, holds=own.holds, lack=found.lack or own.lack, said="; ".join(filter(None, (found.said, own.said))))


def against(rule: Rule, e: Effect) -> str:
    """What the rule asks of an effect and whether its interval is so, in words; "" where nothing is asked."""
    scale, out = (-1 if rule.lower else 1) * (100 if e.unit == "points" else 1), []
    for b in asked_of(rule, e):
        out.append(f"asked: {'below' if rule.lower else 'above'} {scale * b.above + 0:g}, {'yes' if above(rule, b, e) else 'no'}")
        if b.claimed is not None:
            out.append(f"claimed {scale * b.claimed:g}, {'excluded' if below(rule, b, e) else 'not excluded'}")
    return f"  [{'; '.join(dict.fromkeys(out))}]" if out else ""


def said(rule: Rule, effects: Sequence[Effect]) -> str:
    """How many intervals lie above what is asked, and how many below what is claimed."""
    states = [[any(test(rule, b, e) for b in bounds) for test in (above, below)]
              for e in effects if (bounds := asked_of(rule, e))]
    without = sum(down and not up for up, down in states)
    return (f"of {len(states)} interval{'s' * (len(states) != 1)} {sum(up for up, _ in states)} as asked, {without} without the "
            "claimed effect")


def too_few(rule: Rule, seeds: Mapping[str, int]) -> str:
    """Why there are too few seeds or data sets for a rule; "" where there are enough. `seeds`: data set -> seeds of all that is
    compared."""
    if sum(n >= rule.min_seeds for n in seeds.values()) >= rule.min_datasets:
        return ""
    there = ", ".join(f"{n} on {dataset_label(d)}" for d, n in seeds.items()) or "none"
    return (f"{rule.min_seeds} seeds of all that is compared are needed on {rule.min_datasets} data "
            f"set{'s' if rule.min_datasets > 1 else ''}, finished of all of it: {there}")


def against_controls(rule: Rule, found: Mapping[tuple[str, str], Sequence[Effect]], wanted: int, doubt: str, stands: str) -> str:
    """Whether what is claimed stands against the controls too: none of `wanted` effects may be missing or unclear. `doubt`,
    `stands`: what is said where it does not, and where it does."""
    def clear(e: Effect) -> bool:
        return e.high < 0 if rule.lower else e.low > 0

    gone = [pair for pair in rule.controls if not all(map(clear, found[pair]))]
    missing = [pair for pair in rule.controls if pair not in gone and len(found[pair]) < wanted]
    parts = [f"{doubt} in {', '.join(map(pair_label, gone))}"] if gone else []
    parts += [f"controls without enough runs: {', '.join(map(pair_label, missing))}"] if missing else []
    return "; ".join(parts) or (f"{stands} against all controls" if rule.controls else "")
