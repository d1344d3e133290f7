"""Two-branch batch normalisation (TWINS) and the norm layers a network can be built with.

A `TwinNorm` holds an adaptive wing, the network's own batch norm, and a frozen wing, a copy that keeps the
statistics of pre-training (Liu et al., CVPR 2023). The first images of a batch go through the frozen wing,
the others through the adaptive one; how many is set for a whole network at once:

    twin = twinsify(pretrained)
    with wings(twin, 64):
        logits = twin(x)          # x[:64] frozen, x[64:] adaptive
    plain = to_plain(twin)        # an ordinary network again
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..base.errors import choose, some
from .copies import HOOKS, duplicate, is_changed
from .split import ALL_FROZEN, Entry, Split, Wings

WINGS = ("adaptive", "frozen")


class TwinNorm(nn.Module):
    """Batch norm with an adaptive and a frozen wing; the frozen wing's statistics never change.

    The adaptive wing behaves like the layer it was made from, with one exception: a training batch with a single value per
    channel, where batch norm is not defined, is normalised with the running statistics, which stay as they are. The frozen
    wing normalises with its running statistics whatever `train()` says; parts of a subclass around the norm (activation,
    drop) follow the mode as usual.

    Args:
        norm: the layer to double; it becomes the adaptive wing, a deep copy the second one.
        state: shared by all layers of one network.
        share_affine, second: as for `twinsify`.
    """

    def __init__(self, norm: _BatchNorm, state: Wings, *, share_affine: bool = False, second: str = "frozen") -> None:
        super().__init__()
        self.keeps_statistics = second == "frozen"
        self.adaptive = norm
        self.frozen = duplicate(norm)
        if share_affine:
            self.frozen.weight, self.frozen.bias = norm.weight, norm.bias
        self.wings = state
        self.train(norm.training)

    def train(self, mode: bool = True) -> "TwinNorm":
        super().train(mode)
        if self.keeps_statistics:
            self.frozen.training = False
        return self

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        self._guard(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As `SyncBatchNorm.convert_sync_batchnorm` replaces layers."""
        super().add_module(name, module)
        self._guard(name)

    def _guard(self, name: str) -> None:
        """What resets batch norms, as `torch.optim.swa_utils.update_bn`, leaves a frozen wing as it is."""
        if name == "frozen" and self.keeps_statistics:
            self.frozen.reset_running_stats = _keep_statistics

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.wings.active[-1]
        again = torch._C._current_graph_task_id() != split.task  # in a backward pass
        if again:
            split = self.wings.recomputed()
        n = split.n_frozen
        if n > 0 and not again:
            split.check(len(x))
        if n == ALL_FROZEN or n == len(x):
            return self._freeze(x)
        if n == 0:
            return _batch_norm(self.adaptive, x)
        first, rest = x.split((n, len(x) - n))  # the backward of split is one copy, that of two slices three
        return torch.cat((self._freeze(first), _batch_norm(self.adaptive, rest)))

    def _freeze(self, x: torch.Tensor) -> torch.Tensor:
        if self.keeps_statistics:
            self.frozen.training = False  # somebody may have set the flag directly
        return _batch_norm(self.frozen, x)


def _batch_norm(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """`norm(x)`; a training batch with one value per channel takes the running statistics and leaves them unchanged."""
    if not norm.training or x.numel() != x.shape[1]:
        return norm(x)
    norm.training = False
    try:
        return norm(x)
    finally:
        norm.training = True


def _keep_statistics() -> None:
    """In place of `reset_running_stats` of a frozen wing."""


def twin_norms(model: nn.Module) -> Iterator[tuple[str, TwinNorm]]:
    """Yield (name, layer) for each `TwinNorm` of a network; a layer used under two names is yielded once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, TwinNorm))


def twinsify(model: nn.Module, *, share_affine: bool = False, second: str = "frozen") -> nn.Module:
    """A copy of a network in which every batch norm has an adaptive and a frozen wing; the given one is unchanged.

    Both wings start at the network's statistics, weights and biases (Liu et al. 2023). All images go through
    the adaptive wing, so the copy computes what the original computes, until `wings` says otherwise.

    >>> twin = twinsify(nn.Sequential(nn.BatchNorm2d(3)))
    >>> [name for name, _ in twin_norms(twin)]
    ['0']

    Args:
        model: any network with `BatchNorm2d` (or 1d, 3d, SyncBatchNorm, or subclasses), in any mode, which is kept.
        share_affine: False: each wing trains its own weight and bias (the official code); True: one pair for both.
        second: "frozen"; or "adaptive", a control whose second wing is ordinary batch norm with its own statistics.
    Raises:
        ValueError: no batch norm, already twinned, a batch norm without running statistics, or unknown `second`.
    """
    choose(second, WINGS, "second")
    if next(twin_norms(model), None):
        raise ValueError("expected a network without wings, got one that is twinned already; use it as it is")
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ValueError(f"expected a network with BatchNorm2d, got {type(model).__name__} without; wings live in "
                         "batch norm only")
    bare = [name or "the network itself" for name, module in norms if module.running_mean is None]
    if bare:
        raise ValueError(f"expected batch norm with running statistics, got track_running_stats=False in {some(bare)}; the "
                         "frozen wing has nothing to keep")
    state = Wings()
    return _replace(duplicate(model), _BatchNorm, lambda norm: TwinNorm(norm, state, share_affine=share_affine, second=second))


def freeze_statistics(model: nn.Module) -> nn.Module:
    """Put each batch norm of the network (in place) into eval mode: it normalises with its running statistics, which stay as
    they are, while weights and biases still train; a network without one is refused. `model.train()` undoes it."""
    norms = [module.eval() for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ValueError(f"expected a network with batch norm, got {type(model).__name__} without; there is nothing to freeze")
    return model


@contextlib.contextmanager
def single_image(model: nn.Module) -> Iterator[None]:
    """Inside, for a training pass of one image, every batch norm of the network keeps the rule of `TwinNorm`: where it meets a
    single value per channel it takes the running statistics and leaves them unchanged. Its hooks are there only inside."""
    resting = []

    def rest(norm: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        if norm.training and inputs[0].numel() == inputs[0].shape[1]:
            norm.training = False
            resting.append(norm)

    handles = [module.register_forward_pre_hook(rest) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in resting:
            norm.training = True


def to_plain(model: nn.Module, wing: str = "adaptive") -> nn.Module:
    """An ordinary network (a copy) that computes exactly what one wing computes in eval mode.

    Its layers have the types and names of the network before `twinsify`, so any tool that knows that network
    can load it. A network without wings is copied as it is, and has only an adaptive wing.

    >>> type(to_plain(twinsify(nn.BatchNorm2d(3)), "frozen")).__name__
    'BatchNorm2d'

    Raises:
        ValueError: unknown wing, "frozen" for a network without wings, or a layer with wings whose methods were replaced.
    """
    choose(wing, WINGS, "wing")
    if wing == "frozen" and next(twin_norms(model), None) is None:
        raise ValueError("expected a network with a frozen wing, got an ordinary one; make it with twinsify()")
    return _replace(duplicate(model), TwinNorm, partial(_one_wing, wing=wing))


def _one_wing(twin: TwinNorm, wing: str) -> _BatchNorm:
    """The batch norm of one wing, in the mode of the layer and with its hooks around those of its own."""
    if is_changed(twin, hooks=False):
        raise ValueError("expected batch norms with two wings as twinsify makes them, got one with a method of its "
                         "own, which one wing alone cannot have; put it on the network before twinsify")
    norm = getattr(twin, wing).train(twin.training)
    vars(norm).pop("reset_running_stats", None)
    for store in HOOKS:
        outer, inner = vars(twin)[store], vars(norm)[store]
        hooks = {**outer, **inner} if "pre_hooks" in store else {**inner, **outer}
        inner.clear()
        inner.update(hooks)
    norm._is_full_backward_hook = norm._is_full_backward_hook or twin._is_full_backward_hook
    return norm


@contextlib.contextmanager
def wings(model: nn.Module, n_frozen: int | str | None) -> Iterator[None]:
    """Inside the context the first `n_frozen` images of each batch go through the frozen wing, the others through the adaptive
    one; afterwards, also after an error, the split is what it was (outside any context: all adaptive).

    The batch is the first tensor that `model` is called with, or where only parts of it are called, what they get.
    The network must keep its images in order, one row each, up to every batch norm; another number of rows is
    refused, as under DataParallel over several devices. What `torch.utils.checkpoint` computes again is split as it was,
    wherever the backward pass runs.

    Args:
        n_frozen: 0 or None or "adaptive", "frozen" (all images), or a number of images up to the batch size.
    Raises:
        ValueError: a negative number, another word, or images for the frozen wing of a network without wings;
            from the network, a batch that cannot be split.
    """
    words = {None: 0, "adaptive": 0, "frozen": ALL_FROZEN}
    if isinstance(n_frozen, Integral) and not isinstance(n_frozen, bool) and n_frozen >= 0:
        n = int(n_frozen)
    elif (n_frozen is None or isinstance(n_frozen, str)) and n_frozen in words:
        n = words[n_frozen]
    else:
        raise ValueError("expected n_frozen as a number of images, at least 0, 'adaptive' or 'frozen', got "
                         f"{n_frozen!r}")
    states = {twin.wings for _, twin in twin_norms(model)}  # several where twinned networks are joined
    if n and not states:
        raise ValueError(f"expected a network with wings for n_frozen {n_frozen!r}, got an ordinary one; twinsify")
    split, compiled = Split(n), vars(model).get("_compiled_call_impl")
    for state in states:
        state.active.append(split)
    if n > 0:
        model._compiled_call_impl = Entry(model, split)
    try:
        yield
    finally:
        split.end = torch.autograd._get_sequence_nr()
        for state in states:
            state.active.remove(split)
            state.past.append(split)
        if n > 0:
            del model._compiled_call_impl
            if compiled:
                model._compiled_call_impl = compiled


def norm_layer(norm: str) -> Callable[[int], nn.Module]:
    """The function from a number of channels to a layer, for `norm` "batch", "group" or "layer".

    "group" has the largest number of groups up to 32 that divides the channels; "layer" one, over channels and both axes.

    >>> norm_layer("group")(48).num_groups
    24
    """
    layers = {"batch": nn.BatchNorm2d,
              "group": lambda c: nn.GroupNorm(max(groups for groups in range(1, 33) if c % groups == 0), c),
              "layer": partial(nn.GroupNorm, 1)}
    return layers[choose(norm, layers, "norm")]


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """The network with another norm in the place of each batch norm, in place; "batch": as it is. ValueError: a network without
    batch norm, or with one that does more, as timm's with an activation inside.

    >>> with_norm(nn.Sequential(nn.BatchNorm2d(8)), "layer")[0].num_groups
    1
    """
    kinds = {type(module) for module in model.modules() if isinstance(module, _BatchNorm)}
    if not kinds:
        raise ValueError(f"expected a network with batch norm for norm {norm!r}, got {type(model).__name__} without; "
                         "norm own takes it as it is")
    if norm != "batch" and kinds != {nn.BatchNorm2d}:
        names = some(sorted(kind.__name__ for kind in kinds - {nn.BatchNorm2d}))
        raise ValueError(f"expected nothing but BatchNorm2d to be replaced for norm {norm!r}, got {names} in "
                         f"{type(model).__name__}; norm own takes it as it is")
    return model if norm == "batch" else _replace(model, _BatchNorm, lambda old: norm_layer(norm)(old.num_features))


def _replace(model: nn.Module, kind: type, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace in place each module of a kind; one that is used in several places stays one module."""
    if isinstance(model, kind):
        return make(model)
    made: dict[nn.Module, nn.Module] = {}
    for parent in [module for module in model.modules() if not isinstance(module, kind)]:
        for name, child in parent._modules.items():  # named_children() leaves out second names of shared modules
            if isinstance(child, kind):
                if child not in made:
                    made[child] = make(child)
                parent._modules[name] = made[child]
    return model
