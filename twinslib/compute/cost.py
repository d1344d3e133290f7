"""What a sweep will cost: runs, hours and memory, from counted multiply-adds (`forwards`) and measured speed."""

import dataclasses
import time
from collections.abc import Sequence
from functools import cache

import torch

from ..data import packed as data_packed
from ..data import sets
from ..data.sources import SOURCES
from ..nets import arithmetic, models
from ..specs.jobs import Job, Task, tasks_of
from ..specs.labels import NOT_RUN
from ..specs.run import DataSpec, ModelSpec, RunSpec
from ..studies.passes import forwards
from . import provenance
from .worker import Worker


@cache
def _cost(model: ModelSpec, image_size: int, classes: int) -> tuple[int, int, int]:
    return models.count_cost(network(model, classes), image_size)


def network(model: ModelSpec, classes: int) -> torch.nn.Module:
    """One with that architecture."""
    return models.make_model(model.arch, classes, norm=model.norm, upsample=model.upsample, width=model.width, seed=0)


def cost(spec: RunSpec) -> tuple[int, int, int]:
    """(multiply-adds per image and forward, parameters, bytes of activations per image) of a run's network."""
    return _cost(spec.model, spec.data.crop or spec.data.image_size, train_images(spec.data)[1])


@cache
def train_images(spec: DataSpec) -> tuple[int, int]:
    """(training images, classes) of a run, from the packed set where it is there, else from the list of known sets."""
    try:
        packed = data_packed.load_packed(spec.name, spec.image_size)
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


def memory_bytes(spec: RunSpec, device: torch.device | str) -> int:
    """Estimate of device memory: images, weights with gradient, momentum and attack copy, activations of one batch."""
    images, (_, parameters, activations) = train_images(spec.data)[0], cost(spec)
    width = arithmetic.dtype(arithmetic.chosen(spec.optim.precision, device)).itemsize
    stored = 3 * spec.data.image_size**2 * (images + spec.data.val_images)
    batch = spec.optim.batch_size * (2 if spec.method.source_weight else 1)
    return int(stored + 4 * 4 * parameters + activations / 4 * width * batch)


def done_here(worker: Worker, tasks: Sequence[Task]) -> list[tuple[Task, dict]]:
    """Those of `tasks` that a device of this kind has finished, a CPU with the same instruction set, each with its provenance."""
    here = provenance.machine(worker.device)
    entries = ((task, worker.store.provenance(task)) for task in tasks)
    return [(task, entry) for task, entry in entries if entry and all(entry.get(k) == v for k, v in here.items())]


def measured_rate(worker: Worker, tasks: Sequence[Task]) -> float | None:
    """Multiply-adds per second of what this store has already computed on a device of this kind, or None."""
    found = done_here(worker, tasks)
    spent = sum(entry["seconds"] for _, entry in found)
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


def rate(worker: Worker, tasks: Sequence[Task]) -> tuple[float, str]:
    """(multiply-adds per second, where the number comes from): those of `tasks` that are done, else a probe."""
    found = measured_rate(worker, tasks)
    if found:
        return found, "measured on runs of this store that such a machine has finished"
    return probed_rate(tasks[-1].spec, worker.device), f"probed for two seconds on this {worker.device.type}"


def remaining_hours(worker: Worker, left: Sequence[Task], jobs: Sequence[Job]) -> float:
    """Estimated hours for the tasks `left` of `jobs` on this worker's device."""
    return sum(map(macs, left)) / rate(worker, tasks_of(jobs))[0] / 3600


def describe(worker: Worker, jobs: Sequence[Job], flops: float | None = None) -> str:
    """The plan as text: each run with its tasks left, their number, estimated hours and memory."""
    store = worker.store
    jobs = [job for job in jobs if job.settled or store.absent(job) == NOT_RUN]  # else all that it could be has diverged
    waiting = {job.spec for job in jobs if not job.settled}
    merged: dict[RunSpec, Job] = {}  # one per run; what stands in costs as much as what it stands for
    for job in jobs:
        before = merged.get(job.spec, job)
        evals, certs = (tuple(dict.fromkeys((*a, *b))) for a, b in ((before.evals, job.evals), (before.certs, job.certs)))
        merged[job.spec] = dataclasses.replace(job, evals=evals, certs=certs, settled=True)
    jobs = list(merged.values())
    every = tasks_of(jobs)
    left = store.missing(jobs)
    speed, origin = (flops / 2, f"given: {flops / 1e12:g} TFLOP/s") if flops else rate(worker, every)
    lines = [f"{'run':12}  {'method':12} {'data':15} {'arch':16} {'seed':>4}  {'train':>8}  {'evaluate':>8}  {'memory':>8}"]
    for job in jobs:
        mine = [t for t in left if t.spec == job.spec]
        train = sum(macs(t) for t in mine if t.evaluation is None) / speed / 3600
        measure = sum(macs(t) for t in mine if t.evaluation is not None) / speed / 3600
        s = job.spec
        lines.append(f"{s.hash}  {s.method.name:12} {s.data.name:15} {s.model.arch:16} {s.seed:4}  {train:6.2f} h  "
                     f"{measure:6.2f} h  {memory_bytes(s, worker.device) / 2**30:4.1f} GiB"
                     + ("" if mine else "  done" if store.run(s) or (word := store.absent(job)) == NOT_RUN else f"  {word}")
                     + ("  to be tuned" if s in waiting else ""))
    hours = sum(map(macs, left)) / speed / 3600
    memory = max(memory_bytes(job.spec, worker.device) for job in jobs) / 2**30
    lines.append(f"{len(jobs)} runs, {len(left)} of {len(every)} tasks left, about {hours:.1f} h "
                 f"({speed * 2 / 1e12:.3g} TFLOP/s, {origin}), at most {memory:.1f} GiB")
    return "\n".join(lines)
