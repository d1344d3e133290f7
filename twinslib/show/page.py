"""A notebook's page: its plan and its store, and what it showed, which is left as text in tables/<number>.md of the store."""

import functools
import os
from collections.abc import Mapping, Sequence

import pandas as pd
from IPython import display
from matplotlib.figure import Figure
from tqdm import tqdm

from ..base import markdown
from ..base.files import atomic_write
from ..claims import ledger
from ..specs.jobs import Job, Task
from ..store import store
from ..studies import presets
from ..studies.plan import STUDIES
from . import figures, origins


class Page:
    """Whatever is shown through it is also remembered under its title, in the order in which titles came; what is shown again
    takes the place of what was there.

    Args:
        scope: the variables of the notebook, among them all its parameters.
    """

    def __init__(self, number: str, title: str, scope: Mapping[str, object]) -> None:
        values = {name: scope[name] for name in presets.parameters(presets.notebook(number))}
        self.number, self.title = number, title
        self.store = store.Store(values["preset"])
        self.plan = functools.partial(STUDIES[number], **{k: v for k, v in values.items() if k not in presets.SETTINGS})
        self.bar: tqdm | None = None
        self.sections: dict[str, dict[tuple, str]] = {"Claims": {}}  # first on the page, whenever they are shown

    def __repr__(self) -> str:
        jobs = self.jobs
        return (f"Page {self.number}, {self.title}: preset {self.store.preset}, {len(jobs)} runs, tasks left: "
                f"{len(self.store.missing(jobs))}")

    def progress(self, task: Task, done: int, total: int) -> None:
        """A bar over the steps of a task, for `sweep`, where somebody watches: in a session of JupyterLab or Jupyter Notebook."""
        if "JPY_SESSION_NAME" in os.environ:
            if self.bar is None or self.bar.desc != str(task):
                self.bar = tqdm(desc=str(task), total=total)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()

    @property
    def jobs(self) -> Sequence[Job]:
        """What there is to do, as far as it is chosen."""
        return self.plan(best=self.store.best)

    def table(self, title: str, frame: pd.DataFrame, about: str = "") -> pd.DataFrame:
        """The frame, for the notebook to show; about: what the notebook's own text says of it, for the page."""
        self.sections.setdefault(title, {})[tuple(frame.columns)] = f"{about}\n\n{markdown.to_markdown(frame)}"
        return frame

    def text(self, title: str, text: str) -> display.Markdown:
        """A sentence about what stands under a title, for the notebook to show."""
        self.sections.setdefault(title, {})[()] = text
        return display.Markdown(text)

    def figure(self, name: str, figure: Figure, width: int = 800) -> display.Image:
        """The figure, left as figures/<number>_<name> of the store and signed with its preset; it is no part of the text."""
        figures.sign(figure, self.store.preset)
        picture, _ = figures.save(figure, self.store.root / "figures" / f"{self.number}_{name}")
        return display.Image(picture, width=width)

    def rows(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame, left as rows/<name>.csv of the store, whole or not at all."""
        atomic_write(self.store.root / "rows" / f"{name}.csv", lambda tmp: frame.to_csv(tmp, index=False))
        return frame

    @functools.cached_property
    def judged(self) -> list[ledger.Verdict]:
        """The verdict on every claim of the notebook, written to the ledger when it is first asked for."""
        found = ledger.judge_all(self.store, self.jobs, self.number)
        ledger.write(self.store, found)
        return found

    def finding(self) -> pd.DataFrame:
        """What came of each claim, in short, for a notebook to open with; from here on no table is cut."""
        pd.set_option("display.max_colwidth", None)
        pd.set_option("display.max_rows", None)
        return self.verdicts()[["claim", "verdict", "sentence", "effect"]]

    def verdicts(self) -> pd.DataFrame:
        """Every claim of the notebook with its verdict and all that stands behind it."""
        return self.table("Claims", ledger.to_table(self.judged))

    def state(self) -> str:
        """Whether every run is finished, and in which precision they were computed."""
        finished = "no" if self.store.missing(self.jobs) else "yes"
        return f"every run finished: {finished}\nruns {origins.computed_in(self.store, self.jobs)}"

    def markdown(self) -> str:
        """All that was remembered, with the precision that its runs were computed in under the title."""
        parts = [f"# {self.title}, preset {self.store.preset}",
                 f"Runs {origins.computed_in(self.store, self.jobs)}; accuracies are measured in float32."]
        for title, texts in self.sections.items():
            parts += [f"## {title}", *texts.values()]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def write(self, checks: Mapping[str, bool]) -> str:
        """Leave tables/<number>.md, whole or not at all, with what must hold for its numbers to be believed at its end; the same,
        for the notebook to print."""
        lines = [f"{what}: {'yes' if holds else 'no'}" for what, holds in checks.items()]
        text = "\n".join([self.markdown(), "## Checks", "", *(f"- {line}" for line in lines), ""])
        atomic_write(self.store.root / "tables" / f"{self.number}.md", lambda tmp: tmp.write_text(text, encoding="utf-8"))
        return "\n".join(lines)
