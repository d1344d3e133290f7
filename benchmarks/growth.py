"""How time and memory grow, against the textbook versions: certification with n; a TWINS-AT step with the steps of PGD, the width
of the network and the side of the images; and the time of a sweep with its workers, against one.

    python -m benchmarks.growth steps                        or width, or side
    python -m benchmarks.growth n --weights results/small/weights/c0de6f6ec9d7.safetensors --data tinyimagenet32
    python -m benchmarks.growth workers --repeats 1          the toy preset from nothing; on a machine that does nothing else
    python -m benchmarks.growth side --values 32 224 --batch 8 --device cuda

All in float32, networks and turns as in `twins_step` and `certify`; the ratio of times has its 95 % interval, above 1: ours takes
less. On a CPU times are those of the processor, for workers those on the wall.

Memory: the peak of a process of its own, beyond what it holds once all is imported (for n: with the network and one image); on a
GPU, what PyTorch took at most. For n the textbook draws a stretch there, as in `certify`: it keeps nothing from one batch to the
next. For workers: that of the largest process, so many times.
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import certify, command, timing, twins_step
from benchmarks.textbook_certify import TextbookCertifier
from twinslib.base.sequential import Plan, exact_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.nets.fold import FoldedCopy
from twinslib.specs.run import AttackSpec, RunSpec

RESULTS = command.RESULTS / "growth"
VALUES = {"n": (1000, 10_000, 100_000), "steps": (1, 5, 10, 20), "width": (8, 16, 32, 64), "side": (16, 32, 64), "workers": (2,)}
PLACES = {"steps": ("attack", "steps"), "width": ("model", "width"), "side": ("data", "image_size")}  # in a spec
ARCH, PGD_STEPS = "thin_resnet10", 5
RADII, GROUPS, BATCH, STRETCH = (0, 0.25, 0.5, 0.75), 5, 128, 800  # of certification
AUTHORS = ("textbook", "ours")


def spec_at(axis: str, value: int, batch_size: int) -> RunSpec:
    """TWINS-AT as `twins_step` has it, with PGD-5 and one number changed."""
    spec = replace(twins_step.run_spec(ARCH, batch_size, "float32"), attack=AttackSpec(steps=PGD_STEPS))
    place, field = PLACES[axis]
    return replace(spec, **{place: replace(getattr(spec, place), **{field: value})})


def step(author: str, spec: RunSpec, device: str) -> None:
    """Two steps from the start; the second has all that a step needs in place."""
    take = twins_step.make_step(author, spec, device)[1]
    for count in range(2):
        take(*twins_step.random_batch(spec, device, count), count)


def certification(args: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, list[int]]:
    """Network and images to certify, as `certify` has them."""
    side = spec_at("steps", 1, 2).data.image_size
    return certify.network(ARCH, "batch", args.weights), *certify.test_images(args.data, side, args.images)


def certify_one(author: str, model: torch.nn.Module, image: torch.Tensor, plan: Plan, device: str) -> None:
    """The draws of one uint8 image (1, 3, S, S); those of the textbook as far as its stretch."""
    model, image = model.to(device), image.to(device)
    if author == "ours":
        collect_votes(FoldedCopy(model), image, plan, batch_size=BATCH)
    else:
        x = image[0].float() / 255
        TextbookCertifier(model, plan.sigma, model(x[None]).shape[1]).count(x, min(plan.n, STRETCH))


def peak(work: Callable[[], None], device: str, threads: int) -> int:
    """MiB that `work` takes at most, in a process of its own."""
    context = multiprocessing.get_context("forkserver")  # whose children do not inherit the peak of this process
    context.set_forkserver_preload(["benchmarks.certify"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, work, device, threads).result()


def _peak(work: Callable[[], None], device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    before = resident(resource.RUSAGE_SELF)
    work()
    cuda = torch.device(device).type == "cuda"
    return torch.cuda.max_memory_allocated(device) // 2**20 if cuda else resident(resource.RUSAGE_SELF) - before


def resident(whose: int) -> int:
    """MiB of the largest process so far."""
    return resource.getrusage(whose).ru_maxrss // (2**20 if sys.platform == "darwin" else 1024)


def sweep(workers: int, threads: int) -> None:
    """The toy preset from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--preset", "toy", "--threads", str(threads), "--workers", str(workers), "--results", folder]
        subprocess.run([sys.executable, "-m", "twinslib", "sweep", *options], check=True, capture_output=True)


def memory(axis: str, value: int, args: argparse.Namespace) -> dict[str, int]:
    """MiB of both that are compared."""
    if axis == "workers":
        largest = resident(resource.RUSAGE_CHILDREN)
        return {"one": largest, "all": value * largest}
    if axis == "n":
        model, images, _, _ = certification(args)
        plan = exact_plan(sigma=args.sigma, radii=RADII, n=value)
        work = partial(certify_one, model=model, image=images[:1].clone(), plan=plan, device=args.device)
    else:
        work = partial(step, spec=spec_at(axis, value, args.batch), device=args.device)
    return {author: peak(partial(work, author), args.device, args.threads) for author in AUTHORS}


def times(axis: str, value: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of both in each round (for n: in each group of images), by the clock that other work disturbs least."""
    if axis == "workers":
        sweeps = {name: partial(sweep, n, args.threads) for name, n in (("one", 1), ("all", value))}
        return timing.turns(lambda count: sweeps, "cpu", args.repeats, warm=0)["wall"]
    if axis == "n":
        model, images, labels, indices = certification(args)
        seconds = certify.compare(model, images, labels, indices, exact_plan(sigma=args.sigma, radii=RADII, n=value), sound=False,
                                  device=args.device, groups=GROUPS, stretch=STRETCH, batch_size=BATCH)["seconds"]
        return {author: steady(seconds[name]) for author, name in zip(AUTHORS, ("textbook", "float32"), strict=True)}
    spec = spec_at(axis, value, args.batch)
    return steady(twins_step.measure({f"{author} float32": spec for author in AUTHORS}, args.device, args.repeats))


def steady(by_clock: dict) -> dict:
    """Processor time where there is one."""
    return by_clock.get("processor", by_clock["wall"])


def compare(axis: str, value: int, args: argparse.Namespace) -> dict:
    """Of one point: MiB and seconds (of a step, an image, a sweep) of both, and the ratio of times."""
    samples = times(axis, value, args)
    of, share = (np.sum, args.images) if axis == "n" else (np.median, 1)
    return {"axis": axis, "value": value, "memory_mib": memory(axis, value, args), "samples": samples,
            "seconds": [float(of(taken)) / share for taken in samples.values()], "ratio": timing.ratio(*samples.values(), of)}


def line(point: dict) -> str:
    """A row of the table: seconds of both and the ratio, MiB of both and the ratio."""
    (slow, fast), (large, small), times = point["seconds"], point["memory_mib"].values(), timing.interval(point["ratio"])
    return (f"| {point['axis']} {point['value']:,} | {slow:.3g} | {fast:.3g} | {times} | {large:,} | {small:,} | "
            f"{large / small:.2f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", choices=list(VALUES))
    parser.add_argument("--values", type=int, nargs="+", help=f"default: {VALUES}")
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of steps or sweeps")
    parser.add_argument("--weights", type=Path, help="of thin_resnet10, to certify; default: random, whose draws mean nothing")
    parser.add_argument("--data", help="image set to certify; default: random images")
    parser.add_argument("--images", type=int, default=10, help="to certify")
    parser.add_argument("--sigma", type=float, default=0.25)
    args = command.parse(parser, arguments, {"batch": 2, "repeats": 1, "images": GROUPS}, threads=1)
    with command.recorded(args, RESULTS / args.axis) as results:
        for value in args.values or VALUES[args.axis]:
            results.append(compare(args.axis, value, args))
            print(line(results[-1]), flush=True)


if __name__ == "__main__":
    main()
