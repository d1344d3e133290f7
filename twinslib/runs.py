"""The store of results and the queue that fills it.

results/<preset>/
    runs/<run>.json         spec, split and per-epoch rows of a finished training run
    votes/<run>-<…>.npz     votes under noise of a finished certification
    masks/<run>.npz         boolean per test image for every finished evaluation of that run
    diverged/<run>.json     why a training run (or, <run>-<…>.json, a measurement) ended without numbers, with its rows until then
    courses/<run>.npz       what was measured during a run that is followed: masks by epoch, norms and angles by step
    provenance/<run>.json   when, where, with what
    splits/<set>.npz        indices of training, validation and test images
    weights/<run>.safetensors, .json   source networks that other runs start from
    work/                   (not committed) checkpoints, fine-tuned weights, blocks of unfinished evaluations, the lock

Finished means finished: everything appears by atomic rename, and a run's JSON is written last. A run that diverges is finished
too: it is not trained again until its file in diverged/ is deleted, and nothing that stands on it is tried.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import arithmetic, evaluate, follow, foreign, models, noise, norms, paths, provenance, retain, rules, smoothing, stats
from . import data as datasets
from .augment import centre
from .checkpoint import atomic_write, load_into, load_weights, save_weights, tensor_hash
from .config import CertifySpec, DataSpec, EvalSpec, RunSpec, WeightsSpec, canonical_json, to_dict
from .errors import Diverged
from .fold import FoldedCopy
from .packed import write_npz
from .train import OutOfTime, fit
from .votes import Votes, load_votes

log = logging.getLogger(__name__)
CHECKED = 50  # images on which an evaluation's checks are tried before it starts
LOOKED_AT = 500  # images on which a foreign network has to be better than chance
FAR_BELOW = 0.03  # the upper end of its interval so far below the published accuracy is worth a warning
NOT_RUN, DIVERGED, SOURCE_DIVERGED = "not run", "diverged", "diverged (source)"  # in place of a number


@dataclass(frozen=True)
class Job:
    """A training run and what is measured on it; its sources are runs of their own.

    Args:
        ship: its weights are kept with the results, for other runs to start from (as those of any run's source are).
        labels: what tells it from others of its study, where method and data set do not.
        settled: False while runs that choose its hyper-parameters are missing; `spec` then only stands in for it.
        candidates: those runs, where it is not settled.
    """

    study: str
    spec: RunSpec
    evals: tuple[EvalSpec, ...]
    ship: bool = False
    settled: bool = True
    certs: tuple[CertifySpec, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    candidates: tuple[RunSpec, ...] = ()

    @property
    def measurements(self) -> tuple[EvalSpec | CertifySpec, ...]:
        """All that is measured on the finished network."""
        return (*self.evals, *self.certs)


Best = Callable[..., RunSpec | None]  # the best of some candidates (`Store.best`), None if one is missing or all diverged
Plan = Callable[..., Sequence[Job]]  # called with best=


@dataclass(frozen=True)
class Task:
    """One piece of work in the queue: train a run, or (with `evaluation`) measure it."""

    spec: RunSpec
    evaluation: EvalSpec | CertifySpec | None = None

    @property
    def kind(self) -> str:
        e = self.evaluation
        return "train" if e is None else f"{'certify' if e.kind == 'certify' else 'evaluate'} {e.hash}"

    def __str__(self) -> str:
        what = f"method {self.spec.method.name}, seed {self.spec.seed}, {self.spec.data.name} [{self.spec.hash}]"
        if self.evaluation is None:
            return f"train {what}"
        e = self.evaluation
        if e.kind == "certify":
            return f"certify {what}: sigma {e.sigma:g}, at most {e.n:,} draws, {e.images} images"
        return f"evaluate {what}: {e.kind} {e.attack_name} eps {e.eps * 255:.3g}/255 on {e.images} images"


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    atomic_write(path, lambda tmp: Path(tmp).write_text(text))


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got {error}; delete the file to compute it again") from None


class Store:
    """Results of one preset on disk."""

    def __init__(self, preset: str, *, device: str | torch.device | None = None, root: Path | None = None) -> None:
        self.preset = preset
        self.root = Path(root) if root is not None else paths.results_dir() / preset
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._sets: dict[str, datasets.DeviceSet] = {}

    # -- reading -------------------------------------------------------------------------------------------------
    def run(self, spec: RunSpec) -> dict | None:
        """The finished run's record, or None."""
        path = self.root / "runs" / f"{spec.hash}.json"
        if not path.exists():
            return None
        record = read_json(path)
        if record["spec"] != json.loads(canonical_json(spec)):
            raise ValueError(f"expected the spec of run {spec.hash} in {path}, got another one; restore or delete the file")
        return record

    def masks(self, spec: RunSpec, evaluation: EvalSpec) -> dict[str, np.ndarray] | None:
        """Boolean per test image for each stage of an evaluation (one stage but for AutoAttack), or None."""
        path = self.root / "masks" / f"{spec.hash}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            keys = [k for k in stored.files if k.startswith(evaluation.hash + "/")]
            return {k.split("/", 1)[1]: stored[k] for k in keys if not k.endswith("/spec")} or None

    def votes(self, spec: RunSpec, certification: CertifySpec) -> Votes | None:
        """The counts of a finished certification, or None."""
        path = self._votes_path(spec, certification)
        return load_votes(path) if path.exists() else None

    def _votes_path(self, spec: RunSpec, certification: CertifySpec) -> Path:
        return self.root / "votes" / f"{spec.hash}-{certification.hash}.npz"

    def course(self, spec: RunSpec) -> dict[str, np.ndarray] | None:
        """Arrays of a finished run that was followed (`follow.Follower.arrays`), or None."""
        path = self.root / "courses" / f"{spec.hash}.npz"
        if self.run(spec) is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def weights_path(self, spec: RunSpec, at: str = "last") -> Path | None:
        """Where the final weights of a run lie, shipped or in the work folder; None if they have to be trained.

        Args:
            at: "best" for those of the epoch that is best on the validation images.
        """
        name = spec.hash if at == "last" else f"{spec.hash}-{at}"
        for path in (self.root / folder / f"{name}.safetensors" for folder in ("weights", "work")):
            if path.exists():
                return path
        return None

    def provenance(self, task: Task) -> dict | None:
        """When, where and with what a task was done, or None."""
        path = self.root / "provenance" / f"{task.spec.hash}.json"
        entry = read_json(path).get(task.kind) if path.exists() else None
        return None if entry is None or entry.get("unfinished") or entry.get("outcome") else entry

    def diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> str | None:
        """Why the training of a run, or a measurement of it, ended without a result: something was no longer finite. None where
        it has not been tried or did not; for a finished run, why its weights could not be made again."""
        record = self._diverged(spec, measurement)
        if record is not None:
            return record["diverged"]
        path = self.root / "provenance" / f"{spec.hash}.json"  # where earlier versions left it
        return read_json(path).get("train", {}).get("diverged") if measurement is None and path.exists() else None

    def kept_in(self, task: Task) -> Path:
        """The file that says that a task diverged; without it the task is done again."""
        path = self._diverged_path(task.spec, task.evaluation)
        return path if path.exists() else self.root / "provenance" / f"{task.spec.hash}.json"

    def epochs(self, spec: RunSpec) -> list[dict]:
        """The per-epoch rows of a finished run, or of one that diverged until then; none where it has not been trained."""
        return ((self.run(spec) or self._diverged(spec) or {}).get("epochs")) or []

    def _diverged(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> dict | None:
        path = self._diverged_path(spec, measurement)
        record = read_json(path) if path.exists() else None
        if record is not None and record["spec"] != json.loads(canonical_json(spec)):
            raise ValueError(f"expected the spec of run {spec.hash} in {path}, got another one; restore or delete the file")
        return record

    def _diverged_path(self, spec: RunSpec, measurement: EvalSpec | CertifySpec | None = None) -> Path:
        return self.root / "diverged" / (f"{spec.hash}-{measurement.hash}.json" if measurement else f"{spec.hash}.json")

    def lost_to(self, spec: RunSpec) -> RunSpec | None:
        """The run, this one or one that it starts from, without whose weights this one has no network: it diverged."""
        while spec is not None and (self.run(spec) is None or self.weights_path(spec) is None):
            if self.diverged(spec):
                return spec
            spec = spec.source
        return None

    def absent(self, job: Job, measurement: EvalSpec | CertifySpec | None = None) -> str:
        """What stands in place of the result of a job, or of one measurement, that is not there: `DIVERGED`, `SOURCE_DIVERGED`
        if what it starts from did, or `NOT_RUN`. A job that waits for a choice diverged if all candidates did."""
        if not job.settled:
            words = {self._absent(c) for c in job.candidates} or {NOT_RUN}
            return NOT_RUN if NOT_RUN in words else DIVERGED if DIVERGED in words else SOURCE_DIVERGED
        return DIVERGED if measurement is not None and self.diverged(job.spec, measurement) else self._absent(job.spec)

    def _absent(self, spec: RunSpec) -> str:
        lost = self.lost_to(spec)
        return NOT_RUN if lost is None else DIVERGED if lost == spec else SOURCE_DIVERGED

    def best(self, candidates: Sequence[RunSpec], by: str = "mean", over: Sequence[RunSpec] = ()) -> RunSpec | None:
        """Of runs that differ in hyper-parameters the one with the best last validation measurement: the mean of clean and
        robust accuracy (the first of equals). None while one of them is missing; one that diverged is never chosen, so None
        too if all did.

        Args:
            by: "robust" for robust accuracy alone.
            over: rivals, one for each candidate; the best is then the one furthest ahead of its rival.
        Raises:
            ValueError: a finished candidate has no validation measurement.
        """
        scores = {}
        for spec, *rival in zip(candidates, over, strict=True) if over else ((spec,) for spec in candidates):
            records = [(s, self.run(s)) for s in (spec, *rival)]
            if any(record is None and self._absent(s) == NOT_RUN for s, record in records):
                return None
            if all(record is not None for _, record in records):
                own, *other = (validation_score(record["epochs"], s, by) for s, record in records)
                scores[spec] = own - sum(other)
        return max(scores, key=scores.__getitem__, default=None)

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise, before any work, what is wrong with the images or weights that `tasks` need.

        Raises:
            FileNotFoundError: a packed set or pre-trained weights are missing.
            ValueError: a damaged set, an unknown class to leave out, more images asked for than there are, attacks that need
                more classes than there are, the best weights of a run that does not keep them, a start network that does not
                fit, or one whose head is kept and that is at chance.
        """
        wanted: dict[DataSpec, int] = {}
        for spec in {t.spec.weights: t.spec for t in tasks if t.spec.weights}.values():
            self._origin(spec)  # that it is there, before any image is looked for
        for task in tasks:
            if task.evaluation and task.evaluation.at == "best" and not task.spec.optim.keep_best:
                raise ValueError(f"expected keep_best in run {task.spec.hash} ({task.spec.method.name}), whose best weights are "
                                 "to be evaluated, got none; set it under optim")
            images = task.evaluation.images if task.evaluation else 0
            wanted[task.spec.data] = max(images, wanted.get(task.spec.data, 0))
            if task.spec.method.source_weight and task.evaluation is None:
                self._check_source(task.spec)
        for spec, images in wanted.items():
            packed = datasets.load_packed(spec.name, spec.image_size)
            split = datasets.make_split(packed, exclude=spec.exclude, train_images=spec.train_images,
                                        val_images=spec.val_images, seed=spec.split_seed)
            if images > len(split.test):
                raise ValueError(f"expected at most {len(split.test)} test images of {spec.name}, got {images}; "
                                 "lower images in the evaluation")
            for task in (t for t in tasks if t.spec.data == spec):
                if task.evaluation and task.evaluation.kind == "autoattack":
                    evaluate.check_attacks(task.evaluation.attacks, len(packed.class_names) - len(spec.exclude), spec.name)
                if task.spec.follow:
                    follow.check_images(task.spec, len(split.train), len(split.test))
        starts = {(t.spec.weights, t.spec.model, t.spec.keep_head and t.spec.data, self._spare_head(t.spec)): t.spec
                  for t in tasks if t.spec.weights}
        for spec in starts.values():
            if spec.keep_head:
                self._check_start(spec)
            else:
                self.origin(spec)

    def _check_start(self, spec: RunSpec) -> None:
        """Log how well a foreign network whose head is kept knows the run's images; refuse one at chance, and warn
        where it is far below what its publisher says."""
        data, start = self.data(spec.data), self._measure_start(spec, self.start(spec))
        right, images, name = start["right"], start["images"], spec.weights.file
        interval = stats.clopper_pearson(right, images)
        hint = "check the order of its classes and its normalisation (mean and std of the model)"
        if interval.low <= 1 / data.num_classes:
            raise ValueError(f"expected a network that knows {spec.data.name} in {name}, got one at chance: "
                             f"{right} of {images} images right, with {data.num_classes} classes; {hint}, or leave keep_head out")
        says = f"start network {name}: {right} of {images} {start['of']} images of {spec.data.name} right ({right / images:.1%})"
        known = foreign.published_network(name)
        published = spec.weights.accuracy or (known and known["clean_acc"])
        log.info("%s, normalised with mean %s and std %s", says, start["mean"], start["std"])
        if published and interval.high < published - FAR_BELOW:
            log.warning("%s, far below the published %.1f %%; %s", says, 100 * published, hint)

    def _measure_start(self, spec: RunSpec, model: torch.nn.Module) -> dict:
        """What is kept of a foreign start: its normalisation, and where its head is kept, how many of the validation
        images (or, if there are none, training images) it has right."""
        kept = {name: [round(v, 6) for v in getattr(model.normalize, name).flatten().tolist()] for name in ("mean", "std")}
        if spec.keep_head:
            data = self.data(spec.data)
            val = len(data.val_y) > 0
            x, y = (data.val_x, data.val_y) if val else (centre(data.train_x[:LOOKED_AT], spec.data.crop), data.train_y)
            right = evaluate.clean_mask(FoldedCopy(model), x[:LOOKED_AT], y[:LOOKED_AT], batch_size=CHECKED)
            kept |= {"right": int(right.sum()), "images": len(right), "of": "validation" if val else "training"}
        return kept

    @staticmethod
    def _check_source(spec: RunSpec) -> None:
        source = spec.source.data
        try:
            packed = datasets.load_packed(source.name, source.image_size)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"expected the source images {source.name} for method {spec.method.name!r}, which trains "
                                    f"on them too, got none; leave the method out or get them: {error}") from None
        classes = len(packed.class_names) - len(source.exclude)
        if (spec.method.source_classes or 0) > classes:
            raise ValueError(f"expected source_classes of at most {classes} for method {spec.method.name!r} "
                             f"({source.name}), got {spec.method.source_classes}")

    def missing(self, jobs: Sequence[Job]) -> list[Task]:
        """Tasks that are not done, in order: sources first, each training before its evaluations, AutoAttack after all else
        of its seed (it costs most and changes least). What diverged is done, and what needs the weights of such a run cannot
        be."""
        tasks: list[Task] = []
        for job in (job for job in jobs if job.settled):
            evals = [e for e in job.evals if self.masks(job.spec, e) is None]
            evals += [c for c in job.certs if not self._votes_path(job.spec, c).exists()]
            evals = [e for e in evals if not self.diverged(job.spec, e)]
            lost = any(self.weights_path(job.spec, e.at) is None for e in evals if e.at != "start")
            start = any(e.at == "start" for e in evals)  # measured on the source's weights
            chain, spec = [], job.spec if self.run(job.spec) is None or lost else job.spec.source if start else None
            while spec is not None and (spec is job.spec or self.run(spec) is None or self.weights_path(spec) is None):
                chain.insert(0, Task(spec))
                spec = spec.source
            if any(self.diverged(task.spec) for task in chain):  # what is left is measured on weights that are there
                trained = self.run(job.spec) is not None
                chain, evals = [], [e for e in evals if trained and e.at != "start" and self.weights_path(job.spec, e.at)]
            tasks += chain
            tasks += [Task(job.spec, e) for e in evals]
        late = [t.evaluation is not None and t.evaluation.kind == "autoattack" for t in tasks]
        order = sorted(range(len(tasks)), key=lambda i: (tasks[i].spec.seed, late[i]))
        return list(dict.fromkeys(tasks[i] for i in order))

    # -- data and networks ---------------------------------------------------------------------------------------
    def data(self, spec: DataSpec) -> datasets.DeviceSet:
        """The run's images on the device, split by the indices stored with the results."""
        key = canonical_json(spec)
        if key not in self._sets:
            if len(self._sets) >= 2:
                self._sets.pop(next(iter(self._sets)))
            packed = datasets.load_packed(spec.name, spec.image_size)
            path = self.root / "splits" / f"{split_name(spec)}.npz"
            split = datasets.stored_split(packed, path, exclude=spec.exclude, train_images=spec.train_images,
                                          val_images=spec.val_images, seed=spec.split_seed)
            device_set = datasets.to_device(packed, split, self.device)
            device_set = dataclasses.replace(device_set, val_x=centre(device_set.val_x, spec.crop),
                                             test_x=centre(device_set.test_x, spec.crop))
            self._sets[key] = device_set
        return self._sets[key]

    def trained(self, spec: RunSpec, at: str = "last") -> torch.nn.Module:
        """The network of a finished run (two wings where the method has them), on the device.

        Args:
            at: "last", "best" (on the validation images) or "start" (what the run starts from).
        """
        if at == "start":
            return self.start(spec)
        path = self.weights_path(spec, at)
        if path is None:
            raise FileNotFoundError(f"expected the {at} weights of run {spec.hash} in {self.root}, got none; train it first")
        state, _ = load_weights(path)
        with self._named(path):
            model = load_into(self._shell(spec), state)
        return model.to(self.device)

    def origin(self, spec: RunSpec) -> torch.nn.Module | None:
        """The network whose weights a run starts from, with its own head, on the device; None for random weights."""
        if spec.source is None and spec.weights is None:
            return None
        path, classes = self._origin(spec)
        model, chosen = make_network(spec, classes), spec.weights or WeightsSpec(file=path.name, classes=classes)
        head = models.find_head(model, spec.data.crop or spec.data.image_size) if self._spare_head(spec) else ""
        state, _ = load_weights(path, key=chosen.key)
        with self._named(path):
            return load_into(model, state, prefix=chosen.prefix, head=head).to(self.device)

    @staticmethod
    def _spare_head(spec: RunSpec) -> bool:
        """True if a foreign start may come without a head: it is replaced, and nothing else needs it."""
        return bool(spec.weights) and not spec.keep_head and not spec.method.distill_weight

    def start(self, spec: RunSpec) -> torch.nn.Module:
        """The network that a run starts from: source weights (or none), fresh head, wings."""
        classes, model = self.data(spec.data).num_classes, self.origin(spec)
        if model is None:
            model = make_network(spec, classes)
        elif spec.keep_head:
            if self._origin(spec)[1] != classes:
                raise ValueError(f"expected a start network of the {classes} classes of {spec.data.name} with keep_head, got one "
                                 f"of {self._origin(spec)[1]}; leave keep_head out")
        else:
            size = spec.data.crop or spec.data.image_size
            model = models.replace_head(model, classes, image_size=size, seed=spec.seed)
        return self._with_wings(spec, model)

    def source_images(self, spec: RunSpec, start: torch.nn.Module) -> datasets.DeviceSet:
        """The source task's training images that joint training uses: all, or those of the classes that resemble the
        target in the features of `start`."""
        source, keep = self.data(spec.source.data), spec.method.source_classes
        if keep is None:
            return source
        return retain.nearest_classes(start, source, self.data(spec.data), keep, size=spec.data.crop)

    def _origin(self, spec: RunSpec) -> tuple[Path, int]:
        """(file, classes) of the weights that a run starts from."""
        if spec.source is not None:
            path = self.weights_path(spec.source)
            return path, int(read_json(self.root / "runs" / f"{spec.source.hash}.json")["classes"])
        path = paths.data_dir() / "weights" / spec.weights.file
        if not path.exists():
            raise FileNotFoundError(
                f"expected the pre-trained weights {path.name} in {path.parent}, got no such file; take them from "
                f"{spec.weights.origin or 'their publisher'} and store the state dict as safetensors (README, Your own network)")
        foreign.check_name(path)
        return path, spec.weights.classes

    def _shell(self, spec: RunSpec) -> torch.nn.Module:
        return self._with_wings(spec, make_network(spec, self.data(spec.data).num_classes))

    @staticmethod
    def _with_wings(spec: RunSpec, model: torch.nn.Module) -> torch.nn.Module:
        if not spec.method.two_branches:
            return model
        second = "frozen" if spec.method.wings == "twins" else "adaptive"
        return norms.twinsify(model, share_affine=spec.method.share_affine, second=second)

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    # -- computing -----------------------------------------------------------------------------------------------
    def do(self, task: Task, *, ship: bool, stop: Callable[[], bool], on_step: Callable[[int, int], None]) -> None:
        """Do one task whose needs are met; results appear by atomic rename. Its provenance counts the seconds of earlier
        stretches that were stopped (those of a killed process are lost).

        Raises:
            Diverged: after it has been recorded as the result.
        """
        path = self.root / "provenance" / f"{task.spec.hash}.json"
        record = read_json(path) if path.exists() else {"run": task.spec.hash}
        kind = "train again" if task.evaluation is None and self.run(task.spec) else task.kind  # only its weights are lost
        before = record.get(kind, {})
        spent = before["seconds"] if before.get("unfinished") else 0.0
        worked = before.get("processor_seconds", 0.0) if before.get("unfinished") else 0.0
        started, clock, processor, extra = provenance.now(), time.perf_counter(), time.process_time(), {"unfinished": True}
        stamps = before.get("rules", {}) if before else rules.stamps()  # as they were when it began
        if not before:  # so that they also outlive a kill
            write_json(path, record | {kind: {"seconds": 0.0, "unfinished": True, "rules": stamps}})
        try:
            if task.evaluation is None:
                extra = self._train(task.spec, ship, stop, on_step)
            elif task.evaluation.kind == "certify":
                extra = self._certify(task.spec, task.evaluation, stop, on_step)
            else:
                extra = self._evaluate(task.spec, task.evaluation, stop, on_step)
        except Diverged as error:
            self._record_divergence(task, error)
            extra = {"outcome": DIVERGED}
            raise
        finally:
            seconds = spent + time.perf_counter() - clock
            worked += time.process_time() - processor
            record[kind] = provenance.record(started, seconds, self.device, rules=stamps, processor_seconds=round(worked, 3),
                                             **extra)
            write_json(path, record)

    def _record_divergence(self, task: Task, error: Diverged) -> None:
        spec, e = task.spec, task.evaluation
        record = {"spec": json.loads(canonical_json(spec)), "diverged": str(error), "epochs": error.epochs}
        if e is not None:
            record = {"spec": record["spec"], "measurement": json.loads(canonical_json(e)), "diverged": str(error)}
        write_json(self._diverged_path(spec, e), record)
        self._work(f"{spec.hash}.ckpt" if e is None else f"{spec.hash}-{e.hash}.npz").unlink(missing_ok=True)
        if e is not None:
            shutil.rmtree(self._work(f"{spec.hash}-{e.hash}"), ignore_errors=True)  # its blocks

    def _train(self, spec: RunSpec, ship: bool, stop, on_step) -> dict:
        model, data = self.start(spec), self.data(spec.data)
        foreign_start = {"start": self._measure_start(spec, model)} if spec.weights else {}
        start = self.origin(spec) if spec.method.needs_origin else None
        source = self.source_images(spec, start) if spec.method.source_weight else None
        checkpoint = self._work(f"{spec.hash}.ckpt")
        history = fit(spec, model, data, device=self.device, start=start, source=source, checkpoint=checkpoint, stop=stop,
                      on_step=on_step)
        folder = self.root / "weights" if ship else self.root / "work"
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f"{spec.hash}.safetensors"
        made = {"spec": canonical_json(spec), "precision": history.precision}
        if history.best:
            last = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(history.best)
            save_weights(self._work(f"{spec.hash}-best.safetensors"), model, made)
            model.load_state_dict(last)
        save_weights(weights, model, made, half=ship)
        if ship:
            write_json(weights.with_suffix(".json"), {"spec": to_dict(spec), "classes": list(data.class_names)})
        record = {"spec": json.loads(canonical_json(spec)), "split": split_name(spec.data), "epochs": history.epochs,
                  "classes": data.num_classes, "train_images": len(data.train_y), "val_images": len(data.val_y),
                  "weights": tensor_hash(load_weights(weights)[0]), **foreign_start}
        if source is not None:
            chosen = sorted(set(source.train_y.tolist()))
            record |= {"source_images": len(source.train_y), "source_classes": [source.class_names[i] for i in chosen]}
        known = self.run(spec)  # a finished run stays as it is: numbers and choices stand on it
        if known and known["weights"] != record["weights"]:
            log.warning("run %s (%s): its weights, trained again, are not those recorded (another processor, thread count or "
                        "version); what is measured from now on stands on the new ones", spec.hash, spec.method.name)
        if history.course and not known:
            path = self.root / "courses" / f"{spec.hash}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, history.course, compress=True)
        if not known:
            write_json(self.root / "runs" / f"{spec.hash}.json", record)
        checkpoint.unlink(missing_ok=True)
        return {"weights": record["weights"], "batch_size": spec.optim.batch_size, "precision": history.precision}

    def _evaluate(self, spec: RunSpec, e: EvalSpec, stop, on_step) -> dict:
        data = self.data(spec.data)
        model = FoldedCopy(self.trained(spec, e.at))
        folder = self._work(f"{spec.hash}-{e.hash}")
        folder.mkdir(exist_ok=True)
        blocks = [(a, min(a + e.batch_size, e.images)) for a in range(0, e.images, e.batch_size)]
        checks = {} if e.kind == "clean" else evaluate.checks(
            model, data.test_x[:CHECKED], data.test_y[:CHECKED], eps=e.eps, step_size=step_size(e), steps=e.steps,
            threat=e.threat, seed=e.seed)
        for name in (name for name, holds in checks.items() if not holds):
            log.warning("check failed on the first %d images: %s", CHECKED, name)
        parts, computed = [], False
        for k, (a, b) in enumerate(blocks):
            path = folder / f"{k}.npz"
            if not path.exists():
                if computed and stop():
                    raise OutOfTime(f"stopped at block {k} of {len(blocks)}")
                masks = evaluate_block(e, model, data.test_x[a:b], data.test_y[a:b], k)
                arrays = {name: mask.cpu().numpy() for name, mask in masks.items()}
                write_npz(path, arrays, compress=True)
                computed = True
            with np.load(path, allow_pickle=False) as stored:
                parts.append({name: stored[name] for name in stored.files})
            on_step(k + 1, len(blocks))
        stages = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        path = self.root / "masks" / f"{spec.hash}.npz"
        merged = {}
        if path.exists():
            with np.load(path, allow_pickle=False) as stored:
                merged = {name: stored[name] for name in stored.files}
        merged |= {f"{e.hash}/{name}": mask for name, mask in stages.items()}
        merged[f"{e.hash}/spec"] = np.array(canonical_json(e))
        write_npz(path, dict(sorted(merged.items())), compress=True)
        for k in range(len(blocks)):
            (folder / f"{k}.npz").unlink(missing_ok=True)
        folder.rmdir()
        return {"batch_size": e.batch_size, "precision": "float32", "images": e.images, "checks": checks}

    def _certify(self, spec: RunSpec, c: CertifySpec, stop, on_step) -> dict:
        data, model = self.data(spec.data), self.trained(spec).eval()
        if c.restat_images:
            model = noise.reestimated(model, data.train_x[:c.restat_images], c.sigma, seed=c.seed)
        file = self._work(f"{spec.hash}-{c.hash}.npz")  # what was begun goes on in its own precision
        precision = load_votes(file).precision if file.exists() else arithmetic.chosen(c.precision, self.device)
        network = FoldedCopy(model, dtype=arithmetic.dtype(precision))
        on_step(0, 1)
        votes = smoothing.collect_votes(
            network, data.test_x[:c.images], c.plan, labels=data.test_y[:c.images], seed=c.seed, precision=precision,
            model_hash=tensor_hash(model.state_dict())[:16], file=file, stop=stop)
        if not votes.finished.all():
            raise OutOfTime(f"stopped with {int(votes.finished.sum())} of {c.images} images certified")
        (self.root / "votes").mkdir(exist_ok=True)
        os.replace(file, self._votes_path(spec, c))
        on_step(1, 1)
        return {"precision": precision, "images": c.images, "draws": int(votes.draws.sum() + votes.pilot.sum())}

    def _work(self, name: str) -> Path:
        folder = self.root / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one sweep; a second one is refused (the lock dies with its process)."""
        with open(self._work("lock"), "a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise ValueError(f"expected no other sweep on the store {self.preset!r}, got one by process "
                                 f"{handle.read().strip() or 'unknown'}; wait for it or stop it, nothing was changed") from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            for folder in ("runs", "masks", "votes", "courses", "diverged", "provenance", "splits", "weights", "work"):
                for left_over in (self.root / folder).glob(".*.tmp"):  # of a process killed while it wrote
                    left_over.unlink(missing_ok=True)
            yield


def precision_in_words(jobs: Sequence[Job], device: torch.device | str) -> str:
    """What "bfloat16" means on `device`, where any of `jobs` asks for it; empty otherwise."""
    asked = {job.spec.optim.precision for job in jobs} | {c.precision for job in jobs for c in job.certs}
    return arithmetic.in_words(asked, device)


def make_network(spec: RunSpec, classes: int) -> torch.nn.Module:
    """The run's network with new weights and a head for so many classes."""
    m = spec.model
    return models.make_model(m.arch, classes, norm=m.norm, upsample=m.upsample, width=m.width, mean=m.mean, std=m.std,
                             seed=spec.seed)


def validation_score(epochs: Sequence[dict], spec: RunSpec, by: str = "mean") -> float:
    """Mean of clean and robust accuracy (or the one that was measured) on the validation images, at the last measurement.

    Args:
        by: "robust" for robust accuracy alone, where it was measured.
    """
    measured = [row for row in epochs if "val_clean_acc" in row]
    if not measured:
        raise ValueError(f"expected validation accuracy of run {spec.hash} to choose hyper-parameters by, got none; set "
                         "val_images and val_every")
    last = measured[-1]
    if by == "robust" and "val_robust_acc" in last:
        return last["val_robust_acc"]
    values = [last[k] for k in ("val_clean_acc", "val_robust_acc") if k in last]
    return sum(values) / len(values)


def split_name(spec: DataSpec) -> str:
    """Name of the file of indices: the set, and a hash of what they were chosen by."""
    chosen = json.dumps([spec.image_size, list(spec.exclude), spec.train_images, spec.val_images, spec.split_seed])
    return f"{spec.name}-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}"


def step_size(e: EvalSpec) -> float:
    """PGD step of an evaluation in [0, 1] pixels; 2.5 eps / steps where the spec leaves it open."""
    return e.step_size if e.step_size is not None else 2.5 * e.eps / e.steps


def evaluate_block(e: EvalSpec, model, images: torch.Tensor, labels: torch.Tensor, block: int) -> dict[str, torch.Tensor]:
    """Masks by stage for one block of test images."""
    if e.kind == "clean":
        return {"none": evaluate.clean_mask(model, images, labels, batch_size=e.batch_size)}
    if e.kind == "pgd":
        mask = evaluate.pgd_mask(model, images, labels, eps=e.eps, step_size=step_size(e), steps=e.steps,
                                 restarts=e.restarts, threat=e.threat, batch_size=e.batch_size, seed=e.seed,
                                 block=block)
        return {e.attack_name: mask}
    return evaluate.autoattack_masks(model, images, labels, eps=e.eps, threat=e.threat, attacks=e.attacks,
                                     batch_size=e.batch_size, seed=e.seed, block=block)


@dataclass
class Report:
    """What a sweep did.

    Args:
        failed: with what went wrong; what needs a run that failed has failed too.
        diverged: with why. Results, not failures: kept, and done.
        waiting: runs whose hyper-parameters are not chosen yet; those of which every candidate diverged never will be, and do
            not count.
    """

    done: list[Task] = dataclasses.field(default_factory=list)
    failed: list[tuple[Task, str]] = dataclasses.field(default_factory=list)
    left: list[Task] = dataclasses.field(default_factory=list)
    diverged: list[tuple[Task, str]] = dataclasses.field(default_factory=list)
    waiting: int = 0

    def add(self, later: "Report") -> None:
        """Go on with what a later sweep of the same store did; what is left is what that one left."""
        for name in ("done", "failed", "diverged"):
            getattr(self, name).extend(getattr(later, name))
        self.left, self.waiting = later.left, later.waiting


def _shipped(planned: Sequence[Job]) -> set[str]:
    """Hashes of the runs whose weights are kept with the results: those that are asked for, and every run's sources."""
    out = {job.spec.hash for job in planned if job.ship}
    for spec in (job.spec.source for job in planned):
        while spec is not None:
            out.add(spec.hash)
            spec = spec.source
    return out


def sweep(store: Store, jobs: Sequence[Job] | Plan, *, budget: float | None = None,
          stop: Callable[[], bool] = lambda: False,
          on_step: Callable[[Task, int, int], None] = lambda task, done, total: None) -> Report:
    """Do the missing tasks of `jobs` in order until all are done or `budget` seconds are spent; resumes where it stopped.
    Every call does at least one training step or block of images.

    A task that diverges or fails is reported and the others go on; only what the system refuses (OSError: no space, no file)
    ends the sweep. `stop` ends it cleanly (a checkpoint is written).

    Args:
        jobs: jobs, or a function that makes them; it is asked again when a run that others wait for is finished.
    """
    plan = jobs if callable(jobs) else lambda best: jobs
    report = Report()
    deadline = None if budget is None else time.monotonic() + budget

    def over() -> bool:
        return stop() or (deadline is not None and time.monotonic() >= deadline)

    with store.locked():
        planned = plan(best=store.best)
        tasks, shipped = store.missing(planned), _shipped(planned)
        if tasks and (words := precision_in_words(planned, store.device)):
            log.info(words)
        store.check([*tasks, *(Task(job.spec, e) for job in planned if not job.settled for e in (None, *job.measurements))])
        broken: set[RunSpec] = set()  # not trained, as this or a source failed
        while tasks:
            task = tasks[0]
            begun = report.done or report.failed or report.diverged  # every call gets on, however short its budget
            if begun and over():
                break
            if {task.spec, task.spec.source} & broken:
                report.failed.append((tasks.pop(0), "its training or source run failed"))
                broken.add(task.spec)
                continue
            log.info("%s", task)
            diverged = False
            try:
                store.do(task, ship=task.spec.hash in shipped, stop=over,
                         on_step=lambda done, total, task=task: on_step(task, done, total))
            except OutOfTime:
                break
            except Diverged as error:
                diverged = True
                report.diverged.append((task, str(error)))
                log.warning("diverged: %s", error)
            except OSError:
                raise
            except Exception as error:  # the boundary: whatever a task raises is its own failure, the others go on
                report.failed.append((task, f"{type(error).__name__}: {error}"))
                broken |= {task.spec} if task.evaluation is None else set()
                log.exception("failed: %s", task)
            else:
                report.done.append(task)
            del tasks[0]
            if task.evaluation is None and (diverged or not all(job.settled for job in planned)):
                planned = plan(best=store.best)
                failed = {t for t, _ in report.failed}
                tasks = [t for t in store.missing(planned) if t not in failed]
                shipped = _shipped(planned)
        report.left = tasks
        report.waiting = sum(not job.settled and store.absent(job) == NOT_RUN for job in planned)
    return report
