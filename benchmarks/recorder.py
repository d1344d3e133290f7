"""Time what the recorder of norms, gradients and angles adds to training, for AT and TWINS-AT in float32, and in bfloat16
where the hardware has it.

    python -m benchmarks.recorder                                  thin_resnet10, batch 128, PGD-5, one thread
    python -m benchmarks.recorder --device cuda --arch resnet18    on a GPU

Two networks train on the same batches from the same start, one without a recorder, one that keeps a line at each step. They
take turns step by step, in an order that reverses each time, so that other work on the machine hits both alike. A step is
everything: PGD, passes, backward pass, SGD step. The ratio of medians has a 95 % bootstrap interval over pairs of steps; 1.3
means 30 % more time. A line costs the same wherever it falls and the steps between lines nothing, so one every k steps adds
(ratio - 1) / k. The recorder changes nothing else: the weights of both are compared bit by bit at the end. Its drift of
statistics, once per epoch, is not in these times.

On a CPU there are two clocks, see `timing`.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks import command, timing, twins_step
from twinslib.nets.arithmetic import chosen
from twinslib.nets.models import memory_format
from twinslib.nets.norms import twinsify
from twinslib.specs.choices import ARCHS
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, RunSpec
from twinslib.train.dynamics import Recorder
from twinslib.train.step import Step

RESULTS = command.RESULTS / "recorder"
METHODS = ("at", "twins_at")
VARIANTS = {"without": None, "with a line": 1}  # steps between lines
EVERY = (10, 5)  # what presets use or may use
PGD_STEPS = 5  # as in preset small


def run_spec(arch: str, batch_size: int, name: str, precision: str) -> RunSpec:
    """A method with the defaults of the library but for the attack's number of steps."""
    base = twins_step.run_spec(arch, batch_size, precision)
    return replace(base, method=method(name), attack=AttackSpec(steps=PGD_STEPS))


def make_step(spec: RunSpec, device: str, every: int | None) -> Step:
    """A training step from the same start for all; a method without wings trains an ordinary network."""
    model = twins_step.start_network(spec.model.arch)
    model = twinsify(model) if spec.method.two_branches else model
    model = model.to(device=device, memory_format=memory_format(model, device))
    return Step(model, spec, device, recorder=Recorder(every) if every else None)


def measure(spec: RunSpec, device: str, repeats: int) -> tuple[timing.Seconds, bool]:
    """(seconds of each step by clock and variant, True if both end with the same weights and statistics)."""
    steps = {variant: make_step(spec, device, every) for variant, every in VARIANTS.items()}

    def rounds(count: int) -> timing.Round:
        x, y = twins_step.random_batch(spec, device, count)
        return {variant: partial(step, x, y, count, spec.optim.lr) for variant, step in steps.items()}

    seconds = timing.turns(rounds, device, repeats)
    one, other = (step.model.state_dict() for step in steps.values())
    return seconds, all(torch.equal(value, other[name]) for name, value in one.items())


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Time with the recorder over time without: of a step with a line, and on average with a line every so many steps."""
    found = timing.ratio(seconds["with a line"], seconds["without"])
    out = {f"every {k}": {name: 1 + (value - 1) / k for name, value in found.items()} for k in EVERY}
    return out | {"a step with a line": found}


def compare(spec: RunSpec, device: str, repeats: int) -> dict:
    """All that is reported for one method and precision: samples, ratios, and that the recorder changed nothing."""
    seconds, same = measure(spec, device, repeats)
    return {"arch": spec.model.arch, "image_size": spec.data.image_size, "batch_size": spec.optim.batch_size,
            "attack_steps": spec.attack.steps, "method": spec.method.name, "precision": spec.optim.precision,
            "same_weights": same, "ratios": {clock: ratios(samples) for clock, samples in seconds.items()}, "seconds": seconds}


def table(result: dict) -> str:
    """One method and precision as text."""
    lines = [f"{result['method']} in {result['precision']}, {result['arch']} at {result['image_size']} pixels, batch "
             f"{result['batch_size']}, PGD-{result['attack_steps']}; same weights: {'yes' if result['same_weights'] else 'NO'}"]
    for clock, found in result["ratios"].items():
        median = statistics.median(result["seconds"][clock]["without"])
        lines.append(f"  {f'{clock} time, {median:.3f} s for a step without':44}{'ratio':>9}{'95 % interval':>24}")
        lines += [f"    {name:42}{r['estimate']:9.3f}{r['low']:15.3f} to {r['high']:.3f}" for name, r in found.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", choices=sorted(ARCHS), default="thin_resnet10")
    parser.add_argument("--batch", type=int, default=128, help="images of one step")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each network")
    args = command.parse(parser, arguments, {"batch": 2, "repeats": 1}, threads=1)
    with command.recorded(args, RESULTS) as results:
        for name in METHODS:
            for precision in dict.fromkeys(("float32", chosen("bfloat16", args.device))):
                results.append(compare(run_spec(args.arch, args.batch, name, precision), args.device, args.repeats))
                print(table(results[-1]), flush=True)


if __name__ == "__main__":
    main()
