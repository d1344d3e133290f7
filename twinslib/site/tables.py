"""Tables of a page: read from Markdown or from what pandas leaves in a notebook, written with headers that screen readers know,
and told in a sentence."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import bs4
from markupsafe import Markup

NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")

MEASURED = re.compile(r"\[|±|\d\.\d")
COUNTED = ("seed", "seeds", "epoch", "epochs", "best epoch", "of epochs", "learning rate drops", "published clean", "images")


@dataclass(frozen=True)
class Table:
    """Headers and rows of text; the first cell of a row is its header."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def from_html(table: bs4.Tag) -> Table:
    """A table of a rendered notebook, without the numbers 0, 1, … that pandas puts before its rows."""
    rows = [[cell.get_text().strip() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    if rows and not rows[0][0]:
        rows = [row[1:] for row in rows]
    return Table(tuple(rows[0]), tuple(map(tuple, rows[1:]))) if rows else Table((), ())


def from_markdown(text: str) -> dict[str, list[Table]]:
    """Title of a section -> its tables, of a page that `show.page` wrote."""
    out: dict[str, list[Table]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        out[title.strip()] = [_of_lines(block.strip().splitlines()) for block in re.findall(r"(?:^\|.*\n?)+", body, re.MULTILINE)]
    return out


def _of_lines(lines: Sequence[str]) -> Table:
    cells = [tuple(c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
    return Table(cells[0], tuple(cells[2:]))


def to_html(table: Table, label: str) -> Markup:
    """The table in a box of its own that scrolls where it is too wide, by keyboard too.

    Args:
        label: what it is, for those who do not see what stands above it.
    """
    def cell(text: str) -> str:
        kind = "long" if len(text) > 80 else "whole" if number(text) is not None and len(text) < 26 else ""
        return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"

    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in table.columns)
    body = "".join("<tr>" + "".join(f'<th scope="row">{escape(c)}</th>' if i == 0 else cell(c)
                                    for i, c in enumerate(row)) + "</tr>\n" for row in table.rows)
    return Markup(f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table><thead><tr>{head}</tr>'
                  f"</thead>\n<tbody>{body}</tbody></table></div>")


def spans(table: Table, columns: Sequence[str] = (), rows: Sequence[Sequence[str]] = (), most: int = 3) -> str:
    """Of some columns the lowest and the highest value, and in which rows: a table in a sentence.

    Args:
        columns: how their headers begin; by default the first that hold measurements, which have a decimal point or an interval.
        rows: of each of these a row must hold one as a cell to be looked at.

    >>> spans(Table(("method", "clean"), (("AT", "54.0 [53.0, 55.0]"), ("TRADES", "not run"), ("TWINS-AT", "52.6 [51.8, 53.4]"))))
    'clean from 52.6 [51.8, 53.4] (TWINS-AT) to 54.0 [53.0, 55.0] (AT)'
    """
    kept, words, said = [row for row in table.rows if all({*some} & {*row} for some in rows)], _words(table), []
    for i, column in enumerate(table.columns):
        found = sorted(((value, row) for row in kept if (value := number(row[i])) is not None), key=lambda f: f[0])
        wanted = (column.startswith(tuple(columns)) if columns else
                  i not in words and any(MEASURED.search(row[i]) for _, row in found))
        if wanted and found and len(said) < most:
            ends = [f"{row[i]} ({_short(', '.join(row[j] for j in words if row[j]))})" for row in (found[0][1], found[-1][1])]
            said.append(f"{column} from {ends[0]} to {ends[1]}" if found[0][0] != found[-1][0] else f"{column} {ends[0]}")
    return "; ".join(said) or f"none of the {len(kept)} lines of its table holds a number yet"


def _words(table: Table) -> list[int]:
    """The leading columns that say what a row is."""
    out = []
    for i, column in enumerate(table.columns):
        if i and any(MEASURED.search(row[i]) and number(row[i]) is not None for row in table.rows):
            break
        if i == 0 or (column not in COUNTED and any(re.search(r"[A-Za-zσα]", row[i]) for row in table.rows)):
            out.append(i)
    return out[:3]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def number(text: str) -> float | None:
    """The number that a cell begins with, or None.

    >>> number("54.4 [51.3, 57.5]"), number("+1,000"), number("not run")
    (54.4, 1000.0, None)
    """
    found = NUMBER.match(text)
    return float(found[0].replace(",", "").replace("−", "-")) if found else None


def unique_id(text: str, taken: set[str]) -> str:
    """A word for an anchor that no other has, and remember it."""
    base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}-{n}"
    taken.add(name)
    return name


def join(parts: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = list(parts) or [""]
    return f"{', '.join(most)} and {last}" if most else last
