"""What ties a fine-tune to its start: distillation, L2-SP, and training on the source task as well.

The TWINS paper compares with model-based and data-based ways of keeping robustness; which ones is not known to us. These are
stand-ins of ours, each after the paper that introduced it, on adversarial images (our reading).
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ..data.augment import augment, centre, to_float
from ..data.sets import DeviceSet
from ..nets.heads import Features, find_head, with_head
from ..nets.models import eval_mode
from ..specs.run import RunSpec
from . import transport


def distillation(start_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(start || network), mean over the images; gradients flow through the network only."""
    target = start_logits.detach().float().log_softmax(1)
    return F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean", log_target=True)


def feature_distance(start_features: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Squared distance of the features, mean over images and entries; gradients flow through the network only."""
    return F.mse_loss(features.float(), start_features.detach().float())


def nearest_classes(start: torch.nn.Module, source: DeviceSet, target: DeviceSet, keep: int, *,
                    size: int | None = None) -> DeviceSet:
    """`source` with the training images of its `keep` classes from which unbalanced optimal transport moves most mass to
    the target's classes, by mean features of `start` in eval mode; labels keep their numbers."""
    means = [transport.class_means(image_features(start, d.train_x, size=size), d.train_y.cpu().numpy(), d.num_classes)
             for d in (source, target)]
    chosen = torch.from_numpy(transport.select_classes(*means, keep).classes).to(source.train_y.device)
    kept = torch.isin(source.train_y, chosen)
    return dataclasses.replace(source, train_x=source.train_x[kept], train_y=source.train_y[kept])


def image_features(model: torch.nn.Module, images: torch.Tensor, *, size: int | None = None,
                   batch_size: int = 500) -> np.ndarray:
    """Features (N, d) of uint8 images, float32 on the CPU: what goes into the head of `model` in eval mode on the centre crops
    of `size` pixels (None: the whole images)."""
    images = centre(images, size)
    features = Features(model, find_head(model, images.shape[-1]))
    with torch.no_grad(), eval_mode(model), features.watching():
        parts = []
        for batch in images.split(batch_size):
            model(to_float(batch))
            parts.append(features.take().cpu().numpy())
    return np.concatenate(parts)


class Retention:
    """The terms of one training run that keep it near its start; none for methods that have none.

    Args:
        model: the network in training, as it is before the first step: what L2-SP stays near to.
        start: the network that training starts from, with its own head. It is frozen here.
        source: training images of the source task.
        make_attack: (network, attack spec) to a function from (images, labels, generator) to adversarial images.
        count: wraps a network so that its passes are counted.
    Raises:
        ValueError: the method needs `start` or `source` and got None.
    """

    def __init__(self, model: torch.nn.Module, spec: RunSpec, *, start: torch.nn.Module | None, source: DeviceSet | None,
                 make_attack: Callable, count: Callable = lambda network: network) -> None:
        m = spec.method
        self.method, self.model, self.spec, self.source = m, model, spec, source
        self.distills = max(m.distill_weight, m.feature_weight) > 0
        self.source_head: torch.nn.Module | None = None
        self.attack: Callable | None = None
        self.features: Features | None = None
        self.anchors: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        if m.needs_origin and start is None:
            raise ValueError(f"expected the start network for method {m.name!r}, got None")
        if m.source_weight and source is None:
            raise ValueError(f"expected the source images for method {m.name!r}, got None")
        if not (m.needs_origin or m.l2sp_weight):
            return
        size = spec.data.crop or spec.data.image_size
        self.head = find_head(model, size)
        if m.l2sp_weight:
            head = {id(p) for p in model.get_submodule(self.head).parameters()}
            self.anchors = [(p, p.detach().clone()) for p in model.parameters() if id(p) not in head]
        if m.needs_origin:
            self.features = Features(model, self.head)
            start_head = find_head(start, size)
        if m.source_weight:  # trained on, so a copy
            self.source_head = copy.deepcopy(start.get_submodule(start_head)).requires_grad_(True)
            if spec.source.method.objective != "natural":
                self.attack = make_attack(with_head(model, self.head, self.source_head), spec.source.attack)
        if self.distills:
            self.start = count(start.eval().requires_grad_(False))
            self.start_head = start.get_submodule(start_head)
            self.start_features = Features(start, start_head)

    def groups(self) -> list[dict]:
        """Parameter groups of the optimiser: with L2-SP weight decay acts on the head only; a source head trains too."""
        extra = list(self.source_head.parameters()) if self.source_head is not None else []
        if not self.anchors:
            return [{"params": [*self.model.parameters(), *extra]}]
        return [{"params": [*self.model.get_submodule(self.head).parameters(), *extra]},
                {"params": [p for p, _ in self.anchors], "weight_decay": 0.0}]

    def watching(self) -> contextlib.AbstractContextManager:
        """The context in which passes of the network must run for `loss` to see their features."""
        return self.features.watching() if self.features is not None else contextlib.nullcontext()

    def draw(self, n: int, generator: Callable[[str], torch.Generator]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(images, labels) of n random source images, adversarial where the source run was; None without joint training.

        Args:
            generator: purpose to generator, on the device of the images.
        """
        if self.source_head is None:
            return None
        d, device = self.spec.source.data, self.source.train_y.device
        index = torch.randint(len(self.source.train_y), (n,), generator=generator("source"), device=device)
        x = augment(self.source.train_x[index], d.augment, generator("source_augment"), size=d.crop)
        y = self.source.train_y[index]
        return (x if self.attack is None else self.attack(x, y, generator("source_attack"))), y

    def loss(self, kind: str, x: torch.Tensor, source_labels: torch.Tensor | None) -> torch.Tensor | None:
        """The terms for the pass over images x of a kind, weighted and summed; called right after that pass.

        Args:
            source_labels: of the source images that passed after x.
        """
        if self.features is None:
            return None
        features, m, terms = self.features.take(), self.method, []
        if self.distills and kind == "adversarial":
            own = features[:len(x)]
            with torch.no_grad(), self.start_features.watching():
                start_logits, start_features = self.start(x), self.start_features.take()
            if m.distill_weight:
                terms.append(m.distill_weight * distillation(start_logits, self.start_head(own)))
            if m.feature_weight:
                terms.append(m.feature_weight * feature_distance(start_features, own))
        if source_labels is not None:
            logits = self.source_head(features[len(x):]).float()
            terms.append(m.source_weight * F.cross_entropy(logits, source_labels))
        return torch.stack(terms).sum() if terms else None

    def add_gradients(self) -> None:
        """Add the gradient of alpha/2 ||w - w_start||^2, alpha (w - w_start), to the gradients; after backward."""
        if self.anchors:
            live = [(p, start) for p, start in self.anchors if p.grad is not None]
            away = torch._foreach_sub([p.detach() for p, _ in live], [start for _, start in live])
            torch._foreach_add_([p.grad for p, _ in live], away, alpha=self.method.l2sp_weight)

    def state_dict(self) -> dict:
        """What a checkpoint needs besides the network: the source head."""
        return {} if self.source_head is None else self.source_head.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self.source_head is not None:
            self.source_head.load_state_dict(state)
