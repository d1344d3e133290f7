"""Claims about the accuracy of fine-tuned networks: means over data sets, single data sets, what is only shown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..base import stats
from ..evidence.frame import Row
from ..evidence.pairs import LEAST_DATASETS
from ..specs.labels import unique
from ..studies.rules import Rule
from .effects import Effect, by_dataset, of_means, pair_label
from .verdict import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, Evidence, against_controls, agreed, level, said, sifted

MEASURES = ("gain", "spread", "margin", "shown")


def least_datasets(rule: Rule) -> int:
    """Data sets that a rule needs: for a mean at least so many that there is an interval worth its name."""
    if rule.measure == "shown":
        return 1
    return max(rule.min_datasets, LEAST_DATASETS) if rule.measure == "gain" else rule.min_datasets


def weigh(rows: Sequence[Row], guess: Mapping[str, float], rule: Rule) -> Evidence:
    """What finished runs say on a rule of `MEASURES`."""
    shown, least = rule.measure == "shown", least_datasets(rule)
    seeds = 1 if shown else rule.min_seeds
    wide = level(len(rule.pairs) * len(rule.metrics)) if rule.measure in ("gain", "margin") else 0.95
    found, detail, short = [], [], []
    for pair in (*rule.pairs, *rule.controls):
        lines = [e for metric in rule.metrics for e in by_dataset(rows, rule, pair, metric, guess, level=wide)]
        enough = Counter(e.dataset for e in lines if e.seeds >= seeds)
        whole = [d for d, count in enough.items() if count == len(rule.metrics)]
        detail += lines
        if len(whole) >= least:
            found += [e for e in lines if e.dataset in whole]
        elif pair in rule.pairs:
            short.append(f"{pair_label(pair)}, {' and '.join(rule.metrics)}, on {len(whole)} of {least} data sets")
    decisive = [e for e in found if e.pair in rule.pairs]
    out = sifted(rule, decisive, detail, least=0 if shown else min(2, least))
    if shown:
        on = Counter(e.comparison for e in decisive)
        averaged = [e for e in means(out.effects) if on[e.comparison] >= LEAST_DATASETS]
        return replace(out, effects=tuple(averaged), everywhere=(), lack=_shown(rule, averaged, {e.pair for e in decisive}))
    if rule.measure == "gain":
        averaged = means(out.effects)
        out = replace(out, effects=averaged, everywhere=means(out.everywhere), said=said(rule, averaged))
    if short:
        return replace(out, lack=f"{seeds} seeds are needed, finished are: {'; '.join(short)}")
    if out.lack:
        return out
    if rule.measure == "spread":
        verdict, words = spread(out.effects, rule)
        return replace(out, everywhere=(), verdict=agreed(verdict, spread(decisive, rule)[0]), said=words)
    beside = f"; with the data sets near chance: {', '.join(e.number() for e in out.everywhere)}" if out.everywhere else ""
    near = {e.dataset for e in out.flagged}
    away = means([e for e in found if e.dataset not in near])
    return replace(out, said=out.said + beside, remark=against_controls(
        rule, {pair: [e for e in away if e.pair == pair] for pair in rule.controls}, len(rule.metrics),
        "number reproduced, explanation not supported: no clear gain", "the gain stands"))


def means(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """Of each comparison that is there for several data sets, the mean over these."""
    groups = [[e for e in effects if e.comparison == c] for c in unique(e.comparison for e in effects)]
    return tuple(mean for lines in groups if (mean := of_means(lines)))


def spread(lines: Sequence[Effect], rule: Rule) -> tuple[str, str]:
    """Data set by data set: significant gains and losses (Holm over data sets and measures), and claimed effects excluded."""
    corrected = dict(zip(lines, stats.holm([line.p_value for line in lines]), strict=True))
    here = {d: [line for line in lines if line.dataset == d] for d in unique(line.dataset for line in lines)}
    both = [d for d, mine in here.items() if all(line.value > 0 for line in mine)]
    gains = [d for d, mine in here.items() if any(line.value > 0 and corrected[line] <= rule.alpha for line in mine)]
    losses = [line for line in lines if line.value < 0 and corrected[line] <= rule.alpha]
    bounds = {b.of: b.claimed for b in rule.asked[0]}
    without = [d for d, mine in here.items() if any(line.high < bounds[(line.metric,)] for line in mine)]
    words = (f"clean and robust above 0 on {len(both)} of {len(here)} data sets, a significant gain on {len(gains)}, "
             f"{len(losses)} significant losses (Holm, {100 * rule.alpha:g} %); the least effect is excluded on {len(without)}")
    if len(both) == len(here) and 2 * len(gains) > len(here):
        return REPRODUCED, words
    if 2 * len(both) > len(here) and gains and not losses:
        return PARTLY, words
    return (NOT if 2 * len(without) >= len(here) else INCONCLUSIVE), words


def _shown(rule: Rule, averaged: Sequence[Effect], tried: set) -> str:
    clear = Counter(e.pair for e in averaged if e.low > 0)
    reached = sum(clear[pair] == len(rule.metrics) for pair in rule.pairs)
    return (f"the paper's own baselines are not public; of {len(tried)} stand-ins of ours {reached} have both intervals above 0"
            if tried else "none of the stand-ins has been run")
