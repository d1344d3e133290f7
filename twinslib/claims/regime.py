"""Under what conditions a verdict stands: networks, images, seeds, distance from chance, and how learning rates were chosen."""

import math
from collections.abc import Sequence

from ..specs.jobs import Job
from ..specs.labels import dataset_label, method_label, unique
from ..specs.run import RunSpec
from ..store.store import Store, validation_score
from ..studies.finetuning import TUNING
from ..studies.rules import Claim
from .effects import Effect
from .verdict import Evidence


def _candidates(jobs: Sequence[Job]) -> dict[tuple[str, str, str], dict[RunSpec, None]]:
    """(data set, method, accuracy that decides) -> settings that are tried."""
    groups: dict[tuple[str, str, str], dict[RunSpec, None]] = {}
    for job in jobs:
        if job.study.endswith("tuning"):
            by = "robust" if job.study == TUNING else "mean"
            groups.setdefault((job.spec.data.name, job.spec.method.name, by), {})[job.spec] = None
    return groups


def _doubtful(store: Store, jobs: Sequence[Job], methods: set[str], datasets: set[str]) -> list[str]:
    """Learning rates that were chosen on validation images at an end of their grid, or while the second best was no more than a
    standard error of one accuracy behind."""
    out = []
    for (dataset, method, by), specs in _candidates(jobs).items():
        rates = sorted({s.optim.lr for s in specs})
        best = store.best(list(specs), by) if len(rates) > 1 and method in methods and dataset in datasets else None
        if best is None:
            continue
        scores = {s: validation_score(r["epochs"], s, by) if (r := store.run(s)) else -1.0 for s in specs}
        n, top = (store.run(best) or {}).get("val_images") or 0, scores[best]
        second = max((v for s, v in scores.items() if s != best), default=-math.inf)
        noise = math.sqrt(top * (1 - top) / n) if n and 0 <= top <= 1 else 0.0
        flags = ", an end of the grid" * (best.optim.lr in (rates[0], rates[-1])) + ", nearly a tie" * (top - second <= noise)
        out += [f"{method_label(method)} on {dataset_label(dataset)} {best.optim.lr:g}{flags}"] if flags else []
    return out


def fewest_rates(jobs: Sequence[Job], methods: set[str]) -> int:
    """The least number of learning rates that any of the methods was chosen from; 1 for one that was not chosen."""
    rates = {key: {s.optim.lr for s in specs} for key, specs in _candidates(jobs).items() if key[1] in methods}
    return min(map(len, rates.values())) if {method for _, method, _ in rates} == methods else 1


def regime(claim: Claim, store: Store, counted: Sequence[Job], jobs: Sequence[Job], found: Evidence) -> str:
    """Network, images, seeds and what they are over, accuracies beside chance, flags on chosen rates; "" without runs."""
    if not counted:
        return ""
    shown = [e for e in found.detail if e.pair in claim.rule.pairs] or [*found.effects, *found.detail]
    networks = unique(m.arch + (f", width {m.width}" if m.width else "") for m in (job.spec.model for job in counted))
    records = [r for job in counted if (r := store.run(job.spec))]
    parts = [", ".join(networks), f"{span(r.get('train_images') or 0 for r in records)} training images"]
    parts[-1] += f", {span(job.spec.optim.epochs for job in counted)} epochs"
    precisions = sorted({r["provenance"].get("precision", "") for r in records if "provenance" in r} - {""})
    parts += [f"precisions differ: {' and '.join(precisions)}"] if len(precisions) > 1 else []
    if any(e.images for e in shown):
        parts.append(f"{span(e.images for e in shown if e.images)} test images")
    if shown:
        parts.append(f"seeds: {span(e.seeds for e in shown)}" + (f" of {claim.over}" if claim.over else ""))
    near = {(e.dataset, e.where) for e in found.flagged}
    parts += filter(None, [distance([e for e in shown if (e.dataset, e.where) not in near] or shown)])
    flags = _doubtful(store, jobs, {name for pair in claim.rule.pairs for name in pair}, {job.spec.data.name for job in counted})
    return "; ".join(parts) + (f"; chosen rates to be careful with: {', '.join(flags)}" if flags else "")


def distance(effects: Sequence[Effect]) -> str:
    """Accuracies of the networks that decide and of guessing, in percent."""
    known = [e for e in effects if not math.isnan(e.chance)]
    if not known:
        return ""
    low, high = (f(x for e in known for x in (e.ours, e.theirs)) for f in (min, max))
    guess = sorted({e.chance for e in known})
    return (f"accuracies {100 * low:.1f} to {100 * high:.1f} %, of guessing {100 * guess[0]:.3g}"
            + (f" to {100 * guess[-1]:.3g}" if len(guess) > 1 else "") + " %")


def span(values) -> str:
    """1,000, or 300 to 1,000."""
    values = sorted(set(values))
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
