"""Run and evaluation specs: frozen, nested, strictly read; the hash of a spec names its result.

A setting that changes numbers is in a spec; one that does not (device, workers, progress) is not. Fields that hold their
default are left out of the canonical JSON, so a later field with a neutral default leaves old hashes valid; therefore a
default is never changed once results exist.
"""

import dataclasses
import functools
from dataclasses import dataclass, field

from ..base.errors import choose
from .choices import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LOSSES,
    MOST_PIXELS,
    MOST_STEPS,
    PRECISIONS,
    check_arch,
    check_normalisation,
    check_radius,
    check_step_size,
    check_width,
)
from .method import MethodSpec
from .reading import _in_words, _require, _require_least, from_dict, spec_hash
from .schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images: a packed set by name, and the part of it that is used."""

    name: str
    image_size: int = 32
    exclude: tuple[str, ...] = ()  # class names left out (dog classes of a source that is later tuned on dogs)
    train_images: int | None = None  # class-balanced subset; None: all that remain
    val_images: int = 0  # held out of the training images
    augment: str = "crop_flip"
    crop: int | None = None  # side of the augmented crop and of the centre crop at test time; None: image_size
    split_seed: int = 0

    def __post_init__(self) -> None:
        choose(self.augment, AUGMENTATIONS, "augment")
        _require_least(self, 1, "image_size", most=MOST_STEPS)
        _require_least(self, 0, "val_images", "split_seed")
        if self.crop is not None:
            _require(0 < self.crop <= self.image_size, f"crop in 1..{self.image_size} (image_size) or null", self.crop)
            crops = self.crop == self.image_size or self.augment in ("resized_crop_flip", "center_crop")
            _require(crops, f"augment resized_crop_flip or center_crop with crop {self.crop}", self.augment)
        _require(self.train_images is None or self.train_images > 0, "train_images > 0 or null", self.train_images)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network; normalisation of the input is its layer 0."""

    arch: str  # see `check_arch`; of a function of one's own the name is part of the hash, the code is not
    norm: str = "batch"
    upsample: int | None = None  # nearest up-sampling inside the network (official code: 32 -> 224), eps stays per pixel
    width: int | None = None  # channels of the first stage; None: the arch's own
    mean: tuple[float, ...] = IMAGENET_MEAN  # of layer 0; they belong to the weights
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_arch(self.arch, self.norm)
        _require(self.upsample is None or self.upsample > 0, "upsample > 0 or null", self.upsample)
        _require((self.upsample or 0) <= MOST_PIXELS, f"upsample of at most {MOST_PIXELS} pixels", self.upsample)
        check_width(self.arch, self.width)
        _require(len(self.mean) == len(self.std) == 3 and min(self.std) > 0, "three means and three positive stds",
                 [list(self.mean), list(self.std)])
        check_normalisation(self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """PGD used to make training examples. Defaults: TWINS scripts (8/255 where the scripts write 0.0314)."""

    threat: str = "linf"
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    loss: str = "ce"
    random_start: bool = True
    eps_warmup: float = 0.0  # share of the run in which eps and step_size climb linearly from 0

    def __post_init__(self) -> None:
        _require(0 <= self.eps_warmup <= 1, "eps_warmup in [0, 1], a share of the run", self.eps_warmup)
        check_radius(self.eps, self.threat)
        check_step_size(self.step_size, self.threat)
        choose(self.loss, LOSSES, "attack loss")
        _require_least(self, 0, "steps", most=MOST_STEPS)
        _require(self.random_start or self.loss != "kl", "random_start with attack loss kl", self.random_start)

    def measured(self, steps: int) -> dict[str, object]:
        """Arguments of the PGD that a run is measured with while it trains: threat and eps of its training, but the same `steps`
        steps of eps / 2 for all methods, which is the training step of most. A longer one, as that of Fast-AT, may find little of
        what is wrong."""
        return {"threat": self.threat, "eps": self.eps, "step_size": self.eps / 2 or self.step_size, "steps": steps}


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """SGD as in the official scripts: momentum 0.9, no Nesterov, decay on all parameters."""

    epochs: int = 60
    batch_size: int = 128
    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 1e-5
    schedule: str = "piecewise"
    milestones: tuple[float, ...] = (0.5, 5 / 6)  # of the run: epochs 30 and 50 of 60
    warmup: float = 0.0  # share of the run with linear climb
    precision: str = "float32"  # bfloat16: where the hardware has it (`arithmetic.chosen`)
    val_every: int = 1  # epochs between measurements on the validation images; 0: never
    val_steps: int = 10  # PGD steps of that measurement (`AttackSpec.measured`)
    keep_best: bool = False  # keep also the weights of the epoch with the best robust accuracy on the validation images

    def __post_init__(self) -> None:
        choose(self.schedule, SCHEDULES, "schedule")
        choose(self.precision, PRECISIONS, "precision")
        _require_least(self, 1, "epochs", most=MOST_STEPS)
        _require_least(self, 1, "batch_size", "lr")
        _require_least(self, 0, "weight_decay", "val_every")
        _require_least(self, 0, "val_steps", most=MOST_STEPS)
        _require(0 <= self.momentum < 1, "momentum in [0, 1)", self.momentum)
        _require(all(0 < m < 1 for m in self.milestones), "milestones in (0, 1), as shares of the run",
                 list(self.milestones), "divide epochs by their number, such as 30/60")
        _require(self.schedule not in ("cyclic", "one_cycle") or len(self.milestones) < 2,
                 f"one milestone, the peak of {self.schedule}", list(self.milestones), "name it, such as milestones: [0.4]")
        _require(0 <= self.warmup < 1, "warmup in [0, 1), a share of the run", self.warmup)


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """A pre-trained network from elsewhere, in the folder `weights` of the data folder: a safetensors or torch file, or a folder
    with one of them."""

    file: str
    classes: int
    origin: str = ""  # where its publisher offers it
    key: str = ""  # which of several state dicts in the file
    prefix: str = ""  # of the tensor names to take, where there are several networks in one state dict
    accuracy: float | None = None  # on clean test images, as published, in (0, 1]; None: as in reference/networks.csv

    def __post_init__(self) -> None:
        _require("/" not in self.file and self.file, "the name of a file, without folders", self.file)
        _require_least(self, 1, "classes")
        _require(self.accuracy is None or 0 < self.accuracy <= 1, "accuracy in (0, 1], a fraction", self.accuracy,
                 "divide a percentage by 100")


@dataclass(frozen=True, kw_only=True)
class NoiseSpec:
    """Gaussian noise on training images, in [0, 1] pixels after augmentation and not clipped (randomized smoothing, Cohen et al.
    2019; mixed noise, arXiv 2312.09020, whose own levels and shares are not known to us)."""

    sigmas: tuple[float, ...]  # levels, equally likely; 0 leaves an image clean
    draw: str = "image"  # a level for each image, for each batch, or uniform: for each image between the least and the largest

    def __post_init__(self) -> None:
        choose(self.draw, ("image", "batch", "uniform"), "draw of noise")
        _require(self.sigmas and all(0 <= s <= 5 for s in self.sigmas), "sigmas in 0 to 5 in [0, 1] pixels", list(self.sigmas),
                 "divide by 255 if they are in 0-255 units")
        _require(max(self.sigmas) > 0 and len(set(self.sigmas)) == len(self.sigmas), "different sigmas, one above 0",
                 list(self.sigmas), "leave noise out for clean training")


@dataclass(frozen=True, kw_only=True)
class FollowSpec:
    """What is kept of a run's course besides its per-epoch rows; it changes no weight."""

    record_every: int = 0  # steps between lines of norms, gradients and angles (`dynamics.Recorder`); 0: none
    # the first so many images of the run's split that accuracy is measured on during training, without augmentation, from before
    # the first epoch to the last; 0: none
    train_images: int = 0
    test_images: int = 0
    every: int = 1  # epochs between those measurements
    dense: int = 0  # up to this epoch each one
    steps: int = 10  # PGD steps of those measurements (`AttackSpec.measured`)
    features: int = 0  # the first so many test images whose features (what goes into the head) are kept, clean and under that PGD
    feature_epochs: tuple[int, ...] = ()  # after these; epoch 0 is the start

    def __post_init__(self) -> None:
        _require((self.features > 0) == bool(self.feature_epochs), "features and feature_epochs, both or neither",
                 [self.features, list(self.feature_epochs)])
        _require(all(e >= 0 for e in self.feature_epochs), "feature_epochs of at least 0", list(self.feature_epochs))
        _require_least(self, 0, "record_every", "train_images", "test_images", "dense", "features")
        _require_least(self, 1, "every", "steps", most=MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run; a fine-tune names what it starts from: another run, or weights from elsewhere."""

    data: DataSpec
    model: ModelSpec
    method: MethodSpec
    optim: OptimSpec
    attack: AttackSpec = field(default_factory=AttackSpec)
    source: "RunSpec | None" = None
    weights: WeightsSpec | None = None
    follow: FollowSpec | None = None
    noise: NoiseSpec | None = None
    keep_head: bool = False  # go on with the head of the start network, whose classes are the target's
    seed: int = 0

    def __post_init__(self) -> None:
        m = self.method
        _require_least(self, 0, "seed")
        _require(not self.keep_head or self.source or self.weights, "a source run or weights with keep_head", "neither")
        selected = m.objective != "natural" and self.data.val_images > 0 and self.optim.val_every > 0
        _require(not self.optim.keep_best or selected, "an objective with adversarial images, val_images and val_every with "
                 "keep_best", m.objective)
        _require(m.wings in ("single", "split") or self.model.norm == "batch", f"norm 'batch' for the wings {m.wings!r}",
                 self.model.norm)
        _require(not (self.source and self.weights), "a source run or weights from elsewhere", "both")
        _require(self.noise is None or m.objective == "natural", "objective natural with noise", m.objective)
        recorded = self.follow is not None and self.follow.record_every > 0
        _require(not (recorded and m.awp_gamma), "record_every 0 with awp_gamma", self.follow.record_every if recorded else 0,
                 "its gradients are not those at the weights")
        _require(not (recorded and m.trains == "head"), "record_every 0 with trains head",
                 self.follow.record_every if recorded else 0, "the other weights have no gradient")
        keeps = m.needs_origin or m.l2sp_weight > 0 or m.wings == "frozen" or m.trains == "head"
        _require(self.source or self.weights or not keeps, f"a source run or weights for method {m.name!r}", "neither",
                 "it keeps something of its start")
        if m.source_weight:
            _require(self.source is not None, f"a source run for method {m.name!r}", self.weights and self.weights.file,
                     "joint training needs the images of the source task")
            sides = [(d.image_size, d.crop or d.image_size) for d in (self.data, self.source.data)]
            _require(sides[0] == sides[1], f"source images of the target's size {sides[0]} for method {m.name!r}", sides[1])
        if self.source is not None:
            mine, theirs = (dataclasses.replace(m, upsample=None) for m in (self.model, self.source.model))
            _require(mine == theirs, f"source of {_in_words(mine)}", _in_words(theirs))
            classes = [(d.name, d.exclude) for d in (self.data, self.source.data)]
            _require(not self.keep_head or classes[0] == classes[1], f"a source on the same classes {classes[0]} with keep_head",
                     classes[1])

    @functools.cached_property
    def hash(self) -> str:
        """The name of its results."""
        return spec_hash(self)


def start_model(model: dict, start: dict, where: str, /, **changes: object) -> ModelSpec:
    """The network of runs from one start: `model`, with the normalisation that a notebook's parameters give for the
    start (mean and std, both or neither), and `changes`."""
    given = {key: start[key] for key in ("mean", "std") if key in start}
    _require(len(given) != 1, f"mean and std, both or neither, in {where}", ", ".join(given))
    return from_dict(ModelSpec, {**model, **given, **changes}, where)
