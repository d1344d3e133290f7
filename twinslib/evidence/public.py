"""Public numbers of others next to ours, from twinslib/reference/*.csv, where each line names its source.

The per-data-set tables of TWINS itself are not known to us, so none of these numbers comes from them.
"""

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from ..specs.jobs import Job
from ..specs.labels import DATASETS, NOT_RUN, attack_label, dataset_label, eps_label, header, method_label, percent, unique
from ..specs.strength import strength
from ..store.store import Store
from .accuracy import estimates, kinds, one_line

NUMBERS = ("sd", "sigma", "radius", "epoch", "lr", "train_robust_error", "test_clean_error", "test_robust_error")  # or empty


def _read(name: str) -> pd.DataFrame:
    with (resources.files("twinslib") / "reference" / name).open() as file:
        return pd.read_csv(file, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, [""]))


def reference_rows() -> pd.DataFrame:
    """Public numbers near those of TWINS: re-runs by others, baselines by its authors; fractions. The two sources used different
    hyper-parameters; do not compare a method of one with a method of the other."""
    return _read("twins.csv")


def reported(method: str = "twins_at", baseline: str = "at") -> str:
    """The claimed effect of a method against its baseline, with how sure it is."""
    frame = _read("reported.csv").query("method == @method and baseline == @baseline")
    (certainty,) = frame["certainty"].unique()
    effects = (f"{100 * row.difference:+.2f} {row.metric.removesuffix('_acc')}" for row in frame.itertuples())
    return f"reported, {certainty}: " + ", ".join(effects)


def overfitting_rows() -> pd.DataFrame:
    """Robust overfitting from random weights in public logs (Rice et al. 2020); errors as fractions, NaN where not stated.

    what: epoch (a point of the course; epochs count from 0 and are measured at their end), best (the lowest robust test error,
    so chosen on the test images) or last (mean of the last five epochs). Robust test error is PGD's at its last iterate;
    train_robust_error is counted while an epoch trains, on augmented images.
    """
    return _read("overfitting.csv")


def overfitting_gaps() -> pd.DataFrame:
    """Of `overfitting_rows`, one line per data set, model and schedule: epochs, rates, source, best_epoch (NaN where not stated),
    robust test error best and last, gap (last - best)."""
    rows, key = overfitting_rows(), ["dataset", "model", "schedule", "epochs", "rates", "source"]
    best, last = (rows[rows["what"] == what].set_index(key) for what in ("best", "last"))
    out = pd.DataFrame({"best_epoch": best["epoch"], "best": best["test_robust_error"],
                        "last": last["test_robust_error"].reindex(best.index)})
    return out.assign(gap=out["last"] - out["best"]).reset_index()


def smoothing_rows() -> pd.DataFrame:
    """Certified accuracy of others by randomized smoothing, one number per line, fractions; none is of arXiv 2312.09020 itself.

    sigma: noise level, NaN where the best of several is given for each radius. metric: certified_acc at radius (L2, [0, 1]
    pixels), acr or abstain_rate. images, n, alpha: what it stands on, as text; alpha as the radii in the logs show it, where
    that is not what the text says.
    """
    return _read("smoothing.csv")


def reference_differences() -> pd.DataFrame:
    """TWINS-TRADES minus TRADES in points as one public source re-ran both, by data set, and their mean."""
    rows = reference_rows()
    both = rows[rows["source"].isin(rows.loc[rows["method"] == "twins_trades", "source"])]
    both = both[both["dataset"].isin({reference for _, reference in DATASETS.values()})]
    wide = both.pivot_table(index="dataset", columns=["method", "attack"], values="value", sort=False)
    gains = 100 * (wide["twins_trades"] - wide["trades"])
    gains.loc[f"mean of {len(gains)} data sets"] = gains.mean()
    gains.columns = [header(a, "linf", both.loc[both["attack"] == a, "eps"].iloc[0]) for a in gains.columns]
    text = gains.map(lambda x: f"{round(x, 2) + 0.0:+.2f}").rename_axis("data set", axis=0).reset_index()
    (source,) = both["source"].unique()
    return text.assign(source=source)


def reference_table(rows: pd.DataFrame, store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Our accuracies next to the public reference numbers, and what differs, taken from the specs of our runs.

    One line per data set, method and source that has numbers for both; of our attacks of the reference's kind (PGD;
    AutoAttack or a part of it), at its threat and eps, the one on the most images, of equals the strongest.
    """
    ours, reference = one_line(estimates(rows)), reference_rows()
    specs = {(job.spec.data.name, job.spec.method.name): job.spec for job in reversed(jobs)}
    names = {"clean": "none", "PGD": "pgd", "AutoAttack": "autoattack"}
    out = []
    for dataset in unique(rows["dataset"]):
        label, counterpart = DATASETS.get(dataset, (dataset, None))
        theirs = reference[reference["dataset"] == counterpart]
        for (source, method), group in theirs.groupby(["source", "method"], sort=False):
            mine = ours[(ours["dataset"] == dataset) & (ours["method"] == method)]
            if mine.empty or (dataset, method) not in specs:
                continue
            line = {"data set": label, "method": method_label(method)}
            differs = _setting_differs(specs[dataset, method], store, label, group.iloc[0])
            for kind, word in names.items():
                line[f"{kind}, ours"], line[f"{kind}, reference"], attacks = _beside(
                    mine[kinds(mine) == word], group[kinds(group) == word])
                differs += attacks
            out.append(line | {"reference": source, "what differs": "; ".join(differs)})
    columns = ["data set", "method", *(f"{k}, {w}" for k in names for w in ("ours", "reference")), "reference",
               "what differs"]
    return pd.DataFrame(out, columns=columns)


def _beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[str, str, list[str]]:
    """Our number, the public one, and how the attacks and images differ."""
    if theirs.empty:
        return "", "", []
    public = theirs.iloc[0]
    number = f"{100 * public.value:.2f}" + ("" if math.isnan(public.sd) else f" (sd {100 * public.sd:.2f})")
    same = ours[((ours["eps"] - public.eps).abs() < 1e-4) & (ours["threat"] == public.threat)]
    done = same.dropna(subset="value")
    if done.empty:
        return NOT_RUN if same.empty else same["absent"].iloc[0], number, []
    best = max(done.itertuples(), key=lambda row: (row.n, strength(row.attack)))
    there = public.images if best.attack == public.attack else f"{attack_label(public.attack)}, {public.images}"
    differs = f"{header(best.attack, best.threat, best.eps)} on {best.n:,} images (there {there})"
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
