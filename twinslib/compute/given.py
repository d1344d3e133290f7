"""A network of others, made ready to be trained, attacked or certified; and whether images fit it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from ..attack.pgd import logits_of
from ..base.errors import each, real
from ..nets import norms
from ..nets.copies import device_of
from ..nets.models import Classifier


def prepared(network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device) -> nn.Module:
    """A copy that stands alone: float32, on the device, in eval mode, all parameters taking gradients, normalising inside."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a network as a torch.nn.Module, got {type(network).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise TypeError("expected a network of Python, got a TorchScript program; load its state dict into the network itself")
    if (mean is None) != (std is None):
        raise ValueError("expected mean and std, both or neither, got one of them")
    copy = norms.to_plain(network)
    if mean is not None:
        if isinstance(network, Classifier):
            raise ValueError("expected no mean and std for a network that normalises already (Classifier), got both; leave them "
                             "out")
        copy = Classifier(copy, mean=each(real)(mean, "mean"), std=each(real)(std, "std"))
    return copy.float().to(device).eval().requires_grad_(True)


def classes_of(network: nn.Module, size: int) -> int:
    """Logits that a network gives for an image of so many pixels."""
    try:
        with torch.no_grad():
            return logits_of(network, torch.zeros(2, 3, size, size, dtype=torch.float32, device=device_of(network))).shape[1]
    except (RuntimeError, IndexError, AssertionError) as error:
        raise ValueError(f"expected a network that takes images of shape (N, 3, {size}, {size}), got from it: {error}") from error


def check_labels(y: torch.Tensor, classes: int) -> None:
    """Refuse labels of classes that a network does not have."""
    if y.max() >= classes:
        raise ValueError(f"expected labels in 0..{classes - 1}, the classes of the network, got {int(y.max())}; fine-tune it on "
                         "these images first, or number the classes from 0")


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over training steps, at a terminal; gives what `fit` calls after each."""
    with tqdm(desc=title, unit="step", disable=None) as line:
        def on_step(done: int, total: int) -> None:
            line.total = total
            line.update(done - line.n)

        yield on_step


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that is asked for, by default CUDA where there is one. ValueError: it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        return found
    except (RuntimeError, AssertionError, TypeError) as error:
        why = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"expected a device that is there, such as cpu or cuda, got {str(device)!r}: {why}") from None
