"""What is measured on a finished network: accuracy under attack, certified accuracy."""

import functools
from dataclasses import dataclass

from ..base.errors import choose
from ..base.sequential import Plan, certify_plan, exact_plan, sequential_plan
from .choices import MOST_STEPS, PRECISIONS, check_radius, check_step_size
from .reading import _require, _require_least, spec_hash
from .strength import PARTS, STANDARD, Attack

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
        _require_least(self, 0, "seed")
        _require_least(self, 1, "images", "batch_size")
        _require_least(self, 1, "steps", "restarts", most=MOST_STEPS)
        _require(self.kind == "clean" or self.eps > 0, "eps > 0 for an attack", self.eps)

    @functools.cached_property
    def hash(self) -> str:
        """The name of its results."""
        return spec_hash(self)

    @property
    def step(self) -> float:
        """PGD step in [0, 1] pixels; 2.5 eps / steps where it is left open."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / self.steps

    @property
    def attack_name(self) -> str:
        """How rows name its attack (`strength.parse` reads it)."""
        if self.kind == "pgd":
            return str(Attack("pgd", self.steps, self.restarts))
        return str(Attack("none") if self.kind == "clean" else Attack("autoattack", parts=self.attacks))


@functools.lru_cache(maxsize=1024, typed=True)  # a plan has many runs that are certified alike
def _plan(sigma: float, n: int, n0: int, alpha: float, radii: tuple[float, ...], stop_if_wrong: bool,
          spending: str | None, sound: bool) -> Plan:
    common = {"sigma": sigma, "n": n, "n0": n0, "alpha": alpha, "sound": sound}
    if not radii:
        return certify_plan(**common)
    common |= {"radii": radii, "stop_if_wrong": stop_if_wrong}
    return exact_plan(**common, spending=spending) if spending is not None else sequential_plan(**common)


@dataclass(frozen=True, kw_only=True)
class CertifySpec:
    """One certification by randomized smoothing of the first `images` test images of a run's split."""

    sigma: float  # of the noise, in [0, 1] pixels
    images: int
    n: int = 100_000  # most draws
    n0: int = 100  # draws that choose the class
    alpha: float = 0.001  # probability of a false certificate
    radii: tuple[float, ...] = ()  # where the group-sequential test stops; none: n draws for each image (Cohen et al. 2019)
    stop_if_wrong: bool = False  # no draws for images whose chosen class is wrong; the abstention rate is then unknown
    restat_images: int = 0  # unlabelled training images that batch norms are re-estimated on, with this noise; 0: none
    precision: str = "float32"  # bfloat16: where the hardware has it (`arithmetic.chosen`)
    seed: int = 0
    spending: str | None = None  # with radii: of exact boundaries (`sequential.exact_plan`); None: alpha in fixed shares
    sound: bool = False  # noise on whole 8-bit levels: certificates hold for the arithmetic that is run (`certify.levels`)

    def __post_init__(self) -> None:
        choose(self.precision, PRECISIONS, "precision")
        _require_least(self, 1, "images")
        _require_least(self, 0, "restat_images", "seed")
        self.plan  # noqa: B018  what it refuses is refused before any work

    @property
    def plan(self) -> Plan:
        """The draws and what they prove."""
        needed = self.stop_if_wrong or self.spending is not None
        _require(self.radii or not needed, "radii with stop_if_wrong or spending", list(self.radii))
        return _plan(self.sigma, self.n, self.n0, self.alpha, tuple(self.radii), self.stop_if_wrong, self.spending,
                     self.sound)

    @property
    def kind(self) -> str:
        """Always "certify", as `EvalSpec.kind` is never."""
        return "certify"

    @property
    def at(self) -> str:
        """Which network: always the last."""
        return "last"

    @functools.cached_property
    def hash(self) -> str:
        """The name of its results."""
        return spec_hash(self)
