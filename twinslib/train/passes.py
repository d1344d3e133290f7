"""Counting what training costs: images passed forward and backward through a network, as they pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Passes:
    """Images that went forward and backward so far. A backward pass counts the same whether it ends at the weights, at the
    images or at both; what is never run is never counted."""

    forward: int = 0
    backward: int = 0
    _paused: bool = field(default=False, init=False, repr=False)

    def through(self, network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """`network`, counted: a call counts its images forward, and backward when a gradient comes back through its output.

        >>> passes = Passes()
        >>> _ = passes.through(torch.nn.Identity())(torch.zeros(5, 3))
        >>> passes.take()
        (5, 0)
        """

        def counted(x: torch.Tensor) -> torch.Tensor:
            out = network(x)
            self._add(forward=len(x))
            if out.requires_grad:
                out.register_hook(lambda _: self._add(backward=len(x)))
            return out

        return counted

    def take(self) -> tuple[int, int]:
        """(forward, backward) since the last call."""
        out = self.forward, self.backward
        self.forward = self.backward = 0
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is counted: for measurements that ride on training."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _add(self, forward: int = 0, backward: int = 0) -> None:
        if not self._paused:
            self.forward, self.backward = self.forward + forward, self.backward + backward
