"""Where numbers come from: candidates for hyper-parameters, provenance, precision."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from ..specs.labels import dataset_label, method_label, unique
from ..store.jobs import Job, Task
from ..store.store import DIVERGED, NOT_RUN, Store


def tuning_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Validation accuracy of every candidate for a hyper-parameter, and which was chosen; from jobs of studies of candidates."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if job.study.endswith("tuning"):
            groups.setdefault((job.spec.data.name, job.spec.method.name), []).append(job)
    out = []
    for (dataset, method), mine in groups.items():
        candidates = [job.spec for job in mine]
        chosen = store.best(candidates)
        values = [{"lr": spec.optim.lr, **dataclasses.asdict(spec.method)} for spec in candidates]
        varied = [key for key in values[0] if len({v[key] for v in values}) > 1]
        for job, spec, value in zip(mine, candidates, values, strict=True):
            record, measured = store.run(spec), {}
            for epoch in record["epochs"] if record else ():
                measured = epoch if "val_clean_acc" in epoch else measured
            line = {"data set": dataset_label(dataset), "method": method_label(method),
                    "candidate": ", ".join(f"{key} {_plain(value[key])}" for key in varied)}
            for title, key in (("clean", "val_clean_acc"), ("PGD", "val_robust_acc")):
                line[f"{title}, validation"] = f"{100 * measured[key]:.1f}" if key in measured else store.absent(job)
            line["images"] = record["val_images"] if record else ""
            at_end = [key for key in varied if isinstance(value[key], float) and len(values) > 2
                      and value[key] in (min(v[key] for v in values), max(v[key] for v in values))]
            line["chosen"] = "" if spec != chosen else "yes, at an end of its grid" if at_end else "yes"
            out.append(line)
    return pd.DataFrame(out, columns=["data set", "method", "candidate", "clean, validation", "PGD, validation", "images",
                                      "chosen"])


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def provenance_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Where the numbers come from: tasks, hours, device, threads, precision, commit and torch version per kind of work, and their
    sum."""
    names = {"clean": "evaluation, clean", "pgd": "evaluation, PGD", "autoattack": "evaluation, AutoAttack or part",
             "certify": "certification"}
    kinds: dict[Task, str] = {}
    for job in jobs:
        spec = job.spec
        while spec is not None:
            kinds[Task(spec)] = "fine-tuning" if spec.source or spec.weights else "training from random weights"
            spec = spec.source
        kinds |= {Task(job.spec, e): names[e.kind] for e in job.measurements}
    entries = [{"kind": kind, "diverged": store.diverged(task.spec, task.evaluation), **(store.provenance(task) or {})}
               for task, kind in kinds.items()]
    frame = pd.DataFrame(entries, columns=["kind", "seconds", "device", "threads", "precision", "commit", "changed", "versions",
                                           "diverged"])
    order = [k for k in ("training from random weights", "fine-tuning", *names.values()) if k in set(frame["kind"])]
    lines = [_provenance_line(kind, frame[frame["kind"] == kind]) for kind in order]
    return pd.DataFrame([*lines, _provenance_line("all", frame)])


def _provenance_line(kind: str, frame: pd.DataFrame) -> dict[str, str]:
    done = frame.dropna(subset="seconds")
    gone = frame.loc[frame["seconds"].isna(), "diverged"].notna().sum()

    def listed(values) -> str:
        return ", ".join(unique(values)) or NOT_RUN

    commits = (f"{row.commit[:7]} with changes" if row.changed else row.commit[:7] for row in done.itertuples())
    tasks = f"{len(done)} of {len(frame)}" + (f", {gone} {DIVERGED}" if gone else "")
    return {"work": kind, "tasks done": tasks, "hours": f"{done['seconds'].sum() / 3600:.3g}",
            "device": listed(done["device"]), "threads": listed(f"{n:.0f}" for n in done["threads"].dropna()),
            "precision": listed(done["precision"].dropna()), "commit": listed(commits),
            "torch": listed(versions["torch"] for versions in done["versions"])}


def computed_in(store: Store, jobs: Sequence[Job]) -> str:
    """In which precision the finished runs of `jobs` were trained and certified, each with how many: rows of two kinds in one
    table differ by more than chance. Accuracies are always measured in float32."""
    counts: dict[str, dict[str, int]] = {"trained": {}, "certified": {}}
    for job in {job.spec: job for job in jobs if job.settled}.values():
        for task in (Task(job.spec), *(Task(job.spec, c) for c in job.certs)):
            precision = (store.provenance(task) or {}).get("precision")
            if precision:
                found = counts["certified" if task.evaluation else "trained"]
                found[precision] = found.get(precision, 0) + 1
    words = [f"{what} in " + " and ".join(f"{name} ({count})" for name, count in sorted(found.items()))
             for what, found in counts.items() if found]
    return "; ".join(words) or NOT_RUN
