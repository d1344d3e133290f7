"""How the tensor names of a state dict fit those of a network: behind which prefix, what is missing, what is too much."""

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..base.errors import choose
from ..specs.choices import ARCHS
from .models import build

IGNORE = re.compile(r"(^|\.)attacker\.")  # the network once more, and its normalisation, in the robustness library
COUNTER = "num_batches_tracked"  # step counters of batch norm, which old files lack


@dataclass(frozen=True)
class Placing:
    """Where the tensors of a network are in a state dict."""

    prefix: str  # what stands before the network's names in the state dict
    names: dict[str, str]  # the network's name -> that of the state dict
    missing: list[str]  # names of the network that are needed and not there
    unexpected: list[str]  # names behind the prefix that the network does not know
    outside: list[str]  # names without it
    rivals: list[str]  # other prefixes behind which the whole network is as well; their names are in no other list


def place(names: Iterable[str], wanted: Collection[str], *, prefix: str = "", head: str = "") -> Placing:
    """Find the names of a network among those of a state dict, whatever wrappers have put before them.

    The prefix is the one behind which all of the network is, or else most of it: `module.`, `1.` of a Sequential, any other.

    >>> place(["module.w", "module.b", "loss.w"], ["w", "b"]).prefix
    'module.'

    Args:
        wanted: names of the network.
        prefix: the one to take, which must be there; empty: found.
        head: name of a layer that may be missing or be of another kind.
    """
    names = [name for name in names if not IGNORE.search(name)]
    counts = Counter(name[:cut] for name in names for cut in (0, *(m.end() for m in re.finditer(r"\.", name)))
                     if name[cut:] in wanted)
    needed = [w for w in wanted if not w.endswith(COUNTER) and not (head and w.startswith(f"{head}."))]
    if prefix:
        prefix = prefix.rstrip(".") + "."
        if not any(name.startswith(prefix) for name in names):
            choose(prefix, sorted(counts) or ["none"], "prefix of tensor names")
        whole = [prefix]
    else:
        there = set(names)
        whole = [p for p in counts if needed and all(f"{p}{w}" in there for w in needed)]
        whole.sort(key=lambda p: (-counts[p], len(p)))
        prefix = whole[0] if whole else max(counts, key=lambda p: (counts[p], -len(p)), default="")
    placed = {name[len(prefix):]: name for name in names if name.startswith(prefix) and name[len(prefix):] in wanted}
    rivals = [p for p in whole if p != prefix]
    rest = [name for name in names if not name.startswith(tuple(p for p in rivals if not prefix.startswith(p)))]
    inside = [name for name in rest if name.startswith(prefix) and name[len(prefix):] not in wanted]
    return Placing(prefix, placed, [w for w in needed if w not in placed],
                   [name for name in inside if not (head and name[len(prefix):].startswith(f"{head}."))],
                   [name for name in rest if not name.startswith(prefix)], rivals)


@functools.cache
def _shapes(arch: str, norm: str) -> tuple[dict[str, torch.Size], str]:
    """Shapes of a network's tensors, and the name of its head."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(arch, 10, norm)
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    return {name: tensor.shape for name, tensor in network.state_dict().items()}, head


def fitting(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Which networks of `ARCHS` the tensors fit, whatever the number of classes, each as the fields of a model: "arch
    resnet50", "arch resnet18, norm group or layer"."""
    norms = {"batch": ""} if any(name.endswith("running_mean") for name in state) else {"group": ", norm group or layer"}
    out, convolutions = [], sum(tensor.ndim == 4 for tensor in state.values())
    for arch in ARCHS:
        layers = re.search(r"resnex?t(\d+)", arch)
        if layers and not int(layers[1]) - 1 <= convolutions <= int(layers[1]) + 3:  # up to four shortcuts
            continue  # building the largest takes a second
        for norm, words in norms.items():
            shapes, head = _shapes(arch, norm)
            placing = place(state, shapes, head=head)
            agree = all(state[theirs].shape == shapes[ours] for ours, theirs in placing.names.items()
                        if not ours.startswith(f"{head}."))
            if agree and not placing.missing and not placing.unexpected:
                out.append(f"arch {arch}{words}")
    return out
