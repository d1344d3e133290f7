"""Tables and sentences for notebooks, made from stored rows, masks and records; nothing is computed anew here.

Tables are plain DataFrames of text: accuracy in percent, differences in points.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from . import stats
from .runs import DIVERGED, NOT_RUN, Job, Store, Task
from .strength import KINDS, STANDARD, parse, strength

METHODS = {
    "natural": "natural", "at": "AT", "trades": "TRADES", "twins_at": "TWINS-AT", "twins_trades": "TWINS-TRADES",
    "distill": "distillation", "feature_distill": "feature distillation", "l2sp": "L2-SP", "joint": "joint, all classes",
    "joint_uot": "joint, classes by UOT", "frozen_at": "AT, frozen statistics", "at_natural": "AT, natural start",
    "at_random": "AT, random start", "at_lr": "AT, lr × (1 + λ)", "at_split": "AT, split batch",
    "two_adaptive": "two adaptive branches", "twins_shared": "TWINS-AT, shared affine",
    "twins_attack_frozen": "TWINS-AT, frozen wing attacked", "twins_attack_alternating": "TWINS-AT, wings attacked in turn",
    "trades_beta3": "TRADES, β 3", "twins_trades_wing": "TWINS-TRADES, KL mean per wing",
    "noise": "noise", "mixed_noise": "mixed noise", "natural_frozen": "natural, frozen statistics",
    "linear_probe": "linear probe",
    "at_awp": "AT, AWP", "at_cosine": "AT, cosine", "at_cyclic": "AT, cyclic", "at_slow_fast": "AT, slow start, fast decay",
    "at_scratch": "AT, random start", "trades_scratch": "TRADES, random start", "free_at": "Free-AT", "fast_at": "Fast-AT",
    "aft": "AFT", "aft_random": "AFT, random start", "aft_free": "AFT, Free", "aft_twins": "AFT, two wings",
    "aft_public": "AFT, public start", "aft_l2": "AFT, L2", "aft_l2_random": "AFT, random start, L2",
    "aft_constant": "AFT, constant rate", "aft_piecewise": "AFT, piecewise", "aft_cosine": "AFT, cosine",
    "aft_one_cycle": "AFT, one cycle", "aft_fast_decay": "AFT, no slow start", "aft_slow_start": "AFT, no decay",
    "aft_slow_fast_exp": "AFT, second shape", "aft_eps_warmup": "AFT, ε warm-up",
    "at_short_plateau": "AT, random start, short plateau", "at_long_plateau": "AT, random start, long plateau",
}  # fmt: skip
MEAN = "mean"  # stands for all data sets in frames of differences, but for those near chance
MEAN_OF_ALL = "mean of all"  # with those
DATASETS = {  # name of the packed set: (label, its counterpart in the public reference numbers)
    "cifar10": ("CIFAR-10", "CIFAR-10"),
    "cifar100": ("CIFAR-100", "CIFAR-100"),
    "caltech64": ("Caltech-101", "Caltech-256"),
    "caltech256": ("Caltech-256", "Caltech-256"),
    "cub64": ("CUB-200 (2010)", "CUB-200-2011"),
    "cub200": ("CUB-200-2011", "CUB-200-2011"),
    "dogs64": ("Stanford Dogs (boxes)", "Stanford Dogs"),
    "dogs": ("Stanford Dogs", "Stanford Dogs"),
    "tinyimagenet32": ("Tiny-ImageNet", None),
    "toy_source": ("toy source", None),
    "toy_target": ("toy target", None),
}
AUTOATTACK = "+".join(STANDARD)


# -- names ------------------------------------------------------------------------------------------------------------
def dataset_label(name: str) -> str:
    if name == MEAN_OF_ALL:
        return "mean of data sets, also near chance"
    return "mean of data sets" if name == MEAN else DATASETS[name][0] if name in DATASETS else name


def method_label(name: str) -> str:
    weight = re.fullmatch(r"twins_at_lambda(.+)", name)
    return f"TWINS-AT, λ {weight[1]}" if weight else METHODS.get(name, name)


def eps_label(eps: float, threat: str = "linf") -> str:
    """8/255 for a radius in the maximum norm, 0.5 (L2) for one in the Euclidean norm."""
    return f"{eps * 255:.3g}/255" if threat == "linf" else f"{eps:.3g} (L2)"


def attack_label(attack: str) -> str:
    """Readable name of an attack as rows name it; only the whole standard suite is called AutoAttack."""
    if attack in ("none", AUTOATTACK):
        return "clean" if attack == "none" else "AutoAttack"
    found = parse(attack)
    if found.kind == "pgd":
        return f"PGD-{found.steps}" + (f", {found.restarts} restarts" if found.restarts > 1 else "")
    return " + ".join("Square" if part == "square" else part.upper() for part in found.parts)


def percent(value: float, low: float, high: float) -> str:
    """62.3 [59.2, 65.3] from fractions."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(value: float, low: float, high: float) -> str:
    """+1.2 [-0.5, +2.9] from differences of fractions."""
    value, low, high = (round(100 * x, 1) + 0.0 for x in (value, low, high))  # + 0.0: no negative zero
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


# -- accuracies -------------------------------------------------------------------------------------------------------
def is_pgd(rows: pd.DataFrame) -> pd.Series:
    return _kinds(rows) == "pgd"


def is_autoattack(rows: pd.DataFrame) -> pd.Series:
    """True for rows of AutoAttack or a part of it."""
    return _kinds(rows) == "autoattack"


def _kinds(rows: pd.DataFrame) -> pd.Series:
    return rows["attack"].map(lambda name: parse(name).kind)


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the inner stages of AutoAttack, and each attack only where it saw the most images."""
    rows = rows.reset_index(drop=True)
    stages = list(zip(*(rows[c] for c in ("run", "threat", "eps", "images", "attack")), strict=True))
    inner = {(*where, attack.rpartition("+")[0]) for *where, attack in stages}  # of a+b+c the stage a+b
    kept = rows.loc[[stage not in inner for stage in stages]]
    key = ["run", "threat", "eps", "attack"]
    return kept[kept["n"] == kept.groupby(key)["n"].transform("max")].drop_duplicates(key)


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies with 95 % intervals, as fractions.

    Args:
        rows: as `table.rows` makes them.
    Returns:
        One line per (dataset, method, seed, threat, eps, attack): value with the exact interval over its n test images
        (Clopper and Pearson). Where there are several seeds also one line with seed "mean of k": Student's interval
        over the seeds, whose n is the images of one seed. What diverged has no value and no part in means; its column
        absent says so, and is empty otherwise.
    Raises:
        ValueError: columns are missing, or two runs claim one data set, method and seed.
    """
    needed = ["dataset", "method", "seed", "metric", "threat", "eps", "value", "n", "run", "attack", "images"]
    absent = [c for c in needed if c not in rows.columns]
    if absent:
        raise ValueError(f"expected rows with the columns {', '.join(needed)}, got none called {', '.join(absent)}")
    runs = rows.groupby(["dataset", "method", "seed"])["run"].nunique()
    if (runs > 1).any():
        raise ValueError(f"expected one run per data set, method and seed, got {runs.max()} for "
                         f"{', '.join(map(str, runs.idxmax()))}; pass the rows of one study, arch and norm")
    what = ["dataset", "method", "metric", "threat", "eps", "attack"]
    out = []
    for row in final(rows).itertuples():
        gone = math.isnan(row.value)
        exact = [math.nan] * 3 if gone else stats.clopper_pearson(round(row.value * row.n), int(row.n))[:3]
        out.append([*(getattr(row, c) for c in what), str(row.seed), int(row.n), *exact, row.images if gone else ""])
    single = pd.DataFrame(out, columns=[*what, "seed", "n", "value", "low", "high", "absent"])
    means = [[*key, f"mean of {len(group)}", int(group["n"].min()), *stats.student_interval(group["value"])[:3], ""]
             for key, group in single.dropna(subset="value").groupby(what, sort=False) if len(group) > 1]
    return pd.DataFrame([*single.values.tolist(), *means], columns=single.columns)


def one_line(estimated: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, the mean over seeds where there are several seeds, else the one seed; without a value only where all
    diverged."""
    key = ["dataset", "method", "threat", "eps", "attack"]
    order = estimated.assign(rank=2 * estimated["seed"].str.startswith("mean") + estimated["value"].notna())
    best = order["rank"] == order.groupby(key)["rank"].transform("max")
    return estimated[best & ~order[[*key, "rank"]].duplicated()]


def lost(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(data set, method) -> what stands for it, of the methods in `rows` (or `estimates`) of which nothing has a value."""
    words = {key: group for key, group in rows.groupby(["dataset", "method"], sort=False) if group["value"].isna().all()}
    return {key: group["absent" if "absent" in group else "images"].iloc[0] for key, group in words.items()}


def marked(method: str, gone: Iterable[int], left: bool) -> str:
    """Label of a method of which the runs of the seeds `gone` diverged, and whether others are left."""
    seeds = ", ".join(map(str, sorted(set(gone))))
    return method_label(method) + (f" ({DIVERGED}{f': seed {seeds}' if left else ''})" if seeds else "")


def lost_text(names: Iterable[str]) -> str:
    """Diverged: AT, seed 0; TRADES, seed 1. Nothing where there is none."""
    names = unique(names)
    return f"Diverged: {'; '.join(names)}." if names else ""


def joined(*sentences: str, otherwise: str = "") -> str:
    """Those that say something, else `otherwise`."""
    return " ".join(s for s in sentences if s) or otherwise


def accuracy_table(rows: pd.DataFrame, datasets: Sequence[str] | None = None,
                   methods: Sequence[str] | None = None) -> pd.DataFrame:
    """Accuracy in percent with its 95 % interval: one line per data set, method and seed, then their mean, one column per
    attack.

    Args:
        datasets, methods: which lines to show, in which order, finished or not; by default those that rows have.
    """
    found = estimates(rows)
    found = found.assign(line=list(zip(found["dataset"], found["method"], found["seed"], strict=True)))
    there, seeds = set(found["line"]), unique(found["seed"])
    lines = []
    for d in unique(rows["dataset"]) if datasets is None else datasets:
        for m in unique(rows["method"]) if methods is None else methods:
            lines += [(d, m, s) for s in seeds if (d, m, s) in there] or [(d, m, s) for s in seeds[:1]]
    index = [(dataset_label(d), method_label(m), s) for d, m, s in lines]
    return spread(found, lines, index, ("data set", "method", "seed"),
                  lambda row: percent(row.value, row.low, row.high))


def caption(rows: pd.DataFrame) -> str:
    """What the intervals of tables and figures stand for, and on how many images, computed from the rows."""
    if rows.empty:
        return "No measurement is finished yet."
    gone = rows[rows["value"].isna()]
    tail = lost_text(f"{method_label(r.method)}, seed {r.seed} ({dataset_label(r.dataset)})" for r in gone.itertuples())
    if len(gone) == len(rows):
        return tail
    kept = final(rows.dropna(subset="value"))
    by_n = {n: unique(attack_label(a) for a in g["attack"]) for n, g in kept.groupby("n", sort=True)}
    counts = "; ".join(f"{n:,} for {', '.join(names)}" for n, names in sorted(by_n.items(), reverse=True))
    seeds = sorted(kept["seed"].unique())
    if len(seeds) == 1:
        return f"Seed {seeds[0]} only. Intervals: exact 95 % (Clopper-Pearson) over the test images ({counts}). {tail}".strip()
    return (f"Means over the seeds {', '.join(map(str, seeds))}. Intervals: 95 % (Student) over the seeds; of a single "
            f"seed, exact 95 % (Clopper-Pearson) over the test images ({counts}). {tail}").strip()


# -- what was chosen --------------------------------------------------------------------------------------------------
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


# -- provenance -------------------------------------------------------------------------------------------------------
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


# -- text -------------------------------------------------------------------------------------------------------------
def to_markdown(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table, without its index; columns are padded so that the source reads well too."""
    cells = [[str(c) for c in frame.columns], *([_text(v) for v in row] for row in frame.itertuples(index=False))]
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in cells]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(frame.columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def unique(values) -> list:
    return list(dict.fromkeys(values))


def header(attack: str, threat: str, eps: float) -> str:
    return "clean" if attack == "none" else f"{attack_label(attack)} at {eps_label(eps, threat)}"


def spread(found: pd.DataFrame, lines: list, index: list[tuple], names: tuple[str, ...],
            cell: Callable[[object], str]) -> pd.DataFrame:
    """One text column per attack (clean, PGD, AutoAttack; each by eps), one line per entry of `lines`.

    A measurement without a result is what the column `absent` of `found` says, else "not run"; in a line of means it stays empty
    if it has no mean over that many.
    """
    keys = unique(zip(found["threat"], found["eps"], found["attack"], strict=True))
    out = pd.DataFrame(index, columns=list(names), dtype=str)
    order = {a: (KINDS.index(parse(a).kind), strength(a)) for a in found["attack"].unique()}
    for threat, eps, attack in sorted(keys, key=lambda k: (order[k[2]][0], *k[:2], order[k[2]][1])):
        group = found[(found["threat"] == threat) & (found["eps"] == eps) & (found["attack"] == attack)]
        at = {r.line: r for r in group.itertuples() if not math.isnan(r.value)}
        words = {r.line: getattr(r, "absent", "") or NOT_RUN for r in group.itertuples()}
        empty = {k for k in lines if any(str(part).startswith("mean of") for part in k)} - set(group["line"])
        ns = sorted(group["n"].unique())
        images = f"{ns[0]:,} images" if len(ns) == 1 else f"{ns[0]:,} to {ns[-1]:,} images"
        many = len(ns) > 1
        out[f"{header(attack, threat, eps)} ({images})"] = [
            cell(at[k]) + (f", n = {at[k].n:,}" if many else "") if k in at
            else "" if k in empty else words.get(k, NOT_RUN) for k in lines]
    return out
