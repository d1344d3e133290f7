"""A fast copy of a network to attack and to evaluate with.

An attack needs gradients with respect to the image only, in eval mode, many times per training step. `FoldedCopy` has
frozen parameters, its batch norms multiplied into the convolutions before them, and runs in the dtype and memory
format that are fastest; `refresh()` brings it up to date with the network in training for little.
"""

import logging

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .copies import device_of, hooks_of, is_changed, tensors_of
from .models import Classifier, memory_format, upsample_nearest
from .norms import TwinNorm, to_plain
from .pairs import fold_pairs, folded_weights

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of the largest logit


class FoldedCopy(nn.Module):
    """Computes what one wing of `model` computes in eval mode; differentiable with respect to the images only.

    The copy has the weights `model` had when it was made or last refreshed. It stays in eval mode whatever is called, and its
    parameters never take gradients. In float32 its logits equal the network's up to rounding; in bfloat16 they are approximate
    and meant for making training examples, not for reported numbers, unless the copy itself is what is certified.

    A batch norm is folded when it directly follows a convolution, and nothing else uses, shares, reads or
    changes either; any other stays an eval-mode batch norm in float32. A network that has hooks, or that
    `torch.fx` cannot trace, is copied as it is, hooks too. Before its first images pass, a folded network is
    compared once with the network itself, on two random images of their shape: if logits differ, it is made
    again without folding, with a warning. `folded` is the number of folded batch norms.

    >>> FoldedCopy(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())).folded
    1

    Args:
        model: a `Classifier`, whose normalisation is kept in float32, or any other network, whose input is cast.
        wing: "adaptive" or "frozen".
        dtype: of weights and activations. Images may have any float dtype; logits come back in theirs.
        channels_last: memory format inside (None: `models.memory_format`); images may have any, and their gradient is contiguous.
    Raises:
        TypeError: the network gives anything but a tensor.
    """

    def __init__(self, model: nn.Module, *, wing: str = "adaptive", dtype: torch.dtype = torch.float32,
                 channels_last: bool | None = None) -> None:
        super().__init__()
        self.dtype, self.wing = dtype, wing
        self.memory_format = {None: memory_format(model, device_of(model)), True: torch.channels_last,
                              False: torch.contiguous_format}[channels_last]
        self._model = [model]  # in a list, so that it is no part of this copy
        self._make(fold=True)

    def train(self, mode: bool = True) -> "FoldedCopy":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._unchecked and len(x):
            self.check(x)
        z = x if self.normalize is None else self.normalize(x)
        if z.requires_grad:
            z.register_hook(torch.Tensor.contiguous)  # it reaches x as NCHW, as attack libraries expect it
        z = z.to(self.dtype, memory_format=self.memory_format)
        return _logits(self.network, upsample_nearest(z, self.upsample)).to(x.dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live network's current weights and statistics into this copy, folding again; in place.

        A network whose modules, hooks or shared tensors have changed is copied anew.
        """
        untied = any(a[key] is not b[other] for a, key, b, other in self._ties)
        if untied or _structure(self._model[0]) != self._made_of:
            self._make(fold=True)
        else:
            self._fill()

    @torch.inference_mode(False)
    def _make(self, fold: bool) -> None:
        """Copy the live network, folded where that is right."""
        model = self._model[0]
        plain = to_plain(model, self.wing).requires_grad_(False).eval()
        whole = type(plain) is Classifier and not is_changed(plain)
        self.normalize = plain.normalize if whole else None
        self.upsample = plain.upsample if whole else None
        network = plain.network if whole else plain
        network, pairs = fold_pairs(network) if fold else (network, [])
        for module in network.modules():
            if not isinstance(module, _BatchNorm):
                for store, name, tensor in tensors_of(module):
                    if tensor.is_floating_point():
                        layout = self.memory_format if tensor.ndim == 4 else torch.contiguous_format
                        new = tensor.data.to(self.dtype, memory_format=layout, copy=True)
                        if isinstance(tensor, nn.Parameter):
                            tensor.data = new  # keeps ties
                        else:
                            store[name] = new
        self.network, self.folded = network, len(pairs)
        self._unchecked = self.folded > 0
        self.eval()
        self._link(model, "" if whole else "network", pairs)
        self._made_of = _structure(model)
        self._fill()

    def _link(self, live: nn.Module, prefix: str, pairs: list[tuple[str, str]]) -> None:
        """Note where each tensor of the copy comes from; names in the live network are the copy's without `prefix`.

        `_folds`: (convolution of the copy, live convolution, live norm). `_copies`: (store of the copy, name, live store).
        `_ties`: (store, name, other store, other name) of live tensors that are one; once they are not, `refresh` copies anew.

        Modules and their stores are kept, not tensors, and in plain lists, so that they are not part of this
        copy: moving the live network or loading new tensors into it is seen by the next refresh.
        """

        def source(name: str) -> nn.Module:
            module = getattr(live, self.wing) if isinstance(live, TwinNorm) else live
            for part in name.removeprefix(prefix).strip(".").split("."):
                module = module.get_submodule(part)
                module = getattr(module, self.wing) if isinstance(module, TwinNorm) else module
            return module

        pairs = [(f"network.{conv}", f"network.{norm}") for conv, norm in pairs]
        folded = {name for pair in pairs for name in pair}
        self._folds = [(self.get_submodule(conv), source(conv), source(norm)) for conv, norm in pairs]
        self._copies, self._ties, first = [], [], {}
        for name, target in self.named_modules():
            if name and name not in folded:
                stores = {key: store for store, key, _ in tensors_of(source(name))}
                for store, key, tensor in tensors_of(target):
                    if key in stores:
                        self._copies.append((store, key, stores[key]))
                        own = (stores[key], key)
                        if (other := first.setdefault(id(tensor), own)) is not own:
                            self._ties.append((*own, *other))

    @torch.no_grad()
    def _fill(self) -> None:
        targets = [target[key] for target, key, _ in self._copies]
        sources = [source[key] for _, key, source in self._copies]
        for conv, live_conv, norm in self._folds:
            weight, bias = folded_weights(live_conv, norm)
            targets += [conv.weight, conv.bias]
            sources += [weight, bias]
        if targets:  # torch refuses to copy nothing
            torch._foreach_copy_(targets, sources)

    def check(self, x: torch.Tensor) -> None:
        """Make this copy again without folding if that changes the logits of images like `x`; the first images that pass bring it
        about, unless it is called before, where the host may wait for the device."""
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
            right = self._is_right(x)
        if not right:
            name = type(self._model[0]).__name__
            log.warning("%s has other logits when it is folded; its batch norms stay, which is slower", name)
            self._make(fold=False)
        self._unchecked = False

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _is_right(self, x: torch.Tensor) -> bool:
        """True if a folded copy of the live network has its logits, on two images of the shape of those in `x`.

        On a GPU in float64 if the network allows it, because TF32 is too coarse to compare with.
        """
        images = torch.rand((min(len(x), 2), *x.shape[1:]), generator=torch.Generator().manual_seed(0)).to(x.device)
        own = torch.float64 if next(self._model[0].parameters()).dtype == torch.float64 else torch.float32
        for dtype in (torch.float64, own) if x.is_cuda else (own,):
            plain = to_plain(self._model[0], self.wing).requires_grad_(False).eval().to(dtype)
            try:
                want = _logits(plain, images.to(dtype))
            except Exception:
                if dtype == own:
                    raise  # the network does not take such images
                continue
            folded = FoldedCopy(plain, dtype=dtype, channels_last=self.memory_format == torch.channels_last)
            folded._unchecked = False
            try:
                got = folded(images.to(dtype)).to(want.dtype)
            except Exception:  # a line that depends on what tracing stood in for
                return False
            limit = TOLERANCE * want.abs().max().item()
            return got.shape == want.shape and torch.allclose(got, want, rtol=0.0, atol=limit, equal_nan=True)


def _logits(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits = network(x)
    if not isinstance(logits, torch.Tensor):
        name, kind = type(network).__name__, type(logits).__name__
        raise TypeError(f"expected logits (a tensor) from {name}, got {kind}; let it return its logits alone")
    return logits


def _structure(model: nn.Module) -> list[tuple]:
    """Equal as long as a network has the same modules, of the same kinds, and the same hooks."""
    return [(module, type(module), hooks_of(module), "forward" in vars(module)) for module in model.modules()]
