"""Runs that diverged in what readers see: every notebook renders, and says "diverged" where a number would be."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.page_made import show
from tests.store_made import diverge, fill, plan
from twinslib.claims import ledger
from twinslib.specs.jobs import Job
from twinslib.store.store import Store

made: dict[str, Path] = {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A store in which every toy run of a notebook is finished, made once for each notebook."""
    def get(number: str) -> Path:
        if number not in made:
            made[number] = tmp_path_factory.mktemp(f"whole{number}")
            store = Store("small", root=made[number])
            while store.missing(jobs := plan(number)[0](best=store.best)) or not all(job.settled for job in jobs):
                fill(store, jobs)
        return made[number]
    return get


def without(whole: Path, root: Path, lost: Sequence[Job], diverged: Sequence[Job]) -> Store:
    """A copy of a store in which nothing is known of the runs `lost`, but that those of `diverged` did."""
    gone = {job.spec.hash for job in lost}
    for path in (p for p in whole.rglob("*") if p.is_file() and re.split(r"[-.]", p.name)[0] not in gone):
        target = root / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    for job in diverged:
        diverge(Store("small", root=root), job.spec, epochs=[dict.fromkeys(("val_clean_acc", "val_robust_acc"), 0.3) | {
            "epoch": 1, "train_loss": 2.0, "forward_images": 9, "backward_images": 9}])
    return Store("small", root=root)


def kind(job: Job) -> str:
    """Method, part or cell of a job, and its seed."""
    labels = dict(job.labels)
    return "/".join([job.study, job.spec.method.name, *(labels[k] for k in ("part", "pretraining", "finetuning", "norm")
                                                        if k in labels), str(job.spec.seed)])


SHOWN = {  # notebook -> runs that diverge together, and lines that then hold the word
    "01": (r"transfer/trades/|tuning/at/", [
        r"\| TRADES +\| 0 +\| diverged +\| diverged", r"\| toy target \| AT +\| 0 +\| diverged", r"L2-SP +\| 0 +\| diverged",
        r"TWINS-TRADES - TRADES +\| toy target \| 0 +\| diverged", r"TRADES \(diverged\)",
        r"Diverged: AT, seed 0"]),
    "02": (r"rates/twins_at/|rates/at_split/0", [
        r"\| toy target \| TWINS-AT +\| 0 +\| diverged +\| diverged", r"TWINS-AT / AT +\| toy target \| 0 +\| diverged",
        r"^TWINS-AT \(diverged\)", r"^AT, split batch \(diverged: seed 0\)", r"no run diverged: no",
        r"diverged: .*TWINS-AT on toy target, seed 0"]),
    "03": (r"overfitting/(at_cosine|at_random|at_short_plateau)/", [
        r"AT, cosine +\| 0 +\| diverged", r"AT, cosine - AT +\| 0 +\| diverged", r"\| cosine +\|.*diverged",
        r"\| toy target \| ours +\| diverged", r"Diverged: .*AT, random start, short plateau, seed 0", r"^diverged$"]),
    "04": (r"norms/natural/mixed/clean/(batch|group)/|norms/noise/clean/noise", [
        r"mixed +\| clean +\| group norm +\| 0 +\| diverged", r"group norm +\| 0 +\| diverged",
        r"\| toy target \| group norm +\| diverged", r"^diverged:$", r"Diverged: .*mixed/clean/group, seed 0 \(toy target"]),
    "05": (r"certified/natural/mixed/clean/|certified_tuning/twins_at/", [
        r"one σ → same σ +\| 0 +\| 0 +\| diverged", r"one network, mixed → clean.*diverged",
        r"TWINS-AT +\| 0.25 \| 0 +\| diverged", r"one σ → same σ +\| diverged", r"Diverged: .*mixed/clean/group",
        r"\| 0.25 +\| diverged +\| diverged", r"mixed +\| clean +\| .*diverged"]),
    "06": (r"aft/at_scratch/|aft_tuning/aft_constant/|aft/aft/fraction/", [
        r"\| AT, random start +\| best epoch +\| diverged +\| diverged", r"best epoch \(diverged\) - last +\| diverged",
        r"\| AT, random start +\| diverged +\| diverged",
        r"AFT, constant rate +\| diverged .*diverged", r"60 +\| AFT +\| diverged", r"AT, random start \(diverged\)",
        r"Diverged: .*AFT, seed 0, 60 training images"]),
}


@pytest.mark.parametrize("number", SHOWN)
def test_notebook_shows_what_diverged(number: str, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With some runs diverged every cell of a notebook runs; tables, figures, captions and the ledger name them, none is "not
    run" for that, and no number is NaN."""
    pattern, lines = SHOWN[number]
    jobs = plan(number)[0](best=Store("small", root=whole(number)).best)
    gone = [job for job in jobs if re.match(pattern, kind(job))]
    store = without(whole(number), tmp_path / "store", gone, gone)
    assert store.missing(plan(number)[0](best=store.best)) == []
    text = show(number, store, monkeypatch)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert [line for line in lines if not re.search(line, text, re.MULTILINE)] == []


@pytest.mark.parametrize("number", ("01", "03", "06"))
def test_notebook_without_any_number(number: str, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what others start from diverged, and everything else did too, there is still a page: words in place of numbers."""
    jobs = plan(number)[0](best=Store("small", root=whole(number)).best)
    started = {job.spec.source for job in jobs} - {None}
    store = without(whole(number), tmp_path / "store", jobs, [job for job in jobs if not job.spec.source or job.spec in started])
    assert store.missing(plan(number)[0](best=store.best)) == []
    text = show(number, store, monkeypatch)
    assert "diverged (source)" in text and not re.search(r"\bnan\b|\d\.\d \[", text.split("## Next to public")[0], re.IGNORECASE)


def test_ledger_names_what_diverged(whole, tmp_path: Path) -> None:
    """A claim on runs of which one diverged says so in its table, in claims.json and in the summary; one on others does not."""
    jobs = plan("02")[0](best=lambda candidates, **_: None)
    gone = [job for job in jobs if job.spec.method.name == "twins_at" and job.spec.seed == 1]
    store = without(whole("02"), tmp_path / "store", gone, gone)
    verdicts = ledger.judge_all(store, jobs, "02")
    ledger.write(store, verdicts)
    table = ledger.to_table(verdicts).set_index("claim")["n"]
    lines = {line.split("|")[1].strip(): line for line in ledger.summary(store).splitlines()[2:]}
    for claim in table.index:
        concerned = claim in ("C5", "C6")
        for text in (table[claim], lines[claim]):
            assert ("diverged: TWINS-AT on toy target, seed 1" in text) == concerned, claim
    whole_store = Store("small", root=whole("02"))
    assert not any(v.diverged for v in ledger.judge_all(whole_store, jobs, "02"))
