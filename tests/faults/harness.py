"""Faults on purpose, each compared with an undisturbed run:  python -m tests.faults.harness --kills 200 --flips 1000 --freezes 5

Workers are killed at every kind of write and at random moments, alone and four at a time; bits of every kind of file are flipped;
the disk is full; a worker is frozen for longer than its lease is good for. Prints what was done; exit status 1 and the first
difference where anything was lost, changed, or left behind.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.compute.made import compute, contents, do, tiny_jobs
from twinslib.base.files import read_json, read_npz
from twinslib.compute.networks import Networks
from twinslib.data.sets import load_split
from twinslib.nets.checkpoint import load_training
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import CertifySpec
from twinslib.specs.run import FollowSpec
from twinslib.store.check import check
from twinslib.store.leases import SILENCE
from twinslib.store.store import Store
from twinslib.store.votes import load_votes
from twinslib.studies import rules
from twinslib.train.step import OutOfTime

WRITES = ("replace", "fsync", "unlink", "rename")


def jobs() -> list[Job]:
    """A source, a run that is followed, evaluated and certified, and one with two wings."""
    source, at, twins = tiny_jobs()
    at = replace(at, spec=replace(at.spec, follow=FollowSpec(test_images=10)),
                 certs=(CertifySpec(sigma=0.25, images=4, n=64, n0=16, alpha=0.05),))
    return [source, at, twins]


def child(root: Path, before: Callable[[], object] = lambda: None) -> int:
    """Process number of a worker on the store at `root`, which does something before it begins."""
    process = os.fork()
    if process:
        return process
    status = 9
    try:
        logging.disable(logging.CRITICAL)
        before()
        failed = compute(Store("tiny", root=root), jobs()).failed
        for task, why in failed:
            print(f"failed: {task}: {why}", file=sys.stderr)
        status = bool(failed)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def at_write(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """To be called in a worker: it acts at its so-manieth write, odd ones before and even ones after it."""
    def arm() -> None:
        count = iter(range(1, 1_000_000))

        def wrap(real):
            def call(*arguments, **options):
                mine = next(count)
                if mine == number and number % 2:
                    act()
                result = real(*arguments, **options)
                if mine == number:
                    act()
                return result
            return call

        for name in WRITES:
            setattr(os, name, wrap(getattr(os, name)))
    return arm


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def wait(processes: list[int]) -> list[int]:
    """Exit statuses; negative: of the signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def compare(store: Store, whole: dict[str, object]) -> None:
    """Refuse a store that differs from the undisturbed one, lacks provenance, or holds anything that nobody needs."""
    assert not compute(store, jobs()).left
    found = contents(store, *jobs())
    assert found.keys() == whole.keys(), sorted(found.keys() ^ whole.keys())
    for name, value in whole.items():
        assert found[name] == value, f"{name} differs"
    for job in jobs():
        for e in (None, *job.measurements):
            entry = store.provenance(Task(job.spec, e))
            assert entry and entry["rules"] == rules.stamps() and entry["seconds"] > 0 and "commit" in entry, (job, e, entry)
    left = [str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()
            and (".tmp" in p.name or ("work" in p.parts and p.suffix != ".safetensors"))]
    assert not left, left
    assert check(store)[0] == [], check(store)[0]


@contextlib.contextmanager
def empty(folder: Path) -> Iterator[Store]:
    """A store of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Store("tiny", root=Path(name) / "store")


def kills(folder: Path, whole: dict, rng: random.Random, number: int, workers: int) -> Counter:
    """So many kills in stores of which each is brought to its end and compared."""
    done, writes, longest = Counter(), 1, 2.0
    while done["kills"] < number:
        with empty(folder) as store:
            for _ in range(rng.randint(2, 8)):
                turn = []
                for _ in range(workers):
                    by_write = rng.random() < 0.6
                    turn.append(child(store.root, at_write(writes, die) if by_write else lambda: None))
                    writes = writes % 40 + 1
                    if not by_write:
                        time.sleep(rng.uniform(0.01, longest) / workers)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(turn[-1], signal.SIGKILL)
                done["kills"] += wait(turn).count(-signal.SIGKILL)
            if workers > 1:
                assert wait([child(store.root) for _ in range(workers)]) == [0] * workers
            compare(store, whole)
            done["stores"] += 1
    return done


def full_disks(folder: Path, whole: dict, number: int) -> Counter:
    """A write that fails for want of space, at so many places; after making room the same."""
    done = Counter()
    with empty(folder) as store:
        for k in range(number):
            (status,) = wait([child(store.root, at_write(2 * k + 1, full))])
            done["full disks"] += status == 9
        compare(store, whole)
    return done


def freezes(folder: Path, whole: dict, rng: random.Random, number: int) -> Counter:
    """A worker is stopped until another one has taken over and done everything, and then goes on."""
    done = Counter()
    os.environ[SILENCE] = "0.5"
    for _ in range(number):
        with empty(folder) as store:
            frozen = child(store.root)
            while not (held := [p.stem for p in store.root.glob("work/leases/*.json")]):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(frozen, signal.SIGSTOP)
            assert wait([child(store.root)]) == [0], held
            os.kill(frozen, signal.SIGCONT)
            assert wait([frozen]) == [0]
            compare(store, whole)
            done["freezes"] += 1
    del os.environ[SILENCE]
    return done


def readers(store: Store) -> dict[Path, Callable[[], object]]:
    """Each kind of file of a store, with all that is read from it."""
    source, at, twins = jobs()
    found: dict[Path, Callable[[], object]] = {}

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.cpu().numpy().tobytes() if isinstance(value, torch.Tensor) else (
            value.tobytes() if isinstance(value, np.ndarray) else value)

    for job in (source, at, twins):
        found[store.path(Task(job.spec))] = lambda s=job.spec: (store.run(s), store.provenance(Task(s)))
        for e in job.evals:
            task = Task(job.spec, e)
            found[store.path(task)] = lambda t=task: (plain(store.masks(t.spec, t.evaluation)), store.provenance(t))
        networks = Networks(store, "cpu")
        found[store.weights_path(job.spec)] = lambda s=job.spec, n=networks: plain(n._own(store.weights_path(s), s))
    cert = Task(at.spec, at.certs[0])
    found[store.path(cert)] = lambda: (plain(vars(store.votes(cert.spec, cert.evaluation))), store.provenance(cert))
    found[store.root / "courses" / f"{at.spec.hash}.npz"] = lambda: plain(store.course(at.spec))
    for path in store.root.glob("splits/*.npz"):
        found[path] = lambda p=path: plain(vars(load_split(p)))
    for path in (*store.root.glob("weights/*.json"), *store.root.glob("work/*.json")):
        found[path] = lambda p=path: read_json(p)
    for path in store.root.glob("work/*.ckpt"):
        found[path] = lambda p=path: plain(load_training(p, run=p.stem))
    for path in store.root.glob("work/*-*.npz"):
        found[path] = lambda p=path: plain(vars(load_votes(p)))
    for path in store.root.glob("work/*/*.npz"):
        found[path] = lambda p=path: plain(read_npz(p, {"run": p.parent.name.split("-")[0], "block": int(p.stem)}))
    return found


def interrupted(store: Store) -> None:
    """Leave what is kept of tasks that are not finished: a checkpoint, a block, votes, and when they began."""
    _, at, twins = jobs()
    for e in (at.certs[0], at.evals[1]):
        store.path(Task(at.spec, e)).rename(store.root / "aside")
        with contextlib.suppress(OutOfTime):
            do(store, Task(at.spec, e), stop=True)
        (store.root / "aside").rename(store.path(Task(at.spec, e)))
    bare = Task(replace(twins.spec, seed=5))
    with contextlib.suppress(OutOfTime):
        do(store, bare, stop=True)


def flips(whole: Store, rng: random.Random, number: int) -> Counter:
    """So many single flipped bits, spread over all kinds of files: each is refused by name or changes nothing that is read."""
    interrupted(whole)
    done, files = Counter(), readers(whole)
    kinds = {(path.relative_to(whole.root).parts[0], path.suffix, len(path.relative_to(whole.root).parts)) for path in files}
    assert len(kinds) >= 12, kinds
    right = {path: repr(read()) for path, read in files.items()}
    order = sorted(files)
    for i in range(number):
        path = order[i % len(order)]
        content = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        kept = path.read_bytes()
        path.write_bytes(content)
        try:
            same = repr(files[path]()) == right[path]
            assert same, f"bit {bit} of {path} changed what is read"
            done["without effect"] += 1
        except ValueError as error:
            assert path.name in str(error), (path, error)
            done["refused"] += 1
        finally:
            path.write_bytes(kept)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.harness", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, most in (("kills", 200), ("flips", 1000), ("freezes", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=most)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, done = random.Random(args.seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TWINS_DATA"] = str(folder)
        undisturbed = Store("tiny", root=folder / "whole")
        assert wait([child(undisturbed.root)]) == [0]
        compute(undisturbed, jobs())
        whole = contents(undisturbed, *jobs())
        try:
            for workers in (1, 4):
                found = kills(folder, whole, rng, -(-args.kills // 2), workers)
                done[f"kills with {workers} at work"] += found["kills"]
                done["stores compared"] += found["stores"]
            done += full_disks(folder, whole, min(args.kills, 20))
            done += freezes(folder, whole, rng, args.freezes)
            shutil.copytree(undisturbed.root, folder / "copy")
            done += flips(Store("tiny", root=folder / "copy"), rng, args.flips)
        except AssertionError as error:
            print(f"difference: {error}", file=sys.stderr)
            logging.exception("where")
            return 1
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
