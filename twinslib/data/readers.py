"""One reader per known image set: from the publisher's archives to the arrays of a packed set.

Archives are read where they lie and without unpacking, except those that torchvision's own classes unpack (CIFAR,
Caltech). Images come in the publisher's order of the split, whatever their order in the archive.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps
from scipy.io import loadmat
from torchvision import datasets

from .archives import require_archives, require_members, stream, texts
from .decode import decode
from .packed import permutation, rank_in_class

Arrays = dict[str, np.ndarray]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Item:
    """One image of a set: its path in the archive, its class, and the box to cut out (None: the whole image)."""

    member: str
    label: int
    box: Box | None = None


def _pack(path: Path, class_names: list[str], train: list[Item], test: list[Item], size: int) -> Arrays:
    """Read the items' images from the archive and return the arrays of a packed set, in the order of the items."""
    arrays = {"class_names": np.array(class_names)}
    targets: dict[str, tuple[np.ndarray, int, Item]] = {}
    for part, items in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = np.empty((len(items), size, size, 3), np.uint8)
        arrays[f"{part}_labels"] = np.array([item.label for item in items], np.int64)
        targets |= {item.member: (arrays[f"{part}_images"], i, item) for i, item in enumerate(items)}
    absent = dict(targets)
    for name, content in stream(path, targets.__contains__):
        images, i, item = targets[name]
        images[i] = square(decode(io.BytesIO(content), f"{name} of {path}", as_shown=False)[0], size, item.box)
        absent.pop(name, None)
    require_members(path, absent, ())
    return arrays


def square(image: Image.Image, size: int, box: Box | None = None) -> np.ndarray:
    """Return (size, size, 3) uint8: the smallest square around `box` that fits in, or the centre square, resized.

    A square whose side is a multiple of `size` is averaged exactly (`Image.reduce`); others are resized bilinearly
    with antialiasing.

    >>> square(Image.new("RGB", (6, 4), "white"), 2).shape
    (2, 2, 3)
    """
    image = image.convert("RGB")
    if box is not None:
        image = image.crop(_square_around(box, image.size))
    if image.width == image.height and image.width % size == 0:
        return np.asarray(image.reduce(image.width // size))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def _squares(images: Iterable[Image.Image], n: int, size: int) -> np.ndarray:
    out = np.empty((n, size, size, 3), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = square(image, size)
    return out


def _square_around(box: Box, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    side = max(1, min(round(max(right - left, bottom - top)), *image_size))
    x, y = (min(max(round((low + high - side) / 2), 0), limit - side)
            for low, high, limit in ((left, right, image_size[0]), (top, bottom, image_size[1])))
    return x, y, x + side, y + side


def _tiny_imagenet(folder: Path, size: int) -> Arrays:
    require_archives("tinyimagenet32")
    path, root = folder / "tiny-imagenet-200.zip", "tiny-imagenet-200"
    files = ("wnids.txt", "words.txt", "val/val_annotations.txt")
    ids, words, annotations = texts(path, [f"{root}/{file}" for file in files])
    ids = sorted(line.strip() for line in ids)
    synonyms = dict(line.split("\t", 1) for line in words)
    label = {wnid: i for i, wnid in enumerate(ids)}
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if re.fullmatch(rf"{root}/train/n\d+/images/\w+\.JPEG", name)]
    train = [Item(name, label[name.split("/")[2]]) for name in sorted(members, key=_natural)]
    rows = [line.split("\t") for line in annotations]
    test = [Item(f"{root}/val/images/{row[0]}", label[row[1]]) for row in rows]
    names = [f"{wnid} {synonyms[wnid].split(',')[0].strip()}" for wnid in ids]
    return _pack(path, names, train, test, size)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _cub_2010(folder: Path, size: int) -> Arrays:
    require_archives("cub64")
    lists = dict(stream(folder / "lists.tgz", lambda name: name.rpartition("/")[2] in ("train.txt", "test.txt")))
    lists = {name.rpartition("/")[2]: content.decode().split() for name, content in lists.items()}
    require_members(folder / "lists.tgz", ("train.txt", "test.txt"), lists)
    boxes = {}
    for name, content in stream(folder / "annotations.tgz", lambda name: name.endswith(".mat")):
        box = loadmat(io.BytesIO(content))["bbox"][0, 0]
        boxes["/".join(name.split("/")[-2:])] = tuple(float(box[k].item()) for k in ("left", "top", "right", "bottom"))
    require_members(folder / "annotations.tgz",
                    [f.removesuffix(".jpg") + ".mat" for part in lists.values() for f in part], boxes)
    names = sorted({file.split("/")[0] for part in lists.values() for file in part})
    label = {name: i for i, name in enumerate(names)}
    train, test = ([Item(f"images/{f}", label[f.split("/")[0]], boxes[f.removesuffix(".jpg") + ".mat"]) for f in lists[part]]
                   for part in ("train.txt", "test.txt"))
    return _pack(folder / "images.tgz", names, train, test, size)


def _cub_2011(folder: Path, size: int) -> Arrays:
    require_archives("cub200")
    path, root = folder / "CUB_200_2011.tgz", "CUB_200_2011"
    files = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    images, labels, splits, classes = (dict(line.split(maxsplit=1) for line in lines)
                                       for lines in texts(path, [f"{root}/{file}" for file in files]))
    items = {key: Item(f"{root}/images/{file.strip()}", int(labels[key]) - 1) for key, file in images.items()}
    train, test = ([item for key, item in items.items() if int(splits[key]) == flag] for flag in (1, 0))
    names = [classes[key].strip() for key in sorted(classes, key=int)]
    return _pack(path, names, train, test, size)


def _stanford_dogs(name: str, cut: bool, folder: Path, size: int) -> Arrays:
    require_archives(name)
    wanted = {"train_list.mat", "test_list.mat"}
    found = dict(stream(folder / "lists.tar", wanted.__contains__))
    require_members(folder / "lists.tar", wanted, found)
    files, labels = {}, {}
    for part in ("train", "test"):
        table = loadmat(io.BytesIO(found[f"{part}_list.mat"]))
        files[part] = [str(cell.item()) for cell in table["file_list"].ravel()]
        labels[part] = [int(i) - 1 for i in table["labels"].ravel()]
    boxes: dict[str, Box] = {}
    if cut:
        members = {f"Annotation/{file.removesuffix('.jpg')}" for part in files.values() for file in part}
        for member, content in stream(folder / "annotation.tar", members.__contains__):
            box = ElementTree.fromstring(content).find("object/bndbox")  # of several dogs, the first
            boxes[member] = tuple(float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        require_members(folder / "annotation.tar", members, boxes)
    names = {label: file.split("/")[0] for part in files for label, file in zip(labels[part], files[part], strict=True)}
    train, test = ([Item(f"Images/{f}", label, boxes.get(f"Annotation/{f.removesuffix('.jpg')}"))
                    for f, label in zip(files[part], labels[part], strict=True)] for part in ("train", "test"))
    return _pack(folder / "images.tar", [names[i] for i in sorted(names)], train, test, size)


def _opened(name: str, make: Callable[..., datasets.VisionDataset], **arguments) -> datasets.VisionDataset:
    """Return torchvision's data set from its unpacked folder or, after checking it, from the archive beside it."""
    try:
        return make(**arguments, download=False)
    except RuntimeError:
        require_archives(name)
        return make(**arguments, download=True)  # the archive is there and intact, so this only unpacks it


def _cifar(name: str, make: Callable[..., datasets.VisionDataset], folder: Path, size: int) -> Arrays:
    parts = {part: _opened(name, make, root=folder, train=part == "train") for part in ("train", "test")}
    arrays = {"class_names": np.array(parts["train"].classes)}
    for part, images in parts.items():
        arrays[f"{part}_images"] = _squares((image for image, _ in images), len(images), size)
        arrays[f"{part}_labels"] = np.array(images.targets, np.int64)
    return arrays


def _caltech(name: str, make: Callable[..., datasets.VisionDataset], train_of: Callable[[np.ndarray], np.ndarray],
             file: str, folder: Path, size: int) -> Arrays:
    """Split each class at random (seed 0); `train_of` turns its number of images into that of training images.

    `file` says how an image lies in torchvision's folder, by its category, label from 1 and number.
    """
    images = _opened(name, make, root=folder.parent)
    labels = np.array(images.y, np.int64)
    order = permutation(len(labels), 0)
    in_train = rank_in_class(labels, order) < train_of(np.bincount(labels))[labels[order]]
    arrays = {"class_names": np.array(images.categories)}
    for part, indices in (("train", np.sort(order[in_train])), ("test", np.sort(order[~in_train]))):
        paths = (Path(images.root, file.format(images.categories[images.y[i]], images.y[i] + 1, images.index[i]))
                 for i in indices)
        pictures = (decode(path, str(path), as_shown=False)[0] for path in paths)
        arrays[f"{part}_images"] = _squares(pictures, len(indices), size)
        arrays[f"{part}_labels"] = labels[indices]
    return arrays


READERS: dict[str, Callable[[Path, int], Arrays]] = {
    "tinyimagenet32": _tiny_imagenet,
    "cifar10": lambda folder, size: _cifar("cifar10", datasets.CIFAR10, folder, size),
    "cifar100": lambda folder, size: _cifar("cifar100", datasets.CIFAR100, folder, size),
    "caltech64": lambda folder, size: _caltech("caltech64", datasets.Caltech101, lambda n: np.full_like(n, 30),
                                               "101_ObjectCategories/{0}/image_{2:04d}.jpg", folder, size),
    "cub64": _cub_2010,
    "dogs64": lambda folder, size: _stanford_dogs("dogs64", True, folder, size),
    "caltech256": lambda folder, size: _caltech("caltech256", datasets.Caltech256, lambda n: n - n // 10,
                                                "256_ObjectCategories/{0}/{1:03d}_{2:04d}.jpg", folder, size),
    "cub200": _cub_2011,
    "dogs": lambda folder, size: _stanford_dogs("dogs", False, folder, size)
}
