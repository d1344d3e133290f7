"""The names of finished results: each run, evaluation and certification still has the hash that its stored spec had."""

import json
from pathlib import Path

import pytest

from twinslib.base.files import read_about, read_npz
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.reading import canonical_json, from_dict
from twinslib.specs.run import RunSpec
from twinslib.store.store import Store
from twinslib.studies import plan

RESULTS = Path(__file__).parents[2] / "results"
RUNS = sorted(p for p in RESULTS.glob("*/runs/*.json") if p.parts[-3] != "toy")  # toy is not committed
SHIPPED = sorted(RESULTS.glob("*/weights/*.json"))


def test_every_finished_run_keeps_its_hash() -> None:
    """A spec read back from its record hashes to the name of the file, and so does the spec of its source."""
    assert len(RUNS) > 250
    for path in RUNS + SHIPPED:
        stored = json.loads(path.read_text())["spec"]
        spec = from_dict(RunSpec, stored)
        assert (spec.hash, json.loads(canonical_json(spec))) == (path.stem, stored), path
        assert path in SHIPPED or spec.source is None or (path.parent / f"{spec.source.hash}.json").exists(), path


def test_every_finished_evaluation_keeps_its_hash() -> None:
    """Specs stored beside masks hash to the names of the files, whose masks are as long as they say."""
    count = 0
    for path in sorted(RESULTS.glob("small/masks/*.npz")):
        e, masks = from_dict(EvalSpec, read_about(path)["measurement"]), read_npz(path).values()
        assert path.stem.split("-")[1] == e.hash and all(m.shape == (e.images,) and m.dtype == bool for m in masks)
        count += 1
    assert count > 600


@pytest.mark.parametrize("number", ["04", "05"])
def test_finished_certifications_are_those_of_the_plan(number: str) -> None:
    """Files of votes are named by run and certification; the plans of the notebooks still ask for certifications of that name."""
    store = Store("small", root=RESULTS / "small")
    planned = {(j.spec.hash, c.hash): c for j in plan.plan("small", number)[0](best=store.best) for c in j.certs}
    stored = [tuple(path.stem.split("-")) for path in (RESULTS / "small" / "votes").glob("*.npz")]
    known = [planned[name] for name in stored if name in planned]
    assert known and all(isinstance(c, CertifySpec) for c in known)
