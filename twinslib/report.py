"""Tables and sentences for notebooks, made from stored rows, masks and records; nothing is computed anew here.

Tables are plain DataFrames of text: accuracy in percent, differences in points. Numbers of others come from
twinslib/reference/*.csv, where each line names its source.
"""

import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from . import stats, table
from .checkpoint import atomic_write
from .evaluate import STANDARD
from .runs import Job, Store, Task

NOT_RUN = "not run"
METHODS = {"natural": "natural", "at": "AT", "trades": "TRADES", "twins_at": "TWINS-AT", "twins_trades": "TWINS-TRADES"}
PAIRS = (("twins_at", "at"), ("twins_trades", "trades"))
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
    return DATASETS[name][0] if name in DATASETS else name


def method_label(name: str) -> str:
    return METHODS.get(name, name)


def eps_label(eps: float, threat: str = "linf") -> str:
    """8/255 for a radius in the maximum norm, 0.5 (L2) for one in the Euclidean norm."""
    return f"{eps * 255:.3g}/255" if threat == "linf" else f"{eps:.3g} (L2)"


def attack_label(attack: str) -> str:
    """Readable name of an attack as rows name it; only the whole standard suite is called AutoAttack."""
    if attack in ("none", AUTOATTACK):
        return "clean" if attack == "none" else "AutoAttack"
    pgd = re.fullmatch(r"pgd(\d+)(?:x(\d+))?", attack)
    if pgd:
        return f"PGD-{pgd[1]}" + (f", {pgd[2]} restarts" if pgd[2] else "")
    return " + ".join("Square" if part == "square" else part.upper() for part in attack.split("+"))


def percent(value: float, low: float, high: float) -> str:
    """62.3 [59.2, 65.3] from fractions."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(value: float, low: float, high: float) -> str:
    """+1.2 [-0.5, +2.9] from differences of fractions."""
    value, low, high = (round(100 * x, 1) + 0.0 for x in (value, low, high))  # + 0.0: no negative zero
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


# -- accuracies -------------------------------------------------------------------------------------------------------
def is_pgd(rows: pd.DataFrame) -> pd.Series:
    return rows["attack"].str.startswith("pgd")


def is_autoattack(rows: pd.DataFrame) -> pd.Series:
    """True for rows of AutoAttack or a part of it."""
    return (rows["attack"] != "none") & ~is_pgd(rows)


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the inner stages of AutoAttack, and each attack only where it saw the most images."""
    rows = rows.reset_index(drop=True)
    stages = rows[is_autoattack(rows)]
    length = stages["attack"].str.len()
    longest = length.groupby([stages[c] for c in ("run", "threat", "eps", "images")]).transform("max")
    kept = rows.drop(stages.index[length < longest])
    key = ["run", "threat", "eps", "attack"]
    return kept[kept["n"] == kept.groupby(key)["n"].transform("max")].drop_duplicates(key)


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies with 95 % intervals, as fractions.

    Args:
        rows: as `table.rows` makes them.
    Returns:
        One line per (dataset, method, seed, threat, eps, attack): value with the exact interval over its n test images
        (Clopper and Pearson). Where there are several seeds also one line with seed "mean of k": Student's interval
        over the seeds, whose n is the images of one seed.
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
        exact = stats.clopper_pearson(round(row.value * row.n), int(row.n))
        out.append([*(getattr(row, c) for c in what), str(row.seed), int(row.n), *exact[:3]])
    single = pd.DataFrame(out, columns=[*what, "seed", "n", "value", "low", "high"])
    means = [[*key, f"mean of {len(group)}", int(group["n"].min()), *stats.seed_interval(group["value"])[:3]]
             for key, group in single.groupby(what, sort=False) if len(group) > 1]
    return pd.DataFrame([*single.values.tolist(), *means], columns=single.columns)


def one_line(estimated: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, the mean over seeds where there are several seeds, else the one seed."""
    mean = estimated["seed"].str.startswith("mean")
    key = ["dataset", "method", "threat", "eps", "attack"]
    has_mean = mean.groupby([estimated[c] for c in key]).transform("any") if len(estimated) else mean
    return estimated[mean | ~has_mean]


def accuracy_table(rows: pd.DataFrame, datasets: Sequence[str] | None = None,
                   methods: Sequence[str] | None = None) -> pd.DataFrame:
    """Accuracy in percent with its 95 % interval: one line per data set, method and seed, one column per attack.

    Args:
        datasets, methods: which lines to show, in which order, finished or not; by default those that rows have.
    """
    found = estimates(rows)
    found = found.assign(line=list(zip(found["dataset"], found["method"], found["seed"], strict=True)))
    lines = [(d, m, s) for d in (_unique(rows["dataset"]) if datasets is None else datasets)
             for m in (_unique(rows["method"]) if methods is None else methods)
             for s in _unique(found["seed"]) if not s.startswith("mean") or (d, m, s) in set(found["line"])]
    index = [(dataset_label(d), method_label(m), s) for d, m, s in lines]
    return _spread(found, lines, index, ("data set", "method", "seed"), percent)


# -- differences on the same images -----------------------------------------------------------------------------------
def paired_rows(store: Store, jobs: Sequence[Job], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """accuracy(method) - accuracy(baseline) on the same test images, from the stored masks, as fractions.

    Args:
        pairs: (method, baseline) names; a pair is used on every data set where `jobs` has both.
    Returns:
        One line per (dataset, method, baseline, seed) and measurement, in the order of `jobs`: value with the 95 %
        interval of `stats.paired_difference` over its n images; NaN where a run or a measurement is not done.
    Raises:
        ValueError: two runs for one data set, method and seed, or two runs whose test images differ.
    """
    plan: dict[tuple[str, str, int], tuple] = {}
    for job in jobs:
        key = job.spec.data.name, job.spec.method.name, job.spec.seed
        spec, evals = plan.get(key, (job.spec, ()))
        if spec != job.spec:
            raise ValueError(f"expected one run per data set, method and seed, got two for {', '.join(map(str, key))}; "
                             "pass the jobs of one study, arch and norm")
        plan[key] = spec, tuple(dict.fromkeys([*evals, *job.evals]))
    out = []
    for method, baseline in pairs:
        for (dataset, name, seed), (spec, evals) in plan.items():
            if name != method or (dataset, baseline, seed) not in plan:
                continue
            other, other_evals = plan[dataset, baseline, seed]
            splits = [record and record["split"] for record in (store.run(spec), store.run(other))]
            if None not in splits and splits[0] != splits[1]:
                raise ValueError(f"expected {method} and {baseline} on the same images of {dataset}, got the splits "
                                 f"{splits[0]} and {splits[1]}; give both the same data")
            for e in _last_stages(evals, other_evals):
                masks = [store.masks(s, e) for s in (spec, other)]
                found = [math.nan] * 3
                if None not in masks:
                    found = stats.paired_difference(*(m[e.attack_name] for m in masks))[:3]
                metric = "clean_acc" if e.kind == "clean" else "robust_acc"
                what = [metric, e.threat, e.eps, e.attack_name, e.images]
                out.append([dataset, method, baseline, str(seed), *what, *found])
    return pd.DataFrame(out, columns=["dataset", "method", "baseline", "seed", "metric", "threat", "eps", "attack", "n",
                                      "value", "low", "high"])


def paired_table(paired: pd.DataFrame) -> pd.DataFrame:
    """Differences in points with their 95 % intervals: one line per comparison, data set and seed, then their mean.

    Intervals of single seeds speak about new test images only; those of "mean of k" seeds are Student's over the seeds.
    The mean over data sets gives each the same weight; its interval combines theirs (Zou and Donner 2008) and speaks
    neither about other data sets nor about other seeds.
    """
    measured = ["metric", "threat", "eps", "attack"]
    pair = ["method", "baseline"]
    over = []
    for key, group in paired.groupby([*pair, "seed", *measured], sort=False):
        if len(group) > 1:
            over.append([f"mean of {len(group)} data sets", *key, int(group["n"].min()), *mean_difference(group)])
    columns = ["dataset", *pair, "seed", *measured, "n", "value", "low", "high"]
    every = pd.concat([paired[columns], pd.DataFrame(over, columns=columns)]) if over else paired[columns]
    means = []
    for key, group in every.groupby(["dataset", *pair, *measured], sort=False):
        if len(group) > 1:
            found = stats.seed_interval(group["value"])[:3] if group["value"].notna().all() else [math.nan] * 3
            means.append([*key[:3], f"mean of {len(group)}", *key[3:], int(group["n"].min()), *found])
    every = pd.concat([every, pd.DataFrame(means, columns=columns)]) if means else every
    every = every.assign(line=list(zip(*(every[c] for c in (*pair, "dataset", "seed")), strict=True)))
    pairs, present = _unique(zip(paired["method"], paired["baseline"], strict=True)), set(every["line"])
    lines = [(*p, d, s) for p in pairs for d in _unique(every["dataset"]) for s in _unique(every["seed"])
             if (*p, d, s) in present]
    index = [(f"{method_label(a)} - {method_label(b)}", dataset_label(d), s) for a, b, d, s in lines]
    return _spread(every, lines, index, ("difference", "data set", "seed"), points)


def mean_difference(group: pd.DataFrame) -> tuple[float, float, float]:
    """Mean of independent differences and its interval: (value, low, high).

    MOVER (Zou and Donner 2008): the mean lies from its limit as far as the root of the summed squares of the single
    distances, divided by their number.
    """
    k, mean = len(group), group["value"].mean(skipna=False)
    low = mean - math.sqrt(((group["value"] - group["low"]) ** 2).sum(skipna=False)) / k
    return mean, low, mean + math.sqrt(((group["high"] - group["value"]) ** 2).sum(skipna=False)) / k


def reading(paired: pd.DataFrame) -> str:
    """In words: on how many data sets each method is above its baseline, and where the paired interval excludes 0."""
    sentences = []
    for (method, baseline), group in paired.groupby(["method", "baseline"], sort=False):
        parts, missing = [], int(group["value"].isna().sum())
        for (threat, eps, attack), g in group.dropna(subset="value").groupby(["threat", "eps", "attack"], sort=False):
            above, below, higher = (g["low"] > 0).sum(), (g["high"] < 0).sum(), (g["value"] > 0).sum()
            parts.append(f"{_header(attack, threat, eps)} is higher in {higher} of {len(g)} "
                         f"(interval above 0 in {above}, below 0 in {below})")
        seeds = group["seed"].nunique()
        unit = "data sets, one seed" if seeds == 1 else f"pairs of data set and seed, {seeds} seeds"
        head = f"{method_label(method)} against {method_label(baseline)} on the same test images ({unit}): "
        tail = f"; {missing} comparisons not run" if missing else ""
        sentences.append(head + ("; ".join(parts) or "nothing measured yet") + tail + ".")
    return " ".join(sentences)


def caption(rows: pd.DataFrame) -> str:
    """What the intervals of tables and figures stand for, and on how many images, computed from the rows."""
    if rows.empty:
        return "No measurement is finished yet."
    kept = final(rows)
    by_n = {n: _unique(attack_label(a) for a in g["attack"]) for n, g in kept.groupby("n", sort=True)}
    counts = "; ".join(f"{n:,} for {', '.join(names)}" for n, names in sorted(by_n.items(), reverse=True))
    seeds = sorted(kept["seed"].unique())
    if len(seeds) == 1:
        return f"Seed {seeds[0]} only. Intervals: exact 95 % (Clopper-Pearson) over the test images ({counts})."
    return (f"Means over the seeds {', '.join(map(str, seeds))}. Intervals: 95 % (Student) over the seeds; of a single "
            f"seed, exact 95 % (Clopper-Pearson) over the test images ({counts}).")


# -- numbers of others ------------------------------------------------------------------------------------------------
def _read(name: str) -> pd.DataFrame:
    with (resources.files(__package__) / "reference" / name).open() as file:
        return pd.read_csv(file, keep_default_na=False, na_values={"sd": [""]})


def reference_rows() -> pd.DataFrame:
    """Public numbers near those of TWINS: re-runs by others, baselines by its authors; fractions, source in each line.

    The per-data-set tables of TWINS itself are not known to us, so no line comes from them. The two sources used
    different hyper-parameters; do not compare a method of one with a method of the other.
    """
    return _read("twins.csv")


def reported() -> str:
    """The claimed effect of TWINS-AT against AT, with how sure it is."""
    frame = _read("reported.csv")
    (certainty,) = frame["certainty"].unique()
    effects = (f"{100 * row.difference:+.2f} {row.metric.removesuffix('_acc')}" for row in frame.itertuples())
    return f"reported, {certainty}: " + ", ".join(effects)


def reference_differences() -> pd.DataFrame:
    """TWINS-TRADES minus TRADES in points as one public source re-ran both, by data set, and their mean."""
    rows = reference_rows()
    both = rows[rows["source"].isin(rows.loc[rows["method"] == "twins_trades", "source"])]
    both = both[both["dataset"].isin({reference for _, reference in DATASETS.values()})]
    wide = both.pivot_table(index="dataset", columns=["method", "attack"], values="value", sort=False)
    gains = 100 * (wide["twins_trades"] - wide["trades"])
    gains.loc[f"mean of {len(gains)} data sets"] = gains.mean()
    gains.columns = [_header(a, "linf", both.loc[both["attack"] == a, "eps"].iloc[0]) for a in gains.columns]
    text = gains.map(lambda x: f"{round(x, 2) + 0.0:+.2f}").rename_axis("data set", axis=0).reset_index()
    (source,) = both["source"].unique()
    return text.assign(source=source)


def reference_table(rows: pd.DataFrame, store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Our accuracies next to the public reference numbers, and what differs, taken from the specs of our runs.

    One line per data set, method and source that has numbers for both; of our attacks the one nearest to the reference:
    PGD for PGD, AutoAttack or the part of it on the most images for AutoAttack, at the same eps.
    """
    ours, reference = one_line(estimates(rows)), reference_rows()
    specs = {(job.spec.data.name, job.spec.method.name): job.spec for job in reversed(jobs)}
    kinds = {"clean": lambda f: f["attack"] == "none", "PGD": is_pgd, "AutoAttack": is_autoattack}
    out = []
    for dataset in _unique(rows["dataset"]):
        label, counterpart = DATASETS.get(dataset, (dataset, None))
        theirs = reference[reference["dataset"] == counterpart]
        for (source, method), group in theirs.groupby(["source", "method"], sort=False):
            mine = ours[(ours["dataset"] == dataset) & (ours["method"] == method)]
            if mine.empty or (dataset, method) not in specs:
                continue
            line = {"data set": label, "method": method_label(method)}
            differs = _setting_differs(specs[dataset, method], store, label, group.iloc[0])
            for kind, choose in kinds.items():
                line[f"{kind}, ours"], line[f"{kind}, reference"], attacks = _beside(mine[choose(mine)],
                                                                                    group[choose(group)])
                differs += attacks
            out.append(line | {"reference": source, "what differs": "; ".join(differs)})
    columns = ["data set", "method", *(f"{k}, {w}" for k in kinds for w in ("ours", "reference")), "reference",
               "what differs"]
    return pd.DataFrame(out, columns=columns)


def _beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[str, str, list[str]]:
    """Our number, the public one, and how the attacks and images differ."""
    if theirs.empty:
        return "", "", []
    public = theirs.iloc[0]
    number = f"{100 * public.value:.2f}" + ("" if math.isnan(public.sd) else f" (sd {100 * public.sd:.2f})")
    same = ours[((ours["eps"] - public.eps).abs() < 1e-4) & (ours["threat"] == public.threat)]
    if same.empty:
        return NOT_RUN, number, []
    best = max(same.itertuples(), key=lambda row: (row.n, len(row.attack)))
    there = public.images if best.attack == public.attack else f"{attack_label(public.attack)}, {public.images}"
    differs = f"{_header(best.attack, best.threat, best.eps)} on {best.n:,} images (there {there})"
    return percent(best.value, best.low, best.high), number, [differs]


def _setting_differs(spec, store: Store, label: str, reference) -> list[str]:
    record = store.run(spec)
    pixels = spec.model.upsample or spec.data.crop or spec.data.image_size
    out = [] if label == reference.dataset else [f"{label} (there {reference.dataset})"]
    out += [f"{record['train_images']:,} training images"] if record else []
    out += [] if spec.model.arch == reference.arch else [f"{spec.model.arch} (there {reference.arch})"]
    out += [] if pixels == reference.resolution else [f"{pixels} pixels (there {reference.resolution})"]
    if spec.weights is not None:
        start = reference.start if Path(spec.weights.file).stem == reference.start_file else spec.weights.file
    elif spec.source is None:
        start = "random weights"
    else:
        s = spec.source
        kind = method_label(s.method.name)
        kind += "" if s.method.objective == "natural" else f" {eps_label(s.attack.eps, s.attack.threat)}"
        start = f"{dataset_label(s.data.name)}, {kind}"
    return out + ([] if start == reference.start else [f"start {start} (there {reference.start})"])


# -- provenance -------------------------------------------------------------------------------------------------------
def provenance_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Where the numbers come from: tasks, hours, device, commit and torch version per kind of work, and their sum."""
    names = {"clean": "evaluation, clean", "pgd": "evaluation, PGD", "autoattack": "evaluation, AutoAttack or part"}
    kinds: dict[Task, str] = {}
    for job in jobs:
        spec = job.spec
        while spec is not None:
            kinds[Task(spec)] = "fine-tuning" if spec.source or spec.weights else "training from random weights"
            spec = spec.source
        kinds |= {Task(job.spec, e): names[e.kind] for e in job.evals}
    entries = [{"kind": kind, **(store.provenance(task) or {})} for task, kind in kinds.items()]
    frame = pd.DataFrame(entries, columns=["kind", "seconds", "device", "commit", "changed", "versions"])
    order = [k for k in ("training from random weights", "fine-tuning", *names.values()) if k in set(frame["kind"])]
    lines = [_provenance_line(kind, frame[frame["kind"] == kind]) for kind in order]
    return pd.DataFrame([*lines, _provenance_line("all", frame)])


def _provenance_line(kind: str, frame: pd.DataFrame) -> dict[str, str]:
    done = frame.dropna(subset="seconds")

    def listed(values) -> str:
        return ", ".join(_unique(values)) or NOT_RUN

    commits = (f"{row.commit[:7]} with changes" if row.changed else row.commit[:7] for row in done.itertuples())
    return {"work": kind, "tasks done": f"{len(done)} of {len(frame)}", "hours": f"{done['seconds'].sum() / 3600:.3g}",
            "device": listed(done["device"]), "commit": listed(commits),
            "torch": listed(versions["torch"] for versions in done["versions"])}


# -- the page of tables -----------------------------------------------------------------------------------------------
def transfer_tables(store: Store, jobs: Sequence[Job]) -> str:
    """The tables of notebook 01 as one Markdown page, from stored results alone: accuracies, paired differences, and our
    numbers next to public ones."""
    tunes = [job for job in jobs if job.spec.source or job.spec.weights]
    of_targets = table.rows(store, tunes)
    paired = paired_rows(store, tunes)
    parts = [f"# Robustness transfer, preset {store.preset}", "Accuracy in percent.", caption(of_targets),
             to_markdown(accuracy_table(of_targets)), "## Paired differences",
             "In points, on the same test images.", reading(paired), to_markdown(paired_table(paired)),
             "## Next to public numbers",
             f"TWINS-AT minus AT, mean over five data sets: {reported()} points. Public re-runs, TWINS-TRADES minus TRADES:",
             to_markdown(reference_differences()), to_markdown(reference_table(of_targets, store, tunes))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(store: Store, number: str, text: str) -> Path:
    """Write `text` to tables/<number>.md of the store, whole or not at all."""
    path = store.root / "tables" / f"{number}.md"
    atomic_write(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return path


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


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def _header(attack: str, threat: str, eps: float) -> str:
    return "clean" if attack == "none" else f"{attack_label(attack)} at {eps_label(eps, threat)}"


def _last_stages(evals: Sequence, others: Sequence) -> list:
    """Evaluations that both runs have; of those with one attack and eps the one on the most images."""
    best = {}
    for e in evals:
        key = e.threat, e.eps, e.attack_name
        if e in others and (key not in best or e.images > best[key].images):
            best[key] = e
    return list(best.values())


def _spread(found: pd.DataFrame, lines: list, index: list[tuple], names: tuple[str, ...],
            cell: Callable[[float, float, float], str]) -> pd.DataFrame:
    """One text column per attack (clean, PGD, AutoAttack; each by eps), one line per entry of `lines`.

    A measurement without a result is "not run"; in a line of means it stays empty if it has no mean over that many.
    """
    kind = {a: 0 if a == "none" else 1 if a.startswith("pgd") else 2 for a in found["attack"].unique()}
    keys = _unique(zip(found["threat"], found["eps"], found["attack"], strict=True))
    out = pd.DataFrame(index, columns=list(names), dtype=str)
    for threat, eps, attack in sorted(keys, key=lambda k: (kind[k[2]], k[0], k[1], len(k[2]))):
        group = found[(found["threat"] == threat) & (found["eps"] == eps) & (found["attack"] == attack)]
        at = {r.line: r for r in group.itertuples() if not math.isnan(r.value)}
        empty = {k for k in lines if any(str(part).startswith("mean of") for part in k)} - set(group["line"])
        ns = sorted(group["n"].unique())
        images = f"{ns[0]:,} images" if len(ns) == 1 else f"{ns[0]:,} to {ns[-1]:,} images"
        many = len(ns) > 1
        out[f"{_header(attack, threat, eps)} ({images})"] = [
            cell(at[k].value, at[k].low, at[k].high) + (f", n = {at[k].n:,}" if many else "") if k in at
            else "" if k in empty else NOT_RUN for k in lines]
    return out
