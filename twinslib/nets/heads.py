"""The last layer of a network: finding it, replacing it, and the features that go into it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .copies import duplicate
from .models import _refuse_output, _seeded, eval_mode


def find_head(model: nn.Module, image_size: int) -> str:
    """The name of the last linear layer, found by running a random image: the layer whose output is the model's output.
    ValueError: no linear layer gives the output. TypeError: the output is more than logits.

    >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), image_size=2)
    '1'
    """
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = [module.register_forward_hook(lambda _, __, out, name=name: calls.append((name, out)))
             for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    image = torch.rand((2, 3, image_size, image_size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), eval_mode(model):
            logits = model(image.to(next(model.parameters(), image)))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, torch.Tensor):
        _refuse_output(logits, model)
    for name, out in reversed(calls):
        if out is logits or (out.shape == logits.shape and torch.equal(out, logits)):
            return name
    raise ValueError(f"expected a network that ends in a linear layer, got {type(model).__name__} in which none of "
                     f"{len(hooks)} linear layers gives the output; put a linear head on it first")


def replace_head(model: nn.Module, num_classes: int, *, image_size: int, seed: int) -> nn.Module:
    """A copy of a network with a fresh linear head for `num_classes`; everything else is equal.

    The head is found by what it does, not by its name (see `find_head`), so this works for any network that ends in a
    linear layer and takes images of `image_size` pixels. It gets PyTorch's default initialisation from `seed`; no global
    random state is touched.

    >>> replace_head(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 3, image_size=2, seed=0)[1].out_features
    3
    """
    if num_classes < 1:
        raise ValueError(f"expected num_classes to be at least 1, got {num_classes}")
    name = find_head(model, image_size)
    model = duplicate(model)
    old = model.get_submodule(name)
    new = _seeded(seed, lambda: nn.Linear(old.in_features, num_classes, bias=old.bias is not None))
    new.to(old.weight.device, old.weight.dtype).train(old.training)
    if not name:
        return new
    model.set_submodule(name, new)
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
    if not name:
        return head
    view = duplicate(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    view.set_submodule(name, head)
    return view
