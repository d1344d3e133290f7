"""Evidence on claims about the accuracy of fine-tuned networks: means over data sets, single data sets, what is only shown."""

import math
from collections.abc import Sequence

from ..base import stats
from ..evidence import pairs
from ..specs.labels import dataset_label
from ..specs.measure import EvalSpec
from ..specs.strength import STANDARD
from ..store.jobs import Job
from ..store.store import Store
from ..studies.rules import Rule
from .effects import INCONCLUSIVE, NOT, PARTLY, REPRODUCED, Effect, Evidence, apart, lesser, level, of_masks, of_means, said
from .effects import pair_label as label

MEASURES = ("gain", "spread", "margin", "shown")


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run that the rule compares."""
    names = {name for pair in (*rule.pairs, *rule.controls) for name in pair}
    return bool(job.evals) and not job.ship and job.study == "transfer" and job.spec.method.name in names


def evidence(store: Store, jobs: Sequence[Job], rule: Rule) -> Evidence:
    """What finished runs that count say on a rule of `MEASURES`."""
    shown = rule.measure == "shown"
    least, seeds = (1, 1) if shown else (rule.min_datasets, rule.min_seeds)
    if rule.measure == "gain":
        least = max(least, pairs.LEAST_DATASETS)
    wide = level(len(rule.pairs) * len(rule.metrics)) if rule.measure in ("gain", "margin") and not shown else 0.95
    found, detail, short = {}, [], []
    for pair in (*rule.pairs, *rule.controls):
        lines = {metric: by_dataset(store, jobs, pair, metric, rule, wide) for metric in rule.metrics}
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
        means = {key: of_means(clear[key]) if len(lines) >= pairs.LEAST_DATASETS else None for key, lines in found.items()}
        return Evidence(**out, effects=tuple(e for e in means.values() if e is not None), lack=_shown(rule, means))
    means = tuple(e for lines in clear.values() if (e := of_means(lines)) is not None)
    effects = means if rule.measure == "gain" else tuple(e for lines in clear.values() for e in lines)
    if short:
        return Evidence(**out, effects=effects, lack=f"{seeds} seeds are needed, finished are: {'; '.join(short)}")
    if any(len(lines) < min(2, least) for lines in clear.values()):
        return Evidence(**out, lack=f"near chance: {', '.join(dict.fromkeys(dataset_label(e.dataset) for e in near))}; too few "
                        "data sets are left")
    away = {key: [line for line in lines if line.dataset not in {e.dataset for e in near}] for key, lines in found.items()}
    remark = _mechanism(rule, {key: of_means(lines) for key, lines in away.items()}) if rule.controls else ""
    if rule.measure == "spread":
        verdict, words = spread(clear, rule)
        verdict = lesser(verdict, spread(decisive, rule)[0])
        return Evidence(**out, effects=effects, verdict=verdict, said=words)
    everywhere = ()
    if near:
        everywhere = tuple(of_means(lines) for lines in decisive.values()) if rule.measure == "gain" else tuple(
            e for lines in decisive.values() for e in lines)
    beside = f"; with the data sets near chance: {', '.join(e.number() for e in everywhere)}" if everywhere else ""
    return Evidence(**out, effects=effects, everywhere=everywhere, said=said(rule, effects) + beside, remark=remark)


def by_dataset(store: Store, jobs: Sequence[Job], pair: tuple[str, str], metric: str, rule: Rule,
               wide: float = 0.95) -> list[Effect]:
    """The difference on each data set over the seeds that are finished, by the attack that most of them have, of equals the
    strongest."""
    finished: dict[str, dict[tuple[str, int], tuple]] = {}
    for dataset, e, seed, masks in pairs.paired_masks(store, jobs, *pair):
        if masks and (e.kind == "clean" if metric == "clean" else allowed(e, rule)):
            finished.setdefault(e.attack_name, {})[dataset, seed] = masks
    if not finished:
        return []
    attack = max(finished, key=lambda name: (len(finished[name]), _strength(name)))
    guess = chance(store, jobs)
    return [of_masks(pair, metric, attack, dataset, [m for (d, _), m in finished[attack].items() if d == dataset], level=wide,
                     chance=guess.get(dataset, math.nan)) for dataset in dict.fromkeys(d for d, _ in finished[attack])]


def chance(store: Store, jobs: Sequence[Job]) -> dict[str, float]:
    """Data set -> accuracy of guessing, by the classes that the run records name."""
    classes = {}
    for job in jobs:
        if job.spec.data.name not in classes and (record := store.run(job.spec)) and record.get("classes"):
            classes[job.spec.data.name] = 1 / record["classes"]
    return classes


def allowed(e: EvalSpec, rule: Rule) -> bool:
    """True if an attack counts as robust accuracy for the rule."""
    r = rule.robust
    return e.kind != "clean" and e.threat == r.threat and math.isclose(e.eps, r.eps, rel_tol=1e-6) and e.images >= r.min_images


def _strength(attack: str) -> tuple[int, int]:
    """AutoAttack above its parts above PGD; more parts, steps and restarts above fewer."""
    if attack == "none" or not attack.startswith("pgd"):
        parts = attack.split("+")
        return (3 if set(parts) >= set(STANDARD) else 2), len(parts)
    steps, _, restarts = attack.removeprefix("pgd").partition("x")
    return 1, int(steps) * int(restarts or 1)


def spread(groups: dict, rule: Rule) -> tuple[str, str]:
    """Data set by data set: significant gains and losses (Holm over data sets and measures), and claimed effects excluded."""
    lines = [line for group in groups.values() for line in group]
    corrected = dict(zip(lines, stats.holm([line.p_value for line in lines]), strict=True))
    here = {d: [line for line in lines if line.dataset == d] for d in dict.fromkeys(line.dataset for line in lines)}
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


def _shown(rule: Rule, means: dict) -> str:
    reached = [pair for pair in rule.pairs
               if all(means.get((pair, m)) is not None and means[pair, m].low > 0 for m in rule.metrics)]
    tried = [pair for pair in rule.pairs if all((pair, m) in means for m in rule.metrics)]
    if not tried:
        return "none of the stand-ins has been run"
    return (f"the paper's own baselines are not public; of {len(tried)} stand-ins of ours {len(reached)} have both intervals "
            "above 0")


def _mechanism(rule: Rule, means: dict) -> str:
    """Whether a gain stands against the controls too."""
    gone, missing = [], []
    for pair in rule.controls:
        effects = [means.get((pair, metric)) for metric in rule.metrics]
        if None in effects:
            missing.append(label(pair))
        elif any(e.low <= 0 for e in effects):
            gone.append(label(pair))
    parts = [f"number reproduced, explanation not supported: no clear gain in {', '.join(gone)}"] if gone else []
    parts += [f"controls without enough runs: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) or "the gain stands against all controls"
