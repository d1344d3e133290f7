"""The acceptance rules of the claims ledger (reference/claims.yaml), and the stamps that fix them before a run.

Every run's provenance carries the stamp of each rule as it was when the run began. A rule that is edited afterwards no
longer has that stamp, so what it would judge can be told from what it was written for.
"""

import functools
import re
from dataclasses import dataclass, field
from importlib import resources

import yaml

from ..base.errors import choose
from ..specs.choices import NORMS
from ..specs.method import METHODS
from ..specs.reading import from_dict, spec_hash

CERTIFIED = ("carried", "carried_widely", "one_for_all", "cost", "wider", "clean_kept", "norm_drop", "recovered")  # by cells
FINETUNED = ("beats", "cheaper", "any_start", "best_schedule")  # runs of the grid of adversarial fine-tuning
STEPPED = ("one_rate", "all_rates", "same_step")  # runs of the grid of learning rates
MEASURES = {  # measure -> what it may look at
    **dict.fromkeys(("gain", "spread", "margin", "shown", *STEPPED), ("clean", "robust")),
    **dict.fromkeys(FINETUNED, ("clean", "robust")), **dict.fromkeys(("beats", "cheaper"), ("clean", "robust", "passes")),
    "rate": ("lr_over_w2", "angle"), "escape": ("loss",), **dict.fromkeys(("overfits", "less_overfitting", "plateau"), ("gap",)),
    **dict.fromkeys(CERTIFIED, ("certified",)), "cost": ("forwards", "certified"), "wider": ("acr",), "clean_kept": ("clean",),
}
PARTS = ("best epoch", "last epoch", "start given", "start included", "after minus before", "mean", "kept", "recovered",
         "equal length", "equal epochs after the drop")  # which of several effects of a pair in one measure
SCALES = ("small", "medium", "paper")  # a toy run judges nothing


@dataclass(frozen=True, kw_only=True)
class Robust:
    """What counts as robust accuracy: at this radius, by the strongest attack that all compared runs have on so many images."""

    threat: str
    eps: float
    min_images: int


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """What counts as certified: at these noise levels and L2 radii in [0, 1] pixels, with this alpha, at least n draws and at
    least so many images; of the settings that all compared cells share, the one with most seeds, then most draws."""

    sigmas: tuple[float, ...]
    radii: tuple[float, ...]
    n: int
    alpha: float
    min_images: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network of the grid of smoothing runs, written pretraining/finetuning/norm, with +restat where the statistics of its
    batch norms are estimated again at each noise level. noise* is the network made with noise of the level it is certified at."""

    pretraining: str
    finetuning: str
    norm: str
    restat: bool = False

    def at(self, sigma: float) -> "Cell":
        """The cell at one level: noise0.5 for noise*."""
        own = {"noise*": f"noise{float(sigma)}"}
        return Cell(pretraining=own.get(self.pretraining, self.pretraining), finetuning=own.get(self.finetuning, self.finetuning),
                    norm=self.norm, restat=self.restat)

    def __str__(self) -> str:
        return f"{self.pretraining}/{self.finetuning}/{self.norm}" + ("+restat" if self.restat else "")


def cell(text: str) -> Cell:
    """The cell that `text` names. ValueError: not of that form, or an unknown norm."""
    found = re.fullmatch(r"([\w.*]+)/([\w.*]+)/(\w+)(\+restat)?", text)
    if not found:
        raise ValueError(f"expected a cell such as mixed/clean/group or mixed/clean/batch+restat, got {text!r}")
    return Cell(pretraining=found[1], finetuning=found[2], norm=choose(found[3], (*NORMS, "own"), "norm of a cell"),
                restat=bool(found[4]))


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What is asked of the interval of each effect that `of` names: it lies above `above`, and reaches `reach`."""

    above: float
    of: tuple[str, ...] = ()  # words that all name the effect: measure, method, baseline or part (`PARTS`); none: every effect
    reach: float | None = None
    # the effect that is claimed or, where that is unknown, the least that would matter; an interval wholly below it excludes it;
    # accuracies as fractions, ratios as such; where a rule asks for less (`lower`), by how much less
    claimed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A rule as it was before a change."""

    stamp: str  # by which the runs that began under it are known
    text: str
    changed: str  # the day, as 2026-11-20
    withholds: bool = False  # its runs count, since the present rule can only withhold (a test holds both to random evidence)
    at_most: str = "reproduced"  # the highest verdict that its runs can give now


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a claim counts as reproduced; `text` says it in words, the rest is what the code applies.

    asked and partly are alternatives, each a list of bounds that must all hold (`verdict.decide`).
    """

    version: int
    measure: str
    text: str
    pairs: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    robust: Robust | None = None
    min_datasets: int = 1
    min_seeds: int = 1
    datasets: tuple[str, ...] = ()  # empty: all of the preset that have runs of both methods
    margin: float = 0.0
    epochs: int = 0  # for `escape`: the first so many epochs
    alpha: float = 0.05
    controls: tuple[tuple[str, ...], ...] = ()  # if the gain vanishes against one of these, the explanation is in doubt
    changes: str = ""  # why this version replaces the one before
    smooth: Smooth | None = None
    reference: str = ""  # cell that is trained for each noise level
    share: float = 0.0  # of the reference that is to be kept or recovered, or of its cost that may be spent
    floor: float = 0.0  # accuracy of the reference up to which nothing is asked
    asked: tuple[tuple[Bound, ...], ...] = ()
    partly: tuple[tuple[Bound, ...], ...] = ()
    lower: bool = False  # a smaller value of the method is what is claimed
    chance: float = 0.0  # a network whose accuracy is within this of chance decides nothing
    rates: tuple[float, ...] = ()  # learning rates at which networks are compared
    min_rates: int = 0  # a learning rate is chosen from at least so many
    earlier: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        choose(self.measure, MEASURES, "measure")
        if not (self.pairs and self.metrics and self.min_datasets > 0 and self.min_seeds > 0):
            raise ValueError("expected at least one pair, metric, data set and seed in a rule, got "
                             f"{len(self.pairs)}, {len(self.metrics)}, {self.min_datasets} and {self.min_seeds}")
        for metric in self.metrics:
            choose(metric, MEASURES[self.measure], f"metric of {self.measure}")
        if (self.robust is None) != (self.measure in ("rate", "escape", *CERTIFIED)):
            raise ValueError(f"expected `robust` in every rule but those on weights, losses and certificates, got {self.robust} "
                             f"for {self.measure}")
        if (self.smooth is None) != (self.measure not in CERTIFIED):
            raise ValueError(f"expected `smooth` in rules on certificates and no others, got {self.smooth} for {self.measure}")
        for pair in (*self.pairs, *self.controls):
            if len(pair) != 2:
                raise ValueError(f"expected pairs of a method and a baseline, got {list(pair)}")
            for name in pair:
                cell(name) if self.smooth else choose(name, METHODS, "method of a rule")
        if self.reference:
            cell(self.reference)
        words = {*self.metrics, *PARTS, *(name for pair in self.pairs for name in pair)}
        for bound in (b for clause in (*self.asked, *self.partly) for b in clause):
            for word in bound.of:
                choose(word, words, "effect that a bound names")
        if self.asked and all(b.claimed is None for clause in self.asked for b in clause):
            raise ValueError("expected a claimed or least effect in `asked`, got none; without it nothing can be \"not\"")
        if self.version > 1 and not self.changes:
            raise ValueError(f"expected `changes` to say why the rule is in version {self.version}, got nothing")

    @functools.cached_property
    def stamp(self) -> str:
        """Version and hash: changes with any word or number of the rule."""
        return f"{self.version}:{spec_hash(self)}"

    @functools.cached_property
    def accepted(self) -> dict[str, str]:
        """Stamp of runs that count -> the highest verdict that they can give."""
        return {self.stamp: "reproduced"} | {e.stamp: e.at_most for e in self.earlier if e.withholds}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One entry of the ledger: what a paper says, how sure we are that it says so, and the rule."""

    id: str
    paper: str
    notebook: str
    sentence: str
    source: str
    certainty: str
    rule: Rule
    short: str = ""  # the sentence for the first screen, where the claim is one of the few that stand there
    over: str = ""  # what the seeds are over, and so what an interval does not hold
    otherwise: str = ""  # what public evidence says on it
    reported: tuple[str, ...] = field(default=())  # (method, baseline) in reference/reported.csv


def read(text: str) -> tuple[Claim, ...]:
    """The claims of a ledger file. ValueError, TypeError: not YAML, an unknown key, or a value of another type."""
    try:
        entries = yaml.safe_load(text)["claims"].items()
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"expected YAML with a mapping `claims`, got {error!r}") from None
    return tuple(from_dict(Claim, {"id": name} | entry if isinstance(entry, dict) else entry, name) for name, entry in entries)


@functools.cache
def claims() -> tuple[Claim, ...]:
    """The project's claims."""
    return read((resources.files("twinslib") / "reference" / "claims.yaml").read_text(encoding="utf-8"))


def stamps() -> dict[str, str]:
    """claim id -> stamp of its rule, for the provenance of a run that begins now."""
    return {claim.id: claim.rule.stamp for claim in claims()}
