"""Images in the forms that their owners have them in, read into the one that is computed with: uint8 (N, 3, S, S) and labels."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from ..base.errors import integer
from .packed import load_packed, permutation

FORMS = ("a data set of (image, label), a DataLoader of one, a pair (images, labels) of arrays or tensors, or the name of a "
         "packed set")
LOOKED_AT_TWICE = 8  # first images of a data set
NONE = "expected at least one image, got none"
CHUNK = 256  # images that are converted together
ROUNDED = 0.02  # distance from the 256 levels, in levels, above which a value was none of a file


class Given(NamedTuple):
    """Images (N, 3, S, S) uint8 and labels (N,) int64 on the CPU; index: their numbers where they come from, (N,) int64;
    class_names: where they are known, else empty."""

    x: Tensor
    y: Tensor
    index: np.ndarray
    class_names: tuple[str, ...] = ()


def read(images: object) -> Given:
    """All images of a data set (as torchvision's), a DataLoader, a pair of arrays or tensors, or, by name, of the training part
    of a packed set.

    Pixels are uint8, or floats in [0, 1], which are rounded to the 256 levels of a file (with a warning where they are none of
    those); axes (N, 3, S, S) or (N, S, S, 3). Of a DataLoader that shuffles or goes in order the data set is read, in its own
    order; with another sampler, what the loader gives.

    >>> read((np.zeros((4, 8, 8, 3)) + [0, 0.2, 1], [0, 1, 1, 0])).x[0, :, 0, 0]
    tensor([  0,  51, 255], dtype=torch.uint8)

    Raises:
        TypeError, ValueError: another form or other axes, normalised images, of several sizes or others at each look, labels that
            are no integers from 0 on.
        FileNotFoundError: no packed set of that name.
    """
    return _read(images, "train", np.arange)


def draw(images: object, n: int | None = None) -> Given:
    """The first n images (None: all) in the one random order that depends on nothing but how many there are, in which each run
    is evaluated; of a packed set test images. See `read`.

    >>> draw((np.full((4, 3, 8, 8), 255, np.uint8), [0, 1, 2, 3]), n=2).index.tolist()
    [3, 2]

    Raises:
        ValueError: fewer images than n.
    """
    def chosen(total: int) -> np.ndarray:
        if n is not None and integer(n, "n", 1) > total:
            raise ValueError(f"expected at most {total} images, as many as there are, got {n}")
        return permutation(total, 0)[:n]

    return _read(images, "test", chosen)


def _read(images: object, part: str, chosen: Callable[[int], np.ndarray]) -> Given:
    if isinstance(images, DataLoader):
        whole = isinstance(images.sampler, RandomSampler | SequentialSampler)
        images = images.dataset if whole else [pair for batch in images for pair in zip(*_pair(batch), strict=True)]
    names = getattr(images, "classes", ())
    names = names if isinstance(names, list | tuple) else ()  # some data sets have their number under that name
    if isinstance(images, str):
        packed = load_packed(images)
        x, y, names = getattr(packed, f"{part}_images"), getattr(packed, f"{part}_labels"), packed.class_names
        index = chosen(len(y))
        x, y = x[index], y[index]
    elif isinstance(images, tuple | list) and len(images) == 2 and getattr(images[0], "ndim", 0) == 4:
        x, y = _tensor(images[0]), _labels(images[1])
        if len(x) != len(y):
            raise ValueError(f"expected one label for each of {len(x)} images, got {len(y)}")
        index = chosen(len(y))
        x, y = _bytes(x[index]), y[index]
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, np.ndarray | Tensor | dict):
        index = chosen(len(images))
        if len(index) == 0:
            raise ValueError(NONE)
        x, y = _read_each(images, index)
    else:
        raise TypeError(f"expected images as {FORMS}, got {type(images).__name__}"
                        + ("; labels are missing" if isinstance(images, np.ndarray | Tensor) else ""))
    if len(y) == 0:
        raise ValueError(NONE)
    if x.max() <= 1:
        raise ValueError("expected pixels that use more than the lowest two of 256 values, got none above 1; scale once only: "
                         "uint8 in 0..255 or floats in 0..1")
    return Given(x, y, index, tuple(map(str, names)))


def _pair(item: object) -> tuple:
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else type(item).__name__
        raise TypeError(f"expected pairs (image, label) from the data set, got {what}; wrap it so that it gives both and no more")
    return tuple(item)


def _read_each(dataset: object, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set, in chunks, so that its floats are never in memory together."""
    def look(numbers: Iterable[int]) -> Iterator[tuple[Tensor, object]]:
        for i in numbers:
            image, label = _pair(dataset[int(i)])
            yield _tensor(image.convert("RGB") if hasattr(image, "convert") else image), label

    for (first, _), (again, _) in zip(*(look(islice(index, LOOKED_AT_TWICE)) for _ in range(2)), strict=True):
        if first.shape != again.shape or not torch.equal(first, again):
            raise ValueError("expected images that are the same at each look, got others at the second; leave random transforms "
                             "out of the data set (fine_tune augments by itself)")
    chunks, labels, size = [], [], None
    for start in range(0, len(index), CHUNK):
        pairs = list(look(index[start:start + CHUNK]))
        for image, _ in pairs:
            size = size or image.shape
            if image.shape != size:
                raise ValueError(f"expected images of one size, got {tuple(size)} and {tuple(image.shape)}; add "
                                 "transforms.Resize(S) and transforms.CenterCrop(S) to the data set")
        chunks.append(_bytes(torch.stack([image for image, _ in pairs])))
        labels += [label for _, label in pairs]
    return torch.cat(chunks), _labels(labels)


def _tensor(values: object) -> Tensor:
    try:
        return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected images as arrays, tensors or of Pillow, got {type(values).__name__}: {error}; add "
                        "transforms.ToTensor() to the data set") from None


def _bytes(x: Tensor) -> Tensor:
    """Images of either order of axes and either kind of pixels as uint8 (N, 3, S, S)."""
    shape = tuple(x.shape)
    if x.ndim != 4 or 3 not in (shape[1], shape[3]):
        grey = x.ndim == 4 and 1 in (shape[1], shape[3])
        raise ValueError(f"expected images of shape (N, 3, S, S) or (N, S, S, 3), got {shape}; "
                         + ("repeat the grey channel, as by transforms.Grayscale(3)" if grey else "permute or stack their axes"))
    x = x if shape[1] == 3 else x.permute(0, 3, 1, 2)
    if x.shape[2] != x.shape[3]:
        raise ValueError(f"expected square images, got {x.shape[2]} by {x.shape[3]} pixels; add transforms.CenterCrop to the "
                         "data set")
    if x.dtype == torch.uint8:
        return x.contiguous()
    if not x.is_floating_point():
        raise TypeError(f"expected pixels as uint8 in 0..255 or floats in [0, 1], got {x.dtype}; use .to(torch.uint8)")
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        hint = ("divide by 255" if low >= 0 and 1 < high <= 255 else
                "leave transforms.Normalize out of the data set and pass mean and std, which become the network's first layer")
        raise ValueError(f"expected floats in [0, 1], got {low:.3g}..{high:.3g}; {hint}")
    levels = x * 255
    if (levels - levels.round()).abs().max() > ROUNDED:
        warnings.warn("floats that are none of the 256 levels of a file were rounded to them, by at most 1/510", stacklevel=4)
    return levels.round().to(torch.uint8).contiguous()


def _labels(labels: object) -> Tensor:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        several = values.ndim == 2 and values.shape[1] > 1
        hint = "; of one-hot rows take argmax(1)" if several else "; take labels[:, 0]" if values.ndim == 2 else ""
        raise TypeError(f"expected integer labels of shape (N,), got {values.dtype} of shape {values.shape}{hint}")
    if values.min(initial=0) < 0:
        raise ValueError(f"expected labels from 0 on, got {values.min()}")
    return torch.from_numpy(values.astype(np.int64))
