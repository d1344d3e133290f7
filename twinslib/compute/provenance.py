"""What ran, where and with which versions. No host names, user names or paths."""

import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
from functools import cache
from pathlib import Path

import torch

from ..nets import arithmetic

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "papermill", "nbval", "safetensors",
            "pyautoattack", "POT", "scikit-learn", "mlxtend", "PyYAML")


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def version(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@cache
def commit() -> dict:
    """Commit of the working tree and whether it had changes, when this process first asks; 'unknown' where no repository has
    this file, as in the site-packages of an environment inside of another one."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return {"commit": git("rev-parse", "HEAD").strip(),
                "changed": bool(git("status", "--porcelain", "--", "../twinslib").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "changed": False}


@cache
def cpu_model() -> str:
    """The processor by name; "unknown" where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def instruction_set() -> dict[str, str]:
    """What torch's own kernels use on the CPU, and the bound that was set for oneDNN's, if any."""
    return {"torch": torch.backends.cpu.get_cpu_capability(), "onednn_at_most": arithmetic.onednn_bound() or "none"}


def machine(device: torch.device | str) -> dict[str, object]:
    """What decides how fast a device is, as `record` has it."""
    if torch.device(device).type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "cpu": cpu_model(), "instruction_set": instruction_set()}


def begin(device: torch.device | str) -> str:
    """The time in UTC at which a task begins. On a GPU the peak of memory that `record` will say is measured from here, not from
    the start of the process, which may have done other tasks."""
    if torch.device(device).type == "cuda" and torch.cuda.is_initialized():  # before, there is no peak to forget
        torch.cuda.reset_peak_memory_stats(device)
    return now()


def record(started: str, seconds: float, device: torch.device | str, **extra: object) -> dict:
    """One provenance entry: times, commit, versions, hardware, precision flags, `extra` (spec hash, weights hash, …)."""
    cuda = torch.device(device).type == "cuda"
    return {
        "started": started, "ended": now(), "seconds": round(seconds, 2), **commit(), "python": platform.python_version(),
        "versions": {p: version(p) for p in PACKAGES}, "cpu": cpu_model(), "instruction_set": instruction_set(),
        **machine(device), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "float32": arithmetic.state(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated(device) // 2**20 if cuda else 0, **extra,
    }
