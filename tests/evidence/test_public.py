"""Numbers of others: each has a source, none is one that nobody outside the paper knows."""

import tomllib
from importlib import resources

import pytest

from twinslib.base import paths
from twinslib.evidence import accuracy, public
from twinslib.specs import labels

ROWS = public.reference_rows()
OVERFITTING = public.overfitting_rows()
FILES = sorted(p.name for p in (resources.files("twinslib") / "reference").iterdir() if p.name.endswith(".csv"))


def test_files_ship_with_the_package():
    """The files exist and pyproject lists them as data of the package."""
    project = tomllib.loads((paths.notebooks_dir().parent / "pyproject.toml").read_text())
    assert "reference/*.csv" in project["tool"]["setuptools"]["package-data"]["twinslib"]
    assert FILES == ["characteristics.csv", "networks.csv", "overfitting.csv", "reported.csv", "smoothing.csv", "twins.csv"]


def test_every_row_names_its_source():
    """Source, place, start network and images are filled in everywhere; a number stands once per source."""
    for column in ("source", "where", "start", "start_file", "images", "note", "arch"):
        assert (ROWS[column].str.len() > 0).all(), column
    assert not ROWS.duplicated(["dataset", "method", "attack", "source"]).any()


def test_no_number_of_the_paper_itself():
    """The paper's own tables are unknown: no row stems from them, and nobody else published TWINS-AT."""
    assert not ROWS["where"].str.contains("2303.11135").any()
    assert not ROWS["source"].str.contains("TWINS|CVPR").any()
    assert set(ROWS["method"]) == {"at", "trades", "twins_trades"}
    authors = ROWS[ROWS["source"].str.contains("ICML")]
    assert set(authors["method"]) == {"at", "trades"} and "autoattack" not in set(accuracy.kinds(authors))


@pytest.mark.parametrize("source, method, dataset, attack, value", [
    ("AutoLoRa", "trades", "CIFAR-10", "none", 0.8633),
    ("AutoLoRa", "twins_trades", "Stanford Dogs", labels.AUTOATTACK, 0.1441),
    ("AutoLoRa", "twins_trades", "CUB-200-2011", "pgd10", 0.2960),
    ("Liu", "at", "CIFAR-100", "pgd100", 0.2849),
    ("Liu", "trades", "Caltech-256", "none", 0.6957),
])
def test_spot_checks(source, method, dataset, attack, value):
    """A few numbers as printed in the sources."""
    found = ROWS[ROWS["source"].str.startswith(source) & (ROWS["method"] == method) & (ROWS["dataset"] == dataset)
                 & (ROWS["attack"] == attack)]
    assert found["value"].tolist() == [value]


def test_mean_gains_of_the_rerun():
    """The means over the five data sets agree with a calculation made apart from the file."""
    table = public.reference_differences()
    assert table.iloc[-1].tolist()[:4] == ["mean of 5 data sets", "+2.47", "+0.43", "+0.51"]
    assert list(table.columns[1:4]) == ["clean", "PGD-10 at 8/255", "AutoAttack at 8/255"]


def test_reported_effect_says_how_sure_it_is():
    """The one effect size of the paper that may be shown, in the one wording that may be used."""
    assert public.reported() == "reported, second-hand: +2.18 clean, +1.21 robust"


# -- robust overfitting -----------------------------------------------------------------------------------------------
def test_overfitting_rows_state_their_source():
    """Every line says data, network, schedule, attack, settings and source; numbers stand once; errors are fractions."""
    for column in ("dataset", "model", "schedule", "what", "rates", "settings", "attack", "threat"):
        assert (OVERFITTING[column].str.len() > 0).all(), column
    assert set(OVERFITTING["source"]) == {"authors' logs, locuslab/robust_overfitting"}
    assert not OVERFITTING.duplicated(["dataset", "model", "schedule", "what", "epoch"]).any()
    assert set(OVERFITTING["attack"]) == {"pgd10"} and OVERFITTING["eps"].to_numpy() == pytest.approx(8 / 255)
    assert OVERFITTING["test_robust_error"].between(0.4, 0.8).all()
    assert set(OVERFITTING["what"]) == {"epoch", "best", "last"}
    clean = OVERFITTING.dropna(subset="test_clean_error")
    assert (clean["test_clean_error"] < clean["test_robust_error"]).all()


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
