"""Mismatch of batch-norm statistics as it was measured (rows/statistics.csv): one line per run, noise level and layer."""

from pathlib import Path

import pandas as pd

from ..specs.choices import MISMATCHES
from .store import Store

STATISTICS = ["run", "dataset", "cell", "seed", "sigma", "images", "layer", *MISMATCHES]


def statistics(store: Store) -> pd.DataFrame:
    """What `measure_statistics` of the room compute has left, one line per run, noise level and layer; empty at first."""
    path = statistics_path(store)
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=STATISTICS)


def statistics_path(store: Store) -> Path:
    """The table of a store."""
    return store.root / "rows" / "statistics.csv"
