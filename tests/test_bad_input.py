"""Wrong parameter files, arguments, folders and notebooks: status 2, one line that says what was expected, nothing computed."""

import copy
import dataclasses
import io
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.notebooks_made import write_notebook
from twinslib import __main__ as cli
from twinslib import sweep
from twinslib.base import paths
from twinslib.base.files import write_json
from twinslib.specs.jobs import Job
from twinslib.specs.reading import canonical_json
from twinslib.store.store import Store
from twinslib.studies import plan, presets

ROOT = Path(__file__).parent.parent
TOY = {number: presets.parameters(path) for number, path in presets.notebooks().items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder with the parameters of ours, and room for those of preset small."""
    home = tmp_path / "notebooks"
    (home / "params" / "small").mkdir(parents=True)
    for number, values in TOY.items():
        write_notebook(home / f"{number}_x.ipynb", values)
    monkeypatch.setattr(paths, "notebooks_dir", lambda: home)
    return home


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line that a call ends with."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), (arguments, status, out, err)
    assert err.startswith("error: ") and len(err) < 2000
    assert not paths.results_dir().exists()
    return err


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Paths to all that is inside of a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(values: dict, path: tuple, new: object) -> dict:
    """A copy with `new` at that place, or with an unknown key in the mapping there."""
    values = copy.deepcopy(values)
    at = values
    for key in path[:-1]:
        at = at[key]
    if new == "unknown key":
        at[path[-1]]["zz"] = 1
    else:
        at[path[-1]] = new
    return values


WRONG = (-1, math.nan, [[1]], math.inf, {"zz": 1}, 10**30, True, "zzz", "unknown key", None)  # for nearly every place
FREE = ("name", "train_images", "start", "source_classes")  # where text or nothing is right, or wrong only for the data


@pytest.mark.parametrize("number", TOY)
def test_every_place(folder: Path, capsys: pytest.CaptureFixture, number: str) -> None:
    """Each place in the parameters of a notebook gets some of the wrong values in turn."""
    values = {key: value for key, value in TOY[number].items() if key not in presets.SETTINGS}
    tried = 0
    for i, path in enumerate(places(values)):
        here = values
        for key in path:
            here = here[key]
        for new in (WRONG[i % len(WRONG)], WRONG[(7 * i + 3) % len(WRONG)]):
            legal = (isinstance(here, bool) and new is True) or (path[-1] in FREE and new in ("zzz", None)) or (
                "source_classes" in path and new is None) or (new == "unknown key" and not isinstance(here, dict))
            if legal:
                continue
            (folder / "params" / "small" / f"{number}.yaml").write_text(yaml.safe_dump(
                {path[0]: changed(values, path, new)[path[0]]}, allow_unicode=True))
            line = refusal(capsys, "sweep", "--preset", "small", "--only", number, "--dry-run")
            assert line.startswith("error: expected ") and f"params/small/{number}.yaml" in line, (path, new, line)
            assert any(str(key).rstrip("s") in line for key in path if isinstance(key, str)), (path, new, line)
            tried += 1
    assert tried > 60


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(("number", "text", "message"), [
    # no YAML, or not what it seems
    ("01", "seeds: [0", "YAML in params/small/01.yaml, got while parsing"), ("01", "- seeds", "a mapping of parameters"),
    ("01", "\x00", "YAML in params/small/01.yaml"), ("01", "seeds: !!python/object/apply:os.getcwd []", "YAML in"),
    ("01", "seeds: 2026-13-45", "YAML in params/small/01.yaml, got month"), ("01", "seeds: !!int ''", "YAML in"),
    ("01", "? [a]\n: 1", "YAML in params/small/01.yaml"), ("01", "1: 2", "key of params/small/01.yaml"),
    ("01", "seeds: " + "[" * 3000, "too deep in each other"), ("01", "x" * 300_000, "at most 50,000 bytes"),
    ("01", LAUGHS, "more than 50,000 values once aliases"), ("01", "seeds: &a [*a]", "more than 50,000 values"),
    ("01", f"arch: {'x' * 40_000}", "characters)"), ("01", "arch: \"\\e[31m\\nred\"", "expected arch to be one of"),
    ("01", f"lambdas: [0x{'f' * 20_000}]", "an integer of thousands of digits"),
    # keys
    ("01", "arch: resnet18\n\narch: resnet18", "the key 'arch' twice, in line 1 and in line 3"),
    ("01", "optim: {lr: 0.1, lr: 0.2}", "the key 'lr' twice, in line 1"),
    ("04", "targets: {1: {}}", "text as key of targets in params/small/04.yaml, got 1"),
    ("01", "preset: medium", "preset small in params/small/01.yaml, as its folder says, got 'medium'; leave it out"),
    ("06", "mian: {}", "did you mean 'main'?"), ("01", "best: x", "key of params/small/01.yaml"),
    # settings
    *(("02", f"threads: {n}", "threads") for n in ("99999", "-1", "two", "null")), ("02", "compute: 1", "bool for compute"),
    # lists that hold nothing, or nothing sensible
    *((number, *bad) for number in TOY for bad in (
        ("seeds: []", "at least one entry in seeds"), ("seeds: [-1]", "seeds of at least 0"),
        ("seeds: [0, 0]", "seeds without repeats"), ("targets: {}", "at least one entry in targets"))),
    *((number, text, "without repeats") for number, text in (
        ("04", "norms: [group, group]"), ("06", "lrs: [0.1, 0.1]"), ("06", "fractions: {images: [60, 60], runs: [aft]}"),
        ("06", "widths: {widths: [8, 8], runs: [aft]}"), ("01", "grids: {at: {lr: [0.1, 0.1]}}"),
        ("05", "certifications: [{images: 9, n: 128, sigmas: [0.5, 0.5]}]"))),
    ("05", "certifications: [{images: 9, n: 128, sigmas: []}]", "at least one entry in certifications.sigmas"),
    ("05", "certifications: [{images: 9, n: 128}]", "sigmas, a list of noise levels, in certifications"),
    ("05", "crossed: {preset: toy}", "notebook, methods, targets, seeds, certifications in crossed"),
    ("06", "evaluations: [{kind: clean, images: 9, at: []}]", "at least one entry in at of an evaluation"),
    ("06", "fractions: {images: [60], runs: []}", "images and runs of fractions, both or neither empty"),
    ("02", "steps: {methods: [at, twins_at], rates: [], epochs: {toy_target: 1}, longer: 2, seeds: [0], evaluations: []}",
     "at least one entry in steps.rates"),
    # what is needed
    ("01", "evaluations: [{kind: clean}]", "images in evaluations, got only kind"),
    ("02", "steps: {}", "methods, rates, epochs, longer, seeds, evaluations in steps, got only nothing"),
    ("06", "main: {aft_twins: {}}", "run whose learning rate is chosen to be one of aft_twins, got 'aft'"),
    ("04", "pretraining: {clean: {}, mixed: {sigmas: [9]}, noise0.5: {sigmas: [0.5]}}", "sigmas in 0 to 5"),
    ("03", "start: natural", "start to be one of robust"),
    # numbers
    ("01", "attack: {eps: 8}", "write 8/255 (in attack); in params"), ("06", "lrs: [0.1, 0]", "lrs above 0"),
    ("01", "optim: {epochs: 10000000}", "epochs of at most"), ("04", "arch: torchvison/resnet18", "arch to be one of"),
    ("01", "optim: {val_every: 0}", "val_every above 0 where the best of several runs is chosen"),
    ("06", "widths: {widths: [1000000], runs: [aft]}", "width of at least 1 and at most"),
])
def test_files(folder: Path, capsys: pytest.CaptureFixture, number: str, text: str, message: str) -> None:
    """What is wrong with a file is said in one line, before torch or data are needed."""
    (folder / "params" / "small" / f"{number}.yaml").write_text(text)
    line = refusal(capsys, "sweep", "--preset", "small", "--only", number, "--dry-run")
    assert line.startswith("error: expected ") and message in line and f"params/small/{number}.yaml" in line


def test_file_of_bytes(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """What a study refuses is no matter of a failed notebook; a file that is no UTF-8, and a folder in its place."""
    (folder / "params" / "small" / "06.yaml").write_text("widths: {widths: [0], runs: [aft]}")
    assert "width of at least 1" in refusal(capsys, "render", "--preset", "small", "06")
    file = folder / "params" / "small" / "01.yaml"
    file.write_bytes(b"arch: \xff\xfe")
    assert "YAML in params/small/01.yaml, got 'utf-8' codec" in refusal(capsys, "sweep", "--preset", "small", "--only", "01")
    file.unlink()
    file.mkdir()
    assert "01.yaml, got no such file" in refusal(capsys, "sweep", "--preset", "small", "--only", "01")


SWEEP, CLAIMS = ("sweep", "--preset", "toy"), ("claims", "--preset", "small")


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "arguments are required: command"), (("swep",), "invalid choice: 'swep'"), (("sweep",), "--preset --params is required"),
    (("sweep", "--preset"), "expected one argument"), (("sweep", "--pre", "toy"), "--preset --params is required"),
    (("sweep", "--preset", ""), "preset to be one of toy"), (("sweep", "--preset", "../toy"), "preset to be one of toy"),
    ((*SWEEP, "01"), "unrecognized arguments: 01"), ((*SWEEP, "--only", "x\ny"), "notebook to be one of 01"),
    *(((*SWEEP, "--threads", n), "--threads") for n in ("0", "-1", "1.5", "99999", "many", "")),
    *(((*SWEEP, "--tflops", n), "--tflops") for n in ("0", "-1", "nan", "inf", "fast")),
    *(((*SWEEP, "--budget", n), "a duration such as 90s, 9m or 1.5h") for n in ("1d", "9", "1e3s", "inf", "9 m", "m")),
    *(((*SWEEP, "--device", n), "cpu or a CUDA device that is there") for n in ("tpu", "cuda:99", "", "cpu:x", "meta")),
    (("claims",), "expected --preset, got none"), (("claims", "--preset", "smal"), "did you mean 'small'?"),
    ((*CLAIMS, "C99"), "claim to be one of"), ((*CLAIMS, "--repeats", "0"), "--repeats above 0"),
    ((*CLAIMS, "--into", "/no/such.md"), "Markdown file in --into"), ((*CLAIMS, "--into", "/"), "Markdown file in --into"),
    (("render",), "--preset --params is required"), (("render", "--preset", "smal"), "did you mean 'small'?"),
    (("render", "--preset", "small"), "got no such file"), (("data",), "required: verb"),
    (("render", "--preset", "small", "--update"), "preset toy with --update"),
    (("data", "explain", "cifar11"), "did you mean 'cifar10'?"),
    (("data", "check", "../x"), "the bare name of an image set"), (("data", "build", "toy_source"), "it is embedded"),
    (("data", "build", "cifar10", "--size", "0"), "size in 8..1024"), (("data", "build", "x", "--size", "big"), "--size"),
])
def test_arguments(folder: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str) -> None:
    """What is wrong with a call is said in one line."""
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(("text", "message"), [
    ("{}", "a notebook with cells"), ("", "a notebook with cells"), ("[1]", "a notebook with cells"),
    ('{"cells": 3}', "a notebook with cells"),
    ('{"cells": []}', "exactly one cell tagged parameters in 01_x.ipynb, got 0"), ('{"cells": [{}]}', "a notebook with cells"),
    *((json.dumps({"cells": [{"metadata": {"tags": ["parameters"]}, "source": source}]}), message) for source, message in (
        ("a: int = (", "Python in the parameters of 01_x.ipynb, got '(' was never closed in line 1"),
        ("a = 1", "annotated literals"),
        ("a: int = open('x')", "a literal for a in the parameters of 01_x.ipynb"), ("a: list = " + "[" * 5000, "Python in the"),
        ("a: int = 1\na: int = 2", "each parameter of 01_x.ipynb once, got a twice"), ("a: int = 1\x00", "Python in the"),
        ("preset: str = 'toy'\nsomething: int = 1", "parameter to be one of arch"), ("threads: int = 1", "arch, norm, sources"))),
])
def test_notebooks(folder: Path, capsys: pytest.CaptureFixture, text: str, message: str) -> None:
    """A damaged notebook, or one whose parameters are no literals, is refused without being run."""
    (folder / "01_x.ipynb").write_text(text)
    line = refusal(capsys, "sweep", "--preset", "toy", "--only", "01")
    assert line.startswith("error: expected ") and message in line and "01_x.ipynb" in line


@pytest.mark.parametrize("value", ["~nouser/x", __file__])
@pytest.mark.parametrize("variable", ["TWINS_DATA", "TWINS_RESULTS", "TWINS_ROOT"])
def test_no_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, variable: str, value: str) -> None:
    """The home folder of an unknown user, and a file."""
    monkeypatch.setenv(variable, value)
    arguments = ["data", "list"] if variable == "TWINS_DATA" else ["sweep", "--preset", "toy", "--only", "01", "--dry-run"]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"expected a folder in {variable}, got '{value}'" in err


def test_relative_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A relative folder is that of the command, also for what it starts elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINS_DATA", "images")
    assert cli.main(["data", "list"]) == 0 and str(tmp_path / "images") in capsys.readouterr().out
    monkeypatch.chdir("/")
    assert paths.data_dir() == tmp_path / "images"


def test_array_that_claims_too_much(capsys: pytest.CaptureFixture) -> None:
    """A packed set whose header names 30 terabytes, plain or packed, is refused before memory is taken for it."""
    path = paths.data_dir() / "huge.npz"
    path.parent.mkdir(parents=True)
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", how) as archive:
            for key, shape, kind in (("train_images", (10**10, 32, 32, 3), "|u1"), ("train_labels", (9,), "<i8"),
                                     ("test_images", (9, 32, 32, 3), "|u1"), ("test_labels", (9,), "<i8"),
                                     ("class_names", (2,), "<U1")):
                head = io.BytesIO()
                np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
                archive.writestr(f"{key}.npy", head.getvalue() + bytes(100_000))
        assert "train_images.npy of shape (10000000000, 32, 32, 3)" in refusal(capsys, "data", "check", "huge")


@pytest.mark.parametrize("number", TOY)
@pytest.mark.parametrize("seeds", [[1, 0], [5, 2]])
def test_order_of_seeds(number: str, seeds: list[int]) -> None:
    """Whatever the order of the seeds, no run is taken before the network that it starts from."""
    values = {k: v for k, v in TOY[number].items() if k not in presets.SETTINGS} | {"seeds": seeds}
    if number == "05":
        values["crossed"] = {}
    tasks = Store("toy").missing(plan.STUDIES[number](**values, best=lambda candidates, **_: candidates[0]))
    place = {task.spec: i for i, task in reversed(list(enumerate(tasks)))}
    assert all(task.spec.source is None or place[task.spec.source] < place[task.spec] for task in tasks)
    assert {task.spec.seed for task in tasks} >= set(seeds)


def test_what_is_not_chosen_from_is_not_called_so() -> None:
    """A run of an earlier plan that diverged is not told; one that is shown diverged, and only a candidate is not chosen."""
    store, (job, *_) = Store("toy"), plan.plan("toy", "03")[0](best=lambda *_, **__: None)
    other = dataclasses.replace(job.spec, seed=7)
    for spec in (job.spec, other):
        write_json(store.diverged_path(spec), {"spec": json.loads(canonical_json(spec)), "diverged": "nan", "epochs": []})
    (line,), stuck = sweep.diverged(store, [job, Job(job.study, other, (), settled=False)])
    assert line.startswith("diverged: train method at, seed 0") and not stuck
    (line,), _ = sweep.diverged(store, [Job("tuning", other, ())])
    assert line.startswith("diverged, so not chosen: train method at, seed 7")


def run(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *([] if not code else ["-c", code]), *arguments], capture_output=True, text=True,
                          timeout=300, **options)


def test_quickly_and_without_torch(folder: Path, tmp_path: Path) -> None:
    """Wrong files and arguments are answered within two seconds of the import, in a process that never loads torch."""
    for number, text in (("01", LAUGHS), ("06", "widths: {widths: [0], runs: [aft]}"), ("05", "seeds: [-1]")):
        (folder / "params" / "small" / f"{number}.yaml").write_text(text)
    (tmp_path / "pyproject.toml").touch()
    code = ("import sys, time\nfrom twinslib import __main__ as cli\n"
            "for arguments in (['--only', '01'], ['--only', '06'], ['--only', '05'], ['--threads', '99999'], ['--only', '7']):\n"
            "    start = time.monotonic()\n    status = cli.main(['sweep', '--preset', 'small', *arguments])\n"
            "    print(status, time.monotonic() - start < 2, 'torch' in sys.modules)")
    done = run(code, env={"PATH": "", "PYTHONPATH": str(ROOT), "TWINS_ROOT": str(tmp_path), "HOME": str(tmp_path)})
    assert done.stdout.splitlines() == ["2 True False"] * 5 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 5


def test_outside_of_the_repository(tmp_path: Path) -> None:
    """In the site-packages of another repository it says where results are looked for, and takes no commit of that one."""
    site = tmp_path / "other" / "site-packages"
    site.mkdir(parents=True)
    subprocess.run(["cp", "-r", ROOT / "twinslib", site], check=True)
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path / "other", check=True)
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    for arguments in (["sweep", "--preset", "toy", "--dry-run"], ["claims", "--preset", "small"]):
        done = run("", "-m", "twinslib", *arguments, cwd=tmp_path, env=env)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
        assert f"notebooks NN_name.ipynb in {tmp_path}/notebooks, got none" in done.stderr
        assert "TWINS_ROOT" in done.stderr and f"results are looked for in {tmp_path}/results" in done.stderr
    done = run("from twinslib.compute import provenance; print(provenance.commit()['commit'])", cwd=tmp_path, env=env)
    assert done.stdout == "unknown\n"
