"""A rendered notebook as the body of a page: its text, formulas, tables, figures as files beside it, and its code on request."""

import base64
import functools
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

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
    figures: name of a figure -> (anchor, alternative text)."""

    title: str = ""
    html: Markup = Markup("")
    sections: list[tuple[str, str]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)  # its Markdown cells


class Reader:
    """Reads one notebook, cell by cell."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path, self.body = store, path, Body()
        self.taken = {"content", "sections"}  # anchors of the template
        self.markdown = MarkdownWithMath(renderer=Renderer(self.taken, self.body.sections))
        self.known = {p.read_bytes(): p.stem for p in sorted((store.root / "figures").glob(f"{path.name[:2]}_*.png"))}
        # figures: mark in the text, name, heading, tables under that heading, how many of these stand before
        self.waiting: list[tuple[str, str, str, list[Table], int]] = []
        self.heading, self.nearby = "", []  # type: str, list[Table]
        self.named: Counter[str] = Counter()  # heading -> tables under it

    def read(self) -> Body:
        """The whole notebook.

        Raises:
            ValueError: a formula that is not known.
        """
        parts = []
        for cell in nbformat.read(self.path, 4).cells:
            if cell.cell_type == "markdown":
                parts.append(self._text(cell.source))
            elif cell.cell_type == "code":
                parts.append(self._code(cell))
        html = "\n".join(parts)
        for mark, name, heading, nearby, before in self.waiting:  # the table beside a figure may come after it
            html = html.replace(mark, self._figure(name, heading, nearby[before:] or nearby))
        self.body.html = Markup(html)
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
        return tables.to_html(table, f"{self.heading}, table {count}" if count > 1 else self.heading)

    def _code(self, cell: nbformat.NotebookNode) -> str:
        title = f"Parameters of preset {self.store.preset}" if "injected-parameters" in cell.metadata.get("tags", ()) else "Code"
        code = Highlight2HTML()(cell.source).strip()
        code = code.replace("<pre>", f'<pre tabindex="0" aria-label="{title}, {len(cell.source.splitlines())} lines">')
        shown = "\n".join(filter(None, (self._output(output) for output in cell.outputs)))
        return f"<details><summary>{title}</summary>{code}</details>\n{shown}" if cell.source.strip() else ""

    def _output(self, output: nbformat.NotebookNode) -> str:
        if output.output_type == "stream":
            return f'<pre class="output" tabindex="0">{escape(output.text.strip())}</pre>' if output.name == "stdout" else ""
        data = output.get("data", {})
        if "image/png" in data:
            return self._image(base64.b64decode(data["image/png"]))
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
        if table.shortened:  # the whole of it stands in tables/NN.md
            whole = (t for section in pages(self.store, self.path.name[:2]).values() for t in section)
            table = next((t for t in whole if (t.columns, t.rows[:3]) == (table.columns, table.rows[:3])), table)
        self.nearby.append(table)
        return self._shown(table)

    def _image(self, content: bytes) -> str:
        name = self.known.get(content) or f"{self.path.name[:2]}_picture_{len(self.body.images) + 1}"
        self.body.images[f"{name}.png"] = content
        mark = f"<!-- figure {name} {len(self.waiting)} -->"
        self.waiting.append((mark, name, self.heading, self.nearby, len(self.nearby)))
        return mark

    def _figure(self, name: str, heading: str, nearby: list[Table]) -> str:
        anchor = tables.unique_id(f"figure-{name}", self.taken)
        alt = described(self.store, name, heading, nearby)
        self.body.figures[name] = anchor, alt
        return picture(self.body.images[f"{name}.png"], name, alt, anchor)


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
    said = tables.spans(found[0], about.get("columns", ()), about.get("rows", "")) if found else "its numbers stand in no table"
    return f"{about.get('shows', heading)}: {said}."


@functools.cache
def shows() -> dict[str, dict]:
    """Name of a figure -> what it shows, and the table with its numbers."""
    return yaml.safe_load((resources.files(__package__) / "figures.yaml").read_text(encoding="utf-8"))


def pages(store: Store, number: str) -> dict[str, list[Table]]:
    """The tables of tables/<number>.md by their titles; none where there is no such file."""
    path = store.root / "tables" / f"{number}.md"
    return tables.from_markdown(path.read_text(encoding="utf-8")) if path.exists() else {}
