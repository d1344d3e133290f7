"""A study of one's own: its parameter files are written from a preset, read as strictly, and give runs, pages and effects."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.test_cli import MICRO, ROOT, call, micro  # noqa: F401 a fixture
from twinslib import __main__ as cli
from twinslib import sweep, workers
from twinslib.base import paths
from twinslib.claims.verdict import NOT_JUDGED
from twinslib.compute import cost
from twinslib.studies import own, plan, presets

README = (ROOT / "README.md").read_text().split("## Your own images, your own study")[1].split("\n## ")[0]


def from_small(folder: Path, text: str, number: str = "01") -> Path:
    """A study with one file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{number}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("preset", ["toy", "small", "paper"])
def test_new_study_asks_for_the_same(tmp_path: Path, preset: str) -> None:
    """Nothing edited, every notebook has the runs of its preset; each parameter has its comment, and the file its `from`."""
    files = own.write("mine", preset, [], tmp_path)
    for file, number in zip(files, presets.notebooks(), strict=True):
        (jobs, settings), (theirs, of_theirs) = (plan.plan(p, number) for p in (str(tmp_path / "mine"), preset))
        assert jobs(best=lambda *_, **__: None) == theirs(best=lambda *_, **__: None)
        assert settings == of_theirs | {"preset": str(file.parent)}
        lines = file.read_text().splitlines()
        assert file.name == f"{number}.yaml" and f"from: {preset}" in lines and max(map(len, lines)) < 150
        keys = [i for i, line in enumerate(lines) if re.match(r"[a-z]", line) and not line.startswith("from:")]
        assert len(keys) > 6 and all(lines[i - 1].startswith("# ") for i in keys)


@pytest.mark.parametrize(("arguments", "message"), [
    ("small --from toy 01", "another name for a study than those of the presets, got 'small'"),
    ("../mine --from toy 01", "letters, digits, - and _ in the name of a study, at most 64, got '../mine'"),
    ("mine --from /tmp 01", "preset to be one of"), ("mine --from smal 01", "did you mean 'small'?"),
    ("mine --from toy 99", "notebook to be one of 01, got '99'"),
    ("there --from toy 01", "expected no file there/01.yaml yet, got one"), ("mine", "required: --from"),
])
def test_study_new_refuses(micro: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
                           arguments: str, message: str) -> None:
    """A bad name, preset or notebook, and a file that is there: status 2, one line, nothing written."""
    monkeypatch.chdir(micro)
    from_small(micro / "there", "from: toy")
    before = sorted(micro.rglob("*"))
    assert call("study", "new", *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert sorted(micro.rglob("*")) == before and (micro / "there" / "01.yaml").read_text() == "from: toy"


@pytest.mark.parametrize(("text", "message"), [
    ("seeds: [0]", "a line such as from: small in mine/01.yaml"), ("from: mine", "preset after from in mine/01.yaml"),
    ("from: toy\npreset: small", "expected preset mine in mine/01.yaml"), ("from: toy\nseeds: 3", "list for seeds in mine/01"),
    ("from: toy\nattack: {eps: 8}", "(in attack); in mine/01.yaml"), ("from: medium", "params/medium/01.yaml, got no such file"),
])
def test_files_are_checked(micro: Path, capsys: pytest.CaptureFixture, text: str, message: str) -> None:  # noqa: F811
    """As those of presets are: status 2, one line that names the file, nothing computed, by sweep as by render."""
    folder = str(from_small(micro / "mine", text))
    for command in ("sweep", "render"):
        assert call(command, "--params", folder) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err
    assert not (paths.results_dir() / "mine").exists()


def test_folders_are_checked(micro: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    """No file, a name of a preset, a file of no notebook, a notebook without file, two things asked for at once."""
    good = str(from_small(micro / "mine", "from: toy"))
    (micro / "empty").mkdir()
    named, more = from_small(micro / "params" / "small", "from: toy"), from_small(micro / "more", "from: toy", "02")
    for arguments, message in (
            (["--params", str(micro / "empty")], "python -m twinslib study new empty"),
            (["--params", str(micro / "absent")], "expected parameter files such as 01.yaml in the folder"),
            (["--params", str(named)], "another name"), (["--params", str(more)], "more/02.yaml to be one of 01, got '02'"),
            (["--preset", "toy", "--params", good], "not allowed with"), (["--preset", "mine"], "preset to be one of")):
        for command in ("sweep", "render", "claims"):
            assert call(command, *arguments) == 2
            assert message in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert call("sweep", "--params", good, "--only", "02") == 2
    assert "notebook of study mine to be one of 01, got '02'" in capsys.readouterr().err


def test_sweep_of_a_study(micro: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The file's values over those of its preset, results in a folder of its name where --results says; workers are told."""
    (micro / "params" / "small" / "01.yaml").write_text("methods: [at, trades]\nseeds: [3, 4]")
    folder, results = from_small(micro / "mine", "from: small\nseeds: [5]"), micro / "elsewhere"
    (at, trades) = (job.spec for job in plan.plan(str(folder), "01")[0](best=None) if not job.ship)
    assert [(s.method.name, s.seed) for s in (at, trades)] == [("at", 5), ("trades", 5)]
    monkeypatch.setenv("TWINS_RESULTS", str(micro / "results"))
    monkeypatch.chdir(micro)
    assert call("sweep", "--params", "mine", "--results", "elsewhere") == 0
    rows = pd.read_csv(results / "mine" / "rows" / "transfer.csv")
    assert set(rows.preset) == {"mine"} and set(rows.seed) == {0, 5} and not (micro / "results").exists()
    capsys.readouterr()
    assert call("store", "check", "--params", "mine") == 0 and "all whole" in capsys.readouterr().out
    monkeypatch.setattr(workers, "start_local", lambda commands, folder: commands)
    args = cli.argparse.Namespace(preset=str(folder), only=None, claims=False, budget=None, slurm=None, workers=1, threads=1,
                                  device=None, compile=True)
    (command,) = sweep.start_workers(args, micro)
    assert presets.origins(str(folder)) == {"small"}  # by which --dry-run knows what is meant for GPUs
    assert command[3:6] == ["sweep", "--params", str(folder)] and "--compile" in command


def test_crossed_with_its_own_networks(tmp_path: Path) -> None:
    """Notebook 05 of a study certifies networks of the preset's notebook 01, or of its own by the study's name."""
    own.write("mine", "toy", ["01", "05"], tmp_path)
    folder = tmp_path / "mine"
    for number, changes in (("01", {"optim": {"epochs": 2, "lr": 0.07}}), ("05", {})):
        values = yaml.safe_load((folder / f"{number}.yaml").read_text()) | changes
        if number == "05":
            values["crossed"]["preset"] = "mine"
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(values))
    jobs = plan.plan(str(folder), "05")[0](best=lambda *_, **__: None)
    crossed = [job.spec.optim.epochs for job in jobs if dict(job.labels).get("pretraining") == "crossed" and not job.ship]
    assert crossed and set(crossed) == {2}


def test_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Every command of the section, in its order, on images and networks of toy's size."""
    monkeypatch.chdir(tmp_path)
    rng, data = np.random.default_rng(0), tmp_path / "twins_data"
    for part, name, i in np.ndindex(2, 2, 20):
        file = data / "flowers" / ("train", "test")[part] / "ab"[name] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(100 * name, 100 * name + 100, (16, 16, 3), dtype=np.uint8)).save(file)
    shell, edit = re.findall(r"```(?:bash|yaml)\n(.*?)```", README, re.DOTALL)[:2]
    monkeypatch.setattr(cost, "probed_rate", lambda spec, device: 1e10)
    commands = [shlex.split(line, comments=True) for line in shell.splitlines()]
    env = os.environ | {"TWINS_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in commands:
        words = [{"small": "toy", "64": "16"}.get(word, word) for word in words]
        if words[0] == "python":
            assert call(*words[3:]) == 0
        elif words[-1] == "--dry-run":  # which run_all.sh hands on
            assert call("sweep", *words[1:3], "--only", *words[3:]) == 0
        else:
            done = subprocess.run([ROOT / words[0], *words[1:]], env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        if words[3:4] == ["study"]:
            file = tmp_path / "mine" / "01.yaml"
            small = {k: MICRO[k] for k in ("sources", "baselines", "controls", "lambdas", "grids", "attack", "evaluations")}
            changed = yaml.safe_load(edit) | small | {"methods": ["at", "twins_at"], "optim": MICRO["optim"]}
            changed["targets"]["flowers"]["data"] |= {"image_size": 16, "val_images": 10}
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changed))
    results = tmp_path / "twins_results" / "mine"
    out = capsys.readouterr().out
    assert NOT_JUDGED in out and "./run_all.sh --params mine" in out
    page = (results / "tables" / "01.md").read_text()
    assert page.startswith("# Robustness transfer, preset mine\n") and NOT_JUDGED in page and "every file" not in page
    claim = json.loads((results / "claims.json").read_text())["C2"]
    assert claim["verdict"] == NOT_JUDGED and claim["detail"] and len(claim["runs"]) == 2
    for kind in ("html", "ipynb"):  # which say nothing of where the study lies
        assert str(tmp_path / "mine") not in (results / f"01_robustness_transfer.{kind}").read_text()
    assert sorted(p.name for p in (tmp_path / "twins_results").iterdir()) == ["mine"]


def test_start_networks_that_ship(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """What ships with a preset is not trained again by a study."""
    root = micro / "repository"
    monkeypatch.setattr(paths, "shipped_dir", lambda: root / "results")
    folder = from_small(micro / "mine", "from: toy\nseeds: [5]\nmethods: [at]")
    assert call("sweep", "--params", str(folder), "--results", str(root / "results")) == 0
    (root / "results" / "mine").rename(root / "results" / "toy")
    assert call("sweep", "--params", str(folder), "--results", str(micro / "new")) == 0
    ours, theirs = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                    for f in (micro / "new" / "mine", root / "results" / "toy"))
    (weights,) = (p for p in ours if p.suffix == ".safetensors" and p.parts[0] == "weights")
    copied = [p for p in theirs if p.name.startswith(weights.stem)]
    assert len(copied) == 4 and all(ours[p] == theirs[p] for p in copied)
    assert call("store", "check", "--params", str(folder)) == 0
    (tuned,) = (p for p in ours if p.parts[0] == "runs" and p.stem != weights.stem)
    assert call("export", tuned.stem, str(micro / "net.safetensors"), "--params", str(folder)) == 0
    assert (micro / "net.md").exists()
