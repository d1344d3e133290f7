"""Where the time of AutoAttack goes, for an image that stands to the end.

    python -m benchmarks.autoattack --weights results/small/weights/11491b403c01.safetensors --data tinyimagenet32 --threads 1
    python -m benchmarks.autoattack --images 4 --steps 2 --queries 4                            runs; random weights
    python -m benchmarks.autoattack --masks 500                        compares masks with the package, image by image

Each part of the standard suite runs for a few of its steps on images that it cannot break (eps is tiny), as pyautoattack would
run on the network itself, and as `twinslib.attack.autoattack` runs it, on a folded copy. Time is split into that of the forward
passes, that of the backward passes and the rest, and is extrapolated to the passes, 100 steps and 5,000 queries of the standard
version. `at least` is what would remain if nothing but the passes that the same iterates need took any time:
for FAB, which evaluates again what it has just evaluated, one forward pass for each gradient; for the others all of theirs.

With --masks N instead: on two small networks of the tests and N random images each, what stands after ours, on a folded copy, and
after one call of the package's standard version for each block of images, on the network as it is, from the same seeds.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import command
from benchmarks.certify import network, test_images
from tests.attack.made import conv_net, pictures
from twinslib.attack.autoattack import _adversary, _kept_global_state, autoattack_masks
from twinslib.attack.masks import block_seed
from twinslib.nets.fold import FoldedCopy
from twinslib.specs.strength import STANDARD

RESULTS = command.RESULTS / "autoattack"
EPS = 1e-5  # in [0, 1] pixels: breaks nothing
STEPS, QUERIES = 100, 5000  # of the standard version
MASKS_EPS, BLOCK = 3 / 255, 250  # about half of the images stand
PASSES = {"apgd-ce": (102, 101), "apgd-t": (919, 909), "fab-t": (1828, 900), "square": (5003, 0)}  # of it: forward, backward


class Clocked:
    """A network that adds up the processor time of its passes."""

    def __init__(self, forward: torch.nn.Module) -> None:
        self.forward, self.seconds, self.passes = forward, Counter(), Counter()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        began, x = time.process_time(), x.view_as(x)
        out = self.forward(x)
        self.seconds["forward"] += time.process_time() - began
        self.passes["forward"] += len(x)
        if out.requires_grad:
            ends = []
            out.register_hook(lambda _: ends.append(time.process_time()))
            x.register_hook(lambda _: self._back(len(x), time.process_time() - ends[-1]))
        return out

    def _back(self, images: int, seconds: float) -> None:
        self.seconds["backward"] += seconds
        self.passes["backward"] += images


def profile(forward: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, part: str, steps: int, queries: int) -> dict[str, float]:
    """Milliseconds an image takes in a part of the standard version: forward, backward, rest, and `at least`."""
    clocked = Clocked(forward)
    adversary = _adversary(clocked, part, EPS, "linf", x.device, 0)
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = steps
    adversary.square.n_queries = queries
    adversary.fab.targeted = True
    attack = dict(zip(STANDARD, (adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square), strict=True))[part]
    began = time.process_time()
    attack.perturb(x, y)
    total = time.process_time() - began
    spent = sum(clocked.seconds.values())
    once = {kind: 1000 * seconds / clocked.passes[kind] for kind, seconds in clocked.seconds.items()}
    forward, backward = (once.get(kind, 0.0) * passes for kind, passes in zip(("forward", "backward"), PASSES[part], strict=True))
    rest = 1000 * (total - spent) / len(x) * (QUERIES / queries if part == "square" else STEPS / steps)
    needed = once["forward"] * PASSES[part][1] if part == "fab-t" else forward
    return {"forward": forward, "backward": backward, "rest": rest, "at least": needed + backward}


def lines(result: dict) -> list[str]:
    """Of one suite, a line for each part: forward, backward, rest, sum, at least; in milliseconds an image."""
    return [f"| {result['suite']} | {part} | " + " | ".join(f"{value:,.0f}" for value in (
        t["forward"], t["backward"], t["rest"], t["forward"] + t["backward"] + t["rest"], t["at least"])) + " |"
        for part, t in result["milliseconds"].items()]


def compare_masks(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, int]:
    """How many uint8 images stand after the package and after ours, and on how many they differ."""
    import pyautoattack

    blocks = zip((images / 255).split(BLOCK), labels.split(BLOCK), strict=True)
    ours = autoattack_masks(FoldedCopy(model), images, labels, eps=MASKS_EPS, attacks=STANDARD, batch_size=BLOCK)
    ours, stands = ours["+".join(STANDARD)], []
    with _kept_global_state(images.device):
        for number, (x, y) in enumerate(blocks):
            adversary = pyautoattack.AutoAttack(model, eps=MASKS_EPS, seed=block_seed(0, "autoattack", number))
            adversary.attacks_to_run, targets = list(STANDARD), min(9, model(x[:1]).shape[1] - 1)
            adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
            stands.append(adversary.run_standard_evaluation(x, y, batch_size=BLOCK)[1] == y)
    package = torch.cat(stands)
    return {"images": len(images), "package": int(package.sum()), "ours": int(ours.sum()), "differ": int((package != ours).sum())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile all parts of the suite on both networks and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="thin_resnet10")
    parser.add_argument("--weights", type=Path, help="safetensors; default: random weights")
    parser.add_argument("--data", help="packed set; default: random images")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of APGD and FAB, of 100")
    parser.add_argument("--queries", type=int, default=100, help="of Square, of 5,000")
    parser.add_argument("--masks", type=int, default=0, metavar="N", help="compare masks on so many images, profile nothing")
    args = command.parse(parser, arguments, {"images": 1, "steps": 1, "queries": 1, "masks": 0}, threads=1)
    if args.masks:
        with command.recorded(args, RESULTS / "masks") as results:
            for classes, seed in ((10, 0), (5, 1)):
                model = conv_net(classes, seed).requires_grad_(False)
                results.append({"classes": classes} | compare_masks(model, *pictures(model, args.masks)))
                print(results[-1], flush=True)
        return
    model = network(args.arch, "batch", args.weights).requires_grad_(False)
    images, _, _ = test_images(args.data, args.side, args.images)
    x = images.float() / 255
    y = model(x).argmax(1)  # no image is lost to a wrong prediction
    with command.recorded(args, RESULTS) as results:
        for name, forward in (("pyautoattack", model), ("ours", FoldedCopy(model))):
            forward(x)  # to warm up
            parts = {part: profile(forward, x, y, part, args.steps, args.queries) for part in STANDARD}
            whole = {kind: sum(part[kind] for part in parts.values()) for kind in parts["square"]}
            results.append({"suite": name, "arch": args.arch, "images": args.images, "milliseconds": parts | {"all": whole}})
            print("\n".join(lines(results[-1])))


if __name__ == "__main__":
    main()
