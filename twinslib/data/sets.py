"""From a packed set to tensors on the device: splits by stored indices, and the parts of a split as uint8 tensors."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.errors import did_you_mean
from ..base.files import DAMAGED, read_npz, refused, write_npz
from .packed import PackedSet, permutation, rank_in_class


@dataclass(frozen=True, eq=False)
class Split:
    """Which images of a set are used: indices (int64) into its partitions, and the arguments they were made from.

    `train` and `val` point into the training images and are sorted. `test` points into the test images in one fixed
    random order that depends on nothing but their number, so "the first n test images" are nested and the same for
    every seed. `class_ids` are the original ids of the classes that are kept; label i of a run is `class_ids[i]`.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    class_ids: tuple[int, ...]
    fingerprint: str
    exclude: tuple[str, ...] = ()
    train_images: int | None = None
    val_images: int = 0
    seed: int = 0


def make_split(packed: PackedSet, *, exclude: Iterable[str] = (), train_images: int | None = None,
               val_images: int = 0, seed: int = 0) -> Split:
    """Choose images: drop classes, hold out validation images, take a training subset, each as balanced as possible.

    Classes take turns, each giving its next image in a random order fixed by `seed`, so a smaller training subset is
    part of a larger one. The draw uses raw PCG64 output and so does not change with the version of numpy or torch.

    Args:
        exclude: class names, in full or their first word (the WordNet id in "n01443537 goldfish").
        train_images: number of training images; None takes all that are left.
        val_images: number of training images held out.
    """
    exclude = tuple(exclude)
    if val_images < 0 or (train_images is not None and train_images < 1):
        raise ValueError(f"expected train_images >= 1 and val_images >= 0, got {train_images} and {val_images}")
    left_out = {_class_id(packed, name) for name in exclude}
    class_ids = tuple(i for i in range(len(packed.class_names)) if i not in left_out)
    if len(class_ids) < 2:
        after, then = (" after exclude", "exclude fewer classes") if left_out else ("", "add images of others")
        raise ValueError(f"expected at least 2 classes{after}, got {len(class_ids)}; {then}")

    labels = packed.train_labels.numpy()
    usable = np.flatnonzero(np.isin(labels, class_ids))
    wanted = val_images + (1 if train_images is None else train_images)
    if wanted > len(usable):
        raise ValueError(f"expected at most {len(usable)} images, the training images of {packed.name} that are "
                         f"usable, got train_images={train_images} and val_images={val_images}; ask for fewer")
    shuffled = usable[permutation(len(usable), seed)]
    val, rest = np.split(_taking_turns(shuffled, labels), [val_images])
    train = _taking_turns(shuffled[np.isin(shuffled, rest)], labels)[:train_images]

    order = permutation(len(packed.test_labels), 0)
    test = order[np.isin(packed.test_labels.numpy()[order], class_ids)]
    return Split(train=torch.from_numpy(np.sort(train)), val=torch.from_numpy(np.sort(val)), test=torch.from_numpy(test),
                 class_ids=class_ids, fingerprint=packed.fingerprint, exclude=exclude, train_images=train_images,
                 val_images=val_images, seed=seed)


def _class_id(packed: PackedSet, name: str) -> int:
    full = [i for i, known in enumerate(packed.class_names) if known == name]
    matches = full or [i for i, known in enumerate(packed.class_names) if known.split()[:1] == [name]]
    if len(matches) == 1:
        return matches[0]
    words = [word for known in packed.class_names for word in (known, known.split(" ")[0])]
    hint = did_you_mean(name, words) or f"; the first is {packed.class_names[0]!r}"
    got = f"{len(matches)} classes that begin with {name!r}" if matches else repr(name)
    raise ValueError(f"expected one of the {len(packed.class_names)} classes of {packed.name}, got {got}{hint}")


def _taking_turns(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder `indices` so that classes take turns; within a turn the given order stays."""
    return indices[np.argsort(rank_in_class(labels, indices), kind="stable")]


def load_split(path: Path) -> Split:
    """Read a split back; ValueError for a file that is no split."""
    stored = read_npz(path)
    try:
        indices = {key: torch.from_numpy(stored[key].astype(np.int64)) for key in ("train", "val", "test")}
        rest = json.loads(str(stored["settings"]))
        lists = {key: tuple(rest.pop(key)) for key in ("class_ids", "exclude")}
        return Split(**indices, **lists, **rest)
    except DAMAGED as error:
        raise refused(path, "a stored split", f"a damaged or foreign file ({error})") from error


def stored_split(packed: PackedSet, path: Path, **arguments) -> Split:
    """Return the split stored at `path` (.npz, uint32 indices) if it was made from these images and arguments, or make and store
    it; the file appears complete or not at all. `arguments`: those of `make_split`. ValueError: the stored split belongs to other
    images or arguments; the message names what differs. Or a damaged file."""
    path = Path(path)
    if not path.exists():
        split = make_split(packed, **arguments)
        indices = {key: getattr(split, key).numpy().astype(np.uint32) for key in ("train", "val", "test")}
        settings = {f.name: getattr(split, f.name) for f in fields(Split) if f.name not in indices}
        write_npz(path, {**indices, "settings": np.array(json.dumps(settings))}, {"data": split.fingerprint}, compress=True)
        return split
    stored = load_split(path)
    asked = {"exclude": (), "train_images": None, "val_images": 0, "seed": 0, **arguments}
    asked |= {"exclude": tuple(asked["exclude"]), "fingerprint": packed.fingerprint}
    differs = [f"{key}: {value!r} here, {getattr(stored, key)!r} there" for key, value in asked.items()
               if getattr(stored, key) != value]
    if differs:
        changed = stored.fingerprint != packed.fingerprint
        then = ("what was computed stands on the images of then: give the new ones another name, or keep results elsewhere"
                if changed else "choose another path or delete the file")
        raise ValueError(f"expected the stored split {path} to match, got one that differs in {'; '.join(differs)}; {then}")
    return stored


@dataclass(frozen=True, eq=False)
class DeviceSet:
    """A split's images (uint8, (N, 3, S, S)) and labels (int64, 0..num_classes - 1) on one device."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def to_device(packed: PackedSet, split: Split, device: torch.device | str) -> DeviceSet:
    """Move the images of `split` to `device` and number the kept classes from 0; a split of other images is refused."""
    if split.fingerprint != packed.fingerprint:
        raise ValueError(f"expected a split of {packed.name} ({packed.fingerprint}), got one of "
                         f"{split.fingerprint}; make it anew")
    new_label = torch.full((len(packed.class_names),), -1, dtype=torch.int64)
    new_label[list(split.class_ids)] = torch.arange(len(split.class_ids))
    parts = {}
    for part, of in (("train", "train"), ("val", "train"), ("test", "test")):
        indices = getattr(split, part)
        parts[f"{part}_x"] = getattr(packed, f"{of}_images")[indices].to(device)
        parts[f"{part}_y"] = new_label[getattr(packed, f"{of}_labels")[indices]].to(device)
    return DeviceSet(**parts, class_names=tuple(packed.class_names[i] for i in split.class_ids))
