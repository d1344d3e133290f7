"""Training methods: what is minimised, through which wings, and what ties the network to its start."""

import dataclasses
from dataclasses import dataclass

from ..base.errors import choose
from .choices import MOST_STEPS, OBJECTIVES
from .reading import _require, _require_least, from_dict


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What is minimised, through which wings, and what ties the network to its start. Defaults: the official TWINS code; each
    quirk is a switch."""

    name: str  # label in tables
    objective: str = "at"  # natural, at (cross-entropy on adversarial images) or trades
    # single (one ordinary network); twins (first half of the batch frozen, second half adaptive); the controls two_adaptive (as
    # twins, but the first half has an ordinary batch norm of its own) and split (one ordinary network, the halves pass one after
    # the other); or frozen (one network, statistics of pre-training throughout)
    wings: str = "single"
    twins_weight: float = 1.0  # lambda, weight of the first half's loss
    normalize_loss: bool = False  # divide the sum of both wings' losses by 1 + lambda (official code does not)
    share_affine: bool = False  # both wings use one gamma and beta (official code: each wing has its own, both trained)
    attack_wing: str = "adaptive"  # attacked, with running statistics; alternating: adaptive in even steps, frozen in odd ones
    trades_beta: float = 6.0  # weight of the KL term
    # batch (official TWINS-TRADES code: KL summed over a wing's half, divided by the batch size, so that the effective beta is
    # half of trades_beta) or wing (mean over the wing's own images)
    kl_divisor: str = "batch"
    # of KL(start network || network) on adversarial images, both through the start's head (Learning without Forgetting, Li and
    # Hoiem 2016; the official code's remnants name 0.3)
    distill_weight: float = 0.0
    feature_weight: float = 0.0  # of the mean squared distance to the start network's features on adversarial images
    l2sp_weight: float = 0.0  # alpha of alpha/2 ||w - w_start||^2, in place of weight decay but for the head (Li et al. 2018)
    source_weight: float = 0.0  # of the source task's loss on as many source images as target images (joint training)
    source_classes: int | None = None  # number of source classes, chosen by unbalanced optimal transport; None: all
    awp_gamma: float = 0.0  # size of the adversarial weight perturbation relative to each weight's norm (AWP, Wu et al. 2020)
    trains: str = "all"  # or head: the last layer alone, on features in eval mode (linear probe)
    # Free adversarial training (Shafahi et al. 2019): each batch is trained on so many times, and the one backward pass for the
    # weights also moves the perturbation, by eps; 1: PGD as the run's attack says
    replays: int = 1

    def __post_init__(self) -> None:
        choose(self.objective, OBJECTIVES, "objective")
        choose(self.wings, ("single", "twins", "two_adaptive", "split", "frozen"), "wings")
        choose(self.attack_wing, ("adaptive", "frozen", "alternating"), "attack_wing")
        choose(self.kl_divisor, ("batch", "wing"), "kl_divisor")
        _require_least(self, 0, "twins_weight", "trades_beta", "distill_weight", "feature_weight", "l2sp_weight", "source_weight",
                       "awp_gamma")
        _require(self.two_branches or self.attack_wing == "adaptive", "attack_wing adaptive without two branches",
                 self.attack_wing)
        _require(self.source_classes is None or self.source_classes > 0, "source_classes > 0 or null", self.source_classes)
        _require(self.source_classes is None or self.source_weight > 0, "source_weight > 0 with source_classes",
                 self.source_weight)
        _require(self.source_weight == 0 or (self.wings, self.objective) == ("single", "at"),
                 "wings single and objective at with source_weight", f"{self.wings}, {self.objective}")
        choose(self.trains, ("all", "head"), "trains")
        plain = max(self.distill_weight, self.feature_weight, self.l2sp_weight, self.source_weight) == 0
        _require(self.trains == "all" or (plain and (self.wings, self.objective) == ("single", "natural")),
                 "trains all but for plain natural training", self.name)
        _require(self.awp_gamma == 0 or plain, "no other term of the loss with awp_gamma", self.name)
        _require_least(self, 1, "replays", most=MOST_STEPS)
        free = (self.objective, self.attack_wing) == ("at", "adaptive") and plain and self.awp_gamma == 0
        _require(self.replays == 1 or free, "replays 1 but for plain adversarial training", self.replays)
        _require(self.attacks or self.distill_weight == self.feature_weight == 0,
                 "an objective with adversarial images for distillation", self.objective)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The passes of a step in their order, each of which updates adaptive statistics."""
        return OBJECTIVES[self.objective]

    @property
    def attacks(self) -> bool:
        """True if it trains on adversarial images."""
        return "adversarial" in self.inputs

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


_TWINS_TRADES = {"wings": "twins", "objective": "trades"}
_TABLE: dict[str, tuple[str, dict[str, object]]] = {  # name: what readers call it, and its switches
    "natural": ("natural", {"objective": "natural"}), "at": ("AT", {}), "trades": ("TRADES", {"objective": "trades"}),
    "twins_at": ("TWINS-AT", {"wings": "twins"}), "twins_trades": ("TWINS-TRADES", _TWINS_TRADES),
    # stand-ins of ours for the paper's ways of keeping robustness, and other starts
    "distill": ("distillation", {"distill_weight": 0.3}), "feature_distill": ("feature distillation", {"feature_weight": 1.0}),
    "l2sp": ("L2-SP", {"l2sp_weight": 0.01}), "joint": ("joint, all classes", {"source_weight": 0.3}),
    "joint_uot": ("joint, classes by UOT", {"source_weight": 0.3, "source_classes": 20}),
    "frozen_at": ("AT, frozen statistics", {"wings": "frozen"}),
    "at_natural": ("AT, natural start", {}), "at_random": ("AT, random start", {}),
    # controls of TWINS, each differing from it or from its baseline in one thing
    "at_lr": ("AT, lr × (1 + λ)", {}), "at_split": ("AT, split batch", {"wings": "split"}),
    "two_adaptive": ("two adaptive branches", {"wings": "two_adaptive"}),
    "twins_shared": ("TWINS-AT, shared affine", {"wings": "twins", "share_affine": True}),
    "twins_attack_frozen": ("TWINS-AT, frozen wing attacked", {"wings": "twins", "attack_wing": "frozen"}),
    "twins_attack_alternating": ("TWINS-AT, wings attacked in turn", {"wings": "twins", "attack_wing": "alternating"}),
    "trades_beta3": ("TRADES, β 3", {"objective": "trades", "trades_beta": 3.0}),
    "twins_trades_wing": ("TWINS-TRADES, KL mean per wing", _TWINS_TRADES | {"kl_divisor": "wing"}),
    # randomized smoothing: pre-training and fine-tuning, told apart by the run's noise and start
    "noise": ("noise", {"objective": "natural"}), "mixed_noise": ("mixed noise", {"objective": "natural"}),
    "natural_frozen": ("natural, frozen statistics", {"objective": "natural", "wings": "frozen"}),
    "linear_probe": ("linear probe", {"objective": "natural", "trains": "head"}),
    # ways out of robust overfitting; all but the first differ from AT in their schedule
    "at_awp": ("AT, AWP", {"awp_gamma": 0.01}), "at_cosine": ("AT, cosine", {}), "at_cyclic": ("AT, cyclic", {}),
    "at_slow_fast": ("AT, slow start, fast decay", {}),
    "at_short_plateau": ("AT, random start, short plateau", {}), "at_long_plateau": ("AT, random start, long plateau", {}),
    # adversarial fine-tuning of a natural network, its rivals (fast_at: one step, larger than eps), and itself without a part
    "at_scratch": ("AT, random start", {}), "trades_scratch": ("TRADES, random start", {"objective": "trades"}),
    "free_at": ("Free-AT", {"replays": 8}), "fast_at": ("Fast-AT", {}),
    "aft": ("AFT", {}), "aft_random": ("AFT, random start", {}),
    "aft_free": ("AFT, Free", {"replays": 4}), "aft_twins": ("AFT, two wings", {"wings": "twins"}),
    "aft_public": ("AFT, public start", {}), "aft_l2": ("AFT, L2", {}), "aft_l2_random": ("AFT, random start, L2", {}),
    "aft_constant": ("AFT, constant rate", {}), "aft_piecewise": ("AFT, piecewise", {}), "aft_cosine": ("AFT, cosine", {}),
    "aft_one_cycle": ("AFT, one cycle", {}), "aft_fast_decay": ("AFT, no slow start", {}),
    "aft_slow_start": ("AFT, no decay", {}), "aft_slow_fast_exp": ("AFT, second shape", {}),
    "aft_eps_warmup": ("AFT, ε warm-up", {}),
}
METHODS = {name: MethodSpec(name=name, **switches) for name, (_, switches) in _TABLE.items()}
LABELS = {name: label for name, (label, _) in _TABLE.items()}


def method(name: str, /, **changes: object) -> MethodSpec:
    """The method called `name`, with `changes` to its switches. ValueError, TypeError: an unknown name or switch, or a value that
    a switch cannot have.

    >>> method("twins_at", twins_weight=0.4).halves
    True
    """
    spec = METHODS[choose(name, METHODS, "method")]
    for switch in changes:
        choose(switch, dataclasses.asdict(spec), f"key of MethodSpec ({name})")
    return from_dict(MethodSpec, {**dataclasses.asdict(spec), **changes})
