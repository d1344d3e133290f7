"""Tables of notebook 04, from finished certifications (`evidence.cells`): what each norm keeps of noise in pre-training, and how
far its stored statistics are from those that noise brings. Frames hold fractions, tables are text."""

import math
from collections.abc import Sequence

import pandas as pd

from ..base import stats
from ..evidence.cells import Measured, absent, select, stack
from ..specs import choices
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, dataset_label, lost_text, points
from ..store.statistics import statistics
from ..store.store import Store
from ..studies.rules import Cell
from .smoothing_tables import CONSTANT, NORMS, dagger, name
from .tables import pivot

LABELS = {("batch", "plain"): "batch norm", ("batch", "restat"): "batch norm,\nre-estimated",
          ("batch", "frozen"): "batch norm,\nfrozen", ("group", "plain"): "group norm", ("layer", "plain"): "layer norm"}
LONG = {"mean_shift": "shift of the mean / sd", "log_variance": "|log ratio of variances|", "divergence": "Gaussian divergence",
        "wasserstein": "Wasserstein²"}
RADIUS = 0.25  # at which losses are told
SHOWN = ("-", "clean", "frozen", "noise0.5")  # fine-tunings whose statistics are shown; -: the start network


def losses(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """Mixed pre-training, by noise level: certified accuracy at RADIUS after fine-tuning with noise of the level and on clean
    images, for each norm and for batch norm with frozen or re-estimated statistics; and what is lost (lost, low, high: paired,
    95 %). chance: what the best constant answer earns; constant: whether the clean fine-tuning is close to one. NaN where
    something is missing, absent says why."""
    out = []
    for sigma in sigmas:
        for norm, kind in LABELS:
            fine = "frozen" if kind == "frozen" else "clean"
            cell = Cell(pretraining="mixed", finetuning=fine, norm=norm, restat=kind == "restat")
            needed = [(cell, sigma), (Cell(pretraining="mixed", finetuning="noise*", norm=norm).at(sigma), sigma)]
            chosen, word = select(found, dataset, needed, (RADIUS,)), absent(found, dataset, needed)
            numbers = [0, 0, math.nan, False, *[math.nan] * 5, word]
            if chosen:
                after, before = (stack(chosen[key], (RADIUS,))[..., 0].astype(float) for key in needed)
                mine = list(chosen[cell, sigma].values())
                numbers = [after.shape[1], after.shape[0], mine[0].earned(RADIUS), any(m.constant for m in mine), before.mean(),
                           after.mean(), *stats.crossed_mean(before - after)[:3], ""]
            out.append([dataset, sigma, norm, kind, RADIUS, *numbers])
    return pd.DataFrame(out, columns=["dataset", "sigma", "norm", "statistics", "radius", "images", "seeds", "chance", "constant",
                                      "noisy", "clean", "lost", "low", "high", "absent"])


def loss_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`losses` as text; "recovered": the share of plain batch norm's loss that is not lost, where that is clearly above 0."""
    lines = []
    for row in frame.itertuples():
        same = frame[frame["sigma"] == row.sigma]
        (plain,) = same[(same["norm"] == "batch") & (same["statistics"] == "plain")].itertuples()
        other = row.statistics != "plain" and plain.low > 0 and not row.absent
        texts = [row.absent] * 4 if row.absent else [
            f"{100 * row.noisy:.1f}", f"{100 * row.clean:.1f}{dagger(row.constant)}", f"{100 * row.chance:.1f}",
            points(row.lost, row.low, row.high)]
        lines.append([f"{row.sigma:g}", LABELS[row.norm, row.statistics].replace("\n", " "), str(row.seeds), *texts,
                      f"{100 * (plain.lost - row.lost) / plain.lost:.0f} %" if other else ""])
    return pd.DataFrame(lines, columns=["σ", "norm", "seeds", f"certified at r {RADIUS:g} after noisy fine-tuning",
                                        "after clean fine-tuning", CONSTANT, "lost (points)", "recovered"])


def transfer_table(found: Sequence[Measured], dataset: str, sigma: float) -> pd.DataFrame:
    """Clean fine-tuning, certified at one level and RADIUS: mixed minus clean and minus one-level pre-training in points, for
    each norm, paired; marked where the other is close to a constant answer."""
    out = []
    for norm in NORMS:
        mixed, *others = (Cell(pretraining=p, finetuning="clean", norm=norm) for p in ("mixed", "clean", f"noise{float(sigma)}"))
        for other in others:
            needed = [(mixed, sigma), (other, sigma)]
            chosen, numbers, mark = select(found, dataset, needed, (RADIUS,)), [math.nan] * 3, ""
            if chosen:
                ours, theirs = (stack(chosen[key], (RADIUS,))[..., 0].astype(float) for key in needed)
                numbers = stats.crossed_mean(ours - theirs)[:3]
                mark = dagger(any(m.constant for m in chosen[other, sigma].values()))
            out.append([norm, f"mixed - {name(other.pretraining)} (points)", *numbers, mark, absent(found, dataset, needed)])
    found = pd.DataFrame(out, columns=["line", "column", "value", "low", "high", "mark", "absent"])
    heads = {norm: (dataset_label(dataset), label) for norm, label in NORMS.items()}
    return pivot(found, heads, ("data set", f"clean fine-tuning, σ {sigma:g}, r {RADIUS:g}"), points)


def mismatch_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The four measures of mismatch (`train.noise`), mean over layers and seeds, by network and noise level."""
    lines = [{"network": mismatch_name(cell), "data set": dataset_label(dataset), "noise σ": f"{sigma:g}",
              "layers": group["layer"].nunique(), **{LONG[k]: f"{group[k].mean():.3g}" for k in choices.MISMATCHES}}
             for (dataset, cell, sigma), group in frame.groupby(["dataset", "cell", "sigma"], sort=False)]
    return pd.DataFrame(lines, columns=["network", "data set", "noise σ", "layers", *LONG.values()])


def mismatch_name(text: str) -> str:
    """mixed/-/batch: the start network itself."""
    pretraining, finetuning, _ = text.split("/")
    return f"{name(pretraining)}, before transfer" if finetuning == "-" else f"{name(pretraining)} → {name(finetuning)}"


def shown_statistics(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Of the stored mismatches those of mixed pre-training, first seed: start network, clean, frozen and noisy fine-tuning."""
    frame = statistics(store)
    hashes = {job.spec.hash for job in jobs}
    frame = frame[frame["run"].isin(hashes) & frame["cell"].isin([f"mixed/{f}/batch" for f in SHOWN])]
    frame = frame[frame["seed"] == frame.groupby("cell")["seed"].transform("min")]
    gone = [dict(job.labels) for job in jobs if store.run(job.spec) is None and store.absent(job) != NOT_RUN]
    cells = [(cell.get("pretraining"), cell.get("finetuning", "-"), cell.get("norm")) for cell in gone]
    frame.attrs["lost"] = lost_text(mismatch_name("/".join(cell)) for cell in cells
                                    if cell[::2] == ("mixed", "batch") and cell[1] in SHOWN)
    return frame
