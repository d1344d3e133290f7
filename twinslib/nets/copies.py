"""Copies of networks that stand alone, and what has been put on their modules."""

import copy
from collections.abc import Iterator
from types import CellType, FunctionType

import torch
from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
         "_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks")


def duplicate(model: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """A deep copy that stands alone, also where `copy.deepcopy` fails or leaves ties to the network.

    It has copies of tensors with a history, which old-style weight norm keeps; and functions that were put on
    a module or are its hooks, and hold parts of the network, hold those of the copy.

    Args:
        memo: id of an object in the network -> what the copy has in its place, as for `copy.deepcopy`.
    """
    memo = memo or {id(tensor): tensor.detach().clone() for module in model.modules() for *_, tensor in tensors_of(module)
                    if not tensor.is_leaf}
    made = copy.deepcopy(model, memo)
    for module in model.modules():
        mine, theirs = vars(module), vars(memo[id(module)])
        for store, target in ((mine, theirs), *((mine[name], theirs[name]) for name in HOOKS)):
            for key, value in store.items():
                if isinstance(value, FunctionType):
                    target[key] = _rebound(value, memo)
    return made


def _rebound(function: FunctionType, memo: dict[int, object]) -> FunctionType:
    """A function with copies (by id of the original in `memo`) in the place of what it holds of a copied network; itself if it
    holds nothing of it."""
    memo.setdefault(id(function), function)  # one that holds itself
    changed = []

    def is_copied(value: object) -> bool:
        return id(getattr(value, "__self__", value)) in memo  # or a method of what is copied

    def swap(value: object) -> object:
        inside = isinstance(value, FunctionType)
        new = copy.deepcopy(value, memo) if is_copied(value) else _rebound(value, memo) if inside else value
        changed.extend([new] if new is not value else [])
        return new

    names = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    names = {name: swap(value) for name, value in names.items() if is_copied(value)}
    made = FunctionType(function.__code__, function.__globals__ | names if names else function.__globals__,
                        function.__name__, tuple(map(swap, function.__defaults__ or ())) or None,
                        tuple(CellType(swap(cell.cell_contents)) for cell in function.__closure__ or ()))
    made.__kwdefaults__ = {key: swap(value) for key, value in (function.__kwdefaults__ or {}).items()} or None
    return made if changed else function


def device_of(model: nn.Module) -> torch.device:
    """Where a network is: its first parameter or buffer; the CPU where it has neither."""
    return next((tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors), torch.device("cpu"))


def tensors_of(module: nn.Module) -> Iterator[tuple[dict, str, torch.Tensor]]:
    """(dict that holds it, key, tensor) of each parameter, buffer and plain tensor of a module itself."""
    for store in (module._parameters, module._buffers, vars(module)):
        for key, value in list(store.items()):
            if isinstance(value, torch.Tensor):
                yield store, key, value


def hooks_of(module: nn.Module) -> tuple[int, ...]:
    """The numbers of the hooks on the forward and backward passes of a module."""
    return tuple(number for store in HOOKS for number in vars(module)[store])


def is_changed(module: nn.Module, hooks: bool = True) -> bool:
    """True if a module may do something else than its class does: it has methods of its own, or (if `hooks`) hooks."""
    own = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return own or (hooks and bool(hooks_of(module)))
