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

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from . import sweep
from .base import paths
from .base.errors import choose
from .base.files import atomic_write
from .store import check as store_check
from .store.store import Store
from .studies import own, plan, presets, rules

# what takes seconds to import, torch above all, is imported by the commands, once their arguments and parameters are right


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
    sweep.add_parser(commands)
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
        paths.settle()
        if getattr(args, "results", None):
            os.environ["TWINS_RESULTS"] = args.results  # also for the workers and kernels that this starts
        code = args.func(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at the end
        return 141
    except (ValueError, TypeError, FileNotFoundError, OSError, ArithmeticError) as error:
        print(in_one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; call again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
