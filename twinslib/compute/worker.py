"""Doing one task: training, evaluating or certifying a run, with provenance, so that a kill at any instant loses nothing."""

import json
import logging
import shutil
import time
from collections.abc import Callable

import numpy as np
import torch

from ..attack import autoattack, masks
from ..base.errors import Diverged
from ..base.files import read_json, read_npz, write_json, write_npz
from ..certify import smoothing
from ..nets import arithmetic
from ..nets.checkpoint import load_weights, save_weights, tensor_hash
from ..nets.fold import FoldedCopy
from ..specs.jobs import Task
from ..specs.labels import DIVERGED
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.reading import canonical_json, to_dict
from ..specs.run import RunSpec
from ..store.store import Store, about, split_name
from ..store.votes import load_votes
from ..studies import rules
from ..train import noise
from ..train.loop import fit
from ..train.step import OutOfTime
from . import provenance
from .networks import Networks

log = logging.getLogger(__name__)
Origin = Callable[..., dict]  # provenance of a result that is there now, with further entries
CHECKED = 50  # images on which an evaluation's checks are tried before it starts


class Worker:
    """Does the tasks of a store on one device, CUDA where there is one and none is named; compiled: `loop.fit`'s."""

    def __init__(self, store: Store, device: str | torch.device | None = None, *, compiled: bool = False) -> None:
        self.store, self.networks, self.compiled = store, Networks(store, device), compiled

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.networks.device

    def do(self, task: Task, *, ship: bool, stop: Callable[[], bool], on_step: Callable[[int, int], None]) -> None:
        """Do one task whose needs are met; its result appears by atomic rename, with its provenance inside. That counts the
        seconds of earlier stretches that were stopped (those of a killed process are lost), and the rules are those that stood
        when the task began.

        Raises:
            Diverged: after it has been recorded as the result.
        """
        begun = self.store.work_path(f"{task.name}.json")  # outlives a kill
        before = read_json(begun) if begun.exists() else {"rules": rules.stamps(), "seconds": 0.0, "processor_seconds": 0.0}
        if not begun.exists():
            write_json(begun, before)
        started, clock, processor = provenance.begin(self.device), time.perf_counter(), time.process_time()

        def spent() -> dict[str, float]:
            return {"seconds": before["seconds"] + time.perf_counter() - clock,
                    "processor_seconds": round(before["processor_seconds"] + time.process_time() - processor, 3)}

        def origin(**extra: object) -> dict:
            """The provenance of a result that is there now."""
            return provenance.record(started, device=self.device, rules=before["rules"], **spent(), **extra)

        try:
            if task.evaluation is None:
                self.train(task.spec, ship, stop, on_step, origin)
            elif task.evaluation.kind == "certify":
                self.certify(task.spec, task.evaluation, stop, on_step, origin)
            else:
                self.evaluate(task.spec, task.evaluation, stop, on_step, origin)
        except Diverged as error:
            self._record_divergence(task, error, origin(outcome=DIVERGED))
            raise
        except OutOfTime:
            write_json(begun, before | spent())
            raise
        begun.unlink(missing_ok=True)

    def _record_divergence(self, task: Task, error: Diverged, origin: dict) -> None:
        spec, e = task.spec, task.evaluation
        more = {"epochs": error.epochs} if e is None else {"measurement": json.loads(canonical_json(e))}
        record = {"spec": json.loads(canonical_json(spec)), "diverged": str(error), "provenance": origin, **more}
        write_json(self.store.diverged_path(spec, e), record)
        self.store.forget(task)

    def train(self, spec: RunSpec, ship: bool, stop, on_step, origin: Origin) -> None:
        """Train a run from its start or its checkpoint and leave its weights, course and, last, its record. A run that is
        finished keeps its record: only its weights are made again, and say so."""
        model, data = self.networks.start(spec), self.networks.data(spec.data)
        foreign_start = {"start": self.networks.measure_start(spec, model)} if spec.weights else {}
        start = self.networks.origin(spec) if spec.method.needs_origin else None
        source = self.networks.source_images(spec, start) if spec.method.source_weight else None
        checkpoint, again = self.store.work_path(f"{spec.hash}.ckpt"), self.store.run(spec) is not None
        history = fit(spec, model, data, device=self.device, start=start, source=source, checkpoint=checkpoint,
                      compiled=self.compiled, stop=stop, on_step=on_step)
        folder = self.store.root / "weights" if ship else self.store.root / "work"
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f"{spec.hash}.safetensors"
        known = self.store.run(spec)  # a finished run stays as it is: numbers and choices stand on it
        more = {"batch_size": spec.optim.batch_size, "precision": history.precision, "compiled": history.compiled}
        made = {"spec": canonical_json(spec), "precision": history.precision} | ({"again": origin(**more)} if again else {})
        if again:
            for path in self.store.root.glob(f"work/{spec.hash}-*"):  # masks and votes begun on the weights that are lost
                if path.suffix != ".safetensors":
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if history.best:
            last = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(history.best)
            save_weights(self.store.work_path(f"{spec.hash}-best.safetensors"), model, made)
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
        if known and known["weights"] != record["weights"]:
            log.warning("run %s (%s): its weights, trained again, are not those recorded (another processor, thread count or "
                        "version); what is measured from now on stands on the new ones", spec.hash, spec.method.name)
        if history.course and self.store.course(spec) is None:
            write_npz(self.store.root / "courses" / f"{spec.hash}.npz", history.course, {"run": spec.hash}, compress=True)
        if not known:
            write_json(self.store.path(Task(spec)), record | {"provenance": origin(weights=record["weights"], **more)})
        checkpoint.unlink(missing_ok=True)

    def evaluate(self, spec: RunSpec, e: EvalSpec, stop, on_step, origin: Origin) -> None:
        """Measure a finished run block by block, each kept in work/ until all are there and its masks appear."""
        data = self.networks.data(spec.data)
        model = FoldedCopy(self.networks.trained(spec, e.at))
        folder = self.store.work_path(f"{spec.hash}-{e.hash}")
        what = about(Task(spec, e))
        blocks = [(a, min(a + e.batch_size, e.images)) for a in range(0, e.images, e.batch_size)]
        checks = {} if e.kind == "clean" else autoattack.checks(
            model, data.test_x[:CHECKED], data.test_y[:CHECKED], eps=e.eps, step_size=e.step, steps=e.steps,
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
                write_npz(path, arrays, what | {"block": k}, compress=True)
                computed = True
            parts.append(read_npz(path, what | {"block": k}))
            on_step(k + 1, len(blocks))
        stages = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        more = {"batch_size": e.batch_size, "precision": "float32", "images": e.images, "checks": checks}
        write_npz(self.store.path(Task(spec, e)), stages, what | {"provenance": origin(**more)}, compress=True)
        shutil.rmtree(folder, ignore_errors=True)

    def certify(self, spec: RunSpec, c: CertifySpec, stop, on_step, origin: Origin) -> None:
        """Draw the votes of a finished run, kept in work/ until all images are settled; what was begun keeps its precision. Votes
        that another kind of device or processor began, whose noise or re-estimated statistics differ, are drawn anew."""
        data, model = self.networks.data(spec.data), self.networks.trained(spec).eval()
        if c.restat_images:
            model = noise.reestimated(model, data.train_x[:c.restat_images], c.sigma, seed=c.seed)
        file, model_hash = self.store.work_path(f"{spec.hash}-{c.hash}.npz"), tensor_hash(model.state_dict())[:16]
        begun = load_votes(file) if file.exists() else None
        if begun and (begun.model_hash, begun.noise.split("-")[0]) != (model_hash, self.device.type):
            log.warning("begun on another kind of machine, so from the first image again: %s", Task(spec, c))
            file.unlink()
            begun = None
        precision = begun.precision if begun else arithmetic.chosen(c.precision, self.networks.device)
        network = FoldedCopy(model, dtype=arithmetic.dtype(precision))
        on_step(0, 1)
        votes = smoothing.collect_votes(
            network, data.test_x[:c.images], c.plan, labels=data.test_y[:c.images], seed=c.seed, precision=precision,
            model_hash=model_hash, file=file, stop=stop)
        if not votes.finished.all():
            raise OutOfTime(f"stopped with {int(votes.finished.sum())} of {c.images} images certified")
        more = {"precision": precision, "images": c.images, "draws": int(votes.draws.sum() + votes.pilot.sum())}
        votes.save(self.store.path(Task(spec, c)), about(Task(spec, c)) | {"provenance": origin(**more)})
        file.unlink(missing_ok=True)
        on_step(1, 1)


def evaluate_block(e: EvalSpec, model, images: torch.Tensor, labels: torch.Tensor, block: int) -> dict[str, torch.Tensor]:
    """Masks by stage for one block of test images."""
    if e.kind == "clean":
        return {"none": masks.clean_mask(model, images, labels, batch_size=e.batch_size)}
    if e.kind == "pgd":
        mask = masks.pgd_mask(model, images, labels, eps=e.eps, step_size=e.step, steps=e.steps,
                                 restarts=e.restarts, threat=e.threat, batch_size=e.batch_size, seed=e.seed,
                                 block=block)
        return {e.attack_name: mask}
    return autoattack.autoattack_masks(model, images, labels, eps=e.eps, threat=e.threat, attacks=e.attacks,
                                     batch_size=e.batch_size, seed=e.seed, block=block)
