"""Numbers of others: each has a source, none is one that nobody outside the paper knows."""


import pandas as pd
import pytest

from twinslib.evidence import accuracy, public
from twinslib.specs import labels

ROWS = public.reference_rows()
OVERFITTING, SMOOTHING = public.overfitting_rows(), public.smoothing_rows()
@pytest.mark.parametrize(("rows", "filled", "key", "share"), [
    (ROWS, ["source", "where", "start", "start_file", "images", "note", "arch"], ["dataset", "method", "attack", "source"],
     "value"),
    (OVERFITTING, ["source", "dataset", "model", "schedule", "what", "rates", "settings", "attack", "threat"],
     ["dataset", "model", "schedule", "what", "epoch"], "test_robust_error"),
    (SMOOTHING, ["dataset", "method", "network", "images", "n", "alpha", "source"],
     ["dataset", "method", "network", "sigma", "source", "metric", "radius"], "value")])
def test_every_row_names_its_source(rows, filled, key, share):
    """What a number stands on is filled in everywhere; it stands once, and is no percentage."""
    assert all((rows[column].str.len() > 0).all() for column in filled)
    assert not rows.duplicated(key).any()
    assert rows[share].dropna().between(0, 1 if share != "value" else 3).all()  # a mean radius may be above 1


def test_no_number_of_the_paper_itself():
    """The paper's own tables are unknown: no row stems from them, and nobody else published TWINS-AT."""
    assert not ROWS["where"].str.contains("2303.11135").any()
    assert not ROWS["source"].str.contains("TWINS|CVPR").any()
    assert set(ROWS["method"]) == {"at", "trades", "twins_trades"}
    authors = ROWS[ROWS["source"].str.contains("ICML")]
    assert set(authors["method"]) == {"at", "trades"} and "autoattack" not in set(accuracy.kinds(authors))


@pytest.mark.parametrize(("rows", "where", "value"), [
    (ROWS, {"method": "trades", "dataset": "CIFAR-10", "attack": "pgd10"}, 0.5651),
    (ROWS, {"method": "twins_trades", "dataset": "Stanford Dogs", "attack": labels.AUTOATTACK}, 0.1441),
    (ROWS, {"method": "at", "dataset": "CIFAR-100", "attack": "pgd100"}, 0.2849),
    (SMOOTHING, {"dataset": "CIFAR-10", "method": "Cohen et al. 2019", "sigma": 0.25, "radius": 0.5, "alpha": "0.01"}, 0.428),
    (SMOOTHING, {"dataset": "CIFAR-10", "method": "SmoothAdv", "radius": 2.25, "alpha": "0.001"}, 0.17)])
def test_spot_checks(rows, where, value):
    """A few numbers as printed in the sources; of alpha what the logs show, not what is stated."""
    assert rows.loc[(rows[[*where]] == pd.Series(where)).all(axis=1), "value"].tolist() == [value]


def test_mean_gains_of_the_rerun():
    """The means over the five data sets agree with a calculation made apart from the file."""
    table = public.reference_differences()
    assert table.iloc[-1].tolist()[:4] == ["mean of 5 data sets", "+2.47", "+0.43", "+0.51"]
    assert list(table.columns[1:4]) == ["clean", "PGD-10 at 8/255", "AutoAttack at 8/255"]


@pytest.mark.parametrize("model, schedule, epochs, best, gap", [
    ("PreAct ResNet-18", "piecewise", 200, 0.4651, 7.4), ("WRN-34-10", "piecewise", 200, 0.4320, 8.2),
    ("PreAct ResNet-18", "cyclic", 200, 0.4798, 1.1), ("PreAct ResNet-18", "cosine", 200, 0.4896, 5.2),
    ("PreAct ResNet-18", "ten steps", 500, 0.4891, 5.9), ("PreAct ResNet-18", "drop at 90", 110, 0.4727, 1.0),
])
def test_overfitting_gaps(model, schedule, epochs, best, gap):
    """Last minus best agrees with the differences that were computed apart from the file."""
    gaps = public.overfitting_gaps().set_index(["model", "schedule"])
    assert gaps.index.is_unique and (gaps["gap"] > 0).all() and len(gaps) == 19
    found = gaps.loc[(model, schedule)]
    assert (found["epochs"], found["best"], round(100 * found["gap"], 1)) == (epochs, best, gap)
    nearest = OVERFITTING[(OVERFITTING["what"] == "epoch") & (OVERFITTING["model"] == model)]["test_robust_error"].min()
    assert schedule != "piecewise" or abs(nearest - best) < 0.003  # the course passes near its lowest point
