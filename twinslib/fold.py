"""A fast copy of a network to attack and to evaluate with.

An attack needs gradients with respect to the image only, in eval mode, many times per training step. `FoldedCopy` has
frozen parameters, its batch norms multiplied into the convolutions before them, and runs in the dtype and memory format
that are fastest; `refresh()` brings it up to date with the network in training for little.
"""

import logging
from collections import Counter
from collections.abc import Iterator

import torch
import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .models import Classifier, memory_format, upsample_nearest
from .norms import HOOKS, TwinNorm, duplicate, to_plain

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of the largest logit, and of the largest gradient


class FoldedCopy(nn.Module):
    """Computes what one wing of `model` computes in eval mode; differentiable with respect to the images only.

    The copy has the weights `model` had when it was made or last refreshed. It stays in eval mode whatever is called,
    and its parameters never take gradients. In float32 its logits equal the network's up to rounding; in bfloat16 they
    are approximate and meant for making training examples, not for reported numbers, unless the copy itself is what is certified.

    A batch norm is folded when it directly follows a convolution, and nothing else uses, shares, reads or changes either;
    any other stays an eval-mode batch norm in float32. With the first images that pass, a folded network is compared once
    with the network itself, on two random images of that shape: where logits or gradients differ, it is made again
    without folding, with a warning. A network that has hooks, or that `torch.fx` cannot trace, is copied as it is, with its
    hooks. `folded` is the number of folded batch norms.

    Args:
        model: a `Classifier`, whose normalisation is kept in float32, or any other network, whose input is cast.
        wing: "adaptive" or "frozen".
        dtype: of weights and activations. Images may have any float dtype; logits come back in theirs.
        channels_last: memory format inside (None: the faster one, see `models.memory_format`); images may have any, and
            their gradient is contiguous.
    Raises:
        ValueError: unknown wing, or "frozen" for a network without wings.
        TypeError: the network gives anything but a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        wing: str = "adaptive",
        dtype: torch.dtype = torch.float32,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        self.dtype, self.wing = dtype, wing
        if channels_last is None:
            channels_last = memory_format(model, next(model.parameters()).device) == torch.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._model = [model]  # in a list, so that it is no part of this copy
        self._make(fold=True)

    def train(self, mode: bool = True) -> "FoldedCopy":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._unchecked and len(x):
            self._check(x)
        z = x if self.normalize is None else self.normalize(x)
        if z.requires_grad:
            z.register_hook(torch.Tensor.contiguous)  # the gradient reaches x as NCHW, as attack libraries expect it
        z = z.to(self.dtype, memory_format=self.memory_format)
        logits = self.network(upsample_nearest(z, self.upsample))
        if not isinstance(logits, torch.Tensor):
            raise TypeError(f"expected logits (a tensor) from {type(self._model[0]).__name__}, got {type(logits).__name__}")
        return logits.to(x.dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live network's current weights and statistics into this copy, folding again; in place.

        A network whose modules or hooks have changed is copied anew.
        """
        if _structure(self._model[0]) != self._made_of:
            self._make(fold=True)
        else:
            self._fill()

    @torch.inference_mode(False)
    def _make(self, fold: bool) -> None:
        """Copy the live network, folded where that is right."""
        model = self._model[0]
        plain = to_plain(model, self.wing).requires_grad_(False).eval()
        whole = type(plain) is Classifier and not _is_changed(plain)
        self.normalize = plain.normalize if whole else None
        self.upsample = plain.upsample if whole else None
        network = plain.network if whole else plain
        network, pairs = _trace(network) if fold else (network, [])
        for module in network.modules():
            if not isinstance(module, _BatchNorm):
                for store, name, tensor in _tensors(module):
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
        self._plan(model, "" if whole else "network", pairs)
        self._made_of = _structure(model)
        self._fill()

    def _plan(self, live: nn.Module, prefix: str, pairs: list[tuple[str, str]]) -> None:
        """Note which tensor of the live network fills which of the copy.

        Modules and their stores are kept, not tensors, and in plain lists, so that they are not part of this copy: moving
        the live network or loading new tensors into it is seen by the next refresh.

        Args:
            prefix: of the names in this copy that the live network does not have.
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
        self._copies = []
        for name, target in self.named_modules():
            if name and name not in folded:
                stores = {key: store for store, key, _ in _tensors(source(name))}
                self._copies += [(store, key, stores[key]) for store, key, _ in _tensors(target) if key in stores]

    @torch.no_grad()
    def _fill(self) -> None:
        targets = [target[key] for target, key, _ in self._copies]
        sources = [source[key] for _, key, source in self._copies]
        for conv, live_conv, norm in self._folds:
            weight, bias = _fold(live_conv, norm)
            targets += [conv.weight, conv.bias]
            sources += [weight, bias]
        torch._foreach_copy_(targets, sources)

    def _check(self, x: torch.Tensor) -> None:
        """Make this copy again without folding if that changes logits or gradients of images like `x`."""
        with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.autocast(x.device.type, enabled=False):
            differs = self._difference(x)
        if differs:
            log.warning("%s computes something else when it is folded (%s); its batch norms stay, which is slower",
                        type(self._model[0]).__name__, differs)
            self._make(fold=False)
        self._unchecked = False

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _difference(self, x: torch.Tensor) -> str:
        """How a folded copy of the live network differs from it on two images; empty if it does not.

        In float64, in which rounding cannot hide anything or be taken for it, unless the network insists on float32.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.rand((min(len(x), 2), *x.shape[1:]), generator=generator, dtype=torch.float64).to(x.device)
        for dtype in (torch.float64, torch.float32):
            plain = to_plain(self._model[0], self.wing).requires_grad_(False).eval().to(dtype)
            try:
                want = _logits_and_gradient(plain, images.to(dtype))
            except Exception:
                if dtype == torch.float32:
                    raise  # the network does not take such images
                continue
            folded = FoldedCopy(plain, dtype=dtype, channels_last=self.memory_format == torch.channels_last)
            folded._unchecked = False
            try:
                got = _logits_and_gradient(folded, images.to(dtype))
            except Exception as error:
                return f"it fails with {type(error).__name__}"
            for name, a, b in zip(("logits", "gradients"), got, want, strict=True):
                if (a is None) != (b is None) or (a is not None and not _agree(a, b)):
                    return f"other {name}"
            return ""


def _logits_and_gradient(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = x.clone().requires_grad_()
    logits = network(x)
    if not logits.requires_grad:
        return logits, None
    return logits.detach(), torch.autograd.grad(logits, x, torch.linspace(1, 2, logits.numel()).to(logits).view_as(logits))[0]


def _agree(got: torch.Tensor, want: torch.Tensor) -> bool:
    limit = TOLERANCE * want.abs().max().item()
    return got.shape == want.shape and torch.allclose(got, want, rtol=0.0, atol=limit, equal_nan=True)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the convolution that does the work of `norm(conv(x))` with running statistics."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return conv.weight * scale.view(-1, 1, 1, 1), bias


def _tensors(module: nn.Module) -> Iterator[tuple[dict, str, torch.Tensor]]:
    """Each tensor of a module itself, with the dict that holds it and its key: parameters, buffers and plain attributes."""
    for store in (module._parameters, module._buffers, vars(module)):
        yield from ((store, key, value) for key, value in list(store.items()) if isinstance(value, torch.Tensor))


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return tuple(number for store in HOOKS for number in vars(module)[store])


def _is_changed(module: nn.Module) -> bool:
    """True if a module does not do what its class does: it has hooks, or methods of its own."""
    return bool(_hooks(module)) or any(callable(getattr(type(module), name, None)) for name in vars(module))


def _structure(model: nn.Module) -> list[tuple]:
    """Equal as long as a network has the same modules, of the same kinds, and the same hooks."""
    return [(module, type(module), _hooks(module), "forward" in vars(module)) for module in model.modules()]


class _Tracer(torch.fx.Tracer):
    """Batch norm of any kind is one node: its statistics are read by name, and subclasses may look at their input. What is
    computed from buffers is computed again in each pass."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _trace(network: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]]:
    """The traced network without the batch norms that can be folded, and their (convolution, norm) names; the network itself
    if there are none.

    The convolutions have a bias afterwards; their values are set by `refresh`.
    """
    if "forward" in vars(network) or any(_hooks(module) for module in network.modules()):
        return network, []
    empty = {id(tensor): _without_values(tensor) for module in network.modules() for *_, tensor in _tensors(module)}
    try:
        with torch.random.fork_rng([]):
            graph = _Tracer().trace(duplicate(network, empty))
    except Exception:  # tracing runs the user's forward with stand-ins, and any of its lines may object to them
        return network, []
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    if any(name.startswith("_tensor_constant") for name in read):  # a value of now, which may come from weights or be random
        return network, []
    traced = torch.fx.GraphModule(network, graph)
    modules = dict(traced.named_modules(remove_duplicate=False))
    called = [modules[node.target] for node in graph.nodes if node.op == "call_module"]
    uses = Counter(id(part) for module in called for part in module.modules())
    tensors = Counter(id(tensor) for module in network.modules() for *_, tensor in _tensors(module))
    tensors.update(id(_attribute(traced, name)) for name in read)
    pairs = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            continue
        before = node.all_input_nodes[0]
        if before.op != "call_module" or type(modules[before.target]) is not nn.Conv2d or len(before.users) != 1:
            continue
        conv, norm = modules[before.target], modules[node.target]
        if norm.running_mean is None or any(
            uses[id(module)] != 1 or _is_changed(module) or any(tensors[id(tensor)] != 1 for *_, tensor in _tensors(module))
            for module in (conv, norm)
        ):
            continue
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        pairs.append((before.target, node.target))
    if not pairs:
        return network, []
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced, pairs


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind on the meta device: no line of a forward pass can read it and keep what it says now."""
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


def _attribute(module: nn.Module, name: str) -> object:
    parent, _, last = name.rpartition(".")
    return getattr(module.get_submodule(parent), last)
