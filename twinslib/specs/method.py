"""Training methods: what is minimised, through which wings, and what ties the network to its start."""

import dataclasses
from dataclasses import dataclass

from ..base.errors import choose
from .choices import MOST_STEPS, OBJECTIVES
from .reading import _require, _require_least, from_dict


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
    """The method called `name`, with `changes` to its switches.

    >>> method("twins_at", twins_weight=0.4).halves
    True

    Raises:
        ValueError, TypeError: an unknown name or switch, or a value that a switch cannot have.
    """
    spec = METHODS[choose(name, METHODS, "method")]
    for switch in changes:
        choose(switch, dataclasses.asdict(spec), f"key of MethodSpec ({name})")
    return from_dict(MethodSpec, {**dataclasses.asdict(spec), **changes})
