"""Many workers on one store: processes of this machine, or jobs of a Slurm cluster.

Each is a sweep of its own (`compute.queue`), and the store is all that they share; so any can be killed or added at any time. A
job that is preempted, or whose time is up, ends cleanly and is put into Slurm's queue again.
"""

from __future__ import annotations  # torch, which takes seconds to import, only where GPUs are to be counted

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import submitit
import yaml
from tqdm import tqdm

from .specs.jobs import Plan, Report, tasks_of
from .store.store import Store

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
ENDS = 120  # seconds before its end at which a job is told to stop
LOOK = 30.0  # seconds between two looks at Slurm's queue
REQUEUED = 1000  # times that a job may reach its limit
CALM, LATEST = 20, 10.0  # between two looks at the store pass so many times the seconds that one takes, at most so many seconds
STOPPED = 3  # exit status of a sweep that a signal ended
LOST = 4  # of a job of Slurm that was cancelled, crashed, or was out of memory


class Local:
    """A worker of this machine: a sweep in a process of its own, whose words go into a file."""

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        self.log_file, self.asked = log_file, False
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(log_file, "w") as file:  # a session of its own: at a terminal Ctrl-C is for the one who started them
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def done(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def cancel(self) -> None:
        """Ask it to end cleanly; asked again it is killed."""
        (self.process.kill if self.asked else self.process.terminate)()
        self.asked = True

    def status(self) -> int:
        """Its exit status; negative: of the signal that killed it."""
        return self.process.wait()

    def said(self) -> str:
        """All that it printed."""
        return self.log_file.read_text(errors="replace")


class InSlurm:
    """What submitit runs as a job of Slurm: a sweep in a process of its own, which the signal of the job's end stops cleanly."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command, self.process = list(command), None

    def __call__(self) -> int:
        """Exit status of the sweep."""
        self.process = subprocess.Popen(self.command, preexec_fn=_ignore_end_signal)
        try:
            return self.process.wait()
        finally:
            self._stop()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before it puts the job into the queue again."""
        self._stop()
        return submitit.helpers.DelayedSubmission(type(self)(self.command))

    def _stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(ChildProcessError):  # not `wait`, which the handler of a signal may have interrupted
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)


def _ignore_end_signal() -> None:
    """The signal is for submitit's process, but Slurm sends it to all of the job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class Job:
    """A job of Slurm, with the words of `Local`."""

    def __init__(self, job: submitit.Job) -> None:
        self.job, self.cancel, self.log_file, self.gone, self.looked = job, job.cancel, job.paths.stderr, False, time.monotonic()

    def done(self) -> bool:
        """Whether it has ended. Of a job without a result submitit knows that from Slurm's accounts only, which many clusters do
        not keep, so the queue is looked at as well."""
        if not self.gone and time.monotonic() - self.looked > LOOK:
            found = subprocess.run(["squeue", "--noheader", "--jobs", self.job.job_id], capture_output=True, text=True,
                                   check=False)
            self.gone = "Invalid job id" in found.stderr or (found.returncode == 0 and not found.stdout.strip())
            self.looked = time.monotonic()
        return self.job.done() or self.gone

    def status(self) -> int:
        """Exit status of its sweep, waiting for it; `LOST` for a job that ended without one."""
        if self.gone and not self.job.done():
            return LOST
        try:
            return self.job.result()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            return LOST

    def said(self) -> str:
        """All that it printed."""
        return self.job.stdout() or ""


def share(workers: int, threads: int | None, device: torch.device | None) -> list[list[str]]:
    """Options of each worker of this machine: its GPU where there are any, else its share of the cores.

    >>> import torch
    >>> share(2, 1, torch.device("cpu"))
    [['--device', 'cpu', '--threads', '1'], ['--device', 'cpu', '--threads', '1']]
    """
    import torch

    gpus = torch.cuda.device_count() if device is None or device.type == "cuda" else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = str(threads or max(1, cores // workers))
    own = [str(device) if device and device.index is not None else f"cuda:{i % gpus}" if gpus else "cpu" for i in range(workers)]
    return [["--device", name, "--threads", each] for name in own]


def start_local(commands: Sequence[Sequence[str]], folder: Path) -> list[Local]:
    """A worker of this machine for each command."""
    return [Local(command, folder / f"{i}.log") for i, command in enumerate(commands)]


def start_slurm(commands: Sequence[Sequence[str]], folder: Path, options: Sequence[str]) -> list[Job]:
    """A job of Slurm for each command.

    Args:
        options: such as partition=gpu, time=600 (minutes), gpus_per_node=1; those of `submitit.SlurmExecutor`.
    Raises:
        ValueError: no Slurm here, or an option that submitit does not know.
    """
    if shutil.which("srun") is None:
        raise ValueError("expected Slurm's commands on this machine, got no srun; leave --slurm out to work here")
    found = {"job_name": "twins", "signal_delay_s": ENDS}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"expected options of Slurm such as partition=gpu, got {text!r}")
        if key == "time" and not value.isdecimal():
            raise ValueError(f"expected time in minutes, such as time=600, got {text!r}")
        found[key] = yaml.safe_load(value)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUED)
    executor.update_parameters(**found)
    with executor.batch():
        jobs = [executor.submit(InSlurm(command)) for command in commands]
    return [Job(job) for job in jobs]


@contextlib.contextmanager
def _taken_along(workers: Sequence[Local | Job]) -> Iterator[None]:
    """Where following workers ends by an error or a second Ctrl-C, they end too."""
    try:
        yield
    except BaseException:
        for worker in workers:
            worker.cancel()
        raise


def sweep(start: Callable[[Path], Sequence[Local | Job]], store: Store, plan: Plan, *,
          stop: Callable[[], bool]) -> tuple[Report, int]:
    """Start workers and follow them until all have ended: (what they did, their highest exit status if anything is left).

    Args:
        start: makes the workers; given a folder for what they say, which goes when all is done.
        stop: when true, they are asked to end cleanly.
    """
    folder = store.work_path("workers") / uuid.uuid4().hex[:8]
    planned, report, stopped, changed = plan(best=store.best), Report(), False, False
    everything = set(store.missing(planned))
    before = {task for task in tasks_of([job for job in planned if job.settled]) if task not in everything}
    workers = start(folder)
    log.info("%d workers; what they say is in %s", len(workers), folder)
    with _taken_along(workers), tqdm(total=len(everything), disable=not sys.stderr.isatty(), dynamic_ncols=True,
                                     unit="task") as bar:
        while True:
            ended, clock = all(worker.done() for worker in workers), time.monotonic()
            if ended or changed:  # what was chosen meanwhile may be done already, and is then not missing
                planned = plan(best=store.best)
                everything |= {*store.missing(planned), *tasks_of([job for job in planned if job.settled])} - before
            new = [task for task in everything - set(report.done) if store.finished(task)]
            for task in sorted(new, key=str):
                report.done.append(task)
                if bar.disable:
                    log.info("done: %s", task)
            changed = store.changes(planned, new)
            bar.total = len(everything)
            bar.update(len(report.done) - bar.n)
            if ended:
                break
            if stop() and not stopped:
                stopped = True
                for worker in workers:
                    worker.cancel()
            time.sleep(min(max(0.2, CALM * (time.monotonic() - clock)), LATEST))
    report.left, statuses = store.missing(planned), [worker.status() for worker in workers]
    report.waiting = store.waiting(planned)
    said = dict.fromkeys(line for worker in workers for line in worker.said().splitlines() if line.startswith("failed: "))
    report.failed = [tuple(line.removeprefix("failed: ").rsplit(": ", 1)) for line in said]
    for worker, status in zip(workers, statuses, strict=True):
        if status not in (0, 1, STOPPED) and not stopped:
            log.warning("a worker ended with status %s; what it said is in %s", status, worker.log_file)
    if not any(statuses):
        shutil.rmtree(folder, ignore_errors=True)
    return report, max(map(abs, statuses)) if report.left else 0  # whoever was killed, others did its work
