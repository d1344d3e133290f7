"""What a rule looks at: which runs it compares, what is read of them, and the function that weighs it."""

from collections.abc import Sequence

from ..evidence import cells, networks
from ..evidence import course as courses
from ..evidence.frame import chance, read, where
from ..specs.jobs import Job
from ..specs.labels import unique
from ..store.store import Store
from ..studies.finetuning import STUDY
from ..studies.rules import Rule
from ..studies.smoothing import cell_of
from . import course, finetuning, rates, smoothing, transfer
from .verdict import Evidence

KINDS = {name: module for module in (transfer, course, smoothing, finetuning, rates) for name in module.MEASURES}
PARTS = {"best_schedule": ("main", "schedule")}  # of the grid of adversarial fine-tuning, other rules: main


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run that the rule compares."""
    kind, labels = KINDS[rule.measure], dict(job.labels)
    if rule.datasets and job.spec.data.name not in rule.datasets:
        return False
    if kind is smoothing:
        return not job.ship and cell_of(job) in smoothing.at_levels(rule)
    if job.ship or job.spec.method.name not in {name for pair in (*rule.pairs, *rule.controls) for name in pair}:
        return False
    if kind is course:
        return bool(job.spec.follow)
    if kind is finetuning:
        return job.study == STUDY and labels["part"] in PARTS.get(rule.measure, ("main",))
    if kind is rates:
        return job.study == rates.STUDY and labels.get("part") == "grid" and bool(job.evals) and rates.rate(job) in rule.rates
    return bool(job.evals) and job.study == "transfer"


def evidence(store: Store, jobs: Sequence[Job], rule: Rule, lost: Sequence[Job] = ()) -> Evidence:
    """What finished runs that count say on a rule. `jobs`: that it compares. `lost`: those of them that ended without a
    result."""
    kind, guess = KINDS[rule.measure], chance(store, jobs)
    if kind is course:
        return course.weigh(course.rows(courses.finished(store, jobs), rule), guess, rule, [job.spec for job in lost])
    if kind is finetuning:
        return finetuning.weigh(finetuning.rows(networks.finished(store, jobs)), guess, rule)
    rows = where(read(store, jobs), at="last")
    if kind is smoothing:
        datasets = unique(job.spec.data.name for job in jobs)
        return smoothing.weigh(cells.finished(store, jobs), where(rows, metric="clean"), datasets, guess, rule, store)
    return rates.weigh(rows, guess, rule, lost) if kind is rates else transfer.weigh(rows, guess, rule)
