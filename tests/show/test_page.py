"""The page of a notebook: what it showed, in its order, as text; what it leaves in the store."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.page_made import show
from twinslib.show.page import Page
from twinslib.specs.jobs import Task
from twinslib.store import store as stored
from twinslib.store.store import Store
from twinslib.studies import presets


@pytest.fixture
def page(tmp_path, monkeypatch) -> Page:
    """Of notebook 01 at toy, on an empty store."""
    monkeypatch.setattr(stored, "Store", lambda preset: Store(preset, root=tmp_path))
    return Page("01", "A title", presets.parameters(presets.notebook("01")) | {"something": "else"})


def test_plan_and_store_are_those_of_the_parameters(page) -> None:
    """Parameters that change no run, and other variables of the notebook, are no part of the plan."""
    changed = presets.parameters(presets.notebook("01")) | {"seeds": [5]}
    assert {job.spec.seed for job in page.jobs} == {0} and {job.spec.seed for job in Page("01", "", changed).jobs} == {0, 5}
    assert page.store.preset == "toy" and page.state() == "every run finished: no\nruns not run"
    with pytest.raises(KeyError):
        Page("01", "", {"preset": "toy"})


def test_text_of_what_was_shown(page) -> None:
    """Claims first, then titles in the order in which they came; what is shown again replaces what was there; the frame and the
    sentence go to the notebook."""
    frame = pd.DataFrame({"a": ["1"]})
    for value in ("x", "1"):
        assert page.table("Numbers", frame.replace("1", value), "In percent.").equals(frame.replace("1", value))
    assert page.text("Words", "So.").data == "So."
    page.table("Numbers", pd.DataFrame({"b": ["2"]}))
    verdicts = page.verdicts()
    assert page.finding()["claim"].tolist() == verdicts["claim"].tolist()
    assert set(verdicts["verdict"]) == {"not tested at this scale"} and (page.store.root / "claims.json").exists()
    _, claims, numbers, words = page.markdown().split("\n## ")
    assert page.markdown().startswith("# A title, preset toy\n\nRuns not run; accuracies are measured in float32.\n\n## Claims")
    assert claims.count("\n| C") == len(verdicts) and words == "Words\n\nSo.\n"
    assert numbers == "Numbers\n\nIn percent.\n\n| a   |\n|-----|\n| 1   |\n\n| b   |\n|-----|\n| 2   |\n"


def test_files(page) -> None:
    """Figures, rows and the page lie under the number of the notebook; checks are printed and close the page."""
    page.figure("some", Figure(figsize=(1, 1)), width=50)
    page.rows("made", pd.DataFrame({"a": [1]}))
    for _ in range(2):
        assert page.write({"it holds": True, "so does this": False}) == "it holds: yes\nso does this: no"
    files = sorted(str(path.relative_to(page.store.root)) for path in page.store.root.rglob("*.*"))
    assert files == ["figures/01_some.pdf", "figures/01_some.png", "rows/made.csv", "tables/01.md"]
    assert (page.store.root / "tables" / "01.md").read_text().endswith("## Checks\n\n- it holds: yes\n- so does this: no\n")


def test_short_words(page, capsys, monkeypatch) -> None:
    """A page, its store and its jobs say in a line what they are; a bar is drawn only where somebody watches."""
    jobs = page.jobs
    assert repr(page) == f"Page 01, A title: preset toy, {len(jobs)} runs, tasks left: {len(page.store.missing(jobs))}"
    assert repr(page.store).startswith("Store(toy, ") and "0 runs, 0 evaluations" in repr(page.store)
    assert len(repr(jobs[0])) < 150 and jobs[0].spec.hash in repr(jobs[0])
    task = Task(jobs[0].spec)
    page.progress(task, 1, 4)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    for done in (1, 4):
        page.progress(task, done, 4)
    assert "4/4" in capsys.readouterr().err and page.bar.n == 4


@pytest.mark.parametrize("number", [n for n in sorted(presets.notebooks()) if n != "01"])  # whose figures refuse to be empty
def test_page_of_an_empty_store(number, tmp_path, monkeypatch) -> None:
    """Before any run a notebook has its page, which says what is missing; no verdict, no number that is none."""
    text = show(number, Store("small", root=tmp_path), monkeypatch).partition("\n# ")[2]
    assert "preset small" in text and "not run" in text and "not tested at this scale" in text and "nan" not in text.lower()
