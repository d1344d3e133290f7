"""Time the certification of images by randomized smoothing: group-sequential with exact boundaries, against the textbook loop.

    python -m benchmarks.certify --weights W.safetensors --data cifar10 --sigma 0.5 --images 30 --fixed 20 --threads 1
    python -m benchmarks.certify --weights W.safetensors --data cifar10 --sigma 0.5 --radii 0 0.5 1 1.5 --device cuda
    python -m benchmarks.certify --images 4 --n 2000                                            runs; random weights

The textbook draws n0 + n copies of each image, in batches of 400, in float32, image by image. Ours stops when the
requested radii are settled, with the same guarantee, on a folded copy in channels-last batches that images share. Both take
turns on groups of images in one process. The textbook runs for a stretch of its draws only; its time is proportional to
them, and `textbook seconds` is extrapolated to all. The ratio is of total times, with a 95 % bootstrap interval over whole
groups; above 1: ours is faster. It is the product of two: fewer draws, and faster draws. The first depends on the network,
the images and the radii; with random weights it means nothing.

bfloat16 is timed where the hardware has it; "sound" is the same plan with noise on whole 8-bit levels. With --fixed K ours also
draws all n for the first K images, in bfloat16 where that is timed, and certified accuracies are compared on these: that is
slow. On a CPU there are two clocks, see `timing`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import command, timing, twins_step
from benchmarks.textbook_certify import TextbookCertifier
from twinslib.base.certified import average_radius, certified_accuracy
from twinslib.base.sequential import Plan, certify_plan, exact_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.data.packed import load_packed
from twinslib.nets import arithmetic
from twinslib.nets.checkpoint import load_into, load_weights, tensor_hash
from twinslib.nets.fold import FoldedCopy
from twinslib.nets.models import make_model
from twinslib.specs.choices import ARCHS, NORMS
from twinslib.store.votes import Votes, join_votes

RESULTS = command.RESULTS / "certify"
SOUND = "float32, sound"


def network(arch: str, norm: str, weights: Path | None) -> torch.nn.Module:
    """The network to certify, in eval mode; without weights a random one."""
    if weights is None:
        return twins_step.start_network(arch).eval()
    state, _ = load_weights(weights)
    classes = [tensor.shape[0] for tensor in state.values() if tensor.ndim == 2][-1]
    return load_into(make_model(arch, classes, norm=norm, seed=0), state).eval()


def test_images(data: str | None, side: int, count: int,
                classes: int | None = None) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(uint8 images, labels, indices), evenly spaced over the test images; without data random ones. A set of other than so many
    classes is refused: its labels are not those of the network."""
    if data is None:
        g = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=g)
        return images, torch.randint(twins_step.CLASSES, (count,), generator=g), list(range(count))
    packed = load_packed(data, side)
    if not 1 <= count <= len(packed.test_labels):
        raise ValueError(f"expected 1 to {len(packed.test_labels)} images of {data}, got {count}")
    if classes not in (None, len(packed.class_names)):
        raise ValueError(f"expected an image set of the network's {classes} classes, got {data} with {len(packed.class_names)}")
    index = torch.arange(count) * len(packed.test_labels) // count
    return packed.test_images[index], packed.test_labels[index], index.tolist()


def compare(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, indices: Sequence[int], plan: Plan, *,
            device: str, groups: int, stretch: int, batch_size: int, fixed: int = 0, sound: bool = True) -> dict:
    """Certify the images in `groups` groups, each by our variants and, for `stretch` draws, by the textbook; the first `fixed`
    images also with all n draws."""
    model, images = model.to(device), images.to(device)
    precisions = list(dict.fromkeys(("float32", arithmetic.chosen("bfloat16", device))))
    copies = {name: FoldedCopy(model, dtype=arithmetic.dtype(name)) for name in precisions}
    variants = {name: (name, plan) for name in precisions}
    if sound:
        variants[SOUND] = "float32", dataclasses.replace(plan, sound=True)
    with torch.no_grad():
        classes = model(images[:1].float() / 255).shape[1]
    textbook, clocks = TextbookCertifier(model, plan.sigma, classes), timing.Clocks(device)
    model_hash = tensor_hash(model.state_dict())[:16]
    parts: dict[str, list[Votes]] = {name: [] for name in variants}
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks.read} for name in ("textbook", *variants)}

    def ours(precision: str, plan: Plan, rows: np.ndarray) -> Votes:
        return collect_votes(copies[precision], images[rows], plan, labels=labels[rows], indices=[indices[row] for row in rows],
                             precision=precision, batch_size=batch_size, model_hash=model_hash)

    textbook.count(images[0].float() / 255, 2 * textbook.batch_size)  # to warm up
    for precision, warm in variants.values():
        ours(precision, certify_plan(sigma=plan.sigma, n=1024, n0=64, sound=warm.sound), np.arange(1))
    sizes = []
    for number, rows in enumerate(np.array_split(np.arange(len(images)), groups)):
        sizes.append(len(rows))
        for name in ("textbook", *variants) if number % 2 else (*variants, "textbook"):
            clocks()
            factor = 1.0
            if name == "textbook":
                for i in range(-(-stretch // textbook.batch_size)):  # over several images, as the whole run would be
                    textbook.count(images[rows[i % len(rows)]].float() / 255, textbook.batch_size)
                drawn = -(-stretch // textbook.batch_size) * textbook.batch_size
                factor = len(rows) * (plan.n0 + plan.n) / drawn
            else:
                parts[name].append(ours(*variants[name], rows))
            for clock, passed in clocks().items():
                seconds[name][clock].append(passed * factor)
    votes = {name: join_votes(part) for name, part in parts.items()}
    result = {"plan": votes["float32"].settings, "images": len(images), "images_by_group": sizes, "stretch": stretch,
              "batch_size": batch_size, "seconds": seconds, "variants": {}}
    for name, v in votes.items():
        draws = int(v.draws.sum() + v.pilot.sum())
        ratios = {clock: timing.ratio(seconds["textbook"][clock], own, np.sum) for clock, own in seconds[name].items()}
        result["variants"][name] = {
            "draws": draws, "draws_ratio": len(images) * (plan.n0 + plan.n) / draws, "time_ratio": ratios,
            "draws_by_image": np.sort(v.draws).tolist(), **accuracies(v, plan)}
    if fixed:
        whole, rows = certify_plan(sigma=plan.sigma, n=plan.n, n0=plan.n0, alpha=plan.alpha), np.arange(fixed)
        result["fixed_n"] = {"images": fixed, **accuracies(ours(precisions[-1], whole, rows), plan)}
        result["sequential_on_these"] = accuracies(votes[precisions[-1]].rows(rows), plan)
    return result


def accuracies(votes: Votes, plan: Plan) -> dict:
    """Certified accuracy at the requested radii, with standard errors, and the average radius."""
    certified = votes.certified()
    points = certified_accuracy(certified, plan.radii)
    return {"accuracy": [p.accuracy for p in points], "standard_error": [p.standard_error for p in points],
            "average_radius": average_radius(certified).estimate}


def equal_within_errors(result: dict) -> bool:
    """Whether accuracies differ from those of fixed n by at most one standard error at each requested radius, same images."""
    pairs = zip(result["sequential_on_these"]["accuracy"], result["fixed_n"]["accuracy"], result["fixed_n"]["standard_error"],
                strict=True)
    return all(abs(a - b) <= error + 1e-12 for a, b, error in pairs)


def table(result: dict) -> str:
    """The result as text."""
    plan, images = result["plan"], result["images"]
    lines = [f"{images} images, sigma {plan['sigma']:g}, n {plan['looks'][-1]:,}, alpha {plan['alpha']:g}, textbook timed on "
             f"{result['stretch']:,} draws per group and extrapolated",
             f"  {'ours':22}{'draws per image':>16}{'fewer':>8}   time ratio (95 % interval)"]
    for name, v in result["variants"].items():
        ratios = "; ".join(f"{clock} {timing.interval(r)}" for clock, r in v["time_ratio"].items())
        lines.append(f"  {name:22}{v['draws'] / images:16,.0f}{v['draws_ratio']:8.2f}   {ratios}")
    lines.append(f"  {'certified accuracy at':22}" + "".join(f"{r:>8g}" for r in plan["radii"]) + f"{'ACR':>8}")
    rows = sorted(result["variants"].items(), key=lambda row: row[0] == SOUND)
    if "fixed_n" in result:
        on = f" on {result['fixed_n']['images']}"
        compared = [name for name, _ in rows if name != SOUND][-1]
        rows += [(compared + on, result["sequential_on_these"]), ("fixed n" + on, result["fixed_n"])]
    for name, v in rows:
        lines.append(f"    {name:20}" + "".join(f"{a:8.3f}" for a in (*v["accuracy"], v["average_radius"])))
    if "fixed_n" in result:
        lines.append(f"  equal within one standard error: {'yes' if equal_within_errors(result) else 'no'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certify", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", choices=sorted(ARCHS), default="thin_resnet10")
    parser.add_argument("--norm", choices=sorted(NORMS), default="batch")
    parser.add_argument("--weights", type=Path, help="weights of that arch, as this package stores them; default: random")
    parser.add_argument("--data", help="image set; default: random images")
    parser.add_argument("--images", type=int, default=100, help="so many, evenly spaced over the test images")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--radii", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--groups", type=int, default=5, help="textbook and ours take turns on so many groups of images")
    parser.add_argument("--stretch", type=int, default=4000, help="draws of the textbook per group")
    parser.add_argument("--batch", type=int, default=512, help="copies in one of our forward passes")
    parser.add_argument("--fixed", type=int, default=0, metavar="K",
                        help="also draw all n for the first K images, and compare certified accuracies; slow")
    args = command.parse(parser, arguments, dict.fromkeys(("images", "groups", "stretch", "batch"), 1))
    if not 0 <= args.fixed <= args.images:
        parser.error(f"expected --fixed in 0..{args.images}, the images, got {args.fixed}")
    if args.groups > args.images:
        parser.error(f"expected at most one group per image, got --groups {args.groups} for {args.images} images")
    try:
        plan = exact_plan(sigma=args.sigma, radii=args.radii, n=args.n, n0=args.n0, alpha=args.alpha)
        model = network(args.arch, args.norm, args.weights)
        side = ARCHS[args.arch].image_size
        classes = model(torch.zeros(1, 3, side, side)).shape[1] if args.weights else None
        images, labels, indices = test_images(args.data, side, args.images, classes)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    with command.recorded(args, RESULTS) as results:
        results.append({
            "arch": args.arch, "norm": args.norm, "data": args.data or "random images",
            "weights": args.weights.name if args.weights else "random weights, whose ratio of draws means nothing",
            **compare(model, images, labels, indices, plan, device=args.device, groups=args.groups, stretch=args.stretch,
                      batch_size=args.batch, fixed=args.fixed)})
        print(table(results[-1]), flush=True)


if __name__ == "__main__":
    main()
