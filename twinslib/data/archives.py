"""Publishers' archives: where they lie, how they are fetched and checked, and their members in one pass."""

import hashlib
import logging
import os
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from ..base import paths
from .sources import SOURCES, Archive

log = logging.getLogger(__name__)


def archive_dir(name: str) -> Path:
    """Folder where the archives of the known set `name` are looked for."""
    return paths.data_dir() / "archives" / SOURCES[name].folder


def fetch(archive: Archive, folder: Path) -> Path:
    """Download `archive` into `folder` unless it is there; an interrupted download is taken up where it stopped. ValueError: the
    checksum differs; the bad download is removed. OSError: the publisher cannot be reached, or the connection ended early; what
    has come is kept."""
    path = folder / archive.file
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.file}.part"
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    log.info("fetching %s%s", archive.url, f" from byte {have}" if have else "")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = answer.status == 206
            start = have if resumed else 0
            length = answer.headers.get("Content-Length")
            with open(part, "ab" if resumed else "wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
    except urllib.error.URLError as error:
        if getattr(error, "code", 0) != 416:  # nothing after the bytes that are there: they are all, or they are wrong
            raise OSError(f"expected to reach {archive.url}, got {error}; fetch it by hand into {folder} or run again") from error
        start, length = have, 0
    if length is not None and part.stat().st_size != start + int(length):
        raise OSError(f"expected {start + int(length)} bytes of {archive.file}, got {part.stat().st_size}; the "
                      "connection ended early, run again to continue")
    try:
        _check(archive, part, "run again, or tell the publisher")
    except ValueError:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def _check(archive: Archive, path: Path, then: str) -> None:
    """ValueError if the file at `path` has another checksum than is known of the archive."""
    if archive.checksum:
        kind, wanted = archive.checksum
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.new(kind.lower(), usedforsecurity=False)).hexdigest()
        if found != wanted:
            raise ValueError(f"expected {kind} {wanted} of {path}, got {found}; {then}")


def require_archives(name: str) -> None:
    """Raise unless every archive of `name` is in its folder with the published checksum."""
    home = archive_dir(name)
    absent = [archive for archive in SOURCES[name].archives if not (home / archive.file).is_file()]
    if absent:
        raise FileNotFoundError(f"expected {', '.join(a.file for a in absent)} in {home}, got no such file; fetch "
                                f"it from {SOURCES[name].page}, or run 'python -m twinslib data build {name} "
                                "--download'")
    for archive in SOURCES[name].archives:
        _check(archive, home / archive.file, "delete it and fetch it again")


def stream(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the wanted members of a zip or (compressed) tar file, in one pass."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if wanted(name):
                    yield name, archive.read(name)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name):
                yield name, archive.extractfile(member).read()


def texts(path: Path, names: Iterable[str]) -> list[list[str]]:
    """Return the non-empty lines of the named members."""
    names = list(names)
    found = dict(stream(path, names.__contains__))
    require_members(path, names, found)
    return [[line for line in found[name].decode().splitlines() if line.strip()] for name in names]


def require_members(path: Path, names: Iterable[str], found: Container[str]) -> None:
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(f"expected {absent[0]} in {path}, got no such member ({len(absent)} missing in all); this "
                         "is another edition or a part of the archive, fetch it again")
