"""Versions agree: bounds in pyproject.toml, pins in requirements.lock, the conda file, and what is installed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(r) for r in PROJECT["dependencies"]]
EXTRAS = [Requirement(r) for r in PROJECT["optional-dependencies"]["test"]]
BOUNDS = {canonicalize_name(r.name): r for r in DEPENDENCIES + EXTRAS}
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LOCK_LINES)}


def no_gpu(name: str) -> bool:
    """Packages that only torch's GPU builds need are not pinned, so the lock works on any platform."""
    return not name.startswith(("nvidia-", "cuda-")) and name != "triton"


def test_lock_is_plain():
    """The lock holds name==version lines only: no addresses, options, local builds or parts for GPUs, nothing twice."""
    assert [line for line in LOCK_LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(LOCK) == len(LOCK_LINES) and all(map(no_gpu, LOCK))
    assert [name for name in BOUNDS if name not in LOCK or not BOUNDS[name].specifier.contains(LOCK[name])] == []


def test_lock_is_closed():
    """What a pinned package asks for is pinned too, to a version it accepts (read from what is installed)."""
    for name in LOCK:
        try:
            needs = [Requirement(r) for r in metadata.requires(name) or []] if metadata.version(name) == LOCK[name] else []
        except metadata.PackageNotFoundError:  # pinned for another Python
            needs = []
        for need in needs:
            other = canonicalize_name(need.name)
            if no_gpu(other) and (need.marker is None or need.marker.evaluate({"extra": ""})):
                assert other in LOCK and need.specifier.contains(LOCK[other]), f"{name} needs {need}"


def test_conda_file_uses_the_same_lock():
    """environment.yml takes Python and pip from conda-forge, and all else from the lock and this folder."""
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert env["channels"] == ["conda-forge", "nodefaults"]
    python, pip, rest = env["dependencies"]
    assert (pip, rest) == ("pip", {"pip": ["-r requirements.lock", "-e ."]})
    allowed = SpecifierSet(python.removeprefix("python "))
    assert [v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if v in allowed] == ["3.11", "3.12"]
    assert "3.11" in SpecifierSet(PROJECT["requires-python"]) and "3.10" not in SpecifierSet(PROJECT["requires-python"])


def test_imports_are_declared():
    """Every package that twinslib imports is a direct dependency: none is there only because another one needs it."""
    found = set()
    for file in (ROOT / "twinslib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    provided = metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in DEPENDENCIES}
    own = {"twinslib", *sys.stdlib_module_names}
    assert sorted(m for m in found - own if not declared & set(map(canonicalize_name, provided.get(m, [])))) == []


def test_whole_package_is_installed():
    """Each folder that holds code, and each file that is none, is listed for installation."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in (ROOT / "twinslib").rglob("*.py")}
    assert folders == set(find_packages(str(ROOT), **setuptools["packages"]["find"]))
    there = [p for p in (ROOT / "twinslib").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {p.name for p in there} >= {"claims.yaml", "reported.csv"}
    patterns = [f"twinslib/{pattern}" for pattern in setuptools["package-data"]["twinslib"]]
    assert [p.name for p in there if not any(map(p.match, patterns))] == []


@pytest.fixture
def checkout(tmp_path):
    """A copy of what setting up reads, and a function that sources it and returns the process."""
    for name in (".ci/setup.sh", ".ci/check_environment.py", "requirements.lock", "pyproject.toml"):
        copy = tmp_path / "checkout" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / name).read_text())

    def source(**env):
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | env
        command = ["bash", "-euc", 'source .ci/setup.sh; echo "python: $python"']
        return subprocess.run(command, cwd=tmp_path / "checkout", env=env, capture_output=True, text=True, timeout=60)

    return tmp_path / "checkout", source


def fake_pythons(folder: Path, script: str) -> str:
    """A PATH whose Python interpreters, by every name that setting up tries, are the shell script `script`."""
    folder.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.parametrize("changed", [False, True])
def test_setup_skips_what_is_done(checkout, changed):
    """A second call installs nothing; after a change of the lock it does (here it stops at the Python that is missing)."""
    folder, source = checkout
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    lock, project = ((folder / name).read_text() for name in ("requirements.lock", "pyproject.toml"))
    (folder / ".venv" / "twins-setup").write_text("another lock\n" if changed else f"{folder}\n{lock}{project}")
    done = source(PATH=fake_pythons(folder.parent / "bin", "exit 9"))
    if changed:
        assert done.returncode == 1
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, f"python: {folder}/.venv/bin/python\n", "")


@pytest.mark.parametrize(("script", "message"), [
    ("echo Python 3.8.20; exit 1", "expected Python 3.11 or newer, got Python 3.8.20; install it"),
    ('case "$*" in *version_info*) ;; *) exit 1 ;; esac', "without ensurepip; install python3-venv"),
    ('case "$*" in *venv\\ --clear*) exit 1 ;; -m*) exit 1 ;; esac', "could not create .venv"),
], ids=["old", "no ensurepip", "no venv"])
def test_setup_refuses_unusable_python(checkout, script, message):
    """A Python that is too old or cannot make an environment gets one clear line, and nothing is left behind."""
    folder, source = checkout
    done = source(PATH=fake_pythons(folder.parent / "bin", script))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize(("python", "message"), [
    ("no_such_python", "expected TWINS_PYTHON to be a Python interpreter, got 'no_such_python'"),
    (sys.executable, "expected twinslib installed from"),
], ids=["absent", "another checkout"])
def test_own_environment_is_checked(checkout, python, message):
    """TWINS_PYTHON must be an interpreter in which this checkout is installed; the message says what to do."""
    _, source = checkout
    done = source(TWINS_PYTHON=python, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert message in done.stderr
