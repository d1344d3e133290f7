"""The claims of a preset as claims.json has them, in the order of the papers, and how many have which verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.files import read_json
from ..claims.effects import Effect, pair_label
from ..claims.verdict import INCONCLUSIVE, NOT, NOT_JUDGED, NOT_TESTED, PARTLY, REPRODUCED, SAID, asked_of
from ..specs.labels import method_label, unique
from ..store.store import Store
from ..studies import rules

WORDS = SAID | {NOT_JUDGED: "not judged"}  # of a study of one's own
MEANING = {REPRODUCED: "intervals lie above all that the rule asks for", PARTLY: "an interval of its own lies above no effect",
           INCONCLUSIVE: "all else: no interval decides, or not so with the data sets near chance too",
           NOT: "an interval excludes what is claimed",
           NOT_TESTED: "too few runs, or networks near chance"}
UNITS = {"points": "points", "times": "times", "radius": "of radius", "nats": ""}  # after a number that does not say its own


@dataclass(frozen=True)
class Shown:
    """An effect for readers: what it is of, its number, which side of no effect its interval lies on, and the least effect that
    the claim's rule speaks of (None where the rule was another one, or names none)."""

    effect: Effect
    label: str
    number: str
    claimed: float | None = None

    @property
    def neutral(self) -> float:
        """The value that means no effect."""
        return 1.0 if self.effect.unit == "times" else 0.0

    @property
    def side(self) -> str:
        """Where the interval lies."""
        low, high = self.effect.low, self.effect.high
        return ("no interval" if math.isnan(low) else "higher" if low > self.neutral else "lower" if high < self.neutral
                else "unclear")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One claim with its verdict and all that stands behind it; the fields are those of claims.json (`ledger.write`)."""

    id: str
    paper: str
    notebook: str
    sentence: str
    source: str
    certainty: str
    rule: str
    stamp: str
    preset: str
    verdict: str
    why: str
    regime: str
    effects: tuple[Shown, ...]
    flagged: tuple[Shown, ...]
    detail: tuple[Shown, ...]
    runs: tuple[str, ...]
    runs_before_the_rule: int
    commands: tuple[str, ...]
    measure: str
    remark: str = ""
    otherwise: str = ""
    diverged: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        return self.verdict not in (NOT_TESTED, NOT_JUDGED)

    @property
    def main(self) -> tuple[Shown, ...]:
        """What decides, or where nothing is judged what is measured of the rule's own measures."""
        return self.effects or self.detail


@dataclass(frozen=True)
class Paper:
    """A paper with its claims. name: as in the ledger, without its number; arxiv: that number, or ""."""

    name: str
    arxiv: str
    entries: tuple[Entry, ...]

    @property
    def judged(self) -> tuple[Entry, ...]:
        return tuple(e for e in self.entries if e.judged)


def counts(entries: Sequence[Entry]) -> dict[str, int]:
    """Verdict -> how many of the claims have it, from the most that is granted to what is not tested; none is left out at 0."""
    found = [e.verdict for e in entries]
    return {verdict: found.count(verdict) for verdict in SAID}


def read(store: Store) -> tuple[Paper, ...]:
    """The papers of claims.json with their claims, both in the order of claims.yaml.

    Raises:
        FileNotFoundError: nothing is judged yet.
        ValueError: a verdict that the ledger does not know.
    """
    path = store.root / "claims.json"
    if not path.exists():
        raise FileNotFoundError(f"expected verdicts in {path}, got no such file; run python -m twinslib claims --preset "
                                f"{store.preset}")
    known, papers = {claim.id: claim for claim in rules.claims()}, {}
    stored = read_json(path)
    for name in sorted(stored, key=lambda n: (list(known).index(n) if n in known else len(known), n)):
        claim, record = known.get(name), stored[name]
        if record["verdict"] not in WORDS:
            raise ValueError(f"expected one of {', '.join(SAID)} as the verdict on {name}, got {record['verdict']!r}")
        rule = claim.rule if claim and claim.rule.stamp == record["stamp"] else None
        lines = {key: tuple(_shown(values, rule) for values in record[key]) for key in ("effects", "flagged", "detail")}
        words = {key: tuple(record.get(key, ())) for key in ("runs", "commands", "diverged")}
        entry = Entry(**record | lines | words, id=name, measure=claim.rule.measure if claim else "",
                      otherwise=claim.otherwise if claim else "")
        papers.setdefault(_arxiv(entry.paper) or entry.paper, []).append(entry)
    return tuple(Paper(entries[0].paper.partition(" (arXiv")[0], _arxiv(entries[0].paper), tuple(entries))
                 for entries in papers.values())


def _shown(values: dict, rule: rules.Rule | None) -> Shown:
    e = Effect(**{key: math.nan if value is None else value for key, value in values.items()})
    label, _, after = str(e).partition(f": {e.number()}")
    label = label.replace(pair_label(e.pair, e.unit), _pair(e), 1)
    claimed = next((b.claimed for b in asked_of(rule, e) if b.claimed is not None), None) if rule else None
    if claimed is not None and rule.lower:
        claimed = -claimed
    number, at, level = e.number().partition(" at ")
    return Shown(e, label + after, f"{number} {UNITS[e.unit]}".rstrip() + at + level, claimed)


def _pair(e: Effect) -> str:
    """The two networks of an effect, in words: TWINS-AT minus AT, “mixed → clean” minus “clean → clean”, group norm."""
    sign = " over " if e.unit == "times" else " minus "
    try:
        cells = [rules.cell(name) for name in e.pair]
    except ValueError:  # methods
        return sign.join(unique(map(method_label, e.pair)))
    names, norms = [_cell(cell) for cell in cells], [f"{cell.norm} norm{', re-estimated' * cell.restat}" for cell in cells]
    if norms[0] == norms[1]:
        return f"{sign.join(unique(names))}, {norms[0]}"
    return sign.join(f"{name} ({norm})" for name, norm in zip(names, norms, strict=True))


def _cell(cell: rules.Cell) -> str:
    before, after = (name.replace("noise", "σ ", 1) for name in (cell.pretraining, cell.finetuning))
    return "“one σ → same σ”" if before == after == "σ *" else f"“{before} → {after}”"


def _arxiv(paper: str) -> str:
    return paper.partition("(arXiv ")[2].removesuffix(")")
