"""A rendered notebook as the body of a page: the finding first, then text, formulas, tables, figures; code on request."""

import base64
import functools
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources

import bs4
import nbformat
import yaml
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..store.store import Store
from . import tables
from .mathml import to_mathml
from .tables import Table

FINDING = "finding"  # tag of the cell whose figure and verdicts a page opens with
LONGEST = 30  # lines of a table that is shown at once


class Renderer(IPythonRenderer):
    """Markdown of a notebook as HTML: formulas as MathML, headings with anchors of their own, nothing that loads anything."""

    def __init__(self, taken: set[str], sections: list[tuple[str, str]] | None = None) -> None:
        super().__init__(escape=True, exclude_anchor_links=True)
        self.taken, self.sections = taken, sections if sections is not None else []

    def heading(self, text: str, level: int, **attrs: object) -> str:
        """With an anchor; those of the second level make the page's table of contents."""
        name = tables.unique_id(re.sub(r"<[^>]+>", "", text), self.taken)
        if level == 2:
            self.sections.append((name, re.sub(r"<[^>]+>", "", text)))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def block_math(self, body: str) -> str:
        return f'<span class="scroll" role="group" tabindex="0" aria-label="Formula">{to_mathml(body, block=True)}</span>'

    def inline_math(self, body: str) -> str:
        return to_mathml(body)


def to_html(text: str) -> Markup:
    """A few paragraphs of Markdown as HTML."""
    return Markup(MarkdownWithMath(renderer=Renderer(set())).render(text))


@dataclass
class Body:
    """What a notebook became. title: its first heading. sections: (anchor, heading). images: file name -> content.
    figures: name of a figure -> (anchor, alternative text). Where a cell is tagged as what shows the finding, the pages put the
    verdicts of `number` there: lead is what stands before it, figure what it shows, code all code up to it, and html the rest."""

    title: str = ""
    number: str = ""
    lead: Markup = Markup("")
    figure: Markup = Markup("")
    code: Markup = Markup("")
    html: Markup = Markup("")
    sections: list[tuple[str, str]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)  # its Markdown cells


class Reader:
    """Reads the cells of one notebook, in order."""

    def __init__(self, store: Store, number: str, cells: Sequence[nbformat.NotebookNode]) -> None:
        self.store, self.number, self.cells, self.body = store, number, cells, Body(number=number)
        self.taken = {"content", "sections", "finding"}  # anchors of the template
        self.markdown = MarkdownWithMath(renderer=Renderer(self.taken, self.body.sections))
        self.known = {p.read_bytes(): p.stem for p in sorted((store.root / "figures").glob(f"{number}_*.png"))}
        # figures: mark in the text, name, heading, tables under that heading, how many of these stand before
        self.waiting: list[tuple[str, str, str, list[Table], int]] = []
        self.shown: dict[str, nbformat.NotebookNode] = {}  # mark -> where the notebook has the figure
        self.heading, self.nearby = "", []  # type: str, list[Table]
        self.named: Counter[str] = Counter()  # heading -> tables under it

    def read(self) -> Body:
        """The whole notebook.

        Raises:
            ValueError: a formula that is not known.
        """
        finding = next((i for i, cell in enumerate(self.cells) if FINDING in cell.metadata.get("tags", ())), -1)
        parts: dict[str, list[str]] = {"lead": [], "code": [], "figure": [], "html": []}
        for i, cell in enumerate(self.cells):
            if cell.cell_type == "markdown":
                parts["lead" if i < finding else "html"].append(self._text(cell.source))
            elif cell.cell_type == "code" and cell.source.strip():
                parts["code" if i <= finding else "html"].append(self._source(cell))
                outputs = [output for output in cell.outputs if i != finding or "image/png" in output.get("data", {})]
                parts["figure" if i == finding else "html"] += filter(None, map(self._output, outputs))
        html = {name: "\n".join(some) for name, some in parts.items()}
        for mark, name, heading, nearby, before in self.waiting:  # the table beside a figure may come after it
            figure = self._figure(name, heading, nearby[before:] or nearby, lazy=mark not in html["figure"])
            html = {part: text.replace(mark, figure) for part, text in html.items()}
            alt = self.body.figures[name][1]  # for those who read the notebook itself
            self.shown[mark].setdefault("metadata", {}).setdefault("image/png", {})["alt"] = alt
        for name, text in html.items():
            setattr(self.body, name, Markup(text))
        return self.body

    def _text(self, source: str) -> str:
        self.body.text.append(source)
        if found := re.match(r"#+ (.+)", source):
            self.heading, self.nearby = found[1], []
            self.body.title = self.body.title or found[1]
        return self._markdown(source)

    def _markdown(self, source: str) -> str:
        soup = bs4.BeautifulSoup(self.markdown.render(source), "html.parser")
        for table in soup.find_all("table"):
            table.replace_with(bs4.BeautifulSoup(self._shown(tables.from_html(table)), "html.parser"))
        return str(soup)

    def _shown(self, table: Table) -> str:
        """A table, named after the heading that it stands under."""
        self.named[self.heading] += 1
        count = self.named[self.heading]
        shown = tables.to_html(table, f"{self.heading}, table {count}" if count > 1 else self.heading)
        if len(table.rows) <= LONGEST:
            return shown
        return f"<details><summary>All {len(table.rows)} lines: {escape(self.heading)}</summary>{shown}</details>"

    def _source(self, cell: nbformat.NotebookNode) -> str:
        names = {"parameters": "Parameters as they are by default", "injected-parameters": f"Parameters of {self.store.preset}"}
        title = next((names[tag] for tag in cell.metadata.get("tags", ()) if tag in names), "Code")
        code = Highlight2HTML()(cell.source).strip()
        code = code.replace("<pre>", f'<pre tabindex="0" aria-label="{title}, {len(cell.source.splitlines())} lines">')
        return f"<details><summary>{title}</summary>{code}</details>"

    def _output(self, output: nbformat.NotebookNode) -> str:
        if output.output_type == "stream":
            return f'<pre class="output" tabindex="0">{escape(output.text.strip())}</pre>' if output.name == "stdout" else ""
        data = output.get("data", {})
        if "image/png" in data:
            return self._image(output)
        if "text/html" in data:
            return self._table(data["text/html"])
        if "text/markdown" in data:
            return self._markdown(data["text/markdown"])
        return f'<pre class="output" tabindex="0">{escape(data["text/plain"])}</pre>' if "text/plain" in data else ""

    def _table(self, html: str) -> str:
        found = bs4.BeautifulSoup(html, "html.parser").find("table")
        if found is None:
            return ""
        table = tables.from_html(found)
        self.nearby.append(table)
        return self._shown(table)

    def _image(self, output: nbformat.NotebookNode) -> str:
        content = base64.b64decode(output.data["image/png"])
        name = self.known.get(content) or f"{self.number}_picture_{len(self.body.images) + 1}"
        self.body.images[f"{name}.png"] = content
        mark = f"<!-- figure {name} {len(self.waiting)} -->"
        self.waiting.append((mark, name, self.heading, self.nearby, len(self.nearby)))
        self.shown[mark] = output
        return mark

    def _figure(self, name: str, heading: str, nearby: list[Table], *, lazy: bool) -> str:
        anchor = tables.unique_id(f"figure-{name}", self.taken)
        alt = described(self.store, name, heading, nearby)
        self.body.figures[name] = anchor, alt
        return picture(self.body.images[f"{name}.png"], name, alt, anchor, lazy=lazy)


def picture(content: bytes, name: str, alt: str, anchor: str, *, lazy: bool = True) -> Markup:
    """A figure beside the page, in a box that scrolls where it is too wide to be read, which leads to the picture alone."""
    width, height = struct.unpack(">II", content[16:24])
    return Markup(f'<figure id="{anchor}"><a class="scroll picture" href="figures/{name}.png"><img src="figures/{name}.png" '
                  f'width="{width}" height="{height}"{" loading=lazy" * lazy} alt="{escape(alt)}"></a></figure>')


def described(store: Store, name: str, heading: str, nearby: list[Table]) -> str:
    """What a figure shows and between which numbers, from a table of the results."""
    about = shows().get(name, {})
    number, _, title = about.get("table", "").rpartition("/")
    found = pages(store, number or name[:2]).get(title) or [t for t in nearby if t.rows]
    said = tables.spans(found[0], about.get("columns", ()), about.get("rows", ())) if found else "its numbers stand in no table"
    return f"{about.get('shows', heading)}: {said}."


@functools.cache
def shows() -> dict[str, dict]:
    """Name of a figure -> what it shows, and the table with its numbers."""
    return yaml.safe_load((resources.files(__package__) / "figures.yaml").read_text(encoding="utf-8"))


def pages(store: Store, number: str) -> dict[str, list[Table]]:
    """The tables of tables/<number>.md by their titles; none where there is no such file."""
    path = store.root / "tables" / f"{number}.md"
    return tables.from_markdown(path.read_text(encoding="utf-8")) if path.exists() else {}
