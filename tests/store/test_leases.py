"""Who may do what: one holder at a time, and nobody waits for the dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from twinslib.base import owner
from twinslib.store import leases
from twinslib.store.leases import SILENCE, Leases, Lost

HOLD = """
import sys, time
from pathlib import Path
from twinslib.store.leases import Leases
lease = Leases(Path(sys.argv[1])).take("task")
print(lease is not None, flush=True)
time.sleep(60)
"""


def holder(folder: Path, **environment: str) -> subprocess.Popen:
    """A process that holds the lease on "task"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment)
    assert process.stdout.readline() == "True\n"
    return process


def test_one_holder(tmp_path: Path) -> None:
    """While one holds a task nobody else gets it; others do not mind; released it is free, and no file is left."""
    mine, others = Leases(tmp_path), Leases(tmp_path)
    lease = mine.take("task")
    assert lease.held() and others.take("task") is None and others.holder("task").startswith(f"process {os.getpid()} on ")
    other = others.take("other")
    for each in (lease, other):
        each.check()
        each.release()
    assert others.holder("task") == "" and not list(tmp_path.iterdir())
    again = others.take("task")
    assert again.held() and not lease.held()
    again.release()


def test_the_dead_hold_nothing(tmp_path: Path) -> None:
    """The lease of a killed process of this host is free at once; one that only lives is not."""
    process = holder(tmp_path)
    assert Leases(tmp_path).take("task") is None
    Leases(tmp_path).remove_forgotten()
    assert Leases(tmp_path).holder("task").startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    lease = Leases(tmp_path).take("task")
    assert lease.held()
    lease.release()
    assert owner.gone(owner.me()) is False and owner.gone("another-host") is False
    assert not owner.gone(f"{'0' * 8}-1-1")  # of another host nothing is known


def test_the_silent_are_relieved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen holder loses its lease after the silence, not before, to exactly one of several; going on it finds out."""
    monkeypatch.setenv(SILENCE, "0.6")
    process = holder(tmp_path, **{SILENCE: "0.6"})
    waiting = [Leases(tmp_path) for _ in range(4)]
    end = time.monotonic() + 1.5
    while time.monotonic() < end:  # it touches its lease
        assert all(w.take("task") is None for w in waiting)
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    began, taken = time.monotonic(), []

    def take(mine: Leases) -> None:
        while time.monotonic() - began < 3:
            if lease := mine.take("task"):
                taken.append((lease, time.monotonic() - began))
            time.sleep(0.01)

    threads = [threading.Thread(target=take, args=(w,)) for w in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease, after), = taken
    assert 0.4 < after < 2.5 and lease.held()
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert lease.held()
    process.kill()
    process.wait()
    lease.release()


def test_a_lost_lease_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps the holder looks, and hears who has it now; it never takes away what is another's."""
    monkeypatch.setenv(SILENCE, "0.06")
    lease = Leases(tmp_path).take("task")
    lease.path.write_text('{"process": 7, "host": "there"}')
    time.sleep(0.05)
    with pytest.raises(Lost, match="task was taken over by process 7 on there"):
        lease.check()
    lease.release()
    assert lease.path.exists()


def test_waiting(tmp_path: Path) -> None:
    """Waiting says once for whom, and ends when the other one does."""
    lease, said = Leases(tmp_path).take("render"), []
    threading.Timer(0.5, lease.release).start()
    with Leases(tmp_path).hold("render", said.append, poll=0.05):
        assert Leases(tmp_path).holder("render")
    assert len(said) == 1 and said[0] == f"waiting for process {os.getpid()} on {leases.platform.node()}, which is at render"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_bad_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Only seconds above 0."""
    monkeypatch.setenv(SILENCE, text)
    with pytest.raises(ValueError, match=f"{SILENCE} to be seconds above 0, got '{text}'"):
        Leases(tmp_path)
