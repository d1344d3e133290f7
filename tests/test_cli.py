"""The command line: bad calls get one message, a stopped sweep goes on, a finished one has nothing to do."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.notebooks_made import write_notebook
from twinslib import __main__ as cli
from twinslib import sweep
from twinslib.base import paths
from twinslib.compute import cost, queue, worker

ROOT = Path(__file__).parent.parent
ATTACK = {"eps": 0.1, "step_size": 0.05, "steps": 1}
MICRO = {  # the parameters of notebook 01, so small that a run takes a second
    "preset": "toy", "threads": 1, "compute": True, "arch": "tiny_resnet", "norm": "batch", "start": "robust",
    "sources": {"robust": {"data": {"name": "toy_source", "image_size": 16, "train_images": 40},
                           "optim": {"epochs": 1, "batch_size": 20}, "attack": ATTACK}},
    "targets": {"toy_source": {"data": {"image_size": 16, "train_images": 30, "val_images": 10}}},
    "methods": ["at", "twins_trades"], "baselines": [], "controls": [], "lambdas": [], "compared_on": ["toy_source"],
    "grids": {}, "seeds": [0, 1], "optim": {"epochs": 2, "batch_size": 10}, "attack": ATTACK,
    "source_evaluations": [{"kind": "clean", "images": 20}],
    "evaluations": [{"kind": "clean", "images": 20}, {"kind": "pgd", "images": 10, "eps": 0.1, "steps": 2}],
}


def call(*arguments: str) -> int:
    """Exit status of the command, in this process."""
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return end.code


def test_a_reader_that_is_gone_is_no_error() -> None:
    """As of `| head`: no message and no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        found = subprocess.run([sys.executable, "-m", "twinslib", "data", "list"], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE)
    assert (found.returncode, found.stderr) == (141, b"")


@pytest.fixture
def micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder with the parameters above, and no timing of the machine."""
    folder = tmp_path / "notebooks"
    (folder / "params" / "small").mkdir(parents=True)
    write_notebook(folder / "01_micro.ipynb", MICRO)
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    monkeypatch.setattr(cost, "probed_rate", lambda spec, device: 1e10)
    return folder


@pytest.mark.parametrize(("yaml", "message"), [
    ("targets: {cifar11: {}}\ncompared_on: []", "got 'cifar11'; did you mean 'cifar10'?"),
    ("targets: {cifar10: {}}\ncompared_on: []", "cifar10.npz in"), ("evaluations: [{kind: clean, images: 100000}]", "at most"),
    ("baselines: [joint_uot]", "source_classes of at most 10 for method 'joint_uot' (toy_source), got 20"),
])
def test_bad_presets(micro: Path, capsys: pytest.CaptureFixture, yaml: str, message: str) -> None:
    """Images that are not there: status 2, exactly one line, nothing computed."""
    (micro / "params" / "small" / "01.yaml").write_text(yaml)
    assert call("sweep", "--preset", "small") == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("error: expected ") and message in err and out == ""
    assert not (paths.results_dir() / "small" / "runs").exists()


def test_stopped_and_resumed(micro: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spent budget leaves a checkpoint and says what is left; calling again and again finishes; then all is done."""
    clock = itertools.count()  # a second from one look at the clock to the next: the budget ends after the first step
    monkeypatch.setattr(queue, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter,
                                                     process_time=time.process_time))
    store = paths.results_dir() / "toy"
    assert call("sweep", "--preset", "toy", "--budget", "0.1s") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("done: 0 tasks in 0.") and lines[0].endswith("failed: 0; left: 14")
    assert lines[1].startswith("left: train method at, seed 0, toy_source") and lines[-2] == "left: … and 9 more"
    assert lines[-1].startswith("left in all: about ") and lines[-1].endswith("call again to go on")
    assert list((store / "work").glob("*.ckpt")) and not list((store / "runs").glob("*"))

    left = [14]
    while left[-1]:
        assert call("sweep", "--preset", "toy", "--budget", "4s") == 0
        left.append(int(capsys.readouterr().out.splitlines()[0].split()[-1]))
    assert 3 < len(left) < 40 and left == sorted(left, reverse=True)
    assert not list((store / "work").glob("*.ckpt"))
    rows = pd.read_csv(store / "rows" / "transfer.csv")
    assert len(rows) == 9 and rows.seed.tolist() == sorted(rows.seed)
    assert pd.read_csv(store / "epochs" / "transfer.csv").groupby("run").size().tolist().count(2) == 4

    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and "work" not in p.parts}
    assert call("sweep", "--preset", "toy") == 0
    assert capsys.readouterr().out.startswith("done: 0 tasks in 0.0 min; failed: 0; left: 0")
    assert {p: p.read_bytes() for p in before} == before
    assert call("sweep", "--preset", "toy", "--dry-run") == 0
    *_, last_run, total = capsys.readouterr().out.splitlines()
    assert last_run.endswith("done") and total.startswith("5 runs, 0 of 14 tasks left, about 0.0 h (")


def test_dry_run(micro: Path, capsys: pytest.CaptureFixture) -> None:
    """--dry-run prints runs in order of seeds with hours and memory, computes nothing; a number counts once. Budgets are read."""
    assert [sweep.seconds(text) for text in ("90s", "9m", "1.5h", "0.1s", "0s")] == pytest.approx([90, 540, 5400, 0.1, 0])
    assert call("sweep", "--preset", "toy", "--only", "01", "01", "--dry-run", "--tflops", "0.02") == 0
    header, *runs, total = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in runs] == ["0", "0", "0", "1", "1"]
    assert runs[0].split()[1] == "at" and all(line.count(" h ") == 2 and line.endswith("GiB") for line in runs)
    assert total.startswith("5 runs, 14 of 14 tasks left, about ") and "given: 0.02 TFLOP/s" in total
    assert not list(paths.results_dir().rglob("*.*"))


TUNED = "grids: {at: {lr: [0.01, 0.02]}}\nbaselines: [l2sp]\nseeds: [0, 1]"  # l2sp takes the rate of at


def test_waiting_runs_are_told(micro: Path, capsys: pytest.CaptureFixture) -> None:
    """--dry-run marks the runs whose hyper-parameters are still to be chosen, and counts them as their stand-in."""
    (micro / "params" / "small" / "01.yaml").write_text(TUNED)
    assert call("sweep", "--preset", "small", "--dry-run", "--tflops", "0.02") == 0
    _, *lines, total = capsys.readouterr().out.splitlines()
    marked = {tuple(line.split()[i] for i in (1, 4)) for line in lines if line.endswith("to be tuned")}
    assert marked == {("at", "0"), ("at", "1"), ("l2sp", "0"), ("l2sp", "1")}
    # source 2 tasks, candidates 2, at 2 + 3 (the chosen one is trained by then), twins_trades and l2sp 6 each
    assert total.startswith("8 runs, 21 of 21 tasks left, about ") and len(lines) == 8
    assert not list(paths.results_dir().rglob("*.*"))
    assert call("sweep", "--preset", "small", "--budget", "0s") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("failed: 0; left: 10")  # source, two candidates, twins_trades with two seeds: what is known
    assert lines[-1] == "not counted: 4 runs whose hyper-parameters are still to be chosen"
    assert call("sweep", "--preset", "small") == 0
    out = capsys.readouterr().out
    assert out.startswith("done: 21 tasks") and out.splitlines()[0].endswith("left: 0") and "not counted" not in out
    store = paths.results_dir() / "small"
    rows = pd.read_csv(store / "rows" / "transfer.csv")
    assert len(rows) == 13 and not (store / "rows" / "tuning.csv").exists()
    tuning = pd.read_csv(store / "epochs" / "tuning.csv")
    assert tuning.groupby("run").size().tolist() == [2, 2] and set(tuning.method) == {"at"} and set(tuning.seed) == {0}
    assert set(tuning.run) & set(rows.run) and not set(tuning.run) <= set(rows.run)
    assert call("sweep", "--preset", "small", "--dry-run") == 0
    _, *lines, total = capsys.readouterr().out.splitlines()
    assert all(line.endswith("done") for line in lines) and ", 0 of 21 tasks left" in total


WILD = "optim: {epochs: 1, batch_size: 10, lr: 1.0e+38}\nseeds: [0]\nmethods: [at]"


@pytest.mark.parametrize(("yaml", "done", "gone", "said"), [
    (WILD, 2, 1, ["diverged: train method at, seed 0"]),
    (WILD + "\ngrids: {at: {lr: [1.0e+38, 0.01]}}", 5, 1, ["diverged, so not chosen: train method at, seed 0"]),
    (WILD + "\ngrids: {at: {lr: [1.0e+37, 1.0e+38]}}", 2, 2, [
        "diverged, so not chosen: train method at, seed 0", "not done, as every candidate for it diverged: train method at"]),
    ("sources: {robust: {data: {name: toy_source, image_size: 16, train_images: 40}, "
     "optim: {epochs: 1, batch_size: 10, lr: 1.0e+38}}}\n"
     "methods: [at]\nseeds: [0]", 0, 1, ["diverged: train method at, seed 0, toy_source",
                                        "not done, as its source diverged: train method at, seed 0"]),
], ids=["run", "candidate", "all candidates", "source"])
def test_divergence_is_no_failure(micro: Path, capsys: pytest.CaptureFixture, yaml: str, done: int, gone: int,
                                  said: list[str]) -> None:
    """Status 0; what diverged is named with why and what to delete, and what cannot be done for that."""
    (micro / "params" / "small" / "01.yaml").write_text(yaml)
    for tasks in (done, 0):
        assert call("sweep", "--preset", "small") == 0
        out = capsys.readouterr().out
        assert out.startswith(f"done: {tasks} tasks") and out.splitlines()[0].endswith(f"failed: 0; left: 0; diverged: {gone}")
        assert all(text in out for text in said) and "lower lr" in out and "not counted" not in out
        assert out.count("delete ") == gone and all(Path(line.split("delete ")[1][:-1]).exists()
                                                   for line in out.splitlines() if "delete " in line)
    assert call("sweep", "--preset", "small", "--dry-run") == 0
    assert "0 of " in (last := capsys.readouterr().out.splitlines()[-1]) and last.split(", ")[1].startswith("0 of")


def test_failures_give_status_1(micro: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that raises is named with its reason, those that stand on it are counted, the others are done: status 1."""
    real = worker.fit
    monkeypatch.setattr(worker, "fit", lambda spec, *rest, **options: real(spec, *rest, **options) if spec.method.name == "at"
                        else 1 / 0)
    assert call("sweep", "--preset", "toy") == 1
    out = capsys.readouterr().out
    assert "failed: 6; left: 0" in out and "failed: train method twins_trades, seed 0" in out
    assert "ZeroDivisionError" in out and "training or source run failed" in out and out.startswith("done: 8 tasks")


def test_signal_handlers_are_given_back(micro: Path) -> None:
    """Inside, a signal is noted; afterwards Ctrl-C does again what it did before, also after an error."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), sweep.stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]
        raise KeyError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_interrupt_ends_at_once(micro: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C says what it waits for; the second does not wait, and the command ends in one line, without a lease."""
    def interrupted(*args: object, **options: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(worker, "fit", interrupted)
    assert call("sweep", "--preset", "toy") == 130
    err = capfd.readouterr().err
    assert "Ctrl-C again ends at once" in err and err.endswith("error: interrupted; call again to go on\n")
    assert not list(paths.results_dir().glob("*/work/leases/*"))
