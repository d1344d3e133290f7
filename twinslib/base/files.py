"""Files that appear whole or not at all and know what they are: inside is a digest of the content, and what it belongs to.

Files of earlier versions have no digest; what they hold is read all the same.
"""

import contextlib
import errno
import hashlib
import json
import lzma
import os
import shutil
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from . import owner

# what reading a broken zip file, or no zip file, can raise once it is open
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, RuntimeError, LookupError, OSError,
           MemoryError, OverflowError, TypeError, AttributeError, SyntaxError, tokenize.TokenError)
ABOUT, DIGEST = "about", "digest"
REPAIR = "delete it, or `python -m twinslib store repair` moves it aside; then it is made again"
FORGOTTEN = 24 * 3600  # seconds after which a temporary file is nobody's any more


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, never a part, whenever killed. `write`:
    called with a temporary path in the same folder, which it must fill; the folder is made if needed. OSError: the disk is full,
    with a message that says so; what was at `path` stays, the temporary file goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{owner.me()}.tmp")
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


def check_writable(path: str | Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is for."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"expected a file that can be written, got {path}; choose another place")


def remove_forgotten(folder: Path) -> None:
    """Delete the temporary files in a folder and below whose process has ended, or that are older than a day."""
    for where, _, names in os.walk(folder):  # which minds no folder that goes meanwhile
        for path in (Path(where) / name for name in names if name.startswith(".") and name.endswith(".tmp")):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if owner.gone(path.name.split(".")[-2]) or time.time() - path.stat().st_mtime > FORGOTTEN:
                    path.unlink()


def refused(path: Path, wanted: str, got: object) -> ValueError:
    """The error for a stored file that is not what it should be."""
    return ValueError(f"expected {wanted} in {path}, got {got}; {REPAIR}")


def write_json(path: Path, value: Mapping, *, digest: bool = True) -> None:
    """Write `value` with its digest as JSON, whole or not at all; equal values give equal bytes. `digest`: False for what is made
    from results, and read by others."""
    content = json.loads(json.dumps(value))
    text = json.dumps(content | ({DIGEST: _digest(content)} if digest else {}), indent=1, sort_keys=True) + "\n"
    atomic_write(path, lambda tmp: Path(tmp).write_text(text))


def read_json(path: Path) -> dict:
    """What a file of JSON holds, without its digest. FileNotFoundError: no such file. ValueError: a damaged file, with what to
    do."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise refused(path, "JSON", error) from None
    if not isinstance(content, dict):
        raise refused(path, "a JSON object", type(content).__name__)
    if DIGEST not in content:  # of an earlier version, unless its name was hit
        damaged = any(value == _digest({k: v for k, v in content.items() if k != key})
                      for key, value in content.items() if isinstance(value, str) and len(value) == 64)
    else:
        damaged = content.pop(DIGEST) != _digest(content)
    if damaged:
        raise refused(path, "the content that its digest was made of", "another one: the file is damaged or was edited")
    return content


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping | None = None, *, compress: bool = False) -> None:
    """Write `arrays` to `path` so that the file appears complete or not at all; the same arrays give the same bytes. `about`:
    what they belong to; stored with a digest of everything."""
    if about is not None:
        content = json.loads(json.dumps(about))
        text = json.dumps(content | {DIGEST: _digest(content, arrays)}, sort_keys=True)
        arrays = {**arrays, ABOUT: np.array(text)}

    def write(part: Path) -> None:
        with open(part, "wb") as stream:
            (np.savez_compressed if compress else np.savez)(stream, **arrays)

    atomic_write(path, write)


def read_npz(path: Path, about: Mapping | None = None) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; nothing in it is run. `about`: what the file must say that it belongs to, if it says
    anything. FileNotFoundError: no such file. ValueError: a damaged file, or one that belongs to something else."""
    def read(stored: Mapping[str, np.ndarray]) -> tuple[dict, dict | None, bool]:
        arrays = {name: stored[name] for name in stored}
        found = json.loads(str(arrays.pop(ABOUT))) if ABOUT in arrays else None
        return arrays, found, found is None or found.pop(DIGEST) == _digest(found, arrays)

    arrays, found, whole = _in_npz(path, read)
    if not whole:
        raise refused(path, "arrays as they were written", "others: the file is damaged")
    check_about(path, found, about)
    return arrays


def read_about(path: Path) -> dict:
    """What an .npz file says that it belongs to, {} if it is of an earlier version; the arrays are not read. FileNotFoundError,
    ValueError: as `read_npz`."""
    found = _in_npz(path, lambda stored: json.loads(str(stored[ABOUT])) if ABOUT in stored else {})
    return {key: value for key, value in found.items() if key != DIGEST}


def _in_npz(path: Path, read: Callable) -> object:
    with open(path, "rb") as file:  # what fails from here on is the content
        try:
            with np.load(file, allow_pickle=False) as stored:
                if ABOUT not in stored and f"{ABOUT}.npy".encode() in path.read_bytes():
                    raise ValueError("its list of arrays lacks some that are there")  # which zip does not notice
                return read(stored)
        except Exception as error:  # what a damaged file makes of the reader is of any type
            raise refused(path, "arrays", f"a damaged or foreign file ({str(error) or type(error).__name__})") from None


def check_about(path: Path, found: Mapping | None, wanted: Mapping | None) -> None:
    """Refuse a file that says that it belongs to something else than `wanted`."""
    for key, value in (wanted or {}).items():
        if found is not None and found.get(key) != value:
            raise refused(path, f"{key} {_short(value)}", _short(found.get(key)))


def seal_safetensors(data: bytes) -> bytes:
    """The bytes of a safetensors file with a digest of everything in its metadata."""
    header, tensors = _parts(data)
    meta = header.setdefault("__metadata__", {})
    meta[DIGEST] = _digest(header, tensors)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensors


def check_safetensors(path: Path) -> bool:
    """Refuse a sealed file that is not as it was written; False for one without a digest, whoever made it. FileNotFoundError: no
    such file. ValueError: a damaged one."""
    try:
        header, tensors = _parts(path.read_bytes())
        found = header.get("__metadata__", {}).pop(DIGEST, None)
    except (struct.error, ValueError, AttributeError) as error:
        raise refused(path, "a whole safetensors file", error) from None
    if found is not None and found != _digest(header, tensors):
        raise refused(path, "weights as they were written", "others: the file is damaged")
    return found is not None


def meta_of(path: Path) -> dict:
    """What a safetensors file of ours says about itself, as it was given to `checkpoint.save_weights`."""
    return json.loads(_parts(path.read_bytes())[0].get("__metadata__", {}).get("meta", "{}"))


def _parts(data: bytes) -> tuple[dict, bytes]:
    """(header, tensors) of a safetensors file."""
    (size,) = struct.unpack_from("<Q", data)
    if size > len(data) - 8:
        raise ValueError("a truncated one")
    return json.loads(data[8:8 + size]), data[8 + size:]


def write_bytes(path: Path, content: bytes, about: Mapping) -> None:
    """Write bytes behind a line of JSON that says what they belong to, with a digest of both."""
    line = json.dumps(dict(about) | {DIGEST: _digest(dict(about), content)}, sort_keys=True).encode() + b"\n"

    def write(part: Path) -> None:
        with open(part, "wb") as stream:
            stream.write(line)
            stream.write(content)

    atomic_write(path, write)


def read_bytes(path: Path, about: Mapping) -> bytes:
    """What `write_bytes` wrote. FileNotFoundError: no such file. ValueError: damaged, or it belongs to something else."""
    with open(path, "rb") as file:
        line, content = file.readline(1 << 16), file.read()
    try:
        found = json.loads(line)
        whole = found.pop(DIGEST) == _digest(found, content)
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise refused(path, "content as it was written", "a damaged or foreign file")
    check_about(path, found, about)
    return content


def _digest(value: Mapping, content: Mapping[str, np.ndarray] | bytes = b"") -> str:
    """SHA-256 of JSON and of what comes with it, hex."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    if isinstance(content, Mapping):
        for name in sorted(content):
            array = np.ascontiguousarray(content[name])
            digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    else:
        digest.update(content)
    return digest.hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
