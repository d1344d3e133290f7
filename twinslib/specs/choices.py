"""What a spec may name: threats, losses, augmentations, norms, precisions, networks; and which of their numbers are refused."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..base.errors import choose, real

THREATS = ("linf", "l2")
LOSSES = ("ce", "kl", "margin")  # of an attack
AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip", "center_crop")
NORMS = ("batch", "group", "layer")
PRECISIONS = ("float32", "bfloat16")
OBJECTIVES = {"natural": ("clean",), "at": ("adversarial",), "trades": ("adversarial", "clean")}  # and the passes, in order
MISMATCHES = ("mean_shift", "log_variance", "divergence", "wasserstein")  # of the statistics of a batch norm
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_PIXELS, MOST_STEPS = 4096, 1_000_000  # inside a network; of an attack: more is a slip of the pen


class Arch(NamedTuple):
    """A network by name."""

    kind: str  # small (`models.SmallResNet`), cifar (`models.Cifar10ResNet`) or torchvision
    image_size: int  # side in pixels that it is meant for
    options: dict[str, object]  # arguments of its class; of a network of torchvision its name there


def _small(image_size: int, blocks: tuple[int, ...], width: int, stem_stride: int) -> Arch:
    return Arch("small", image_size, {"blocks": blocks, "width": width, "stem_stride": stem_stride})


ARCHS: dict[str, Arch] = {
    "tiny_resnet": _small(16, (1, 1), 16, 1),
    "thin_resnet10": _small(32, (1, 1, 1, 1), 32, 2),
    "thin_resnet18": _small(32, (2, 2, 2, 2), 32, 2),
    "resnet18": _small(32, (2, 2, 2, 2), 64, 1),
    **{f"resnet{6 * blocks + 2}": Arch("cifar", 32, {"blocks": blocks}) for blocks in (3, 5, 7, 9, 18, 200)},
    **{name: Arch("torchvision", 224, {"name": name}) for name in ("resnet50", "wide_resnet50_2")},
    **{f"torchvision/{name}": Arch("torchvision", 224, {"name": name}) for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
        "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
}
OTHERS = re.compile(r"(torchvision|timm)/[\w.]+|[\w.]+:\w+")


def check_arch(name: str, norm: str = "batch") -> None:
    """Refuse what names no network: one of `ARCHS`, torchvision/NAME, timm/NAME, or package.module:function, a function of
    `num_classes`. Whether the last three are there is seen when they are built (`models.build`); their norm may also be "own",
    whatever they have."""
    if not OTHERS.fullmatch(name):
        choose(name, [*ARCHS, "torchvision/NAME", "timm/NAME", "package.module:function"], "arch")
    choose(norm, (*NORMS, "own") if OTHERS.fullmatch(name) else NORMS, "norm")


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse constants that are not one mean and one positive std per channel, for pixels in [0, 1]."""
    got = f"got mean {list(mean)} and std {list(std)}"
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(f"expected one mean and one positive std per channel, {got}")
    if not (min(mean) >= 0 and max(mean) <= 1 and max(std) <= 1):
        raise ValueError(f"expected mean and std of pixels in [0, 1], {got}; divide by 255 if they are of pixels in 0-255")


def check_width(arch: str, width: int | None) -> None:
    """Refuse a width below 1, and any for a network whose channels are fixed."""
    if width is None:
        return
    free = [name for name in ARCHS if own_width(name)]
    if arch not in free:
        raise ValueError(f"expected an arch with a free width ({', '.join(free)}), got {arch!r} with width {width}")
    if not 1 <= width <= MOST_PIXELS:
        raise ValueError(f"expected width of at least 1 and at most {MOST_PIXELS}, got {width}")


def own_width(arch: str) -> int | None:
    """Channels of the first stage of a network whose width is free; None for others."""
    check_arch(arch)
    return ARCHS[arch].options.get("width") if arch in ARCHS else None


def check_radius(eps: float, threat: str) -> float:
    """eps as a float; refused are an unknown threat and a radius not in pixel units (linf) or not a length (l2)."""
    choose(threat, THREATS, "threat")
    eps = real(eps, "eps")
    if threat == "linf" and not 0 <= eps <= 1:
        hint = f"; write {eps:g}/255" if 1 < eps <= 255 else ""
        raise ValueError(f"expected eps in [0, 1] (pixel units), got {eps:g}{hint}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"expected eps of at least 0 (l2, pixel units), got {eps:g}")
    return eps


def check_step_size(step_size: float, threat: str) -> float:
    """step_size as a float; refuse a step that is not in pixel units."""
    step_size = real(step_size, "step_size")
    if not 0 < step_size < math.inf or (threat == "linf" and step_size > 1):
        hint = f"; write {step_size:g}/255" if 1 < step_size <= 255 else ""
        raise ValueError(f"expected step_size above 0{' and at most 1' if threat == 'linf' else ''} (pixel units), "
                         f"got {step_size:g}{hint}")
    return step_size
