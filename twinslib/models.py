"""Networks by name: images in [0, 1] in, logits out, with normalisation as the first layer.

Attacks and noise therefore always live in [0, 1] pixels of the image as it is stored, whatever the network does inside
(normalising, upsampling). `ARCHS` lists the names; a network from elsewhere joins by `Classifier(network)`.
"""

import contextlib
import copy
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from . import arithmetic
from .errors import choose
from .norms import norm_layer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse constants that are not one mean and one positive std per channel, for pixels in [0, 1]."""
    got = f"got mean {list(mean)} and std {list(std)}"
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(f"expected one mean and one positive std per channel, {got}")
    if not (min(mean) >= 0 and max(mean) <= 1 and max(std) <= 1):
        raise ValueError(f"expected mean and std of pixels in [0, 1], {got}; divide by 255 if they are of pixels in 0-255")


class Normalize(nn.Module):
    """(x - mean) / std per channel in float32, for images of shape (B, C, H, W)."""

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Logits for images in [0, 1]: normalise, upsample if asked to, then `network`.

    Args:
        network: any module from normalised images (B, 3, S, S) to logits (B, num_classes).
        upsample: None, or the side in pixels to which images are upsampled by nearest neighbour inside the network, so
            that attacks act on the small image (the official TWINS code: 32 to 224).
        mean, std: per channel, for pixels in [0, 1]; ImageNet's by default.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        upsample: int | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.upsample = upsample
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1] != self.normalize.mean.shape[1] or not x.is_floating_point():
            raise ValueError(
                f"expected float images of shape (B, {self.normalize.mean.shape[1]}, S, S) in [0, 1], "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        logits = self.network(upsample_nearest(self.normalize(x), self.upsample))
        return logits if isinstance(logits, torch.Tensor) else _refuse_output(logits, self.network)


def _refuse_output(output: object, network: nn.Module) -> typing.NoReturn:
    raise TypeError(f"expected logits of shape (B, classes), got {type(output).__name__} from {type(network).__name__}; "
                    "turn its other outputs off (aux_logits=False in torchvision), or wrap it so that it gives logits alone")


def upsample_nearest(x: torch.Tensor, side: int | None) -> torch.Tensor:
    """Images (B, C, S, S) at `side` pixels by nearest neighbour; unchanged for None."""
    return x if side is None else F.interpolate(x, size=(side, side), mode="nearest")


class SmallResNet(nn.Module):
    """A ResNet of basic blocks for small images: 3 x 3 stem, no max-pool, mean over both spatial axes.

    The mean is written out because the backward of adaptive pooling is not deterministic on every device. Weights start
    as torchvision's ResNets do.

    Args:
        blocks: blocks per stage; each stage after the first halves the side and doubles the channels.
        width: channels of the first stage.
        stem_stride: 1, or 2 for a quarter of the cost.
    """

    def __init__(
        self,
        num_classes: int,
        norm: Callable[[int], nn.Module],
        *,
        blocks: tuple[int, ...],
        width: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = norm(width)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                shortcut = None
                if stride != 1 or channels != out:
                    shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), norm(out))
                stages.append(BasicBlock(channels, out, stride, shortcut, norm_layer=norm))
                channels = out
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.blocks(x).mean((2, 3)))


class Cifar10ResNet(nn.Module):
    """The ResNet for CIFAR-10 of He et al. (2016), section 4.2: three stages of 16, 32 and 64 channels, shortcuts without
    parameters (every second pixel, zero channels on both sides). Tensor names are those of the networks published by
    akamaster/pytorch_resnet_cifar10, whose weights load into it.

    Args:
        blocks: basic blocks per stage, n of its 6n + 2 layers.
    """

    def __init__(self, num_classes: int, norm: Callable[[int], nn.Module], *, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16)
        channels = 16
        for stage, out in enumerate((16, 32, 64)):
            layer = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                shortcut = PaddedShortcut(out - channels) if channels != out else None
                layer.append(BasicBlock(channels, out, stride, shortcut, norm_layer=norm))
                channels = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class PaddedShortcut(nn.Module):
    """Every second pixel, with `channels` zero channels added, half of them on each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, self.channels - side))


@dataclass(frozen=True)
class Arch:
    """How to build a network from (num_classes, norm layer), and the side in pixels it is meant for."""

    build: Callable[[int, Callable[[int], nn.Module]], nn.Module]
    image_size: int


def _torchvision(name: str) -> Callable[[int, Callable[[int], nn.Module]], nn.Module]:
    return lambda num_classes, norm: torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, norm_layer=norm
    )


ARCHS: dict[str, Arch] = {
    "tiny_resnet": Arch(partial(SmallResNet, blocks=(1, 1), width=16, stem_stride=1), 16),
    "thin_resnet10": Arch(partial(SmallResNet, blocks=(1, 1, 1, 1), width=32, stem_stride=2), 32),
    "thin_resnet18": Arch(partial(SmallResNet, blocks=(2, 2, 2, 2), width=32, stem_stride=2), 32),
    "resnet18": Arch(partial(SmallResNet, blocks=(2, 2, 2, 2), width=64, stem_stride=1), 32),
    "resnet20": Arch(partial(Cifar10ResNet, blocks=3), 32),
    "resnet50": Arch(_torchvision("resnet50"), 224),
    "wide_resnet50_2": Arch(_torchvision("wide_resnet50_2"), 224),
    "resnet32": Arch(partial(Cifar10ResNet, blocks=5), 32),
    "resnet44": Arch(partial(Cifar10ResNet, blocks=7), 32),
    "resnet56": Arch(partial(Cifar10ResNet, blocks=9), 32),
    "resnet110": Arch(partial(Cifar10ResNet, blocks=18), 32),
    **{f"torchvision/{name}": Arch(_torchvision(name), 224) for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
        "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
}


def check_width(arch: str, width: int | None) -> None:
    """Refuse a width below 1, and any for a network whose channels are fixed."""
    if width is None:
        return
    free = [name for name in ARCHS if own_width(name)]
    if arch not in free:
        raise ValueError(f"expected an arch with a free width ({', '.join(free)}), got {arch!r} with width {width}")
    if width < 1:
        raise ValueError(f"expected width of at least 1, got {width}")


def own_width(arch: str) -> int | None:
    """Channels of the first stage of a network whose width is free; None for others."""
    return getattr(ARCHS[choose(arch, ARCHS, "arch")].build, "keywords", {}).get("width")


def make_model(
    arch: str,
    num_classes: int,
    *,
    norm: str = "batch",
    upsample: int | None = None,
    width: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    seed: int,
) -> Classifier:
    """A new network in training mode; equal arguments give equal weights, and no global random state is touched.

    Args:
        arch: a name in `ARCHS`.
        norm: "batch", "group" or "layer".
        upsample, mean, std: see `Classifier`.
        width: channels of the first stage, for networks of `SmallResNet`; None: the arch's own.
        seed: of the initial weights.
    Raises:
        ValueError: unknown arch or norm, a width for a network that has none, or less than one class.
    """
    choose(arch, ARCHS, "arch")
    layer = norm_layer(norm)
    check_width(arch, width)
    if num_classes < 1:
        raise ValueError(f"expected num_classes to be at least 1, got {num_classes}")
    build = ARCHS[arch].build if width is None else partial(ARCHS[arch].build, width=width)
    network = _seeded(seed, lambda: build(num_classes, layer))
    return Classifier(network, upsample=upsample, mean=mean, std=std)


def find_head(model: nn.Module, image_size: int) -> str:
    """The name of the last linear layer, found by running a random image: the layer whose output is the model's output.

    Raises:
        ValueError: no linear layer gives the output.
        TypeError: the output is more than logits.
    """
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: calls.append((name, out)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    parameter = next(model.parameters())
    image = torch.rand((2, 3, image_size, image_size), generator=torch.Generator().manual_seed(0))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            logits = model(image.to(parameter.device, parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not isinstance(logits, torch.Tensor):
        _refuse_output(logits, model)
    for name, out in reversed(calls):
        if out is logits or (out.shape == logits.shape and torch.equal(out, logits)):
            return name
    raise ValueError(
        f"expected a network that ends in a linear layer, got {type(model).__name__} in which none of "
        f"{len(hooks)} linear layers gives the output; put a linear head on it first"
    )


def replace_head(model: nn.Module, num_classes: int, *, image_size: int, seed: int) -> nn.Module:
    """A copy of a network with a fresh linear head for `num_classes`; everything else is equal.

    The head is found by what it does, not by its name (see `find_head`), so this works for any network that ends in a
    linear layer. It gets PyTorch's default initialisation from `seed`; no global random state is touched.

    Args:
        image_size: side in pixels of an image the network accepts.
    Raises:
        ValueError: no linear head, or less than one class.
    """
    if num_classes < 1:
        raise ValueError(f"expected num_classes to be at least 1, got {num_classes}")
    name = find_head(model, image_size)
    model = copy.deepcopy(model)
    old = model.get_submodule(name)
    new = _seeded(seed, lambda: nn.Linear(old.in_features, num_classes, bias=old.bias is not None))
    new.to(old.weight.device, old.weight.dtype).train(old.training)
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return model


class Features:
    """What goes into the head of a network: passes inside `watching()` are remembered until `take()`.

    The network carries a hook inside the context only, so that copies made outside have none.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        self._head = model.get_submodule(head)
        self._seen: list[torch.Tensor] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handle = self._head.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))
        try:
            yield
        finally:
            handle.remove()
            self._seen.clear()

    def take(self) -> torch.Tensor:
        """Features (N, d) of all images that passed since the last call, in their order."""
        seen, self._seen[:] = list(self._seen), []
        return seen[0] if len(seen) == 1 else torch.cat(seen)


def with_head(model: nn.Module, name: str, head: nn.Module) -> nn.Module:
    """A second network on the same parameters and buffers, with `head` in the place of the layer called `name`.

    Training one trains the other; modes and hooks are their own.
    """
    memo = {id(t): t for t in (*model.parameters(), *model.buffers(), *head.parameters())}
    view = copy.deepcopy(model, memo)
    if not name:
        return head
    parent, _, child = name.rpartition(".")
    setattr(view.get_submodule(parent), child, head)
    return view


def memory_format(model: nn.Module, device: torch.device | str) -> torch.memory_format:
    """The order of axes in which a network runs fastest: channels last, but on a CPU contiguous for

    - group norm of several groups, whose kernels are several times slower in channels last;
    - convolutions to fewer than eight channels, where the backward pass in channels last may write past its memory (oneDNN on
      processors without AVX-512);
    - processors without AVX, whose convolutions in channels last are slower.
    """
    if torch.device(device).type != "cpu":
        return torch.channels_last
    grouped = any(isinstance(module, nn.GroupNorm) and module.num_groups > 1 for module in model.modules())
    narrow = any(isinstance(module, nn.Conv2d) and module.out_channels < 8 for module in model.modules())
    return torch.contiguous_format if grouped or narrow or not arithmetic.has_avx() else torch.channels_last


def count_cost(model: nn.Module, image_size: int) -> tuple[int, int, int]:
    """(multiply-adds of one image forward, parameters, bytes of float32 activations one image keeps for backward).

    Counted on the meta device, so nothing is computed. The bytes are the outputs of all layers, an estimate from above.
    """
    model = copy.deepcopy(model).to("meta").eval()
    elements: list[int] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, __, out: elements.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            )
    image = torch.empty((1, 3, image_size, image_size), device="meta", dtype=next(model.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()), 4 * sum(elements)


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the CPU with the CPU's global generator at `seed`, and put the generator back."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the generators of other devices
        return build()
