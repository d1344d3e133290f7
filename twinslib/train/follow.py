"""The course of a run: what is measured while it trains, without changing a weight."""

import numpy as np
import torch

from ..attack import masks, pgd
from ..data.augment import centre, to_float
from ..data.sets import DeviceSet
from ..nets.fold import FoldedCopy
from ..nets.heads import Features, find_head
from ..specs.run import RunSpec
from .dynamics import Recorder, statistics

BLOCK = 250  # images per block


def check_images(spec: RunSpec, train: int, test: int) -> None:
    """Refuse to follow more images than a run has."""
    for name, there in (("train_images", train), ("test_images", test), ("features", test)):
        wanted = getattr(spec.follow, name)
        if wanted > there:
            raise ValueError(f"expected at most {there} {name} of {spec.data.name} to follow, got {wanted}; "
                             "lower it under follow")


class Follower:
    """Rides on `loop.fit` as the run's `FollowSpec` says; its arrays are kept with the run.

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
        self.features: list[dict] = []

    def due(self, epoch: int) -> bool:
        """True if accuracy is measured after `epoch` epochs."""
        f = self.follow
        return epoch % f.every == 0 or epoch <= f.dense or epoch == self.spec.optim.epochs

    def measure(self, model: torch.nn.Module, epoch: int) -> None:
        """After `epoch` epochs."""
        f = self.follow
        if self.recorder and epoch:
            self.recorder.measure_drift(model, epoch, self.before)
        if epoch in f.feature_epochs:
            self.features.append({"epoch": epoch, **self._features(FoldedCopy(model))})
        if not (f.train_images or f.test_images) or not self.due(epoch):
            return
        options = {**self.spec.attack.measured(f.steps), "seed": self.spec.seed, "batch_size": BLOCK}
        copy, line = FoldedCopy(model), {"epoch": epoch}
        if f.train_images:
            x, y = centre(self.data.train_x[:f.train_images], self.spec.data.crop), self.data.train_y[:f.train_images]
            line["train_clean"] = masks.clean_mask(copy, x, y, batch_size=BLOCK)
            line["train_robust"], line["train_loss"] = masks.pgd_losses(copy, x, y, **options)
        if f.test_images:
            x, y = self.data.test_x[:f.test_images], self.data.test_y[:f.test_images]
            line["test_clean"] = masks.clean_mask(copy, x, y, batch_size=BLOCK)
            if self.spec.method.attacks:
                line["test_robust"] = masks.pgd_mask(copy, x, y, **options)
        self.lines.append(line)

    def _features(self, copy: FoldedCopy) -> dict[str, torch.Tensor]:
        """What goes into the head for the first test images, clean and attacked, float16 (N, d)."""
        x, y = self.data.test_x[:self.follow.features], self.data.test_y[:self.follow.features]
        x = to_float(x)
        inside = Features(copy, find_head(copy, self.spec.data.crop or self.spec.data.image_size))
        start = torch.Generator(x.device).manual_seed(self.spec.seed)
        attacked = pgd.pgd(copy, x, y, **self.spec.attack.measured(self.follow.steps), generator=start)
        masks.check_attacked(attacked)
        found = {}
        for name, images in (("clean", x), ("attacked", attacked)):
            with torch.no_grad(), inside.watching():
                for block in images.split(BLOCK):
                    copy(block)
                found[name] = inside.take().half().cpu()
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """epoch (E,), and for each measurement one row per epoch: boolean masks (E, images), train_loss (E, images) float32;
        of the recorder `Recorder.arrays` and drift_epoch, drift_layer, drift_mean, drift_log_var, one entry per epoch and
        layer each. Of the features feature_epoch (F,), feature_label (N,), and features_clean, features_attacked (F, N, d)
        float16."""
        out = {name: np.stack([np.asarray(line[name]) for line in self.lines]) for name in (self.lines[0] if self.lines else ())}
        if self.recorder:
            names = {"drift_epoch": "epoch", "drift_layer": "layer", "drift_mean": "mean_drift", "drift_log_var": "log_var_drift"}
            out |= self.recorder.arrays()
            out |= {key: np.array([line[name] for line in self.recorder.drift]) for key, name in names.items()}
        if self.features:
            out |= {"feature_epoch": np.array([line["epoch"] for line in self.features]),
                    "feature_label": self.data.test_y[:self.follow.features].cpu().numpy()}
            for kind in ("clean", "attacked"):
                out[f"features_{kind}"] = np.stack([line[kind].numpy() for line in self.features])
        return out

    def state_dict(self) -> dict:
        """For a checkpoint; plain types and tensors."""
        return {"lines": self.lines, "features": self.features, "recorder": self.recorder.state_dict() if self.recorder else {}}

    def load_state_dict(self, state: dict) -> None:
        self.lines, self.features = list(state["lines"]), list(state["features"])
        if self.recorder:
            self.recorder.load_state_dict(state["recorder"])
