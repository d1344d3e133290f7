"""The course of a run: what is measured while it trains, without changing a weight."""

import numpy as np
import torch

from . import evaluate
from .augment import centre
from .config import RunSpec
from .data import DeviceSet
from .dynamics import Recorder, statistics
from .fold import FoldedCopy
from .objectives import OBJECTIVES

BLOCK = 250  # images per block


def check_images(spec: RunSpec, train: int, test: int) -> None:
    """Refuse to follow more images than a run has."""
    for name, there in (("train_images", train), ("test_images", test)):
        wanted = getattr(spec.follow, name)
        if wanted > there:
            raise ValueError(f"expected at most {there} {name} of {spec.data.name} to follow, got {wanted}; "
                             "lower it under follow")


class Follower:
    """Rides on `train.fit` as the run's `FollowSpec` says; its arrays are kept with the run.

    At the end of each epoch that is due, and before the first as epoch 0, the network as it would be deployed (adaptive wing,
    eval mode, float32) is measured on the first training images, without augmentation, and on the first test images.
    Nothing in training reads these numbers: which epoch is best is decided on the validation images alone.
    """

    def __init__(self, spec: RunSpec, model: torch.nn.Module, data: DeviceSet) -> None:
        self.spec, self.follow, self.data = spec, spec.follow, data
        check_images(spec, len(data.train_y), len(data.test_y))
        self.recorder = Recorder(self.follow.record_every) if self.follow.record_every else None
        self.before = statistics(model) if self.recorder else {}
        self.lines: list[dict] = []

    def due(self, epoch: int) -> bool:
        """True if accuracy is measured after `epoch` epochs."""
        f = self.follow
        return epoch % f.every == 0 or epoch <= f.dense or epoch == self.spec.optim.epochs

    def measure(self, model: torch.nn.Module, epoch: int) -> None:
        """After `epoch` epochs."""
        f = self.follow
        if self.recorder and epoch:
            self.recorder.measure_drift(model, epoch, self.before)
        if not (f.train_images or f.test_images) or not self.due(epoch):
            return
        attack = self.spec.attack
        options = {"eps": attack.eps, "step_size": attack.step_size, "steps": f.steps, "threat": attack.threat,
                   "seed": self.spec.seed, "batch_size": BLOCK}
        copy, line = FoldedCopy(model), {"epoch": epoch}
        if f.train_images:
            x, y = centre(self.data.train_x[:f.train_images], self.spec.data.crop), self.data.train_y[:f.train_images]
            line["train_clean"] = evaluate.clean_mask(copy, x, y, batch_size=BLOCK)
            line["train_robust"], line["train_loss"] = evaluate.pgd_losses(copy, x, y, **options)
        if f.test_images:
            x, y = self.data.test_x[:f.test_images], self.data.test_y[:f.test_images]
            line["test_clean"] = evaluate.clean_mask(copy, x, y, batch_size=BLOCK)
            if OBJECTIVES[self.spec.method.objective].attacks:
                line["test_robust"] = evaluate.pgd_mask(copy, x, y, **options)
        self.lines.append(line)

    def arrays(self) -> dict[str, np.ndarray]:
        """epoch (E,), and for each measurement one row per epoch: boolean masks (E, images), train_loss (E, images) float32;
        of the recorder `Recorder.arrays` and drift_epoch, drift_layer, drift_mean, drift_log_var, one entry per epoch and
        layer each."""
        out = {name: np.stack([np.asarray(line[name]) for line in self.lines]) for name in (self.lines[0] if self.lines else ())}
        if self.recorder:
            drift = self.recorder.drift
            names = {"drift_epoch": "epoch", "drift_layer": "layer", "drift_mean": "mean_drift", "drift_log_var": "log_var_drift"}
            out |= self.recorder.arrays() | {key: np.array([d[name] for d in drift]) for key, name in names.items()}
        return out

    def state_dict(self) -> dict:
        """For a checkpoint; plain types and tensors."""
        return {"lines": self.lines, "recorder": self.recorder.state_dict() if self.recorder else {}}

    def load_state_dict(self, state: dict) -> None:
        self.lines = list(state["lines"])
        if self.recorder:
            self.recorder.load_state_dict(state["recorder"])
