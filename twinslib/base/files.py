"""Files that appear whole or not at all."""

import errno
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

# what reading a broken zip file, or no zip file, can raise once it is open
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, KeyError, OSError)


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, never a part, whenever killed.

    Args:
        write: called with a temporary path in the same folder, which it must fill; the folder is made if needed.
    Raises:
        OSError: the disk is full, with a message that says so; what was at `path` stays, the temporary file goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"expected free space for {path.name}, got a full disk or quota ({free:,} bytes free) in {path.parent}; "
            "make room and run the same command again, everything stored before is kept",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all; equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    atomic_write(path, lambda tmp: Path(tmp).write_text(text))


def read_json(path: Path) -> dict:
    """What a file of JSON holds.

    Raises:
        ValueError: a damaged file, with what to do.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got {error}; delete the file to compute it again") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; nothing in it is run."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def write_npz(path: Path, arrays: dict[str, np.ndarray], compress: bool = False) -> None:
    """Write `arrays` to `path` so that the file appears complete or not at all; the same arrays give the same bytes."""

    def write(part: Path) -> None:
        with open(part, "wb") as stream:
            (np.savez_compressed if compress else np.savez)(stream, **arrays)

    atomic_write(path, write)
