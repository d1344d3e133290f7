"""Who is at what: leases on tasks, so that many workers on one store, on one machine or on many, share out its work.

A lease is a file that its holder creates exclusively, with host and process in it, and touches while it works. Whoever sees the
file unchanged for `silence` seconds by its own clock, or knows that the process has ended, takes the lease over; the clocks of
machines and of file servers need not agree. Nothing false can come of two holders, as results appear whole and are the same
whoever computes them; one that lost its lease (it was frozen, or cut off) finds out and leaves the task.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base import owner

SILENCE = "TWINS_LEASE_SILENCE"  # seconds; above the time that a network file system may show old attributes of files


def silence() -> float:
    """Seconds after which a lease that nobody touches is free: those of the variable, or 180. ValueError: the variable is no
    positive number."""
    text = os.environ.get(SILENCE, "180")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"expected {SILENCE} to be seconds above 0, got {text!r}; unset it for 180")
    return value


class Lost(Exception):
    """Another process has taken over what this one was at."""


class Lease:
    """One that this process holds; touched by a thread of its own, since a block of images can take minutes."""

    def __init__(self, path: Path, name: str, text: str, every: float) -> None:
        self.path, self.name, self.text, self.every = path, name, text, every
        self._ended, self._looked = threading.Event(), time.monotonic()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(self.every) and self.held():
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return

    def held(self) -> bool:
        """False once another process has taken it over."""
        try:
            return self.path.read_text() == self.text
        except (OSError, ValueError):
            return False

    def check(self) -> None:
        """Called between any two steps of the work; looks at the file every few seconds. Lost: another process has taken the task
        over."""
        if time.monotonic() - self._looked > self.every:
            self._looked = time.monotonic()
            if not self.held():
                raise Lost(f"{self.name} was taken over by {_holder(self.path) or 'another process'}")

    def release(self) -> None:
        """Free the task for others."""
        self._ended.set()
        if self.held():
            self.path.unlink(missing_ok=True)


class Leases:
    """The leases of one store, seen by one process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.silence = folder, silence()
        self._seen: dict[Path, tuple[tuple, float]] = {}  # file -> (what it was, when this process first saw it so)

    def take(self, name: str) -> Lease | None:
        """The lease on a task, or None while another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        if path.exists() and not (self._is_free(path) and self._remove(path)):
            return None
        text = json.dumps({"host": platform.node(), "process": os.getpid(), "owner": owner.me(), "lease": uuid.uuid4().hex})
        if not _create(path, text):  # another one was faster
            return None
        self._seen.pop(path, None)
        return Lease(path, name, text, self.silence / 6)

    def holder(self, name: str) -> str:
        """Host and process that hold a lease, empty if nobody does."""
        return _holder(self.folder / f"{name}.json")

    @contextmanager
    def hold(self, name: str, say: Callable[[str], object], poll: float = 0.2) -> Iterator[None]:
        """Wait for a lease, saying once for whom, and hold it inside."""
        said = False
        while (lease := self.take(name)) is None:
            if not said and (who := self.holder(name)):
                say(f"waiting for {who}, which is at {name}")
                said = True
            time.sleep(poll)
        try:
            yield
        finally:
            lease.release()

    def remove_forgotten(self) -> None:
        """Delete the leases of processes that have ended."""
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*.taking")):
            if owner.gone(_read(path).get("owner", "")):
                path.unlink(missing_ok=True) if path.suffix == ".taking" else self._remove(path)

    def _is_free(self, path: Path) -> bool:
        """Whether whoever made the file has ended, or fell silent."""
        try:
            now = path.read_text(), path.stat().st_mtime_ns
        except (OSError, ValueError):
            return not path.exists()
        seen, since = self._seen.get(path, (None, 0.0))
        if seen != now:
            self._seen[path] = now, (since := time.monotonic())
        return time.monotonic() - since > self.silence or owner.gone(_read(path).get("owner", ""))

    def _remove(self, path: Path) -> bool:
        """Delete a lease that is free; False if it is not any more. One process at a time, so that it is not a new one's."""
        taking = path.with_suffix(".taking")
        if not _create(taking, json.dumps({"owner": owner.me()})):
            if self._is_free(taking):
                taking.unlink(missing_ok=True)
            return False
        try:
            if free := self._is_free(path):
                path.unlink(missing_ok=True)
            return free
        finally:
            taking.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    """Make a file that is not there; False if it is."""
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # gone, or its process was killed before it wrote
        return {}
    return found if isinstance(found, dict) else {}


def _holder(path: Path) -> str:
    found = _read(path)
    return f"process {found.get('process', 'unknown')} on {found.get('host', 'an unknown host')}" if path.exists() else ""
