"""Adversarial fine-tuning in tables, from finished networks (`evidence.networks`); nothing is trained or attacked here.

Tables are DataFrames of text: accuracy in percent with 95 % intervals, differences in points on the same images, cost in passes
over the training set (forward and backward, one half each).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..base import reference, stats
from ..base.collapse import NEVER, collapsed
from ..claims.finetuning import attacks, paired
from ..evidence import accuracy
from ..evidence.course import best_epoch
from ..evidence.networks import Network, finished, lost
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, attack_label, eps_label, header, method_label, points, unique
from ..specs.strength import parse, strength
from ..store.store import Store
from ..studies.finetuning import STUDY
from ..studies.rules import Robust
from . import origins, tables
from .aft_costs import AT, NETWORKS, OURS, RANDOM, RIVALS, UNKNOWN, main_part, passes_per_epoch
from .tables import listed, number, within

STARTS = (OURS, "aft_public")  # one method for each start network
PARTS = {"fraction": "training images", "width": "channels of the first stage"}


def select(networks: Sequence[Network], dataset: str, method: str, at: str, part: str = "main") -> dict[int, Network]:
    """By seed; without those that diverged."""
    return {n.spec.seed: n for n in networks if (n.masks or not n.gone)
            and (n.part, n.at, *n.key[:2]) == (part, at, dataset, method)}


def absent(networks: Sequence[Network], dataset: str, *methods: str, part: str | None = None) -> str:
    """What stands for a number that needs all of `methods` on a data set and is not there."""
    return next((word for n in networks if n.key[0] == dataset and n.spec.method.name in methods and part in (None, n.part)
                 for word in n.gone.values()), NOT_RUN)


def threat_of(found: dict[int, Network]) -> Robust:
    """What networks were trained against, on however many images."""
    attack = next(iter(found.values())).spec.attack
    return Robust(threat=attack.threat, eps=attack.eps, min_images=1)


def _planned(jobs: Sequence[Job], part: str, dataset: str | None = None) -> list[Job]:
    return [j for j in jobs if j.study == STUDY and dict(j.labels)["part"] == part and dataset in (None, j.spec.data.name)]


def accuracy_table(frame: pd.DataFrame, dataset: str, jobs: Sequence[Job] = ()) -> pd.DataFrame:
    """Main part: each method at its best epoch (on validation images) and its last, and each start network once, finished or
    planned; accuracies, passes over the training set and hours of training on the clock, without and with those of the start."""
    main = main_part(frame, dataset)
    main = main.assign(line=main["method"] + " " + main["at"])
    threat = next(iter(main["trained_threat"]), "linf")
    wanted = [(dict(j.labels)["start"], j.spec.method.name, e.at) for j in _planned(jobs, "main", dataset)
              if j.spec.attack.threat == threat for e in j.evals]
    wanted = unique([*wanted, *zip(main["start"], main["method"], main["at"], strict=True)])
    order = unique((start, method) for start, method, _ in wanted)
    wanted.sort(key=lambda w: (order.index(w[:2]), list(NETWORKS).index(w[2])))
    groups = dict(iter(main.dropna(subset="value").drop_duplicates(["line", "seed"]).groupby("line")))
    shown: dict[str, str] = {}  # start network -> the method whose run it is measured with, measured ones before planned ones
    for start, method, _ in sorted((w for w in wanted if w[2] == "start"), key=lambda w: f"{w[1]} start" not in groups):
        shown.setdefault(start, method)
    words = {line: main.attrs.get("lost", {}).get(run, NOT_RUN) for line, run in zip(main["line"], main["run"], strict=True)}
    lines = {}
    for start, method, at in wanted:
        if at == "start" and shown[start] != method:
            continue
        key = f"{method} {at}"
        mine, word = groups.get(key, main.iloc[:0]), words.get(key, NOT_RUN)
        lines[key] = (f"start network: {start}" if at == "start" else method_label(method), NETWORKS[at],
                      listed(mine["seed"], word), listed(mine["epoch"], word))
    out = _accuracies(main, lines, ("method", "network", "seeds", "epoch"))
    costs = {"passes, start given": (lambda g: g["images_given"] / g["train_images"], ".1f", "not recorded"),
             "hours, start given": (lambda g: g["seconds"] / 3600, ".3g", "not recorded"),
             "passes, start included": (lambda g: g["images_whole"] / g["train_images"], ".1f", UNKNOWN),
             "hours, start included": (lambda g: g["seconds_whole"] / 3600, ".3g", UNKNOWN)}
    for title, cost in costs.items():
        out[title] = [_mean(groups[key], *cost) if key in groups else words.get(key, NOT_RUN) for key in lines]
    return out


def difference_table(networks: Sequence[Network], dataset: str) -> pd.DataFrame:
    """AFT at its last epoch minus the other networks of the main part: AT from random weights at its best and its last epoch, the
    others at their best where they keep one; then AT at its best epoch minus its last."""
    main = [n for n in networks if n.part == "main" and n.key[0] == dataset]
    threats = {n.spec.attack.threat for n in main if n.spec.method.name == OURS}
    others = [n.spec.method.name for n in main if n.spec.attack.threat in threats and n.spec.method.name != OURS]
    ours, pairs = select(networks, dataset, OURS, "last"), []
    for method in unique([*RIVALS, *others]):
        found = {at: theirs for at in ("best", "last") if (theirs := select(networks, dataset, method, at))}
        for at in list(found)[:2 if method == AT else 1] or [""]:
            head = f"{method_label(OURS)} - {method_label(method)}", NETWORKS.get(at, "")
            pairs.append((head, ours, found.get(at, {}), absent(networks, dataset, OURS, method)))
    best, last = (select(networks, dataset, AT, at) for at in ("best", "last"))
    word = absent(networks, dataset, AT)
    epochs = listed((n.epoch for n in best.values()), word)
    pairs.append(((method_label(AT), f"best epoch ({epochs}) - last"), best, last, word))
    return _differences(pairs, ("difference (points)", "network"))


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
                     "seeds": listed(after)}
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
    lines = {n: (method_label(n), listed(found[n], gone.get(n, NOT_RUN))) for n in names}
    out = _accuracies(here.assign(line=here["method"]), lines, ("schedule", "seeds"))
    candidates = unique(tuned["candidate"])
    for i, candidate in enumerate(candidates):
        cells = {method: f"{clean} / {pgd}" for method, clean, pgd in tuned.loc[
            tuned["candidate"] == candidate, ["method", "clean, validation", "PGD, validation"]].values}
        out.insert(2 + i, f"validation, {candidate}", [cells.get(method_label(n), NOT_RUN) for n in names])
    out.insert(2 + len(candidates), "lr chosen", [f"{job.spec.optim.lr:g}" if job.settled else store.absent(job)
                                                  for job in (first[n] for n in names)])
    ours = found.get(OURS, {})
    for title in ("clean", "PGD"):
        cells = {OURS: ""}
        for n in names:
            attack = "none" if title == "clean" else _pgd([*found[n].values(), *ours.values()])
            cells.setdefault(n, _points(_difference(found[n], ours, attack), gone.get(n) or gone.get(OURS, NOT_RUN)))
        out[f"{title} minus AFT (points)"] = [cells[n] for n in names]
    return out


def data_width_table(frame: pd.DataFrame, dataset: str, jobs: Sequence[Job] = ()) -> pd.DataFrame:
    """AFT and the same epochs from random weights by number of training images and by width of the network, next to the main
    part; the seeds that both have."""
    here, parts, lines = frame[(frame["dataset"] == dataset) & (frame["at"] == "last")], [], {}
    for part, column, title in (("fraction", "train_images", "training images"), ("width", "width", "width")):
        mine = here[here["part"] == part]
        wanted = [(j.spec.method.name, _size(j)) for j in _planned(jobs, part, dataset)]
        wanted += list(zip(mine["method"], mine[column], strict=True))
        seeds = set(mine["seed"]) or {min(here["seed"], default=0)}
        full = here[(here["part"] == "main") & here["method"].isin([m for m, _ in wanted]) & here["seed"].isin(seeds)]
        wanted += list(zip(full["method"], full[column], strict=True))
        both = pd.concat([mine, full[full["attack"].isin(mine["attack"])]] if len(mine) else [full])
        parts.append(both.assign(line=[f"{part} {m} {v}" for m, v in zip(both["method"], both[column], strict=True)]))
        order = unique(m for m, _ in wanted)
        for method, value in sorted(set(wanted), key=lambda w: (order.index(w[0]), w[1])):
            key = f"{part} {method} {value}"
            of = parts[-1][parts[-1]["line"] == key]
            found = listed(of.dropna(subset="value")["seed"], lost(of).get(method, NOT_RUN))
            lines[key] = title, f"{value:,}" if value else "of the main part", method_label(method), found
    return _accuracies(pd.concat(parts), lines, ("varied", "value", "method", "seeds"))


def data_width_differences(networks: Sequence[Network], dataset: str, jobs: Sequence[Job]) -> pd.DataFrame:
    """AFT minus the same epochs from random weights for each number of training images and each width."""
    pairs = []
    for part, title in PARTS.items():
        for size in sorted({_size(job) for job in _planned(jobs, part, dataset)}):
            here = [n for n in networks if n.part == part and _size(n.job) == size]
            ours, theirs = (select(here, dataset, name, "last", part) for name in (OURS, RANDOM))
            pairs.append(((f"{method_label(OURS)} - {method_label(RANDOM)}", f"{size:,} {title}"), ours, theirs,
                          absent(networks, dataset, OURS, RANDOM, part=part)))
    return _differences(pairs, ("difference (points)", "with"))


def threat_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Networks trained under the other threat, next to AFT and its rivals from random weights, each under its own threat."""
    here = frame[(frame["dataset"] == dataset) & (frame["part"] == "main") & (frame["at"] == "last")]
    usual = set(main_part(frame, dataset)["trained_threat"])
    other = [m for m in unique(here["method"]) if not set(here.loc[here["method"] == m, "trained_threat"]) & usual]
    lines = []
    for method in unique([OURS, AT, RANDOM, *other]):
        mine = here[here["method"] == method]
        word, done = lost(mine).get(method, NOT_RUN), mine.dropna(subset="value")
        found = {r.attack: r for r in accuracy.one_line(accuracy.estimates(_rows(mine))).itertuples()} if len(mine) else {}
        pgd = max((a for a in found if parse(a).kind == "pgd"), key=strength, default=None)
        lines.append({"method": method_label(method), "trained against": " or ".join(
                          unique(eps_label(r.eps, r.threat) for a, r in found.items() if a != "none")) or NOT_RUN,
                      "seeds": listed(done["seed"], word), "epochs": listed(done["epoch"], word),
                      "clean": number(found["none"], within) if "none" in found else NOT_RUN,
                      "PGD under its threat": f"{number(found[pgd], within)} ({attack_label(pgd)})" if pgd else NOT_RUN})
    return pd.DataFrame(lines)


def collapse_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Whether single-step and Free training lost their robustness or never had any (`collapsed`), and their best epoch; robust
    accuracies on validation images."""
    lines, columns = [], ["method", "seed", "catastrophic overfitting", "in epoch", "robust then", "best epoch", "robust at best"]
    for job in _planned(jobs, "main"):
        m, attacked = job.spec.method, job.spec.method.attacks
        if not attacked or (m.replays == 1 and job.spec.attack.steps != 1):
            continue
        record = store.run(job.spec) if job.settled else None
        rows = [row for row in record["epochs"] if "val_robust_acc" in row] if record else []
        head = [method_label(m.name), str(job.spec.seed)]
        if not rows:
            lines.append([*head, *[store.absent(job)] * 5])
            continue
        found, best = collapsed(rows, images=record["val_images"], classes=record["classes"]), best_epoch(rows)
        robust = {row["epoch"]: f"{100 * row['val_robust_acc']:.1f} %" for row in rows}
        when = ["", ""]
        kind = NEVER if found else "none"
        if found and found.kind != NEVER:
            kind = "at once" if found.kind == "at once" else "slow loss of robustness"
            when = [str(found.epoch), robust[found.epoch]]
        lines.append([*head, kind, *when, f"{best} of {job.spec.optim.epochs}", robust[best]])
    return pd.DataFrame(lines, columns=columns)


def caption(frame: pd.DataFrame) -> str:
    """What intervals, passes and hours stand for."""
    if frame["value"].isna().all():
        return "No network is finished yet."
    return (f"{tables.caption(_rows(frame.dropna(subset='value')))} One pass: every training image forward and backward once, "
            "counted by the training loop; measurements on validation images are not in it, but in the hours. Best epoch: by "
            "robust accuracy on them. The interval of a single seed speaks about other test images only.")


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


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines as `accuracy.estimates` takes them; a network is a method of its own, or what its column `line` says."""
    line = frame["line"] if "line" in frame else frame["method"] + " " + frame["at"]
    said = frame["run"].map(lambda run: frame.attrs.get("lost", {}).get(run, DIVERGED))
    images = frame["n"].where(frame["value"].notna(), said)
    return frame.assign(method=line, run=frame["run"] + line, images=images, metric="accuracy")


def _accuracies(frame: pd.DataFrame, lines: dict[str, tuple], names: tuple[str, ...]) -> pd.DataFrame:
    """A text line for each of `lines` (value of the column `line` -> its first cells), a column for each attack; what stands on
    one seed among several says which."""
    rows = frame[frame["line"].isin(lines)]
    if rows.empty:
        return pd.DataFrame(list(lines.values()), columns=list(names)).assign(clean=NOT_RUN)
    found = accuracy.one_line(accuracy.estimates(_rows(rows)))
    mean = found["seed"].str.startswith("mean")
    one = ~mean & found["method"].isin(found.loc[mean, "method"])
    found = found.assign(line=found["method"], mark=(", seed " + found["seed"]).where(one, ""))
    return tables.by_attack(found, lines, names, within)


def _differences(pairs: Sequence[tuple], names: tuple[str, ...]) -> pd.DataFrame:
    """A line of text for each (first cells, networks by seed, others by seed, what is said in place of a number), a column for
    each measurement; differences are paired, and say on how many images and seeds they stand."""
    out, words = [], {}
    for head, ours, theirs, word in pairs:
        words[head] = word
        for attack in ["none", *attacks([*ours.values(), *theirs.values()])]:
            found = _difference(ours, theirs, attack)
            if found:
                (images, seeds, *numbers, _), robust = found, threat_of(ours)
                out.append([head, header(attack, robust.threat, robust.eps), *numbers, f" ({images:,} images, seeds: {seeds})"])
    found = pd.DataFrame(out, columns=["line", "column", "value", "low", "high", "mark"])
    return tables.pivot(found, {head: head for head in words}, names, points, words)


def _accuracy(found: dict[int, Network], attack: str, robust: Robust) -> str:
    masks = [m for n in found.values() if (m := n.mask(attack, robust.threat, robust.eps)) is not None]
    if not masks:
        return NOT_RUN
    return within(*(stats.clopper_pearson(int(masks[0].sum()), len(masks[0])) if len(masks) == 1
                    else stats.student_interval([m.mean() for m in masks]))[:3])


def _pgd(networks: Sequence[Network]) -> str:
    """The strongest PGD among the measurements, empty if there is none."""
    return next((a for a in reversed(attacks(networks)) if parse(a).kind == "pgd"), "")


def _difference(ours: dict[int, Network], theirs: dict[int, Network], attack: str) -> tuple | None:
    """`paired` under the threat of ours; none where a network is missing."""
    return paired(ours, theirs, attack, threat_of(ours)) if ours and theirs else None


def _points(found: tuple | None, missing: str = NOT_RUN) -> str:
    return points(*found[2:5]) if found else missing


def _size(job: Job) -> int:
    """What a run of the parts fraction and width varies."""
    return job.spec.data.train_images if dict(job.labels)["part"] == "fraction" else job.spec.model.width


def _mean(group: pd.DataFrame, cost: Callable, form: str, missing: str) -> str:
    values = cost(group)
    return missing if values.isna().any() else f"{values.mean():{form}}"
