"""Adversarial fine-tuning in tables, from the lines of its networks (`networks.frame`); nothing is trained or attacked here.

Tables are DataFrames of text: accuracy in percent with 95 % intervals, differences in points on the same images, cost in passes
over the training set (forward and backward, one half each).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..base import reference, stats
from ..base.collapse import NEVER, collapsed
from ..evidence.accuracy import said
from ..evidence.course import best_epoch
from ..evidence.frame import Contrast, contrast, done, paired
from ..evidence.networks import Network, averages, known
from ..evidence.rows import consistent
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN, attack_label, eps_label, header, method_label, points, unique
from ..specs.run import AttackSpec
from ..specs.strength import parse, strength
from ..store.store import Store
from ..studies.finetuning import STUDY
from . import origins, tables
from .aft_costs import AT, NETWORKS, OURS, RANDOM, RIVALS, UNKNOWN, main_part, passes_per_epoch
from .tables import listed, number

STARTS = (OURS, "aft_public")  # one method for each start network
PARTS = {"fraction": ("train_images", "training images"), "width": ("width", "channels of the first stage")}
SPENT = {"passes, start given": ("images_given", "train_images", ".1f"), "hours, start given": ("seconds", "hour", ".3g"),
         "passes, start included": ("images_whole", "train_images", ".1f"),
         "hours, start included": ("seconds_whole", "hour", ".3g")}  # cost, its unit, how it is written


def accuracy_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Main part: each method at its best epoch (on validation images) and its last, and each start network once, finished or
    planned; accuracies, also under the strongest PGD on the images that AutoAttack has; passes over the training set and hours of
    training on the clock, without and with those of the start, and its precision."""
    main = main_part(frame, dataset).assign(hour=3600, line=lambda lines: lines["method"] + " " + lines["at"])
    starts = main[main["at"] == "start"].sort_values("value", key=pd.isna, kind="stable")  # measured ones first
    starts = starts.drop_duplicates("start")
    main = main[(main["at"] != "start") | main["run"].isin(starts["run"])]  # one network, though every seed measures it
    lines, spent = {}, []
    for (start, method, at, line), mine in main.groupby(["start", "method", "at", "line"], sort=False):
        found, word = mine.dropna(subset="value").drop_duplicates("seed"), said(mine)
        lines[line] = (f"start network: {start}" if at == "start" else method_label(method), NETWORKS[at],
                       listed(found["seed"], word), listed(found["epoch"], word))
        costs = {title: (found[cost] / found[unit], form) for title, (cost, unit, form) in SPENT.items()}
        spent.append([word if found.empty else f"{values.mean():{form}}" if values.notna().all() else
                      UNKNOWN if "included" in title else "not recorded" for title, (values, form) in costs.items()]
                     + [listed(found["precision"].replace("", UNKNOWN), word)])
    costs = pd.DataFrame(spent, columns=[*SPENT, "precision"])
    return _accuracies(main, lines, ("method", "network", "seeds", "epoch"), beside_auto(main)).join(costs)


def beside_auto(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each network that AutoAttack (or a part of it) saw on fewer images than the strongest PGD, lines of that PGD on the same
    images: the first of those that it has."""
    out, done_ = [], frame.dropna(subset="value")
    for _, mine in done_.groupby(["line", "seed", "threat", "eps"], sort=False):
        kinds = mine["attack"].map(lambda attack: parse(attack).kind)
        pgd, auto = mine[kinds == "pgd"], mine.loc[kinds == "autoattack", "n"]
        if len(pgd) and len(auto) and auto.max() < pgd["n"].max():
            best = pgd.loc[pgd["attack"].map(strength).idxmax()]
            value, low, high, _ = stats.clopper_pearson(int(np.sum(best["row"].hits[:int(auto.max())])), int(auto.max()))
            out.append({**best, "value": value, "low": low, "high": high, "n": int(auto.max())})
    return pd.DataFrame(out, columns=frame.columns)


def difference_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """AFT at its last epoch minus the other networks of the main part: AT from random weights at its best and its last epoch, the
    others at their best where they keep one; then AT at its best epoch minus its last."""
    here = known(frame[(frame["dataset"] == dataset) & (frame["part"] == "main")])
    found = {key: mine.dropna(subset="value") for key, mine in here.groupby(["method", "at"])}
    none, pairs = here.iloc[:0], {}
    for method in (m for m in unique([*RIVALS, *main_part(here, dataset)["method"]]) if m != OURS):
        ends = [at for at in ("best", "last") if len(found.get((method, at), none))]
        for at in ends[:2 if method == AT else 1] or [""]:
            word = said(here[here["method"].isin((OURS, method))])
            pairs[f"{method_label(OURS)} - {method_label(method)}", NETWORKS.get(at, "")] = (
                found.get((OURS, "last"), none), found.get((method, at), none), word)
    best, last = (found.get((AT, at), none) for at in ("best", "last"))
    word = said(here[here["method"] == AT])
    epochs = listed(best.drop_duplicates("seed")["epoch"], word)
    return _differences(pairs | {(method_label(AT), f"best epoch ({epochs}) - last"): (best, last, word)},
                        ("difference (points)", "network"))


def starts_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Our own and the public start network before and after fine-tuning; of a public one also the clean accuracy as published,
    which stands on all test images where ours stands on the first of our order."""
    lines = []
    for method in STARTS:
        mine = frame[(frame["dataset"] == dataset) & (frame["part"] == "main") & (frame["method"] == method)]
        before, after = (mine[mine["at"] == at].dropna(subset="value") for at in ("start", "last"))
        columns = ("network", "published clean", "seeds", "clean before", "clean after", "PGD before", "PGD after",
                   "gain, clean (points)", "gain, PGD (points)", "test images")
        line = {"start of": method_label(method)} | dict.fromkeys(columns, said(mine))
        if len(before):
            spec, first = before["row"].iloc[0].spec, before[before["seed"] == before["seed"].iloc[0]]  # the same in every seed
            theirs = reference.published_network(spec.weights.file) if spec.weights else None
            line |= {"network": spec.model.arch + (f", width {spec.model.width}" if spec.model.width else ""),
                     "published clean": f"{100 * theirs['clean_acc']:.2f} (all {theirs['images']:,} test images, "
                     f"{theirs['source']})" if theirs else "",
                     "seeds": listed(unique(after["seed"])), "test images": f"first {first['n'].max():,} of our order"}
            for title, attack in (("clean", "none"), ("PGD", strongest_pgd(before, after))):
                line |= {f"{title} before": _accuracy(first, attack, spec.attack),
                         f"{title} after": _accuracy(after, attack, spec.attack),
                         f"gain, {title} (points)": _points(difference(after, before, attack))}
        lines.append(line)
    return pd.DataFrame(lines)


def schedule_table(store: Store, jobs: Sequence[Job], frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """AFT and each other schedule: clean / PGD accuracy on the validation images by learning rate, the rate chosen, the precision
    of training, test accuracy, and its difference to AFT in points."""
    tuned = origins.tuning_table(store, [j for j in jobs if j.spec.data.name == dataset])
    here = frame[(frame["dataset"] == dataset) & (frame["at"] == "last")
                 & ((frame["part"] == "schedule") | (frame["part"] == "main") & (frame["method"] == OURS))]
    lines = {n: mine for n, mine in here.sort_values("part", kind="stable").groupby("method", sort=False)}
    found, words = {n: mine.dropna(subset="value") for n, mine in lines.items()}, {n: said(mine) for n, mine in lines.items()}
    attacks = known(here[here["part"] == "schedule"])["attack"]  # AutoAttack is the main part's alone
    heads = {n: (method_label(n), listed(unique(found[n]["seed"]), words[n])) for n in lines}
    out = _accuracies(here[here["attack"].isin(attacks)].assign(line=lambda lines: lines["method"]), heads, ("schedule", "seeds"))
    more: dict[str, list[str]] = {}
    for candidate, group in tuned.groupby("candidate", sort=False):
        scores = group.set_index("method")
        scores = (scores["clean, validation"] + " / " + scores["PGD, validation"]).to_dict()
        more[f"validation, {candidate}"] = [scores.get(method_label(n), NOT_RUN) for n in lines]
    first = {j.spec.method.name: j for j in reversed(jobs) if j.study == STUDY and j.spec.data.name == dataset
             and dict(j.labels)["part"] in ("main", "schedule")}
    more["lr chosen"] = [f"{first[n].spec.optim.lr:g}" if first[n].settled else store.absent(first[n]) for n in lines]
    more["precision"] = [listed(unique(found[n]["precision"]), words[n]) for n in lines]
    minus, none = {}, here.iloc[:0]
    ours, at_ours = found.get(OURS, none), lines.get(OURS, none)
    for title in ("clean", "PGD"):
        attacked = {n: "none" if title == "clean" else strongest_pgd(mine, ours) for n, mine in found.items()}
        minus[f"{title} minus AFT (points)"] = ["" if n == OURS else _points(
            difference(found[n], ours, attacked[n]), said(lines[n], at_ours)) for n in lines]
    return pd.concat([out.iloc[:, :2], pd.DataFrame(more), out.iloc[:, 2:], pd.DataFrame(minus)], axis=1)


def data_width_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """AFT and the same epochs from random weights by number of training images and by width of the network, next to the main
    part; the seeds that both have."""
    here, parts, lines = frame[(frame["dataset"] == dataset) & (frame["at"] == "last")], [], {}
    for part, (column, title) in PARTS.items():
        mine, full = here[here["part"] == part], known(here[here["part"] == "main"])
        there = known(mine)
        full = full[full["method"].isin(mine["method"]) & full["seed"].isin(
            there["seed"] if len(there) else [min(known(here)["seed"], default=0)])]
        both = pd.concat([mine, full[full["attack"].isin(there["attack"])] if len(there) else full])
        both["line"] = [f"{part} {m} {v}" for m, v in zip(both["method"], both[column], strict=True)]
        order = unique(both["method"])
        for (_, value), of in both.groupby([both["method"].map(order.index), column]):
            size = f"{value:,}" if value else "of the main part"
            lines[of["line"].iloc[0]] = (title if part == "fraction" else part, size, method_label(of["method"].iloc[0]),
                                         listed(unique(of.dropna(subset="value")["seed"]), said(of)))
        parts.append(both)
    return _accuracies(pd.concat(parts), lines, ("varied", "value", "method", "seeds"))


def data_width_differences(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """AFT minus the same epochs from random weights for each number of training images and each width."""
    here, pairs = frame[(frame["dataset"] == dataset) & (frame["at"] == "last")], {}
    for part, (column, title) in PARTS.items():
        mine = here[here["part"] == part]
        word = said(mine[mine["method"].isin((OURS, RANDOM))])
        for size, of in mine.groupby(column):
            both = (of[of["method"] == name].dropna(subset="value") for name in (OURS, RANDOM))
            pairs[f"{method_label(OURS)} - {method_label(RANDOM)}", f"{size:,} {title}"] = (*both, word)
    return _differences(pairs, ("difference (points)", "with"))


def threat_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Networks trained under the other threat, next to AFT and its rivals from random weights, each under its own threat."""
    here = known(frame[(frame["dataset"] == dataset) & (frame["part"] == "main") & (frame["at"] == "last")])
    usual, lines = set(main_part(known(frame), dataset)["trained_threat"]), []
    other = [m for m in unique(here["method"]) if not set(here.loc[here["method"] == m, "trained_threat"]) & usual]
    for method in unique([OURS, AT, RANDOM, *other]):
        mine = here[here["method"] == method]
        word, done_ = said(mine), mine.dropna(subset="value")
        found = {r.attack: r for r in averages(mine, ["method"]).itertuples()}
        pgd = max((a for a in found if parse(a).kind == "pgd"), key=strength, default=None)
        against = unique(eps_label(r.eps, r.threat) for a, r in found.items() if a != "none")
        lines.append({"method": method_label(method), "trained against": " or ".join(against) or NOT_RUN,
                      "seeds": listed(unique(done_["seed"]), word), "epochs": listed(done_["epoch"], word),
                      "clean": number(found.get("none")),
                      "PGD under its threat": f"{number(found[pgd])} ({attack_label(pgd)})" if pgd else NOT_RUN})
    return pd.DataFrame(lines)


def collapse_table(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Whether single-step and Free training lost their robustness or never had any (`collapsed`), and their best epoch; robust
    accuracies on validation images."""
    lines, columns = [], ["method", "seed", "catastrophic overfitting", "in epoch", "robust then", "best epoch", "robust at best"]
    for job in (j for j in jobs if j.study == STUDY and dict(j.labels)["part"] == "main"):
        m = job.spec.method
        if not m.attacks or (m.replays == 1 and job.spec.attack.steps != 1):
            continue
        record = store.run(job.spec) if job.settled else None
        rows = [row for row in record["epochs"] if "val_robust_acc" in row] if record else []
        cells = [store.absent(job)] * 5
        if rows:
            found, best = collapsed(rows, images=record["val_images"], classes=record["classes"]), best_epoch(rows)
            robust = {row["epoch"]: f"{100 * row['val_robust_acc']:.1f} %" for row in rows}
            kind = {None: "none", NEVER: NEVER, "at once": "at once"}.get(found and found.kind, "slow loss of robustness")
            when = [str(found.epoch), robust[found.epoch]] if found and kind != NEVER else ["", ""]
            cells = [kind, *when, f"{best} of {job.spec.optim.epochs}", robust[best]]
        lines.append([method_label(m.name), str(job.spec.seed), *cells])
    return pd.DataFrame(lines, columns=columns)


def caption(frame: pd.DataFrame) -> str:
    """What intervals, passes and hours stand for."""
    if frame["value"].isna().all():
        return "No network is finished yet."
    rows = frame.assign(run=frame["run"] + frame["part"] + frame["at"], images=frame["absent"])
    return (f"{tables.caption(rows)} One pass: every training image forward and backward once, "
            "counted by the training loop; measurements on validation images are not in it, but in the hours. Best epoch: by "
            "robust accuracy on them. The interval of a single seed speaks about other test images only.")


def sanity(networks: Sequence[Network]) -> dict[str, bool]:
    """What must hold for accuracies and costs to be believed, over all finished networks."""
    counted, alright = True, [(True, True)]
    for n in networks:
        alright.append(consistent({e: {"": mask} for e, mask in n.masks.items()}))
        each = passes_per_epoch(n.spec)
        if each is not None and n.split:
            counted &= math.isclose(n.given.images, each * n.epoch * n.train_images)
    bounded, weaker = map(all, zip(*alright, strict=True))
    return {"no image is right under attack and wrong without": bounded,
            "AutoAttack (or its part) leaves no more images than PGD, to within 1 % of them": weaker,
            "passes are those counted by hand: steps + 1 for PGD, 2 for Fast, replays for Free, 1 for natural training": counted}


def _accuracies(frame: pd.DataFrame, lines: Mapping[str, tuple], names: tuple[str, ...], *more: pd.DataFrame) -> pd.DataFrame:
    """A text line for each of `lines` (value of the column `line` -> its first cells), a column for each attack, then those that
    `more` frames add; what stands on one seed among several says which."""
    found, *others = (averages(known(f[f["line"].isin(lines)]), ["line"]) for f in (frame, *more))
    if found.empty:
        return pd.DataFrame(list(lines.values()), columns=list(names)).assign(clean=NOT_RUN)
    several = set(found.loc[found["seed"].str.startswith("mean"), "line"])
    for one in (found, *others):
        here = ~one["seed"].str.startswith("mean") & one["line"].isin(several)
        one["mark"] = (", seed " + one["seed"]).where(here, "")
    out, *others = (tables.by_attack(one, lines, names) for one in (found, *others) if len(one))
    for one in others:
        out = out.join(one[[c for c in one if c not in out]])
    return out


def _differences(pairs: Mapping[tuple, tuple], names: tuple[str, ...]) -> pd.DataFrame:
    """A line of text for each of `pairs` (first cells -> measured lines of both, what is said in place of a number), a column for
    each measurement; differences are paired, and say on how many images and seeds they stand."""
    out = []
    for head, (ours, theirs, _) in pairs.items():
        for attack in sorted({*ours["attack"], *theirs["attack"]}, key=strength):
            found = difference(ours, theirs, attack)
            if found.seeds:
                trained = ours["row"].iloc[0].spec.attack
                out.append([head, header(attack, trained.threat, trained.eps), *found[2:5],
                            f" ({found.images:,} images, seeds: {found.seeds})"])
    found = pd.DataFrame(out, columns=["line", "column", "value", "low", "high", "mark"])
    return tables.pivot(found, {head: head for head in pairs}, names, points, {head: word for head, (*_, word) in pairs.items()})


def _under(lines: pd.DataFrame, attack: str, trained: AttackSpec) -> pd.DataFrame:
    """Those that are measured under an attack at the radius of training."""
    there = (lines["threat"] == trained.threat) & np.isclose(lines["eps"], trained.eps, rtol=1e-6, atol=0)
    return lines[(lines["attack"] == attack) & (there | (attack == "none"))]


def _accuracy(lines: pd.DataFrame, attack: str, trained: AttackSpec) -> str:
    return number(next(averages(_under(lines, attack, trained), ["method"]).itertuples(), None))


def strongest_pgd(*lines: pd.DataFrame) -> str:
    """The strongest PGD among the measurements, empty if there is none."""
    return max((a for a in pd.concat(lines)["attack"] if parse(a).kind == "pgd"), key=strength, default="")


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, attack: str) -> Contrast:
    """Of measured lines, at the radius that ours were trained against."""
    rows = [_under(lines, attack, ours["row"].iloc[0].spec.attack)["row"] if len(ours) else () for lines in (ours, theirs)]
    both = done(paired(*rows))
    return contrast([a.hits for a, _ in both], [b.hits for _, b in both])


def _points(found: Contrast, missing: str = NOT_RUN) -> str:
    return points(*found[2:5]) if found.seeds else missing
