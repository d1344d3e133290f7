"""How a batch is split between two wings: by images, where a network is entered, for all layers at once."""

import math
from collections import deque

import torch
from torch import nn

ALL_FROZEN = -1


class Split:
    """One context of `wings`: how many images of a batch are for the frozen wing, and which passes ran inside.

    Autograd numbers what it records. So a backward pass that recomputes a part of a forward pass (activation
    checkpointing) knows, by the number of the node it is at, in which context that forward pass ran.
    """

    def __init__(self, n_frozen: int = 0) -> None:
        self.n_frozen = n_frozen
        self.images: int | None = None  # of the batch that is passing
        self.task = torch._C._current_graph_task_id()  # -1 outside of backward passes
        self.first, self.end = torch.autograd._get_sequence_nr(), math.inf

    def check(self, rows: int) -> None:
        """Refuse rows that are not the images of the batch, one each."""
        if self.images is None:  # a part of the network is called on its own: its norms must see equally many rows
            self.images = rows
        if rows != self.images:
            raise ValueError(f"expected {self.images} rows at each batch norm, one per image of the batch, got "
                             f"{rows}; a network that cuts or reshapes the batch inside (chunks, crops, frames, "
                             "DataParallel) cannot be split: pass the images of each wing on their own, in "
                             "wings(model, 'frozen') and wings(model, 'adaptive')")
        if self.n_frozen > rows:
            raise ValueError(f"expected n_frozen in 0..{rows} (the batch), got {self.n_frozen}; call wings() for each batch")


class Wings:
    """How many images of a batch go through the frozen wing; one object shared by all `TwinNorm`s of a network.

    `n_frozen` is 0 (all adaptive), `ALL_FROZEN`, or a number of images up to the batch size. A copy or a file
    of a network has a state of its own, which starts all adaptive.
    """

    def __init__(self) -> None:
        self.active = [Split()]  # the last one counts
        self.active[0].task = -1
        self.past: deque[Split] = deque(maxlen=64)

    @property
    def n_frozen(self) -> int:
        return self.active[-1].n_frozen

    def __reduce__(self) -> tuple:
        return Wings, ()

    def recomputed(self) -> Split:
        """The split of the forward pass of which the running backward pass recomputes a part. ValueError: that forward pass ran
        outside of all contexts, or too long ago, in a network that knows several."""
        outside, *inside = self.active
        if not self.past and not inside:
            return outside
        number = torch._C._current_autograd_node()._sequence_nr()
        for split in (*self.past, *reversed(inside)):  # inner contexts end first
            if split.first <= number < split.end:
                return split
        raise ValueError("expected a forward pass inside wings() for a backward pass that recomputes it, got one "
                         "outside (or nested checkpoints), so its split is not known; run the forward pass inside "
                         "wings(model, 'adaptive')")


class Entry:
    """Stands before a network's forward pass and tells a split how many images the batch has.

    It takes the place that compiled forward passes have in a module, which copies and files leave out.
    """

    def __init__(self, model: nn.Module, split: Split) -> None:
        self.split = split
        self.call = model._compiled_call_impl or model._call_impl

    def __call__(self, *args: object, **kwargs: object) -> object:
        images = _count_images((*args, *kwargs.values()))
        if images is None:
            raise ValueError("expected a tensor of images among the inputs inside wings(), got none")
        before, self.split.images = self.split.images, images
        try:
            return self.call(*args, **kwargs)
        finally:
            self.split.images = before

    def __reduce__(self) -> tuple:
        return type(None), ()  # in a copy or a file, where a module does not leave it out itself


def _count_images(inputs: tuple) -> int | None:
    """The length of the first tensor among the inputs of a network, also inside lists and dicts."""
    for value in inputs:
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
        parts = (value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ())
        if (count := _count_images(tuple(parts))) is not None:
            return count
    return None
