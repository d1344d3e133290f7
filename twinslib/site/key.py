"""The one figure of each paper that the first page shows, and its numbers, read from rows/*.csv: a table beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from ..base.files import read_json
from ..claims.verdict import NOT_TESTED
from ..evidence import accuracy
from ..evidence.networks import averages
from ..specs.labels import NOT_RUN, dataset_label, header, method_label, percent, unique
from ..store.store import Store
from .tables import Table


@dataclass(frozen=True)
class Key:
    """arxiv: of the paper. figure: its name in figures/. rows: the file in rows/. title: what it compares. shows: what is drawn.
    numbers: rows -> table."""

    arxiv: str
    notebook: str
    figure: str
    rows: str
    title: str
    shows: str
    numbers: Callable[[pd.DataFrame], Table]


def table(key: Key, store: Store) -> Table | None:
    """The numbers of a key figure, of what is judged only the runs that verdicts stand on; None where the rows are not there."""
    path, claims = store.root / "rows" / f"{key.rows}.csv", store.root / "claims.json"
    judged = [record for record in (read_json(claims) if claims.exists() else {}).values()
              if record["notebook"] == key.notebook and record["verdict"] != NOT_TESTED]
    return key.numbers(accuracy.of_runs(pd.read_csv(path), {run for record in judged for run in record["runs"]})
                       ) if path.exists() else None


def by_method(frame: pd.DataFrame) -> Table:
    """Clean and robust accuracy (PGD, at the largest radius) of the four main methods on each target, means over seeds."""
    main = ("at", "twins_at", "trades", "twins_trades")
    frame = frame[frame["method"].isin(main) & frame["dataset"].isin(frame.loc[frame["method"] == "twins_at", "dataset"])]
    robust = frame[frame["attack"].str.startswith("pgd")]
    frame = pd.concat([frame[frame["attack"] == "none"], robust[robust["eps"] == robust["eps"].max()]])
    return _pivot(frame, ["dataset", "method"], main)


def by_cost(frame: pd.DataFrame) -> Table:
    """Accuracy of adversarial fine-tuning and of adversarial training with what both cost: images passed over the images of the
    training set, without and with those of the start network."""
    rivals = ("aft", "at_scratch")
    kept = frame[(frame["part"] == "main") & frame["method"].isin(rivals) & frame["at"].isin(("best", "last"))]
    kept = kept.assign(given=kept["images_given"] / kept["train_images"], whole=kept["images_whole"] / kept["train_images"])
    network = ["dataset", "method", "at"]
    costs = kept.drop_duplicates([*network, "seed"]).groupby(network)[["given", "whole"]].mean()  # seeds are best at other epochs
    passes = {c.Index: f"{c.given:.0f}" + f", with its start {c.whole:.0f}" * (c.whole != c.given) for c in costs.itertuples()}
    kept["passes"] = [passes[key] for key in kept[network].itertuples(index=False, name=None)]
    return _pivot(kept.assign(network=kept["at"] + " epoch"), ["dataset", "method", "network", "passes"], rivals)


def by_level(frame: pd.DataFrame) -> Table:
    """Certified accuracy of one network for all noise levels, and of one network made for each, by level and radius."""
    frame = frame[(frame["metric"] == "certified_acc") & (frame["norm"] == "group") & frame["eps"].isin((0.25, 0.5, 0.75))]
    one = (frame["pretraining"] == "mixed") & (frame["finetuning"] == "clean")
    own = "noise" + frame["sigma"].astype(str)
    each = (frame["pretraining"] == own) & (frame["finetuning"] == own)
    frame = frame.assign(network=one.map({True: "one network", False: "one for each σ"}))[one | each]
    frame = frame[frame["dataset"].isin(set(frame.loc[frame["network"] == "one for each σ", "dataset"]))]
    fewest = frame.groupby("network")["draws"].agg(set)
    shared = max(set.intersection(*fewest), default=None) if len(fewest) else None
    frame = frame[frame["draws"] == shared].assign(**{"noise level": lambda f: [f"σ {s:g}" for s in f["sigma"]]})
    return _pivot(frame, ["dataset", "network", "noise level"], radius=True)


def _pivot(frame: pd.DataFrame, lines: list[str], order: Sequence[str] = (), *, radius: bool = False) -> Table:
    """`networks.averages` in percent, a column for each attack or radius with its number of images."""
    images = frame.groupby(["attack", "eps"])["n"].transform("min")
    names = [f"r {row.eps:g}" if radius else header(row.attack, row.threat, row.eps) for row in frame.itertuples()]
    frame = frame.assign(column=[f"{name} ({n:,} images)" for name, n in zip(names, images, strict=True)], absent="")
    columns, rank, rows = unique(frame["column"]), {value: f"{i:03}" for i, value in enumerate(order)}, []
    written = {"dataset": dataset_label, "method": method_label}
    found = averages(frame, [*lines, "column"]).groupby(lines)
    for values, mine in sorted(found, key=lambda group: [rank.get(value, value) for value in group[0]]):
        words = [written.get(line, str)(value) for line, value in zip(lines, values, strict=True)]
        seeds = mine["seeds"].max()
        cells = {r.column: percent(r.value, r.low, r.high) + f", {r.seeds} of {seeds} seeds" * bool(r.seeds < seeds)
                 for r in mine.dropna(subset="value").itertuples()}
        rows.append((*words, str(seeds), *(cells.get(column, NOT_RUN) for column in columns)))
    return Table((*({"dataset": "data set"}.get(line, line) for line in lines), "seeds", *columns), tuple(rows))


KEYS = (
    Key("2303.11135", "01", "01_clean_robust", "transfer", "Two wings against their baselines",
        "Robust against clean accuracy, a panel for each data set, arrows from each baseline to its TWINS variant", by_method),
    Key("2012.13628", "06", "06_cost", "aft_networks", "Fine-tuning against training from random weights",
        "Passes over the training set and accuracies, a row for each method", by_cost),
    Key("2312.09020", "05", "05_curves", "certified_05", "One network against one for each noise level",
        "Certified accuracy against the radius, a panel for each noise level, one network for all levels and one for each",
        by_level),
)
