"""The queue: tasks in order until all are done or the time is spent."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..base.errors import Diverged
from ..nets import arithmetic
from ..specs.jobs import Job, Plan, Task, tasks_of
from ..specs.labels import NOT_RUN
from ..specs.run import RunSpec
from ..train.step import OutOfTime
from .check import check
from .worker import Worker

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a sweep did.

    Args:
        failed: with what went wrong; what needs a run that failed has failed too.
        diverged: with why. Results, not failures: kept, and done.
        waiting: runs whose hyper-parameters are not chosen yet; those of which every candidate diverged never will be, and do
            not count.
    """

    done: list[Task] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)
    left: list[Task] = field(default_factory=list)
    diverged: list[tuple[Task, str]] = field(default_factory=list)
    waiting: int = 0

    def add(self, later: "Report") -> None:
        """Go on with what a later sweep of the same store did; what is left is what that one left."""
        for name in ("done", "failed", "diverged"):
            getattr(self, name).extend(getattr(later, name))
        self.left, self.waiting = later.left, later.waiting


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


def sweep(worker: Worker, jobs: Sequence[Job] | Plan, *, budget: float | None = None,
          stop: Callable[[], bool] = lambda: False,
          on_step: Callable[[Task, int, int], None] = lambda task, done, total: None) -> Report:
    """Do the missing tasks of `jobs` in order until all are done or `budget` seconds are spent; resumes where it stopped.
    Every call does at least one training step or block of images.

    A task that diverges or fails is reported and the others go on; only what the system refuses (OSError: no space, no file)
    ends the sweep. `stop` ends it cleanly (a checkpoint is written).

    Args:
        jobs: jobs, or a function that makes them; it is asked again when a run that others wait for is finished.
    """
    store, plan = worker.store, jobs if callable(jobs) else lambda best: jobs
    report = Report()
    deadline = None if budget is None else time.monotonic() + budget

    def over() -> bool:
        return stop() or (deadline is not None and time.monotonic() >= deadline)

    with store.locked():
        planned = plan(best=store.best)
        tasks, shipped = store.missing(planned), _shipped(planned)
        if tasks and (words := precision_in_words(planned, worker.device)):
            log.info(words)
        waiting = [job for job in planned if not job.settled]
        check(worker.networks, [*tasks, *tasks_of(waiting)])
        broken: set[RunSpec] = set()  # not trained, as this or a source failed
        while tasks:
            task = tasks[0]
            begun = report.done or report.failed or report.diverged  # every call gets on, however short its budget
            if begun and over():
                break
            if {task.spec, task.spec.source} & broken:
                report.failed.append((tasks.pop(0), "its training or source run failed"))
                broken.add(task.spec)
                continue
            log.info("%s", task)
            diverged = False
            try:
                worker.do(task, ship=task.spec.hash in shipped, stop=over,
                         on_step=lambda done, total, task=task: on_step(task, done, total))
            except OutOfTime:
                break
            except Diverged as error:
                diverged = True
                report.diverged.append((task, str(error)))
                log.warning("diverged: %s", error)
            except OSError:
                raise
            except Exception as error:  # the boundary: whatever a task raises is its own failure, the others go on
                report.failed.append((task, f"{type(error).__name__}: {error}"))
                broken |= {task.spec} if task.evaluation is None else set()
                log.exception("failed: %s", task)
            else:
                report.done.append(task)
            del tasks[0]
            if task.evaluation is None and (diverged or not all(job.settled for job in planned)):
                planned = plan(best=store.best)
                failed = {t for t, _ in report.failed}
                tasks = [t for t in store.missing(planned) if t not in failed]
                shipped = _shipped(planned)
        report.left = tasks
        report.waiting = sum(not job.settled and store.absent(job) == NOT_RUN for job in planned)
    return report
