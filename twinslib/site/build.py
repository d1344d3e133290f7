"""Build the site of a preset: python -m twinslib page [--preset small] [--out DIR]; and the page of one notebook by itself.

Every page is made of the files of results/<preset> and of templates, without a request to any network and without a script. What
was built before from other results is replaced, files of others in the folder are left alone, equal results give equal bytes.
"""

import argparse
import base64
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import nbformat
import yaml
from markupsafe import Markup

from ..base import paths
from ..base.errors import choose
from ..base.files import atomic_write, read_json
from ..claims.ledger import WAITING
from ..store.store import Store
from ..studies import presets
from . import bars, entries, history, key, notebook, tables
from .entries import MEANING, SAID, WORDS, Entry, Paper
from .notebook import Body, Reader
from .tables import Table

CLASSES = dict(zip(WORDS, ("good", "partly", "unclear", "bad", "untested", "untested"), strict=True))
MOST = 4  # effects of a claim on the first page
FEW = 2  # on the first screen
FRONT = 3  # claims of a paper on the first screen
FIGURES = {  # what a rule measures -> the figure that shows it
    **dict.fromkeys(("gain", "spread", "margin", "shown"), "01_forest"), "rate": "02_ratios", "escape": "02_escape",
    **dict.fromkeys(("one_rate", "all_rates", "same_step"), "02_accuracy"), "overfits": "03_random_start",
    "less_overfitting": "03_gaps", "plateau": "03_plateaus", "wider": "04_transfer",
    **dict.fromkeys(("norm_drop", "recovered"), "04_losses"), "clean_kept": "05_strength",
    **dict.fromkeys(("carried", "carried_widely", "one_for_all", "cost"), "05_curves"),
    **dict.fromkeys(("beats", "cheaper"), "06_cost"), "any_start": "06_embedding_public", "best_schedule": "06_ablation",
}
WRITTEN = "files.json"  # names what a build left, for the next one to replace


class Site:
    """The pages of one preset, file name -> content."""

    def __init__(self, store: Store) -> None:
        self.store, self.papers = store, entries.read(store)
        self.runs, self.versions = history.read(store)
        self.bodies = {path.stem: Reader(store, path.name[:2], nbformat.read(path, 4).cells).read()
                       for path in sorted(store.root.glob("[0-9][0-9]_*.ipynb"))}
        self.scale = {paper.name: bars.extents(s for e in paper.entries for s in e.main[:MOST]) for paper in self.papers}
        menu = [("index.html", "Findings", ""), ("claims.html", "Claims", "")]
        menu += [(f"{stem}.html", stem[:2], body.title) for stem, body in self.bodies.items()]
        menu += [("provenance.html", "Provenance", ""), ("deviations.html", "Deviations", ""), ("glossary.html", "Glossary", "")]
        self.templates = templates(
            store, self.papers, self.about(), "page", menu=menu, figure_of=self.figure_of, notebook_of=self.notebook_of,
            scale=self.scale, strip=functools.partial(bars.strip, classes=CLASSES))

    def about(self) -> str:
        """What the results are, and of when."""
        last = max((run.ended for run in self.runs), default="")
        return (f"Results of preset {self.store.preset}: {len(self.runs):,} training runs"
                + (f", the last of which ended {last} UTC." if last else "."))

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """All files of the site with their content."""
        texts = {"index.html": self.index(), "claims.html": self.claims(), "provenance.html": self.provenance(),
                 "deviations.html": self.deviations(), "glossary.html": self.glossary()}
        texts |= {f"{stem}.html": self.page("notebook", f"{stem}.html", body=body) for stem, body in self.bodies.items()}
        yield from ((name, text.encode()) for name, text in texts.items())
        yield "style.css", (resources.files(__package__) / "style.css").read_bytes()
        pictures = {name: content for body in self.bodies.values() for name, content in body.images.items()}
        pictures |= {f"{one.figure}.png": path.read_bytes() for one in key.KEYS if (path := self.picture(one)).exists()}
        yield from ((f"figures/{name}", content) for name, content in pictures.items())

    def page(self, template: str, here: str, **values: object) -> str:
        """One page from its template."""
        return self.templates.get_template(f"{template}.html.j2").render(here=here, **values)

    def picture(self, one: key.Key) -> Path:
        return self.store.root / "figures" / f"{one.figure}.png"

    def notebook_of(self, number: str) -> str:
        """The page of a notebook; the claims where it is not rendered."""
        return next((f"{stem}.html" for stem in self.bodies if stem.startswith(number)), "claims.html")

    def figure_of(self, entry: Entry) -> str:
        """Where the figure on a claim stands, or its notebook; "" where neither is rendered."""
        wanted = FIGURES.get(entry.measure, "")
        for stem, body in self.bodies.items():
            if wanted in body.figures:
                return f"{stem}.html#{body.figures[wanted][0]}"
        return next((f"{stem}.html" for stem in self.bodies if stem.startswith(entry.notebook)), "")

    def index(self) -> str:
        """The first page: what is claimed, what was found, how sure it is, how to repeat it."""
        every = [entry for paper in self.papers for entry in paper.entries]
        totals, own = entries.counts(every), sum(entry.paper.startswith("ours") for entry in every)
        judged = len(every) - totals[entries.NOT_TESTED]
        ours = f", {own} of them our own," if own else ""
        lead = (f"{_counted(len(self.papers), 'paper')} say how to keep, or to gain, robustness when a pre-trained network is "
                f"fine-tuned. Of {_counted(len(every), 'claim')}{ours} {judged} can be judged so far at preset "
                f"{self.store.preset}: {_told(totals)}. {totals[entries.NOT_TESTED]} are not tested at this scale.")
        scale = {paper.name: bars.extents(s for e in front(paper) for s in e.main[:FEW]) for paper in self.papers}
        return self.page("index", "index.html", lead=lead, totals=totals, keys=list(self.keys()), most=MOST, front=front,
                         front_scale=scale, paper_lead=paper_lead, scales=self.scales, commands=self.commands(), left=self.left())

    def keys(self) -> Iterator[tuple[key.Key, Table, str, str]]:
        """The key figures that are there, with their numbers, their words and the picture."""
        for one in key.KEYS:
            numbers = key.table(one, self.store)
            if numbers is not None and self.picture(one).exists():
                alt = f"{one.shows}: {tables.spans(numbers)}."
                content = self.picture(one).read_bytes()
                yield one, numbers, alt, notebook.picture(content, one.figure, alt, f"figure-{one.figure}", lazy=False)

    def scales(self, paper: Paper) -> str:
        """The ends of the axes of a paper's bars, unit by unit."""
        forms = {"points": ("{:+.1f}", 100, "points"), "times": ("{:.2f}", 1, "times"), "nats": ("{:+.2f}", 1, "nats"),
                 "radius": ("{:+.3f}", 1, "of radius")}
        said = [f"{form.format(factor * low)} to {form.format(factor * high)} {name}" for unit, (low, high) in
                self.scale[paper.name].items() for form, factor, name in [forms[unit]]]
        return "; ".join(said) or "no effect is measured yet"

    def commands(self) -> list[tuple[str, str]]:
        """What computes, judges and shows the preset."""
        name = self.store.preset
        return [(f"./run_all.sh {name}", "Compute what is missing, and render the notebooks:"),
                (f"python -m twinslib claims --preset {name} --why", "Print rule, runs and calculation behind each verdict:"),
                (f"python -m twinslib page --preset {name}", "Build these pages again:")]

    def left(self) -> str:
        """What the verdicts wait for, as it was when that was last looked at."""
        path = self.store.root / WAITING
        found = read_json(path) if path.exists() else {}
        waiting = {name: line for name, line in found.items() if line.get("runs")}
        if not waiting:
            return ""
        shortest, longest = (f(line["hours"] for line in waiting.values()) for f in (min, max))
        on = tables.join(dict.fromkeys(line["on"] for line in waiting.values()))
        return (f"{_counted(len(waiting), 'claim')} wait for runs that are not finished, each for between {shortest:g} and "
                f"{longest:g} hours of computing ({on}).")

    def claims(self) -> str:
        """All about each claim."""
        def claim_scale(entry: Entry) -> dict[str, tuple[float, float]]:
            return bars.extents((*entry.effects, *entry.flagged, *entry.detail))

        return self.page("claims", "claims.html", claim_scale=claim_scale, known={run.hash for run in self.runs})

    def provenance(self) -> str:
        """Every run with its time, commit, hardware, precision and versions."""
        hours, measured = sum(run.hours for run in self.runs), sum(run.measured for run in self.runs)
        commits = {e["commit"] for run in self.runs for e in run.entries if "commit" in e}
        lead = (f"{self.about()} With {_counted(measured, 'measurement')} they took {hours:,.1f} hours, at "
                f"{_counted(len(commits), 'commit')} of the code.")
        names = list(dict.fromkeys(name for one in self.versions.values() for name in one))
        versions = Table(("package", *(f"versions {number}" for number in self.versions)), tuple(
            (name, *(one.get(name, "—") for one in self.versions.values())) for name in names))
        return self.page("provenance", "provenance.html", lead=lead, runs=self.runs,
                         versions=tables.to_html(versions, "Versions"))

    def deviations(self) -> str:
        """What differs from the papers, as the notebooks and the README say it."""
        parts = [(f"{stem}.html", body.title, notebook.to_html(text)) for stem, body in self.bodies.items()
                 if (text := differs(body))]
        readme = paths.notebooks_dir().parent / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        found = re.search(r"^## Limits\n((?:\n|[- ] .*\n)*)", text, re.MULTILINE)
        rows = tuple((e.id, e.sentence, e.source, e.certainty, e.otherwise or "—") for p in self.papers for e in p.entries)
        sources = Table(("claim", "sentence", "source", "certainty", "elsewhere"), rows)
        return self.page("deviations", "deviations.html", parts=parts, limits=notebook.to_html(found[1]) if found else "",
                         sources=tables.to_html(sources, "What is known of the papers"))

    def glossary(self) -> str:
        """The words of the pages."""
        terms: Mapping[str, str] = yaml.safe_load((resources.files(__package__) / "glossary.yaml").read_text(encoding="utf-8"))
        taken: set[str] = {"content"}
        return self.page("glossary", "glossary.html", terms=[(tables.unique_id(t.partition(" (")[0], taken), t, text)
                                                             for t, text in terms.items()])


def templates(store: Store, papers: Sequence[Paper], about: str, command: str, **more: object) -> jinja2.Environment:
    """The templates with what all pages know: about what results they are, which command builds them, the papers."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals.update(
        about=about, command=command, classes=CLASSES, few=FEW, found=functools.partial(found, papers), interval=bars.interval,
        meaning=MEANING, papers=papers, preset=store.preset, said=WORDS, table=tables.to_html, style="", **more)
    return made


def alone(store: Store, name: str, cells: Sequence[nbformat.NotebookNode]) -> str:
    """The page of one rendered notebook as one file, with style and pictures in it; the notebook's own pictures get their
    alternative texts."""
    body = Reader(store, name[:2], cells).read()
    papers = entries.read(store) if (store.root / "claims.json").exists() else ()
    style = (resources.files(__package__) / "style.css").read_text(encoding="utf-8")
    made = templates(store, papers, f"Results of preset {store.preset}.", "render", menu=()).get_template("notebook.html.j2")
    data = {file: f"data:image/png;base64,{base64.b64encode(content).decode()}" for file, content in body.images.items()}
    return re.sub('src="figures/([^"]+)"', lambda m: f'src="{data[m[1]]}"', made.render(here="", body=body, style=Markup(style)))


def found(papers: Sequence[Paper], number: str) -> tuple[str, list[Entry], dict[str, tuple[float, float]]]:
    """What came out of the claims of a notebook: in a sentence, claim by claim with those that are judged first, and the ends of
    the axes of their first effects."""
    mine = [entry for paper in papers for entry in paper.entries if entry.notebook == number]
    mine.sort(key=lambda entry: (not entry.judged, not entry.main))
    judged, own = [entry for entry in mine if entry.judged], any(entry.verdict not in SAID for entry in mine)
    claims = _counted(len(mine), "claim")
    told = "A study of your own judges no paper; these are its effects." if own else (
        f"Of {claims} {_told(entries.counts(judged), every=False)}; {len(mine) - len(judged)} not tested at this scale."
        if judged else f"None of {claims} can be judged here.")
    return told, mine, bars.extents(s for entry in mine for s in entry.main[:FEW])


def front(paper: Paper) -> Sequence[Entry]:
    """The claims of a paper for the first screen: those that are judged, then those that something is measured of."""
    return [*paper.judged, *(entry for entry in paper.entries if not entry.judged and entry.main)][:FRONT]


def paper_lead(paper: Paper) -> str:
    """How a paper's claims fared, in a sentence."""
    count = _counted(len(paper.entries), "claim")
    if paper.judged:
        return f"{len(paper.judged)} of {count} judged: {_told(entries.counts(paper.judged), every=False)}."
    return f"None of {count} judged yet: too few runs are finished. " + (
        "Measured so far:" if front(paper) else "Nothing is measured yet.")


def differs(body: Body) -> str:
    """The paragraphs of a notebook on what differs from its paper: from the one that begins so to the next bold one."""
    parts = re.findall(r"(?:\A|\n\n)(\*\*What differs.*?)(?=\n\n(?:\*\*|#)|\Z)", "\n\n".join(body.text), re.DOTALL)
    return "\n\n".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _told(counts: Mapping[str, int], *, every: bool = True) -> str:
    """0 reproduced, 2 partly reproduced and 1 inconclusive: of what is judged, with or without what no claim is."""
    return tables.join(f"{count} {SAID[verdict]}" for verdict, count in counts.items()
                       if verdict != entries.NOT_TESTED and (count or every))


def build(store: Store, out: Path) -> list[str]:
    """Write the site of a store into a folder, each file whole or not at all; returns the names of its files.

    Raises:
        FileNotFoundError: nothing is judged yet.
    """
    site, manifest = dict(Site(store).pages()), out / WRITTEN
    before = json.loads(manifest.read_text()) if manifest.exists() else []
    for name, content in site.items():
        atomic_write(out / name, lambda tmp, content=content: Path(tmp).write_bytes(content))
    for name in set(before) - set(site):
        (out / name).unlink(missing_ok=True)
    atomic_write(manifest, lambda tmp: Path(tmp).write_text(json.dumps(sorted(site), indent=1) + "\n"))
    return sorted(site)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the `page` command, which sets `func(args) -> int`."""
    parser = commands.add_parser("page", help="build pages to read in a browser from what is finished; computes nothing")
    parser.add_argument("--preset", default="small", help=f"{', '.join(presets.PRESETS)}; default: small")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: page/PRESET, here")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Build what the command asks for."""
    store = Store(choose(args.preset, presets.PRESETS, "preset"))
    out = args.out or Path("page") / args.preset
    names = build(store, out)
    size = sum((out / name).stat().st_size for name in names)
    print(f"{_counted(len(names), 'file')}, {size / 1e6:.1f} MB; open {out / 'index.html'}")
    return 0
