"""The site of the committed results: links, headings, tables, texts for those who do not see; nothing from elsewhere; numbers."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import bs4
import pandas as pd
import pytest

from tests.site.conftest import RESULTS
from tests.site.test_browser import PAGES
from twinslib.claims.verdict import NOT_TESTED, VERDICTS
from twinslib.site import build, entries, key, notebook
from twinslib.store.store import Store
from twinslib.studies import rules

STORED = json.loads((RESULTS / "claims.json").read_text())
every_page = pytest.mark.parametrize("page", PAGES)


SOUPS: dict[tuple[Path, str], bs4.BeautifulSoup] = {}


def soup(site: Path, page: str) -> bs4.BeautifulSoup:
    """A page, parsed once."""
    if (site, page) not in SOUPS:
        SOUPS[site, page] = bs4.BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")
    return SOUPS[site, page]


def text(element: bs4.Tag) -> str:
    """As it is read, with single spaces."""
    return " ".join(element.get_text(" ").split())


def made(store: Store, page: str = "index.html") -> bs4.BeautifulSoup:
    """One page of a store."""
    return bs4.BeautifulSoup(dict(build.Site(store).pages())[page], "html.parser")


def test_files(site: Path) -> None:
    """The pages, one style, the figures; no page is above 1.5 MB, nothing else lies there, and the list names all."""
    files = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    figures = {f"figures/{p.name}" for p in (RESULTS / "figures").glob("*.png")}
    assert files == {*PAGES, "style.css", "files.json", *figures}
    assert {*json.loads((site / "files.json").read_text()), "files.json"} == files
    assert all((site / page).stat().st_size < 1_500_000 for page in PAGES)
    for figure in figures:
        assert (site / figure).read_bytes() == (RESULTS / figure).read_bytes()


@every_page
def test_links(site: Path, page: str) -> None:
    """Every link, picture and style leads to a file beside the page, to an anchor that is there, or to a paper."""
    found = soup(site, page)
    anchors = {name: {e["id"] for e in soup(site, name).find_all(id=True)} for name in PAGES}
    for element in found.find_all(["a", "img", "link"]):
        address = element.get("href") or element.get("src")
        if element.name == "a" and address.startswith("https://arxiv.org/abs/"):
            continue
        name, _, anchor = address.partition("#")
        assert (site / (name or page)).is_file() or address == "data:,", address
        assert not anchor or anchor in anchors[name or page], address


@every_page
def test_structure(site: Path, page: str) -> None:
    """A language, a title, landmarks, a link past the menu, one main heading and no level left out, each anchor once."""
    found = soup(site, page)
    assert found.html["lang"] == "en" and found.title.get_text().strip() and found.find("meta", {"name": "viewport"})
    assert all(len(found.find_all(name)) == 1 for name in ("main", "header", "footer", "h1"))
    assert found.body.find("a")["href"] == "#content" and found.main["id"] == "content" and found.header.nav["aria-label"]
    assert [a["href"] for a in found.header.find_all("a", {"aria-current": "page"})] == [page]
    levels = [int(h.name[1]) for h in found.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(text(h) for h in found.find_all(re.compile("^h[1-6]$")))
    assert [name for name, count in Counter(e["id"] for e in found.find_all(id=True)).items() if count > 1] == []
    for element in found.find_all(attrs={"aria-labelledby": True}):
        assert found.find(id=element["aria-labelledby"])


@every_page
def test_nothing_from_elsewhere(site: Path, page: str) -> None:
    """No script, no picture inside the text, no address that is loaded; formulas are there without one."""
    found, source = soup(site, page), (site / page).read_text(encoding="utf-8")
    assert not found.find_all(["script", "iframe", "object", "embed", "video", "audio", "style", "base", "form"])
    assert "base64" not in source and not [e for e in found.find_all(True) if any(a.startswith("on") for a in e.attrs)]
    assert {e["href"] for e in found.find_all("link")} == {"data:,", "style.css"} and not found.find_all(srcset=True)
    assert not re.search(r"@import|url\(|https?:", (site / "style.css").read_text())
    assert "$$" not in found.get_text()
    assert not any("\\lVert" in t for t in found.find_all(string=True) if t.parent.name != "annotation")


@every_page
def test_pictures_in_words(site: Path, page: str) -> None:
    """Every picture says what it shows and between which numbers, and no two say the same; drawings of numbers that stand beside
    them are left out."""
    found = soup(site, page)
    alts = [img["alt"] for img in found.find_all("img")]
    assert all(len(alt) > 60 and re.search(r"\d", alt) for alt in alts) and len(set(alts)) == len(alts)
    assert all(int(img["width"]) > 0 and int(img["height"]) > 0 for img in found.find_all("img"))
    assert all(svg["aria-hidden"] == "true" for svg in found.find_all("svg"))


@every_page
def test_tables(site: Path, page: str) -> None:
    """Every table has headers of columns and of rows, rows as long as its head, and a box with a name of its own to scroll in;
    none is cut short."""
    found = soup(site, page)
    for table in found.find_all("table"):
        heads = table.thead.find_all("th")
        assert heads and all(h["scope"] == "col" for h in heads)
        for row in table.tbody.find_all("tr"):
            assert row.find("th")["scope"] == "row" and len(row.find_all(["th", "td"])) == len(heads)
            assert {text(cell) for cell in row.find_all(["th", "td"])} != {"..."}
        box = table.find_parent(class_="scroll")
        assert (box and box["role"] == "region" and box["tabindex"] == "0") or table["class"] == ["ledger"]
    names = [box["aria-label"] for box in found.find_all(role="region") if "aria-label" in box.attrs]
    assert all(names) and len(set(names)) == len(names)


def test_verdicts_are_the_ledgers(site: Path) -> None:
    """Each claim once, with the ledger's verdict, its sentence, numbers and commands, on the first page and in full."""
    index, claims = soup(site, "index.html"), soup(site, "claims.html")
    known = {e.id: e for paper in entries.read(Store("small", root=RESULTS)) for e in paper.entries}
    assert len(index.select(".ledger tbody tr")) == len(claims.find_all("article")) == len(STORED)
    for name, stored in STORED.items():
        row, article = index.find(id=f"row-{name}"), claims.find(id=name)
        for place in (row, article):
            assert [v["data-verdict"] for v in place.select(".verdict")] == [stored["verdict"]]
            assert stored["sentence"] in text(place)
        assert all(command in article.pre.get_text() for command in stored["commands"])
        assert {a.get_text() for a in article.select("a.hash")} == set(stored["runs"])
        assert stored["rule"] in text(article) and stored["regime"] in text(article)
        effects = [s.effect for s in (*known[name].effects, *known[name].flagged, *known[name].detail)]
        told = {re.sub(r" (points|times|of radius)", "", text(b)) for b in article.select(".number b")}
        assert {e.number() for e in effects} == told


def test_counts(site: Path) -> None:
    """The first sentence and the legend count the claims of claims.json; every verdict has a word, a meaning and a colour."""
    count = Counter(c["verdict"] for c in STORED.values())
    index = soup(site, "index.html")
    legend = {li.span["data-verdict"]: int(li.b.get_text()) for li in index.select(".legend li")}
    assert list(legend) == list(entries.SAID) == list(entries.MEANING) == list(VERDICTS)
    assert build.CLASSES.keys() == entries.WORDS.keys() and entries.WORDS.items() > entries.SAID.items()
    assert legend == {verdict: count[verdict] for verdict in legend} and sum(legend.values()) == len(STORED)
    lead = text(index.select_one(".lead"))
    assert f"{len(STORED)} claims" in lead
    assert all(f"{count[v]} {entries.SAID[v]}" in lead for v in legend if v != "not tested at this scale")


def test_same_bytes_again(site: Path, tmp_path: Path) -> None:
    """Another build is equal to the byte. It takes away what an earlier one left, and nothing else."""
    out = tmp_path / "again"
    (out / "figures").mkdir(parents=True)
    for name in ("old.html", "mine.txt"):
        (out / name).write_text("x")
    (out / "files.json").write_text('["old.html"]')
    names = build.build(Store("small", root=RESULTS), out)
    assert not (out / "old.html").exists() and (out / "mine.txt").exists()
    assert all((out / name).read_bytes() == (site / name).read_bytes() for name in [*names, "files.json"])


def test_a_changed_claim_changes_the_page(changed) -> None:
    """Verdict, sentence, count and number follow claims.json."""
    def change(before: str) -> str:
        stored = json.loads(before)
        stored["C2"] |= {"verdict": "reproduced", "sentence": "Another sentence."}
        stored["C2"]["effects"][0] |= {"value": 0.0777, "low": 0.0666, "high": 0.0888}
        return json.dumps(stored)

    before, after = made(changed()), made(changed("claims.json", change))
    row = after.find(id="row-C2")
    assert row.select_one(".verdict")["data-verdict"] == "reproduced" and "Another sentence." in text(row)
    assert "+7.8 [+6.7, +8.9] points" in text(row) and "+7.8" not in text(before) and "higher" in text(row)
    assert row.select_one(".bar")["class"] == ["bar", "higher"] and str(row.svg) != str(before.find(id="row-C2").svg)
    assert "1 reproduced" in text(after.select_one(".lead")) and "0 reproduced" in text(before.select_one(".lead"))


@pytest.mark.parametrize("one", key.KEYS, ids=lambda one: one.rows)
def test_a_changed_row_changes_the_page(changed, one: key.Key) -> None:
    """The key figure's numbers, its words and nothing else of the first page follow rows/*.csv."""
    name = f"rows/{one.rows}.csv"
    frame = pd.read_csv(RESULTS / name)
    wanted = frame.query({"transfer": "method == 'twins_at'", "aft_networks": "method == 'aft' and at == 'last'",
                          "certified_05": "pretraining == 'mixed' and eps == 0.5"}[one.rows]).index

    def change(before: str) -> str:
        return frame.assign(value=frame["value"].mask(frame.index.isin(wanted), 0.12)).to_csv(index=False)

    before, after = made(changed()), made(changed(name, change))
    alts = [{img["src"]: img["alt"] for img in page.find_all("img")} for page in (before, after)]
    assert [src for src in alts[0] if alts[0][src] != alts[1][src]] == [f"figures/{one.figure}.png"]
    assert "12.0" in alts[1][f"figures/{one.figure}.png"] and "12.0 [" in text(after)
    assert text(after.find(id="ledger").parent) == text(before.find(id="ledger").parent)


@pytest.mark.parametrize(("one", "title", "length"), [(key.KEYS[0], "Accuracy", 5), (key.KEYS[1], "Accuracy on CIFAR-10", 8)])
def test_key_numbers_are_those_of_the_tables(one: key.Key, title: str, length: int) -> None:
    """Means and intervals of a key figure stand in the notebook's own table, a line for each network."""
    store = Store("small", root=RESULTS)
    known = {cell.partition(", seed")[0] for t in notebook.pages(store, one.notebook)[title] for row in t.rows for cell in row}
    rows = key.table(one, store).rows
    for row in rows:
        numbers = [re.sub(r", \d of \d seeds$", "", cell) for cell in row if "[" in cell]
        assert numbers and set(numbers) <= known and len(row) == length
    assert len({row[:3] for row in rows}) == len(rows) or one.rows == "transfer"


def test_what_is_told_of_a_figure_is_drawn() -> None:
    """Start networks, which the table has, are not in the figure of costs."""
    assert "start network" not in notebook.described(Store("small", root=RESULTS), "06_cost", "", [])


def test_nothing_finished(tmp_path: Path) -> None:
    """Without verdicts there is no page but an error that says what to do; an unknown verdict is refused; verdicts alone do."""
    store = Store("toy", root=tmp_path / "toy")
    with pytest.raises(FileNotFoundError, match="run python -m twinslib claims --preset toy"):
        build.build(store, tmp_path / "out")
    store.root.mkdir()
    (store.root / "claims.json").write_text(json.dumps({"C2": STORED["C2"] | {"verdict": "maybe"}}))
    with pytest.raises(ValueError, match="expected one of reproduced, .* as the verdict on C2, got 'maybe'"):
        build.build(store, tmp_path / "out")
    (store.root / "claims.json").write_text(json.dumps({"X9": STORED["C2"] | {"paper": "A new one"}, "C2": STORED["C2"]}))
    index = made(store)
    assert [h.get_text() for h in index.select(".card h2")] == ["TWINS", "A new one"] and not index.find_all("img")
    assert "0 training runs" in text(index.footer) and text(made(store, "provenance.html"))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """`page` builds into a folder of its own, or where it is told to, and never among the results; presets are checked."""
    from twinslib.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINS_RESULTS", str(tmp_path))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "claims.json").write_text(json.dumps(STORED))
    assert main(["page"]) == 0 and (tmp_path / "page" / "small" / "index.html").exists()
    assert [p.name for p in (tmp_path / "small").iterdir()] == ["claims.json"]
    assert main(["page", "--preset", "small", "--out", str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "claims.html").exists()
    assert "files, " in capsys.readouterr().out
    assert main(["page", "--preset", "smal"]) == 2 and "did you mean 'small'" in capsys.readouterr().err


def test_every_measure_has_its_figure(site: Path) -> None:
    """Each claim leads to a figure that its notebook shows, or to the notebook."""
    assert build.FIGURES.keys() == rules.MEASURES.keys()
    for name, stored in STORED.items():
        links = [a["href"] for a in soup(site, "index.html").find(id=f"row-{name}").select("td ul a")]
        assert len(links) == 3 and links[0].startswith(stored["notebook"]), (name, links)
        assert "#figure-" in links[0] or stored["verdict"] == NOT_TESTED  # of which there may be nothing to draw


def test_descriptions_of_figures() -> None:
    """Every figure of the results is described; the tables and rows that descriptions name are there."""
    store = Store("small", root=RESULTS)
    assert notebook.shows().keys() >= {p.stem for p in (RESULTS / "figures").glob("*.png")}
    for name, about in notebook.shows().items():
        assert about.keys() <= {"shows", "table", "columns", "rows"} and not re.search(r"\d\.\d", about["shows"])
        number, _, title = about.get("table", "").rpartition("/")
        assert not title or notebook.pages(store, number or name[:2])[title], name
        for cell in itertools.chain(*about.get("rows", ())):
            assert any(cell in row for row in notebook.pages(store, number or name[:2])[title][0].rows), (name, cell)
        assert notebook.described(store, name, "", []).startswith(about["shows"])
