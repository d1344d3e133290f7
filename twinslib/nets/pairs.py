"""Which batch norms of a network can be multiplied into the convolutions before them, and how."""

import functools
from collections import Counter

import torch.fx
from torch import nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm

from .copies import device_of, duplicate, hooks_of, is_changed, tensors_of

META = torch.device("meta")


def folded_weights(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the convolution that does the work of `norm(conv(x))` with running statistics."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return conv.weight * scale.view(-1, 1, 1, 1), bias


def fold_pairs(network: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]]:
    """A traced network on the same layers, without the batch norms that can be folded, and the names of these
    pairs of convolution and norm; the network itself if there are none.

    A pair is a `Conv2d` and a norm that alone follows it, each called once, without hooks or methods of its own,
    whose tensors are in no other layer and are not read elsewhere in the forward pass. The convolutions have a
    bias afterwards; their values are for the caller to set, see `folded_weights`.

    >>> fold_pairs(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())[1]
    [('0', '1')]
    """
    if "forward" in vars(network) or any(hooks_of(module) for module in network.modules()):
        return network, []  # tracing forgets them
    try:
        empty = {id(t): _without_values(t) for module in network.modules() for *_, t in tensors_of(module)}
        with torch.random.fork_rng([]):
            graph = _Tracer().trace(duplicate(network, empty))
    except Exception:  # tracing runs the user's forward with stand-ins; any of its lines may object to them
        return network, []
    device = device_of(network)
    for node in graph.nodes:  # where the forward pass asks for the device of its weights
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), lambda arg: device if arg == META else arg)
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    if any(name.startswith("_tensor_constant") for name in read):
        return network, []  # a value that was computed in tracing; it may come from weights or be random
    traced = torch.fx.GraphModule(network, graph)
    modules = dict(traced.named_modules(remove_duplicate=False))
    layers = [modules[node.target] for node in graph.nodes if node.op == "call_module"]
    uses = Counter(id(part) for layer in layers for part in layer.modules())
    uses.update(id(tensor) for module in network.modules() for *_, tensor in tensors_of(module))
    uses.update(id(functools.reduce(getattr, name.split("."), traced)) for name in read)

    def is_alone(layer: nn.Module) -> bool:
        parts = (layer, *(tensor for *_, tensor in tensors_of(layer)))
        return not is_changed(layer) and all(uses[id(part)] == 1 for part in parts)

    pairs = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            continue
        before, norm = node.all_input_nodes[0], modules[node.target]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if type(conv) is not nn.Conv2d or len(before.users) != 1 or before.target in dict(pairs):
            continue
        if norm.running_mean is None or not is_alone(conv) or not is_alone(norm):
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


class _Tracer(torch.fx.Tracer):
    """Batch norm of any kind is one node: its statistics are read by name, and subclasses may look at their
    input. What is computed from buffers is computed again in each pass. A forward pass that switches modes, which
    a graph does not keep, is refused."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.modes = _modes()

    def create_node(self, *args: object, **kwargs: object) -> torch.fx.Node:
        if _modes() != self.modes:
            raise ValueError(f"expected the modes {self.modes}, got {_modes()}")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _modes() -> tuple[bool, ...]:
    """Whether autograd, and autocast on each kind of device, are on."""
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the meta device: no line of a forward pass can read it and keep what it says now."""
    meta = tensor.detach().to(META)
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
