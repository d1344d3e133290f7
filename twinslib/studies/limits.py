"""What a study's parameters limit to some of its targets, seeds and the like: lists of names, checked before any run."""

from collections.abc import Collection, Mapping, Sequence

from ..base.errors import choose, shown


def check_seeds(seeds: Sequence[int], where: str = "seeds") -> None:
    """ValueError for a seed below 0, whose runs would come before the networks that they start from."""
    if min(seeds) < 0:
        raise ValueError(f"expected {where} of at least 0, got {shown(list(seeds))}")


def check_rates(rates: Sequence[float], where: str) -> None:
    """ValueError for a learning rate that is not above 0."""
    if min(rates) <= 0:
        raise ValueError(f"expected {where} above 0, got {shown(list(rates))}")


def check_limits(limits: Mapping, known: Mapping[str, Collection], where: str) -> None:
    """Refuse lists in `limits` that name what the study does not have; a key that is left out limits nothing. TypeError: no list.
    ValueError: another name than those of `known`.

    >>> check_limits({"seeds": [0, 7]}, {"seeds": [0, 1], "targets": ["cifar10"]}, "main.aft")
    Traceback (most recent call last):
    ValueError: expected seeds of main.aft to be one of 0, 1, got '7'
    """
    for key, legal in known.items():
        if key not in limits:
            continue
        names = limits[key]
        if not isinstance(names, list | tuple):
            raise TypeError(f"expected a list for {key} of {where}, got {shown(names)}")
        if not names:
            raise ValueError(f"expected at least one entry in {key} of {where}, got none; leave it out to limit nothing")
        for name in names:
            choose(str(name), map(str, legal), f"{key} of {where}")
            if name not in legal:
                raise ValueError(f"expected {key} of {where} as {shown(list(legal))}, got {shown(name)}; mind the quotes")


def within(limits: Mapping, here: Mapping[str, object]) -> bool:
    """True where each list in `limits` holds what `here` has under its key.

    >>> within({"seeds": [0]}, {"seeds": 0, "targets": "cifar10"}), within({"seeds": [0]}, {"seeds": 1})
    (True, False)
    """
    return all(value in limits.get(key, (value,)) for key, value in here.items())


def without(values: Mapping, keys: Collection[str]) -> dict:
    """The values under all other keys."""
    return {key: value for key, value in values.items() if key not in keys}
