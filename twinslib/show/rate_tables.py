"""Effective learning rates layer by layer, and the tables and sentences of notebook 02, from `course` frames alone.

Three readings of "effective learning rate": lr / ||w||^2, lr ||g|| / ||w||, and the angle by which one optimiser step turns the
weights. Means over recorded steps, medians over convolutions, as in the rule of C5.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.effects import pair_label
from ..evidence import course
from ..evidence.course import KEYS, Course
from ..specs.labels import dataset_label, joined, method_label, unique

PAIRS = (("twins_at", "at"), ("twins_at", "at_lr"), ("twins_at", "at_split"))  # the last one differs in the statistics alone
RATES = {"lr_over_w2": "lr/‖w‖²", "relative_step": "lr‖g‖/‖w‖", "angle": "angle per step"}
FROZEN = ("twins", "frozen")  # wings with statistics of pre-training
MEANS = ["w_norm", "g_norm", "cos_wg", "g_first", "g_second"]
EPOCHS = 5  # of leaving the start, as in the rule of C6


def by_layer(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per run and convolution: KEYS, layer, place (1-based among the convolutions), and means over recorded steps of
    RATES, w_norm, g_norm and |cos_wg|; g_first and g_second, norms of the gradients of the halves' losses, each with weight 1
    (NaN where the batch is whole); growth = last over first w_norm."""
    frame, lost = course.quantities(courses), course.lost(courses)
    if frame.empty:
        out = pd.DataFrame(columns=[*KEYS, "layer", "place", *RATES, *MEANS, "growth"])
        out.attrs["lost"] = lost
        return out
    frame = frame[frame["convolution"]].assign(cos_wg=frame["cos_wg"].abs())
    groups = frame.groupby([*KEYS, "layer"], sort=False)
    out = groups[[*RATES, *MEANS]].mean()
    out["growth"] = groups["w_norm"].last() / groups["w_norm"].first()
    out = out.reset_index()
    out.insert(4, "place", out.groupby(KEYS, sort=False).cumcount() + 1)
    for c in courses:
        mine = (out[KEYS] == c.keys).all(axis=1)
        m = c.spec.method
        total = 1 + m.twins_weight if m.normalize_loss else 1.0
        weights = (m.twins_weight / total, 1 / total) if m.halves else (math.nan, math.nan)
        for name, weight in zip(("g_first", "g_second"), weights, strict=True):
            out.loc[mine, name] /= weight
    out.attrs["lost"] = lost
    return out


def layer_ratios(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """RATES of a method over those of its baseline, convolution by convolution, same data set and seed: dataset, method,
    baseline, seed, place, RATES."""
    out = _ratios(by_layer(courses).set_index([*KEYS, "place"])[list(RATES)], pairs)
    out.attrs["lost"] = course.lost(courses)
    return out


def run_ratios(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """As `course.ratios`, for all three RATES: dataset, method, baseline, seed, RATES."""
    return _ratios(by_layer(courses).groupby(KEYS, sort=False)[list(RATES)].median(), pairs)


def _ratios(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    out = []
    for method, baseline in pairs:
        mine, theirs = (frame[frame.index.get_level_values("method") == m].droplevel("method") for m in (method, baseline))
        both = mine.index.intersection(theirs.index, sort=False)
        found = (mine.loc[both] / theirs.loc[both]).reset_index()
        found.insert(1, "method", method)
        found.insert(2, "baseline", baseline)
        out.append(found)
    return pd.concat(out, ignore_index=True)


def loss_differences(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS, epochs: int = EPOCHS) -> pd.DataFrame:
    """PGD loss on the fixed training images, method minus baseline with the same seed, after each of epochs 1 to `epochs`:
    dataset, method, baseline, seed, epoch, value (nats)."""
    frame = course.early_losses(courses, epochs)
    frame = frame[frame["epoch"] > 0].set_index([*KEYS, "epoch"])["loss"]
    return _differences(frame, pairs)


def time_differences(courses: Sequence[Course], baseline: str = "at") -> pd.DataFrame:
    """`course.escape_times` of each other method minus that of `baseline` with the same seed: dataset, method, baseline, seed,
    value (epochs; NaN where neither gets there)."""
    frame = course.escape_times(courses, baseline).set_index(KEYS)["epochs"]
    return _differences(frame, [(m, baseline) for m in unique(frame.index.get_level_values("method")) if m != baseline])


def _differences(frame: pd.Series, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    out = [pd.DataFrame(columns=["dataset", "method", "baseline", *[n for n in frame.index.names if n not in KEYS[:2]], "value"])]
    for method, baseline in pairs:
        mine, theirs = (frame[frame.index.get_level_values("method") == m].droplevel("method") for m in (method, baseline))
        both = mine.index.intersection(theirs.index, sort=False)
        if len(both):
            out.append((mine[both] - theirs[both]).rename("value").reset_index().assign(method=method, baseline=baseline))
    return pd.concat([part for part in out if len(part)] or out, ignore_index=True)[list(out[0].columns)]


def over_seeds(values: Sequence[float], back: Callable = lambda x: x) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval over seeds, NaN where one seed or an infinite value gives none; `back` is
    applied to all three (np.exp for means of logarithms)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return float(back(values.mean())), math.nan, math.nan
    return tuple(float(back(v)) for v in stats.student_interval(values)[:3])


def lost_lines(courses: Sequence[Course], there: set[tuple], columns: Sequence[str], *pairs: tuple[str, str]) -> list[dict]:
    """Lines of a table for what is not `there` (data set and method, or data set and pair) because a run of it diverged; the
    first column is left open. Without pairs: for methods."""
    out = {}
    for (dataset, method, _), word in course.lost(courses).items():
        for names in [pair for pair in pairs if method in pair] if pairs else [(method,)]:
            if (dataset, *names) not in there:
                out.setdefault((dataset, *names), dict.fromkeys(columns, word) | {"data set": dataset_label(dataset), "seeds": 0})
    return [line | {"names": names} for (_, *names), line in out.items()]


def rate_table(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per data set and method: medians over convolutions, means over seeds with their 95 % intervals."""
    layers = by_layer(courses)
    runs = layers.groupby(KEYS, sort=False)[[*RATES, "growth"]].median().reset_index()
    steady = {tuple(c.keys): course.stable(c) for c in courses}
    lines = []
    for (dataset, method), mine in runs.groupby(["dataset", "method"], sort=False):
        lines.append({
            "data set": dataset_label(dataset), "method": method_label(method), "seeds": len(mine),
            "lr/‖w‖² (10⁻⁴)": _text(over_seeds(1e4 * mine["lr_over_w2"]), "{:.2f}"),
            "lr‖g‖/‖w‖ (10⁻³)": _text(over_seeds(1e3 * mine["relative_step"]), "{:.2f}"),
            "angle per step (mrad)": _text(over_seeds(1e3 * mine["angle"]), "{:.2f}"),
            "growth of ‖w‖ (%)": _text(over_seeds(100 * (mine["growth"] - 1)), "{:+.1f}"),
            "stable": "yes" if all(ok for (d, m, _), ok in steady.items() if (d, m) == (dataset, method)) else "no"})
    columns = ["data set", "method", "seeds", "lr/‖w‖² (10⁻⁴)", "lr‖g‖/‖w‖ (10⁻³)", "angle per step (mrad)",
               "growth of ‖w‖ (%)", "stable"]
    there = set(zip(runs["dataset"], runs["method"], strict=True))
    lines += [line | {"method": method_label(line["names"][0])} for line in lost_lines(courses, there, columns)]
    return pd.DataFrame(lines, columns=columns)


def ratio_table(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Geometric means over seeds of `run_ratios` with their 95 % intervals, and in how many seeds the angle's is above 1."""
    lines, there = [], set()
    for (dataset, *pair), mine in run_ratios(courses, pairs).groupby(["dataset", "method", "baseline"], sort=False):
        there.add((dataset, *pair))
        lines.append({"ratio": pair_label(pair, "times"), "data set": dataset_label(dataset), "seeds": len(mine)} | {
            label: _text(over_seeds(np.log(mine[name]), np.exp), "{:.2f}") for name, label in RATES.items()})
    lines += [line | {"ratio": pair_label(line["names"], "times")} for line in
              lost_lines(courses, there, list(RATES.values()), *pairs)]
    return pd.DataFrame(lines, columns=["ratio", "data set", "seeds", *RATES.values()])


def loss_table(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS, epochs: int = EPOCHS) -> pd.DataFrame:
    """`loss_differences` in nats: means over seeds with their 95 % intervals, a column per epoch; then in how many of the
    epochs each seed's is below 0."""
    lines, there = [], set()
    found = loss_differences(courses, pairs, epochs)
    for (dataset, *pair), mine in found.groupby(["dataset", "method", "baseline"], sort=False):
        there.add((dataset, *pair))
        line = {"difference": pair_label(pair), "data set": dataset_label(dataset), "seeds": mine["seed"].nunique()}
        line |= {f"epoch {epoch}": _text(over_seeds(group["value"]), "{:+.2f}") for epoch, group in mine.groupby("epoch")}
        below = (mine["value"] < 0).groupby(mine["seed"]).sum()
        lines.append(line | {"epochs below 0, by seed": ", ".join(map(str, below))})
    columns = ["difference", "data set", "seeds", *(f"epoch {e}" for e in range(1, epochs + 1)), "epochs below 0, by seed"]
    lines += [line | {"difference": pair_label(line["names"])} for line in lost_lines(courses, there, columns[3:], *pairs)]
    return pd.DataFrame(lines, columns=columns)


def time_table(courses: Sequence[Course], baseline: str = "at") -> pd.DataFrame:
    """`course.escape_times` in epochs, mean over seeds, and minus the baseline's with its 95 % interval over seeds."""
    times, found = course.escape_times(courses, baseline), time_differences(courses, baseline)
    lines = []
    for (dataset, method), mine in times.groupby(["dataset", "method"], sort=False):
        against = found[(found["dataset"] == dataset) & (found["method"] == method)]["value"]
        lines.append({"data set": dataset_label(dataset), "method": method_label(method), "seeds": len(mine),
                      "epochs": _plain(mine["epochs"].mean(), "{:.2f}"),
                      f"minus {method_label(baseline)}": _text(over_seeds(against), "{:+.2f}") if len(against) else ""})
    columns = ["data set", "method", "seeds", "epochs", f"minus {method_label(baseline)}"]
    there = set(zip(times["dataset"], times["method"], strict=True))
    lines += [line | {"method": method_label(line["names"][0])} for line in lost_lines(courses, there, columns[3:])]
    return pd.DataFrame(lines, columns=columns)


def scale_reading(found: pd.DataFrame) -> str:
    """`dynamics.scale_check` in words."""
    parts = []
    for name, mine in found.groupby("statistics", sort=False):
        spread = mine["product"].max() / mine["product"].min()
        product = "is constant to 1 part in 10⁶" if spread < 1 + 1e-6 else f"changes by a factor of up to {spread:.3g}"
        parts.append(f"with {name} statistics ‖g‖·‖w‖ {product} and |cos(w, g)| is at most {mine['cos_wg'].abs().max():.1g}")
    one = found[found["factor"] == 1].set_index("statistics")["g_norm"]
    same = f" At c = 1 the frozen gradient is {one['frozen'] / one['batch']:.1f} times the other." if len(one) == 2 else ""
    return _sentence("; ".join(parts)) + same


def ratio_reading(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """In words: in how many convolutions each of RATES (geometric mean over seeds) is larger than each baseline's."""
    layers, sentences = layer_ratios(courses, pairs), []
    for (dataset, method), here in layers.groupby(["dataset", "method"], sort=False):
        parts = []
        for name, label in RATES.items():
            each = [np.log(mine[name]).groupby(mine["place"]).mean() for _, mine in here.groupby("baseline", sort=False)]
            parts.append(f"{label} in {', '.join(str((v > 0).sum()) for v in each)}")
        sentences.append(f"{method_label(method)} on {dataset_label(dataset)} against "
                         f"{_listed(method_label(b) for b in unique(here['baseline']))}: larger {'; '.join(parts)} of "
                         f"{here['place'].nunique()} convolutions.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


def growth_reading(courses: Sequence[Course], methods: Sequence[str]) -> str:
    """How much longer the weights became, in words: median over convolutions, mean over seeds."""
    layers, sentences = by_layer(courses), []
    for dataset, here in layers[layers["method"].isin(methods)].groupby("dataset", sort=False):
        grown = here.groupby(KEYS, sort=False)["growth"].median().groupby(level="method", sort=False).mean()
        parts = [f"{method_label(m)} {_plain(100 * (grown[m] - 1), '{:+.1f}')} %" for m in methods if m in grown]
        sentences.append(f"On {dataset_label(dataset)} ‖w‖ changed from the first to the last recorded step (median over "
                         f"convolutions): {'; '.join(parts)}.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


def wing_reading(courses: Sequence[Course]) -> str:
    """In words, per data set: gradient of the first half over that of the second, and |cos(w, g)| with and without frozen
    statistics."""
    layers, sentences = by_layer(courses), []
    wings = {(c.spec.data.name, c.spec.method.name): c.spec.method.wings for c in courses}
    for dataset, here in layers.groupby("dataset", sort=False):
        parts = []
        for method, mine in here.dropna(subset="g_first").groupby("method", sort=False):
            ratio = np.exp(np.log(mine["g_first"] / mine["g_second"]).groupby([mine["seed"]]).median().mean())
            parts.append(f"{method_label(method)} {ratio:.2f}")
        frozen = here["method"].map(lambda m, d=dataset: wings[d, m] in FROZEN)
        cosines = [f"{name} {here.loc[rows, 'cos_wg'].median():.1g}" for name, rows in
                   (("with frozen statistics", frozen), ("without", ~frozen)) if rows.any()]
        first = f"gradient of the first half over that of the second: {'; '.join(parts)}; " if parts else ""
        sentences.append(f"On {dataset_label(dataset)} (medians over convolutions) {first}|cos(w, g)| {_listed(cosines)}.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


def drift_reading(courses: Sequence[Course]) -> str:
    """Drift of the means after the last epoch in words: mean over layers and seeds."""
    frame, sentences = course.drift(courses), []
    for dataset, here in frame.groupby("dataset", sort=False):
        last = here[here["epoch"] == here.groupby(KEYS)["epoch"].transform("max")]
        parts = [f"{method_label(m)} {mine['mean_drift'].mean():.2f}" for m, mine in last.groupby("method", sort=False)]
        sentences.append(f"After the last epoch on {dataset_label(dataset)} the means have moved by so many standard deviations "
                         f"of the start: {_listed(parts)}.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


def loss_reading(courses: Sequence[Course], pairs: Sequence[tuple[str, str]] = PAIRS, epochs: int = EPOCHS) -> str:
    """`loss_differences` in words: how often below 0."""
    sentences = []
    for (dataset, method), here in loss_differences(courses, pairs, epochs).groupby(["dataset", "method"], sort=False):
        parts = [f"{method_label(baseline)} in {(mine['value'] < 0).sum()} of {len(mine)} (mean "
                 f"{_plain(mine['value'].mean(), '{:+.2f}')} nats)" for baseline, mine in here.groupby("baseline", sort=False)]
        sentences.append(f"On {dataset_label(dataset)}, over epochs and seeds, the loss of {method_label(method)} is below that "
                         f"of {_listed(parts)}.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


def time_reading(courses: Sequence[Course], methods: Sequence[str] = ("at_lr", "twins_at"), baseline: str = "at") -> str:
    """Times to the threshold in words, and how finely they are measured."""
    found, sentences = time_differences(courses, baseline), []
    found = found[found["method"].isin(methods)]
    grid = {c.spec.data.name: c.spec.follow.record_every / c.steps_per_epoch for c in courses if "losses" in c.arrays}
    for dataset, here in found.groupby("dataset", sort=False):
        parts = [f"{method_label(method)} sooner in {(mine['value'] < 0).sum()}, later in {(mine['value'] > 0).sum()} of "
                 f"{_seeds(mine)}" for method, mine in here.groupby("method", sort=False)]
        sentences.append(f"On {dataset_label(dataset)}, against {method_label(baseline)}: {_listed(parts)}. The recorded steps "
                         f"are {grid[dataset]:.3g} epochs apart.")
    return joined(*sentences, course.lost_text(courses), otherwise=NOTHING)


NOTHING = "No run that could be compared is finished yet."


def checks(courses: Sequence[Course]) -> dict[str, bool]:
    """What must hold if the recorded numbers are right, whatever the methods do; true of no runs."""
    layers = by_layer(courses)
    blind = {(c.spec.data.name, c.spec.method.name) for c in courses if c.spec.method.wings not in FROZEN}
    only_batch = [key in blind for key in zip(layers["dataset"], layers["method"], strict=True)]
    frame, sums = course.quantities(courses), True
    halves = {tuple(c.keys) for c in courses if c.spec.method.halves}
    for keys, mine in frame.groupby(KEYS, sort=False):
        if keys in halves:
            sums &= bool((mine["g_norm"] <= 1.01 * (mine["g_first"] + mine["g_second"])).all())
    start = course.early_losses(courses, 0)
    spread = start.groupby(["dataset", "seed"])["loss"].agg(lambda v: v.max() - v.min()) if len(start) else pd.Series(dtype=float)
    alone, frozen = layers.loc[only_batch, "cos_wg"], layers.loc[[not b for b in only_batch], "cos_wg"]
    both = len(alone) and len(frozen)
    return {
        "with batch statistics alone every convolution's mean |cos(w, g)| is below 0.001": bool((alone < 1e-3).all()),
        "with frozen statistics its median is more than ten times the largest of these":
            bool(frozen.median() > 10 * alone.max()) if both else True,
        "the whole gradient is never longer than those of the halves together": sums,
        "all methods start from the same loss": bool((spread < 1e-3).all()),
        "no epoch's training loss exceeds the first's": all(course.stable(c) for c in courses if not c.absent)}


def _text(found: tuple[float, float, float], form: str) -> str:
    """2.16 [1.80, 2.59]; without an interval the value alone."""
    value, low, high = (_plain(v, form) for v in found)
    return value if math.isnan(found[1]) else f"{value} [{low}, {high}]"


def _plain(value: float, form: str) -> str:
    """NaN and infinity as words; no negative zero."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "never"
    text = form.format(value)
    return form.format(0.0) if float(text) == 0 else text


def _seeds(found: pd.DataFrame) -> str:
    n = found["seed"].nunique()
    return f"{n} seed{'' if n == 1 else 's'}"


def _listed(words) -> str:
    """a; b; c — names hold commas."""
    return "; ".join(words)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
