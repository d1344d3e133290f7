"""Adversarial fine-tuning in tables and sentences, from finished networks (`aft_cells`); nothing is trained or attacked here.

Tables are DataFrames of text: accuracy in percent with 95 % intervals (`report.estimates`), differences in points on the same
images, cost in passes over the training set (forward and backward, one half each). Unclear is what has 0 in its interval.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import reference, stats
from ..base.collapse import NEVER, collapsed
from ..base.files import atomic_write
from ..claims.finetuning import attacks, paired
from ..evidence import accuracy
from ..evidence.course import best_epoch
from ..evidence.networks import Network, finished, lost
from ..specs import labels
from ..specs.labels import attack_label, dataset_label, eps_label, method_label, percent, points, unique
from ..specs.run import RunSpec
from ..specs.strength import parse, strength
from ..store.jobs import Job
from ..store.store import DIVERGED, NOT_RUN, Store
from ..studies import rules
from ..studies.finetuning import STUDY
from ..studies.rules import Robust
from . import origins, tables

OURS, AT, RANDOM = "aft", "at_scratch", "aft_random"
RIVALS = (AT, "trades_scratch", "free_at", "fast_at", RANDOM)
STARTS = (OURS, "aft_public")  # one method for each start network
NETWORKS = {"start": "start", "best": "best epoch", "last": "last epoch"}
PARTS = {"fraction": "training images", "width": "channels of the first stage"}
ACCOUNTINGS = {"given": "start given", "whole": "start included"}
UNKNOWN = "start not ours"
NOTHING = "No network is finished yet."


def select(networks: Sequence[Network], dataset: str, method: str, at: str, part: str = "main") -> dict[int, Network]:
    """By seed; without those that diverged."""
    return {n.spec.seed: n for n in networks if (n.masks or not n.gone)
            and (n.part, n.at, *n.key[:2]) == (part, at, dataset, method)}


def absent(networks: Sequence[Network], dataset: str, *methods: str, part: str | None = None) -> str:
    """What stands for a number that needs all of `methods` on a data set and is not there."""
    return next((word for n in networks if n.key[0] == dataset and n.spec.method.name in methods and part in (None, n.part)
                 for word in n.gone.values()), NOT_RUN)


def lost_text(networks: Sequence[Network], dataset: str | None = None, *parts: str) -> str:
    """The runs that diverged in words."""
    return labels.lost_text(f"{method_label(n.spec.method.name)}, seed {n.spec.seed}" + (
        "" if n.part in ("main", "schedule") else f", {_size(n):,} {PARTS[n.part]}") for n in networks
        if n.gone and dataset in (None, n.key[0]) and (not parts or n.part in parts))


def threat_of(found: dict[int, Network]) -> Robust:
    """What networks were trained against, on however many images."""
    attack = next(iter(found.values())).spec.attack
    return Robust(threat=attack.threat, eps=attack.eps, min_images=1)


def passes_per_epoch(spec: RunSpec) -> float | None:
    """Passes over the training set in one epoch as counted by hand: one for each step of the attack and for each kind of images
    that the loss takes, in Free training one for each replay; None for methods with further terms."""
    m = spec.method
    if max(m.awp_gamma, m.distill_weight, m.feature_weight, m.source_weight):
        return None
    if m.replays > 1 or not m.attacks:
        return float(m.replays)
    target = 0.5 if spec.attack.loss == "kl" else 0.0  # the clean logits that the attack moves away from, forward only
    return len(m.inputs) + (spec.attack.steps + target if spec.attack.steps and spec.attack.eps else 0.0)


def _main(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Lines of the main part trained and attacked under the threat of AFT."""
    lines = frame[(frame["dataset"] == dataset) & (frame["part"] == "main")]
    threat = next(iter(lines.loc[lines["method"] == OURS, "trained_threat"]), "linf")
    return lines[lines["trained_threat"] == threat]


def _planned(jobs: Sequence[Job], part: str, dataset: str | None = None) -> list[Job]:
    return [j for j in jobs if j.study == STUDY and dict(j.labels)["part"] == part and dataset in (None, j.spec.data.name)]


def accuracy_table(frame: pd.DataFrame, dataset: str, jobs: Sequence[Job] = ()) -> pd.DataFrame:
    """Main part: each method at its best epoch (on validation images) and its last, and each start network once, finished or
    planned; accuracies, passes over the training set and hours of training on the clock, without and with those of the start."""
    main, wanted, lines, begun = _main(frame, dataset), {}, {}, set()
    main = main.assign(line=main["method"] + " " + main["at"])
    threat = next(iter(main["trained_threat"]), "linf")
    for job in _planned(jobs, "main", dataset):
        if job.spec.attack.threat == threat:
            wanted.setdefault((dict(job.labels)["start"], job.spec.method.name), set()).update(e.at for e in job.evals)
    for r in main.itertuples():
        wanted.setdefault((r.start, r.method), set()).add(r.at)
    groups = dict(iter(main.dropna(subset="value").drop_duplicates(["line", "seed"]).groupby("line")))
    words = {line: main.attrs.get("lost", {}).get(run, NOT_RUN) for line, run in zip(main["line"], main["run"], strict=True)}
    for (start, method), places in wanted.items():
        for at in (a for a in NETWORKS if a in places and not (a == "start" and start in begun)):
            if at == "start" and f"{method} start" not in groups and any(
                    s == start and "start" in p and f"{m} start" in groups for (s, m), p in wanted.items()):
                continue  # measured with another run that has the same start
            begun |= {start} if at == "start" else set()
            mine = groups.get(f"{method} {at}", main.iloc[:0])
            lines[f"{method} {at}"] = (f"start network: {start}" if at == "start" else method_label(method), NETWORKS[at],
                                       *(_listed(mine[c], words.get(f"{method} {at}", NOT_RUN)) for c in ("seed", "epoch")))
    out = _accuracies(main, lines, ("method", "network", "seeds", "epoch"))
    for end, missing in (("given", "not recorded"), ("whole", UNKNOWN)):
        passes, hours = f"images_{end}", "seconds" if end == "given" else "seconds_whole"
        out[f"passes, {ACCOUNTINGS[end]}"] = [_mean(groups[k][passes] / groups[k]["train_images"], ".1f", missing) if k in groups
                                              else words.get(k, NOT_RUN) for k in lines]
        out[f"hours, {ACCOUNTINGS[end]}"] = [_mean(groups[k][hours] / 3600, ".3g", missing) if k in groups
                                             else words.get(k, NOT_RUN) for k in lines]
    return out


def accuracy_reading(networks: Sequence[Network], dataset: str) -> str:
    """AFT at its last epoch minus AT from random weights at its best and last, and minus the other methods of the main part,
    each at its best epoch where it keeps one."""
    ours, out, missing = select(networks, dataset, OURS, "last"), [], []
    if not ours:
        return f"{dataset_label(dataset)}, AFT: {absent(networks, dataset, OURS)}."
    robust = threat_of(ours)
    others = unique(n.spec.method.name for n in networks if n.part == "main" and n.key[0] == dataset
                    and n.spec.attack.threat == robust.threat and n.spec.method.name != OURS)
    for method in unique([*RIVALS, *others]):
        found = {at: theirs for at in ("best", "last") if (theirs := select(networks, dataset, method, at))}
        missing += [] if found or absent(networks, dataset, method) != NOT_RUN else [method_label(method)]
        for at in found if method == AT else list(found)[:1]:
            said = _differences(ours, found[at], robust)
            out += [f"{method_label(method)} ({NETWORKS[at]}): {said}."] if said else []
    gone = lost_text([n for n in networks if n.spec.attack.threat == robust.threat], dataset, "main")
    return labels.joined(f"{dataset_label(dataset)}, AFT minus another in points, on the same test images.", *out,
                         "" if out or gone else NOTHING, f"Not run: {'; '.join(missing)}." if missing else "", gone)


def ratios(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Cost of each network of the main part (trained from random weights or from a start network of its own) over that of AFT at
    its last epoch, same seed: method, at, seed, then of passes (given, whole), of seconds on the clock (seconds, seconds_whole)
    and of the processor (processor, processor_whole) the ratio with the start given and included; NaN where not known."""
    each = _main(frame, dataset).dropna(subset="value").drop_duplicates(["method", "at", "seed"])
    ours = {r.seed: r for r in each[(each["method"] == OURS) & (each["at"] == "last")].itertuples()}
    names = {"given": "images_given", "whole": "images_whole"} | {
        name: name for name in ("seconds", "seconds_whole", "processor", "processor_whole")}
    out = [[r.method, r.at, r.seed, *(_over(getattr(r, c), getattr(ours[r.seed], c)) for c in names.values())]
           for r in each.itertuples() if r.method != OURS and r.at != "start" and r.seed in ours]
    return pd.DataFrame(out, columns=["method", "at", "seed", *names])


def cost_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Passes, hours on the clock and processor hours of each rival at its best and last epoch over those of AFT, in both
    accountings; over several seeds geometric means with Student's 95 % interval of the logarithms."""
    found, lines = ratios(frame, dataset), []
    titles = {"given": "passes / AFT, start given", "whole": "passes / AFT, start included",
              "seconds": "hours / AFT, start given", "seconds_whole": "hours / AFT, start included",
              "processor": "processor hours / AFT, start given", "processor_whole": "processor hours / AFT, start included"}
    main = _main(frame, dataset)
    gone = lost(main[main["at"] != "start"])
    for method in unique([*RIVALS, *found["method"]]):
        mine, word = found[found["method"] == method], gone.get(OURS) or gone.get(method, NOT_RUN)
        for at in [a for a in ("best", "last") if a in set(mine["at"])] or [None]:
            group = mine[mine["at"] == at]
            lines.append({"method": method_label(method), "network": NETWORKS[at] if at else word,
                          "seeds": _listed(group["seed"], word)} | {
                title: _geometric(group[c]) if at else word for c, title in titles.items()})
    return pd.DataFrame(lines)


def cost_reading(frame: pd.DataFrame, dataset: str) -> str:
    """Whether the ratio that AFT-C2 asks for is reached in every seed, in either accounting."""
    found, least = ratios(frame, dataset), next(c.rule.share for c in rules.claims() if c.id == "AFT-C2")
    out, gone = [], lost(_main(frame, dataset))
    word = gone.get(OURS) or gone.get(AT, NOT_RUN)
    for at in ("best", "last"):
        mine = found[(found["method"] == AT) & (found["at"] == at)]
        if len(mine):
            said = []
            for way, seconds, worked in (("given", "seconds", "processor"), ("whole", "seconds_whole", "processor_whole")):
                reached = f"{'reaches' if mine[way].min() >= least else 'does not reach'} the claimed {least:g}"
                said.append(f"{_geometric(mine[way])} with the {ACCOUNTINGS[way]} ({reached}), on the clock "
                            f"{_geometric(mine[seconds])}, in processor time {_geometric(mine[worked])}")
            out.append(f"{method_label(AT)} up to its {NETWORKS[at]} takes this many times the passes of AFT: {'; '.join(said)}.")
    return f"{dataset_label(dataset)}. {' '.join(out)}" if out else f"{dataset_label(dataset)}, cost: {word}."


def starts_table(networks: Sequence[Network], dataset: str) -> pd.DataFrame:
    """Our own and the public start network before and after fine-tuning; of a public one also the clean accuracy as published,
    which stands on all test images where ours stands on the first of our order."""
    lines = []
    for method in STARTS:
        before, after = (select(networks, dataset, method, at) for at in ("start", "last"))
        columns = ("network", "published clean", "seeds", "clean before", "clean after", "PGD before", "PGD after",
                   "gain, clean (points)", "gain, PGD (points)", "test images")
        line = {"start of": method_label(method)} | dict.fromkeys(columns, absent(networks, dataset, method, part="main"))
        if before:
            spec, robust = next(iter(before.values())).spec, threat_of(before)
            attack = _pgd([*before.values(), *after.values()])
            first = dict([next(iter(before.items()))])  # the same network in every seed
            known = reference.published_network(spec.weights.file) if spec.weights else None
            line |= {"network": spec.model.arch + (f", width {spec.model.width}" if spec.model.width else ""),
                     "published clean": f"{100 * known['clean_acc']:.2f} (all {known['images']:,} test images, {known['source']})"
                     if known else "",
                     "seeds": _listed(after)}
            for title, name in (("clean", "none"), ("PGD", attack)):
                line |= {f"{title} before": _accuracy(first, name, robust), f"{title} after": _accuracy(after, name, robust),
                         f"gain, {title} (points)": _points(paired(after, before, name, robust))}
            sizes = [len(m) for n in first.values() for m in n.masks.values()]
            line["test images"] = f"first {max(sizes):,} of our order"
        lines.append(line)
    return pd.DataFrame(lines)


def schedule_table(store: Store, jobs: Sequence[Job], frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """AFT and each other schedule: clean / PGD accuracy on the validation images by learning rate, the rate chosen, test
    accuracy, and its difference to AFT in points."""
    tuned, networks = origins.tuning_table(store, [j for j in jobs if j.spec.data.name == dataset]), finished(store, jobs)
    planned = [j for j in _planned(jobs, "main", dataset) if j.spec.method.name == OURS] + _planned(jobs, "schedule", dataset)
    first = {j.spec.method.name: j for j in reversed(planned)}
    names = unique(j.spec.method.name for j in planned)
    found = {n: select(networks, dataset, n, "last", "main" if n == OURS else "schedule") for n in names}
    here = frame[(frame["dataset"] == dataset) & (frame["at"] == "last") & frame["part"].isin(("main", "schedule"))]
    here = here[here["attack"].isin(here.loc[here["part"] == "schedule", "attack"])]  # AutoAttack is the main part's alone
    gone = {n: word for n, word in ((n, store.absent(first[n])) for n in names) if word != NOT_RUN and not found[n]}
    lines = {n: (method_label(n), _listed(found[n], gone.get(n, NOT_RUN))) for n in names}
    out = _accuracies(here.assign(line=here["method"]), lines, ("schedule", "seeds"))
    candidates = unique(tuned["candidate"])
    for i, candidate in enumerate(candidates):
        cells = {method: f"{clean} / {pgd}" for method, clean, pgd in tuned.loc[
            tuned["candidate"] == candidate, ["method", "clean, validation", "PGD, validation"]].values}
        out.insert(2 + i, f"validation, {candidate}", [cells.get(method_label(n), NOT_RUN) for n in names])
    out.insert(2 + len(candidates), "lr chosen", [f"{job.spec.optim.lr:g}" if job.settled else store.absent(job)
                                                  for job in (first[n] for n in names)])
    for title in ("clean", "PGD"):
        out[f"{title} minus AFT (points)"] = [
            "" if n == OURS else _points(_difference(found[n], found.get(OURS, {}), title),
                                         gone.get(n) or gone.get(OURS, NOT_RUN)) for n in names]
    return out


def schedule_reading(networks: Sequence[Network], dataset: str) -> str:
    """Robust accuracy of AFT minus that under each other schedule."""
    ours, said = select(networks, dataset, OURS, "last"), []
    for name in unique(n.spec.method.name for n in networks if n.part == "schedule" and n.key[0] == dataset):
        found = _difference(ours, select(networks, dataset, name, "last", "schedule"), "PGD")
        said += [f"{method_label(name)} {_said(found)}"] if found else []
    gone = lost_text([n for n in networks if n.part == "schedule" or n.spec.method.name == OURS], dataset, "main", "schedule")
    if not said:
        return f"{dataset_label(dataset)}, schedules: {gone or f'{NOT_RUN}.'}"
    return labels.joined(f"{dataset_label(dataset)}, robust accuracy (PGD) of AFT minus that under another schedule, each with "
                         f"its own learning rate, in points: {'; '.join(said)}.", gone)


def data_width_table(frame: pd.DataFrame, dataset: str, jobs: Sequence[Job] = ()) -> pd.DataFrame:
    """AFT and the same epochs from random weights by number of training images and by width of the network, next to the main
    part; the seeds that both have."""
    here, parts, lines = frame[(frame["dataset"] == dataset) & (frame["at"] == "last")], [], {}
    for part, column in (("fraction", "train_images"), ("width", "width")):
        mine = here[here["part"] == part]
        wanted = [(j.spec.method.name, j.spec.data.train_images if part == "fraction" else j.spec.model.width)
                  for j in _planned(jobs, part, dataset)] + list(zip(mine["method"], mine[column], strict=True))
        seeds = set(mine["seed"]) or {min(here["seed"], default=0)}
        full = here[(here["part"] == "main") & here["method"].isin([m for m, _ in wanted]) & here["seed"].isin(seeds)]
        wanted += list(zip(full["method"], full[column], strict=True))
        both = pd.concat([mine, full[full["attack"].isin(mine["attack"])]] if len(mine) else [full])
        parts.append(both.assign(line=[f"{part} {m} {v}" for m, v in zip(both["method"], both[column], strict=True)]))
        for method, value in sorted(set(wanted), key=lambda w: ([m for m, _ in wanted].index(w[0]), w[1])):
            of = parts[-1][parts[-1]["line"] == f"{part} {method} {value}"]
            lines[f"{part} {method} {value}"] = ("training images" if part == "fraction" else "width", f"{value:,}" if value else
                                                 "of the main part", method_label(method), _listed(
                                                     of.dropna(subset="value")["seed"], lost(of).get(method, NOT_RUN)))
    return _accuracies(pd.concat(parts), lines, ("varied", "value", "method", "seeds"))


def data_width_reading(networks: Sequence[Network], dataset: str) -> str:
    """AFT minus the same epochs from random weights for each number of training images and each width."""
    out, sources = [], set()
    for part, title in PARTS.items():
        said = []
        for size in sorted({_size(n) for n in networks if n.part == part and n.key[0] == dataset}):
            mine = [n for n in networks if n.part == part and _size(n) == size]
            ours, theirs = (select(mine, dataset, name, "last", part) for name in (OURS, RANDOM))
            found = _difference(ours, theirs, "PGD")
            said += [f"{size:,} {title} {_said(found)}"] if found else []
            sources |= {n.spec.source.data.train_images for n in ours.values() if n.spec.source} if part == "fraction" else set()
        out.append("; ".join(said) or f"{title}: {absent(networks, dataset, OURS, RANDOM, part=part)}")
    known = [f"{s:,}" if s else "all" for s in sources]
    note = f" The start network of AFT saw {' or '.join(known)} training images, however few AFT had." if known else ""
    return labels.joined(f"{dataset_label(dataset)}, robust accuracy (PGD) of AFT minus that of the same epochs from random "
                         f"weights, in points: {'; '.join(out)}.{note}", lost_text(networks, dataset, "fraction", "width"))


def threat_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Networks trained under the other threat, next to AFT and its rivals from random weights, each under its own threat."""
    here = frame[(frame["dataset"] == dataset) & (frame["part"] == "main") & (frame["at"] == "last")]
    usual = set(_main(frame, dataset)["trained_threat"])
    other = [m for m in unique(here["method"]) if not set(here.loc[here["method"] == m, "trained_threat"]) & usual]
    lines = []
    for method in unique([OURS, AT, RANDOM, *other]):
        mine = here[here["method"] == method]
        word, done = lost(mine).get(method, NOT_RUN), mine.dropna(subset="value")
        found = {r.attack: r for r in accuracy.one_line(accuracy.estimates(_rows(mine))).itertuples()} if len(mine) else {}
        pgd = max((a for a in found if parse(a).kind == "pgd"), key=strength, default=None)
        lines.append({"method": method_label(method), "trained against": " or ".join(
                          unique(eps_label(r.eps, r.threat) for a, r in found.items() if a != "none")) or NOT_RUN,
                      "seeds": _listed(done["seed"], word), "epochs": _listed(done["epoch"], word),
                      "clean": _cell(found["none"]) if "none" in found else NOT_RUN,
                      "PGD under its threat": f"{_cell(found[pgd])} ({attack_label(pgd)})" if pgd else NOT_RUN})
    return pd.DataFrame(lines)


def collapse_reading(store: Store, jobs: Sequence[Job]) -> str:
    """Whether single-step and Free training lost their robustness or never had any (`collapsed`), and their best epoch."""
    said = []
    for job in _planned(jobs, "main"):
        m, attacked = job.spec.method, job.spec.method.attacks
        if not attacked or (m.replays == 1 and job.spec.attack.steps != 1):
            continue
        record = store.run(job.spec) if job.settled else None
        name = f"{method_label(m.name)}, seed {job.spec.seed}"
        rows = [row for row in record["epochs"] if "val_robust_acc" in row] if record else []
        if not rows:
            said.append(f"{name}: {store.absent(job)}")
            continue
        found, best = collapsed(rows, images=record["val_images"], classes=record["classes"]), best_epoch(rows)
        robust = {row["epoch"]: f"{100 * row['val_robust_acc']:.1f} %" for row in rows}
        what = NEVER if found else "no catastrophic overfitting"
        if found and found.kind != NEVER:
            loss = "catastrophic overfitting" if found.kind == "at once" else "slow loss of robustness"
            what = f"{loss} in epoch {found.epoch} (robust accuracy on validation images {robust[found.epoch]})"
        said.append(f"{name}: {what}, best epoch {best} of {job.spec.optim.epochs} ({robust[best]})")
    return "; ".join(said) + "." if said else "Single-step and Free training: not planned."


def overfit_reading(networks: Sequence[Network], dataset: str) -> str:
    """Robust accuracy of AT from random weights at its best epoch minus that at its last."""
    best, last = (select(networks, dataset, AT, at) for at in ("best", "last"))
    said = _differences(best, last, threat_of(best)) if best and last else ""
    return (f"{dataset_label(dataset)}, {method_label(AT)}, best epoch ({_listed(n.epoch for n in best.values())}) minus last in "
            f"points: {said}." if said else f"{dataset_label(dataset)}, overfitting of AT: {absent(networks, dataset, AT)}.")


def caption(frame: pd.DataFrame) -> str:
    """What intervals, passes and hours stand for."""
    gone = labels.lost_text(f"{method_label(r.method)}, seed {r.seed}" for r in frame[frame["value"].isna()].itertuples())
    if frame["value"].isna().all():
        return gone or NOTHING
    numbers = labels.joined(tables.caption(_rows(frame.dropna(subset="value"))), gone)
    return (f"{numbers} One pass: every training image forward and backward once, counted by the training loop; "
            "measurements on validation images are not in it, but in the hours. Best epoch: by robust accuracy on them. "
            "Unclear: 0 is in the interval; that of a single seed speaks about other test images only.")


def sanity(networks: Sequence[Network]) -> dict[str, bool]:
    """What must hold for accuracies and costs to be believed, over all finished networks."""
    bounded, weaker, counted = True, True, True
    for n in networks:
        clean = max((m for e, m in n.masks.items() if e.kind == "clean"), key=len, default=np.ones(0, bool))
        for e, mask in n.masks.items():
            bounded &= e.kind == "clean" or not (mask[:len(clean)] & ~clean[:len(mask)]).any()
            pgd = n.mask(_pgd([n]), e.threat, e.eps)
            if e.kind == "autoattack" and pgd is not None:
                k = min(len(mask), len(pgd))
                weaker &= bool(mask[:k].sum() <= pgd[:k].sum() + k // 100)
        each = passes_per_epoch(n.spec)
        if each is not None and n.train_images:
            counted &= math.isclose(n.spent, each * n.epoch * n.train_images)
    return {"no image is right under attack and wrong without": bool(bounded),
            "AutoAttack (or its part) leaves no more images than PGD, to within 1 % of them": weaker,
            "passes are those counted by hand: steps + 1 for PGD, 2 for Fast, replays for Free, 1 for natural training": counted}


def write_rows(store: Store, frame: pd.DataFrame) -> None:
    """Write rows/aft_networks.csv of the store, whole or not at all; rows/aft.csv, which `table.write` leaves for every study,
    does not tell start, best and last apart."""
    path = store.root / "rows" / f"{STUDY}_networks.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda tmp: frame.to_csv(tmp, index=False))


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines as `report.estimates` takes them; a network is a method of its own, or what its column `line` says."""
    line = frame["line"] if "line" in frame else frame["method"] + " " + frame["at"]
    said = frame["run"].map(lambda run: frame.attrs.get("lost", {}).get(run, DIVERGED))
    images = frame["n"].where(frame["value"].notna(), said)
    return frame.assign(method=line, run=frame["run"] + line, images=images, metric="accuracy")


def _accuracies(frame: pd.DataFrame, lines: dict[str, tuple], names: tuple[str, ...]) -> pd.DataFrame:
    """A text line for each of `lines` (value of the column `line` -> its first cells), a column for each attack."""
    rows = frame[frame["line"].isin(lines)]
    found = accuracy.one_line(accuracy.estimates(_rows(rows))) if len(rows) else pd.DataFrame(
        columns=["method", "seed", "threat", "eps", "attack", "n", "value", "low", "high"])
    several = set(found.loc[found["seed"].astype(str).str.startswith("mean"), "method"])
    found = found.assign(line=found["method"])
    out = tables.spread(found, list(lines), list(lines.values()), names, lambda r: _cell(r) + (
        f", seed {r.seed}" if r.line in several and not r.seed.startswith("mean") else ""))
    return out if len(rows) else out.assign(clean=NOT_RUN)


def _cell(r) -> str:
    """`percent` of a line of estimates, its interval cut to what an accuracy can be; without a value what is said of it."""
    if math.isnan(r.value):
        return r.absent
    return percent(r.value, max(r.low, 0.0), min(r.high, 1.0))


def _accuracy(found: dict[int, Network], attack: str, robust: Robust) -> str:
    masks = [m for n in found.values() if (m := n.mask(attack, robust.threat, robust.eps)) is not None]
    if not masks:
        return NOT_RUN
    one = len(masks) == 1
    value, low, high, _ = (stats.clopper_pearson(int(masks[0].sum()), len(masks[0])) if one
                           else stats.student_interval([m.mean() for m in masks]))
    return percent(value, max(low, 0.0), min(high, 1.0))


def _pgd(networks: Sequence[Network]) -> str:
    """The strongest PGD among the measurements, empty if there is none."""
    return next((a for a in reversed(attacks(networks)) if parse(a).kind == "pgd"), "")


def _difference(ours: dict[int, Network], theirs: dict[int, Network], title: str) -> tuple | None:
    """`paired` of clean or PGD accuracy."""
    if not (ours and theirs):
        return None
    attack = "none" if title == "clean" else _pgd([*ours.values(), *theirs.values()])
    return paired(ours, theirs, attack, threat_of(ours))


def _differences(ours: dict[int, Network], theirs: dict[int, Network], robust: Robust) -> str:
    """Of clean accuracy and under each attack, in words."""
    found = {a: paired(ours, theirs, a, robust) for a in ("none", *attacks([*ours.values(), *theirs.values()]))}
    return "; ".join(f"{labels.header(a, robust.threat, robust.eps)} {_said(numbers)}" for a, numbers in found.items() if numbers)


def _said(found: tuple) -> str:
    """+1.2 [-0.5, +2.9] (unclear; 1,000 images, seeds: 3)."""
    images, seeds, value, low, high, _ = found
    word = "higher" if low > 0 else "lower" if high < 0 else "unclear"
    return f"{points(value, low, high)} ({word}; {images:,} images, seeds: {seeds})"


def _points(found: tuple | None, missing: str = NOT_RUN) -> str:
    return points(*found[2:5]) if found else missing


def _size(n: Network) -> int:
    """What a run of the parts fraction and width varies."""
    return n.train_images or n.spec.data.train_images if n.part == "fraction" else n.spec.model.width


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


def _mean(values: pd.Series, form: str, missing: str) -> str:
    return missing if values.isna().any() else f"{values.mean():{form}}"


def _geometric(values: Sequence[float]) -> str:
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any() or not len(values):
        return UNKNOWN  # of runs of ours all is recorded
    logs = np.log(values)
    if len(logs) == 1:
        return f"{values[0]:.2f}"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*np.exp(stats.student_interval(logs)[:3]))


def _listed(values, missing: str = NOT_RUN) -> str:
    """Numbers of several seeds, once where all are the same."""
    values = [str(v) for v in values]
    return ", ".join(values if len(set(values)) > 1 else values[:1]) or missing
