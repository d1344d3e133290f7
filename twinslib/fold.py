"""A fast copy of a network to attack and to evaluate with.

An attack needs gradients with respect to the image only, in eval mode, many times per training step. `FoldedCopy` has
frozen parameters, its batch norms multiplied into the convolutions before them, and runs in the dtype and memory format
that are fastest; `refresh()` brings it up to date with the network in training for little.
"""

from collections import Counter

import torch
import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .models import Classifier, memory_format, upsample_nearest
from .norms import TwinNorm, to_plain


class FoldedCopy(nn.Module):
    """Computes what one wing of `model` computes in eval mode; differentiable with respect to the images only.

    The copy has the weights `model` had when it was made or last refreshed. It stays in eval mode whatever is called,
    and its parameters never take gradients. In float32 its logits equal the network's up to rounding; in bfloat16 they
    are approximate and meant for making training examples, not for reported numbers, unless the copy itself is what is certified.

    A batch norm is folded when it directly follows a convolution that nothing else uses; any other stays an eval-mode
    batch norm in float32. A network that `torch.fx` cannot trace is kept as it is, and `folded` is 0.

    Args:
        model: a `Classifier`, whose normalisation is kept in float32, or any other network, whose input is cast.
        wing: "adaptive" or "frozen".
        dtype: of weights and activations. Images may have any float dtype; logits come back in theirs.
        channels_last: memory format inside (None: the faster one, see `models.memory_format`); images may have any, and
            their gradient is contiguous.
    Raises:
        ValueError: unknown wing, or "frozen" for a network without wings.
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
        self.dtype = dtype
        if channels_last is None:
            channels_last = memory_format(model, next(model.parameters()).device) == torch.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        plain = to_plain(model, wing).requires_grad_(False).eval()
        whole = isinstance(plain, Classifier)
        self.normalize = plain.normalize if whole else None
        self.upsample = plain.upsample if whole else None
        network, pairs = _trace(plain.network if whole else plain)
        self.folded = len(pairs)
        for module in network.modules():
            if not isinstance(module, _BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
                    if parameter.ndim == 4:
                        parameter.data = parameter.data.contiguous(memory_format=self.memory_format)
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_floating_point():
                        setattr(module, name, buffer.to(dtype))
        self.network = network
        self.eval()
        self._plan(model.network if whole else model, wing, pairs)
        self.refresh()

    def train(self, mode: bool = True) -> "FoldedCopy":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x if self.normalize is None else self.normalize(x)
        if z.requires_grad:
            z.register_hook(torch.Tensor.contiguous)  # the gradient reaches x as NCHW, as attack libraries expect it
        z = z.to(self.dtype, memory_format=self.memory_format)
        return self.network(upsample_nearest(z, self.upsample)).to(x.dtype)

    def _plan(self, live: nn.Module, wing: str, pairs: list[tuple[str, str]]) -> None:
        """Note which module of the live network fills which module of the copy.

        Modules are kept, not tensors, and in plain lists, so that they are not part of this copy: moving the live
        network or loading new tensors into it is seen by the next refresh.
        """

        def source(name: str) -> nn.Module:
            module = live
            for part in name.split(".") if name else ():
                module = module.get_submodule(part)
                module = getattr(module, wing) if isinstance(module, TwinNorm) else module
            return module

        folded = {name for pair in pairs for name in pair}
        self._folds = [(self.network.get_submodule(conv), source(conv), source(norm)) for conv, norm in pairs]
        self._copies = [
            (target, kind, key, source(name))
            for name, target in self.network.named_modules()
            if name not in folded
            for kind in ("_parameters", "_buffers")
            for key, value in getattr(target, kind).items()
            if value is not None
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live network's current weights and statistics into this copy, folding again; in place."""
        targets = [getattr(target, kind)[key] for target, kind, key, _ in self._copies]
        sources = [getattr(source, kind)[key] for _, kind, key, source in self._copies]
        for conv, live_conv, norm in self._folds:
            weight, bias = _fold(live_conv, norm)
            targets += [conv.weight, conv.bias]
            sources += [weight, bias]
        torch._foreach_copy_(targets, sources)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the convolution that does the work of `norm(conv(x))` with running statistics."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return conv.weight * scale.view(-1, 1, 1, 1), bias


class _Tracer(torch.fx.Tracer):
    """Batch norm of any kind is one node: its statistics are read by name, and subclasses may look at their input."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _trace(network: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]]:
    """The traced network without the batch norms that can be folded, and their (convolution, norm) names.

    The convolutions have a bias afterwards; their values are set by `refresh`.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # tracing runs the user's forward with stand-ins, and any of its lines may object to them
        return network, []
    traced = torch.fx.GraphModule(network, graph)
    modules = dict(traced.named_modules(remove_duplicate=False))
    uses = Counter(id(modules[node.target]) for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            continue
        before = node.all_input_nodes[0]
        if before.op != "call_module" or type(modules[before.target]) is not nn.Conv2d or len(before.users) != 1:
            continue
        conv, norm = modules[before.target], modules[node.target]
        if uses[id(conv)] != 1 or uses[id(norm)] != 1 or norm.running_mean is None:
            continue
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        pairs.append((before.target, node.target))
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced, pairs
