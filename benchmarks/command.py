"""What the commands of all benchmarks share: options of the machine, their checks, and the file of results with provenance."""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from twinslib.base.files import atomic_write
from twinslib.compute import provenance

RESULTS = Path(__file__).parent / "results"


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, least: Mapping[str, int],
          threads: int = 2) -> argparse.Namespace:
    """Add --threads, --device and --out, parse, end with status 2 and the reason where an option of `least` is below its least
    value or the device is missing; PyTorch then uses that many threads."""
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, help="JSON file; default: named after the device, in benchmarks/results")
    args = parser.parse_args(arguments)
    for name, bound in {**least, "threads": 1}.items():
        if (value := getattr(args, name)) < bound:
            parser.error(f"expected --{name} of at least {bound}, got {value}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"expected a CUDA device for --device {args.device}, found none; use --device cpu")
    torch.set_num_threads(args.threads)
    return args


@contextmanager
def recorded(args: argparse.Namespace, folder: Path = RESULTS) -> Iterator[list[dict]]:
    """Gives an empty list; what the block puts there is written on leaving, with provenance, as one JSON file: that of --out, or
    <GPU>.json or <CPU>_<instruction set>_threads_<threads>.json in `folder`. Nothing is written if the block fails."""
    started, clock, load, results = provenance.now(), time.perf_counter(), os.getloadavg()[0], []
    yield results
    extra = {"machine": platform.machine(), "load_average": [round(v, 1) for v in (load, os.getloadavg()[0])]}
    record = provenance.record(started, time.perf_counter() - clock, args.device, **extra)
    text = json.dumps({"results": results, "provenance": record}, indent=1, allow_nan=False) + "\n"
    atomic_write(args.out or folder / _file_name(args.device, args.threads), lambda path: path.write_text(text))


def _file_name(device: str, threads: int) -> str:
    cuda = torch.device(device).type == "cuda"
    used = "_".join(name for name in provenance.instruction_set().values() if name != "none")
    name = torch.cuda.get_device_name(device) if cuda else f"{provenance.cpu_model()}_{used}_threads_{threads}"
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") + ".json"


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text
