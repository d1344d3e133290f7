"""Many workers on one store leave what one leaves, here and as jobs of Slurm; stopped they end cleanly."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compute.made import contents
from tests.notebooks_made import write_notebook
from tests.test_cli import MICRO, ROOT
from twinslib import workers
from twinslib.store.store import Store

SLURM = shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
slurm = pytest.mark.usefixtures("alone_in_slurm")
MANY = MICRO | {"optim": {"epochs": 6, "batch_size": 10}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a repository with one small notebook."""
    root = tmp_path_factory.mktemp("root")
    (root / "notebooks" / "params").mkdir(parents=True)
    write_notebook(root / "notebooks" / "01_micro.ipynb", MANY)
    return root


@pytest.fixture
def alone_in_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No other test has jobs in Slurm meanwhile, among which a test looks for its own."""
    if not SLURM:
        pytest.skip("needs a Slurm that answers, such as .ci/slurm.sh starts")
    with open(tmp_path_factory.getbasetemp().parent / "slurm.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def command(folder: Path, results: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of a sweep."""
    variables = {"TWINS_ROOT": str(folder), "TWINS_RESULTS": str(results), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "twinslib", "sweep", "--preset", "toy", *options], os.environ | variables


def sweep(folder: Path, results: Path, *options: str) -> tuple[subprocess.CompletedProcess, dict[str, object]]:
    """What a sweep says and what it leaves."""
    words, environment = command(folder, results, *options)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500, check=False)
    return done, contents(Store("toy", root=results / "toy"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What one worker leaves."""
    done, found = sweep(folder, tmp_path_factory.mktemp("one"))
    assert done.returncode == 0 and "failed: 0; left: 0" in done.stdout, done.stderr
    return found


def nothing_forgotten(results: Path) -> None:
    assert {p.suffix for p in (results / "toy" / "work").rglob("*") if p.is_file()} == {".safetensors"}


def test_two_workers(folder: Path, whole: dict, tmp_path: Path) -> None:
    """The same files as one worker leaves; a line for each task; nothing is done twice, nothing is left in the work folder."""
    done, found = sweep(folder, tmp_path, "--workers", "2")
    assert done.returncode == 0 and found == whole, done.stderr
    lines = [line for line in done.stderr.splitlines() if " done: " in line]
    assert len(lines) == len(set(lines)) == 14 and "2 workers" in done.stderr
    nothing_forgotten(tmp_path)


def test_two_sweeps_that_know_nothing_of_each_other(folder: Path, whole: dict, tmp_path: Path) -> None:
    """Begun at once on one store, both end well, and say for whom they wait if they do."""
    words, environment = command(folder, tmp_path)
    both = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=500)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and contents(Store("toy", root=tmp_path / "toy")) == whole
    trained = [line.split(" ", 1)[1] for text in said for line in text.splitlines() if line[8:].startswith(" train method")]
    assert len(trained) == len(set(trained)) == 5
    nothing_forgotten(tmp_path)


def test_stopped_workers_end_cleanly(folder: Path, whole: dict, tmp_path: Path) -> None:
    """A signal to the one who started them stops all, with what they did kept; the next call goes on to the same end."""
    words, environment = command(folder, tmp_path, "--workers", "2")
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("toy/work/*.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == workers.STOPPED and "call again to go on" in out
    assert not list(tmp_path.glob("toy/work/leases/*")) and not list(tmp_path.rglob("*.tmp"))
    done, found = sweep(folder, tmp_path)
    assert done.returncode == 0 and found == whole


def test_workers_end_with_the_one_who_follows_them(tmp_path: Path) -> None:
    """A second Ctrl-C ends even workers that are deaf to the first one."""
    deaf = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(0, flush=True); time.sleep(99)"]
    started, signals = [], iter([True])

    def start(folder: Path) -> list[workers.Local]:
        started.extend(workers.start_local([deaf], folder))
        while "0" not in started[0].said():
            time.sleep(0.05)
        return started

    with pytest.raises(StopIteration):
        workers.sweep(start, Store("toy", root=tmp_path), lambda best: [], stop=lambda: next(signals))
    assert started[0].status() == -signal.SIGKILL


@slurm
def test_jobs_of_slurm(folder: Path, whole: dict, tmp_path: Path) -> None:
    """Two jobs at a time leave the same files."""
    done, found = sweep(folder, tmp_path, "--workers", "2", "--slurm", "time=10", "cpus_per_task=1", "mem=1000")
    assert done.returncode == 0 and found == whole, done.stderr
    nothing_forgotten(tmp_path)


@slurm
def test_a_job_at_its_end_is_queued_again(folder: Path, whole: dict, tmp_path: Path) -> None:
    """The signal that Slurm sends before a job's time is up ends its sweep cleanly; queued again the job finishes it."""
    words, environment = command(folder, tmp_path, "--slurm", "time=10", "cpus_per_task=1", "mem=1000")
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("toy/work/*.ckpt")):
        time.sleep(0.05)
    job, = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    while "PD" not in subprocess.run(["squeue", "--noheader", "--format=%t"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.2)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # else Slurm waits for two minutes
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0 and contents(Store("toy", root=tmp_path / "toy")) == whole, said
    nothing_forgotten(tmp_path)


@slurm
def test_a_killed_job_is_made_up_for(folder: Path, whole: dict, tmp_path: Path) -> None:
    """Of two jobs one is killed in the middle of its work; the other one takes over and does everything."""
    words, environment = command(folder, tmp_path, "--workers", "2", "--slurm", "time=10", "cpus_per_task=1", "mem=1000")
    process = subprocess.Popen(words, env=environment | {"TWINS_LEASE_SILENCE": "3"}, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("toy/work/*.ckpt")):
        time.sleep(0.05)
    first, *_ = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%A"], capture_output=True, text=True,
                               check=True).stdout.split()
    subprocess.run(["scancel", "--signal=KILL", first], check=True)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0 and contents(Store("toy", root=tmp_path / "toy")) == whole, said


@slurm
def test_a_job_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled before it began, it has ended, also for a Slurm that keeps no accounts."""
    monkeypatch.setattr(workers, "LOOK", 0.1)
    (job,) = workers.start_slurm([["true"]], tmp_path, ["time=10", "additional_parameters={begin: now+1hour}"])
    time.sleep(0.2)
    assert not job.done()
    job.cancel()
    deadline = time.monotonic() + 60
    while not job.done() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert job.done() and job.status() == workers.LOST


@pytest.mark.parametrize(("options", "message"), [
    (["--workers", "0"], "expected --workers above 0, got 0"), (["--workers", "two"], "invalid int value: 'two'"),
    (["--slurm", "gpu"], "expected options of Slurm such as partition=gpu, got 'gpu'" if shutil.which("srun") else "got no srun"),
    *([(["--slurm", "partion=gpu"], "partion"),
       (["--slurm", "time=10:00:00"], "expected time in minutes, such as time=600, got")] if shutil.which("srun") else []),
])
def test_bad_options(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    """One line, status 2."""
    words, environment = command(folder, tmp_path, *options)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
