"""Tables of notebooks 04 and 05 that compare cells, from certifications (`evidence.cells`): what each norm keeps of noise in
pre-training, and how far its stored statistics are from those that noise brings; one network for all noise levels against one for
each, strength of fine-tuning, networks of notebook 01, public numbers. Frames hold fractions, tables are text."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.smoothing import costs
from ..evidence import public
from ..evidence.accuracy import said
from ..evidence.cells import Measured, absent, select, stack
from ..specs import choices
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, dataset_label, lost_text, method_label, points, unique
from ..store.statistics import statistics
from ..store.store import Store
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED, cell_of
from .smoothing_tables import CONSTANT, NORMS, RADII, cell_names, certified_line, dagger, family, main_lines, name
from .tables import pivot

LABELS = {("batch", "plain"): "batch norm", ("batch", "restat"): "batch norm,\nre-estimated",
          ("batch", "frozen"): "batch norm,\nfrozen", ("group", "plain"): "group norm", ("layer", "plain"): "layer norm"}
LONG = {"mean_shift": "shift of the mean / sd", "log_variance": "|log ratio of variances|", "divergence": "Gaussian divergence",
        "wasserstein": "Wasserstein²"}
RADIUS = 0.25  # at which losses are told
SHOWN = ("-", "clean", "frozen", "noise0.5")  # fine-tunings whose statistics are shown; -: the start network
STRENGTHS = ("probe", "weak", "clean", "strong")  # fine-tunings on clean images, by how much they can change
ONE = Cell(pretraining="mixed", finetuning="clean", norm="group")
MANY = {"one σ → same σ": Cell(pretraining="noise*", finetuning="noise*", norm="group"),
        "clean → same σ": Cell(pretraining="clean", finetuning="noise*", norm="group"),
        "mixed → same σ": Cell(pretraining="mixed", finetuning="noise*", norm="group")}


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


def envelope(lines: pd.DataFrame) -> pd.DataFrame:
    """For each radius the line of the best noise level (the smallest of equals)."""
    ordered = lines.sort_values(["radius", "value", "sigma"], ascending=[True, False, True], kind="stable")
    return ordered.dropna(subset="value").drop_duplicates("radius")


def levels(frame: pd.DataFrame, cell: Cell = ONE) -> list[float]:
    """Noise levels that a cell is planned to be certified at."""
    return sorted(frame.loc[frame["cell"] == cell, "sigma"].unique())


def envelope_table(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """For each radius the best noise level of the one network and of each family of several, one minus several in points, and
    what the best constant answer earns at the best of the levels; what is close to such an answer is marked."""
    lines, columns = [], ("seeds", "one", "several", "difference (points)", CONSTANT)
    for label, cell in MANY.items():
        needed = [(c.at(s), s) for s in sigmas for c in (ONE, cell)]
        chosen, word = select(found, dataset, needed, RADII), absent(found, dataset, needed)
        for i, r in enumerate(RADII):
            numbers = ["0", word, word, word, word]
            if chosen:
                best = [_best({s: chosen[c.at(s), s] for s in sigmas}, i) for c in (ONE, cell)]
                texts, (ours, theirs) = zip(*best, strict=True)
                chance = max(m.earned(r) for by_seed in chosen.values() for m in by_seed.values())
                numbers = [str(len(ours)), *texts, points(*stats.crossed_mean(ours - theirs)[:3]), f"{100 * chance:.1f}"]
            lines.append({"data set": dataset_label(dataset), "one network": f"{name(ONE.pretraining)} → {name(ONE.finetuning)}",
                          "one for each level": label, "r": f"{r:g}", **dict(zip(columns, numbers, strict=True))})
    return pd.DataFrame(lines)


def _best(by_level: dict[float, dict[int, Measured]], i: int) -> tuple[str, np.ndarray]:
    """The largest accuracy over the levels at the i-th radius in words, and its masks."""
    masks = {s: stack(by_seed, RADII)[..., i].astype(float) for s, by_seed in by_level.items()}
    s = max(masks, key=lambda level: masks[level].mean())
    return f"{100 * masks[s].mean():.1f} (σ {s:g}){dagger(any(m.constant for m in by_level[s].values()))}", masks[s]


def cost_table(store: Store, found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """Image passes of training (one training pass counts as three) and of certification at all noise levels, one network
    against one for each level; means over seeds. The line of the one network has the draws, images and seeds that it shares with
    the first of the others that is there."""
    def needed(cell: Cell) -> list[tuple[Cell, float]]:
        return [(c.at(s), s) for s in sigmas for c in (ONE, cell)]

    first, lines = next((cell for cell in MANY.values() if select(found, dataset, needed(cell), ())), ONE), []
    for label, cell in {"one network": ONE, **MANY}.items():
        beside = needed(first if cell == ONE else cell)
        chosen, cells = select(found, dataset, beside, ()), [absent(found, dataset, beside)] * 4
        if chosen:
            spent = [[costs([chosen[c.at(s), s][seed] for s in sigmas], store) for c in (ONE, cell)]
                     for seed in next(iter(chosen.values()))]
            one, mine = np.mean(spent, axis=0)
            cells = [*(f"{x / 1e6:.3g} M" for x in (*mine, mine.sum())), f"{one.sum() / mine.sum():.2f}"]
        lines.append([label, *cells])
    return pd.DataFrame(lines, columns=["networks", "training", "certification", "all", "one / these"])


def abstention_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of test images without an answer, for cells certified without a look at the labels."""
    lines = frame[frame["measure"] == "abstain_rate"]
    cells = [cell_names(r.dataset, r.cell) | {"σ": f"{r.sigma:g}", "n": f"{r.n:,}", "images": f"{r.images:,}",
                                              "abstains ± SE": f"{100 * r.value:.1f} ± {100 * r.se:.1f}"}
             for r in lines.itertuples()]
    return pd.DataFrame(cells, columns=["data set", "pre-training", "fine-tuning", "norm", "σ", "n", "images", "abstains ± SE"])


def strengths(frame: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Average certified radius, mean over the noise levels (as are the ends of its interval, which makes it no shorter than it
    should be), by pre-training and strength of clean fine-tuning (`STRENGTHS`), with its learning rate and epochs; reference:
    fine-tuned with noise of each level. chance: of the best constant answer; constant: whether it is close to one at one of the
    levels; absent: what stands for a missing one."""
    optims = {(job.spec.data.name, cell_of(job).finetuning): job.spec.optim for job in jobs if cell_of(job)}
    wanted = unique((d, c) for d, c in zip(frame["dataset"], frame["cell"], strict=True) if c.finetuning in STRENGTHS)
    main, out = main_lines(frame), []
    for dataset in unique(d for d, c in wanted if c.norm == "group"):
        sigmas = levels(frame[frame["dataset"] == dataset])
        for pretraining in ("mixed", "clean"):
            cells = [Cell(pretraining=pretraining, finetuning=f, norm="group") for f in (*STRENGTHS, "noise*")]
            for cell in (c for c in cells if (dataset, c) in wanted or c is cells[-1]):
                lines = family(main, dataset, cell, sigmas, "acr").drop_duplicates("sigma")
                whole, optim = 0 < lines["value"].count() == len(sigmas), optims.get((dataset, cell.finetuning))
                columns = ("value", "low", "high", "images", "seeds", "chance")
                numbers = [float(lines[k].mean()) if whole else math.nan for k in columns]
                rate = [optim.lr, optim.epochs] if optim else [math.nan, math.nan]
                out.append([dataset, pretraining, cell.finetuning, *rate, *numbers, whole and bool(lines["constant"].any()),
                            "" if whole else said(lines)])
    return pd.DataFrame(out, columns=["dataset", "pretraining", "finetuning", "lr", "epochs", "acr", "low", "high", "images",
                                      "seeds", "chance", "constant", "absent"])


def strength_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`strengths` as text, and what share of the radius after fine-tuning with noise each keeps; the best constant answer too."""
    lines = []
    for _, group in frame.groupby(["dataset", "pretraining"], sort=False):
        (noisy,) = group[group["finetuning"] == "noise*"].itertuples()
        for r in group.itertuples():
            word = r.absent or noisy.absent
            shares = [word or f"{100 * x / noisy.acr:.0f} %" for x in (r.acr, r.chance)]
            lines.append({"data set": dataset_label(r.dataset), "pre-training": name(r.pretraining),
                          "fine-tuning": name(r.finetuning), "lr": "" if math.isnan(r.lr) else f"{r.lr:g}",
                          "epochs": "" if math.isnan(r.epochs) else f"{r.epochs:.0f}",
                          "ACR, mean over σ": r.absent or f"{r.acr:.3f}{dagger(r.constant)}", "of that with noise": shares[0],
                          f"{CONSTANT}, of that with noise": shares[1]})
    return pd.DataFrame(lines)


def crossed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Certified accuracy of the networks of notebook 01, which saw no noise, by noise level, with the average certified radius,
    the share of the class that is chosen most often, and of the label that is most frequent."""
    radii = (0.0, 0.25, 0.5)
    crossed = frame[frame["cell"].map(lambda c: c.pretraining == CROSSED).astype(bool)]
    lines = [{"data set": dataset_label(dataset), "method": method_label(cell.finetuning), "σ": f"{sigma:g}"}
             | certified_line(frame, dataset, cell, sigma, radii)
             for dataset, cell, sigma in unique(zip(crossed["dataset"], crossed["cell"], crossed["sigma"], strict=True))]
    more = ["seeds", *(f"r {r:g}" for r in radii), "one class", CONSTANT, "ACR ± SE"] if lines else []
    return pd.DataFrame(lines, columns=["data set", "method", "σ", *more])


def confidence_table(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """One network: share of images whose label gets more than half of the votes, and nearly all; the best constant answer gives
    all votes to the most frequent label."""
    lines = []
    for sigma in sigmas:
        shares, word = label_shares(found, dataset, ONE, sigma), absent(found, dataset, [(ONE, sigma)])
        chance = max((m.chance for m in found if (m.dataset, m.cell) == (dataset, ONE)), default=0.0)
        numbers = [np.mean(shares > 0.5), np.mean(shares > 0.99), chance] if len(shares) else []
        lines.append([f"{sigma:g}", *([f"{100 * x:.0f} %" for x in numbers] or [word] * 3)])
    return pd.DataFrame(lines, columns=["σ", "votes above one half", "votes above 0.99", CONSTANT])


def label_shares(found: Sequence[Measured], dataset: str, cell: Cell, sigma: float) -> np.ndarray:
    """Share of votes for the label of every image and seed, of the certification with most draws that did not look at labels."""
    mine = [m for m in found if m.key == (dataset, cell.at(sigma), sigma) and not m.certification.stop_if_wrong and not m.absent]
    most = max((m.certification.n for m in mine), default=0)
    return np.concatenate([m.shares.label for m in mine if m.certification.n == most]) if mine else np.empty(0)


def public_table(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str) -> pd.DataFrame:
    """Envelope over noise levels, ours and public, at the radii that most publish; what differs stands beside."""
    radii, main, sigmas = (0.25, 0.5, 0.75, 1.0), main_lines(frame), levels(frame)
    networks = [job.spec.model.arch for job in jobs if job.spec.data.name == dataset and cell_of(job) == ONE]
    lines = []
    for label, cell in {"one network, mixed → clean": ONE, **MANY}.items():
        mine = family(main, dataset, cell, sigmas)
        best, word = list(envelope(mine).itertuples()), said(mine)
        at, about = {r.radius: f"{100 * r.value:.1f}{dagger(r.constant)}" for r in best}, next(iter(best), None)
        lines.append({"who": "ours", "method": label, "network": next(iter(networks), ""),
                      **{f"r {r:g}": at.get(r, word) for r in radii},
                      "images": f"first {about.images:,} of a fixed order" if about else "",
                      "n": f"{about.n:,}" if about else "", "α": f"{about.alpha:g}" if about else "", "source": ""})
    chance = family(main, dataset, ONE, sigmas).groupby("radius")["chance"].max()
    lines.append(lines[0] | {"who": "chance", "method": f"{CONSTANT}, same images", "network": ""} | {
        f"r {r:g}": f"{100 * chance[r]:.1f}" if r in chance else NOT_RUN for r in radii})
    theirs = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc' and sigma.isna()")
    for (method, source), group in theirs.groupby(["method", "source"], sort=False):
        at, first = dict(zip(group["radius"], group["value"], strict=True)), group.iloc[0]
        lines.append({"who": "public", "method": method, "network": first["network"],
                      **{f"r {r:g}": f"{100 * at[r]:.1f}" if r in at else "" for r in radii}, "images": first["images"],
                      "n": first["n"], "α": first["alpha"], "source": source})
    return pd.DataFrame(lines)
