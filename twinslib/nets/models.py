"""Networks by name: images in [0, 1] in, logits out, with normalisation as the first layer.

Attacks and noise therefore always live in [0, 1] pixels of the image as it is stored, whatever the network does inside
(normalising, upsampling). `ARCHS` lists our names; networks of torchvision, of timm and of one's own have names too
(`build`), and any other joins by `Classifier(network)`.
"""

import importlib
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from ..base.errors import did_you_mean
from ..specs.choices import ARCHS, IMAGENET_MEAN, IMAGENET_STD, check_arch, check_normalisation, check_width
from . import arithmetic
from .copies import duplicate
from .norms import norm_layer, with_norm


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` into eval mode and give every submodule its own mode back afterwards, also after an error.

    `model.train()` would set all submodules alike and so thaw a norm that its owner had frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


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

    def __init__(self, network: nn.Module, *, upsample: int | None = None, mean: tuple[float, ...] = IMAGENET_MEAN,
                 std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.upsample = upsample
        self.network = network

    def extra_repr(self) -> str:
        return "" if self.upsample is None else f"upsample={self.upsample}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1] != self.normalize.mean.shape[1] or not x.is_floating_point():
            raise ValueError(f"expected float images of shape (B, {self.normalize.mean.shape[1]}, S, S) in [0, 1], "
                             f"got {x.dtype} of shape {tuple(x.shape)}")
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

    def __init__(self, num_classes: int, norm: Callable[[int], nn.Module], *, blocks: tuple[int, ...], width: int,
                 stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = norm(width)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            stages += _stage(channels, out, count, norm, lambda c=channels, o=out: nn.Sequential(
                nn.Conv2d(c, o, 1, stride=2, bias=False), norm(o)))
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
            layer = _stage(channels, out, blocks, norm, lambda c=channels, o=out: PaddedShortcut((o - c) // 2))
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            channels = out
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(channels: int, out: int, blocks: int, norm: Callable[[int], nn.Module],
           shortcut: Callable[[], nn.Module]) -> list[BasicBlock]:
    """Basic blocks to `out` channels; where these are more than come in, the first halves the side, past `shortcut()`."""
    wider = channels != out
    first = BasicBlock(channels, out, 2 if wider else 1, shortcut() if wider else None, norm_layer=norm)
    return [first, *(BasicBlock(out, out, norm_layer=norm) for _ in range(blocks - 1))]


class PaddedShortcut(nn.Module):
    """Every second pixel, with zero channels added, `side` of them on each side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


def build(arch: str, num_classes: int, norm: str, width: int | None = None) -> nn.Module:
    """The network called `arch` alone, without normalisation, its weights drawn from torch's global generator.

    A network of others is made with `num_classes`; its batch norms are replaced where `norm` asks for another.

    >>> type(build("torchvision/vgg11_bn", 10, "own")).__name__
    'VGG'

    Args:
        arch: a name in `ARCHS`, torchvision/NAME, timm/NAME, or package.module:function of one's own.
        norm, width: as for `make_model`.
    Raises:
        ValueError: no such network, or no batch norm in it where `norm` is another word than "own".
        TypeError: a function that makes no network.
    """
    kind, _, options = ARCHS.get(arch, ("others", None, {}))
    if kind in ("small", "cifar"):
        network = {"small": SmallResNet, "cifar": Cifar10ResNet}[kind]
        return network(num_classes, norm_layer(norm), **options | ({} if width is None else {"width": width}))
    network = _maker(f"torchvision/{options['name']}" if options else arch)(num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a network (nn.Module) from {arch}, got {type(network).__name__}; let the function return one")
    return network if norm == "own" else with_norm(network, norm)


def _maker(arch: str) -> Callable[..., nn.Module]:
    """What makes a network of others, without weights of theirs."""
    library, _, name = arch.partition("/")
    if library == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        make = partial(torchvision.models.get_model, name, weights=None)
    elif library == "timm":
        import timm  # takes a second

        known, make = timm.list_models(), partial(timm.create_model, name, pretrained=False)
    else:
        library, _, name = arch.partition(":")
        try:
            functions = vars(importlib.import_module(library))
        except ModuleNotFoundError as error:
            raise ValueError(f"expected a module for arch {arch}, got {error}; start Python where it can be imported") from None
        known, make = [key for key, value in functions.items() if callable(value)], functions.get(name)
    if name.partition(".")[0] not in known:
        raise ValueError(f"expected a network of {library}, got {name!r}{did_you_mean(name, known)}")
    return make


def make_model(arch: str, num_classes: int, *, norm: str = "batch", upsample: int | None = None, width: int | None = None,
               mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD, seed: int) -> Classifier:
    """A new network in training mode; equal arguments give equal weights, and no global random state is touched.

    >>> make_model("tiny_resnet", 10, seed=0)(torch.rand(2, 3, 16, 16)).shape
    torch.Size([2, 10])

    Args:
        arch: as for `build`.
        norm: "batch", "group" or "layer"; or "own", whatever a network of others has.
        upsample, mean, std: see `Classifier`.
        width: channels of the first stage, for networks of `SmallResNet`; None: the arch's own.
    """
    check_arch(arch, norm)
    check_width(arch, width)
    if num_classes < 1:
        raise ValueError(f"expected num_classes to be at least 1, got {num_classes}")
    network = _seeded(seed, lambda: build(arch, num_classes, norm, width))
    return Classifier(network, upsample=upsample, mean=mean, std=std)


@contextmanager
def named(arch: str, image_size: int) -> Iterator[None]:
    """Inside, what goes wrong in a forward pass of images of that size is a ValueError that names the network."""
    try:
        yield
    except Exception as error:  # of any type, from a network of anybody
        why = next(iter(str(error).splitlines()), "")
        raise ValueError(f"expected logits for images of {image_size} pixels from {arch}, got {type(error).__name__}: {why}; "
                         "set upsample to the side that it takes, or wrap it in a function of your own") from error


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

    >>> count_cost(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), image_size=8)
    (6912, 112, 1024)
    """
    model = duplicate(model).to("meta").eval()
    elements: list[int] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, __, out: elements.append(out.numel() if isinstance(out, torch.Tensor) else 0))
    image = torch.empty((1, 3, image_size, image_size), device="meta", dtype=next(model.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()), 4 * sum(elements)


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the CPU with the CPU's global generator at `seed`, and put the generator back."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the generators of other devices
        return build()
