"""The claims ledger: for each claim a verdict by its rule (`rules`), with effect, interval, n, runs and commands.

A run counts for a claim if its provenance carries the rule's present stamp, so that the rule was there before the run.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from . import aft_claims, compare, course_claims, public, rules, smoothing_claims, stats
from .config import EvalSpec
from .effects import NOT, NOT_TESTED, PARTLY, REPRODUCED, Effect, pair_label
from .report import dataset_label, eps_label, method_label, to_markdown, unique
from .rules import Claim, Rule
from .runs import NOT_RUN, Job, Store, Task, read_json, write_json
from .strength import strength


@dataclass(frozen=True)
class Verdict:
    """One line of the ledger. `effects` decide, `detail` holds the single data sets and the controls."""

    claim: Claim
    preset: str
    verdict: str
    why: str
    effects: tuple[Effect, ...] = ()
    detail: tuple[Effect, ...] = ()
    remark: str = ""
    runs: tuple[str, ...] = ()
    not_counted: int = 0  # finished runs that began before the rule
    commands: tuple[str, ...] = field(default=())
    diverged: tuple[str, ...] = ()  # runs that it asks for, in words


def judge(claim: Claim, store: Store, jobs: Sequence[Job]) -> Verdict:
    """Apply a claim's rule to the finished runs of `jobs` that began under it.

    Raises:
        ValueError: the rule was edited after runs that it judges had begun.
    """
    rule = claim.rule
    pairs = [*rule.pairs, *rule.controls]
    wanted = {name for pair in pairs for name in pair}
    of_course, certified = rule.measure in course_claims.MEASURES, rule.measure in smoothing_claims.MEASURES
    finetuned = rule.measure in aft_claims.MEASURES
    jobs = [job for job in jobs if job.spec.data.name in (rule.datasets or (job.spec.data.name,))
            and (smoothing_claims.concerns(job, rule) if certified else aft_claims.concerns(job, rule) if finetuned else
                 (job.spec.follow if of_course else job.evals) and not job.ship and job.spec.method.name in wanted)]
    lost = tuple(unique(_named(job) for job in jobs if store.run(job.spec) is None and store.absent(job) != NOT_RUN))
    jobs = [job for job in jobs if job.settled]
    diverged = [job.spec for job in jobs if store.run(job.spec) is None and store.diverged(job.spec)]  # begun under any rule
    jobs = [job for job in jobs if store.run(job.spec)]
    counted, not_counted = [], 0
    for job in jobs:
        stamp = ((store.provenance(Task(job.spec)) or {}).get("rules") or {}).get(claim.id)
        if stamp is not None and stamp != rule.stamp and stamp.split(":")[0] == str(rule.version):
            raise ValueError(f"expected the rule of {claim.id} as it was when run {job.spec.hash} began ({stamp}), got an edited "
                             f"one ({rule.stamp}); restore it, or raise its version, say why under `changes`, and run again")
        counts = stamp == rule.stamp or rule.measure == "shown"  # where nothing is judged, everything may be shown
        counted += [job] if counts else []
        not_counted += not counts
    common = {"claim": claim, "preset": store.preset, "not_counted": not_counted, "commands": commands(claim, store.preset),
              "diverged": lost}
    if store.preset not in rules.SCALES:
        return Verdict(verdict=NOT_TESTED, why=f"a {store.preset} run only checks that everything works", **common)

    if of_course or certified or finetuned:
        found = (smoothing_claims.judge(store, counted, rule) if certified else
                 aft_claims.judge(store, counted, rule) if finetuned else
                 course_claims.judge(store, counted, rule, diverged))
        return Verdict(**found, runs=tuple(sorted({job.spec.hash for job in counted})), **common)
    shown = rule.measure == "shown"
    least = 1 if shown else max(rule.min_datasets, compare.LEAST_DATASETS if rule.measure == "gain" else 1)
    seeds = 1 if shown else rule.min_seeds
    found, detail, short = {}, [], []
    for pair in pairs:
        lines = {metric: _by_dataset(store, counted, pair, metric, rule) for metric in rule.metrics}
        detail += [line for group in lines.values() for line in group]
        whole = set.intersection(*({line.dataset for line in group if line.seeds >= seeds} for group in lines.values()))
        if len(whole) >= least:
            found |= {(pair, metric): [line for line in group if line.dataset in whole] for metric, group in lines.items()}
        elif pair in rule.pairs:
            short.append(f"{pair_label(pair)}, {' and '.join(rule.metrics)}, on {len(whole)} of {least} data sets")
    common |= {"detail": tuple(detail), "runs": tuple(sorted({job.spec.hash for job in counted}))}
    decisive = {key: lines for key, lines in found.items() if key[0] in rule.pairs}
    means = {key: _mean(lines) for key, lines in found.items()}
    effects = {key: means[key] for key in decisive}
    if rule.measure == "margin":
        effects = {(key, i): line for key, lines in decisive.items() for i, line in enumerate(lines)}
    common["effects"] = tuple(e for e in effects.values() if e is not None)
    if shown:
        return Verdict(verdict=NOT_TESTED, why=_shown(rule, means), **common)
    if short:
        return Verdict(verdict=NOT_TESTED, why=f"{seeds} seeds are needed, finished are: {'; '.join(short)}", **common)
    decide = {"gain": _gain, "spread": _spread, "margin": _margin}[rule.measure]
    verdict, why = decide(list(effects.values()), decisive, rule)
    remark = _mechanism(verdict, rule, means) if verdict in (REPRODUCED, PARTLY) and rule.controls else ""
    return Verdict(verdict=verdict, why=why, remark=remark, **common)


def judge_all(store: Store, jobs: Sequence[Job], notebook: str) -> list[Verdict]:
    """Verdicts on all claims of one notebook."""
    return [judge(claim, store, jobs) for claim in rules.claims() if claim.notebook == notebook]


def _named(job: Job) -> str:
    part = dict(job.labels)
    what = f"{part['pretraining']} → {part['finetuning']}, {part['norm']} norm" if "finetuning" in part else method_label(
        job.spec.method.name)
    return f"{what} on {dataset_label(job.spec.data.name)}, seed {job.spec.seed}"


def commands(claim: Claim, preset: str) -> tuple[str, ...]:
    """What to type to compute the runs of a claim and to judge it."""
    return (f"./run_all.sh {preset} {claim.notebook}", f"python -m twinslib claims --preset {preset} {claim.id}")


# -- effects ----------------------------------------------------------------------------------------------------------
def _by_dataset(store: Store, jobs: Sequence[Job], pair: tuple[str, str], metric: str, rule: Rule) -> list[Effect]:
    """The difference on each data set over the seeds that are finished, by the attack that most of them have, of equals the
    strongest."""
    finished: dict[str, dict[tuple[str, int], tuple]] = {}
    for dataset, e, seed, masks in compare.paired_masks(store, jobs, *pair):
        if masks and (e.kind == "clean" if metric == "clean" else _allowed(e, rule)):
            finished.setdefault(e.attack_name, {})[dataset, seed] = masks
    if not finished:
        return []
    attack = max(finished, key=lambda name: (len(finished[name]), strength(name)))
    out = []
    for dataset in dict.fromkeys(d for d, _ in finished[attack]):
        masks = [m for (d, _), m in finished[attack].items() if d == dataset]
        n, seeds, *numbers = compare.over_seeds(masks, 0)
        out.append(Effect(*pair, metric, attack, dataset, n, seeds, *numbers))
    return out


def _allowed(e: EvalSpec, rule: Rule) -> bool:
    r = rule.robust
    return e.kind != "clean" and e.threat == r.threat and math.isclose(e.eps, r.eps, rel_tol=1e-6) and e.images >= r.min_images


def _mean(lines: Sequence[Effect]) -> Effect | None:
    """Mean over data sets, each with the same weight, with `compare.mean_interval`; None for fewer than three."""
    if len(lines) < compare.LEAST_DATASETS:
        return None
    value, low, high = compare.mean_interval([(line.value, line.low, line.high) for line in lines])
    return dataclasses.replace(lines[0], dataset=compare.MEAN, images=min(line.images for line in lines),
                               seeds=min(line.seeds for line in lines), value=value, low=low, high=high, p_value=math.nan)


# -- rules ------------------------------------------------------------------------------------------------------------
def _gain(effects: list[Effect], decisive: dict, rule: Rule) -> tuple[str, str]:
    above, below = [e for e in effects if e.low > 0], [e for e in effects if e.high < 0]
    why = f"{len(above)} of {len(effects)} intervals above 0, {len(below)} below"
    if len(above) == len(effects):
        return REPRODUCED, why
    right = all(e.value > 0 for e in effects)
    return (PARTLY if right or (above and not below) else NOT), why


def _spread(effects: list[Effect], decisive: dict, rule: Rule) -> tuple[str, str]:
    lines = [line for group in decisive.values() for line in group]
    corrected = dict(zip(lines, stats.holm([line.p_value for line in lines]), strict=True))
    datasets = list(dict.fromkeys(line.dataset for line in lines))
    here = {d: [line for line in lines if line.dataset == d] for d in datasets}
    both = [d for d in datasets if all(line.value > 0 for line in here[d])]
    gains = [d for d in datasets if any(line.value > 0 and corrected[line] <= rule.alpha for line in here[d])]
    losses = [line for line in lines if line.value < 0 and corrected[line] <= rule.alpha]
    why = (f"clean and robust above 0 on {len(both)} of {len(datasets)} data sets, a significant gain on {len(gains)}, "
           f"{len(losses)} significant losses (Holm, {100 * rule.alpha:g} %)")
    if len(both) == len(datasets) and 2 * len(gains) > len(datasets):
        return REPRODUCED, why
    return (PARTLY if 2 * len(both) > len(datasets) and not losses else NOT), why


def _margin(effects: list[Effect], decisive: dict, rule: Rule) -> tuple[str, str]:
    beyond, above = [e for e in effects if e.low > rule.margin], [e for e in effects if e.low > 0]
    why = f"{len(beyond)} of {len(effects)} intervals above {100 * rule.margin:g} points, {len(above)} above 0"
    return (REPRODUCED if len(beyond) == len(effects) else PARTLY if len(above) == len(effects) else NOT), why


def _shown(rule: Rule, means: dict) -> str:
    reached = [pair for pair in rule.pairs
               if all(means.get((pair, m)) is not None and means[pair, m].low > 0 for m in rule.metrics)]
    tried = [pair for pair in rule.pairs if all((pair, m) in means for m in rule.metrics)]
    if not tried:
        return "none of the stand-ins has been run"
    return (f"the paper's own baselines are not public; of {len(tried)} stand-ins of ours {len(reached)} have both intervals "
            "above 0")


def _mechanism(verdict: str, rule: Rule, means: dict) -> str:
    """Whether the gain stands against the controls too."""
    gone, missing = [], []
    for pair in rule.controls:
        effects = [means.get((pair, metric)) for metric in rule.metrics]
        if None in effects:
            missing.append(pair_label(pair))
        elif any(e.low <= 0 for e in effects):
            gone.append(pair_label(pair))
    number = "number reproduced" if verdict == REPRODUCED else "number partly reproduced"
    parts = [f"{number}, explanation not supported: no clear gain in {', '.join(gone)}"] if gone else []
    parts += [f"controls without enough runs: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) or "the gain stands against all controls"


# -- showing ----------------------------------------------------------------------------------------------------------
def to_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The ledger as text, one line per claim; effects in points with 95 % intervals."""
    lines = []
    for v in verdicts:
        mine = [e for e in v.detail if {(e.method, e.baseline), (e.baseline, e.method)} & set(v.claim.rule.pairs)]
        robust = v.claim.rule.robust
        counts = f"data sets: {len({e.dataset for e in mine})}, seeds: {_span(e.seeds for e in mine)}" if mine else "no run"
        if any(e.images for e in mine):  # effects on weights stand on none
            counts += f", images: {_span(e.images for e in mine)}"
        lines.append({
            "claim": v.claim.id, "sentence": v.claim.sentence, "verdict": v.verdict,
            "why": v.why + (f". {v.remark}" if v.remark else ""),
            "effect": "; ".join(map(str, v.effects or mine)) or "none yet",
            "robust at": eps_label(robust.eps, robust.threat) if robust else "—",
            "n": counts + (f"; began before the rule: {v.not_counted}" if v.not_counted else "")
            + (f"; diverged: {'; '.join(v.diverged)}" if v.diverged else ""),
            "stated by": f"{v.claim.paper}: {v.claim.source} ({v.claim.certainty})" + (
                f"; {public.reported(*v.claim.reported)} points" if v.claim.reported else ""),
            "reproduce": "; ".join(v.commands)})
    return pd.DataFrame(lines)


def summary(store: Store, paper: str = "") -> str:
    """The verdicts in claims.json of the store as a short Markdown table, all or those on one paper (the start of its name)."""
    path = store.root / "claims.json"
    stored = read_json(path) if path.exists() else {}
    lines = [{"claim": name, "sentence": c["sentence"], "verdict": c["verdict"], "why": c["why"] + (
        f"; diverged: {'; '.join(c['diverged'])}" if "diverged" in c else "")} for name, c in stored.items()
             if c["paper"].startswith(paper)]
    return to_markdown(pd.DataFrame(lines, columns=["claim", "sentence", "verdict", "why"]))


def put_into(text: str, store: Store) -> str:
    """`text` with the summary between its two marks, `<!-- claims -->` and `<!-- /claims -->`.

    Raises:
        ValueError: not each mark once, in this order.
    """
    start, end = "<!-- claims -->", "<!-- /claims -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"expected the marks {start} and {end}, each once; put them where the verdicts belong")
    return text.split(start)[0] + f"{start}\n{summary(store)}{end}" + text.split(end)[1]


def _span(values) -> str:
    values = sorted(set(values))
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def write(store: Store, verdicts: Sequence[Verdict]) -> None:
    """Write claims.json of the store, whole or not at all; claims of other notebooks that are there stay."""
    path = store.root / "claims.json"
    before = read_json(path) if path.exists() else {}
    write_json(path, before | {v.claim.id: _record(v) for v in verdicts})


def _record(v: Verdict) -> dict:
    c, rule = v.claim, v.claim.rule
    return {"paper": c.paper, "notebook": c.notebook, "sentence": c.sentence, "source": c.source, "certainty": c.certainty,
            "rule": rule.text, "stamp": rule.stamp, "preset": v.preset, "verdict": v.verdict, "why": v.why, "remark": v.remark,
            "effects": [_plain(e) for e in v.effects], "detail": [_plain(e) for e in v.detail], "runs": list(v.runs),
            "runs_before_the_rule": v.not_counted, "commands": list(v.commands)} | (
                {"diverged": list(v.diverged)} if v.diverged else {})


def _plain(e: Effect) -> dict:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(e).items()}
