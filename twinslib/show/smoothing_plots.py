"""Figures of certified accuracy as functions of frames (`smoothing_tables`); nothing is computed anew. Percent against the L2
radius in [0, 1] pixels; bars are 95 % intervals, hollow markers public numbers. A grey line is what the best constant answer
earns, a dagger marks what is close to one (`smoothing_tables.MARK`).

A pre-training, a noise level and a kind of fine-tuning each have one colour, line style and marker in all figures.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence, Sized

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from ..evidence import public
from ..evidence.accuracy import said
from ..evidence.cells import Measured, absent
from ..specs.labels import DIVERGED, NOT_RUN, method_label, unique
from ..studies.rules import Cell
from ..studies.smoothing import CROSSED
from .cell_tables import LABELS, LONG, MANY, ONE, label_shares, levels, mismatch_name
from .figures import DOT, DROP, FLAGS, GREY, HOLLOW, PLAIN, Panel, figure, looks, nothing, stands_on
from .forest import forest
from .smoothing_tables import CONSTANT, NORMS, dagger, estimates, family, main_lines, name, on_images

MIXED = {"color": "#0072B2", "linestyle": "-", "marker": "^"}
SINGLE = {"color": "#D55E00", "linestyle": (0, (1, 1)), "marker": "s"}
CLEAN = {"color": "#555555", "linestyle": "--", "marker": "v"}
THIRD = {"color": "#009E73", "linestyle": "-.", "marker": "D"}
LEVELS = {0.0: CLEAN, 0.12: {"color": "#CC79A7", "linestyle": "-.", "marker": "X"},
          0.25: {"color": "#56B4E9", "linestyle": "--", "marker": "o"}, 0.5: THIRD | {"linestyle": "-", "marker": "s"},
          1.0: {"color": "#D55E00", "linestyle": (0, (1, 1)), "marker": "D"}}
COHEN = "Cohen et al. 2019"
ENDS = {"one": MIXED, "several": SINGLE}
CELLS = {"one": ONE, "several": MANY["one σ → same σ"]}  # one network for all noise levels, one for each
END = 1.75  # the largest radius that is drawn
CHANCE = {"color": GREY, "linestyle": "-", "linewidth": 1.0, "zorder": 1}
RULES = {"chance": CHANCE, "half": DROP}
CLOSE = "† close to a constant answer"
ONE_LOOK = {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "*"}
RADIUS = "L2 radius, pixels in [0, 1]"


def transfer_curves(frame: pd.DataFrame, dataset: str, sigma: float) -> Figure:
    """Certified accuracy against the radius at one noise level: a column for each norm, above after fine-tuning on clean images,
    below with noise of the level; a line for each pre-training."""
    main, single = main_lines(frame), f"noise{float(sigma)}"
    here = main[(main["dataset"] == dataset) & (main["sigma"] == sigma)]
    cells = [c for c in unique(here["cell"]) if not c.restat]
    fines = {"clean": "fine-tuned on\nclean images", single: f"fine-tuned\nwith σ {sigma:g}"}
    starts = {c.pretraining for c in cells if c.finetuning in fines}
    shown = {p: look for p, look in {"clean": CLEAN, single: SINGLE, "mixed": MIXED, "mixed_batch": THIRD}.items() if p in starts}
    _check(shown)
    norms = {n: NORMS[n] for n in NORMS if n in {c.norm for c in cells}}
    marks = [_line(family(main, dataset, Cell(pretraining=start, finetuning=fine, norm=norm), [sigma]), 0.012 * (i - 1),
                   row=fine, column=norm, line=start, name=name(start))
             for fine in fines for norm in norms for i, start in enumerate(shown)]
    return _certified(marks, dict.fromkeys(itertools.product(fines, norms), here), shown, rows=fines, columns=norms, height=1.6,
                      xlabel=f"{RADIUS} (certified at σ {sigma:g})", note=_note(here),
                      entries=[(f"pre-training: {name(p)}", look) for p, look in shown.items()])


def loss_plot(frame: pd.DataFrame) -> Figure:
    """From fine-tuning with noise (hollow) to fine-tuning on clean images (filled), mixed pre-training: a panel for each noise
    level, a line for each norm and for batch norm with other statistics (`cell_tables.losses`)."""
    frame = frame.assign(column=frame["sigma"], line=frame["norm"],
                         row=[LABELS[key] for key in zip(frame["norm"], frame["statistics"], strict=True)])
    frame[["noisy", "clean", "lost", "low", "high"]] *= 100
    ends = frame["noisy"].to_numpy()[:, None] - frame[["high", "low"]].to_numpy()  # of the loss, seen from the noisy end
    both = frame[["clean", "noisy"]]
    marks = pd.concat([
             frame.assign(x=frame["clean"], kind="thick", low=both.min(axis=1), high=both.max(axis=1)),
             frame.assign(x=frame["clean"], text=_daggers(frame["constant"]), low=ends[:, 0].clip(0, 100),
                          high=ends[:, 1].clip(0, 100)),
             frame.assign(x=frame["noisy"], kind="ring", low=np.nan, high=np.nan),
             pd.DataFrame({"column": s, "line": "chance", "kind": "upright", "x": 100 * chance}
                          for s, chance in frame.groupby("sigma")["chance"].max().items() if chance > 0)])
    looks = {norm: look | {"marker": "o"} for norm, look in (("batch", SINGLE), ("group", MIXED), ("layer", THIRD))}
    return forest(marks, {label: label for label in LABELS.values()}, looks | RULES,
                  {s: f"σ {s:g}" for s in sorted(frame["sigma"].unique())}, per_line=2,
                  xlabel=f"certified accuracy at L2 radius {frame['radius'].iloc[0]:g} (%)",
                  note=stands_on(frame["images"], frame["seeds"]),
                  entries=[("fine-tuned with noise of the level", HOLLOW),
                           ("fine-tuned on clean images (bar: 95 % interval of the loss)", DOT), *_constants(marks)])


def mismatch_plot(frame: pd.DataFrame, measure: str = "divergence") -> Figure:
    """Mismatch of stored statistics by layer, by one measure (`noise.mismatch`): a panel for each network, a line for each noise
    level; logarithmic, values below a thousandth at the edge."""
    if frame.empty:
        return nothing(DIVERGED if frame.attrs.get("lost") else NOT_RUN)
    marks = frame.assign(x=frame.groupby("cell")["layer"].transform(lambda layers: layers.factorize()[0]) + 1)
    marks = marks.sort_values("x", kind="stable").assign(y=marks[measure].clip(lower=1e-3))
    shown = {s: LEVELS.get(s, CLEAN) | {"markersize": 3, "linewidth": 1} for s in sorted(frame["sigma"].unique())}
    fig = figure(marks, shown, column="cell", line="sigma", log="y", longest=20, ticks=4, height=1.9, per_line=4,
                 columns={c: mismatch_name(c).replace(", before", ",\nbefore").replace(" → ", " →\n")
                          for c in unique(frame["cell"])},
                 sharex="col", ylabel=LONG[measure], xlabel="batch norm, from input to output",
                 note=stands_on(frame["images"], frame.groupby("cell")["seed"].nunique()),
                 entries=[("clean images" if s == 0 else f"σ {s:g}", look) for s, look in shown.items()])
    for ax in fig.axes:
        ax.title.set_size(8)
    return fig


def certified_curves(frame: pd.DataFrame, dataset: str) -> Figure:
    """Certified accuracy against the radius, a panel for each noise level: one network for all levels and the one made for the
    level, on as many draws; hollow the public network of Cohen et al. for the level; ticks on the axis mark the largest radius
    that the draws can give."""
    sigmas, main = levels(frame), main_lines(frame)
    _check(sigmas)
    theirs = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc' and value > 0")
    theirs = theirs[(theirs["method"] == COHEN) & theirs["sigma"].isin(sigmas)]
    marks = [pd.DataFrame({"x": theirs["radius"], "y": theirs["value"], "column": theirs["sigma"], "line": "public"})]
    names = {"one": "one network for all σ (mixed → clean)", "several": "one network for each σ"}
    lines = {(s, which): family(main, dataset, cell, [s]) for s in sigmas for which, cell in CELLS.items()}
    for (s, which), mine in lines.items():
        tops = [top for top in mine.loc[mine["value"].notna(), "ceiling"].unique()[:1] if top < END]
        marks += [_line(mine, column=s, line=which, name=names[which]),
                  pd.DataFrame({"x": tops, "y": 0.0, "column": s, "line": "top", "kind": "end"})]
    drawn = pd.concat(lines.values()).dropna(subset="value")
    shown = ENDS | {"public": HOLLOW | {"color": PLAIN}, "top": {"color": PLAIN}}
    return _certified(marks, {("", s): drawn[drawn["sigma"] == s] for s in sigmas}, shown, height=2.2, per_line=2, end=END,
                      columns={s: f"σ {s:g}" for s in sigmas}, note=_note(drawn),
                      words={("", s): said(*(lines[s, which] for which in CELLS)) for s in set(sigmas) - set(drawn["sigma"])},
                      entries=[*((names[which], look) for which, look in ENDS.items()),
                               (f"{COHEN}, one for each σ", shown["public"]),
                               ("largest radius possible", FLAGS["end"] | {"color": PLAIN})])


def confidence_plot(found: Sequence[Measured], dataset: str, sigmas: Sequence[float]) -> Figure:
    """Share of test images whose label gets at least so many of the votes, a panel for each noise level: one network against the
    one made for the level. What lies left of one half is wrong or abstains."""
    marks, names = [], {"one": "one network", "several": "one for each σ"}
    _check(sigmas)
    for sigma, (which, cell) in itertools.product(sigmas, CELLS.items()):
        shares = np.sort(label_shares(found, dataset, cell, sigma))
        y = 100 * (1 - np.arange(len(shares)) / max(len(shares), 1))
        chances = [m.chance for m in found if not m.absent and m.key == (dataset, cell, sigma)]
        rules = [("half", "upright", 0.5, np.nan)] + [("chance", "across", np.nan, 100 * c) for c in chances[:1]
                                                      if which == "one" and c]
        word = absent(found, dataset, [(cell.at(sigma), sigma)])
        mine = pd.DataFrame({"x": shares, "y": y} if len(shares) else {"absent": [word]})
        marks += [mine.assign(column=sigma, line=which, name=names[which], kind="plain"),
                  pd.DataFrame(rules, columns=["line", "kind", "x", "y"]).assign(column=sigma)]
    there = [m for m in found if not m.absent and m.dataset == dataset and m.sigma in sigmas
             and m.cell in {cell.at(m.sigma) for cell in CELLS.values()}]
    seeds = {(m.cell, m.sigma, m.seed): m for m in there}.values()
    shown = {which: look | {"drawstyle": "steps-pre"} for which, look in ENDS.items()} | RULES
    fig = figure(pd.concat(marks), shown, columns={s: f"σ {s:g}" for s in sigmas}, height=1.7, ylabel="test images (%)",
                 xlabel="at least this share of the votes for the label", per_line=4,
                 note=stands_on([len(m.certified.radius) for m in there], Counter((m.cell, m.sigma) for m in seeds).values()),
                 entries=[("one network (mixed → clean)", MIXED | {"marker": ""}), ("one for each σ", SINGLE | {"marker": ""}),
                          ("one half", DROP), (CONSTANT, CHANCE)])
    fig.axes[0].set(xlim=(0, 1), ylim=(0, 100))
    return fig


def strength_plot(frame: pd.DataFrame) -> Figure:
    """Average certified radius by strength of clean fine-tuning and, last, after fine-tuning with noise: mixed and clean
    pre-training, a panel for each data set (`cell_tables.strengths`)."""
    datasets = unique(frame["dataset"])
    _check(datasets)
    steps = {d: unique(mine["finetuning"]) for d, mine in frame.groupby("dataset", sort=False)}
    steps = {d: sorted(mine, key=lambda f: f == "noise*") for d, mine in steps.items()}
    beside = {"mixed": -0.06, "clean": 0.06}  # so that bars do not hide each other
    marks = frame.assign(x=[steps[m.dataset].index(m.finetuning) + beside[m.pretraining] for m in frame.itertuples()],
                         kind=frame["finetuning"].map(lambda f: "points hollow" if f == "noise*" else ""),
                         name=[f"{name(m.pretraining)} → {name(m.finetuning)}" for m in frame.itertuples()],
                         text=_daggers(frame["constant"]))
    chance = [{"dataset": d, "acr": chance, "pretraining": "chance", "kind": "across"}
              for d, chance in frame.groupby("dataset", sort=False)["chance"].max().items() if chance > 0]
    fig = figure(pd.concat([marks, pd.DataFrame(chance)]), {"mixed": MIXED, "clean": CLEAN} | RULES, columns=datasets,
                 column="dataset", line="pretraining", y="acr", row="", bottom=0, sharex=False,
                 rows={"": "average certified radius,\nmean over σ"}, width=7 if len(datasets) > 1 else 5.5,
                 per_line=3 if len(datasets) > 1 else 2,
                 width_ratios=[len(steps[d]) for d in datasets], note=_note(frame),
                 entries=[("mixed pre-training", MIXED), ("clean pre-training", CLEAN),
                          ("fine-tuned with noise of each σ", HOLLOW), *_constants(marks, f"{CLOSE} at some σ")])
    for ax, d in zip(fig.axes, datasets, strict=True):
        optim = frame[frame["dataset"] == d].drop_duplicates("finetuning").set_index("finetuning").loc[steps[d]]
        texts = [f"{name(m.Index)}\nlr {m.lr:g}, {m.epochs:.0f} ep.".replace("clean, ", "clean,\n") for m in optim.itertuples()]
        ax.set_xticks(range(len(optim)), texts[:-1] + ["noise of\neach σ"])
        ax.set_xlim(-0.5, len(optim) - 0.5)
    return fig


def crossed_curves(found: Sequence[Measured], dataset: str) -> Figure:
    """Networks of notebook 01, certified as they are: a panel for each noise level, a line for each method, and the one network
    of this notebook where it is certified at that level, on the same images."""
    theirs = [m for m in found if (m.dataset, m.cell.pretraining) == (dataset, CROSSED)]
    images = np.unique(np.concatenate([np.empty(0), *(m.certified.index for m in theirs if not m.absent)]))
    ours = [m for m in found if (m.dataset, m.cell) == (dataset, ONE)]
    frame = estimates([*theirs, *(on_images(m, images) if len(images) and not m.absent else m for m in ours)])
    crossed = frame[(frame["dataset"] == dataset) & frame["cell"].map(lambda c: c.pretraining == CROSSED).astype(bool)]
    cells, sigmas, main = unique(crossed["cell"]), sorted(crossed["sigma"].unique()), main_lines(frame)
    _check(cells)
    methods, mine = looks(c.finetuning for c in cells), main.loc[main.index.intersection(crossed.index)]
    marks = [_line(family(main, dataset, cell, [s]), 0.01 * i, column=s, line=line, name=method_label(line) if i else "")
             for s in sigmas for i, (line, cell) in enumerate([("one", ONE), *((c.finetuning, c) for c in cells)])]
    return _certified(marks, {("", s): mine[mine["sigma"] == s] for s in sigmas}, {"one": ONE_LOOK} | methods,
                      columns={s: f"σ {s:g}" for s in sigmas}, height=1.9, note=_note(crossed), entries=[
                          *((method_label(m), look) for m, look in methods.items()), ("mixed → clean (no attack)", ONE_LOOK)])


def _certified(marks: Sequence[pd.DataFrame], chance: Mapping[Panel, pd.DataFrame], looks: Mapping[str, dict],
               entries: Sequence[tuple[str, dict]], end: float = 0.0, **about: object) -> Figure:
    """Certified accuracy against the radius, with few and equal ticks, to `end` if there is one. chance: panel -> lines whose
    best constant answer is drawn, as far as their draws can reach."""
    marks = pd.concat([*marks, *(_chance(lines).assign(row=row, column=column) for (row, column), lines in chance.items())])
    fig = figure(marks, looks | RULES, scale=100, bottom=0, ylabel="certified accuracy (%)",
                 entries=[*entries, *_constants(marks)], **{"xlabel": RADIUS} | about)
    if end:
        fig.axes[0].set_xlim(-0.05, end + 0.05)
    for ax in fig.axes:
        ax.xaxis.set_major_locator(MultipleLocator(0.5 if ax.get_xlim()[1] > 1.1 else 0.25))
    return fig


def _line(lines: pd.DataFrame, shift: float = 0.0, **where: object) -> pd.DataFrame:
    """Marks of one curve, to the first radius that nothing reaches, or what is said in its place; one dagger for a curve that is
    marked at every radius, many for an envelope of curves of which some are."""
    done = lines.dropna(subset="value").sort_values("radius")
    done = done[done["value"].shift(fill_value=1.0) > 0]
    first = pd.Series(range(len(done)), done.index) == 0
    marked = done["constant"].astype(bool) & (first | ~done["constant"].all())
    marks = pd.DataFrame({"x": done["radius"] + shift, "y": done["value"], "low": done["low"], "high": done["high"],
                          "text": _daggers(marked)})
    return (marks if len(marks) else pd.DataFrame({"absent": [said(lines)], "text": ""})).assign(**where)


def _chance(lines: pd.DataFrame) -> pd.DataFrame:
    """What the best constant answer earns, as far as the draws of these lines can reach."""
    lines = lines[(lines["measure"] == "certified_acc") & (lines["chance"] > 0)]
    return pd.DataFrame({"y": lines["chance"].max(), "xlow": 0.0, "xhigh": lines["radius"].max(), "line": "chance",
                         "kind": "stretch"}, index=[0] * (len(lines) > 0))


def _constants(marks: pd.DataFrame, close: str = CLOSE) -> list[tuple[str, dict]]:
    """Entries for the best constant answer, and for the dagger where a mark bears one."""
    return [(CONSTANT, CHANCE)] + [(close, {"linestyle": "none"})] * bool((marks["text"].fillna("") != "").any())


def _daggers(constant: pd.Series) -> pd.Series:
    return constant.map(lambda marked: dagger(bool(marked)).strip())


def _note(lines: pd.DataFrame) -> str:
    """On how many images, seeds and draws lines of `estimates` stand."""
    done = lines.dropna(subset="value" if "value" in lines else "acr")
    draws = [f"{n:,}" for n in sorted(done["n"].unique())] if "n" in done else []
    return ", ".join(filter(None, (stands_on(done["images"], done["seeds"]), f"n = {' or '.join(draws)}" * bool(draws))))


def _check(planned: Sized) -> None:
    if not len(planned):
        raise ValueError("expected certifications of this figure among the jobs, got none; ask for another data set or level")
