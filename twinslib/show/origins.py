"""Where numbers come from: candidates for hyper-parameters, provenance, precision, what diverged."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from ..specs.jobs import Job, Task
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, lost_text, method_label, unique
from ..store.store import Store
from ..studies.smoothing import cell_of

KINDS = {"clean": "evaluation, clean", "pgd": "evaluation, PGD", "autoattack": "evaluation, AutoAttack or part",
         "certify": "certification"}


def validated(store: Store, job: Job) -> dict:
    """The last row of a finished run that holds accuracies on validation images, with their number; {} where there is none."""
    record = store.run(job.spec)
    rows = [row for row in record["epochs"] if "val_clean_acc" in row] if record else []
    return rows[-1] | {"images": record["val_images"], "classes": record.get("classes")} if rows else {}


def tuning_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Validation accuracy of every candidate for a hyper-parameter, and which was chosen; from jobs of studies of candidates."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if job.study.endswith("tuning"):
            groups.setdefault((job.spec.data.name, job.spec.method.name), []).append(job)
    columns, out = ["data set", "method", "candidate", "clean, validation", "PGD, validation", "images", "chosen"], []
    for (dataset, method), mine in groups.items():
        chosen = store.best([job.spec for job in mine])
        values = [{"lr": job.spec.optim.lr, **dataclasses.asdict(job.spec.method)} for job in mine]
        varied = {key: [v[key] for v in values] for key in values[0] if len({v[key] for v in values}) > 1}
        for i, job in enumerate(mine):
            measured, absent = validated(store, job), store.absent(job)
            scores = [f"{100 * measured[key]:.1f}" if key in measured else absent for key in ("val_clean_acc", "val_robust_acc")]
            at_end = [key for key, all_ in varied.items() if isinstance(all_[i], float) and len(all_) > 2
                      and all_[i] in (min(all_), max(all_))]
            word = "yes, at an end of its grid" if at_end else "yes"
            candidate = ", ".join(f"{key} {all_[i]:g}" if isinstance(all_[i], float) else f"{key} {all_[i]}"
                                  for key, all_ in varied.items())
            out.append([dataset_label(dataset), method_label(method), candidate, *scores, measured.get("images", ""),
                        word if job.spec == chosen else ""])
    return pd.DataFrame(out, columns=columns)


def provenance_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Where the numbers come from: tasks, hours, device, threads, precision, commit and torch version per kind of work, and their
    sum."""
    kinds: dict[Task, str] = {}
    for job in jobs:
        spec = job.spec
        while spec is not None:
            kinds[Task(spec)] = "fine-tuning" if spec.source or spec.weights else "training from random weights"
            spec = spec.source
        kinds |= {Task(job.spec, e): KINDS[e.kind] for e in job.measurements}
    entries = [{"kind": kind, "diverged": store.diverged(task.spec, task.evaluation), **(store.provenance(task) or {})}
               for task, kind in kinds.items()]
    frame = pd.DataFrame(entries, columns=["kind", "seconds", "device", "threads", "precision", "commit", "changed", "versions",
                                           "diverged"])
    order, lines = ["training from random weights", "fine-tuning", *KINDS.values()], []
    for kind in [*(k for k in order if k in set(frame["kind"])), "all"]:
        mine = frame if kind == "all" else frame[frame["kind"] == kind]
        done, left = mine.dropna(subset="seconds"), mine[mine["seconds"].isna()]
        gone = left["diverged"].notna().sum()
        said = {"device": done["device"], "threads": (f"{n:.0f}" for n in done["threads"].dropna()),
                "precision": done["precision"].dropna(),
                "commit": (f"{row.commit[:7]} with changes" if row.changed else row.commit[:7] for row in done.itertuples()),
                "torch": (versions["torch"] for versions in done["versions"])}
        lines.append({"work": kind, "tasks done": f"{len(done)} of {len(mine)}" + (f", {gone} {DIVERGED}" if gone else ""),
                      "hours": f"{done['seconds'].sum() / 3600:.3g}",
                      **{title: ", ".join(unique(values)) or NOT_RUN for title, values in said.items()}})
    return pd.DataFrame(lines)


def computed_in(store: Store, jobs: Sequence[Job]) -> str:
    """In which precision the finished runs of `jobs` were trained and certified, each with how many: rows of two kinds in one
    table differ by more than chance. Accuracies are always measured in float32. Then which runs diverged but for
    candidates, since other tables say so only where no seed is left."""
    counts: dict[tuple[str, str], int] = {}
    for job in {job.spec: job for job in jobs if job.settled}.values():
        for task in (Task(job.spec), *(Task(job.spec, c) for c in job.certs)):
            precision = (store.provenance(task) or {}).get("precision")
            key = "certified" if task.evaluation else "trained", precision
            counts |= {key: counts.get(key, 0) + 1} if precision else {}
    said = [f"{what} in " + " and ".join(f"{name} ({n})" for (kind, name), n in sorted(counts.items()) if kind == what)
            for what in ("trained", "certified") if any(kind == what for kind, _ in counts)]
    gone = lost_text(_named(job) for job in jobs if not job.study.endswith("tuning")
                     and any(store.absent(job, e) != NOT_RUN for e in (None, *job.measurements)))
    return "; ".join([*said, *filter(None, [gone.removesuffix(".")])]) or NOT_RUN


def _named(job: Job) -> str:
    """AT, seed 0 (CIFAR-10); of a certified network its cell, of a part of adversarial fine-tuning what that varies."""
    s, part = job.spec, dict(job.labels).get("part")
    more = {"fraction": f", {s.data.train_images} training images", "width": f", width {s.model.width}"}.get(part, "")
    return f"{cell_of(job) or method_label(s.method.name)}, seed {s.seed}{more} ({dataset_label(s.data.name)})"
