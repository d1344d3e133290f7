"""Which process wrote a temporary file or holds a task, and whether it still runs."""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path


@cache
def _here() -> str:
    """Names the processes that can be seen from here: by host, its last boot, and container."""
    known = [platform.node()]
    for look in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            known.append(look())
        except OSError:  # not Linux
            known.append("")
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _since(pid: int | str) -> str:
    """When a process began, in ticks of the system's clock; empty where it has ended or the system does not say."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else numbers[18]
    except (OSError, ValueError):
        return ""


def me() -> str:
    """This process: no other has this name, here or on another host."""
    return f"{_here()}-{os.getpid()}-{_since(os.getpid())}"


def gone(owner: str) -> bool:
    """True if a process is known to have ended: its name, as `me` gave it, is of this host, and it is not there any more.

    >>> gone(me())
    False
    """
    try:
        here, pid, since = owner.split("-")
    except ValueError:
        return False
    return here == _here() and since != "" and _since(pid) != since
