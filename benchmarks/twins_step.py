"""Time one TWINS-AT training step against the textbook step, in float32 and in bfloat16.

    python -m benchmarks.twins_step                                          two thin networks, batch 128, PGD-10
    python -m benchmarks.twins_step --arch resnet18 --device cuda            on a GPU
    python -m benchmarks.twins_step --threads 1 --repeats 41                 more certain, one core
    python -m benchmarks.twins_step --compile                                ours with a compiled attack beside it
    ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default python -m benchmarks.twins_step     as on an older processor

bfloat16 is timed where the hardware has it; elsewhere a spec that asks for it is trained in float32, the only variant.

A step is everything: PGD on the adaptive wing, the split pass, the backward pass, the SGD step. The four variants take
turns in one process, in an order that reverses from round to round, each on a network of its own and on the same fresh
batch, so that other work on the machine and its clock hit all alike. Ratios are of medians over the rounds, with a 95 %
bootstrap interval over whole rounds; above 1 means that ours is faster.

On a CPU each step is timed by two clocks, see `timing`.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from benchmarks import command, timing
from benchmarks.textbook import TextbookStep, two_wings
from twinslib.nets.arithmetic import chosen, has_bfloat16
from twinslib.nets.models import make_model
from twinslib.nets.norms import twinsify
from twinslib.specs.choices import ARCHS
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.train.step import Step, generator

CLASSES = 10
RATIOS = {  # name -> (slower, faster)
    "float32, ours against textbook": ("textbook float32", "ours float32"),
    "ours bfloat16 against textbook float32": ("textbook float32", "ours bfloat16"),
    "bfloat16, ours against textbook": ("textbook bfloat16", "ours bfloat16"),
    "float32, attack compiled against ours": ("ours float32", "compiled float32"),
    "bfloat16, attack compiled against ours": ("ours bfloat16", "compiled bfloat16"),
}
REFERENCE = "textbook float32"
StepFunction = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # images, labels, number of the step


def variants(device: str, compiled: bool = False) -> list[str]:
    """Textbook and ours, and ours with a compiled attack where that is asked for, in each precision that the device has."""
    precisions = ("float32", "bfloat16") if has_bfloat16(device) else ("float32",)
    return [f"{author} {precision}" for author in ("textbook", "ours", "compiled")[:2 + compiled] for precision in precisions]


def run_spec(arch: str, batch_size: int, precision: str) -> RunSpec:
    """TWINS-AT with the defaults of the library, which are those of the official scripts."""
    return RunSpec(data=DataSpec(name="random", image_size=ARCHS[arch].image_size), model=ModelSpec(arch=arch),
                   method=method("twins_at"), optim=OptimSpec(batch_size=batch_size, precision=precision))


def start_network(arch: str, width: int | None = None) -> torch.nn.Module:
    """A network whose statistics and affine parameters differ from channel to channel, as after pre-training."""
    model = make_model(arch, CLASSES, width=width, seed=0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
                module.weight.uniform_(0.5, 1.5, generator=g)
                module.bias.normal_(0, 0.2, generator=g)
    return model


def random_batch(spec: RunSpec, device: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) in [0, 1] and labels (B,) as a run has them, other ones for each `count`."""
    g, side, batch_size = generator(device, 0, "batch", count), spec.data.image_size, spec.optim.batch_size
    x = torch.rand(batch_size, 3, side, side, generator=g, device=device)
    return x, torch.randint(CLASSES, (batch_size,), generator=g, device=device)


def make_step(author: str, spec: RunSpec, device: str) -> tuple[torch.nn.Module, StepFunction]:
    """(network, step) of the textbook or ours, at the same start for both; the step trains the network in place."""
    start, precision = start_network(spec.model.arch, spec.model.width), spec.optim.precision
    if author != "textbook":
        model = twinsify(start).to(device=device, memory_format=torch.channels_last)  # as train.fit does
        step = Step(model, spec, device, precision=precision, compiled=author == "compiled")
        return model, lambda x, y, count: step(x, y, count, spec.optim.lr)[0]
    model = two_wings(start).to(device)
    a, o = spec.attack, spec.optim
    textbook = TextbookStep(model, eps=a.eps, step_size=a.step_size, steps=a.steps,
                            twins_weight=spec.method.twins_weight, lr=o.lr, momentum=o.momentum,
                            weight_decay=o.weight_decay, autocast=precision == "bfloat16")
    return model, lambda x, y, count: textbook(x, y, generator(device, spec.seed, "attack", count))


def same_step(arch: str, batch_size: int, device: str, compiled: bool = False) -> dict[str, dict[str, float]]:
    """Each variant's first step against the textbook's in float32, from the same start, batch and noise.

    Returns by variant: `loss` (absolute difference) and `update`, the norm of the difference of the weight updates over
    the norm of the textbook's update. Rounding turns the sign of a few tiny image gradients, so neither is exactly 0.
    """
    x, y = random_batch(run_spec(arch, batch_size, "float32"), device, 0)
    losses, updates = {}, {}
    for variant in variants(device, compiled):
        author, precision = variant.split()
        model, step = make_step(author, run_spec(arch, batch_size, precision), device)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses[variant] = step(x, y, 0).item()
        after = dict(model.named_parameters())
        updates[variant] = torch.cat([(after[name].detach() - before[name]).flatten() for name in sorted(before)])
    norm = updates[REFERENCE].norm()
    return {v: {"loss": abs(losses[v] - losses[REFERENCE]),
                "update": ((updates[v] - updates[REFERENCE]).norm() / norm).item()} for v in updates if v != REFERENCE}


def measure(specs: Mapping[str, RunSpec], device: str, repeats: int) -> timing.Seconds:
    """Seconds of each step by clock and variant, named author and precision, `repeats` rounds in which each has one turn."""
    steps = {variant: make_step(variant.split()[0], spec, device)[1] for variant, spec in specs.items()}

    def rounds(count: int) -> timing.Round:
        x, y = random_batch(next(iter(specs.values())), device, count)
        return {variant: partial(step, x, y, count) for variant, step in steps.items()}

    return timing.turns(rounds, device, repeats)


def compare(arch: str, batch_size: int, device: str, repeats: int, compiled: bool = False) -> dict:
    """All that is reported for one network: spec, samples, ratios, and that the variants take the same step."""
    check = same_step(arch, batch_size, device, compiled)
    seconds = measure({v: run_spec(arch, batch_size, v.split()[1]) for v in variants(device, compiled)}, device, repeats)
    spec = run_spec(arch, batch_size, "float32")
    return {"arch": arch, "image_size": spec.data.image_size, "batch_size": batch_size,
            "attack_steps": spec.attack.steps, "chosen_for_bfloat16": chosen("bfloat16", device),
            "ratios": {clock: {name: timing.ratio(samples[a], samples[b])
                               for name, (a, b) in RATIOS.items() if {a, b} <= samples.keys()}
                       for clock, samples in seconds.items()},
            "difference_to_textbook_float32": check, "seconds": seconds}


def table(result: dict) -> str:
    """The result of one network as text."""
    lines = [f"{result['arch']} at {result['image_size']} pixels, batch {result['batch_size']}, "
             f"PGD-{result['attack_steps']}: one TWINS-AT step",
             "  first step, difference to textbook float32:" + 22 * " " + "loss    update"]
    lines += [f"    {variant:54}{check['loss']:12.1e}{check['update']:10.1e}"
              for variant, check in result["difference_to_textbook_float32"].items()]
    for clock, seconds in result["seconds"].items():
        lines.append(f"  {f'seconds by {clock} clock' if clock == 'wall' else 'seconds of processor time':44}"
                     f"{'median':>10}{'quartiles':>22}")
        for variant, samples in seconds.items():
            low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
            interval = f"{low:.3f} to {high:.3f}"
            lines.append(f"    {variant:42}{statistics.median(samples):10.3f}{interval:>22}")
        lines.append(f"  {'ratio of medians':44}{'95 % interval':>32}")
        lines += [f"    {name:42}{timing.interval(r):>32}" for name, r in result["ratios"][clock].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twins_step", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=sorted(ARCHS), default=["thin_resnet10", "thin_resnet18"])
    parser.add_argument("--batch", type=int, default=128, help="images of one step, half of them for each wing")
    parser.add_argument("--repeats", type=int, default=21, help="rounds; each variant has one turn in a round")
    parser.add_argument("--compile", action="store_true", help="time ours with a compiled attack, too")
    args = command.parse(parser, arguments, {"batch": 2, "repeats": 1})
    with command.recorded(args, command.RESULTS / "compiled" if args.compile else command.RESULTS) as results:
        for arch in args.arch:
            results.append(compare(arch, args.batch, args.device, args.repeats, args.compile))
            print(table(results[-1]), flush=True)


if __name__ == "__main__":
    main()
