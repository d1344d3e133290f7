"""Committed results: every row, table, verdict and source network is rebuilt from what lies beside it, without a GPU or images.

The queue of a preset may be unfinished; what is there belongs to the plan, and the runs that the main numbers stand on are whole.
"""

import io
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from tests.page_made import show
from twinslib.base.files import read_about, read_json, read_npz
from twinslib.claims.verdict import NOT_TESTED
from twinslib.evidence import rows as evidence_rows
from twinslib.nets.checkpoint import load_weights, tensor_hash
from twinslib.specs.jobs import Job
from twinslib.specs.labels import MEAN, dataset_label, method_label
from twinslib.specs.measure import EvalSpec
from twinslib.specs.reading import canonical_json, from_dict
from twinslib.specs.run import RunSpec
from twinslib.store.check import check
from twinslib.store.store import Store
from twinslib.studies import plan, presets
from twinslib.studies.smoothing import cell_of

RESULTS = Path(__file__).parent.parent / "results"
EXAMPLES = {p.name: str(p) for p in (RESULTS.parent / "notebooks" / "examples").iterdir()}  # studies by name: their folders
COMMITTED = sorted((p.parent.parent.name, p.stem) for p in RESULTS.glob("*/tables/[0-9][0-9].md") if p.parts[-3] != "toy")
committed = pytest.mark.parametrize(("preset", "number"), COMMITTED, ids=lambda v: v)


def load(preset: str, number: str) -> tuple[Store, Sequence[Job]]:
    """The committed store and the notebook's jobs, with what its finished candidates decide."""
    store = Store(preset, root=RESULTS / preset)
    return store, plan.plan(EXAMPLES.get(preset, preset), number)[0](best=store.best)


def test_every_finished_run_keeps_its_hash() -> None:
    """A spec read back from its record hashes to the name of the file, and so does the spec of its source."""
    runs, shipped = ([p for p in RESULTS.glob(f"*/{folder}/*.json") if p.parts[-3] != "toy"] for folder in ("runs", "weights"))
    assert len(runs) > 250
    for path in runs + shipped:
        stored = read_json(path)["spec"]
        spec = from_dict(RunSpec, stored)
        assert (spec.hash, json.loads(canonical_json(spec))) == (path.stem, stored), path
        assert path in shipped or spec.source is None or (path.parent / f"{spec.source.hash}.json").exists(), path


def test_every_finished_evaluation_keeps_its_hash() -> None:
    """Specs stored beside masks hash to the names of the files, whose masks are as long as they say."""
    paths = sorted(RESULTS.glob("small/masks/*.npz"))
    for path in paths:
        e, masks = from_dict(EvalSpec, read_about(path)["measurement"]), read_npz(path).values()
        assert path.stem.split("-")[1] == e.hash and all(m.shape == (e.images,) and m.dtype == bool for m in masks)
    assert len(paths) > 600


@pytest.mark.parametrize("number", ["04", "05"])
def test_finished_certifications_are_those_of_the_plan(number: str) -> None:
    """Files of votes are named by run and certification; the plans still ask for certifications of that name."""
    store, jobs = load("small", number)
    planned = {(j.spec.hash, c.hash) for j in jobs for c in j.certs}
    assert planned & {tuple(stem.split("-")) for stem in stems(store, "votes", "npz")}


def stems(store: Store, folder: str, ending: str) -> set[str]:
    return {p.stem for p in (store.root / folder).glob(f"*.{ending}")}


@pytest.mark.parametrize(("preset", "number"), [*(("small", f"0{n}") for n in range(1, 7)), *((name, "01") for name in EXAMPLES)])
def test_all_is_committed(preset: str, number: str) -> None:
    """The small preset and each example have their tables for a notebook, its rendering and figures beside them."""
    assert (preset, number) in COMMITTED
    assert {p.suffix for p in RESULTS.glob(f"{preset}/{number}_*")} == {".ipynb", ".html"}
    assert {p.suffix for p in RESULTS.glob(f"{preset}/figures/{number}_*")} == {".png", ".pdf"}


@pytest.mark.parametrize("preset", sorted({preset for preset, _ in COMMITTED}))
def test_nothing_belongs_nowhere(preset: str) -> None:
    """Every run is one of the plans' or a candidate of theirs; masks, provenance, splits and weights belong to such runs."""
    store = Store(preset, root=RESULTS / preset)
    jobs = [job for p, number in COMMITTED if p == preset for job in load(p, number)[1]]
    planned = {job.spec.hash for job in jobs}
    records = {stem: read_json(store.root / "runs" / f"{stem}.json") for stem in stems(store, "runs", "json")}
    assert records and set(records) | stems(store, "diverged", "json") <= planned
    assert stems(store, "courses", "npz") == {s for s, r in records.items() if "follow" in r["spec"]}
    assert {stem.split("-")[0] for folder in ("votes", "masks") for stem in stems(store, folder, "npz")} <= set(records)
    assert check(store)[0] == []
    assert stems(store, "splits", "npz") == {record["split"] for record in records.values()}
    assert stems(store, "weights", "safetensors") == stems(store, "weights", "json") <= set(records)
    assert stems(store, "weights", "json") <= {j.spec.hash for j in jobs if j.ship} | {
        j.spec.source.hash for j in jobs if j.spec.source}


@pytest.mark.parametrize("preset", sorted({preset for preset, _ in COMMITTED}))
def test_provenance_is_that_of_the_results(preset: str) -> None:
    """Each finished training was done as its provenance says: weights, precision, all epochs."""
    store = Store(preset, root=RESULTS / preset)
    for stem in stems(store, "runs", "json"):
        record = read_json(store.root / "runs" / f"{stem}.json")
        train, precision = record["provenance"], record["spec"]["optim"].get("precision", "float32")
        assert train["weights"] == record["weights"] and train["precision"] in (precision, "float32")
        assert [row["epoch"] for row in record["epochs"]] == list(range(1, record["spec"]["optim"].get("epochs", 60) + 1))


def key(job: Job) -> tuple[str, str, int]:
    """(data set, method, seed); for networks that are certified their cell in place of the method."""
    name = str(cell_of(job) or job.spec.method.name)
    part = dict(job.labels).get("part")  # of adversarial fine-tuning
    return job.spec.data.name, name if part in (None, "main") else f"{part} {name}", job.spec.seed


def main_runs(number: str, jobs: Sequence[Job]) -> tuple[set, list[Job]]:
    """Keys of what the main numbers of a notebook stand on, and those of `jobs` that are it; from 04 on all of the first seed."""
    runs = presets.overrides("small", "03", presets.parameters(presets.notebook("03")))["runs"]
    methods = [name for name, run in runs.items() if "before" not in run]  # those wait for the runs of a new plan
    noisy = ["mixed/noise0.25", "mixed/noise0.5", "mixed/noise1.0"]
    cells = ("clean/clean", "mixed/clean", *noisy)
    batch_group_layer = [f"{cell}/{norm}" for norm in ("batch", "group", "layer") for cell in cells]
    group = [name for name in batch_group_layer if name.endswith("group")]
    group += [f"{start}/noise{s}/group" for s in (0.25, 0.5, 1.0) for start in ("clean", f"noise{s}")]
    wanted = {
        "01": itertools.product(("cifar10", "caltech64", "cub64"), ("at", "trades", "twins_at", "twins_trades"), (0,)),
        "02": itertools.product(("cifar10",), ("at", "at_lr", "twins_at"), (0, 1)),
        "03": itertools.product(("cifar10",), methods, (0,)),
        "04": itertools.product(("cifar10",), ["mixed/frozen/batch", *batch_group_layer], (0,)),
        "05": itertools.product(("cifar10",), group, (0,)),
        "06": itertools.product(("cifar10",), ("aft", "at_scratch", "aft_public", "aft_random", "fast_at", "free_at"), (0,)),
    }[number]
    wanted = set(wanted)
    return wanted, [j for j in jobs if not j.study.endswith("tuning") and not j.ship and j.study != "learning_rates"
                    and (key(j) in wanted or (number >= "04" and j.spec.seed == 0))]


@committed
def test_main_runs_are_complete(preset: str, number: str) -> None:
    """What the main numbers stand on is chosen, trained and measured as asked, and so is the network that it starts from."""
    store, jobs = load(preset, number)
    wanted, main = main_runs(number, jobs) if preset not in EXAMPLES else (set(), jobs)  # an example is whole
    assert {key(j) for j in main} >= wanted and [key(j) for j in main if not j.settled] == []
    assert store.missing([*main, *(j for j in jobs if j.spec in {m.spec.source for m in main})]) == []


@committed
def test_numbers_do_not_contradict_each_other(preset: str, number: str) -> None:
    """What must hold for robust numbers to be believed holds for all that is finished."""
    store, jobs = load(preset, number)
    assert all(evidence_rows.sanity(store, jobs).values()), evidence_rows.sanity(store, jobs)


@committed
def test_rows_are_rebuilt(preset: str, number: str) -> None:
    """Rows from masks and epochs from run records equal the committed files, for what is measured and for what was tuned."""
    store, jobs = load(preset, number)
    for name in sorted({job.study for job in jobs}):
        mine = [job for job in jobs if job.study == name]
        frames = {"epochs": evidence_rows.epochs(store, mine)}
        frames |= {"rows": evidence_rows.rows(store, mine)} if any(j.evals for j in mine) else {}
        for kind, frame in frames.items():
            buffer = io.StringIO()
            frame.to_csv(buffer, index=False)
            path = store.root / kind / f"{name}.csv"
            assert path.exists() and buffer.getvalue() == path.read_text(), path


@committed
def test_tables_and_verdicts_are_rebuilt(preset: str, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of tables and the ledger of verdicts follow from the store."""
    shutil.copytree(RESULTS.resolve() / preset, tmp_path / preset, copy_function=os.symlink)  # what is written replaces a link
    known = presets.parameters(presets.notebook(number))
    given = EXAMPLES.get(preset, preset)
    show(number, Store(given, root=tmp_path / preset), monkeypatch, presets.overrides(given, number, known))
    for name in (f"tables/{number}.md", "claims.json", "claims.md"):
        assert (tmp_path / preset / name).read_text() == (RESULTS / preset / name).read_text(), name


@committed
def test_source_networks_are_the_recorded_ones(preset: str, number: str) -> None:
    """Shipped weights hash to what the run recorded, and are small enough to ship; every finished start is shipped."""
    store, jobs = load(preset, number)
    sources = {s for s in {job.spec.source for job in jobs} - {None} | {job.spec for job in jobs if job.ship} if store.run(s)}
    assert sources
    for spec in sources:
        path = store.root / "weights" / f"{spec.hash}.safetensors"
        assert path.stat().st_size <= (5_000_000 if "thin" in spec.model.arch else 25_000_000)
        assert tensor_hash(load_weights(path)[0]) == store.run(spec)["weights"]


@pytest.mark.parametrize("preset", sorted({preset for preset, _ in COMMITTED}))
def test_every_number_names_its_attack_and_images(preset: str) -> None:
    """No empty cell; robust rows have an attack and a radius; the number of images is that of the list of images."""
    rows = pd.read_csv(RESULTS / preset / "rows" / "transfer.csv")
    assert len(rows) and not rows.isna().any().any() and rows["value"].between(0, 1).all()
    robust = rows[rows["metric"] == "robust_acc"]
    assert len(robust) and (robust["attack"] != "none").all() and (robust["eps"] > 0).all()
    assert (rows["images"].str.extract(r"\[:(\d+)\]")[0].astype(int) == rows["n"]).all()


def test_pages_stand_on_the_runs_of_their_verdicts() -> None:
    """The accuracies behind each verdict stand in the tables of its page, beside the same method and, of several, data set."""
    seen = 0
    for claim, record in read_json(RESULTS / "small" / "claims.json").items():
        lines = (RESULTS / "small" / "tables" / f"{record['notebook']}.md").read_text().splitlines()
        for e in record["effects"] if record["verdict"] != NOT_TESTED and record["notebook"] != "02" else ():
            place = dataset_label(e["dataset"])
            if "/" in e["method"]:  # cells, side by side at their best noise levels
                if e["unit"] == "points" and e["part"] != "mean":
                    ours, theirs, value = (f"{100 * e[key]:.1f}" for key in ("ours", "theirs", "value"))
                    row = [place, e["where"].partition(", r ")[2], str(e["seeds"]), ours, theirs, f"{float(value):+.1f}"]
                    cells = ([cell.strip().split(" ")[0] for cell in line.split("|")] for line in lines)
                    seen += 1
                    assert any([line[1], *line[4:9]] == row for line in cells if len(line) > 8), (claim, row)
                continue
            for method, value in ((e["method"], e["ours"]), (e["baseline"], e["theirs"])):
                if e["dataset"] != MEAN and e["unit"] == "points":
                    seen, row = seen + 1, tuple(f"| {name} " for name in (place, method_label(method)))
                    assert any(line.startswith(row) and row[1] in line
                               and f"| {100 * value:.1f} [" in line for line in lines), (claim, e["dataset"], method, value)
    assert seen > 12
