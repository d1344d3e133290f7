"""What a sweep will cost: runs, hours and memory, from counted multiply-adds (`forwards`) and measured speed."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import cache

import torch

from ..data import packed as data_packed
from ..data import sets
from ..data.sources import SOURCES
from ..nets import arithmetic, models
from ..specs.choices import ARCHS
from ..specs.jobs import Job, Task, tasks_of
from ..specs.labels import NOT_RUN
from ..specs.run import DataSpec, ModelSpec, RunSpec
from ..studies import presets
from ..studies.passes import forwards
from . import provenance
from .worker import Worker

FOR_GPUS = ("medium", "paper")  # presets
GPUS = {  # peak FLOP/s of the SXM cards without sparsity, from NVIDIA's data sheets
    "A100": {"float32": 19.5e12, "bfloat16": 312e12},
    "H100": {"float32": 67e12, "bfloat16": 989e12},
}
SHARES = {"bfloat16": 0.2, "float32": 0.6}  # of its peak that a GPU sustains on residual networks: an assumption
ASSUMED = "assumed, not measured: " + ", ".join(
    f"{share:.0%} of {' and '.join(f'{peak[p] / 1e12:g}' for peak in GPUS.values())} TFLOP/s in {p}"
    for p, share in SHARES.items())


@cache
def _cost(arch: str, norm: str, upsample: int | None, width: int | None, image_size: int) -> tuple[int, int, int, int]:
    """Of a network with one class; and how many features go into its head."""
    with torch.device("meta" if arch in ARCHS else "cpu"), torch.random.fork_rng(devices=[]):  # others may need values
        model = models.Classifier(models.build(arch, 1, norm, width), upsample=upsample)
    features = [m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    with models.named(arch, image_size):
        return *models.count_cost(model, image_size), features[-1] if features else 0


def network(model: ModelSpec, classes: int) -> torch.nn.Module:
    """One with that architecture."""
    return models.make_model(model.arch, classes, norm=model.norm, upsample=model.upsample, width=model.width, seed=0)


def cost(spec: RunSpec) -> tuple[int, int, int]:
    """(multiply-adds per image and forward, parameters, bytes of activations per image) of a run's network."""
    m, others = spec.model, train_images(spec.data)[1] - 1  # each class more is a row of the head
    macs, parameters, activations, features = _cost(m.arch, m.norm, m.upsample, m.width, spec.data.crop or spec.data.image_size)
    return macs + others * features, parameters + others * (features + 1), activations + 4 * others


@cache
def train_images(spec: DataSpec) -> tuple[int, int]:
    """(training images, classes) of a run, from the packed set where it is there, else from the list of known sets."""
    try:
        packed = data_packed.load_labels(spec.name)
    except FileNotFoundError:
        if spec.name not in SOURCES:
            raise
        known = SOURCES[spec.name]
        classes = known.num_classes - len(spec.exclude)
        return spec.train_images or known.train_images * classes // known.num_classes - spec.val_images, classes
    split = sets.make_split(packed, exclude=spec.exclude, train_images=spec.train_images, val_images=spec.val_images,
                            seed=spec.split_seed)
    return len(split.train), len(split.class_ids)


def macs(task: Task) -> float:
    """Multiply-adds of a task."""
    spec = task.spec
    return forwards(task, train_images(spec.data)[0]) * cost(spec)[0]


def memory_bytes(spec: RunSpec, device: torch.device | str | None) -> int:
    """Estimate of device memory: images, weights with gradient, momentum and attack copy, activations of one batch; None: of a
    device that has every precision."""
    images, (_, parameters, activations) = train_images(spec.data)[0], cost(spec)
    asked = spec.optim.precision
    width = arithmetic.dtype(asked if device is None else arithmetic.chosen(asked, device)).itemsize
    stored = 3 * spec.data.image_size**2 * (images + spec.data.val_images)
    batch = spec.optim.batch_size * (2 if spec.method.source_weight else 1)
    return int(stored + 4 * 4 * parameters + activations / 4 * width * batch)


def done_here(worker: Worker, tasks: Sequence[Task]) -> list[tuple[Task, dict]]:
    """Those of `tasks` that a device of this kind has finished, a CPU with the same instruction set, each with its provenance."""
    here = provenance.machine(worker.device)
    entries = ((task, worker.store.provenance(task)) for task in tasks)
    return [(task, entry) for task, entry in entries if entry and all(entry.get(k) == v for k, v in here.items())]


def _alone(entry: dict) -> float:
    """Seconds of a finished task if nothing had run beside it: with one thread of a CPU its processor time, which other work
    hardly lengthens; else those on the clock."""
    one = entry["device"] == "cpu" and entry.get("threads") == 1
    return min(entry["seconds"], entry.get("processor_seconds", float("inf"))) if one else entry["seconds"]


def measured_rate(worker: Worker, tasks: Sequence[Task]) -> float | None:
    """Multiply-adds per second of what this store has already computed on a device of this kind, or None."""
    found = done_here(worker, tasks)
    spent = sum(_alone(entry) for _, entry in found)
    return sum(macs(task) for task, _ in found) / spent if spent > 5 else None


def probed_rate(spec: RunSpec, device: torch.device, seconds: float = 2.0) -> float:
    """Multiply-adds per second of forward and backward passes of the run's network on `device`, over `seconds`."""
    size = spec.data.crop or spec.data.image_size
    model = network(spec.model, train_images(spec.data)[1]).to(device)
    per_image = cost(spec)[0]
    batch = 64 if size <= 64 and not spec.model.upsample else 4
    x = torch.rand(batch, 3, size, size, device=device)
    start, images = None, 0
    while start is None or time.perf_counter() - start < seconds:
        with torch.autocast(device.type, torch.bfloat16, enabled=arithmetic.chosen(spec.optim.precision, device) == "bfloat16"):
            model(x).float().square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if start is None:
            start = time.perf_counter()  # the first pass warms up
        else:
            images += batch
    return 3 * per_image * images / (time.perf_counter() - start)


def elsewhere(worker: Worker) -> bool:
    """True where a preset that is meant for GPUs, or a study that comes from one, is asked about on a CPU."""
    return worker.device.type == "cpu" and not presets.origins(worker.store.given).isdisjoint(FOR_GPUS)


def seconds_on(gpu: str, task: Task, work: float) -> float:
    """Seconds of a task of so many multiply-adds on one of `GPUS`, if it sustains `SHARES` of its peaks: training and
    certification in the precision that they ask for, accuracy in float32."""
    asked = task.spec.optim if task.evaluation is None else task.evaluation
    precision = getattr(asked, "precision", "float32")
    return 2 * work / (SHARES[precision] * GPUS[gpu][precision])


def rate(worker: Worker, tasks: Sequence[Task]) -> tuple[float, str]:
    """(multiply-adds per second, where the number comes from): those of `tasks` that are done here; else, where the preset is
    meant for another machine, what the first of `GPUS` is assumed to do; else a probe."""
    found = measured_rate(worker, tasks)
    if found:
        return found, "measured on runs of this store that such a machine has finished"
    if elsewhere(worker):
        gpu, work = next(iter(GPUS)), {task: macs(task) for task in tasks}
        return sum(work.values()) / sum(seconds_on(gpu, *item) for item in work.items()), f"on one {gpu}, {ASSUMED}"
    return probed_rate(tasks[-1].spec, worker.device), f"probed for two seconds on this {worker.device.type}"


def hours(spent: Mapping[Task, float], jobs: Sequence[Job], workers: int = 1) -> float:
    """Hours that so many workers need for tasks of `jobs` that take so many seconds: their share of the work each, but no less
    than the longest chain of a run's candidates, its source, its own training and one measurement."""
    measured: dict[RunSpec, float] = {}
    for task, taken in spent.items():
        if task.evaluation is not None:
            measured[task.spec] = max(taken, measured.get(task.spec, 0.0))

    def chain(spec: RunSpec | None) -> float:
        return spent.get(Task(spec), 0.0) + chain(spec.source) if spec else 0.0

    longest = max((max(map(chain, job.candidates), default=0.0) + chain(job.spec) + measured.get(job.spec, 0.0) for job in jobs),
                  default=0.0)
    return max(sum(spent.values()) / workers, longest if workers > 1 else 0.0) / 3600


def remaining_hours(worker: Worker, left: Sequence[Task], jobs: Sequence[Job]) -> tuple[float, str]:
    """(estimated hours for the tasks `left` of `jobs`, of what: see `rate`)."""
    speed, origin = rate(worker, tasks_of(jobs))
    return hours({task: macs(task) / speed for task in left}, jobs, 1), origin


def describe(worker: Worker, jobs: Sequence[Job], flops: float | None = None, workers: int = 1) -> str:
    """The plan as text: each run with its tasks left, their number, estimated hours and memory. A preset that is meant for GPUs
    is, on a CPU, estimated for those of `GPUS`, with the runs that cost most.

    Args:
        flops: that a device sustains, in place of what is measured or assumed.
        workers: devices that share the work.
    """
    store, away = worker.store, elsewhere(worker) and not flops
    jobs = [job for job in jobs if job.settled or job.waits and store.absent(job) == NOT_RUN]  # of others nothing will be run
    waiting = {job.spec: job.candidates for job in jobs if not job.settled}
    merged: dict[RunSpec, Job] = {}  # one per run; what stands in costs as much as what it stands for
    for job in jobs:
        before = merged.get(job.spec, job)
        merged[job.spec] = dataclasses.replace(job, evals=(*before.evals, *job.evals), certs=(*before.certs, *job.certs),
                                               settled=True)
    jobs = list(merged.values())
    every = tasks_of(jobs)
    left = store.missing(jobs)
    work = {task: macs(task) for task in left}
    if away:
        origin, taken = ASSUMED, {f" on {workers if workers > 1 else 'one'} {gpu}": {
            task: seconds_on(gpu, task, n) for task, n in work.items()} for gpu in GPUS}
    else:
        speed, origin = (flops / 2, f"given: {flops / 1e12:g} TFLOP/s") if flops else rate(worker, every)
        origin = f"{speed * 2 / 1e12:.3g} TFLOP/s, {origin}" + (f", {workers} workers" if workers > 1 else "")
        taken = {"": {task: n / speed for task, n in work.items()}}
    spent = {task: seconds / 3600 for task, seconds in next(iter(taken.values())).items()}
    mine: dict[RunSpec, list[Task]] = {}
    for task in left:
        mine.setdefault(task.spec, []).append(task)
    memory = {job.spec: memory_bytes(job.spec, None if away else worker.device) / 2**30 for job in jobs}
    lines = [f"{'run':12}  {'method':12} {'data':15} {'arch':16} {'seed':>4}  {'train':>8}  {'evaluate':>8}  {'memory':>8}"]
    for s in merged:
        train = spent.get(Task(s), 0.0)
        measure = sum(spent[t] for t in mine.get(s, ()) if t.evaluation is not None)
        word = "" if s in mine else "done" if store.run(s) else store.absent(merged[s]).replace(NOT_RUN, "done")
        lines.append(f"{s.hash}  {s.method.name:12} {s.data.name:15} {s.model.arch:16} {s.seed:4}  {train:6.2f} h  "
                     f"{measure:6.2f} h  {memory[s]:4.1f} GiB"
                     + (f"  {word}" if word else "") + ("  to be tuned" if s in waiting else ""))
    if away:
        costs = {s: sum(spent[t] for t in tasks) for s, tasks in mine.items()}
        dearest = sorted(costs, key=costs.get)[:-6:-1]
        lines += [f"costs most: {costs[s]:.1f} h on one {next(iter(GPUS))}, {Task(s)}" for s in dearest]
    jobs = [dataclasses.replace(job, candidates=waiting.get(job.spec, ())) for job in jobs]
    total = ", ".join(f"{hours(seconds, jobs, workers):.1f} h{where}" for where, seconds in taken.items())
    lines.append(f"{len(jobs)} runs, {len(left)} of {len(every)} tasks left, about {total} ({origin}), "
                 f"at most {max(memory.values()):.1f} GiB")
    return "\n".join(lines)
