"""Tables and sentences of notebook 05, from finished certifications (`smoothing_cells`): one network for all noise levels against
one for each, strength of fine-tuning, networks of notebook 01, public numbers. Frames hold fractions, tables are text."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.smoothing import costs
from ..evidence import public
from ..evidence.cells import Measured, absent, lost, planned, select, stack
from ..specs import labels
from ..specs.labels import dataset_label, method_label, percent, points, unique
from ..store.jobs import Job
from ..store.store import DIVERGED, NOT_RUN, Store
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED, cell_of
from .smoothing_tables import CONSTANT, NOTHING, RADII, dagger, main_lines, name, norm_name, said

STRENGTHS = ("probe", "weak", "clean", "strong")  # fine-tunings on clean images, by how much they can change
ONE = Cell(pretraining="mixed", finetuning="clean", norm="group")
MANY = {"one σ → same σ": Cell(pretraining="noise*", finetuning="noise*", norm="group"),
        "clean → same σ": Cell(pretraining="clean", finetuning="noise*", norm="group"),
        "mixed → same σ": Cell(pretraining="mixed", finetuning="noise*", norm="group")}


def family(frame: pd.DataFrame, dataset: str, cell: Cell, sigmas: Sequence[float],
           measure: str = "certified_acc") -> pd.DataFrame:
    """Of `estimates`, the lines of a cell at each noise level, noise* as the network made for that level."""
    out = []
    for sigma in sigmas:
        c = cell.at(sigma)
        out.append(frame[(frame["dataset"] == dataset) & (frame["sigma"] == sigma) & (frame["pretraining"] == c.pretraining)
                         & (frame["finetuning"] == c.finetuning) & (frame["norm"] == c.norm) & (frame["restat"] == c.restat)
                         & (frame["measure"] == measure)])
    return pd.concat(out) if out else frame.iloc[:0]


def envelope(lines: pd.DataFrame) -> pd.DataFrame:
    """For each radius the line of the best noise level (the smallest of equals)."""
    ordered = lines.sort_values(["radius", "value", "sigma"], ascending=[True, False, True], kind="stable")
    return ordered.drop_duplicates("radius")


def levels(jobs: Sequence[Job], cell: Cell = ONE) -> list[float]:
    """Noise levels that a cell is planned to be certified at."""
    return sorted({p.certification.sigma for p in planned(jobs) if p.cell == cell})


def envelope_table(found: Sequence[Measured], dataset: str, sigmas: Sequence[float],
                   radii: Sequence[float] = RADII) -> pd.DataFrame:
    """For each radius the best noise level of the one network and of each family of several, one minus several in points, and
    what the best constant answer earns at the best of the levels; what is close to such an answer is marked."""
    lines, gone = [], lost(found)
    for label, cell in MANY.items():
        needed = [(c.at(s), s) for s in sigmas for c in (ONE, cell)]
        chosen, word = select(found, dataset, needed, radii), absent(gone, dataset, needed)
        for i, r in enumerate(radii):
            line = {"data set": dataset_label(dataset), "one network": f"{name(ONE.pretraining)} → {name(ONE.finetuning)}",
                    "one for each level": label, "r": f"{r:g}", "seeds": "0", "one": word, "several": word,
                    "difference (points)": word, CONSTANT: word}
            if chosen:
                best = []
                for c in (ONE, cell):
                    masks = {s: stack(chosen[c.at(s), s], radii)[..., i].astype(float) for s in sigmas}
                    s = max(sigmas, key=lambda s, masks=masks: masks[s].mean())
                    best.append((f"{100 * masks[s].mean():.1f} (σ {s:g})"
                                 + dagger(any(m.constant for m in chosen[c.at(s), s].values())), masks[s]))
                (one, ours), (several, theirs) = best
                every = [m for by_seed in chosen.values() for m in by_seed.values()]
                chance = max(m.chance * (r <= m.certification.plan.ceiling) for m in every)
                line |= {"seeds": str(len(ours)), "one": one, "several": several, CONSTANT: f"{100 * chance:.1f}",
                         "difference (points)": points(*stats.crossed_mean(ours - theirs)[:3])}
            lines.append(line)
    return pd.DataFrame(lines)


def envelope_reading(frame: pd.DataFrame) -> str:
    """How the one network stands against several, by family, from `envelope_table`."""
    out = []
    for label, group in frame.groupby("one for each level", sort=False):
        words = group["difference (points)"]
        done = group[words.str.startswith(("+", "-"))]
        if words.str.startswith(DIVERGED).any():
            out.append(f"against {label} not known, as a network {DIVERGED}")
        if len(done):
            out.append(f"against {label} the difference is " + ", ".join(
                f"{text.split(' ')[0]} at r {r}" for r, text in zip(done["r"], done["difference (points)"], strict=True)))
    return "One network (mixed → clean), points: " + "; ".join(out) + "." if out else NOTHING


def cost_table(store: Store, found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> pd.DataFrame:
    """Image passes of training (one training pass counts as three) and of certification at all noise levels, one network
    against one for each level; means over seeds."""
    lines, gone = [], lost(found)
    for label, cell in {"one network": ONE, **MANY}.items():
        needed = [(c.at(s), s) for s in sigmas for c in (ONE, cell)]
        chosen = select(found, dataset, needed, ())
        seeds = list(next(iter(chosen.values()))) if chosen else []
        spent = np.array([[costs([chosen[c.at(s), s][seed] for s in sigmas], store) for c in (ONE, cell)] for seed in seeds])
        if not seeds:
            word = absent(gone, dataset, needed)
            lines.append(dict.fromkeys(("training", "certification", "all", "one / these"), word) | {"networks": label})
            continue
        one, mine = spent.mean(0)
        lines.append({"networks": label, "training": f"{mine[0] / 1e6:.3g} M", "certification": f"{mine[1] / 1e6:.3g} M",
                      "all": f"{mine.sum() / 1e6:.3g} M", "one / these": f"{one.sum() / mine.sum():.2f}"})
    return pd.DataFrame(lines, columns=["networks", "training", "certification", "all", "one / these"])


def abstention_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of test images without an answer, for cells certified without a look at the labels."""
    lines = frame[frame["measure"] == "abstain_rate"]
    return pd.DataFrame([{"data set": dataset_label(r.dataset), "pre-training": name(r.pretraining),
                          "fine-tuning": name(r.finetuning), "norm": norm_name(r.norm, r.restat),
                          "σ": f"{r.sigma:g}", "n": f"{r.n:,}", "images": f"{r.images:,}",
                          "abstains ± SE": f"{100 * r.value:.1f} ± {100 * r.se:.1f}"} for r in lines.itertuples()],
                        columns=["data set", "pre-training", "fine-tuning", "norm", "σ", "n", "images", "abstains ± SE"])


def strengths(frame: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Average certified radius, mean over the noise levels, by pre-training and strength of clean fine-tuning (`STRENGTHS`), with
    its learning rate times epochs; reference: fine-tuned with noise of each level. chance: of the best constant answer; constant:
    whether it is close to one at one of the levels; absent: what stands for a missing one."""
    main = main_lines(frame)
    acr = main[(main["measure"] == "acr") & (main["norm"] == "group") & ~main["restat"]]
    optims = {(job.spec.data.name, cell_of(job).finetuning): job.spec.optim for job in jobs if cell_of(job)}
    wanted = unique((p.dataset, p.cell.pretraining, p.cell.finetuning) for p in planned(jobs)
                    if p.cell.finetuning in STRENGTHS and p.cell.norm == "group")
    out = []
    for dataset in unique(d for d, *_ in wanted):
        sigmas = sorted({p.certification.sigma for p in planned(jobs) if (p.dataset, p.cell) == (dataset, ONE)})
        for pretraining in ("mixed", "clean"):
            for fine in (*(f for f in STRENGTHS if (dataset, pretraining, f) in wanted), "noise*"):
                cells = [Cell(pretraining=pretraining, finetuning=fine, norm="group").at(s) for s in sigmas]
                found = [acr[(acr["dataset"] == dataset) & (acr["sigma"] == s) & (acr["pretraining"] == c.pretraining)
                             & (acr["finetuning"] == c.finetuning)] for c, s in zip(cells, sigmas, strict=True)]
                whole = bool(found) and all(len(lines) for lines in found)
                value, chance = ([float(np.mean([lines[k].iloc[0] for lines in found])) for k in ("value", "chance")] if whole
                                 else [math.nan] * 2)
                optim = optims.get((dataset, fine))
                word = "" if whole else said(frame, dataset, *zip(cells, sigmas, strict=True))
                out.append([dataset, pretraining, fine, optim.lr if optim else math.nan, optim.epochs if optim else math.nan,
                            value, chance, whole and any(lines["constant"].iloc[0] for lines in found), word])
    return pd.DataFrame(out, columns=["dataset", "pretraining", "finetuning", "lr", "epochs", "acr", "chance", "constant",
                                      "absent"])


def strength_reading(frame: pd.DataFrame) -> str:
    """How much of the noisy reference each strength keeps, mixed pre-training, and how much a constant answer would."""
    out = []
    for dataset, group in frame[frame["pretraining"] == "mixed"].groupby("dataset", sort=False):
        reference = group.loc[group["finetuning"] == "noise*", "acr"]
        done = group[group["finetuning"] != "noise*"].dropna(subset="acr")
        if len(reference) and reference.iloc[0] > 0 and len(done):
            kept = "; ".join(f"{name(r.finetuning)} (lr {r.lr:g}, epochs {r.epochs:.0f}) {100 * r.acr / reference.iloc[0]:.0f} %"
                             + dagger(r.constant) for r in done.itertuples())
            out.append(f"{dataset_label(dataset)}: of the average certified radius of fine-tuning with noise, mixed pre-training "
                       f"keeps {kept}; the {CONSTANT} has {100 * done['chance'].max() / reference.iloc[0]:.0f} % of it")
    gone = frame[frame.get("absent", pd.Series("", frame.index)).str.startswith(DIVERGED)]
    lost_ones = labels.lost_text(f"{name(r.pretraining)} → {name(r.finetuning)} ({dataset_label(r.dataset)})"
                                 for r in gone.itertuples())
    return labels.joined(". ".join(out) + "." if out else "", lost_ones, otherwise=NOTHING)


def crossed_table(frame: pd.DataFrame, jobs: Sequence[Job], radii: Sequence[float] = (0.0, 0.25, 0.5)) -> pd.DataFrame:
    """Certified accuracy of the networks of notebook 01, which saw no noise, by noise level, with the share of the class that is
    chosen most often, and of the label that is most frequent."""
    lines = []
    for p in planned(jobs):
        if p.cell.pretraining != CROSSED:
            continue
        mine = family(frame, p.dataset, p.cell, [p.certification.sigma])
        at, word = {r.radius: r for r in mine.itertuples()}, said(frame, p.dataset, (p.cell, p.certification.sigma))
        lines.append({"data set": dataset_label(p.dataset), "method": method_label(p.cell.finetuning),
                      "σ": f"{p.certification.sigma:g}", "seeds": str(mine["seeds"].max() if len(mine) else 0)} | {
                          f"r {r:g}": percent(at[r].value, at[r].low, at[r].high) if r in at else word for r in radii} | {
                          "one class": f"{100 * mine['one_class'].max():.0f} %{dagger(mine['constant'].any())}" if len(mine)
                          else word, CONSTANT: f"{100 * mine['chance'].max():.1f}" if len(mine) else word})
    return pd.DataFrame(lines).drop_duplicates() if lines else pd.DataFrame(columns=["data set", "method", "σ"])


def crossed_reading(frame: pd.DataFrame, jobs: Sequence[Job]) -> str:
    """The best level of each method, and how many radii it reaches."""
    out, cells = [], unique((p.dataset, p.cell) for p in planned(jobs) if p.cell.pretraining == CROSSED)
    for dataset, cell in cells:
        acr = family(frame, dataset, cell, levels(jobs, cell), "acr")
        if len(acr):
            best = acr.loc[acr["value"].idxmax()]
            out.append(f"{method_label(cell.finetuning)} {best['value']:.3f} (σ {best['sigma']:g}){dagger(best['constant'])}")
        elif (word := said(frame, dataset, *((cell, s) for s in levels(jobs, cell)))) != NOT_RUN:
            out.append(f"{method_label(cell.finetuning)} {word}")
    return f"Largest average certified radius of each method over its noise levels: {'; '.join(out)}." if out else NOTHING


def confidence_reading(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> str:
    """Share of images whose label gets more than half of the votes, and nearly all; of a constant answer."""
    out, gone = [], lost(found)
    for sigma in sigmas:
        shares = label_shares(found, dataset, ONE, sigma)
        if (word := absent(gone, dataset, [(ONE, sigma)])) != NOT_RUN:
            out.append(f"σ {sigma:g}: {word}")
        if len(shares):
            half, sure = (100 * np.mean(shares > share) for share in (0.5, 0.99))
            out.append(f"σ {sigma:g}: above one half for {half:.0f} % of the images, above 0.99 for {sure:.0f} %")
    chance = max((m.chance for m in found if (m.dataset, m.cell) == (dataset, ONE)), default=0.0)
    return (f"Votes for the label, one network (mixed → clean): {'; '.join(out)}. The {CONSTANT} has all votes for "
            f"{100 * chance:.0f} % of the images." if out else NOTHING)


def label_shares(found: Sequence[Measured], dataset: str, cell: Cell, sigma: float) -> np.ndarray:
    """Share of votes for the label of every image and seed, of the certification with most draws that did not look at labels."""
    mine = [m for m in found if (m.dataset, m.cell, m.sigma) == (dataset, cell.at(sigma), sigma)
            and not m.certification.stop_if_wrong and not m.absent]
    most = max((m.certification.n for m in mine), default=0)
    return np.concatenate([m.shares.label for m in mine if m.certification.n == most]) if mine else np.empty(0)


def public_table(frame: pd.DataFrame, jobs: Sequence[Job], dataset: str) -> pd.DataFrame:
    """Envelope over noise levels, ours and public, at the radii that most publish; what differs stands beside."""
    radii = (0.25, 0.5, 0.75, 1.0)
    lines = []
    for label, cell in {"one network, mixed → clean": ONE, **MANY}.items():
        best = envelope(family(main_lines(frame), dataset, cell, levels(jobs)))
        at = {r.radius: f"{100 * r.value:.1f}{dagger(r.constant)}" for r in best.itertuples()}
        word = said(frame, dataset, *((cell.at(s), s) for s in levels(jobs)))
        spec = next((p for p in planned(jobs) if p.dataset == dataset and p.cell == ONE), None)
        about = best.iloc[0] if len(best) else None
        lines.append({"who": "ours", "method": label, "network": spec.spec.model.arch if spec else "",
                      **{f"r {r:g}": at.get(r, word) for r in radii},
                      "images": f"first {about['images']:,} of a fixed order" if about is not None else "",
                      "n": f"{about['n']:,}" if about is not None else "",
                      "α": f"{about['alpha']:g}" if about is not None else "", "source": ""})
    chance = family(main_lines(frame), dataset, ONE, levels(jobs)).groupby("radius")["chance"].max()
    lines.append(lines[0] | {"who": "chance", "method": f"{CONSTANT}, same images", "network": ""} | {
        f"r {r:g}": f"{100 * chance[r]:.1f}" if r in chance else NOT_RUN for r in radii})
    theirs = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc' and sigma.isna()")
    for (method, source), group in theirs.groupby(["method", "source"], sort=False):
        at, first = dict(zip(group["radius"], group["value"], strict=True)), group.iloc[0]
        lines.append({"who": "public", "method": method, "network": first["network"],
                      **{f"r {r:g}": f"{100 * at[r]:.1f}" if r in at else "" for r in radii}, "images": first["images"],
                      "n": first["n"], "α": first["alpha"], "source": source})
    return pd.DataFrame(lines)
