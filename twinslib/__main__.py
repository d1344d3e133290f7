"""Command line: python -m twinslib {data, study, sweep, store, claims, render, page, export, convert}.

    python -m twinslib data list                                   which image sets are there, and how to get the others
    python -m twinslib sweep --preset small [--only 01]            compute what is missing, in order of priority
    python -m twinslib sweep --preset medium --budget 9m           stop cleanly after nine minutes; the next call goes on
    python -m twinslib sweep --preset paper --dry-run              print the runs, hours and memory, compute nothing
    python -m twinslib sweep --preset small --claims               first what verdicts wait for, verdict by verdict
    python -m twinslib sweep --preset small --workers 4            four at once; --slurm partition=gpu: as jobs of a cluster
    python -m twinslib store check --preset small                  read every file: what is damaged, missing or foreign
    python -m twinslib claims --preset small [C2]                  judge the papers' claims on the finished runs
    python -m twinslib claims --preset small --why C2              print what a verdict follows from
    python -m twinslib render --preset small --as-is               show what is finished, compute nothing
    python -m twinslib study new mine --from small 01              parameter files of your own, in a folder mine
    python -m twinslib sweep --params mine                         the same commands for them, with results in results/mine
    python -m twinslib export 3688e3 net.safetensors --preset small   write the network of a finished run, with its card
    python -m twinslib page --preset small [--out DIR]             the same as a site to read in a browser
    python -m twinslib convert robust.pt robust.safetensors        weights of others without the objects pickled beside them
"""

from __future__ import annotations  # types of what is imported late

import argparse
import contextlib
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .base.errors import choose
from .base.files import atomic_write
from .specs.jobs import Best, Job, Task
from .specs.labels import NOT_RUN, SOURCE_DIVERGED
from .store import check as store_check
from .store import shipped
from .store.store import Store
from .studies import own, plan, presets, rules

# what takes seconds to import, torch above all, is imported by the commands, once their arguments and parameters are right
if TYPE_CHECKING:
    import torch

    from . import workers
    from .compute.queue import Report
    from .compute.worker import Worker


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
    """Inside, SIGTERM and SIGINT are collected in the list instead of ending the process."""
    received: list[int] = []
    before = {name: signal.signal(name, lambda number, _: received.append(number))
              for name in (signal.SIGTERM, signal.SIGINT)}
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
    plans = {}
    for number in presets.numbers(args.preset, args.only or ()):
        plans[number], settings = plan.plan(args.preset, number)
        threads = args.threads or settings.get("threads")
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from . import workers
    from .compute import cost
    from .compute.queue import precision_in_words, sweep
    from .compute.worker import Worker

    if args.claims:
        from . import need

    def planned(best: Best) -> list[Job]:
        jobs = [job for one in plans.values() for job in one(best=best)]
        return sorted(jobs, key=lambda job: job.spec.seed)  # stable: seed 0 of everything first

    worker = Worker(store := Store(args.preset), args.device)
    if presets.is_own(args.preset):
        shipped.take(store, planned(best=store.best))
    if args.dry_run:
        jobs = planned(best=store.best)
        if args.claims:
            print(need.describe(need.needs(store, plans), *cost.rate(worker, cost.tasks_of(jobs))))
            return 0
        if words := precision_in_words(jobs, worker.device):
            print(words)
        print(cost.describe(worker, jobs, flops=args.tflops * 1e12 if args.tflops else None, workers=args.workers))
        return 0
    if threads and worker.device.type == "cpu":
        torch.set_num_threads(threads)
    clock, status = time.monotonic(), 0
    above_bar = logging_redirect_tqdm() if sys.stderr.isatty() else contextlib.nullcontext()
    with above_bar, stop_signals() as stopped, contextlib.closing(Progress()) as progress:
        if args.workers > 1 or args.slurm is not None:
            report, status = workers.sweep(lambda folder: start_workers(args, folder), store, planned, stop=lambda: bool(stopped))
        else:
            how, what = (need.sweep, plans) if args.claims else (sweep, planned)
            report = how(worker, what, budget=args.budget, stop=lambda: bool(stopped), on_step=progress)
    from .evidence import rows

    jobs = planned(best=store.best)
    for name in sorted({job.study for job in jobs}):
        rows.write(store, jobs, name)
    print(summary(report, worker, jobs, time.monotonic() - clock))
    return 1 if report.failed else (workers.STOPPED if stopped else status)


def start_workers(args: argparse.Namespace, folder: Path) -> Sequence[workers.Local | workers.Job]:
    """Workers that sweep what `args` ask for, on this machine or in Slurm."""
    from . import workers

    command = [sys.executable, "-m", "twinslib", "sweep", *presets.options(args.preset)]
    command += (["--only", *args.only] if args.only else []) + (["--claims"] if args.claims else [])
    command += ["--budget", f"{args.budget}s"] if args.budget is not None else []
    if args.slurm is not None:
        own = [["--threads", str(args.threads)] if args.threads else []] * args.workers
        return workers.start_slurm([command + options for options in own], folder, args.slurm)
    return workers.start_local([command + options for options in workers.share(args.workers, args.threads, args.device)], folder)


def run_store(args: argparse.Namespace) -> int:
    store = Store(presets.check(args.preset))
    if args.action == "repair":
        for problem, path in store_check.repair(store):
            print(f"moved aside: {problem.path} ({problem.kind}) is now {path}")
    problems, count = store_check.check(store)
    for problem in problems:
        print(f"{problem.kind}: {problem.path}: {problem.what}")
    print(f"{count} files read: " + (f"{len(problems)} problems" if problems else "all whole, all in their place"))
    return 1 if problems else 0


def run_claims(args: argparse.Namespace) -> int:
    if args.repeats < 1:
        raise ValueError(f"expected --repeats above 0, got {args.repeats}")
    if args.simulate:
        from .claims import characteristics

        print(characteristics.write(args.repeats).to_string(index=False))
        return 0
    if args.preset is None:
        raise ValueError("expected --preset, got none; name the preset, or with --params the study, whose runs are to be judged")
    presets.check(args.preset)
    there = [] if args.id or not presets.is_own(args.preset) else presets.numbers(args.preset)
    chosen = [c for c in rules.claims() if (c.id in args.id if args.id else not there or c.notebook in there)]
    for name in args.id:
        choose(name, [c.id for c in rules.claims()], "claim")
    if args.into and not args.into.is_file():
        raise FileNotFoundError(f"expected a Markdown file in --into, got {str(args.into)!r}, where there is none")
    store = Store(args.preset)
    plans = {number: plan.plan(args.preset, number)[0] for number in presets.numbers(args.preset, (c.notebook for c in chosen))}
    from . import need
    from .claims import ledger
    from .compute.worker import Worker

    if not args.id and args.preset in rules.SCALES:
        every = [job for jobs_of in plans.values() for job in jobs_of(best=store.best)]
        need.write(Worker(store, "cpu"), need.needs(store, plans), every)
    for number, jobs_of in plans.items():
        jobs = jobs_of(best=store.best)
        verdicts = [ledger.judge(c, store, jobs) for c in chosen if c.notebook == number]
        ledger.write(store, verdicts)
        if args.why:
            print(*("\n".join(ledger.explain(v, store, jobs)) for v in verdicts), sep="\n\n", end="\n\n")
            continue
        for line in ledger.to_table(verdicts).to_dict("records"):
            print(f"{line.pop('claim')}  {line.pop('sentence')}", *(f"    {k}: {v}" for k, v in line.items()), "", sep="\n")
    if args.into:
        text = ledger.put_into(args.into.read_text(encoding="utf-8"), store)
        atomic_write(args.into, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return 0


def run_export(args: argparse.Namespace) -> int:
    from .finished import export

    print(*export(args.run, args.file, args.preset, train=args.train, onnx=args.onnx), sep="\n")
    return 0


def summary(report: Report, worker: Worker, jobs: Sequence[Job], took: float) -> str:
    """What a sweep did and what it leaves, for the terminal."""
    from .compute import cost

    gone, stuck = diverged(worker.store, jobs)
    lines = [f"done: {len(report.done)} tasks in {took / 60:.1f} min; failed: {len(report.failed)}; left: {len(report.left)}"
             + (f"; diverged: {len(gone)}" if gone else "")]
    lines += [f"failed: {task}: {why}" for task, why in report.failed]
    lines += gone + stuck
    if report.left:
        hours = cost.remaining_hours(worker, report.left, jobs)
        lines += [f"left: {task}" for task in report.left[:5]]
        lines += [f"left: … and {len(report.left) - 5} more"] if len(report.left) > 5 else []
        lines.append(f"left in all: about {hours:.1f} h on this device; call again to go on")
    if report.waiting:
        lines.append(f"not counted: {report.waiting} runs whose hyper-parameters are still to be chosen")
    return "\n".join(lines)


def diverged(store: Store, jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """What of `jobs` diverged, now or earlier, with why and what to delete to try it again; and what cannot be done for that."""
    gone, stuck = {}, {}
    used = {job.spec for job in jobs if job.settled and not job.study.endswith("tuning")}
    tried = {job.spec for job in jobs if job.study.endswith("tuning")} | {spec for job in jobs for spec in job.candidates}
    for job in (job for job in jobs if job.settled or job.candidates):  # the others are neither computed nor shown
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


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{in_one_line(message)}; see {self.prog} --help\n")


def in_one_line(error: object) -> str:
    """An error as one line that a terminal can show, of which the middle is left out where it is long."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return f"error: {text}" if len(text) <= 1500 else f"error: {text[:1000]} … {text[-400:]}"


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m twinslib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    if given[:1] not in (["sweep"], ["claims"], ["store"], ["study"]):  # which need neither
        from .data import build
        from .nets import convert
        from .site import build as site
        from .site import render

        for part in (build, convert, render, site):
            part.add_parser(commands)
    own.add_parser(commands)
    p = commands.add_parser("sweep", allow_abbrev=False, help="compute the missing runs of a preset")
    own.add_options(p)
    p.add_argument("--only", nargs="+", metavar="NN", help="notebook numbers; default: all")
    p.add_argument("--claims", action="store_true", help="first what verdicts wait for; with --dry-run the hours until each")
    p.add_argument("--budget", type=seconds, metavar="TIME", help="stop cleanly after 90s, 9m, 1.5h")
    p.add_argument("--dry-run", action="store_true", help="print runs, hours and memory; compute nothing")
    p.add_argument("--device", type=device, help="cpu or cuda; default: cuda where there is one")
    p.add_argument("--threads", type=int, help="CPU threads; default: the preset's")
    p.add_argument("--tflops", type=float, help="with --dry-run: plan for a device that sustains so many TFLOP/s")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="so many at once: one per GPU, or the cores shared out")
    p.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="workers are jobs of Slurm, with options such as time=600")
    p.set_defaults(func=run_sweep)
    p = commands.add_parser("store", allow_abbrev=False, help="read every file of a preset's results; move aside what is wrong")
    p.add_argument("action", choices=("check", "repair"))
    own.add_options(p)
    p.set_defaults(func=run_store)
    p = commands.add_parser("claims", allow_abbrev=False, help="judge the papers' claims on the finished runs of a preset")
    own.add_options(p, required=False)
    p.add_argument("--why", action="store_true", help="print rule, runs, intervals and calculation behind each verdict")
    p.add_argument("--simulate", action="store_true", help="store for the ledger what every rule says on simulated runs; nothing "
                   "is judged")
    p.add_argument("--repeats", type=int, default=2000, help="of the simulation; default: 2000")
    p.add_argument("id", nargs="*", help="claims, such as C2; default: all")
    p.add_argument("--into", type=Path, metavar="FILE", help="also put the verdicts between the marks in this Markdown file")
    p.set_defaults(func=run_claims)
    p = commands.add_parser("export", allow_abbrev=False, help="write the network of a finished run, with its card")
    p.add_argument("run", help="its hash, or the beginning of it")
    p.add_argument("file", type=Path, help="NAME.safetensors; beside it .json and .md")
    own.add_options(p)
    p.add_argument("--train", action="store_true", help="train it again where its weights are not there")
    p.add_argument("--onnx", action="store_true", help="also NAME.onnx, with the normalisation inside")
    p.set_defaults(func=run_export)
    args = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        if getattr(args, "results", None):
            os.environ["TWINS_RESULTS"] = args.results  # also for the workers and kernels that this starts
        return args.func(args)
    except (ValueError, TypeError, FileNotFoundError, OSError, ArithmeticError) as error:
        print(in_one_line(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
