"""Names of attacks are read and written in one place, and their order is one of strength."""


import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinslib.evidence import accuracy, public
from twinslib.show import aft_plots, tables, transfer_plots
from twinslib.specs import labels
from twinslib.specs.measure import EvalSpec
from twinslib.specs.strength import PARTS, STANDARD, Attack, parse, strength

PGD = st.builds(Attack, st.just("pgd"), st.integers(1, 1000), st.integers(1, 50))
SUITE = st.builds(Attack, st.just("autoattack"), parts=st.lists(st.sampled_from(PARTS), min_size=1, unique=True).map(tuple))
ATTACK = st.one_of(st.just(Attack("none")), PGD, SUITE)
AA = "+".join(STANDARD)
LADDER = ["none", "pgd5", "pgd5x2", "pgd10", "pgd20", "pgd7x3", "pgd100", "pgd50x10", "square", "apgd-ce", "fab-t", "apgd-t",
          "apgd-ce+square", "apgd-ce+apgd-t", "apgd-ce+apgd-t+fab-t", AA, f"{AA}+apgd-dlr"]


@given(ATTACK)
def test_names_are_read_as_written(attack):
    """What is written is read back, also from the spec of an evaluation."""
    assert parse(str(attack)) == attack
    spec = {"none": {"kind": "clean"}, "pgd": {"kind": "pgd", "steps": attack.steps, "restarts": attack.restarts, "eps": 0.1},
            "autoattack": {"kind": "autoattack", "attacks": attack.parts, "eps": 0.1}}[attack.kind]
    assert EvalSpec(images=1, **spec).attack_name == str(attack)


@given(st.lists(ATTACK, max_size=6), st.randoms())
def test_the_order_is_total(attacks, random):
    """However they come, sorting gives one order; other attacks than none are above it, and AutoAttack above PGD."""
    names = [str(a) for a in attacks]
    there = sorted(names, key=strength)
    random.shuffle(names)
    assert sorted(names, key=strength) == there
    kinds = [("none", "pgd", "autoattack").index(parse(name).kind) for name in there]
    assert kinds == sorted(kinds)


@given(PGD, st.integers(1, 100), st.integers(1, 5), SUITE, st.sampled_from(PARTS))
def test_more_is_stronger(attack, steps, restarts, suite, part):
    """More steps or restarts with no less of the other."""
    more = [Attack("pgd", attack.steps + steps, attack.restarts), Attack("pgd", attack.steps, attack.restarts + restarts)]
    assert all(strength(str(m)) > strength(str(attack)) for m in more)
    if part in suite.parts:
        assert parse("+".join(reversed(suite.parts))).strength == suite.strength
    else:
        assert strength(f"{suite}+{part}") > strength(str(suite))
    assert sorted(LADDER, key=strength) == LADDER


@pytest.mark.parametrize("name", ["", "pgd", "pgd0", "pgd10x0", "pgd-20", "AutoAttack", "apgd-ce+", "square+square",
                                  "none+square"])
def test_unknown_names_are_refused(name):
    """With examples of right ones."""
    with pytest.raises(ValueError, match="such as none, pgd20"):
        parse(name)


def line(attack, **changes):
    return {"dataset": "cifar10", "method": "at", "baseline": "trades", "seed": "0", "threat": "linf", "eps": 8 / 255,
            "attack": attack, "value": 0.5, "low": 0.4, "high": 0.6, "n": 1000, "seeds": 1, "part": "main", "at": "last",
            "train_images": 0, "width": 0, "images": "test[:1000]", "run": "a"} | changes


def strongest(names):
    """By each place that chooses."""
    rows = pd.DataFrame([line(name) for name in names])
    yield aft_plots.shared_attack(rows)[0]
    yield transfer_plots.strongest(rows)["attack"].item()
    last = tables.by_attack(rows.assign(line="a"), {"a": ("a",)}, ("line",)).columns[-1]
    yield {labels.header(n, "linf", rows["eps"][0]): n for n in names}[last.rpartition(" (")[0]]
    theirs = pd.DataFrame([line("pgd10", sd=float("nan"), images="all")])
    yield {labels.header(n, "linf", 8 / 255): n for n in names}[public._beside(rows, theirs)[2][0].split(" on ")[0]]
    if all(parse(n).kind == "pgd" for n in names):
        yield transfer_plots.strongest_pgd(rows)[0]


@pytest.mark.parametrize("names", [
    ["pgd5x2", "pgd100"], ["pgd100", "pgd20x2", "pgd5x10"], ["pgd9", "pgd10"], ["pgd100", "square"], ["apgd-ce+square", AA],
    ["apgd-ce+apgd-t", "apgd-dlr+square"], ["fab", "apgd-ce", "square"]])
def test_one_strongest(names):
    """The last of the order, and not the longest name."""
    best = max(names, key=strength)
    assert [*strongest(names), *strongest(names[::-1])] == [best] * len([*strongest(names)]) * 2


def test_only_inner_stages_are_left_out():
    """Of one evaluation only the last stage is final; a part that ran alone is a measurement of its own."""
    rows = pd.DataFrame([line(name, run=run) for run, name in [
        ("a", "none"), ("a", "apgd-ce"), ("a", "apgd-ce+apgd-t"), ("a", "square"), ("b", "apgd-ce"), ("b", "pgd20")]])
    kept = accuracy.final(rows)
    assert list(zip(kept["run"], kept["attack"], strict=True)) == [
        ("a", "none"), ("a", "apgd-ce+apgd-t"), ("a", "square"), ("b", "apgd-ce"), ("b", "pgd20")]
