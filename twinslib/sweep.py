"""The command sweep: compute what is missing, here, by many workers, or as jobs of Slurm; or say what there is to do."""

from __future__ import annotations  # types of what is imported late

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import workers
from .specs.jobs import Best, Job, Plan, Report, Task
from .specs.labels import NOT_RUN, SOURCE_DIVERGED
from .store import shipped
from .store.store import Store
from .studies import own, plan, presets

# what takes seconds to import, torch above all, is imported once arguments and parameters are right and the workers have begun
if TYPE_CHECKING:
    import torch


def add_parser(commands) -> None:
    """The command and its options."""
    p = commands.add_parser("sweep", allow_abbrev=False, help="compute the missing runs of a preset")
    own.add_options(p)
    p.add_argument("--only", nargs="+", metavar="NN", help="notebook numbers; default: all")
    p.add_argument("--claims", action="store_true", help="first what verdicts wait for; with --dry-run the hours until each")
    p.add_argument("--budget", type=seconds, metavar="TIME", help="stop cleanly after 90s, 9m, 1.5h")
    p.add_argument("--dry-run", action="store_true", help="print runs, hours and memory; compute nothing")
    p.add_argument("--device", type=device, help="cpu or cuda; default: cuda where there is one")
    p.add_argument("--threads", type=int, help="CPU threads; default: the preset's, of several workers "
                   "an equal share of the cores")
    p.add_argument("--tflops", type=float, help="with --dry-run: plan for a device that sustains so many TFLOP/s")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="so many at once: one per GPU, or the cores shared out")
    p.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="workers are jobs of Slurm, with options such as time=600")
    p.add_argument("--compile", action="store_true", help="compile the attacks of training where that is measured to be faster")
    p.set_defaults(func=run_sweep)


def seconds(text: str) -> float:
    """Duration such as 90s, 9m, 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 9m or 1.5h, got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def device(text: str) -> torch.device:
    """cpu, or a CUDA device that is there."""
    import torch

    try:
        found = torch.device(text)
        there = found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        there = False
    if not there:
        raise argparse.ArgumentTypeError(f"expected cpu or a CUDA device that is there, got {text!r}")
    return found


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGINT are collected in the list instead of ending the process, but for a second Ctrl-C: a block of
    images under AutoAttack can take hours, and whatever is ended anywhere goes on from what it stored."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        if number == signal.SIGINT:
            os.write(2, b"ending after the step or block in hand, which is stored; Ctrl-C again ends at once, without it\n")

    before = {name: signal.signal(name, note) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class Progress:
    """A bar with the estimated time for the task in hand at a terminal; nothing otherwise (log lines tell)."""

    def __init__(self) -> None:
        self.task, self.bar = None, None

    def __call__(self, task: Task, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if task != self.task:
            from tqdm import tqdm

            self.close()
            self.task, self.bar = task, tqdm(total=total, initial=done - 1, desc=str(task)[:70], dynamic_ncols=True)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def run_sweep(args: argparse.Namespace) -> int:
    for option, value in (("--threads", args.threads), ("--tflops", args.tflops), ("--workers", args.workers)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"expected {option} above 0, got {value}")
    presets.check_threads(args.threads or 0, "--threads")
    presets.check_threads(args.workers if args.slurm is None else 1, "--workers")
    plans, asked = {}, {}
    for number in presets.numbers(args.preset, args.only or ()):
        plans[number], settings = plan.plan(args.preset, number)
        asked[number] = settings.get("threads")
    if not args.threads and len(set(asked.values())) > 1:
        raise ValueError(f"expected one number of threads in notebooks that are swept together, got {asked}; say --threads, or "
                         "--only for one at a time")
    threads = args.threads or next(iter(asked.values()))
    store = Store(args.preset)

    def planned(best: Best) -> list[Job]:
        jobs = [job for one in plans.values() for job in one(best=best)]
        return sorted(jobs, key=lambda job: job.spec.seed)  # stable: seed 0 of everything first

    if presets.is_own(args.preset):
        shipped.take(store, planned(best=store.best))
    if args.dry_run:
        print(forecast(args, store, plans, planned(best=store.best)))
        return 0
    from tqdm.contrib.logging import logging_redirect_tqdm

    clock, status = time.monotonic(), 0
    above_bar = logging_redirect_tqdm() if sys.stderr.isatty() else contextlib.nullcontext()
    with above_bar, stop_signals() as stopped, contextlib.closing(Progress()) as progress:
        if args.workers > 1 or args.slurm is not None:  # which begin before this process imports torch
            report, status = workers.sweep(lambda folder: start_workers(args, folder), store, planned, stop=lambda: bool(stopped))
        else:
            report = sweep_here(args, store, plans, planned, threads, stop=lambda: bool(stopped), on_step=progress)
    from .evidence import rows

    jobs = planned(best=store.best)
    for name in sorted({job.study for job in jobs}):
        rows.write(store, jobs, name)
    print(summary(report, store, args.device, jobs, time.monotonic() - clock))
    return 1 if report.failed else (workers.STOPPED if stopped else status)


def forecast(args: argparse.Namespace, store: Store, plans: dict[str, Plan], jobs: Sequence[Job]) -> str:
    """What a sweep would do, with hours and memory."""
    from . import need
    from .compute import cost
    from .compute.queue import precision_in_words
    from .compute.worker import Worker

    worker = Worker(store, args.device)
    if args.claims:
        return need.describe(need.needs(store, plans), *cost.rate(worker, cost.tasks_of(jobs)))
    flops = args.tflops * 1e12 if args.tflops else None
    lines = precision_in_words(jobs, worker.device), cost.describe(worker, jobs, flops=flops, workers=args.workers)
    return "\n".join(filter(None, lines))


def sweep_here(args: argparse.Namespace, store: Store, plans: dict[str, Plan], planned: Plan, threads: int | None,
               **how: Callable) -> Report:
    """The work of one worker, in this process."""
    import torch

    from . import need
    from .compute import queue
    from .compute.worker import Worker

    worker = Worker(store, args.device, compiled=args.compile)
    if threads and worker.device.type == "cpu":
        torch.set_num_threads(threads)
    do, what = (need.sweep, plans) if args.claims else (queue.sweep, planned)
    return do(worker, what, budget=args.budget, **how)


def start_workers(args: argparse.Namespace, folder: Path) -> Sequence[workers.Local | workers.Job]:
    """Workers that sweep what `args` ask for, on this machine or in Slurm."""
    command = [sys.executable, "-m", "twinslib", "sweep", *presets.options(args.preset)]
    command += (["--only", *args.only] if args.only else []) + (["--claims"] if args.claims else [])
    command += ["--compile"] if args.compile else []
    command += ["--budget", f"{args.budget}s"] if args.budget is not None else []
    if args.slurm is not None:
        own = [[*(["--threads", str(args.threads)] if args.threads else []),
                *(["--device", str(args.device)] if args.device else [])]] * args.workers
        return workers.start_slurm([command + options for options in own], folder, args.slurm)
    return workers.start_local([command + options for options in workers.share(args.workers, args.threads, args.device)], folder)


def summary(report: Report, store: Store, on: torch.device | None, jobs: Sequence[Job], took: float) -> str:
    """What a sweep did and what it leaves, for the terminal."""
    gone, stuck = diverged(store, jobs)
    lines = [f"done: {len(report.done)} tasks in {took / 60:.1f} min; failed: {len(report.failed)}; left: {len(report.left)}"
             + (f"; diverged: {len(gone)}" if gone else "")]
    lines += [f"failed: {task}: {why}" for task, why in report.failed]
    lines += gone + stuck
    if report.left:
        from .compute import cost
        from .compute.worker import Worker

        hours, origin = cost.remaining_hours(Worker(store, on), report.left, jobs)
        lines += [f"left: {task}" for task in report.left[:5]]
        lines += [f"left: … and {len(report.left) - 5} more"] if len(report.left) > 5 else []
        lines.append(f"left in all: about {hours:.1f} h ({origin}); call again to go on")
    if report.waiting:
        lines.append(f"not counted: {report.waiting} runs whose hyper-parameters are still to be chosen")
    return "\n".join(lines)


def diverged(store: Store, jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """What of `jobs` diverged, now or earlier, with why and what to delete to try it again; and what cannot be done for that."""
    gone, stuck = {}, {}
    used = {job.spec for job in jobs if job.settled and not job.study.endswith("tuning")}
    tried = {job.spec for job in jobs if job.study.endswith("tuning")} | {spec for job in jobs for spec in job.candidates}
    for job in (job for job in jobs if job.settled or job.waits):
        for task in (Task(job.spec), *(Task(job.spec, e) for e in job.measurements)):
            why, kept = store.diverged(task.spec, task.evaluation), store.diverged_path(task.spec, task.evaluation)
            if why and (job.settled or task.evaluation is None):
                word = "diverged, so not chosen" if task.evaluation is None and task.spec in tried - used else "diverged"
                gone[task] = f"{word}: {task}: {why} (kept; to try it again, delete {kept})"
        word = NOT_RUN if store.run(job.spec) else store.absent(job)
        if word != NOT_RUN and (not job.settled or word == SOURCE_DIVERGED):
            which = "its source" if job.settled else "every candidate for it"
            stuck[job.spec] = f"not done, as {which} diverged: {Task(job.spec)}"
    return list(gone.values()), list(stuck.values())
