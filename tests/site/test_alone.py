"""Rendered notebooks as files of their own: what was found on the first screen, whole, and nothing from elsewhere."""

import json
import re
from pathlib import Path

import bs4
import nbformat
import pytest

from tests.site.browser import Browser
from tests.site.conftest import RESULTS
from tests.site.test_browser import PROGRAM
from twinslib.base import paths
from twinslib.site import build, entries
from twinslib.store.store import Store

STORED = json.loads((RESULTS / "claims.json").read_text())
NOTEBOOKS = sorted(paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))
notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed notebooks as pages, with the verdicts of the committed results; their words for pictures are kept too."""
    out = tmp_path_factory.mktemp("alone")
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        (out / f"{path.stem}.html").write_text(build.alone(Store("small", root=RESULTS), path.stem, cells), encoding="utf-8")
        nbformat.write(nbformat.v4.new_notebook(cells=cells), out / path.name)
    return out


@notebooks
def test_opens_with_the_finding(made: Path, notebook: Path) -> None:
    """First the title, then every claim of the notebook with its verdict and effects, one figure, then code and text; the
    parameters and all code are folded."""
    page = bs4.BeautifulSoup((made / f"{notebook.stem}.html").read_text(), "html.parser")
    mine = {name: stored for name, stored in STORED.items() if stored["notebook"] == notebook.name[:2]}
    found = page.select_one(".finding")
    assert sorted(li.p.get_text().split("·")[0].split()[-1] for li in found.select("li")) == sorted(mine)
    assert sorted(v["data-verdict"] for v in found.select(".verdict")) == sorted(s["verdict"] for s in mine.values())
    numbers = {re.sub(r" (points|times|of radius)\b", "", b.get_text()) for b in found.select(".number b")}
    known = {s.effect.number() for paper in entries.read(Store("small", root=RESULTS)) for e in paper.entries for s in e.main}
    assert numbers <= known and len(found.find_all("img")) == 1
    before = [e.name for e in page.main.find_all(["h1", "h2", "section", "details"])]
    assert before[:3] == ["h1", "section", "h2"] and all(code.find_parent("details") for code in page.select(".highlight"))


@notebooks
def test_is_one_file(made: Path, notebook: Path) -> None:
    """No script, nothing to load, formulas as MathML, below 1.5 MB; every picture in words, in the notebook as well."""
    text = (made / f"{notebook.stem}.html").read_text()
    page = bs4.BeautifulSoup(text, "html.parser")
    assert len(text.encode()) < 1_500_000 and not page.find_all(["script", "iframe", "object"]) and "$$" not in page.get_text()
    assert [e.get("href") for e in page.find_all("link")] == ["data:,"] and not re.search(r"@import|url\(", page.style.get_text())
    images = page.find_all("img")
    assert images and all(img["src"].startswith("data:image/png;base64,") and img["alt"] for img in images)
    outputs = [o for c in nbformat.read(made / notebook.name, 4).cells for o in c.get("outputs", ())]
    alts = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert sorted(alts) == sorted(img["alt"] for img in images)


@pytest.mark.skipif(PROGRAM is None, reason="no chromium here: pages are not tried in a browser")
def test_first_screen(made: Path) -> None:
    """A verdict with its effect, and the figure, stand on the first screen of a phone and of a desk, light or dark, and nothing
    scrolls sideways; nothing is asked of any network."""
    with Browser(PROGRAM) as browser:
        for notebook in NOTEBOOKS:
            for (width, height), scheme in (((375, 812), "dark"), ((1440, 900), "light")):
                browser.show(made / f"{notebook.stem}.html", width, height, scheme)
                assert browser.value("document.documentElement.scrollWidth") <= width, notebook.stem
                for selector in (".finding .lead", ".finding li:first-child .verdict", ".finding img"):
                    bottom = browser.value(f"document.querySelector('{selector}').getBoundingClientRect().bottom")
                    assert bottom < height, (notebook.stem, width, selector, bottom)
        assert not browser.said and all(url.startswith(("file:", "data:")) for url in browser.asked)


def test_nothing_is_judged(tmp_path: Path) -> None:
    """A study of one's own shows its effects and judges no paper; before any verdict none is told; a notebook without
    a cell for it is shown in its own order."""
    cells = nbformat.read(NOTEBOOKS[0], 4).cells
    store = Store("mine", root=tmp_path)
    assert "None of 0 claims can be judged" in build.alone(store, NOTEBOOKS[0].stem, cells)
    (tmp_path / "claims.json").write_text(json.dumps({"C2": STORED["C2"] | {"verdict": "not judged"}}))
    page = bs4.BeautifulSoup(build.alone(store, NOTEBOOKS[0].stem, cells), "html.parser")
    assert "A study of your own judges no paper" in page.select_one(".finding .lead").get_text()
    assert page.select_one(".finding .verdict").get_text() == "not judged" and page.select(".finding .bar")
    plain = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("1 + 1")]
    page = bs4.BeautifulSoup(build.alone(store, "01_plain", plain), "html.parser")
    assert page.h1.get_text() == "A title" and page.pre.get_text().strip() == "1 + 1" and not page.select(".finding")
