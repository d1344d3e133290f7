"""Build packed sets from publishers' archives or a folder of images; and the `data` command.

Nothing is fetched unless asked with `download=True` or `--download`.
"""

import argparse
import logging
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..base import paths
from ..base.files import DAMAGED, check_writable, write_npz
from .archives import archive_dir, fetch
from .folder import image_folder
from .packed import KEYS, NAME, TOY_SETS, check_arrays, check_name, doubles, load_packed, missing, shapes
from .readers import READERS
from .sources import SOURCES

log = logging.getLogger(__name__)


def build(name: str, *, download: bool = False, size: int | None = None) -> Path:
    """Write `NAME.npz` into the data folder and return its path; a finished file is left as it is.

    An image is packed as its central square (or that around the publisher's box), resized with antialiasing. So the
    central crop of a test image is that of the TWINS authors' scripts (Resize 256, CenterCrop 224), but a random crop
    of a training image is drawn from the central square, theirs (RandomResizedCrop) from the whole image: what lies
    beyond the square of a longer image is not trained on.

    Images that are there twice, in both parts or in two classes, are kept and named in the log.

    Args:
        name: one of `SOURCES`, or a set of your own with images in `NAME/train/CLASS` and `NAME/test/CLASS` of the data folder.
        download: fetch archives that are not there from their publisher.
        size: side in pixels; None takes the known set's own. A folder of your own needs it.
    Raises:
        FileNotFoundError: an archive or folder is missing; the message names it.
        ValueError: a name that is no bare name, a damaged archive, another layout than expected, images that cannot be
            used, a finished file of another size, or one that could not be written.
    """
    check_name(name)
    folder = paths.data_dir()
    path = folder / f"{name}.npz"
    known = SOURCES.get(name)
    if name in TOY_SETS:
        raise ValueError(f"expected a set that is built from files, got {name!r}; it is embedded and always there")
    if size is not None and not 8 <= size <= 1024:
        raise ValueError(f"expected size in 8..1024 pixels, got {size}")
    size = size or (known.image_size if known else None)
    if path.is_file():
        stored = load_packed(name).image_size
        if size not in (stored, None):
            raise ValueError(f"expected {path} at {size} pixels, got {stored} there; delete it to build it anew")
        log.info("%s is there already", path)
        return path
    if known is None and not (folder / name / "train").is_dir():
        raise FileNotFoundError(f"{missing(name)}, or folders {name}/train/CLASS and {name}/test/CLASS of images there")
    if size is None:
        raise ValueError(f"expected size, the side in pixels to pack {name} at, got none; add --size, for example 64")
    check_writable(path)
    log.info("building %s at %d pixels", path, size)
    files = None
    if known is None:
        arrays, files = image_folder(folder / name, size)
    else:
        home = archive_dir(name)
        if download:
            for archive in known.archives:
                fetch(archive, home)
        try:
            arrays = READERS[name](home, size)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise ValueError(f"expected readable archives of {name} in {home}, got a damaged one ({error}); delete "
                             "and fetch it anew") from error
        if len(arrays["class_names"]) != known.num_classes:
            raise ValueError(f"expected {known.num_classes} classes in the archives of {name} in {home}, got "
                             f"{len(arrays['class_names'])}; fetch the archives again")
    check_arrays(arrays, name)
    for sentence in doubles(arrays, files):
        log.warning("%s: %s", name, sentence)
    write_npz(path, arrays)
    return path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the `data` command with its verbs; each sets `func(args) -> int`."""
    parser = subparsers.add_parser("data", help="list, check, build and explain image sets")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("list", help="names, sizes, and which are there")
    verb.set_defaults(func=_list)
    verb = verbs.add_parser("check", help="check the format of image sets, and count")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.set_defaults(func=_check)
    verb = verbs.add_parser("build", help="pack image sets from archives or folders in the data folder")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.add_argument("--download", action="store_true", help="fetch missing archives from their publisher")
    verb.add_argument("--size", type=int, help="side in pixels (default: the set's own)")
    verb.set_defaults(func=_build)
    verb = verbs.add_parser("explain", help="what a set is, and what is missing to use it")
    verb.add_argument("name", metavar="NAME")
    verb.set_defaults(func=_explain)


def _list(args: argparse.Namespace) -> int:
    folder = paths.data_dir()
    print(f"image sets in {folder}")
    own = sorted(path.stem for path in folder.glob("*.npz")) if folder.is_dir() else []
    for name in [*TOY_SETS, *SOURCES, *(stem for stem in own if stem not in SOURCES)]:
        path = folder / f"{name}.npz"
        if name in TOY_SETS:
            packed = load_packed(name)
            shape = len(packed.class_names), packed.image_size, len(packed.train_labels), len(packed.test_labels)
            state = "embedded"
        elif not path.is_file():
            shape = SOURCES[name].num_classes, SOURCES[name].image_size, "-", "-"
            state = f"missing; python -m twinslib data explain {name}"
        else:
            try:
                there = shapes(path)
                shape = *there["class_names"], there["train_images"][1], there["train_images"][0], there["test_images"][0]
                state = "present" if NAME.fullmatch(name) else "no usable name; rename it"
            except (*DAMAGED, IndexError):
                shape, state = ("-",) * 4, f"damaged; python -m twinslib data check {name}"
        classes, side, train, test = shape
        print(f"{name:16} {classes:>4} classes {side:>4} px {train:>7} train {test:>6} test   {state}")
    return 0


def _check(args: argparse.Namespace) -> int:
    for name in args.names:
        packed = load_packed(name)
        counts = [labels.bincount(minlength=len(packed.class_names)).tolist()
                  for labels in (packed.train_labels, packed.test_labels)]
        print(f"{name}: {len(packed.train_labels)} training and {len(packed.test_labels)} test images, "
              f"{len(packed.class_names)} classes, {packed.image_size} px, fingerprint {packed.fingerprint}")
        width = max(map(len, packed.class_names))
        for class_name, train, test in zip(packed.class_names, *counts, strict=True):
            print(f"  {class_name:{width}} {train:>6} {test:>6}")
        for sentence in doubles({key: np.asarray(getattr(packed, key)) for key in KEYS}):
            log.warning("%s: %s", name, sentence)
    return 0


def _build(args: argparse.Namespace) -> int:
    for name in args.names:
        print(build(name, download=args.download, size=args.size))
    return 0


def _explain(args: argparse.Namespace) -> int:
    check_name(args.name)
    name, path = args.name, paths.data_dir() / f"{args.name}.npz"
    if name in TOY_SETS:
        print(f"{name}: embedded in a dependency of this package, nothing is missing")
    elif name in SOURCES:
        source = SOURCES[name]
        print(f"{name}: {source.description}\n{source.num_classes} classes, {source.image_size} px, from {source.page}")
        print(f"terms     {source.licence}\nfile      {path} ({'present' if path.is_file() else 'missing'})")
        for archive in source.archives:
            there = "present" if (archive_dir(name) / archive.file).is_file() else "missing"
            print(f"archive   {archive_dir(name) / archive.file} ({there})")
            print(f"          {archive.url}{', {} {}'.format(*archive.checksum) if archive.checksum else ''}")
        print(f"command   python -m twinslib data build {name}   (--download fetches the archives)")
    elif path.is_file():
        print(f"{name}: a set of your own, {path}")
    else:
        raise FileNotFoundError(missing(name))
    return 0
