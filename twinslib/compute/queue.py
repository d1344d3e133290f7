"""The queue: tasks in order until all are done or the time is spent."""

import logging
import time
from collections.abc import Callable, Collection, Sequence

import torch

from ..base.errors import Diverged
from ..nets import arithmetic
from ..specs.jobs import Job, Plan, Report, Task, tasks_of
from ..store.leases import Lease, Leases, Lost
from ..store.store import Store, split_name
from ..train.step import OutOfTime
from .check import check
from .worker import Worker

log = logging.getLogger(__name__)
POLL = 0.1  # seconds between two looks at what other workers hold


def _shipped(planned: Sequence[Job]) -> set[str]:
    """Hashes of the runs whose weights are kept with the results: those that are asked for, and every run's sources."""
    out = {job.spec.hash for job in planned if job.ship}
    for spec in (job.spec.source for job in planned):
        while spec is not None:
            out.add(spec.hash)
            spec = spec.source
    return out


def precision_in_words(jobs: Sequence[Job], device: torch.device | str) -> str:
    """What "bfloat16" means on `device`, where any of `jobs` asks for it; empty otherwise."""
    asked = {job.spec.optim.precision for job in jobs} | {c.precision for job in jobs for c in job.certs}
    return arithmetic.in_words(asked, device)


def sweep(worker: Worker, jobs: Sequence[Job] | Plan, *, budget: float | None = None, failed: Collection[Task] = (),
          stop: Callable[[], bool] = lambda: False,
          on_step: Callable[[Task, int, int], None] = lambda task, done, total: None) -> Report:
    """Do the missing tasks of `jobs` in order until all are done or `budget` seconds are spent; resumes where it stopped.
    Every call does at least one training step or block of images, unless other workers have all that can be done now.

    Any number of sweeps may work on one store: each takes the first task whose sources are finished and that nobody holds
    (`store.leases`), and waits while others hold all of them.

    A task that diverges or fails is reported and the others go on; only what the system refuses (OSError: no space, no file)
    ends the sweep. `stop` ends it cleanly (a checkpoint is written).

    Args:
        jobs: jobs, or a function that makes them; it is asked again when what jobs wait for can be chosen.
        failed: tasks that are not tried again.
    """
    store, plan = worker.store, jobs if callable(jobs) else lambda best: jobs
    report, leases = Report(), store.leases
    deadline = None if budget is None else time.monotonic() + budget

    def missing() -> list[Task]:
        """What is not done and did not fail, now or before."""
        vain = {*failed, *(task for task, _ in report.failed)}
        return [task for task in store.missing(planned) if task not in vain]

    def over() -> bool:
        return stop() or (deadline is not None and time.monotonic() >= deadline)

    store.tidy()
    planned = plan(best=store.best)
    tasks, shipped = missing(), _shipped(planned)
    if tasks and (words := precision_in_words(planned, worker.device)):
        log.info(words)
    check(worker.networks, [*tasks, *tasks_of([job for job in planned if job.waits])])
    for data in {split_name(job.spec.data): job.spec.data for job in planned if store.run(job.spec)}.values():
        worker.networks.restore_split(data)
    broken = {task.spec for task in failed if task.evaluation is None}  # not trained, as this or a source failed
    waited, waiting_for = False, ""
    while tasks:
        begun = report.done or report.failed or report.diverged or waited  # every call gets on, however short its budget
        if begun and over():
            break
        lost = [task for task in tasks if {task.spec, task.spec.source} & broken]
        if lost:
            report.failed += [(task, "its training or source run failed") for task in lost]
            broken |= {task.spec for task in lost}
            tasks = [task for task in tasks if task not in lost]
            continue
        ended = [task for task in tasks if store.finished(task)]  # by others, meanwhile
        task, lease = _first(store, leases, [task for task in tasks if task not in ended])
        if lease is not None:
            waiting_for = ""
            log.info("%s", task)
            try:
                _do(worker, task, lease, report, ship=task.spec.hash in shipped, stop=over,
                    on_step=lambda done, total, task=task: on_step(task, done, total))
            except OutOfTime:
                break
            finally:
                lease.release()
            vain = {t for t, _ in report.failed}
            broken |= {task.spec} if task in vain and task.evaluation is None else set()
            ended += [task] if task in vain or store.finished(task) else []
        elif not ended:
            held = {task: who for task in tasks if (who := leases.holder(task.name))}
            for task, who in list(held.items())[:1]:
                if who != waiting_for:
                    log.info("waiting for %s, which is at %s", who, task)
                waiting_for = who
            time.sleep(POLL)
            waited = True
            if not held:  # as where weights were deleted
                tasks = missing()
        tasks = [task for task in tasks if task not in ended]
        if store.changes(planned, ended):
            planned = plan(best=store.best)
            tasks = missing()
            shipped = _shipped(planned)
    store.tidy()
    report.left = tasks
    report.waiting = store.waiting(planned)
    return report


def _first(store: Store, leases: Leases, tasks: Sequence[Task]) -> tuple[Task | None, Lease | None]:
    """The first task that can be done now, with the lease on it; nothing where others have all of them."""
    for task in tasks:
        if store.ready(task) and (lease := leases.take(task.name)) is not None:
            if not store.finished(task):
                return task, lease
            lease.release()  # whoever had it before finished it
    return None, None


def _do(worker: Worker, task: Task, lease: Lease, report: Report, *, stop: Callable[[], bool], **how: object) -> None:
    """Do a task that is held and report what came of it; a task that another process has taken over is left to that one."""
    def hold_on() -> bool:
        lease.check()
        return stop()

    try:
        worker.do(task, stop=hold_on, **how)
    except OutOfTime:
        raise
    except Lost as error:
        log.warning("%s", error)
        if worker.store.finished(task):  # by the other one; this one may have written a checkpoint before it found out
            worker.store.forget(task)
    except Diverged as error:
        report.diverged.append((task, str(error)))
        log.warning("diverged: %s", error)
    except Exception as error:  # the boundary: whatever a task raises is its own failure, the others go on
        if not lease.held():
            log.warning("%s was taken over by another process", task)
        elif isinstance(error, OSError):
            raise
        else:
            report.failed.append((task, f"{type(error).__name__}: {error}"))
            log.exception("failed: %s", task)
    else:
        report.done.append(task)
