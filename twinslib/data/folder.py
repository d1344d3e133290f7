"""A user's own folder of images, NAME/train/CLASS and NAME/test/CLASS, to the arrays of a packed set."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .decode import decode, suffixes
from .readers import Arrays, square

log = logging.getLogger(__name__)
_SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "__pycache__"}


def image_folder(folder: Path, size: int) -> tuple[Arrays, dict[str, list[str]]]:
    """Return the arrays of a packed set and, for each part, the files its images come from, relative to `folder`.

    Images are taken by their ending (`decode.suffixes`), also from folders inside a class and through links, in the
    order of their names. Hidden files and folders and those of operating systems are ignored. What else is skipped or
    changed is counted in the log: other files, later frames, images that are small or far from square.

    Raises:
        FileNotFoundError: no folder `test`.
        ValueError: classes that do not agree, a class without images, files that cannot be read (all are named).
    """
    if not (folder / "test").is_dir():
        raise FileNotFoundError(f"expected {folder / 'test'} beside {folder / 'train'}, got no such folder; make it")
    skipped: Counter[str] = Counter()
    classes = {part: _classes(folder / part, skipped) for part in ("train", "test")}
    names = _agreed(classes, folder)
    files: dict[str, list[Path]] = {}
    labels: dict[str, list[int]] = {}
    for part, of in classes.items():
        per_class = [list(_images(of[name], skipped)) for name in names]
        empty = [f"{part}/{name}" for name, found in zip(names, per_class, strict=True) if not found]
        if empty:
            raise ValueError(f"expected images in every class of {folder}, got none in {', '.join(empty[:5])} "
                             f"({len(empty)} in all; skipped: {_counts(skipped) or 'nothing'}); add images or move "
                             "the class away")
        files[part] = [file for found in per_class for file in found]
        labels[part] = [label for label, found in enumerate(per_class) for _ in found]
    if skipped:
        log.warning("%s: skipped, no images by their ending: %s", folder.name, _counts(skipped))
    arrays = {"class_names": np.array(names)}
    for part in files:
        arrays[f"{part}_images"] = np.empty((len(files[part]), size, size, 3), np.uint8)
        arrays[f"{part}_labels"] = np.array(labels[part], np.int64)
    short = {part: [file.relative_to(folder).as_posix() for file in found] for part, found in files.items()}
    _fill(arrays, short, folder, size)
    return arrays, short


def _fill(arrays: Arrays, files: dict[str, list[str]], folder: Path, size: int) -> None:
    """Decode the files, named from `folder` on, into the arrays of their part; all that cannot be used are named at once."""
    broken: list[str] = []
    remarks: dict[str, list[str]] = {
        "images with several frames, of which the first is taken": [],
        f"images with a side below {size} pixels, enlarged": [],
        "long images, of which the central square is less than half": [],
    }
    for part, found in files.items():
        for i, where in enumerate(found):
            try:
                if not (folder / where).is_file():
                    raise ValueError(f"expected a file, got a broken link or a device at {where}; take it out")
                image, more = decode(folder / where, where)
            except ValueError as error:
                broken.append(str(error))
                continue
            arrays[f"{part}_images"][i] = square(image, size)
            short, long = sorted(image.size)
            for remark, holds in zip(remarks, (more, short < size, long > 2 * short), strict=True):
                if holds:
                    remarks[remark].append(where)
    if broken:
        rest = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(f"expected usable images in {folder}, got {len(broken)} others: {'; '.join(broken[:5])}{rest}")
    for remark, where in remarks.items():
        if where:
            log.warning("%s: %s: %d (%s%s)", folder.name, remark, len(where), where[0], ", …" if where[1:] else "")


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in skipped.most_common())


def _classes(part: Path, skipped: Counter[str]) -> dict[str, Path]:
    """Class names, in one Unicode spelling (macOS and Linux write accents differently), and their folders."""
    found: dict[str, Path] = {}
    alike: dict[str, str] = {}
    for path in sorted(part.iterdir()):
        if _ignored(path.name):
            continue
        if not path.is_dir():
            skipped[f"{path.suffix.lower() or 'without ending'} beside the class folders"] += 1
            continue
        name = unicodedata.normalize("NFC", path.name)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"expected class names in UTF-8 in {part}, got {path.name!r}; rename it") from error
        other = alike.setdefault(name.casefold().strip(), path.name)
        if other != path.name:
            raise ValueError("expected classes that differ in more than upper and lower case, accents' spelling or "
                             f"spaces in {part}, got {other!r} and {path.name!r}; rename or merge them")
        found[name] = path
    return found


def _agreed(classes: dict[str, dict[str, Path]], folder: Path) -> list[str]:
    names = sorted(classes["train"])
    single = [f"{name!r} in one only ({part})" for part, other in (("train", "test"), ("test", "train"))
              for name in sorted(classes[part].keys() - classes[other].keys())]
    if single:
        raise ValueError(f"expected the same classes in train and test of {folder}, got {', '.join(single[:5])}, "
                         f"{len(single)} in all; add the missing folders of images or move the others away")
    if len(names) < 2:
        raise ValueError(f"expected at least 2 folders of classes in {folder / 'train'}, got {len(names)}; add more")
    return names


def _images(top: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Image files below `top`, through links; what else is there is counted in `skipped`."""

    def stop(error: OSError) -> None:  # os.walk would leave out what it may not read
        raise error

    met, taken, found = {os.path.realpath(top)}, suffixes(), []
    for root, below, names in os.walk(top, followlinks=True, onerror=stop):
        below[:] = [name for name in below if not _ignored(name)]
        for name in below:
            real = os.path.realpath(os.path.join(root, name))
            if real in met:
                raise ValueError(f"expected each folder once in {top}, got {name} in {root}, which is {real} again; "
                                 "remove the link")
            met.add(real)
        found.append((root, sorted(name for name in names if not _ignored(name))))
    for root, names in sorted(found):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if ending in taken:
                yield Path(root, name)
            else:
                skipped[ending or "without ending"] += 1
