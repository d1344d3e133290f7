"""How the benchmarks take times: by two clocks, in turns, compared as ratios with an interval.

On a CPU there are two clocks: the wall, and processor time of this process, which other work on the machine hardly lengthens.
Read the second with one thread only: threads that wait for each other spend processor time as well.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Round = Mapping[str, Callable[[], object]]  # what each does in it, by name
Seconds = dict[str, dict[str, list[float]]]  # of each round, by clock and name


class Clocks:
    """Seconds since the last call, by clock; on a GPU once it has done all that was asked for."""

    def __init__(self, device: str) -> None:
        self.device = device
        cuda = torch.device(device).type == "cuda"
        self.read = {"wall": time.perf_counter} if cuda else {"wall": time.perf_counter, "processor": time.process_time}
        self()

    def __call__(self) -> dict[str, float]:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        now = {name: read() for name, read in self.read.items()}
        passed = {name: value - self.last[name] for name, value in now.items()} if hasattr(self, "last") else {}
        self.last = now
        return passed


def turns(rounds: Callable[[int], Round], device: str, repeats: int, warm: int = 2) -> Seconds:
    """Times of what takes turns; `rounds(count)` prepares a round. The order reverses from round to round, so that other work on
    the machine and its clock hit all alike; the first `warm` rounds are not kept."""
    clocks = Clocks(device)
    seconds: Seconds = {clock: {} for clock in clocks.read}
    for count in range(-warm, repeats):
        work = rounds(count)
        for name in reversed(work) if count % 2 else work:
            clocks()
            work[name]()
            for clock, passed in clocks().items():
                seconds[clock].setdefault(name, []).append(round(passed, 6))
    return {clock: {name: samples[warm:] for name, samples in found.items()} for clock, found in seconds.items()}


def ratio(slower: Sequence[float], faster: Sequence[float], of: Callable = np.median, draws: int = 4000) -> dict[str, float]:
    """Ratio of medians (or sums) as `estimate`, and its 95 % bootstrap interval, `low` to `high`; whole rounds are drawn, as both
    saw the same load in one."""
    pairs, n = np.array([slower, faster]), len(slower)
    a, b = of(pairs[:, np.random.default_rng(0).integers(n, size=(draws, n))], axis=2)
    low, high = np.quantile(a / b, (0.025, 0.975))
    return {"estimate": float(of(slower) / of(faster)), "low": float(low), "high": float(high)}


def interval(r: Mapping[str, float], digits: int = 2) -> str:
    """A ratio as tables show it: 1.30 (1.25 to 1.40)."""
    return "{estimate:.{n}f} ({low:.{n}f} to {high:.{n}f})".format(n=digits, **r)
