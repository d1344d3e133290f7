"""The images and networks of a run on the device: what it starts from, and what it has become."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from ..attack import masks
from ..base import paths
from ..base.files import check_safetensors, refused
from ..data import packed as data_packed
from ..data import sets
from ..data.augment import centre
from ..nets import foreign, heads, models, norms
from ..nets.checkpoint import load_into, load_weights, tensor_hash
from ..nets.fold import FoldedCopy
from ..specs.reading import canonical_json
from ..specs.run import DataSpec, RunSpec, WeightsSpec
from ..store.store import Store, split_name
from ..train import retain
from .given import pick_device

CHECKED = 50  # images in a batch of those that a foreign network is tried on
LOOKED_AT = 500  # images on which a foreign network has to be better than chance


class Networks:
    """Images and networks of the runs of one store, on one device."""

    def __init__(self, store: Store, device: str | torch.device | None = None) -> None:
        self.store = store
        self.device = pick_device(device)
        self._sets: dict[str, sets.DeviceSet] = {}

    def data(self, spec: DataSpec) -> sets.DeviceSet:
        """The run's images on the device, split by the indices stored with the results."""
        key = canonical_json(spec)
        if key not in self._sets:
            if len(self._sets) >= 2:
                self._sets.pop(next(iter(self._sets)))
            packed = data_packed.load_packed(spec.name, spec.image_size)
            path = self.store.root / "splits" / f"{split_name(spec)}.npz"
            split = sets.stored_split(packed, path, exclude=spec.exclude, train_images=spec.train_images,
                                          val_images=spec.val_images, seed=spec.split_seed)
            device_set = sets.to_device(packed, split, self.device)
            device_set = dataclasses.replace(device_set, val_x=centre(device_set.val_x, spec.crop),
                                             test_x=centre(device_set.test_x, spec.crop))
            self._sets[key] = device_set
        return self._sets[key]

    def restore_split(self, spec: DataSpec) -> None:
        """Make the file of indices again, where it is lost and the images are there."""
        if not (self.store.root / "splits" / f"{split_name(spec)}.npz").exists():
            with contextlib.suppress(FileNotFoundError):
                self.data(spec)

    def trained(self, spec: RunSpec, at: str = "last") -> torch.nn.Module:
        """The network of a finished run (two wings where the method has them), on the device.

        Args:
            at: "last", "best" (on the validation images) or "start" (what the run starts from).
        """
        if at == "start":
            return self.start(spec)
        path = self.store.weights_path(spec, at)
        if path is None:
            raise FileNotFoundError(f"expected the {at} weights of run {spec.hash} in {self.store.root}, got none; train it")
        with self._named(path):
            model = load_into(self._shell(spec), self._own(path, spec, at))
        return model.to(self.device)

    def _own(self, path: Path, spec: RunSpec, at: str = "last") -> dict[str, torch.Tensor]:
        """The tensors of a run's weights; another run's, or others than those that were written, are refused."""
        state, meta = load_weights(path)
        if meta.get("spec") != canonical_json(spec):
            raise refused(path, f"the weights of run {spec.hash}", "those of another one")
        record = None if at != "last" or check_safetensors(path) else self.store.run(spec)
        if record and record["weights"] != tensor_hash(state):  # an earlier version wrote no digest into the file
            raise refused(path, f"the weights that run {spec.hash} ended with", "others")
        return state

    def origin(self, spec: RunSpec) -> torch.nn.Module | None:
        """The network whose weights a run starts from, with its own head, on the device; None for random weights."""
        if spec.source is None and spec.weights is None:
            return None
        path, classes = self.source_of(spec)
        model, chosen = make_network(spec, classes), spec.weights or WeightsSpec(file=path.name, classes=classes)
        head = heads.find_head(model, spec.data.crop or spec.data.image_size) if self.spare_head(spec) else ""
        with self._named(path):
            state = self._own(path, spec.source) if spec.source else load_weights(path, key=chosen.key)[0]
            return load_into(model, state, prefix=chosen.prefix, head=head).to(self.device)

    @staticmethod
    def spare_head(spec: RunSpec) -> bool:
        """True if a foreign start may come without a head: it is replaced, and nothing else needs it."""
        return bool(spec.weights) and not spec.keep_head and not spec.method.distill_weight

    def start(self, spec: RunSpec) -> torch.nn.Module:
        """The network that a run starts from: source weights (or none), fresh head, wings."""
        classes, model = self.data(spec.data).num_classes, self.origin(spec)
        if model is None:
            model = make_network(spec, classes)
        elif spec.keep_head:
            if self.source_of(spec)[1] != classes:
                raise ValueError(f"expected a start network of the {classes} classes of {spec.data.name} with keep_head, got one "
                                 f"of {self.source_of(spec)[1]}; leave keep_head out")
        else:
            size = spec.data.crop or spec.data.image_size
            model = heads.replace_head(model, classes, image_size=size, seed=spec.seed)
        return with_wings(spec, model)

    def source_images(self, spec: RunSpec, start: torch.nn.Module) -> sets.DeviceSet:
        """The source task's training images that joint training uses: all, or those of the classes that resemble the
        target in the features of `start`."""
        source, keep = self.data(spec.source.data), spec.method.source_classes
        if keep is None:
            return source
        return retain.nearest_classes(start, source, self.data(spec.data), keep, size=spec.data.crop)

    def source_of(self, spec: RunSpec) -> tuple[Path, int]:
        """(file, classes) of the weights that a run starts from."""
        if spec.source is not None:
            path = self.store.weights_path(spec.source)
            return path, int(self.store.run(spec.source)["classes"])
        path = paths.data_dir() / "weights" / spec.weights.file
        if not path.exists():
            raise FileNotFoundError(
                f"expected the pre-trained weights {path.name} in {path.parent}, got no such file; take them from "
                f"{spec.weights.origin or 'their publisher'} and store the state dict as safetensors (README, Your own network)")
        foreign.check_name(path)
        return path, spec.weights.classes

    def _shell(self, spec: RunSpec) -> torch.nn.Module:
        record = self.store.run(spec)  # of a finished run the images are not needed
        return with_wings(spec, make_network(spec, record["classes"] if record else self.data(spec.data).num_classes))

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    def measure_start(self, spec: RunSpec, model: torch.nn.Module) -> dict:
        """What is kept of a foreign start: its normalisation, and where its head is kept, how many of the validation
        images (or, if there are none, training images) it has right."""
        kept = {name: [round(v, 6) for v in getattr(model.normalize, name).flatten().tolist()] for name in ("mean", "std")}
        if spec.keep_head:
            data = self.data(spec.data)
            val = len(data.val_y) > 0
            x, y = (data.val_x, data.val_y) if val else (centre(data.train_x[:LOOKED_AT], spec.data.crop), data.train_y)
            right = masks.clean_mask(FoldedCopy(model), x[:LOOKED_AT], y[:LOOKED_AT], batch_size=CHECKED)
            kept |= {"right": int(right.sum()), "images": len(right), "of": "validation" if val else "training"}
        return kept


def make_network(spec: RunSpec, classes: int) -> torch.nn.Module:
    """The run's network with new weights and a head for so many classes."""
    m = spec.model
    return models.make_model(m.arch, classes, norm=m.norm, upsample=m.upsample, width=m.width, mean=m.mean, std=m.std,
                             seed=spec.seed)


def with_wings(spec: RunSpec, model: torch.nn.Module) -> torch.nn.Module:
    """The network with the wings of the run's method, where it has two."""
    if not spec.method.two_branches:
        return model
    second = "frozen" if spec.method.wings == "twins" else "adaptive"
    return norms.twinsify(model, share_affine=spec.method.share_affine, second=second)
