"""How methods, data sets, attacks and numbers are written for readers."""

import re
from collections.abc import Iterable

from .method import LABELS
from .strength import STANDARD, parse

NOT_RUN, DIVERGED, SOURCE_DIVERGED = "not run", "diverged", "diverged (source)"  # in place of a number
MEAN = "mean"  # stands for all data sets in frames of differences, but for those near chance
MEAN_OF_ALL = "mean of all"  # with those
DATASETS = {  # name of the packed set: (label, its counterpart in the public reference numbers)
    "cifar10": ("CIFAR-10", "CIFAR-10"),
    "cifar100": ("CIFAR-100", "CIFAR-100"),
    "caltech64": ("Caltech-101", "Caltech-256"),
    "caltech256": ("Caltech-256", "Caltech-256"),
    "cub64": ("CUB-200 (2010)", "CUB-200-2011"),
    "cub200": ("CUB-200-2011", "CUB-200-2011"),
    "dogs64": ("Stanford Dogs (boxes)", "Stanford Dogs"),
    "dogs": ("Stanford Dogs", "Stanford Dogs"),
    "tinyimagenet32": ("Tiny-ImageNet", None),
    "toy_source": ("toy source", None),
    "toy_target": ("toy target", None),
}
AUTOATTACK = "+".join(STANDARD)


def dataset_label(name: str) -> str:
    """A data set, or the mean of several, for readers; a name that is not known as it is."""
    if name == MEAN_OF_ALL:
        return "mean of data sets, also near chance"
    return "mean of data sets" if name == MEAN else DATASETS[name][0] if name in DATASETS else name


def method_label(name: str) -> str:
    """A method for readers.

    >>> method_label("twins_at"), method_label("twins_at_lambda0.1")
    ('TWINS-AT', 'TWINS-AT, λ 0.1')
    """
    weight = re.fullmatch(r"twins_at_lambda(.+)", name)
    return f"TWINS-AT, λ {weight[1]}" if weight else LABELS.get(name, name)


def eps_label(eps: float, threat: str = "linf") -> str:
    """A radius for readers, in pixel units.

    >>> eps_label(8 / 255), eps_label(0.5, "l2")
    ('8/255', '0.5 (L2)')
    """
    return f"{eps * 255:.3g}/255" if threat == "linf" else f"{eps:.3g} (L2)"


def attack_label(attack: str) -> str:
    """Readable name of an attack as rows name it; only the whole standard suite is called AutoAttack."""
    if attack in ("none", AUTOATTACK):
        return "clean" if attack == "none" else "AutoAttack"
    found = parse(attack)
    if found.kind == "pgd":
        return f"PGD-{found.steps}" + (f", {found.restarts} restarts" if found.restarts > 1 else "")
    return " + ".join("Square" if part == "square" else part.upper() for part in found.parts)


def percent(value: float, low: float, high: float) -> str:
    """62.3 [59.2, 65.3] from fractions."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def rounded(x: float, digits: int) -> float:
    """Rounded from the six digits that files keep (claims.json), so that pages and notebooks show the same; no negative zero.

    >>> rounded(100 * 0.0045, 1), rounded(0.45000000001, 1), rounded(-0.01, 1)
    (0.5, 0.5, 0.0)
    """
    return round(float(f"{x:.6g}"), digits) + 0.0


def points(value: float, low: float, high: float) -> str:
    """+1.2 [-0.5, +2.9] from differences of fractions."""
    value, low, high = (rounded(100 * x, 1) for x in (value, low, high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def marked(method: str, gone: Iterable[float], left: bool, what: str = "seed") -> str:
    """Label of a method of which the runs of the seeds (or `what`) `gone` diverged, and whether others are left."""
    named = ", ".join(f"{x:g}" for x in sorted(set(gone)))
    return method_label(method) + (f" ({DIVERGED}{f': {what} {named}' if left else ''})" if named else "")


def lost_text(names: Iterable[str]) -> str:
    """Diverged: AT, seed 0; TRADES, seed 1. Nothing where there is none."""
    names = unique(names)
    return f"Diverged: {'; '.join(names)}." if names else ""


def unique(values) -> list:
    """Each value once, in the order of its first place."""
    return list(dict.fromkeys(values))


def header(attack: str, threat: str, eps: float) -> str:
    """Head of a column of accuracies.

    >>> header("pgd20", "linf", 8 / 255)
    'PGD-20 at 8/255'
    """
    return "clean" if attack == "none" else f"{attack_label(attack)} at {eps_label(eps, threat)}"
