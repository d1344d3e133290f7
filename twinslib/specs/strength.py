"""Attacks by the names that evaluations and rows give them, and the one order of their strength."""

import functools
import re
from dataclasses import dataclass

KINDS = ("none", "pgd", "autoattack")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")  # AutoAttack's standard version, in its order
PARTS = ("square", "apgd-ce", "apgd-dlr", "fab", "fab-t", "apgd-t")  # from the one that leaves most images to the strongest


@dataclass(frozen=True)
class Attack:
    """What images were attacked with; `str` of it is the name in rows, which `parse` reads."""

    kind: str  # none, pgd (with steps and restarts) or autoattack (with the parts that ran, in their order)
    steps: int = 0
    restarts: int = 1
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "pgd":
            return f"pgd{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")
        return "none" if self.kind == "none" else "+".join(self.parts)

    @property
    def standard(self) -> bool:
        """True if the whole standard suite of AutoAttack ran, whatever else did."""
        return set(self.parts) >= set(STANDARD)

    @property
    def strength(self) -> tuple:
        """Key of the order: none, then PGD by steps times restarts and then steps, then AutoAttack by the number of its parts
        and then the strongest of them; the whole standard suite above all that lack a part of it.

        PGD is below any part of AutoAttack, which adapt their steps. Parts added to an attack make it stronger, always.
        """
        ranks = tuple(sorted(map(PARTS.index, self.parts), reverse=True))
        level = KINDS.index(self.kind) + self.standard
        return level, self.steps * self.restarts, self.steps, len(ranks), ranks


@functools.cache
def parse(name: str) -> Attack:
    """The attack of that name: none, pgd20, pgd10x5 (restarts), or parts of AutoAttack such as apgd-ce+apgd-t. ValueError: any
    other name.

    >>> parse("pgd10x5").steps, sorted(["square", "pgd100", "none", "pgd20"], key=strength)
    (10, ['none', 'pgd20', 'pgd100', 'square'])
    """
    pgd = re.fullmatch(r"pgd([1-9]\d*)(?:x([1-9]\d*))?", name)
    parts = tuple(name.split("+"))
    if pgd:
        return Attack("pgd", int(pgd[1]), int(pgd[2] or 1))
    if name != "none" and (set(parts) - set(PARTS) or len(set(parts)) < len(parts)):
        raise ValueError(f"expected the name of an attack, such as none, pgd20, pgd10x5 or apgd-ce+apgd-t, got {name!r}")
    return Attack("none") if name == "none" else Attack("autoattack", parts=parts)


def strength(name: str) -> tuple:
    """Key that sorts names of attacks from the weakest to the strongest; names of equal strength by the alphabet."""
    return *parse(name).strength, name
