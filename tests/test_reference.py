"""Numbers of others: each has a source, none is one that nobody outside the paper knows."""

import tomllib
from importlib import resources

import pytest

from twinslib import paths, public, report

ROWS = public.reference_rows()
FILES = sorted(p.name for p in (resources.files("twinslib") / "reference").iterdir() if p.name.endswith(".csv"))


def test_files_ship_with_the_package():
    """Both files exist and pyproject lists them as data of the package."""
    project = tomllib.loads((paths.notebooks_dir().parent / "pyproject.toml").read_text())
    assert "reference/*.csv" in project["tool"]["setuptools"]["package-data"]["twinslib"]
    assert FILES == ["reported.csv", "twins.csv"]


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
    assert set(authors["method"]) == {"at", "trades"} and not report.is_autoattack(authors).any()


def test_values_are_fractions_of_the_stated_attack():
    """Fractions; clean at eps 0, the rest at 8/255; robust below clean, AutoAttack below PGD of the same source."""
    assert ROWS["value"].between(0.1, 0.95).all()
    clean = ROWS["attack"] == "none"
    assert (ROWS.loc[clean, "eps"] == 0).all() and ROWS.loc[~clean, "eps"].to_numpy() == pytest.approx(8 / 255)
    assert (clean == (ROWS["metric"] == "clean_acc")).all()
    for _, group in ROWS.groupby(["dataset", "method", "source"]):
        assert group["value"].is_monotonic_decreasing and len(group) in (2, 3)
    assert ROWS["sd"].notna().equals(ROWS["source"].str.contains("ICML"))


@pytest.mark.parametrize("source, method, dataset, attack, value", [
    ("AutoLoRa", "trades", "CIFAR-10", "none", 0.8633),
    ("AutoLoRa", "twins_trades", "Stanford Dogs", report.AUTOATTACK, 0.1441),
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


def test_counterparts_exist():
    """Every counterpart of a set is in the reference numbers; those of another edition or set bear another name."""
    known = set(ROWS["dataset"])
    for name, (_, counterpart) in report.DATASETS.items():
        assert counterpart is None or counterpart in known, name
    for name in ("caltech64", "cub64", "dogs64"):
        assert report.DATASETS[name][0] != report.DATASETS[name][1]
