"""The claims ledger: for each claim a verdict by its rule (`rules`), with effect, interval, n, runs and commands.

A run counts for a claim if its provenance carries the rule's present stamp, so that the rule was there before the run, or that of
an earlier version of which the present one can only withhold.
"""

import dataclasses
import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..base.files import atomic_write, read_json, write_json
from ..base.markdown import to_markdown
from ..evidence import accuracy, pairs, public
from ..specs.jobs import Job, Task
from ..specs.labels import NOT_RUN, dataset_label, eps_label, method_label, unique
from ..store.store import Store
from ..studies import presets, rules
from ..studies.rules import Claim
from . import characteristics, transfer
from .effects import Effect
from .kinds import KINDS, concerns, evidence
from .regime import fewest_rates, regime, span
from .verdict import CREDIT, NOT_JUDGED, NOT_TESTED, PARTLY, REPRODUCED, SAID, Evidence, against, asked_of, chance_margin, lesser
from .verdict import judge as judged

log = logging.getLogger(__name__)
WAITING = "waiting.json"  # what the verdicts wait for


@dataclass(frozen=True, kw_only=True)
class Verdict(Evidence):
    """One line of the ledger: the evidence, and what comes of it."""

    claim: Claim
    preset: str
    why: str  # in words
    regime: str = ""  # conditions under which it stands
    runs: tuple[str, ...] = ()  # that it stands on
    not_counted: int = 0  # finished runs that began before the rule
    commands: tuple[str, ...] = ()  # to repeat them
    diverged: tuple[str, ...] = ()  # runs that it asks for and that did, in words


def judge(claim: Claim, store: Store, jobs: Sequence[Job]) -> Verdict:
    """Apply a claim's rule to the finished runs of `jobs` that began under it. Rules are for the presets that they were fixed for
    (`rules.SCALES`): in a study of one's own the same effects are shown, and nothing is judged. ValueError: the rule was edited
    after runs that it judges had begun."""
    rule = claim.rule
    mine = [job for job in jobs if concerns(job, rule)]
    gone = tuple(unique(_named(job) for job in mine if store.run(job.spec) is None and store.absent(job) != NOT_RUN))
    settled = [job for job in mine if job.settled]
    lost = [job for job in settled if store.run(job.spec) is None and store.diverged(job.spec)]  # begun under any rule
    highest = {job: counts(claim, store, job) for job in settled if store.run(job.spec) is not None}
    counted, not_counted = [job for job, word in highest.items() if word], list(highest.values()).count("")
    most = functools.reduce(lesser, filter(None, highest.values()), REPRODUCED)
    common = {"claim": claim, "preset": store.preset, "not_counted": not_counted, "commands": commands(claim, store, counted),
              "diverged": gone}
    if store.preset == "toy":
        return Verdict(verdict=NOT_TESTED, why="a toy run only checks that everything works", **common)
    found, runs = evidence(store, counted, rule, lost), tuple(sorted({job.spec.hash for job in counted}))
    if store.preset not in rules.SCALES:
        why = f"rules are fixed for {', '.join(rules.SCALES)}; a study of your own shows the effects and judges no paper"
        return Verdict(**vars(found) | common | {"verdict": NOT_JUDGED, "why": why, "remark": "", "runs": runs,
                                              "regime": regime(claim, store, counted, jobs, found)})
    few = fewest_rates(jobs, {name for pair in rule.pairs for name in pair})
    if rule.min_rates and not found.lack and few < rule.min_rates:
        found = dataclasses.replace(found, lack=f"learning rates are chosen from {few}, the rule asks for {rule.min_rates}")
    verdict = judged(rule, found)
    if CREDIT.get(verdict, 0) > CREDIT.get(most, 0):
        verdict = most
        found = dataclasses.replace(found, said=f"{found.said}; runs that began under an earlier rule give no more")
    why = found.lack + left(store, claim) if found.lack else found.said
    if found.flagged and not found.lack:
        why += f"; near chance and left out: {', '.join(unique(dataset_label(e.dataset) for e in found.flagged))}"
    return Verdict(**vars(found) | common | {
        "verdict": verdict, "why": why, "regime": regime(claim, store, counted, jobs, found),
        "remark": found.remark if verdict in CREDIT else "", "runs": runs})


def counts(claim: Claim, store: Store, job: Job) -> str:
    """The highest verdict that a finished run can give on a claim; "" where it began before the rule and says nothing.
    ValueError: the rule was edited, under the same version, after the run had begun."""
    rule = claim.rule
    if rule.measure == "shown":  # where nothing is judged, everything may be shown
        return REPRODUCED
    stamp = ((store.provenance(Task(job.spec)) or {}).get("rules") or {}).get(claim.id)
    if stamp is not None and stamp not in rule.accepted and stamp.split(":")[0] == str(rule.version):
        raise ValueError(f"expected the rule of {claim.id} as it was when run {job.spec.hash} began ({stamp}), got an edited "
                         f"one ({rule.stamp}); restore it, or raise its version, say why under `changes`, and run again")
    return rule.accepted.get(stamp, "")


def left(store: Store, claim: Claim) -> str:
    """How many runs a claim waits for, and the hours that they take, as it was when that was last looked at (`need.write`)."""
    found = _read(store, WAITING).get(claim.id)
    return f"; {found['runs']} runs are left, about {found['hours']:g} h ({found['on']})" if found else ""


def _read(store: Store, name: str) -> dict:
    """A file of the store, {} where there is none."""
    path = store.root / name
    return read_json(path) if path.exists() else {}


def standing(store: Store, jobs: Sequence[Job], notebook: str) -> dict[tuple[str, str], pairs.Standing]:
    """(method, baseline) -> those of `jobs` that its verdict stands on, for every pair and control of a notebook's claims that
    runs count for; tables and figures of these pairs are to stand on the same."""
    out: dict[tuple[str, str], pairs.Standing] = {}
    for claim in rules.claims():
        if claim.notebook != notebook or KINDS[claim.rule.measure] is not transfer:
            continue
        kept = [job for job in jobs if job.settled and concerns(job, claim.rule) and store.run(job.spec)
                and counts(claim, store, job)]
        found = evidence(store, kept, claim.rule)
        flagged = {e.dataset for e in found.flagged}
        for pair in (*claim.rule.pairs, *claim.rule.controls):
            lines = [e for e in found.detail if e.pair == pair]
            if lines and pair not in out:
                near = {e.dataset for e in lines if e.near_chance(chance_margin(claim.rule))} | flagged
                attack = next((e.attack for e in lines if e.metric == "robust"), "none")
                out[pair] = pairs.Standing([job for job in kept if job.spec.method.name in pair], attack, claim.rule.robust.eps,
                                             frozenset(near))
    return out


def counted(standing: Mapping[tuple[str, str], pairs.Standing], rows: pd.DataFrame) -> pd.DataFrame:
    """Those of `rows` (`rows.rows`) that verdicts stand on, and all of a data set and method that none does, so that tables and
    figures show what is judged: runs of seeds that both methods of a pair have, where there are several."""
    runs: set[str] = set()
    for (method, baseline), stands in standing.items():
        at = {(job.spec.data.name, job.spec.seed, job.spec.method.name): job.spec.hash for job in stands.jobs}
        both = [(dataset, seed) for dataset, seed, name in at if name == method and (dataset, seed, baseline) in at]
        several = {dataset for dataset, n in Counter(dataset for dataset, _ in both).items() if n > 1}
        runs |= {at[dataset, seed, name] for dataset, seed in both if dataset in several for name in (method, baseline)}
    return accuracy.of_runs(rows, runs)


def judge_all(store: Store, jobs: Sequence[Job], notebook: str) -> list[Verdict]:
    """Verdicts on all claims of one notebook."""
    return [judge(claim, store, jobs) for claim in rules.claims() if claim.notebook == notebook]


def _named(job: Job) -> str:
    part = dict(job.labels)
    what = f"{part['pretraining']} → {part['finetuning']}, {part['norm']} norm" if "finetuning" in part else method_label(
        job.spec.method.name)
    return f"{what} on {dataset_label(job.spec.data.name)}, seed {job.spec.seed}"


def commands(claim: Claim, store: Store, jobs: Sequence[Job] = ()) -> tuple[str, ...]:
    """What to type to compute the runs of a claim and to judge it, with the number of threads that its finished runs were made
    with: on a CPU numbers repeat with that number only."""
    entries = [store.provenance(Task(job.spec)) or {} for job in jobs]
    threads = Counter(e["threads"] for e in entries if e.get("device") == "cpu" and "threads" in e)
    which = " ".join(presets.options(store.preset))
    compute = f"./run_all.sh {which.removeprefix('--preset ')} {claim.notebook}"
    if threads:
        (most, _), *others = threads.most_common()
        compute = f"python -m twinslib sweep {which} --only {claim.notebook} --threads {most}" + "".join(
            f" ({count} of {threads.total()} runs: --threads {other})" for other, count in others)
    return compute, f"python -m twinslib claims {which} {claim.id}"


def to_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The ledger as text, one line per claim: effects with their intervals, the regime they hold in, the verdict, what is known
    from elsewhere, and what the design could show."""
    lines = []
    for v in verdicts:
        mine = [e for e in v.detail if {e.pair, e.pair[::-1]} & set(v.claim.rule.pairs)]
        robust, changes = v.claim.rule.robust, [
            f"changed on {e.changed}, can only withhold" + f", earlier runs give at most {PARTLY}" * (e.at_most == PARTLY)
            for e in v.claim.rule.earlier if e.withholds]
        counts = f"data sets: {len({e.dataset for e in mine})}, seeds: {span(e.seeds for e in mine)}" if mine else "no run"
        if any(e.images for e in mine):  # effects on weights stand on none
            counts += f", images: {span(e.images for e in mine if e.images)}"
        lines.append({
            "claim": v.claim.id, "sentence": v.claim.sentence,
            "effect": "; ".join(map(str, v.effects or mine)) or "none yet",
            "near chance, left out": "; ".join(map(str, v.flagged)) or "—",
            "regime": v.regime or "—", "verdict": v.verdict, "why": v.why + (f". {v.remark}" if v.remark else ""),
            "elsewhere": "; ".join(filter(None, [
                f"{public.reported(*v.claim.reported)} points" if v.claim.reported else "", v.claim.otherwise])) or "—",
            "could show": characteristics.sentence(v.claim),
            "robust at": eps_label(robust.eps, robust.threat) if robust else "—",
            "n": counts + (f"; began before the rule: {v.not_counted}" if v.not_counted else "")
            + (f"; diverged: {'; '.join(v.diverged)}" if v.diverged else ""),
            "rule": "; ".join([f"version {v.claim.rule.version}", *changes]),
            "stated by": f"{v.claim.paper}: {v.claim.source} ({v.claim.certainty})", "reproduce": "; ".join(v.commands)})
    return pd.DataFrame(lines)


def explain(v: Verdict, store: Store, jobs: Sequence[Job]) -> list[str]:
    """What a verdict follows from, line by line: rule, runs, intervals against bounds, and the calculation."""
    rule = v.claim.rule
    out = [f"{v.claim.id}  {v.claim.sentence}", "rule", f"  {rule.stamp}: {rule.text}"]
    out += [f"  before {e.changed}, {e.stamp} ({'its runs count' if e.withholds else 'its runs do not count'}): {e.text}"
            for e in rule.earlier]
    out += ["runs"] + [f"  {job.spec.hash}  {method_label(job.spec.method.name)} on {dataset_label(job.spec.data.name)}, seed "
                       f"{job.spec.seed}" for job in jobs if job.spec.hash in v.runs and concerns(job, rule)]
    out += [f"  {v.not_counted} more began before the rule"] if v.not_counted else []
    out += ["intervals"] + [f"  {e}{against(rule, e)}" for e in v.effects]
    out += [f"  {e} (near chance, left out)" for e in v.flagged]
    rest = [e for e in v.detail if e not in v.effects and e not in v.flagged]
    out += ["behind them"] + [f"  {e}" for e in rest] if rest else []
    return [*out, "calculation", f"  {v.why}", f"  {v.verdict}", "conditions", f"  {v.regime or 'no run'}"]


def summary(store: Store, paper: str = "") -> str:
    """The verdicts in claims.json of the store as a short Markdown table, all or those on one paper (the start of its name)."""
    lines = [{"claim": name, "sentence": c["sentence"], "verdict": c["verdict"], "why": c["why"] + (
        f"; diverged: {'; '.join(c['diverged'])}" if "diverged" in c else "")} for name, c in _read(store, "claims.json").items()
             if c["paper"].startswith(paper)]
    return to_markdown(pd.DataFrame(lines, columns=["claim", "sentence", "verdict", "why"]))


def headlines(store: Store) -> str:
    """The few claims that have a short form, with verdict and, where no more than two decide, effects, as a Markdown table
    for narrow screens; and how many claims have which verdict."""
    stored = _read(store, "claims.json")
    lines = [{"claim": f"{c.short} ({c.id})", f"verdict at {store.preset}": _briefly(c, stored[c.id], store)}
             for c in rules.claims() if c.short and c.id in stored]
    counts = Counter(record["verdict"] for record in stored.values())
    told = ", ".join(f"{counts[verdict]} {said}" for verdict, said in SAID.items() if counts[verdict])
    return f"{to_markdown(pd.DataFrame(lines))}\nAll {counts.total()} claims: {told}.\n" if lines else "No claim is judged.\n"


def _briefly(claim: Claim, record: dict, store: Store) -> str:
    """A verdict in a few words, with what decides, of many effects their mean, or what it waits for."""
    effects = [Effect(**{k: math.nan if v is None else v for k, v in e.items()}) for e in record["effects"]]
    if record["verdict"] == NOT_TESTED:
        waits = re.search(r"about (\S+ h)", left(store, claim))
        return f"not tested ({waits[1]} left)" if waits else "not tested"
    said = f"**{SAID.get(record['verdict'], record['verdict'])}**"
    effects = [e for e in effects if asked_of(claim.rule, e)]
    alone = judged(claim.rule, Evidence(tuple(effects)))  # as if nothing near chance were there
    if record["flagged"] and claim.rule.measure == "gain" and alone != record["verdict"]:
        near = unique(dataset_label(e["dataset"]) for e in record["flagged"])
        said += f" ({SAID[alone]} without {', '.join(near)}, near chance)"
    effects = effects if len(effects) <= 2 else [e for e in effects if e.part == "mean"]
    if {e.unit for e in effects} != {"points"}:
        return said
    several, ours = len({e.pair for e in effects}) > 1, len({e.method for e in effects})
    told = (f"{e.metric} {e.number()}" + (f" {method_label(e.method)}" if ours > 1 else "")
            + (f" against {method_label(e.baseline)}" if several else "")
            + (f" ({e.where.removeprefix(f'{e.metric} ')})" if e.where else "") for e in effects)
    return f"{said}, in points: {'; '.join(told)}"


def put_into(text: str, store: Store) -> str:
    """`text` with the headlines between its two marks, `<!-- claims -->` and `<!-- /claims -->`. ValueError: not each mark once,
    in this order."""
    start, end = "<!-- claims -->", "<!-- /claims -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"expected the marks {start} and {end}, each once; put them where the verdicts belong")
    return text.split(start)[0] + f"{start}\n{headlines(store)}{end}" + text.split(end)[1]


def write(store: Store, verdicts: Sequence[Verdict]) -> None:
    """Write claims.json of the store, whole or not at all, and claims.md, its summary; claims of other notebooks that are there
    stay."""
    path, new = store.root / "claims.json", {v.claim.id: _record(v) for v in verdicts}
    with store.leases.hold("claims", log.info):  # another notebook may be writing its own
        write_json(path, _read(store, path.name) | new, digest=False)
        text = f"# The claims at preset {store.preset}\n\n{summary(store)}"
        atomic_write(path.with_suffix(".md"), lambda tmp: tmp.write_text(text, encoding="utf-8"))


def _record(v: Verdict) -> dict:
    c, rule = v.claim, v.claim.rule
    return {"paper": c.paper, "notebook": c.notebook, "sentence": c.sentence, "source": c.source, "certainty": c.certainty,
            "rule": rule.text, "stamp": rule.stamp, "preset": v.preset, "verdict": v.verdict, "why": v.why, "remark": v.remark,
            "regime": v.regime, **{name: [_plain(e) for e in getattr(v, name)] for name in ("effects", "flagged", "detail")},
            "runs": list(v.runs), "runs_before_the_rule": v.not_counted, "commands": list(v.commands)} | (
                {"diverged": list(v.diverged)} if v.diverged else {})


def _plain(e: Effect) -> dict:
    """The effect with six digits of each number: the last ones differ between processors, which add in another order."""
    return {k: v if not isinstance(v, float) else None if math.isnan(v) else float(f"{v:.6g}")
            for k, v in dataclasses.asdict(e).items()}
