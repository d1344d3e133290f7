"""Tables, sentences and figures of certified accuracy, from made-up certifications and an empty store."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.smoothing_made import RADII, N, measured, reaching, spec
from twinslib.base.sequential import ceiling
from twinslib.compute import statistics
from twinslib.compute.networks import Networks
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.evidence import cells as evidence_cells
from twinslib.evidence import public
from twinslib.show import level_tables, norm_tables, pages, smoothing_plots, smoothing_tables
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job
from twinslib.store.statistics import STATISTICS
from twinslib.store.statistics import statistics as stored_statistics
from twinslib.store.store import NOT_RUN, Store
from twinslib.studies import plan
from twinslib.studies.rules import cell
from twinslib.train import noise

LEVELS = (0.25, 0.5, 1.0)


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
                                  stop=c.stop_if_wrong, radii=tuple(r for r in RADII if r in c.radii), dataset="toy_target"))
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


def test_lines_with_the_usual_number_of_draws() -> None:
    """A few certifications with more draws do not enter tables made of the others."""
    found = [measured("mixed/clean/group", s, reaching(0.3)) for s in LEVELS]
    many = measured("mixed/clean/group", 0.5, reaching(0.9), n=100_000)
    frame = smoothing_tables.main_lines(smoothing_tables.estimates([many, *found]))
    assert set(frame["n"]) == {10_000} and smoothing_tables.main_lines(frame.iloc[:0]).empty


def test_losses_by_hand() -> None:
    """What is lost is paired: the same images, noisy minus clean fine-tuning; a missing cell is NaN."""
    found = [measured("mixed/noise0.5/batch", 0.5, reaching(0.8)), measured("mixed/clean/batch", 0.5, reaching(0.3)),
             measured("mixed/clean/batch+restat", 0.5, reaching(0.7))]
    frame = norm_tables.losses(found, "cifar10", [0.5]).set_index(["norm", "statistics"])
    assert frame.loc[("batch", "plain"), ["noisy", "clean", "lost"]].tolist() == pytest.approx([0.8, 0.3, 0.5])
    assert frame.loc[("batch", "restat"), "lost"] == pytest.approx(0.1) and math.isnan(frame.loc[("group", "plain"), "lost"])
    table = norm_tables.loss_table(frame.reset_index())
    assert table["recovered"].tolist() == ["", "80 %", "", "", ""]
    assert table["lost (points)"].tolist()[2:] == [NOT_RUN] * 3
    text = norm_tables.loss_reading(frame.reset_index())
    assert "σ 0.5: batch norm 50.0; batch norm, re-estimated 10.0. Not run: 3 of 5." in text


def test_envelope_takes_the_best_level_at_each_radius() -> None:
    """The largest accuracy, the smaller level of equals."""
    found = [measured("mixed/clean/group", 0.25, reaching(0.6, 0.2)), measured("mixed/clean/group", 0.5, reaching(0.4, 0.3)),
             measured("mixed/clean/group", 1.0, reaching(0.6, 0.1, 0.1))]
    best = level_tables.envelope(level_tables.family(smoothing_tables.estimates(found), "cifar10", level_tables.ONE, LEVELS))
    assert best["sigma"].tolist() == [0.25, 0.25, 0.5, 1.0, 0.25] and best["value"].tolist()[1:4] == [0.6, 0.3, 0.1]


def test_sanity_notices() -> None:
    """A radius above the ceiling of its draws, an answer without radius, and cells on other images."""
    good = measured("mixed/clean/group", 0.5, reaching(0.5))
    assert all(smoothing_tables.sanity([good]).values())
    above = measured("mixed/clean/group", 0.5, np.full(N, ceiling(10_000, 0.0005, 0.5) + 1e-6))
    assert list(smoothing_tables.sanity([above]).values()) == [False, True, True]
    single = measured("mixed/clean/group", 0.5, np.full(N, ceiling(100, 0.001, 0.5)), n=100, radii=(0.0,))  # spends alpha at once
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
    cells = {(p.cell, p.dataset) for p in evidence_cells.planned(jobs("04")) if p.certification.sigma == 0.5}
    assert len(table) == len(cells) + 1 and not (table["r 0.25"] == NOT_RUN).any() and (table["no noise"] != "0").all()
    assert {"batch norm, re-estimated", "group norm"} <= set(table["norm"]) and {"mixed", "σ 0.5"} <= set(table["pre-training"])
    assert "group norm, against clean +" in norm_tables.transfer_reading(found, "toy_target", 0.5)
    missing = smoothing_tables.certified_table(smoothing_tables.estimates(found[:2]), store, jobs("04"), 0.5)
    assert (missing["r 0.25"] == NOT_RUN).sum() == len(missing) - 2


def test_tables_of_notebook_05(store) -> None:
    """Envelopes, strengths, costs, abstention, crossed networks and public numbers from one set of certifications."""
    found, frame = grid("05"), smoothing_tables.estimates(grid("05"))
    best = level_tables.envelope_table(found, "toy_target", LEVELS)
    assert len(best) == 3 * len(RADII) and set(best["seeds"]) == {"1"} and best["difference (points)"].str.contains("-").any()
    assert "against one σ → same σ the difference is" in level_tables.envelope_reading(best)
    strength = level_tables.strengths(frame, jobs("05")).set_index(["pretraining", "finetuning"])["acr"]
    assert list(strength["mixed"].index) == [*level_tables.STRENGTHS, "noise*"] and strength["mixed"].notna().all()
    assert "linear probe (lr 0.02, epochs 3)" in level_tables.strength_reading(level_tables.strengths(frame, jobs("05")))
    abstains = level_tables.abstention_table(frame)
    assert len(abstains) == 12 and "clean, weaker" not in set(abstains["fine-tuning"])
    assert set(level_tables.crossed_table(frame, jobs("05"))["method"]) == {"AT", "TWINS-AT"}
    table = level_tables.public_table(frame, jobs("05"), "toy_target")
    assert (table["who"] == "ours").sum() == 4 and table.loc[table["method"] == "SmoothAdv", "r 0.5"].tolist() == ["57.0"]
    assert "σ 0.25: above one half for" in level_tables.confidence_reading(found, "toy_target", LEVELS)


@pytest.mark.parametrize("made", [True, False], ids=["finished", "empty"])
def test_figures_are_drawn(made: bool) -> None:
    """Every figure of both notebooks can be drawn from results and from none; panels without a result say so."""
    found4, found5 = (grid("04"), grid("05")) if made else ([], [])
    frame4, frame5 = (smoothing_tables.estimates(f) for f in (found4, found5))
    lines = [["r", "toy_target", f"mixed/{f}/batch", 0, s, 9, layer, *[0.1 * (s + 0.1)] * 4]
             for f in ("-", "clean") for s in (0.0, 0.5) for layer in ("a", "b")]
    mismatch = pd.DataFrame(lines if made else [], columns=STATISTICS)
    figures = [smoothing_plots.transfer_curves(frame4, jobs("04"), "toy_target", 0.5),
               smoothing_plots.loss_plot(norm_tables.losses(found4, "toy_target", LEVELS)),
               smoothing_plots.mismatch_plot(mismatch),
               smoothing_plots.certified_curves(frame5, jobs("05"), "toy_target"),
               smoothing_plots.confidence_plot(found5, jobs("05"), "toy_target"),
               smoothing_plots.strength_plot(level_tables.strengths(frame5, jobs("05"))),
               smoothing_plots.crossed_curves(frame5, jobs("05"), "toy_target")]
    assert all(isinstance(f, Figure) for f in figures)
    texts = [[t.get_text() for ax in f.axes for t in ax.texts] for f in figures]
    assert all(NOT_RUN in t for t in texts) if not made else not any(NOT_RUN in t for t in texts)


def test_curves_show_their_frame() -> None:
    """A curve passes through its accuracies in percent up to the first radius that nothing reaches; its ceiling is marked."""
    found = [measured("mixed/clean/group", s, reaching(0.5, 0.25), n=200, dataset="toy_target") for s in LEVELS]
    fig = smoothing_plots.certified_curves(smoothing_tables.estimates(found), jobs("05"), "toy_target")
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata()) > 1]
    assert [list(line.get_xdata()) for line in lines] == [[0, 0.25, 0.5, 0.75]] * 3
    assert all(list(line.get_ydata()) == pytest.approx([50, 50, 25, 0]) for line in lines)
    marks = sorted(line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "|")
    assert marks == pytest.approx([ceiling(200, 0.0005, s) for s in LEVELS])


def test_envelopes_stand_on_equal_draws() -> None:
    """A curve with more draws is shown on its own, with its number, and never held against others with fewer."""
    found = [measured(name, s, reaching(0.5, 0.25), dataset="toy_target") for s in LEVELS
             for name in ("mixed/clean/group", f"noise{s}/noise{s}/group")]
    found += [measured("mixed/clean/group", s, reaching(0.9, 0.8), n=100_000, dataset="toy_target") for s in LEVELS]
    left, middle, right = smoothing_plots.certified_curves(smoothing_tables.estimates(found), jobs("05"), "toy_target").axes
    assert [ax.get_title().split("n = ")[1] for ax in (left, middle, right)] == ["100,000", "10,000", "10,000"]
    curves = [list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 4 and line.get_linestyle() != "None"]
    assert curves[:2] == [pytest.approx([50, 50, 25, 0])] * 2


def test_a_figure_of_nothing_is_refused() -> None:
    """Another data set or level than planned is an error, not an empty picture."""
    with pytest.raises(ValueError, match="certifications of this figure among the jobs, got none"):
        smoothing_plots.transfer_curves(smoothing_tables.estimates([]), jobs("04"), "cifar10", 0.5)


@pytest.mark.parametrize("number", ["04", "05"])
def test_pages_of_an_empty_store(number: str, store) -> None:
    """Before any run the page is whole and says what is missing."""
    text = {"04": pages.norms_under_noise, "05": pages.certified_curves}[number](store, jobs(number))
    assert text.startswith("# ") and NOT_RUN in text and "not tested at this scale" in text and "nan" not in text


def test_settings_come_from_the_specs() -> None:
    """A line for each pre-training and fine-tuning with its noise, norms and schedule; how it is certified in a sentence."""
    table = smoothing_tables.settings(jobs("04")).set_index(["stage", "name"])
    mixed = table.loc[("pre-training", "mixed")]
    assert mixed[["noise levels σ", "drawn for each", "norms"]].tolist() == ["0, 0.25, 0.5, 1", "image", "batch, group, layer"]
    assert table.loc[("fine-tuning", "clean, frozen statistics"), "trains"] == "all, statistics frozen"
    text = smoothing_tables.certifications(jobs("04"))
    assert "the first 24 test images" in text and "n = 128" in text and "α = 0.001" in text and "1.62 σ at n = 128" in text


# -- constant answers ---------------------------------------------------------------------------------------------------
TEN_EACH = np.arange(N) % 10


def answers(share: float, classes: int = 10) -> np.ndarray:
    """Classes of N images, class 3 for so large a share of them, the others evenly among all classes."""
    chosen = np.arange(N) % classes
    chosen[:round(share * N)] = 3
    return np.roll(chosen, 7)


@pytest.mark.parametrize(("labels", "chosen", "chance", "constant"), [
    (TEN_EACH, np.full(N, 3), 0.1, True),
    (TEN_EACH, answers(0.95), 0.1, True),
    (TEN_EACH, answers(0.65), 0.1, True),
    (TEN_EACH, answers(0.3), 0.1, False),
    (TEN_EACH, TEN_EACH, 0.1, False),
    (TEN_EACH % 2, TEN_EACH % 2, 0.5, False),  # two classes: half of the answers are to be expected
    (TEN_EACH % 2, answers(0.3, 2), 0.5, False),
    (TEN_EACH % 2, answers(0.9, 2), 0.5, True),
    (np.where(TEN_EACH < 8, 3, TEN_EACH), answers(0.8), 0.8, False),  # so many images are of this class
    (np.where(TEN_EACH < 8, 3, TEN_EACH), np.full(N, 3), 0.8, True),
])
def test_close_to_a_constant_answer(labels, chosen, chance, constant) -> None:
    """By the class that the first draws choose for all images, also those that abstain or are stopped because they are wrong,
    against the most frequent label; where the choice is not known, the answers stand in."""
    radius = np.where(chosen == labels, 0.3, 0.0)  # wrong ones get no further draws
    m = measured("mixed/clean/group", 0.5, radius, labels=labels, chosen=chosen, stop=True)
    assert (m.chance, m.one_class, m.constant) == (chance, np.bincount(chosen).max() / N, constant)
    answered = np.where(chosen == labels, 0.3, -0.3)
    c = measured("mixed/clean/group", 0.5, answered, labels=labels)
    c = dataclasses.replace(c, certified=c.certified._replace(prediction=chosen))
    assert (c.one_class, c.constant) == (m.one_class, constant)


def test_stored_votes_are_measured_by_what_was_chosen() -> None:
    """In the store's own votes the share is that of the pilot's classes."""
    store = Store("small", root=Path(__file__).parents[2] / "results" / "small")
    found = evidence_cells.finished(store, [j for j in plan.plan("small", "05")[0](best=store.best)
                                             if dict(j.labels).get("pretraining") == "noise0.25" and dict(j.labels).get("norm")])
    (m,) = [m for m in found if m.sigma == 1.0 and str(m.cell) == "noise0.25/clean/group"]
    assert m.constant and m.one_class == pytest.approx(0.95, abs=0.01) and m.chance == 0.12


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
    assert "†: close to a constant answer" in smoothing_tables.caption(frame) and "best constant answer is chance" in smoothing_tables.caption(frame)
    best = level_tables.envelope_table(half_constant, "toy_target", LEVELS)
    assert (best["one"].str.endswith("†") == best["one"].str.contains("σ 1")).all() and (best[smoothing_tables.CONSTANT] == "10.0").all()
    strength = level_tables.strengths(frame, jobs("05"))
    assert set(strength.loc[strength["constant"], "finetuning"]) == {"clean"} and strength["chance"].nunique() == 1
    assert "†; clean, stronger" in level_tables.strength_reading(strength)
    public_ = level_tables.public_table(frame, jobs("05"), "toy_target").set_index("who")
    assert public_.loc["chance", ["r 0.25", "r 1"]].tolist() == ["10.0", "10.0"]
    assert "has all votes for 10 % of the images" in level_tables.confidence_reading(half_constant, "toy_target", LEVELS)
    crossed = level_tables.crossed_table(frame, jobs("05"))
    assert (crossed[smoothing_tables.CONSTANT] == "10.0").all() and crossed["one class"].str.endswith("%").all()


def test_one_seed_is_enough_for_a_mark() -> None:
    """A mean over seeds hides what one of them does."""
    found = [measured("mixed/clean/batch", 0.5, reaching(0.3), seed=seed, labels=TEN_EACH, chosen=answers(share))
             for seed, share in enumerate((0.0, 0.9))]
    assert smoothing_tables.estimates(found)["constant"].all() and smoothing_tables.estimates(found)["one_class"].iloc[0] > 0.9
    assert not smoothing_tables.estimates(found[:1])["constant"].any()
    lost = norm_tables.losses([*found, *(measured("mixed/noise0.5/batch", 0.5, reaching(0.5), seed=s, labels=TEN_EACH)
                                         for s in (0, 1))], "cifar10", [0.5])
    table = norm_tables.loss_table(lost)
    assert table["after clean fine-tuning"].tolist()[0] == "30.0 †" and table[smoothing_tables.CONSTANT].tolist()[0] == "10.0"
    assert norm_tables.loss_reading(lost).endswith("†: what is left is close to a constant answer.")
    assert "against clean † +" in norm_tables.transfer_reading(
        [*[dataclasses.replace(m, cell=cell("clean/clean/batch")) for m in found[1:]],
         measured("mixed/clean/batch", 0.5, reaching(0.5), seed=1, labels=TEN_EACH)], "cifar10", 0.5)


def test_figures_mark_constant_answers_and_draw_chance(half_constant) -> None:
    """A dagger in the panels of σ 1 only, a grey line at the share of the most frequent label, both in the legend."""
    frame = smoothing_tables.estimates(half_constant)
    fig = smoothing_plots.certified_curves(frame, jobs("05"), "toy_target")
    drawn = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert drawn[0] == ["†"] and drawn[1] == [] and all(len(ax.collections) for ax in fig.axes)
    for ax in fig.axes:
        lines = [c for c in ax.collections if c.get_colors()[0][:3] == pytest.approx((0.541, 0.541, 0.541), abs=0.01)]
        assert [c.get_segments()[0][:, 1].tolist() for c in lines] == [[10.0, 10.0]]
    strength = smoothing_plots.strength_plot(level_tables.strengths(frame, jobs("05")))
    assert [t.get_text() for t in strength.axes[0].texts] == ["†", "†"]  # mixed and clean pre-training
    figures = [fig, strength, smoothing_plots.confidence_plot(half_constant, jobs("05"), "toy_target"),
               smoothing_plots.crossed_curves(frame, jobs("05"), "toy_target")]
    for figure in figures:
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        assert smoothing_tables.CONSTANT in labels and (figure is figures[2] or any("†" in label for label in labels))


# -- the store ----------------------------------------------------------------------------------------------------------
SPEC = RunSpec(data=DataSpec(name="toy_target", image_size=16, train_images=40, val_images=10), method=method("natural"),
               model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec(epochs=1, batch_size=20, val_every=0))
LABELS = (("pretraining", "mixed"), ("finetuning", "clean"), ("norm", "batch"))


def test_statistics_are_measured_once(store, monkeypatch) -> None:
    """Each batch-norm network at each level, kept as text; what is there is not measured again, other images are."""
    made = [Job("smoothing", SPEC, (), labels=LABELS)]
    assert statistics.measure_statistics(Networks(store, "cpu"), made, [0.5], 8).empty  # nothing is trained yet
    sweep(Worker(store, "cpu"), made)
    frame = statistics.measure_statistics(Networks(store, "cpu"), made, [0.0, 0.5], 8)
    direct = noise.mismatch(Networks(store, "cpu").trained(SPEC).eval(), Networks(store, "cpu").data(SPEC.data).test_x[:8], 0.5)
    here = frame[frame["sigma"] == 0.5].set_index("layer")
    assert list(here.index) == list(direct) and set(frame["cell"]) == {"mixed/clean/batch"} and set(frame["images"]) == {8}
    assert all(here.loc[k, "divergence"] == pytest.approx(v["divergence"]) for k, v in direct.items())
    pd.testing.assert_frame_equal(stored_statistics(store), frame)
    monkeypatch.setattr(noise, "mismatch", lambda *args: pytest.fail("measured again"))
    assert len(statistics.measure_statistics(Networks(store, "cpu"), made, [0.0, 0.5], 8)) == len(frame)


def test_rows_are_tidy(store) -> None:
    """One row for each number and seed, with what it stands on."""
    m = measured("mixed/clean/group", 0.5, reaching(0.5), run=spec(3), seed=3)
    frame = smoothing_tables.rows(store, [], [m], "smoothing")
    row = frame[(frame["metric"] == "certified_acc") & (frame["eps"] == 0.25)].iloc[0]
    assert (row["value"], row["n"], row["threat"], row["sigma"], row["draws"], row["seed"]) == (0.5, N, "l2", 0.5, 10_000, 3)
    assert row["run"] == spec(3).hash and row["images"] == f"s[:{N}]" and len(frame) == len(RADII) + 2
    smoothing_tables.write_rows(store, frame, "04")
    assert len(pd.read_csv(store.root / "rows" / "certified_04.csv")) == len(frame)


# -- public numbers -----------------------------------------------------------------------------------------------------
def test_public_numbers_name_what_they_stand_on() -> None:
    """Images, n, alpha and source in every line; fractions; none of the paper itself; a curve falls with its radius."""
    frame = public.smoothing_rows()
    for column in ("dataset", "method", "network", "images", "n", "alpha", "source"):
        assert (frame[column].str.len() > 0).all(), column
    assert not frame["source"].str.contains("2312.09020").any()
    accuracy = frame[frame["metric"] == "certified_acc"]
    assert accuracy["value"].between(0, 1).all() and accuracy["radius"].notna().all()
    for _, curve in accuracy.fillna({"sigma": -1}).groupby(["dataset", "method", "network", "sigma", "source"]):
        assert curve["radius"].is_monotonic_increasing and curve["value"].is_monotonic_decreasing


@pytest.mark.parametrize(("method_", "sigma", "radius", "value", "alpha"), [
    ("Cohen et al. 2019", 0.25, 0.5, 0.428, "0.01"), ("Cohen et al. 2019", 0.12, 0.25, 0.586, "0.001"),
    ("Cohen et al. 2019", 1.0, 1.5, 0.140, "0.01"), ("DMAE, continued pre-training", None, 0.25, 0.808, "0.001"),
    ("SmoothAdv", None, 2.25, 0.17, "0.001")])
def test_spot_checks(method_, sigma, radius, value, alpha) -> None:
    """A few numbers as printed in the sources; the alpha that the logs show, not the one that is stated."""
    frame = public.smoothing_rows().query("dataset == 'CIFAR-10' and metric == 'certified_acc'")
    level = frame["sigma"].isna() if sigma is None else frame["sigma"] == sigma
    found = frame[level & (frame["method"] == method_) & (frame["radius"] == radius)]
    assert found["value"].tolist() == [value] and found["alpha"].tolist() == [alpha]
    assert cell("mixed/clean/group") == level_tables.ONE
