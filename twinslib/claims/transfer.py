"""Claims about the accuracy of fine-tuned networks: means over data sets, single data sets, what is only shown."""

from collections.abc import Mapping, Sequence

from ..base import stats
from ..evidence.frame import Row
from ..evidence.pairs import LEAST_DATASETS
from ..specs.labels import dataset_label, unique
from ..studies.rules import Rule
from .effects import Effect, by_dataset, of_means
from .effects import pair_label as label
from .verdict import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, Evidence, against_controls, apart, lesser, level, said

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
    found, detail, short = {}, [], []
    for pair in (*rule.pairs, *rule.controls):
        lines = {metric: by_dataset(rows, rule, pair, metric, guess, level=wide) for metric in rule.metrics}
        detail += [line for group in lines.values() for line in group]
        whole = set.intersection(*({line.dataset for line in group if line.seeds >= seeds} for group in lines.values()))
        if len(whole) >= least:
            found |= {(pair, metric): [line for line in group if line.dataset in whole] for metric, group in lines.items()}
        elif pair in rule.pairs:
            short.append(f"{label(pair)}, {' and '.join(rule.metrics)}, on {len(whole)} of {least} data sets")
    decisive = {key: lines for key, lines in found.items() if key[0] in rule.pairs}
    near = apart([line for lines in decisive.values() for line in lines], rule)
    clear = {key: [line for line in lines if line not in near] for key, lines in decisive.items()}
    out = {"detail": tuple(detail), "flagged": tuple(near)}
    if shown:
        means = {key: mean for key, lines in clear.items() if len(found[key]) >= LEAST_DATASETS and (mean := of_means(lines))}
        return Evidence(**out, effects=tuple(means.values()), lack=_shown(rule, means, {pair for pair, _ in found}))
    effects = _deciding(rule, clear)
    if short:
        return Evidence(**out, effects=effects, lack=f"{seeds} seeds are needed, finished are: {'; '.join(short)}")
    if any(len(lines) < min(2, least) for lines in clear.values()):
        names = ", ".join(unique(dataset_label(e.dataset) for e in near))
        return Evidence(**out, lack=f"near chance: {names}; too few data sets are left")
    if rule.measure == "spread":
        verdict, words = spread(clear, rule)
        return Evidence(**out, effects=effects, verdict=lesser(verdict, spread(decisive, rule)[0]), said=words)
    everywhere = _deciding(rule, decisive) if near else ()
    beside = f"; with the data sets near chance: {', '.join(e.number() for e in everywhere)}" if everywhere else ""
    return Evidence(**out, effects=effects, everywhere=everywhere, said=said(rule, effects) + beside,
                    remark=_mechanism(rule, found, {e.dataset for e in near}) if rule.controls else "")


def _deciding(rule: Rule, groups: Mapping[tuple, Sequence[Effect]]) -> tuple[Effect, ...]:
    """Means over data sets where the rule is about these, else all of them."""
    if rule.measure == "gain":
        return tuple(mean for lines in groups.values() if (mean := of_means(lines)))
    return tuple(line for lines in groups.values() for line in lines)


def spread(groups: Mapping[tuple, Sequence[Effect]], rule: Rule) -> tuple[str, str]:
    """Data set by data set: significant gains and losses (Holm over data sets and measures), and claimed effects excluded."""
    lines = [line for group in groups.values() for line in group]
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


def _shown(rule: Rule, means: Mapping[tuple, Effect], there: set) -> str:
    tried = [pair for pair in rule.pairs if pair in there]
    reached = [pair for pair in tried if all((pair, m) in means and means[pair, m].low > 0 for m in rule.metrics)]
    if not tried:
        return "none of the stand-ins has been run"
    return (f"the paper's own baselines are not public; of {len(tried)} stand-ins of ours {len(reached)} have both intervals "
            "above 0")


def _mechanism(rule: Rule, found: Mapping[tuple, Sequence[Effect]], near: set[str]) -> str:
    """Whether a gain stands against the controls too."""
    away = {key: of_means([line for line in lines if line.dataset not in near]) for key, lines in found.items()}
    means = {pair: [mean for metric in rule.metrics if (mean := away.get((pair, metric)))] for pair in rule.controls}
    return against_controls(rule, means, len(rule.metrics), "number reproduced, explanation not supported: no clear gain",
                            "the gain stands")
