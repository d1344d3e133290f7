"""Formulas, tables, bars and the history of runs, each by itself."""

import json
import math
import re
from pathlib import Path

import bs4
import nbformat
import numpy as np
import pytest

from tests.site.conftest import RESULTS
from twinslib.base.files import read_json, write_json, write_npz
from twinslib.claims.effects import Effect
from twinslib.site import bars, build, history, notebook, tables
from twinslib.site.entries import Shown
from twinslib.site.mathml import to_mathml
from twinslib.site.tables import Table
from twinslib.store.store import Store


def shown(value: float, low: float = math.nan, high: float = math.nan, *, claimed: float | None = None, unit: str = "points",
          method: str = "twins_at") -> Shown:
    return Shown(Effect(method, "at", "clean", "none", "cifar10", 100, 3, value, low, high, unit=unit), "", "", claimed)


def places(drawing: str) -> dict[str, list[float]]:
    """Class of each mark -> where it stands, from left to right."""
    found = bs4.BeautifulSoup(drawing, "html.parser").svg.find_all(class_=True)
    return {e["class"][0]: sorted(float(e[a]) for a in ("x1", "x2", "cx") if a in e.attrs) for e in found}


def test_bars_are_drawn_to_scale() -> None:
    """Marks stand where the numbers say, on an axis that is even about 0; ratios start at 1."""
    one = shown(0.01, -0.01, 0.03, claimed=0.02)
    axis = bars.extents([one])["points"]
    assert axis == (-0.03, 0.03)
    at = places(bars.interval(one, axis))
    start, end = at["axis"]
    assert at["zero"] == [(start + end) / 2] * 2 and at["range"][1] == pytest.approx(end)
    for name, value in (("value", 0.01), ("claimed", 0.02), ("range", -0.01)):
        assert at[name][0] == pytest.approx(start + (value + 0.03) / 0.06 * (end - start), abs=0.06), name
    assert bars.extents([shown(2.5, unit="times")]) == {"times": (0.0, 2.5)}
    assert "range" not in places(bars.interval(shown(0.01), axis))


def test_gains_over_the_own_start_do_not_set_the_scale() -> None:
    """They may lie beyond the axis, which a triangle says; by themselves they have an axis."""
    far = shown(0.3, 0.2, 0.4, method="at")
    assert bars.extents([far, shown(0.01, 0.0, 0.02)])["points"] == (-0.02, 0.02) and bars.extents([far])["points"][1] == 0.4
    for value in (0.3, -0.3):
        drawing = bars.interval(shown(value, value - 0.1, value + 0.1, method="at"), (-0.02, 0.02))
        assert "<path" in drawing and "<circle" not in drawing and 'class="range"' not in drawing


def test_strip_is_whole() -> None:
    """One part for each verdict that there is, as wide as its share."""
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="10"', bars.strip({"a": 1, "b": 0, "c": 3}, dict(zip(
        "abc", "abc", strict=True))))]
    assert widths == [25, 75]


@pytest.mark.parametrize(("source", "wanted"), [
    (r"\eta\lVert g\rVert", "<mi>η</mi><mo>‖</mo><mi>g</mi><mo>‖</mo>"),
    (r"w_1", "<msub><mi>w</mi><mn>1</mn></msub>"),
    (r"\sqrt{1+\lambda}", "<msqrt><mrow><mn>1</mn><mo>+</mo><mi>λ</mi></mrow></msqrt>"),
    (r"\frac{1}{2.5}", "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2.5</mn></mrow></mfrac>"),
    (r"c < 0", "<mi>c</mi><mo>&lt;</mo><mn>0</mn>"), (r"\text{so that }x", "<mtext>so\xa0that\xa0</mtext><mi>x</mi>"),
    ("a-b", "<mi>a</mi><mo>−</mo><mi>b</mi>"),
])
def test_formulas(source: str, wanted: str) -> None:
    """The part of LaTeX that notebooks use, as MathML with the source beside it."""
    made = to_mathml(source, block=True)
    assert made.startswith('<math display="block">') and wanted in made
    assert bs4.BeautifulSoup(made, "html.parser").annotation.get_text() == source


@pytest.mark.parametrize(("source", "message"), [
    (r"\begin{x}", r"expected a command out of .*, got \\begin"), ("{a", "ends too early"), ("a}", "braces in pairs"),
    ("a^", "ends too early"), (r"\sqrt", "ends too early")])
def test_formulas_that_are_not_known(source: str, message: str) -> None:
    """Are refused, so that no page shows a source."""
    with pytest.raises(ValueError, match=message):
        to_mathml(source)


def test_tables_of_pandas_and_of_markdown() -> None:
    """The numbers of rows go, the rest is as it was; what needs escaping is escaped."""
    html = ("<table><thead><tr><th></th><th>a</th><th>b</th></tr></thead><tbody><tr><th>0</th><td>x &lt; y</td><td>1.5</td></tr>"
            "</tbody></table>")
    table = Table(("a", "b"), (("x < y", "1.5"),))
    assert tables.from_html(bs4.BeautifulSoup(html, "html.parser").table) == table
    assert tables.from_markdown("# T\n\n## One\n\ntext\n\n| a | b |\n|---|---|\n| x < y | 1.5 |\n\n## Two\n") == {
        "One": [table], "Two": []}
    assert tables.from_markdown("## A\n| a\\|b |\n|---|\n| 1 |\n")["A"][0].columns == ("a|b",)
    again = bs4.BeautifulSoup(tables.to_html(table, 'a "name"'), "html.parser")
    assert again.div["aria-label"] == 'a "name"' and tables.from_html(again.table) == table


def test_tables_in_a_sentence() -> None:
    """Chosen columns and rows; what holds no number says so."""
    table = Table(("data set", "method", "seeds", "clean", "PGD"), (
        ("A", "AT", "3", "50.0 [49, 51]", "30.0"), ("B", "AT", "3", "60.0 [59, 61]", "not run"),
        ("A", "TRADES", "2", "55.0", "31.5")))
    assert tables.spans(table) == ("clean from 50.0 [49, 51] (A, AT) to 60.0 [59, 61] (B, AT); PGD from 30.0 (A, AT) to 31.5 "
                                   "(A, TRADES)")
    assert tables.spans(table, ["PGD"], [["B"]]) == "none of the 1 lines of its table holds a number yet"
    assert tables.spans(table, ["PGD"], [["A", "B"], ["TRADES"]]) == "PGD 31.5 (A, TRADES)"


def test_notebooks_are_whole(site: Path) -> None:
    """Each page has all the text, code, figures and tables of its notebook."""
    for path in sorted(RESULTS.glob("0*.ipynb")):
        page = bs4.BeautifulSoup((site / f"{path.stem}.html").read_text(), "html.parser")
        cells = json.loads(path.read_text())["cells"]
        outputs = [o for c in cells for o in c.get("outputs", ())]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        shown = [d.pre.get_text().strip() for d in page.select("main details:has(> .highlight)")]
        assert shown == [c.strip() for c in code if c.strip()]
        assert len(page.find_all("img")) == sum("image/png" in o.get("data", {}) for o in outputs)
        # verdicts stand in a list on the page
        told = [o for c in cells if "finding" not in c["metadata"].get("tags", ()) for o in c.get("outputs", ())]
        assert len(page.find_all("table")) >= sum("text/html" in o.get("data", {}) for o in told)
        words = set(re.findall(r"[a-z]{4,}", re.sub(r"\$[^$]*\$", "", " ".join("".join(c["source"]) for c in cells if c[
            "cell_type"] == "markdown").replace("_", " ")).lower()))
        assert words <= set(re.findall(r"[a-z]{4,}", page.get_text().replace("_", " ").lower())), path.stem


def test_pictures_of_other_bytes_are_kept(tmp_path: Path) -> None:
    """A figure that lies in no folder is written beside the page, described by the table that stands next to it."""
    store = Store("small", root=tmp_path)
    body = notebook.Reader(store, "02", nbformat.read(RESULTS / "02_effective_learning_rate.ipynb", 4).cells).read()
    names = list(body.images)
    assert "02_picture_1.png" in names and all(content.startswith(b"\x89PNG") for content in body.images.values())
    headings = {title for _, title in body.sections} | {body.title}
    assert all(alt.startswith(tuple(headings)) for _, alt in body.figures.values())


def test_history_names_every_run(site: Path) -> None:
    """Each run of the store once, with what its provenance says; the versions stand in a table."""
    page = bs4.BeautifulSoup((site / "provenance.html").read_text(), "html.parser")
    there = {p.stem for folder in ("runs", "diverged") for p in (RESULTS / folder).glob("*.json")}
    assert {row["id"].removeprefix("run-") for row in page.select(".runs tbody tr")} == there
    runs, versions = history.read(Store("small", root=RESULTS))
    assert len(runs) == len(there) and all(run.entries and run.started <= run.ended and run.hours > 0 for run in runs)
    assert [run.started for run in runs] == sorted(run.started for run in runs)
    columns = [th.get_text() for th in page.table.thead.find_all("th")]
    assert columns == ["package", *(f"versions {number}" for number in versions)] and {"Python", "torch"} <= versions["1"].keys()


def test_history_of_new_and_of_diverged_runs(tmp_path: Path) -> None:
    """Provenance that lies in the files themselves; a run that diverged; a measurement of it is no run."""
    record = read_json(next((RESULTS / "runs").glob("*.json")))
    store, name = Store("small", root=tmp_path), next((RESULTS / "runs").glob("*.json")).stem
    entry = {"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T05:04:05+00:00", "seconds": 3600.0,
             "commit": "abcdef12345", "changed": True, "device": "cpu", "cpu": "A CPU", "threads": 1,
             "python": "3.12", "versions": {"torch": "9"}}
    for folder in ("runs", "diverged", "masks"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "runs" / f"{name}.json", record | {"provenance": entry})
    write_npz(tmp_path / "masks" / f"{name}-0123.npz", {"pgd": np.ones(3, bool)}, {"provenance": entry | {"threads": 2}})
    write_json(tmp_path / "diverged" / f"{name}-0123.json", record | {"diverged": "nan"})
    (run,), versions = history.read(store)
    assert (run.hash, run.state, run.measured, run.hours) == (name, "finished", 1, 2.0)
    assert run.each("commit") == "abcdef1 with changes" and run.each("hardware") == "A CPU, 1 threads and A CPU, 2 threads"
    assert (run.started, run.ended) == ("2026-01-02 03:04", "2026-01-02 05:04")
    assert versions == {"1": {"Python": "3.12", "torch": "9"}}
    (tmp_path / "runs" / f"{name}.json").rename(tmp_path / "diverged" / f"{name}.json")
    assert [run.state for run in history.read(store)[0]] == ["diverged"]


def test_deviations_are_the_notebooks_words(site: Path) -> None:
    """The paragraphs that say what differs, of every notebook, up to the next that says something else; the README's limits."""
    page = bs4.BeautifulSoup((site / "deviations.html").read_text(), "html.parser")
    titles = [h.get_text() for h in page.find_all("h2")]
    assert [t[:2] for t in titles[:6]] == ["01", "02", "03", "04", "05", "06"] and "Limits" in titles
    said = page.main.get_text()
    assert said.count("What differs from") >= 6 and "Used as published" in said and "What could explain" not in said
    assert build.differs(notebook.Body(text=["a\n\n**What differs.** x\n\ny\n\n**Else.** z"])) == "**What differs.** x\n\ny"
    assert build.differs(notebook.Body(text=["a"])) == ""


def test_glossary_has_what_pages_point_to(site: Path) -> None:
    """Terms in the order of the alphabet, each with a sentence."""
    page = bs4.BeautifulSoup((site / "glossary.html").read_text(), "html.parser")
    terms = [dt.get_text() for dt in page.dl.find_all("dt")]
    assert len(terms) > 20 and all(dd.get_text().rstrip().endswith(".") for dd in page.dl.find_all("dd"))
    assert [t.lower()[:4] for t in terms] == sorted(t.lower()[:4] for t in terms)
