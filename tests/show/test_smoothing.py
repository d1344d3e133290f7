"""Tables and figures of certified accuracy, from made-up certifications, from none and from an empty store."""

import dataclasses
import math

import numpy as np
import pytest

from tests.figures_read import drawn
from tests.smoothing_made import RADII, N, measured, reaching, spec
from twinslib.base.bounds import certified_radius
from twinslib.evidence import cells as evidence_cells
from twinslib.show import cell_tables, figures, smoothing_plots, smoothing_tables
from twinslib.specs.jobs import Job
from twinslib.specs.labels import NOT_RUN
from twinslib.store.store import Store
from twinslib.studies import plan
from twinslib.studies.rules import cell

LEVELS = (0.25, 0.5, 1.0)
CURVE = [(0, 50), (0.25, 50), (0.5, 25), (0.75, 0)]  # of reaching(0.5, 0.25)


def grid(number: str) -> list:
    """The cells of a notebook at toy, on CIFAR-10, each certified with made-up radii that fall with the level."""
    found = []
    for job in plan.plan("toy", number)[0](best=lambda candidates, **_: candidates[0]):
        for p in evidence_cells.planned([job]):
            c = p.certification
            best = 0.8 if p.cell.finetuning == f"noise{c.sigma}" else 0.6 if p.cell.pretraining == "mixed" else 0.2
            if p.cell.restat or p.cell.norm == "group":
                best += 0.1
            shares = [best * (1 - r / (2 * c.sigma + 0.5)) for r in RADII[1:]]
            found.append(measured(str(p.cell), c.sigma, reaching(*(max(s, 0) for s in shares)), run=p.spec, n=c.n,
                                  stop=c.stop_if_wrong, radii=tuple(r for r in RADII if r in c.radii)))
    return found


def jobs(number: str) -> list[Job]:
    return plan.plan("toy", number)[0](best=lambda candidates, **_: candidates[0])


@pytest.fixture
def store(tmp_path) -> Store:
    return Store("toy", root=tmp_path)


# -- estimates ----------------------------------------------------------------------------------------------------------
def test_estimates_by_hand() -> None:
    """Accuracy at each radius, mean radius on the grid and abstention of ten images, counted by hand."""
    radius = [0.0, 0.0, -0.9, 0.1, 0.3, 0.3, 0.6, 0.8, 1.0, 2.0]
    frame = smoothing_tables.estimates([measured("mixed/clean/group", 0.5, radius)])
    at = {r.radius: r.value for r in frame[frame["measure"] == "certified_acc"].itertuples()}
    assert at == {0.0: 0.7, 0.25: 0.6, 0.5: 0.4, 0.75: 0.3, 1.0: 0.2}
    values = frame.set_index("measure")["value"]
    assert values["acr"] == pytest.approx((2 * 0.25 + 0.5 + 0.75 + 2 * 1.0) / 10) and values["abstain_rate"] == 0.2
    row = frame[(frame["measure"] == "certified_acc") & (frame["radius"] == 0.5)].iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((0.1216, 0.7376), abs=1e-3)  # Clopper-Pearson of 4 in 10
    assert row["se"] == pytest.approx(math.sqrt(0.4 * 0.6 / 10)) and (row["seeds"], row["images"]) == (1, 10)


def test_estimates_over_seeds() -> None:
    """Seeds are averaged and widen the interval; abstention is left out where draws depended on labels."""
    found = [measured("mixed/clean/group", 0.5, reaching(s, 0.1), seed=i, stop=True) for i, s in enumerate((0.3, 0.5))]
    frame = smoothing_tables.estimates(found)
    row = frame[frame["radius"] == 0.25].iloc[0]
    assert row["value"] == pytest.approx(0.4) and row["seeds"] == 2 and row["high"] - row["low"] > 0.4
    images = np.repeat([1.0, 0.5, 0.0], [30, 20, 50])  # mean over the seeds, whose own means are .3 and .5
    assert row["se"] == pytest.approx(math.sqrt(np.var(images, ddof=1) / N + 0.2 ** 2 / 2 / 2))
    assert "abstain_rate" not in set(frame["measure"])


def test_losses_by_hand() -> None:
    """What is lost is paired: the same images, noisy minus clean fine-tuning; a missing cell is NaN."""
    found = [measured("mixed/noise0.5/batch", 0.5, reaching(0.8)), measured("mixed/clean/batch", 0.5, reaching(0.3)),
             measured("mixed/clean/batch+restat", 0.5, reaching(0.7))]
    frame = cell_tables.losses(found, "cifar10", [0.5]).set_index(["norm", "statistics"])
    assert frame.loc[("batch", "plain"), ["noisy", "clean", "lost"]].tolist() == pytest.approx([0.8, 0.3, 0.5])
    assert frame.loc[("batch", "restat"), "lost"] == pytest.approx(0.1) and math.isnan(frame.loc[("group", "plain"), "lost"])
    table = cell_tables.loss_table(frame.reset_index())
    assert table["recovered"].tolist() == ["", "80 %", "", "", ""]
    assert table["lost (points)"].tolist()[2:] == [NOT_RUN] * 3


def test_envelope_takes_the_best_level_at_each_radius() -> None:
    """The largest accuracy, the smaller level of equals."""
    found = [measured("mixed/clean/group", 0.25, reaching(0.6, 0.2)), measured("mixed/clean/group", 0.5, reaching(0.4, 0.3)),
             measured("mixed/clean/group", 1.0, reaching(0.6, 0.1, 0.1))]
    best = cell_tables.envelope(smoothing_tables.family(smoothing_tables.estimates(found), "cifar10", cell_tables.ONE, LEVELS))
    assert best["sigma"].tolist() == [0.25, 0.25, 0.5, 1.0, 0.25] and best["value"].tolist()[1:4] == [0.6, 0.3, 0.1]


def test_sanity_notices() -> None:
    """A radius above the ceiling of its draws, an answer without radius, and cells on other images."""
    good = measured("mixed/clean/group", 0.5, reaching(0.5))
    assert all(smoothing_tables.sanity([good]).values())
    above = measured("mixed/clean/group", 0.5, np.full(N, certified_radius(10_000, 10_000, 0.5, 0.0005) + 1e-6))
    assert list(smoothing_tables.sanity([above]).values()) == [False, True, True]
    top = certified_radius(100, 100, 0.5, 0.001)  # spends alpha at once
    single = measured("mixed/clean/group", 0.5, np.full(N, top), n=100, radii=(0.0,))
    assert all(smoothing_tables.sanity([single]).values())
    answer = dataclasses.replace(good, certified=good.certified._replace(radius=np.zeros(N)))
    assert list(smoothing_tables.sanity([answer]).values()) == [True, False, True]
    assert list(smoothing_tables.sanity([good, dataclasses.replace(good, split="t")]).values()) == [True, True, False]


# -- a whole notebook ---------------------------------------------------------------------------------------------------
def test_tables_of_notebook_04(store) -> None:
    """Each planned cell has its line at its level; the sentences name what was measured."""
    found = grid("04")
    frame = smoothing_tables.estimates(found)
    table = smoothing_tables.certified_table(frame, store, jobs("04"), 0.5)
    cells = {(p.cell, p.dataset) for p in evidence_cells.planned(jobs("04")) if p.sigma == 0.5}
    assert len(table) == len(cells) + 1 and not (table["r 0.25"] == NOT_RUN).any() and (table["no noise"] != "0").all()
    assert {"batch norm, re-estimated", "group norm"} <= set(table["norm"]) and {"mixed", "σ 0.5"} <= set(table["pre-training"])
    transfer = cell_tables.transfer_table(found, "toy_target", 0.5)
    assert transfer.iloc[:, 1].tolist() == ["batch norm", "group norm", "layer norm"]
    assert transfer["mixed - clean (points)"].str.startswith("+").all()
    assert (cell_tables.transfer_table([], "toy_target", 0.5).iloc[:, 2:] == NOT_RUN).all(axis=None)
    missing = smoothing_tables.certified_table(smoothing_tables.estimates(found[:2]), store, jobs("04"), 0.5)
    assert (missing["r 0.25"] == NOT_RUN).sum() == len(missing) - 2


def test_tables_of_notebook_05() -> None:
    """Envelopes, strengths, abstention, crossed networks and public numbers from one set of certifications."""
    found = grid("05")
    frame = smoothing_tables.estimates(found)
    best = cell_tables.envelope_table(found, "toy_target", LEVELS)
    assert len(best) == 3 * len(RADII) and set(best["seeds"]) == {"1"} and best["difference (points)"].str.contains("-").any()
    strength = cell_tables.strengths(frame, jobs("05"))
    acr = strength.set_index(["pretraining", "finetuning"])["acr"]["mixed"]
    assert list(acr.index) == [*cell_tables.STRENGTHS, "noise*"] and acr.notna().all()
    shown = cell_tables.strength_table(strength).set_index(["pre-training", "fine-tuning"])
    assert shown.loc[("mixed", "linear probe"), ["lr", "epochs"]].tolist() == ["0.02", "3"]
    assert shown.loc[("mixed", "clean"), "of that with noise"] == f"{100 * acr['clean'] / acr['noise*']:.0f} %"
    abstains = cell_tables.abstention_table(frame)
    assert len(abstains) == 12 and "clean, weaker" not in set(abstains["fine-tuning"])
    crossed = cell_tables.crossed_table(frame)
    assert set(crossed["method"]) == {"AT", "TWINS-AT"} and crossed["ACR ± SE"].str.fullmatch(r"0\.\d{3} ± 0\.\d{3}( †)?").all()
    table = cell_tables.public_table(frame, jobs("05"), "toy_target")
    assert (table["who"] == "ours").sum() == 4 and table.loc[table["method"] == "SmoothAdv", "r 0.5"].tolist() == ["57.0"]
    votes = cell_tables.confidence_table(found, "toy_target", LEVELS)
    assert votes["σ"].tolist() == ["0.25", "0.5", "1"] and votes["votes above one half"].str.fullmatch(r"\d+ %").all()
    assert set(cell_tables.confidence_table([], "toy_target", LEVELS)["votes above 0.99"]) == {NOT_RUN}


def test_costs_are_of_the_same_draws(monkeypatch) -> None:
    """The one network's line has what it is compared with, not its certificates of more draws."""
    one, each = ([measured(name.replace("*", str(s)), s, reaching(0.5), draws=5) for s in LEVELS]
                 for name in ("mixed/clean/group", "noise*/noise*/group"))
    more = [measured("mixed/clean/group", s, reaching(0.5), draws=50, n=100_000) for s in LEVELS]
    monkeypatch.setattr(cell_tables, "costs", lambda family, store: (0.0, 1e6 * sum(m.draws for m in family)))
    table = cell_tables.cost_table(None, [*one, *each, *more], "cifar10", LEVELS).set_index("networks")
    assert table["all"].tolist()[:2] == ["15 M", "15 M"] and table["one / these"].tolist()[:2] == ["1.00", "1.00"]
    assert cell_tables.cost_table(None, [*one, *more], "cifar10", LEVELS)["all"].tolist()[:2] == ["150 M", NOT_RUN]


# -- constant answers ---------------------------------------------------------------------------------------------------
TEN_EACH = np.arange(N) % 10


def answers(share: float, classes: int = 10) -> np.ndarray:
    """Classes of N images, class 3 for so large a share of them, the others evenly among all classes."""
    chosen = np.arange(N) % classes
    chosen[:round(share * N)] = 3
    return np.roll(chosen, 7)


@pytest.fixture
def half_constant() -> list:
    """Notebook 05 at toy: networks of clean fine-tuning at σ 1 choose class 3 for nearly all images."""
    return [dataclasses.replace(m, certified=m.certified._replace(label=(labels := np.arange(len(m.certified.index)) % 10),
                                                                  prediction=np.where(m.certified.correct, labels, -1)),
                                chosen=answers(0.95 if m.sigma == 1.0 and m.cell.finetuning in ("clean", "at") else 0.0)
                                [:len(labels)]) for m in grid("05")]


def test_tables_mark_constant_answers_and_print_chance(half_constant, store) -> None:
    """A dagger at each number of such a network and nowhere else, its share, and the line of the best constant answer: the most
    frequent label's share to the largest radius the draws can reach."""
    frame = smoothing_tables.estimates(half_constant)
    for sigma in (0.25, 1.0):
        table = smoothing_tables.certified_table(frame, store, jobs("05"), sigma)
        chance, cells = table.iloc[-1], table.iloc[:-1]
        assert chance["pre-training"] == smoothing_tables.CONSTANT and chance["one class"] == "100 %"
        top = max(m.certification.plan.ceiling for m in half_constant if m.sigma == sigma and m.certification.n == 128)
        assert [chance[f"r {r:g}"] for r in RADII] == ["10.0" if r <= top else "0.0" for r in RADII]
        asked = max(r for m in half_constant if m.sigma == sigma and m.certification.n == 128 for r in m.certification.radii
                    if r <= top)
        assert chance["ACR ± SE"] == f"{0.1 * asked:.3f}"
        marked = cells["ACR ± SE"].str.endswith("†")
        assert (marked == cells["one class"].str.endswith("†")).all()
        assert (marked == ((cells["fine-tuning"] == "clean") & (sigma == 1.0))).all() and marked.any() == (sigma == 1.0)
    assert smoothing_tables.caption(frame).endswith(smoothing_tables.MARK)
    best = cell_tables.envelope_table(half_constant, "toy_target", LEVELS)
    assert (best["one"].str.endswith("†") == best["one"].str.contains("σ 1")).all()
    assert (best[smoothing_tables.CONSTANT] == "10.0").all()
    strength = cell_tables.strengths(frame, jobs("05"))
    assert set(strength.loc[strength["constant"], "finetuning"]) == {"clean"} and strength["chance"].nunique() == 1
    public_ = cell_tables.public_table(frame, jobs("05"), "toy_target").set_index("who")
    assert public_.loc["chance", ["r 0.25", "r 1"]].tolist() == ["10.0", "10.0"]


def test_one_seed_is_enough_for_a_mark() -> None:
    """A mean over seeds hides what one of them does."""
    found = [measured("mixed/clean/batch", 0.5, reaching(0.3), seed=seed, labels=TEN_EACH, chosen=answers(share))
             for seed, share in enumerate((0.0, 0.9))]
    assert smoothing_tables.estimates(found)["constant"].all() and smoothing_tables.estimates(found)["one_class"].iloc[0] > 0.9
    assert not smoothing_tables.estimates(found[:1])["constant"].any()
    lost = cell_tables.losses([*found, *(measured("mixed/noise0.5/batch", 0.5, reaching(0.5), seed=s, labels=TEN_EACH)
                                         for s in (0, 1))], "cifar10", [0.5])
    table = cell_tables.loss_table(lost)
    assert table["after clean fine-tuning"].tolist()[0] == "30.0 †" and table[smoothing_tables.CONSTANT].tolist()[0] == "10.0"
    table = cell_tables.transfer_table(
        [*[dataclasses.replace(m, cell=cell("clean/clean/batch")) for m in found[1:]],
         measured("mixed/clean/batch", 0.5, reaching(0.5), seed=1, labels=TEN_EACH)], "cifar10", 0.5)
    assert table["mixed - clean (points)"][0].startswith("+") and table["mixed - clean (points)"][0].endswith(" †")


def test_rows_are_tidy(store) -> None:
    """One row for each number and seed, with what it stands on."""
    m = measured("mixed/clean/group", 0.5, reaching(0.5), run=spec(3), seed=3)
    frame = smoothing_tables.rows(store, [], [m], "smoothing")
    row = frame[(frame["metric"] == "certified_acc") & (frame["eps"] == 0.25)].iloc[0]
    assert (row["value"], row["n"], row["threat"], row["sigma"], row["draws"], row["seed"]) == (0.5, N, "l2", 0.5, 10_000, 3)
    assert row["run"] == spec(3).hash and row["images"] == f"s[:{N}]" and len(frame) == len(RADII) + 2


def test_curves_show_their_frame() -> None:
    """A curve passes through its accuracies in percent up to the first radius that nothing reaches; its ceiling is marked."""
    found = [measured("mixed/clean/group", s, reaching(0.5, 0.25), n=200, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), "toy_target")
    assert [ax.get_title() for ax in fig.axes] == [f"σ {s:g}" for s in LEVELS]
    for ax, s in zip(fig.axes, LEVELS, strict=True):
        assert drawn(ax, smoothing_plots.MIXED) == [CURVE]
        top = float(certified_radius(200, 200, s, 0.0005))
        ends = [line[0][0] for line in drawn(ax, {"color": figures.PLAIN}) if line[0][1] == 0]
        assert ends == pytest.approx([top] if top < smoothing_plots.END else [], abs=1e-3)


def test_curves_stand_on_equal_draws() -> None:
    """A curve with more draws is never held against others with fewer; the number is said."""
    found = [measured(name, s, reaching(0.5, 0.25), dataset="toy_target") for s in LEVELS
             for name in ("mixed/clean/group", f"noise{s}/noise{s}/group")]
    found += [measured("mixed/clean/group", s, reaching(0.9, 0.8), n=100_000, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), "toy_target")
    assert "n = 10,000" in fig.get_supxlabel() and "100,000" not in fig.get_supxlabel()
    curves = [curve for ax in fig.axes for look in (smoothing_plots.MIXED, smoothing_plots.SINGLE) for curve in drawn(ax, look)]
    assert curves == [CURVE] * 6


def test_figures_mark_constant_answers_and_draw_chance(half_constant) -> None:
    """A dagger at σ 1 only, a grey line at the share of the most frequent label, both in the legend where they are drawn."""
    frame = smoothing_tables.estimates(half_constant)
    fig = smoothing_plots.certified_curves(frame, "toy_target")
    daggers = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert daggers == [["†"] * (s == 1.0) for s in LEVELS] and all(len(ax.collections) for ax in fig.axes)
    for ax in fig.axes:
        lines = [c for c in ax.collections if c.get_colors()[0][:3] == pytest.approx((0.541, 0.541, 0.541), abs=0.01)]
        assert [c.get_segments()[0][:, 1].tolist() for c in lines] == [[10.0, 10.0]]
    strength = smoothing_plots.strength_plot(cell_tables.strengths(frame, jobs("05")))
    assert [t.get_text() for t in strength.axes[0].texts] == ["†", "†"]  # mixed and clean pre-training
    for figure in (fig, strength, smoothing_plots.confidence_plot(half_constant, "toy_target", LEVELS),
                   smoothing_plots.crossed_curves(half_constant, "toy_target")):
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        marked = any("†" in t.get_text() for ax in figure.axes for t in ax.texts)
        assert smoothing_tables.CONSTANT in labels and marked == any("†" in label for label in labels)
