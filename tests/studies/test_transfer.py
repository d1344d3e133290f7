"""The grid of robustness transfer: order, how hyper-parameters are chosen, what reaches which run, what is refused."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.studies import made
from tests.studies.made import CONSTANTS, FILE, IMAGENET, PAPER, by_cell, last, of_transfer, sources, unknown
from twinslib.specs.jobs import Job
from twinslib.specs.method import METHODS
from twinslib.specs.run import RunSpec
from twinslib.studies import plan, presets, transfer

AT_FAMILY = ["distill", "feature_distill", "l2sp", "joint", "joint_uot", "frozen_at", "at_natural", "at_random"]
CONTROLS = ["at_lr", "at_split", "two_adaptive", "twins_shared", "twins_attack_frozen", "twins_attack_alternating",
            "trades_beta3", "twins_trades_wing"]
OF_TWINS = ["twins_at", *CONTROLS[:6], "twins_at_lambda0.1", "twins_at_lambda3"]
RATES = {"at": 0.01, "trades": 0.02, "twins_at": 0.03, "twins_trades": 0.04}


def grid(**changes: object) -> list[Job]:
    """The jobs of all baselines and controls on target a, and learning rates of the paper's adversarial methods, one each."""
    return transfer.transfer(**of_transfer(
        methods=PAPER[1:], baselines=AT_FAMILY, controls=CONTROLS, lambdas=[0.1, 3], compared_on=["a"],
        grids={name: {"lr": [lr]} for name, lr in RATES.items()}) | changes)


def test_order() -> None:
    """The start network first, then all of seed 0 before any of seed 1."""
    jobs = grid()
    on_a = [*PAPER[1:], *AT_FAMILY, *CONTROLS, "twins_at_lambda0.1", "twins_at_lambda3"]
    assert [(j.spec.seed, j.spec.data.name, j.spec.method.name) for j in jobs if not j.ship] == [
        (seed, data, name) for seed in (0, 1) for data, names in (("a", on_a), ("b", PAPER[1:])) for name in names]
    assert [j.spec.method.name for j in jobs if j.ship and j.evals] == [jobs[0].spec.method.name, jobs[-1].spec.method.name]
    assert {j.spec.source for j in jobs} - {None} == {j.spec for j in jobs if j.ship}
    assert len({j.spec.hash for j in jobs}) == len(jobs) and {j.study for j in jobs} == {"transfer"}
    assert all(j.settled for j in jobs)


def test_candidates_come_before_what_waits_for_them() -> None:
    """Each tuning run stands before every run that takes something it decides, of the first seed, with nothing to measure."""
    grids = {"at": {"lr": [0.1, 0.2]}, "twins_at": {"lr": [0.1, 0.2]}, "distill": {"distill_weight": [0.1, 0.2, 0.3]}}
    jobs = grid(grids=grids, seeds=[5, 2], best=last)
    place = {(j.study, j.spec.data.name, j.spec.method.name, j.spec.seed): i for i, j in enumerate(jobs)}  # the last of each
    assert {key[1:] for key in place if key[0] == "tuning"} == {
        ("a", "at", 5), ("a", "twins_at", 5), ("a", "distill", 5), ("b", "at", 5), ("b", "twins_at", 5)}
    for parent, children in {"at": ["at", *AT_FAMILY], "twins_at": OF_TWINS, "distill": ["distill"]}.items():
        for child in children:
            assert place["tuning", "a", parent, 5] < place["transfer", "a", child, 5] < place["transfer", "a", child, 2]
    assert all(j.evals == () and j.settled and not j.ship for j in jobs if j.study == "tuning")


def test_settings_of_a_target_are_its_own() -> None:
    """Its data and optimiser settings go over the shared ones and to that target only."""
    cells = by_cell(grid(compared_on=["a", "b"], grids={}))
    for (data, name, seed), job in cells.items():
        spec = job.spec
        assert (spec.optim.epochs, spec.data.val_images) == (2, 5 if data == "a" else 0)
        assert spec.attack.eps == 0.1 and (spec.source is None or name == "at_natural" or spec.source.attack.steps == 3)
        if "lambda" in name:
            twins = cells[data, "twins_at", seed].spec
            method = replace(twins.method, name=name, twins_weight={"twins_at_lambda0.1": 0.1, "twins_at_lambda3": 3.0}[name])
            assert spec == replace(twins, method=method)
        else:
            assert spec.method == replace(METHODS[name], twins_weight=0.4 if data == "a" and name in made.HALVES else 1.0)


@pytest.mark.parametrize(("rates", "own"), [(RATES, {}), (RATES, {"l2sp": 0.7, "at_lr": 0.8}), ({}, {})])
def test_rates_of_others(rates: dict, own: dict) -> None:
    """Without a grid for lr a baseline or control takes the rate of the method it is compared with."""
    grids = {name: {"lr": [lr]} for name, lr in (rates | own).items()}
    for (data, name, _), job in by_cell(grid(grids=grids, compared_on=["a", "b"])).items():
        parent = "twins_at" if name in OF_TWINS else transfer.LR_OF.get(name, name)
        expected = rates.get(parent, {"a": 0.1, "b": 0.5}[data]) * ({"a": 1.4, "b": 2.0}[data] if name == "at_lr" else 1)
        assert job.spec.optim.lr == pytest.approx(own.get(name, expected)), name


@pytest.mark.parametrize("file", [False, True])
def test_starts(file: bool) -> None:
    """Runs start from the named source, a run or a file from elsewhere, whose name is part of their hashes."""
    jobs = transfer.transfer(**of_transfer(sources=sources(FILE if file else None), methods=["at"], compared_on=["a", "b"],
                                           baselines=["l2sp", "at_natural", "at_random"]))
    natural = next(j.spec for j in jobs if j.ship and j.spec.method.name == "natural")
    assert [j.spec.method.name for j in jobs if j.ship] == (["natural"] if file else ["at", "natural"])
    cells = by_cell(jobs)
    for (data, name, seed), job in cells.items():
        named = (None, "a.pt") if file else (jobs[0].spec, None)
        expected = {"at_natural": (natural, None), "at_random": (None, None)}.get(name, named)
        spec, at = job.spec, cells[data, "at", seed].spec
        assert (spec.source, spec.weights and spec.weights.file) == expected
        assert replace(spec, source=at.source, weights=at.weights, method=at.method) == at
    other = FILE | {"weights": FILE["weights"] | {"file": "b.pt"}}
    assert not {j.spec.hash for j in jobs if j.spec.weights} & {
        j.spec.hash for j in transfer.transfer(**of_transfer(sources=sources(other)))}


@pytest.mark.parametrize("robust", [None, FILE])
def test_normalisation_of_a_source(robust: dict | None) -> None:
    """Mean and std of any source are those of its own run, of all that starts from it, and of random starts beside it."""
    jobs, plain = (transfer.transfer(**of_transfer(baselines=["at_natural", "at_random"], compared_on=["a"],
                                                   sources=sources(robust, **constants))) for constants in (CONSTANTS, {}))
    found = {job.spec.method.name: (job.spec.model.mean, job.spec.model.std[0]) for job in jobs}
    assert found["at"] == found["at_random"] == ((0.5, 0.4, 0.3), 0.2) and found["at_natural"] == (IMAGENET, 0.229)
    assert {job.spec.model.mean for job in plain} == {IMAGENET} and len(plain) == len(jobs)


@pytest.mark.parametrize(("limits", "expected"), [
    ({}, lambda data, name, seed: True), ({"targets": ["a"]}, lambda data, name, seed: data == "a"),
    ({"methods": ["at", "l2sp", "twins_at_lambda3"]}, lambda data, name, seed: name in ("at", "l2sp", "twins_at_lambda3")),
    ({"seeds": [1]}, lambda data, name, seed: seed == 1),
    ({"targets": ["b"], "methods": ["at"], "seeds": [0]}, lambda *cell: cell == ("b", "at", 0)),
], ids=lambda value: str(value) if isinstance(value, dict) else "cells")
def test_limits_of_evaluations(limits: dict, expected) -> None:
    """targets, methods and seeds limit an evaluation to the runs that are in all of them, and enter no hash. One that is asked
    for twice is one."""
    costly = {"kind": "pgd", "images": 3, "eps": 0.2}
    jobs = grid(evaluations=[{"kind": "clean", "images": 7}, costly | limits, costly | limits])
    assert len(by_cell(jobs)) == 2 * (22 + 4)
    hashes = {e.hash for job in grid(evaluations=[costly]) for e in job.evals}
    for cell, job in by_cell(jobs).items():
        assert [(e.kind, e.images) for e in job.evals] == [("clean", 7)] + [("pgd", 3)] * expected(*cell), cell
        assert {e.hash for e in job.evals[1:]} <= hashes
    assert all([e.images for e in j.evals] == [9] for j in jobs if j.ship)


def test_candidates_are_the_product_of_a_grid() -> None:
    """Every combination of a method's values is trained, with the first seed only; all else is the run's own."""
    jobs = grid(grids={"l2sp": {"l2sp_weight": [0.01, 0.1, 1], "lr": [0.2, 0.3]}}, seeds=[3, 1, 2], best=last)
    candidates = [j.spec for j in jobs if j.study == "tuning"]
    assert [(c.method.l2sp_weight, c.optim.lr) for c in candidates] == [
        (weight, lr) for weight in (0.01, 0.1, 1.0) for lr in (0.2, 0.3)]
    found = by_cell(jobs)
    chosen = found["a", "l2sp", 3].spec
    assert chosen == candidates[-1] and all(found["a", "l2sp", seed].spec == replace(chosen, seed=seed) for seed in (1, 2))
    assert all(replace(c, optim=chosen.optim, method=chosen.method) == chosen and c.method.name == "l2sp" for c in candidates)


def test_each_target_chooses_by_itself() -> None:
    """`best` is asked once per target and method, for runs that differ in what the grid names alone."""
    asked = []

    def best(candidates: Sequence[RunSpec]) -> RunSpec:
        asked.append([(c.data.name, c.method.name, c.seed, c.optim.lr) for c in candidates])
        return candidates[candidates[0].data.name == "b"]

    cells = by_cell(grid(grids={"at": {"lr": [0.1, 0.2]}, "trades": {"lr": [0.3, 0.4]}}, best=best))
    assert asked == [[(data, name, 0, lr) for lr in rates] for data in "ab"
                     for name, rates in (("at", (0.1, 0.2)), ("trades", (0.3, 0.4)))]
    assert [cells[data, name, 1].spec.optim.lr for data in "ab" for name in ("at", "trades")] == [0.1, 0.3, 0.2, 0.4]
    assert cells["a", "trades_beta3", 0].spec.optim.lr == 0.3


def test_unsettled_until_every_candidate_is_there() -> None:
    """What takes a value that is not chosen yet waits, with the first candidate in its place; nothing else does."""
    jobs = grid(grids={"twins_at": {"lr": [0.1, 0.2]}, "trades": {"lr": [0.3]}}, best=unknown)
    assert {(data, name) for (data, name, _), j in by_cell(jobs).items() if not j.settled} == {
        *(("a", name) for name in OF_TWINS), ("b", "twins_at")}
    assert all(j.settled for j in jobs if j.ship or j.study == "tuning")
    assert by_cell(jobs)["a", "at_split", 1].spec.optim.lr == 0.1 and by_cell(jobs)["a", "trades_beta3", 1].spec.optim.lr == 0.3


def test_own_candidates_wait_for_the_rate() -> None:
    """A grid without lr is tried at the rate of the method it is compared with, so not before that is chosen."""
    def rate_only(candidates: Sequence[RunSpec]) -> RunSpec | None:
        return candidates[1] if candidates[0].method.name == "at" else None

    for best, tried, settled in ((unknown, [], False), (rate_only, [(0.5, 0.2), (0.6, 0.2)], False),
                                 (last, [(0.5, 0.2), (0.6, 0.2)], True)):
        jobs = grid(grids={"at": {"lr": [0.1, 0.2]}, "l2sp": {"l2sp_weight": [0.5, 0.6]}}, best=best)
        runs = [j.spec for j in jobs if (j.study, j.spec.data.name, j.spec.method.name) == ("tuning", "a", "l2sp")]
        assert [(s.method.l2sp_weight, s.optim.lr) for s in runs] == tried
        assert by_cell(jobs)["a", "l2sp", 1].settled is settled


ROBUST = {"data": {"name": "toy_source", "image_size": 16}, "optim": {}}


def measuring(**limits: object) -> dict:
    return {"evaluations": [{"kind": "clean", "images": 1} | limits]}


@pytest.mark.parametrize(("changes", "message"), [
    ({"start": "robsut"}, "start to be one of natural, robust, got 'robsut'; did you mean 'robust'?"),
    ({"norm": "group"}, "norm 'batch' for the wings 'twins', got 'group'"),
    ({"targets": {"a": {"optm": {}}}}, "key of targets.a .*'optim'?"), ({"attack": {"eps": 8}}, "eps in .*write 8/255"),
    ({"targets": {"a": {"method": {"twinsweight": 1.0}}, "b": {}}}, "did you mean 'twins_weight'?"),
    ({"targets": {"a": {"data": {"image_size": 32}}, "b": {}}}, "source images of the target's size .* for method 'joint'"),
    ({"sources": {"robust": ROBUST}}, "start of at_natural to be one of robust, got 'natural'"),
    ({"sources": sources(FILE)}, "a source run for method 'joint', got 'a.pt'; joint training needs the images of the source"),
    ({"sources": sources(mean=[0.5, 0.5, 0.5])}, "mean and std, both or neither, in sources.robust"),
    ({"sources": sources(FILE, mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])}, "pixels in .0, 1., .*divide by 255"),
    (measuring(targets=["c"]), "targets of an evaluation .* a, b, got 'c'"), (measuring(methods="at"), "a list for methods"),
    (measuring(methods=["natural"]), "methods of an evaluation .* at, .*, twins_at_lambda3, got 'natural'"),
    ({"compared_on": ["cifar"]}, "data set of compared_on to be one of a, b, got 'cifar'"),
    *(({part: [name]}, f"method in .* to be one of .*; did you mean '{meant}'?") for part, name, meant in (
        ("methods", "twin_at", "twins_at"), ("baselines", "l2ps", "l2sp"), ("controls", "at_lrr", "at_lr"))),
    ({"grids": {"twin_at": {"lr": [0.1]}}}, "method in .* to be one of .*; did you mean 'twins_at'?"),
    ({"baselines": ["natural"]}, "a baseline or control \\(distill, .*\\), got 'natural'; list it under methods"),
    ({"methods": [*PAPER, "at_lr"]}, "'at_lr' among controls"), ({"methods": [*PAPER, "at"]}, "without repeats"),
    *(({"methods": [m for m in PAPER[1:] if m != parent]}, f"'{parent}' among methods for '{child}', which takes its")
      for parent, child in (
          ("at", "distill"), ("twins_at", "at_lr"), ("trades", "trades_beta3"), ("twins_trades", CONTROLS[-1]))),
    ({"lambdas": [-0.5]}, "lambdas of at least 0, got .-0.5"), ({"grids": {"at": {"leraning": [0.1, 0.2]}}}, "key of grids"),
    ({"grids": {"at": {"lr": [0.1, -0.1]}}}, "lr > 0, got -0.1"), ({"grids": {"at": {"lr": []}}}, "one entry in grids.at"),
])
def test_illegal_arguments(changes: dict, message: str) -> None:
    """Unknown names and wrong values anywhere in the parameters are refused before any run."""
    with pytest.raises((ValueError, TypeError), match=message):
        grid(**changes)


@pytest.mark.parametrize("preset", [p for p, number in made.PRESETS if number == "01"])
def test_presets(preset: str) -> None:
    """Every preset's parameters make jobs: no two alike, all sources among them, each of its methods on the same targets."""
    asked, settings = plan.plan(preset, "01")
    jobs, known = asked(best=last), asked.keywords
    assert settings["preset"] == preset and set(settings) == set(presets.SETTINGS)
    hashes = [j.spec.hash for j in jobs if j.study != "tuning"]
    assert hashes and len(set(hashes)) == len(hashes) and all(j.settled for j in jobs)
    specs = {j.spec for j in jobs}
    assert all(s.source is None or s.source in specs for s in specs)
    by_method: dict[str, set] = {}
    for (_, name, _), j in by_cell(jobs).items():
        s = j.spec
        by_method.setdefault(name, set()).add((s.data, s.seed, s.attack, replace(s.optim, lr=1.0), s.source, s.weights, j.evals))
    assert len({frozenset(by_method[name]) for name in known["methods"]}) == 1
    for name in (*known["baselines"], *known["controls"]):  # where they are, as their rivals but for the start
        assert {cell[:4] for cell in by_method[name]} <= {cell[:4] for cell in by_method["at"]}
        assert {cell[0].name for cell in by_method[name]} == set(known["compared_on"])
    for pair in (("at", "twins_at"), ("trades", "twins_trades")):
        assert len({tuple(known["grids"].get(name, {}).get("lr", ())) for name in pair}) == 1
