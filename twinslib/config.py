"""Run and evaluation specs: frozen, nested, strictly read; the hash of a spec names its result.

A setting that changes numbers is in a spec; one that does not (device, workers, progress) is not. Fields that hold their
default are left out of the canonical JSON, so a later field with a neutral default leaves old hashes valid; therefore a
default is never changed once results exist.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field

from .arithmetic import PRECISIONS
from .attacks import LOSSES, check_radius, check_step_size
from .augment import AUGMENTATIONS
from .errors import choose
from .models import ARCHS, IMAGENET_MEAN, IMAGENET_STD, check_normalisation, check_width
from .norms import NORMS
from .schedules import SCHEDULES
from .sequential import Plan, certify_plan, sequential_plan
from .strength import PARTS, STANDARD, Attack


def _require(ok: bool, expected: str, got: object, then: str = "") -> None:
    if not ok:
        raise ValueError(f"expected {expected}, got {got!r}" + (f"; {then}" if then else ""))


def _in_words(spec: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in to_dict(spec).items())


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
        _require(self.image_size > 0, "image_size > 0", self.image_size)
        if self.crop is not None:
            _require(0 < self.crop <= self.image_size, f"crop in 1..{self.image_size} (image_size) or null", self.crop)
            crops = self.crop == self.image_size or self.augment in ("resized_crop_flip", "center_crop")
            _require(crops, f"augment resized_crop_flip or center_crop with crop {self.crop}", self.augment)
        _require(self.val_images >= 0, "val_images >= 0", self.val_images)
        _require(self.train_images is None or self.train_images > 0, "train_images > 0 or null", self.train_images)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network; normalisation of the input is its layer 0."""

    arch: str
    norm: str = "batch"
    upsample: int | None = None  # nearest up-sampling inside the network (official code: 32 -> 224), eps stays per pixel
    width: int | None = None  # channels of the first stage; None: the arch's own
    mean: tuple[float, ...] = IMAGENET_MEAN  # of layer 0; they belong to the weights
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        choose(self.arch, ARCHS, "arch")
        choose(self.norm, NORMS, "norm")
        _require(self.upsample is None or self.upsample > 0, "upsample > 0 or null", self.upsample)
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
        _require(self.steps >= 0, "steps >= 0", self.steps)
        _require(self.random_start or self.loss != "kl", "random_start with attack loss kl", self.random_start)

    def measured(self, steps: int) -> dict[str, object]:
        """Arguments of the PGD that a run is measured with while it trains: threat and eps of its training, but the same `steps`
        steps of eps / 2 for all methods, which is the training step of most. A longer one, as that of Fast-AT, may find little of
        what is wrong."""
        return {"threat": self.threat, "eps": self.eps, "step_size": self.eps / 2 or self.step_size, "steps": steps}


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What is minimised, through which wings, and what ties the network to its start. Defaults: the official TWINS code;
    each quirk is a switch.

    Args:
        name: label in tables.
        objective: natural, at (cross-entropy on adversarial images) or trades.
        wings: single (one ordinary network); twins (first half of the batch frozen, second half adaptive); the controls
            two_adaptive (as twins, but the first half has an ordinary batch norm of its own) and split (one ordinary
            network, the halves pass one after the other); or frozen (one network, statistics of pre-training throughout).
        twins_weight: lambda, weight of the first half's loss.
        normalize_loss: divide the sum of both wings' losses by 1 + lambda (official code does not).
        share_affine: both wings use one gamma and beta (official code: each wing has its own, both trained).
        attack_wing: wing that is attacked (official code: adaptive, with running statistics); alternating: adaptive in
            even steps, frozen in odd ones.
        trades_beta: weight of the KL term.
        kl_divisor: batch (official TWINS-TRADES code: KL summed over a wing's half, divided by the batch size, so that
            the effective beta is half of trades_beta) or wing (mean over the wing's own images).
        distill_weight: of KL(start network || network) on adversarial images, both through the start's head (Learning
            without Forgetting, Li and Hoiem 2016; the official code's remnants name 0.3).
        feature_weight: of the mean squared distance to the start network's features on adversarial images.
        l2sp_weight: alpha of alpha/2 ||w - w_start||^2, in place of weight decay for all but the head (L2-SP, Li et al.
            2018).
        source_weight: of the source task's loss on as many source images as target images (joint training).
        source_classes: number of source classes, chosen by unbalanced optimal transport; None: all.
        trains: all weights, or head: the last layer alone, on features in eval mode (linear probe).
        replays: Free adversarial training (Shafahi et al. 2019): each batch is trained on so many times, and the one backward
            pass for the weights also moves the perturbation, by eps; 1: PGD as the run's attack says.
        awp_gamma: size of the adversarial weight perturbation relative to each weight's norm (AWP, Wu et al. 2020; 0.01 for
            AT in its code); 0: none.
    """

    name: str
    objective: str = "at"
    wings: str = "single"
    twins_weight: float = 1.0
    normalize_loss: bool = False
    share_affine: bool = False
    attack_wing: str = "adaptive"
    trades_beta: float = 6.0
    kl_divisor: str = "batch"
    distill_weight: float = 0.0
    feature_weight: float = 0.0
    l2sp_weight: float = 0.0
    source_weight: float = 0.0
    source_classes: int | None = None
    awp_gamma: float = 0.0
    trains: str = "all"
    replays: int = 1

    def __post_init__(self) -> None:
        choose(self.objective, ("natural", "at", "trades"), "objective")
        choose(self.wings, ("single", "twins", "two_adaptive", "split", "frozen"), "wings")
        choose(self.attack_wing, ("adaptive", "frozen", "alternating"), "attack_wing")
        choose(self.kl_divisor, ("batch", "wing"), "kl_divisor")
        for name in ("twins_weight", "trades_beta", "distill_weight", "feature_weight", "l2sp_weight", "source_weight",
                     "awp_gamma"):
            _require(getattr(self, name) >= 0, f"{name} >= 0", getattr(self, name))
        _require(self.two_branches or self.attack_wing == "adaptive", "attack_wing adaptive without two branches",
                 self.attack_wing)
        _require(self.source_classes is None or self.source_classes > 0, "source_classes > 0 or null", self.source_classes)
        _require(self.source_classes is None or self.source_weight > 0, "source_weight > 0 with source_classes",
                 self.source_weight)
        _require(self.source_weight == 0 or (self.wings, self.objective) == ("single", "at"),
                 "wings single and objective at with source_weight", f"{self.wings}, {self.objective}")
        choose(self.trains, ("all", "head"), "trains")
        head_alone = self.wings == "single" and self.objective == "natural" and max(
            self.distill_weight, self.feature_weight, self.l2sp_weight, self.source_weight) == 0
        _require(self.trains == "all" or head_alone, "trains all but for plain natural training", self.name)
        plain = max(self.distill_weight, self.feature_weight, self.l2sp_weight, self.source_weight) == 0
        _require(self.awp_gamma == 0 or plain, "no other term of the loss with awp_gamma", self.name)
        _require(self.replays > 0, "replays > 0", self.replays)
        free = (self.objective, self.attack_wing) == ("at", "adaptive") and plain and self.awp_gamma == 0
        _require(self.replays == 1 or free, "replays 1 but for plain adversarial training", self.replays)
        attacked = self.objective != "natural"
        _require(attacked or self.distill_weight == self.feature_weight == 0,
                 "an objective with adversarial images for distillation", self.objective)

    @property
    def halves(self) -> bool:
        """True if the loss is a sum over two halves of the batch."""
        return self.wings in ("twins", "two_adaptive", "split")

    @property
    def two_branches(self) -> bool:
        """True if each batch norm is double."""
        return self.wings in ("twins", "two_adaptive")

    @property
    def needs_origin(self) -> bool:
        """True if the start network, with its own head, is needed throughout training."""
        return max(self.distill_weight, self.feature_weight, self.source_weight) > 0


METHODS = {
    m.name: m
    for m in (
        MethodSpec(name="natural", objective="natural"),
        MethodSpec(name="at"),
        MethodSpec(name="trades", objective="trades"),
        MethodSpec(name="twins_at", wings="twins"),
        MethodSpec(name="twins_trades", wings="twins", objective="trades"),
        # ways of keeping robustness that the paper compares with, rebuilt by us
        MethodSpec(name="distill", distill_weight=0.3),
        MethodSpec(name="feature_distill", feature_weight=1.0),
        MethodSpec(name="l2sp", l2sp_weight=0.01),
        MethodSpec(name="joint", source_weight=0.3),
        MethodSpec(name="joint_uot", source_weight=0.3, source_classes=20),
        MethodSpec(name="frozen_at", wings="frozen"),
        MethodSpec(name="at_natural"),  # from a naturally trained network
        MethodSpec(name="at_random"),  # from random weights
        # controls of TWINS, each differing from it or from its baseline in one thing
        MethodSpec(name="at_lr"),  # lr times 1 + lambda
        MethodSpec(name="at_split", wings="split"),
        MethodSpec(name="two_adaptive", wings="two_adaptive"),
        MethodSpec(name="twins_shared", wings="twins", share_affine=True),
        MethodSpec(name="twins_attack_frozen", wings="twins", attack_wing="frozen"),
        MethodSpec(name="twins_attack_alternating", wings="twins", attack_wing="alternating"),
        MethodSpec(name="trades_beta3", objective="trades", trades_beta=3.0),
        MethodSpec(name="twins_trades_wing", wings="twins", objective="trades", kl_divisor="wing"),
        # randomized smoothing: pre-training and fine-tuning, told apart by the run's noise and start
        MethodSpec(name="noise", objective="natural"),
        MethodSpec(name="mixed_noise", objective="natural"),
        MethodSpec(name="natural_frozen", objective="natural", wings="frozen"),
        MethodSpec(name="linear_probe", objective="natural", trains="head"),
        # ways out of robust overfitting; all but the first differ from AT in their schedule
        MethodSpec(name="at_awp", awp_gamma=0.01),
        MethodSpec(name="at_cosine"),
        MethodSpec(name="at_cyclic"),
        MethodSpec(name="at_slow_fast"),
        MethodSpec(name="at_short_plateau"),  # from random weights, as the next
        MethodSpec(name="at_long_plateau"),
        # adversarial fine-tuning of a natural network, its rivals, and itself without one of its parts
        MethodSpec(name="at_scratch"),  # from random weights, as the next two
        MethodSpec(name="trades_scratch", objective="trades"),
        MethodSpec(name="free_at", replays=8),
        MethodSpec(name="fast_at"),  # one step, larger than eps
        MethodSpec(name="aft"),
        MethodSpec(name="aft_random"),  # the same few epochs from random weights
        MethodSpec(name="aft_free", replays=4),
        MethodSpec(name="aft_twins", wings="twins"),
        MethodSpec(name="aft_public"),  # from a network of others
        MethodSpec(name="aft_l2"),  # under the other threat, as the next
        MethodSpec(name="aft_l2_random"),
        MethodSpec(name="aft_constant"),  # from here on AFT with another schedule
        MethodSpec(name="aft_piecewise"),
        MethodSpec(name="aft_cosine"),
        MethodSpec(name="aft_one_cycle"),
        MethodSpec(name="aft_fast_decay"),
        MethodSpec(name="aft_slow_start"),
        MethodSpec(name="aft_slow_fast_exp"),
        MethodSpec(name="aft_eps_warmup"),
    )
}


def method(name: str, /, **changes: object) -> MethodSpec:
    """The method called `name`, with `changes` to its switches."""
    spec = METHODS[choose(name, METHODS, "method")]
    return from_dict(MethodSpec, {**dataclasses.asdict(spec), **changes})


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
        _require(self.epochs > 0, "epochs > 0", self.epochs)
        _require(self.batch_size > 0, "batch_size > 0", self.batch_size)
        _require(self.lr > 0, "lr > 0", self.lr)
        _require(0 <= self.momentum < 1, "momentum in [0, 1)", self.momentum)
        _require(self.weight_decay >= 0, "weight_decay >= 0", self.weight_decay)
        _require(all(0 < m < 1 for m in self.milestones), "milestones in (0, 1), as shares of the run",
                 list(self.milestones), "divide epochs by their number, such as 30 / 60")
        _require(0 <= self.warmup < 1, "warmup in [0, 1), a share of the run", self.warmup)
        _require(self.val_every >= 0, "val_every >= 0", self.val_every)
        _require(self.val_steps >= 0, "val_steps >= 0", self.val_steps)


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
        _require(self.classes > 0, "classes > 0", self.classes)
        _require(self.accuracy is None or 0 < self.accuracy <= 1, "accuracy in (0, 1], a fraction", self.accuracy,
                 "divide a percentage by 100")


@dataclass(frozen=True, kw_only=True)
class NoiseSpec:
    """Gaussian noise on training images, in [0, 1] pixels after augmentation and not clipped (randomized smoothing, Cohen et al.
    2019; mixed noise, arXiv 2312.09020, whose own levels and shares are not known to us).

    Args:
        sigmas: levels, equally likely; 0 leaves an image clean.
        draw: a level for each image, for each batch, or uniform: for each image between the least and the largest.
    """

    sigmas: tuple[float, ...]
    draw: str = "image"

    def __post_init__(self) -> None:
        choose(self.draw, ("image", "batch", "uniform"), "draw of noise")
        _require(self.sigmas and all(0 <= s <= 5 for s in self.sigmas), "sigmas in 0 to 5 in [0, 1] pixels", list(self.sigmas),
                 "divide by 255 if they are in 0-255 units")
        _require(max(self.sigmas) > 0 and len(set(self.sigmas)) == len(self.sigmas), "different sigmas, one above 0",
                 list(self.sigmas), "leave noise out for clean training")


@dataclass(frozen=True, kw_only=True)
class FollowSpec:
    """What is kept of a run's course besides its per-epoch rows; it changes no weight.

    Args:
        record_every: steps between lines of norms, gradients and angles (`dynamics.Recorder`); 0: none.
        train_images, test_images: the first so many images of the run's split that accuracy is measured on during training,
            without augmentation, from before the first epoch to the last; 0: none.
        every: epochs between those measurements, up to epoch `dense` each one.
        steps: PGD steps of those measurements (`AttackSpec.measured`).
        features: the first so many test images whose features (what goes into the head) are kept, clean and under that PGD, after
            each of `feature_epochs`; epoch 0 is the start.
    """

    record_every: int = 0
    train_images: int = 0
    test_images: int = 0
    every: int = 1
    dense: int = 0
    steps: int = 10
    features: int = 0
    feature_epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require((self.features > 0) == bool(self.feature_epochs), "features and feature_epochs, both or neither",
                 [self.features, list(self.feature_epochs)])
        _require(all(e >= 0 for e in self.feature_epochs), "feature_epochs of at least 0", list(self.feature_epochs))
        for name in ("record_every", "train_images", "test_images", "dense", "features"):
            _require(getattr(self, name) >= 0, f"{name} >= 0", getattr(self, name))
        for name in ("every", "steps"):
            _require(getattr(self, name) > 0, f"{name} > 0", getattr(self, name))


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
        return spec_hash(self)


NETWORKS = ("last", "best", "start")


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """One measurement on the first `images` test images of a run's split (nested subsets of one fixed order).

    kind clean needs nothing else; pgd uses step_size, steps, restarts; autoattack runs `attacks` of the standard suite.
    """

    kind: str
    images: int
    threat: str = "linf"
    eps: float = 0.0
    step_size: float | None = None  # None: 2.5 eps / steps
    steps: int = 20
    restarts: int = 1
    attacks: tuple[str, ...] = STANDARD
    batch_size: int = 250
    seed: int = 0
    at: str = "last"  # which network: of the last epoch, of the best on validation images, or the start

    def __post_init__(self) -> None:
        choose(self.at, NETWORKS, "at of an evaluation")
        choose(self.kind, ("clean", "pgd", "autoattack"), "evaluation kind")
        check_radius(self.eps, self.threat)
        if self.step_size is not None:
            check_step_size(self.step_size, self.threat)
        for name in self.attacks:
            choose(name, PARTS, "attack")
        _require(0 < len(self.attacks) == len(set(self.attacks)), "at least one attack, none twice", self.attacks)
        for name in ("images", "steps", "restarts", "batch_size"):
            _require(getattr(self, name) > 0, f"{name} > 0", getattr(self, name))
        _require(self.kind == "clean" or self.eps > 0, "eps > 0 for an attack", self.eps)

    @functools.cached_property
    def hash(self) -> str:
        return spec_hash(self)

    @property
    def attack_name(self) -> str:
        if self.kind == "pgd":
            return str(Attack("pgd", self.steps, self.restarts))
        return str(Attack("none") if self.kind == "clean" else Attack("autoattack", parts=self.attacks))


@dataclass(frozen=True, kw_only=True)
class CertifySpec:
    """One certification by randomized smoothing of the first `images` test images of a run's split.

    Args:
        sigma: of the noise, in [0, 1] pixels.
        n, n0, alpha: most draws, draws that choose the class, probability of a false certificate.
        radii: with radii the group-sequential test stops when they are settled (`sequential.sequential_plan`); without, each
            image gets n draws (Cohen et al. 2019).
        stop_if_wrong: no draws for images whose chosen class is wrong; the abstention rate is then unknown.
        restat_images: before certifying, statistics of batch norms are re-estimated on so many unlabelled training images with
            noise of this sigma; 0: those of training.
        precision: of the certified network; bfloat16: where the hardware has it (`arithmetic.chosen`).
    """

    sigma: float
    images: int
    n: int = 100_000
    n0: int = 100
    alpha: float = 0.001
    radii: tuple[float, ...] = ()
    stop_if_wrong: bool = False
    restat_images: int = 0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.precision, PRECISIONS, "precision")
        _require(self.images > 0, "images > 0", self.images)
        _require(self.restat_images >= 0, "restat_images >= 0", self.restat_images)
        self.plan  # noqa: B018  what it refuses is refused before any work

    @property
    def plan(self) -> Plan:
        """The draws and what they prove."""
        common = {"sigma": self.sigma, "n": self.n, "n0": self.n0, "alpha": self.alpha}
        if not self.radii:
            _require(not self.stop_if_wrong, "radii with stop_if_wrong", list(self.radii))
            return certify_plan(**common)
        return sequential_plan(**common, radii=self.radii, stop_if_wrong=self.stop_if_wrong)

    @property
    def kind(self) -> str:
        return "certify"

    @property
    def at(self) -> str:
        """Which network: always the last."""
        return "last"

    @functools.cached_property
    def hash(self) -> str:
        return spec_hash(self)


def to_dict(spec: object) -> dict:
    """Canonical nested dict of a spec: fields that hold their default are left out."""
    out = {}
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if default is not dataclasses.MISSING and value == default:
            continue
        out[f.name] = _plain(value)
    return out


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def canonical_json(spec: object) -> str:
    """The one text of a spec; equal specs have equal texts (fields are read again, so 1 for 1.0 makes no difference)."""
    return json.dumps(to_dict(from_dict(type(spec), to_dict(spec))), sort_keys=True, separators=(",", ":"))


def start_model(model: dict, start: dict, where: str, /, **changes: object) -> ModelSpec:
    """The network of runs from one start: `model`, with the normalisation that a notebook's parameters give for the
    start (mean and std, both or neither), and `changes`."""
    given = {key: start[key] for key in ("mean", "std") if key in start}
    _require(len(given) != 1, f"mean and std, both or neither, in {where}", ", ".join(given))
    return from_dict(ModelSpec, {**model, **given, **changes}, where)


def spec_hash(spec: object) -> str:
    """12 hex digits that name the result of a spec."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:12]


def from_dict(cls: type, values: dict, where: str = "") -> object:
    """Build the dataclass `cls` from a plain dict; unknown keys and wrong types are refused (int is taken for float)."""
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping for {where}, got {values!r}")
    hints = _hints(cls)
    for key in values:
        choose(key, hints, f"key of {where}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {where}, got only {', '.join(values) or 'nothing'}")
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in values.items()})


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls, {**globals(), cls.__name__: cls})


def _read(hint: object, value: object, where: str) -> object:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (
        hint,)
    if value is None:
        if type(None) in options:
            return None
        raise TypeError(f"expected a value for {where}, got nothing (null)")
    hint = next(h for h in options if h is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list for {where}, got {value!r}")
        return tuple(_read(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number for {where}, got {value!r}")
        return float(value)
    if hint is float and isinstance(value, str):
        raise TypeError(f"expected a number for {where}, got the text {value!r}; "
                        "in YAML write 1.0e-3 or 0.0314, not 1e-3 or 8/255")
    if type(value) is not hint:
        raise TypeError(f"expected {hint.__name__} for {where}, got {value!r}")
    return value
