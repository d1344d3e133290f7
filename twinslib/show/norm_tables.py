"""Tables and sentences of notebook 04, from finished certifications (`smoothing_cells`): what each norm keeps of noise in
pre-training, and how far its stored statistics are from those that noise brings. Frames hold fractions, tables are text."""

import math
from collections.abc import Sequence

import pandas as pd

from ..base import stats
from ..evidence.cells import Measured, absent, lost, select, stack
from ..specs import choices
from ..specs.labels import dataset_label, lost_text, points, unique
from ..store.jobs import Job
from ..store.statistics import statistics
from ..store.store import DIVERGED, NOT_RUN, Store
from ..studies.rules import Cell
from .smoothing_tables import CONSTANT, NORMS, NOTHING, dagger, name

LABELS = {("batch", "plain"): "batch norm", ("batch", "restat"): "batch norm,\nre-estimated",
          ("batch", "frozen"): "batch norm,\nfrozen", ("group", "plain"): "group norm", ("layer", "plain"): "layer norm"}
LONG = {"mean_shift": "shift of the mean / sd", "log_variance": "|log ratio of variances|", "divergence": "Gaussian divergence",
        "wasserstein": "Wasserstein²"}
SHOWN = ("-", "clean", "frozen", "noise0.5")  # fine-tunings whose statistics are shown; -: the start network


def losses(found: Sequence[Measured], dataset: str, sigmas: Sequence[float], radius: float = 0.25) -> pd.DataFrame:
    """Mixed pre-training, by noise level: certified accuracy at `radius` after fine-tuning with noise of the level and on clean
    images, for each norm and for batch norm with frozen or re-estimated statistics; and what is lost (lost, low, high: paired,
    95 %). chance: what the best constant answer earns; constant: whether the clean fine-tuning is close to one. NaN where
    something is missing, absent says why."""
    out, gone = [], lost(found)
    for sigma in sigmas:
        for norm, kind in (("batch", "plain"), ("batch", "restat"), ("batch", "frozen"), ("group", "plain"), ("layer", "plain")):
            fine = "frozen" if kind == "frozen" else "clean"
            cell = Cell(pretraining="mixed", finetuning=fine, norm=norm, restat=kind == "restat")
            best = Cell(pretraining="mixed", finetuning="noise*", norm=norm).at(sigma)
            chosen, word = select(found, dataset, [(cell, sigma), (best, sigma)], (radius,)), ""
            if not chosen:
                word = absent(gone, dataset, [(cell, sigma), (best, sigma)])
            numbers, seeds, images, chance, constant = [math.nan] * 5, 0, 0, math.nan, False
            if chosen:
                after, before = (stack(chosen[c, sigma], (radius,))[..., 0].astype(float) for c in (cell, best))
                fall = stats.crossed_mean(before - after)
                numbers, (seeds, images) = [before.mean(), after.mean(), *fall[:3]], after.shape
                mine = list(chosen[cell, sigma].values())
                chance = mine[0].chance * (radius <= mine[0].certification.plan.ceiling)
                constant = any(m.constant for m in mine)
            out.append([dataset, sigma, norm, kind, radius, images, seeds, chance, constant, *numbers, word])
    return pd.DataFrame(out, columns=["dataset", "sigma", "norm", "statistics", "radius", "images", "seeds", "chance", "constant",
                                      "noisy", "clean", "lost", "low", "high", "absent"])


def loss_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`losses` as text; "recovered": the share of plain batch norm's loss that is not lost, where that is clearly above 0."""
    lines = []
    for row in frame.itertuples():
        plain = frame[(frame["sigma"] == row.sigma) & (frame["norm"] == "batch") & (frame["statistics"] == "plain")]
        base = plain["lost"].iloc[0]
        other = row.statistics != "plain" and plain["low"].iloc[0] > 0 and not math.isnan(row.lost)
        lines.append({
            "σ": f"{row.sigma:g}", "norm": LABELS[row.norm, row.statistics].replace("\n", " "), "seeds": str(row.seeds),
            f"certified at r {row.radius:g} after noisy fine-tuning": _share(row.noisy, row.absent),
            "after clean fine-tuning": _share(row.clean, row.absent) + dagger(row.constant),
            CONSTANT: _share(row.chance, row.absent),
            "lost (points)": row.absent if math.isnan(row.lost) else points(row.lost, row.low, row.high),
            "recovered": f"{100 * (base - row.lost) / base:.0f} %" if other else ""})
    return pd.DataFrame(lines)


def loss_reading(frame: pd.DataFrame) -> str:
    """What each norm loses, by noise level."""
    out = []
    for sigma, group in frame.groupby("sigma", sort=True):
        done = group.dropna(subset="lost")
        if len(done):
            parts = "; ".join(f"{LABELS[r.norm, r.statistics]} {100 * r.lost:.1f}".replace("\n", " ")
                              + ("" if r.low > 0 or r.high < 0 else " (unclear)") + dagger(r.constant) for r in done.itertuples())
            out.append(f"σ {sigma:g}: {parts}")
    tail = "".join(f" {word.capitalize()}: {(frame['absent'] == word).sum()} of {len(frame)}."
                   for word in unique(frame["absent"]) if word)
    if not out and frame["absent"].str.startswith(DIVERGED).any():
        return tail.strip()
    marked = " †: what is left is close to a constant answer." if frame["constant"].any() else ""
    return (f"Points of certified accuracy at r {frame['radius'].iloc[0]:g} lost from noisy to clean fine-tuning, unclear where "
            f"the interval contains 0: {'. '.join(out)}.{tail}{marked}" if out else NOTHING)


def mismatch_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The four measures of mismatch (`noise.mismatch`), mean over layers and seeds, by network and noise level."""
    lines = [{"network": mismatch_name(cell), "data set": dataset_label(dataset), "noise σ": f"{sigma:g}",
              "layers": group["layer"].nunique(), **{LONG[k]: f"{group[k].mean():.3g}" for k in choices.MISMATCHES}}
             for (dataset, cell, sigma), group in frame.groupby(["dataset", "cell", "sigma"], sort=False)]
    return pd.DataFrame(lines, columns=["network", "data set", "noise σ", "layers", *LONG.values()])


def mismatch_name(text: str) -> str:
    """mixed/-/batch: the start network itself."""
    pretraining, finetuning, _ = text.split("/")
    return f"{name(pretraining)}, before transfer" if finetuning == "-" else f"{name(pretraining)} → {name(finetuning)}"


def mismatch_reading(frame: pd.DataFrame, sigma: float = 0.5) -> str:
    """Which network's stored statistics are farthest from those that noise brings."""
    here = frame[frame["sigma"] == sigma]
    if here.empty:
        return frame.attrs.get("lost") or "No statistics are measured yet."
    mean = here.groupby("cell", sort=False)["divergence"].mean().sort_values(ascending=False)
    parts = "; ".join(f"{mismatch_name(c)} {x:.3g}" for c, x in mean.items())
    return f"Mean Gaussian divergence over layers at σ {sigma:g}, largest first: {parts}. {frame.attrs.get('lost', '')}".strip()


def transfer_reading(found: Sequence[Measured], dataset: str, sigma: float, radius: float = 0.25) -> str:
    """Mixed minus clean and minus one-level pre-training after clean fine-tuning, for each norm, paired; marked where the other
    is close to a constant answer."""
    out, gone = [], lost(found)
    for norm in NORMS:
        cells = [Cell(pretraining=p, finetuning="clean", norm=norm) for p in ("mixed", "clean", f"noise{float(sigma)}")]
        for other in cells[1:]:
            chosen = select(found, dataset, [(cells[0], sigma), (other, sigma)], (radius,))
            if chosen:
                ours, theirs = (stack(chosen[c, sigma], (radius,))[..., 0].astype(float) for c in (cells[0], other))
                constant = any(m.constant for m in chosen[other, sigma].values())
                out.append(f"{NORMS[norm]}, against {name(other.pretraining)}{dagger(constant)} "
                           f"{points(*stats.crossed_mean(ours - theirs)[:3])}")
            elif (word := absent(gone, dataset, [(cells[0], sigma), (other, sigma)])) != NOT_RUN:
                out.append(f"{NORMS[norm]}, against {name(other.pretraining)} {word}")
    return (f"{dataset_label(dataset)}, clean fine-tuning, certified at σ {sigma:g} and r {radius:g}, mixed pre-training minus "
            f"another in points: {'; '.join(out)}." if out else NOTHING)


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


def _share(value: float, absent: str) -> str:
    return absent if math.isnan(value) else f"{100 * value:.1f}"
