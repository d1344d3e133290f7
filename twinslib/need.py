"""Which runs the verdicts wait for, in order of need, and how long they take."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from .base.files import write_json
from .claims import ledger, rates
from .claims.kinds import concerns
from .claims.transfer import least_datasets
from .claims.verdict import NOT_TESTED
from .compute import cost, provenance, queue
from .compute.worker import Worker
from .specs.jobs import Job, Plan, Report, Task
from .specs.labels import NOT_RUN, dataset_label, method_label, unique
from .store.store import Store
from .studies import rules
from .studies.rules import Claim

log = logging.getLogger(__name__)
Key = tuple[str, str, str, int, tuple]


class Need(NamedTuple):
    """What is left to do before a rule can decide.

    jobs: that it compares, then the candidates that those wait for. tasks: of both, not done yet.
    """

    claim: Claim
    jobs: tuple[Job, ...]
    tasks: tuple[Task, ...]

    @property
    def runs(self) -> list[Job]:
        """Those that it compares."""
        return [job for job in self.jobs if not job.study.endswith("tuning")]

    def __str__(self) -> str:
        names = unique(method_label(job.spec.method.name) for job in self.runs)
        places = unique(dataset_label(job.spec.data.name) for job in self.runs)
        return f"{self.claim.id} waits for {len(self.runs)} runs ({', '.join(names)}; {', '.join(places)})"


def key(job: Job) -> Key:
    """What a job is, whichever hyper-parameters are chosen for it."""
    return job.study, job.spec.method.name, job.spec.data.name, job.spec.seed, job.labels


def needs(store: Store, plans: Mapping[str, Plan]) -> list[Need]:
    """For each claim that is not tested yet and that planned runs can decide, what is left, in the ledger's order.

    Args:
        plans: by notebook, as `plan.plan` makes them.
    """
    made = {number: jobs_of(best=store.best) for number, jobs_of in plans.items()}
    return [need for claim in rules.claims() if claim.notebook in made
            and (need := of_claim(claim, store, made[claim.notebook])).tasks]


def sweep(worker: Worker, plans: Mapping[str, Plan], *, budget: float | None = None, stop: Callable[[], bool] = lambda: False,
          **options: object) -> Report:
    """`queue.sweep`, but first of what each verdict waits for, verdict by verdict, and then of all else; says how long."""
    store, start, report = worker.store, time.monotonic(), Report()
    every = [job for jobs_of in plans.values() for job in jobs_of(best=store.best)]
    for line in describe(needs(store, plans), *cost.rate(worker, cost.tasks_of(every))).splitlines():
        log.info(line)

    def go(jobs_of: Plan) -> bool:
        """True if there is time for more."""
        rest = None if budget is None else max(0.0, budget - (time.monotonic() - start))
        part = queue.sweep(worker, jobs_of, budget=rest, stop=stop, failed={task for task, _ in report.failed}, **options)
        report.add(part)
        return not part.left and not stop() and (budget is None or time.monotonic() - start < budget)

    for claim in rules.claims():
        if claim.notebook in plans and (need := of_claim(claim, store, plans[claim.notebook](best=store.best))).tasks:
            log.info("now %s", need.claim.id)
            keys = {key(job) for job in need.jobs}
            if not go(lambda best, of=plans[claim.notebook], keys=keys: [job for job in of(best=best) if key(job) in keys]):
                break
    else:
        go(lambda best: sorted((job for of in plans.values() for job in of(best=best)), key=lambda job: job.spec.seed))
    jobs, failed = [job for of in plans.values() for job in of(best=store.best)], {task for task, _ in report.failed}
    report.left, report.waiting = [task for task in store.missing(jobs) if task not in failed], store.waiting(jobs)
    return report


def of_claim(claim: Claim, store: Store, jobs: Sequence[Job]) -> Need:
    """The least that a rule asks for: of the data sets and seeds that its finished and planned runs can complete, those of which
    least is left. Nothing for a claim that is judged already, or that no planned run can decide."""
    judges = claim.rule.measure != "shown" and store.preset in rules.SCALES
    if not judges or ledger.judge(claim, store, jobs).verdict != NOT_TESTED:
        return Need(claim, (), ())
    rule = claim.rule
    beside = {name for pair in rule.controls for name in pair} - {name for pair in rule.pairs for name in pair}
    cells: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        if (job.settled or job.waits) and concerns(job, rule) and job.spec.method.name not in beside:
            cells.setdefault((job.spec.data.name, job.spec.seed), []).append(job)
    compared = {(job.spec.method.name, job.labels) for mine in cells.values() for job in mine}
    left = {cell: _left(store, jobs, mine) for cell, mine in cells.items()
            if {(job.spec.method.name, job.labels) for job in mine} == compared
            and all(not _ended(store, job) or ledger.counts(claim, store, job) or _left_out(store, claim, job) for job in mine)}
    chosen = {}
    for data in unique(data for data, _ in cells):
        seeds = sorted((cell for cell in left if cell[0] == data), key=lambda cell: (_work(left[cell]), cell))
        if len(seeds) >= rule.min_seeds:
            chosen[data] = seeds[:rule.min_seeds]
    least = least_datasets(rule)
    if len(chosen) < least:
        return Need(claim, (), ())
    order = sorted(chosen, key=lambda data: sum(_work(left[cell]) for cell in chosen[data]))[:least]
    whole = sorted((cell for data in order for cell in chosen[data]), key=lambda cell: cell[1])
    wanted = [job for cell in whole for job in cells[cell] if _left(store, jobs, [job])]
    return Need(claim, (*_candidates(jobs, wanted), *wanted), tuple(_left(store, jobs, wanted)))


def hours(found: Sequence[Need], speed: float) -> list[float]:
    """Hours until each can be decided, one after the other, at so many multiply-adds per second."""
    done: dict[Task, float] = {}
    out = []
    for need in found:
        done |= {task: cost.macs(task) for task in need.tasks if task not in done}
        out.append(sum(done.values()) / speed / 3600)
    return out


def describe(found: Sequence[Need], speed: float, origin: str) -> str:
    """What every verdict waits for, in order, and the hours until it can be given."""
    lines = [f"{need}: in {h:.1f} h" for need, h in zip(found, hours(found, speed), strict=True)]
    return "\n".join([*lines, f"({origin})"] if lines else ["no verdict waits for planned runs"])


def write(worker: Worker, found: Sequence[Need], jobs: Sequence[Job]) -> None:
    """Keep for the ledger (`ledger.left`) what each verdict waits for by itself, with the hours on this machine.

    Args:
        jobs: whose finished runs say how fast it is.
    """
    of, every = provenance.machine(worker.device), cost.tasks_of(jobs)
    speed, origin = cost.rate(worker, every)
    threads = sorted({entry["threads"] for _, entry in cost.done_here(worker, every)} or {torch.get_num_threads()})
    where = of["device"] if "cpu" not in of else (f"{of['cpu']} with {of['instruction_set']['torch']}, "
                                                 f"threads: {', '.join(map(str, threads))}")
    where = origin if cost.elsewhere(worker) and cost.measured_rate(worker, every) is None else where
    write_json(worker.store.root / ledger.WAITING, {need.claim.id: {
        "runs": len(need.runs), "tasks": len(need.tasks), "hours": float(f"{hours([need], speed)[0]:.2g}"), "on": where}
        for need in found}, digest=False)


def _ended(store: Store, job: Job) -> bool:
    """It has a result, or never will have one."""
    return job.settled and (store.run(job.spec) is not None or store.absent(job) != NOT_RUN)


def _left_out(store: Store, claim: Claim, job: Job) -> bool:
    """It diverged, and the rule goes on without its rate."""
    return claim.rule.measure in rates.MEASURES and store.diverged(job.spec) is not None


def _candidates(jobs: Sequence[Job], wanted: Sequence[Job]) -> list[Job]:
    specs = {spec for job in wanted for spec in job.candidates}
    return [job for job in jobs if job.spec in specs and job.study.endswith("tuning")]


def _left(store: Store, jobs: Sequence[Job], wanted: Sequence[Job]) -> list[Task]:
    """Tasks that are not done, with what waits for a choice taken as what stands in for it."""
    return store.missing([*_candidates(jobs, wanted), *(dataclasses.replace(job, settled=True) for job in wanted)])


def _work(tasks: Sequence[Task]) -> float:
    return sum(map(cost.macs, tasks))
