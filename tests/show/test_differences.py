"""Tables of differences between methods and what they say, from made-up frames of `evidence.pairs`."""

import math

import pandas as pd

from twinslib.evidence import pairs
from twinslib.show import tables


def test_paired_table():
    """Points with the interval, one line per comparison, data set and seed, no line of means."""
    lines = [["cifar10", "twins_at", "at", s, "clean_acc", "linf", 0.0, "none", 100, 0.01, -0.02, v] for s, v in
             (("0", 0.05), ("1", 0.06))]
    columns = ["dataset", "method", "baseline", "seed", *pairs.MEASURED, "n", "value", "low", "high"]
    out = tables.paired_table(pd.DataFrame(lines, columns=columns))
    assert list(out.columns) == ["difference", "data set", "seed", "clean (100 images)"]
    assert out.values.tolist() == [["TWINS-AT - AT", "CIFAR-10", "0", "+1.0 [-2.0, +5.0]"],
                                   ["TWINS-AT - AT", "CIFAR-10", "1", "+1.0 [-2.0, +6.0]"]]
    assert tables.paired_table(pd.DataFrame(columns=columns)).empty


def frame(*lines):
    """(dataset, method, seeds, value, p_holm) of clean accuracy on 100 images, with limits 1 point off."""
    columns = ["dataset", "method", "baseline", *pairs.MEASURED, "n", "seeds", "value", "low", "high", "p_value", "p_holm"]
    return pd.DataFrame([[d, m, "at", "clean_acc", "linf", 0.0, "none", 100, seeds, v, v - 0.01, v + 0.01, p, p]
                         for d, m, seeds, v, p in lines], columns=columns).assign(near=False)


def test_difference_table():
    """One line per comparison and data set, then the mean; a star from 5 % down; seeds as a range where measures differ."""
    found = frame(("cifar10", "twins_at", 3, 0.02, 0.05), ("cub64", "twins_at", 1, 0.03, 0.051),
                  ("mean", "twins_at", 1, 0.025, math.nan), ("cifar10", "distill", 2, -0.02, 0.001))
    attacked = found[:1].assign(metric="robust_acc", eps=8 / 255, attack="pgd20", seeds=2)
    out = tables.difference_table(pd.concat([found, attacked]))
    assert list(out.columns) == ["difference", "data set", "seeds", "clean (100 images)", "PGD-20 at 8/255 (100 images)"]
    assert out.iloc[:, :4].values.tolist() == [
        ["TWINS-AT - AT", "CIFAR-10", "2 to 3", "+2.0 [+1.0, +3.0] *"],
        ["TWINS-AT - AT", "CUB-200 (2010)", "1", "+3.0 [+2.0, +4.0]"],
        ["TWINS-AT - AT", "mean of data sets", "1", "+2.5 [+1.5, +3.5]"],
        ["distillation - AT", "CIFAR-10", "2", "-2.0 [-3.0, -1.0] *"]]
    assert out.iloc[0, 4] == "+2.0 [+1.0, +3.0] *" and out.iloc[1, 4] == out.iloc[3, 4] == "not run"


def test_mean_stays_empty_where_there_is_none():
    """A measurement on too few data sets has no mean: the cell is empty, not "not run"."""
    found = frame(("cifar10", "twins_at", 3, 0.02, 0.05), ("cub64", "twins_at", 3, 0.03, 0.1), ("mean", "twins_at", 3, 0.02, 1))
    out = tables.difference_table(pd.concat([found, found[:1].assign(eps=8 / 255, attack="pgd20")]))
    assert out.iloc[:, 4].tolist() == ["+2.0 [+1.0, +3.0] *", "not run", ""]
