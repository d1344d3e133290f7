"""Tidy rows from the store: rows/<study>.csv with one line per number, epochs/<study>.csv with one per epoch.

Columns of rows: claim, preset, dataset, arch, norm, method, seed, metric, threat, eps, value, n, run, and which attack and
which images the number stands on. Accuracies are fractions. Of what diverged value is empty, and images says so.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..base.files import atomic_write
from ..specs.jobs import Job, Task
from ..specs.labels import NOT_RUN
from ..specs.measure import NETWORKS, EvalSpec
from ..specs.run import RunSpec
from ..store.store import Store
from .frame import read

KEYS = ["claim", "preset", "dataset", "arch", "norm", "method", "seed"]
COLUMNS = [*KEYS, "metric", "threat", "eps", "value", "n", "run", "attack", "images"]


def rows(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per finished measurement of `jobs` on the network of the last epoch, and per one that cannot be as a run diverged,
    in their order."""
    out = []
    for row in read(store, jobs, stages=True):
        if row.at == "last" and row.absent != NOT_RUN:
            value, n = (math.nan, row.images) if row.hits is None else (float(row.hits.mean()), len(row.hits))
            out.append([*keys(store, row.study, row.spec), f"{row.metric}_acc", row.threat, row.eps, value, n, row.spec.hash,
                        row.attack, row.absent or f"{row.split}[:{n}]"])
    return pd.DataFrame(out, columns=COLUMNS)


def epochs(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per epoch of the training runs of `jobs` that are finished or have diverged, which end before the last."""
    out = []
    for job in jobs:
        for row in store.epochs(job.spec) if job.settled else ():
            out.append(dict(zip(KEYS, keys(store, job.study, job.spec), strict=True)) | {"run": job.spec.hash, **row})
    return pd.DataFrame(out) if out else pd.DataFrame(columns=[*KEYS, "run", "epoch"])


def keys(store: Store, study: str, spec: RunSpec) -> list:
    """`KEYS` of a run."""
    return [study, store.preset, spec.data.name, spec.model.arch, spec.model.norm, spec.method.name, spec.seed]


def write(store: Store, jobs: Sequence[Job], study: str) -> pd.DataFrame:
    """Write both files for the jobs of `study`, each by atomic rename, and return the rows; runs that nothing was to be
    measured on have epochs only."""
    jobs = [job for job in jobs if job.study == study]
    frame = rows(store, jobs)
    measured = [("rows", frame)] if any(job.evals for job in jobs) else []
    for kind, table in (*measured, ("epochs", epochs(store, jobs))):
        path = store.root / kind / f"{study}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda tmp, table=table: table.to_csv(tmp, index=False))
    return frame


def consistent(found: Mapping[EvalSpec, Mapping[str, np.ndarray]]) -> tuple[bool, bool]:
    """Whether in masks of one network (of each stage) no image is right under attack and wrong without, and whether AutoAttack
    (or its part) leaves no more images than PGD at its radius, to within 1 % of them."""
    masks = [(e.kind == "clean", m) for e, stages in found.items() for m in stages.values()]
    clean = max((m for without, m in masks if without), key=len, default=np.ones(0, bool))
    bounded = all(without or not (m[:len(clean)] & ~clean[:len(m)]).any() for without, m in masks)
    both = [(list(found[a].values())[-1], list(found[p].values())[-1]) for a, p in itertools.product(found, found)
            if (a.kind, p.kind) == ("autoattack", "pgd") and (a.threat, a.eps) == (p.threat, p.eps)]
    sizes = [min(len(a), len(p)) for a, p in both]
    return bounded, all(a[:k].sum() <= p[:k].sum() + k // 100 for (a, p), k in zip(both, sizes, strict=True))


def sanity(store: Store, jobs: Sequence[Job]) -> dict[str, bool]:
    """What must hold for robust numbers to be believed, over all finished measurements of `jobs`."""
    kept, falling, alright = True, True, [(True, True)]
    for job, network in itertools.product((job for job in jobs if job.settled), NETWORKS):
        found = {e: stages for e in job.evals if e.at == network and (stages := store.masks(job.spec, e))}
        alright.append(consistent(found))
        kept &= all(all((store.provenance(Task(job.spec, e)) or {}).get("checks", {}).values()) for e in found)
        pgd = sorted((e.eps, m[e.attack_name].mean()) for e, m in found.items() if e.kind == "pgd" and e.threat == "linf")
        falling &= all(a[1] >= b[1] for a, b in zip(pgd, pgd[1:], strict=False))
    bounded, weaker = map(all, zip(*alright, strict=True))
    return {"recorded checks of every attack passed (range, mode, logits, gradient, norm kept)": bool(kept),
            "no image is right under attack and wrong without": bounded,
            "accuracy falls with the radius": bool(falling),
            "AutoAttack (or its part) leaves no more images than PGD, to within 1 % of them": weaker}
