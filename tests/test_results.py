"""Committed results: every row, table and source network is rebuilt from what lies beside it, without a GPU or images."""

import io
from pathlib import Path

import pandas as pd
import pytest

from twinslib import report, study, table
from twinslib.checkpoint import load_weights, tensor_hash
from twinslib.runs import Store

RESULTS = Path(__file__).parent.parent / "results"
COMMITTED = sorted((p.parent.parent.name, p.stem) for p in RESULTS.glob("*/tables/[0-9][0-9].md") if p.parts[-3] != "toy")
committed = pytest.mark.parametrize(("preset", "number"), COMMITTED, ids=lambda v: v)


def test_small_is_committed() -> None:
    """The small preset has its tables for notebook 01, and its rendering beside them."""
    assert ("small", "01") in COMMITTED
    assert {p.suffix for p in RESULTS.glob("small/01_*")} == {".ipynb", ".html"}
    assert {p.suffix for p in RESULTS.glob("small/figures/01_*")} == {".png", ".pdf"}


@committed
def test_nothing_is_missing(preset: str, number: str) -> None:
    """Every run and evaluation that the parameters ask for is there, and the checks that its numbers rest on hold."""
    jobs, _ = study.jobs(preset, number)
    store = Store(preset, device="cpu", root=RESULTS / preset)
    assert store.missing(jobs) == []
    assert all(table.sanity(store, jobs).values()), table.sanity(store, jobs)


@committed
def test_rows_and_tables_are_rebuilt(preset: str, number: str) -> None:
    """Rows from masks, and tables from rows, equal the committed files."""
    jobs, _ = study.jobs(preset, number)
    store = Store(preset, device="cpu", root=RESULTS / preset)
    name = jobs[0].study
    for kind, frame in (("rows", table.rows(store, jobs)), ("epochs", table.epochs(store, jobs))):
        buffer = io.StringIO()
        frame.to_csv(buffer, index=False)
        assert buffer.getvalue() == (RESULTS / preset / kind / f"{name}.csv").read_text(), kind
    assert report.transfer_tables(store, jobs) == (RESULTS / preset / "tables" / f"{number}.md").read_text()


@committed
def test_source_networks_are_the_recorded_ones(preset: str, number: str) -> None:
    """Shipped weights hash to what the run recorded, and are small enough to ship."""
    jobs, _ = study.jobs(preset, number)
    store = Store(preset, device="cpu", root=RESULTS / preset)
    sources = {job.spec.source for job in jobs} - {None} | {job.spec for job in jobs if not job.spec.source}
    assert sources
    for spec in sources:
        path = store.weights_path(spec)
        assert path.stat().st_size <= (5_000_000 if "thin" in spec.model.arch else 25_000_000)
        assert tensor_hash(load_weights(path)[0]) == store.run(spec)["weights"]


@committed
def test_every_number_names_its_attack_and_images(preset: str, number: str) -> None:
    """No empty cell; robust rows have an attack and a radius; the bar's sizes are met for the target data sets."""
    rows = pd.read_csv(RESULTS / preset / "rows" / f"{study.jobs(preset, number)[0][0].study}.csv")
    assert not rows.isna().any().any() and rows["value"].between(0, 1).all()
    robust = rows[rows["metric"] == "robust_acc"]
    assert (robust["attack"] != "none").all() and (robust["eps"] > 0).all()
    assert (rows["images"].str.extract(r"\[:(\d+)\]")[0].astype(int) == rows["n"]).all()
