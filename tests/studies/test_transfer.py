"""Grids of runs: their order, how hyper-parameters are chosen, what reaches which run, and parameters that are refused."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from twinslib.base import paths
from twinslib.specs.method import METHODS, MethodSpec
from twinslib.specs.run import FollowSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job
from twinslib.studies import followed, presets, transfer
from twinslib.studies import plan as studies_plan

FILES = sorted((paths.notebooks_dir() / "params").glob("*/*.yaml"))
PRESETS = [("toy", number) for number in sorted(studies_plan.STUDIES)] + [(p.parent.name, p.stem) for p in FILES]
TRANSFERS, FOLLOWED = ([p for p in PRESETS if p[1] in numbers] for numbers in (("01",), ("02", "03")))
PAPER = ["natural", "at", "trades", "twins_at", "twins_trades"]
AT_FAMILY = ["distill", "feature_distill", "l2sp", "joint", "joint_uot", "frozen_at", "at_natural", "at_random"]
CONTROLS = ["at_lr", "at_split", "two_adaptive", "twins_shared", "twins_attack_frozen", "twins_attack_alternating",
            "trades_beta3", "twins_trades_wing"]
HALVES = ["twins_at", "twins_trades", "at_split", "two_adaptive", "twins_shared", "twins_attack_frozen",
          "twins_attack_alternating", "twins_trades_wing"]


def first(candidates: Sequence[RunSpec], **_: object) -> RunSpec:
    return candidates[0]


def last(candidates: Sequence[RunSpec], **_: object) -> RunSpec:
    return candidates[-1]


def unknown(candidates: Sequence[RunSpec], **_: object) -> None:
    """No candidate is finished."""


def arguments(**changes: object) -> dict:
    """Arguments of `transfer`: two sources, two targets, the paper's methods, two seeds, nothing to choose."""
    source = {"data": {"name": "toy_source", "image_size": 16}, "optim": {"epochs": 1}}
    return {
        "arch": "tiny_resnet", "norm": "batch", "start": "robust",
        "sources": {"natural": source | {"method": "natural"}, "robust": source | {"attack": {"steps": 3}}},
        "targets": {"a": {"data": {"val_images": 5, "image_size": 16}, "method": {"twins_weight": 0.4}},
                    "b": {"data": {"image_size": 16}, "optim": {"lr": 0.5}}},
        "methods": PAPER, "baselines": [], "controls": [], "lambdas": [], "compared_on": [], "grids": {},
        "seeds": [0, 1], "optim": {"epochs": 2, "lr": 0.1}, "attack": {"eps": 0.1},
        "source_evaluations": [{"kind": "clean", "images": 9}],
        "evaluations": [{"kind": "clean", "images": 7}, {"kind": "pgd", "images": 7, "eps": 0.1, "targets": ["b"]}],
        "best": first,
    } | changes


def everything(**changes: object) -> dict:
    """The same with all baselines and controls on target a, and learning rates of the paper's adversarial methods, one each."""
    rates = {"at": 0.01, "trades": 0.02, "twins_at": 0.03, "twins_trades": 0.04}
    return arguments(methods=PAPER[1:], baselines=AT_FAMILY, controls=CONTROLS, lambdas=[0.1, 3], compared_on=["a"],
                     grids={name: {"lr": [lr]} for name, lr in rates.items()}) | changes


def tuned(jobs: Sequence[Job]) -> list[Job]:
    """The fine-tuning jobs that something is measured on."""
    return [j for j in jobs if j.study == "transfer" and not j.ship]


def by_cell(jobs: Sequence[Job]) -> dict[tuple[str, str, int], Job]:
    return {(j.spec.data.name, j.spec.method.name, j.spec.seed): j for j in tuned(jobs)}


# -- order -----------------------------------------------------------------------------------------------------------
def test_order_of_priority() -> None:
    """The start network first, then all of seed 0 before any of seed 1; every combination exactly once."""
    jobs = transfer.transfer(**arguments())
    assert jobs[0].spec.method.name == "at" and jobs[0].spec.source is None
    tunes = [j.spec for j in jobs if j.spec.source is not None]
    assert all(t.source == jobs[0].spec for t in tunes)
    assert [t.seed for t in tunes] == [0] * 10 + [1] * 10
    for seed in (0, 1):
        cells = [(t.data.name, t.method.name) for t in tunes if t.seed == seed]
        assert cells == [(data, name) for data in "ab" for name in PAPER]
    assert len({j.spec.hash for j in jobs}) == len(jobs) == 22
    assert {j.study for j in jobs} == {"transfer"} and all(j.settled for j in jobs)


def test_order_with_baselines_and_controls() -> None:
    """Methods, baselines, controls, then further lambdas, on the data sets that they are compared on; others have the methods
    alone."""
    jobs = transfer.transfer(**everything())
    on_a = [*PAPER[1:], *AT_FAMILY, *CONTROLS, "twins_at_lambda0.1", "twins_at_lambda3"]
    assert [(j.spec.seed, j.spec.data.name, j.spec.method.name) for j in tuned(jobs)] == [
        (seed, data, name) for seed in (0, 1) for data, names in (("a", on_a), ("b", PAPER[1:])) for name in names]
    assert jobs[0].spec.method.name == "at" and jobs[0].ship and jobs[-1].spec.method.name == "natural" and jobs[-1].ship


def test_every_source_is_a_job() -> None:
    """Whatever a run starts from is in the list and kept; sources that nothing starts from are measured as well."""
    for jobs in (transfer.transfer(**arguments()), transfer.transfer(**everything())):
        shipped = {j.spec for j in jobs if j.ship}
        assert {j.spec.source for j in jobs} - {None} <= shipped
        assert {s.method.name for s in shipped} == {"natural", "at"}
        assert all(j.evals for j in jobs if j.ship)


def test_candidates_come_before_what_waits_for_them() -> None:
    """Each tuning run stands before every run that takes something it decides, of the first seed, with nothing to measure."""
    grids = {"at": {"lr": [0.1, 0.2]}, "twins_at": {"lr": [0.1, 0.2]}, "distill": {"distill_weight": [0.1, 0.2, 0.3]}}
    jobs = transfer.transfer(**everything(grids=grids, seeds=[5, 2], best=last))
    place = {(j.study, j.spec.data.name, j.spec.method.name, j.spec.seed): i for i, j in enumerate(jobs)}  # the last of each
    assert {key[1:] for key in place if key[0] == "tuning"} == {
        ("a", "at", 5), ("a", "twins_at", 5), ("a", "distill", 5), ("b", "at", 5), ("b", "twins_at", 5)}
    for parent, children in {"at": ["at", *AT_FAMILY], "twins_at": ["twins_at", *CONTROLS[:6], "twins_at_lambda3"],
                             "distill": ["distill"]}.items():
        for child in children:
            assert place["tuning", "a", parent, 5] < place["transfer", "a", child, 5] < place["transfer", "a", child, 2]
    assert all(j.evals == () and j.settled and not j.ship for j in jobs if j.study == "tuning")


# -- what reaches which run ------------------------------------------------------------------------------------------
def test_switches_of_a_target_reach_methods_that_split_only() -> None:
    """A target's method switches change its runs with two halves; other runs and other targets keep the defaults."""
    for job in tuned(transfer.transfer(**everything(compared_on=["a", "b"], lambdas=[]))):
        name, switched = job.spec.method.name, job.spec.data.name == "a" and job.spec.method.name in HALVES
        assert job.spec.method == replace(METHODS[name], twins_weight=0.4 if switched else 1.0)


def test_a_targets_overrides_are_its_own() -> None:
    """Data and optimiser settings of a target go over the shared ones and to that target only."""
    for job in transfer.transfer(**arguments()):
        if (spec := job.spec).source is not None:
            assert (spec.optim.epochs, spec.optim.lr) == (2, 0.5 if spec.data.name == "b" else 0.1)
            assert spec.data.val_images == (5 if spec.data.name == "a" else 0)
            assert spec.attack.eps == 0.1 and spec.source.attack.steps == 3


def test_lambdas_are_twins_at_with_another_weight() -> None:
    """A run per weight and seed, named by it, over the target's own weight; in all else it is TWINS-AT."""
    cells = by_cell(transfer.transfer(**everything(lambdas=[0.1, 3, 0.25])))
    for label, value in (("twins_at_lambda0.1", 0.1), ("twins_at_lambda3", 3.0), ("twins_at_lambda0.25", 0.25)):
        for seed in (0, 1):
            twins = cells["a", "twins_at", seed].spec
            assert twins.method.twins_weight == 0.4
            named = replace(twins.method, name=label, twins_weight=value)
            assert cells["a", label, seed].spec == replace(twins, method=named)
    assert ("b", "twins_at_lambda3", 0) not in cells


@pytest.mark.parametrize("own", [False, True])
def test_rates_of_others(own: bool) -> None:
    """Without a grid for lr a baseline or control takes the rate of the method it is compared with, at_lr 1 + lambda times
    that of TWINS-AT; a grid of its own counts more."""
    grids = everything()["grids"] | ({"l2sp": {"lr": [0.7]}, "at_lr": {"lr": [0.8]}} if own else {})
    cells = by_cell(transfer.transfer(**everything(grids=grids, compared_on=["a", "b"])))
    for (data, name, _), job in cells.items():
        if "trades" in name:
            expected = 0.04 if "twins" in name else 0.02
        elif name == "at_lr":
            expected = 0.8 if own else 0.03 * (1.4 if data == "a" else 2.0)
        else:
            of_twins = "twins" in name or name in ("at_split", "two_adaptive")
            expected = 0.7 if own and name == "l2sp" else 0.03 if of_twins else 0.01
        assert job.spec.optim.lr == pytest.approx(expected), name


def test_rates_without_grids_are_the_targets() -> None:
    """Where nothing is tuned, all runs on a target have its rate, at_lr 1 + lambda times that."""
    for (data, name, _), job in by_cell(transfer.transfer(**everything(grids={}, compared_on=["a", "b"]))).items():
        factor = {"a": 1.4, "b": 2.0}[data] if name == "at_lr" else 1
        assert job.spec.optim.lr == pytest.approx({"a": 0.1, "b": 0.5}[data] * factor)


def test_starts_of_others() -> None:
    """Runs start from the named source, but at_natural from the natural one and at_random from random weights."""
    jobs = transfer.transfer(**everything())
    natural = next(j.spec for j in jobs if j.ship and j.spec.method.name == "natural")
    for (_, name, _), job in by_cell(jobs).items():
        expected = {"at_natural": natural, "at_random": None}.get(name, jobs[0].spec)
        assert job.spec.source == expected and job.spec.weights is None
    at, random, from_natural = (by_cell(jobs)["a", name, 1].spec for name in ("at", "at_random", "at_natural"))
    assert replace(random, source=at.source, method=at.method) == at  # the start is the one difference
    assert replace(from_natural, source=at.source, method=at.method) == at


def test_start_from_weights_of_others() -> None:
    """A source may be a file from elsewhere: nothing is trained for it, and its name is part of each run's hash."""
    def tunes(file: str) -> list[RunSpec]:
        sources = {"robust": {"weights": {"file": file, "classes": 1000}}}
        return [j.spec for j in transfer.transfer(**arguments(sources=sources))]

    assert len(tunes("a.pt")) == 20 and all(s.source is None and s.weights.file == "a.pt" for s in tunes("a.pt"))
    assert not {s.hash for s in tunes("a.pt")} & {s.hash for s in tunes("b.pt")}


CONSTANTS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
IMAGENET = (0.485, 0.456, 0.406)


@pytest.mark.parametrize("robust", [arguments()["sources"]["robust"], {"weights": {"file": "a.pt", "classes": 9}}])
@pytest.mark.parametrize("build", [transfer.transfer, followed.followed])
def test_normalisation_of_a_source(build, robust: dict) -> None:
    """Mean and std of any source are those of its own run, of all that starts from it, and of random starts beside it; other
    sources keep theirs."""
    if build is transfer.transfer:
        given = arguments(baselines=["at_natural", "at_random"], compared_on=["a"])
    else:
        given = follow_arguments(runs={name: {} for name in ("at", "at_natural", "at_short_plateau")})
    sources = arguments()["sources"]
    jobs = build(**given | {"sources": sources | {"robust": robust | CONSTANTS}})
    found = {job.spec.method.name: (job.spec.model.mean, job.spec.model.std[0]) for job in jobs}
    mine, others = ((0.5, 0.4, 0.3), 0.2), (IMAGENET, 0.229)
    assert {found["at"], found["at_random" if build is transfer.transfer else "at_short_plateau"]} == {mine}
    assert found["at_natural"] == others
    plain = build(**given | {"sources": sources | {"robust": robust}})
    assert {job.spec.model.mean for job in plain} == {IMAGENET}
    assert len(plain) == len(jobs)


@pytest.mark.parametrize(("constants", "message"), [
    ({"mean": [0.5, 0.5, 0.5]}, "mean and std, both or neither, in sources.robust"),
    ({"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}, "pixels in .0, 1., .*divide by 255"),
    ({"mean": [0.5], "std": [0.5]}, "three means and three positive stds"),
    ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0]}, "three means and three positive stds"),
])
@pytest.mark.parametrize("robust", [arguments()["sources"]["robust"], {"weights": {"file": "a.pt", "classes": 9}}])
def test_normalisation_that_makes_no_sense(robust: dict, constants: dict, message: str) -> None:
    """Refused for every kind of source."""
    with pytest.raises(ValueError, match=message):
        transfer.transfer(**arguments(sources=arguments()["sources"] | {"robust": robust | constants}))


def test_random_start_beside_weights_of_others() -> None:
    """at_random has neither source nor file, at_natural may start from a run while the others start from a file."""
    sources = arguments()["sources"] | {"robust": {"weights": {"file": "a.pt", "classes": 9}}}
    names = ["l2sp", "at_natural", "at_random"]
    jobs = transfer.transfer(**arguments(sources=sources, methods=["at"], baselines=names, compared_on=["a"], seeds=[0]))
    cells = by_cell(jobs)
    assert [cells["a", n, 0].spec.weights and cells["a", n, 0].spec.weights.file for n in ("at", *names)] == [
        "a.pt", "a.pt", None, None]
    assert cells["a", "at_natural", 0].spec.source.method.name == "natural" and cells["a", "at_random", 0].spec.source is None


# -- what is measured ------------------------------------------------------------------------------------------------
def test_evaluations_may_be_limited_to_targets() -> None:
    """An evaluation with `targets` is made on those alone, all others on every target; the list enters no hash."""
    jobs = transfer.transfer(**arguments())
    kinds = {j.spec.data.name: [e.kind for e in j.evals] for j in jobs}
    assert kinds == {"toy_source": ["clean"], "a": ["clean"], "b": ["clean", "pgd"]}
    everywhere = arguments()
    del everywhere["evaluations"][1]["targets"]
    assert transfer.transfer(**everywhere)[-2].evals == jobs[-2].evals


@pytest.mark.parametrize(("limits", "expected"), [
    ({}, lambda data, name, seed: True),
    ({"targets": ["a"]}, lambda data, name, seed: data == "a"),
    ({"methods": ["at", "l2sp", "twins_at_lambda3"]}, lambda data, name, seed: name in ("at", "l2sp", "twins_at_lambda3")),
    ({"seeds": [1]}, lambda data, name, seed: seed == 1),
    ({"targets": ["b"], "methods": ["at"], "seeds": [0]}, lambda *cell: cell == ("b", "at", 0)),
    ({"targets": []}, lambda data, name, seed: False),
], ids=lambda value: str(value) if isinstance(value, dict) else "cells")
def test_limits_of_evaluations(limits: dict, expected) -> None:
    """targets, methods and seeds limit an evaluation to the runs that are in all of them; sources are not concerned."""
    costly = {"kind": "pgd", "images": 3, "eps": 0.2}
    jobs = transfer.transfer(**everything(evaluations=[{"kind": "clean", "images": 7}, costly | limits]))
    assert len(by_cell(jobs)) == 2 * (22 + 4)
    for cell, job in by_cell(jobs).items():
        assert [(e.kind, e.images) for e in job.evals] == [("clean", 7)] + [("pgd", 3)] * expected(*cell), cell
    assert all([e.images for e in j.evals] == [9] for j in jobs if j.ship)


# -- hyper-parameters ------------------------------------------------------------------------------------------------
def test_candidates_are_the_product_of_a_grid() -> None:
    """Every combination of a method's values is trained, with the first seed only; all else is the run's own."""
    grids = {"l2sp": {"l2sp_weight": [0.01, 0.1, 1], "lr": [0.2, 0.3]}}
    jobs = transfer.transfer(**everything(grids=grids, seeds=[3, 1, 2]))
    candidates = [j.spec for j in jobs if j.study == "tuning"]
    assert [(c.method.l2sp_weight, c.optim.lr) for c in candidates] == [
        (weight, lr) for weight in (0.01, 0.1, 1.0) for lr in (0.2, 0.3)]
    chosen = by_cell(jobs)["a", "l2sp", 3].spec
    assert chosen == candidates[0]
    for c in candidates:
        assert c.method.name == "l2sp" and c.seed == 3
        assert replace(c, optim=chosen.optim, method=chosen.method) == chosen


def test_what_was_chosen_is_used_by_all_seeds() -> None:
    """All seeds of a run have the values that `best` took, and the run of the first seed is that candidate itself."""
    grids = {"at": {"lr": [0.1, 0.2]}, "distill": {"distill_weight": [1, 2], "feature_weight": [3.0]}}
    jobs = transfer.transfer(**everything(grids=grids, seeds=[0, 1, 2], best=last))
    cells = by_cell(jobs)
    for seed in (0, 1, 2):
        found = cells["a", "distill", seed]
        assert (found.spec.method.distill_weight, found.spec.method.feature_weight, found.spec.optim.lr) == (2.0, 3.0, 0.2)
        assert [cells[data, "at", seed].spec.optim.lr for data in "ab"] == [0.2, 0.2] and found.settled
    assert cells["a", "distill", 0].spec in {j.spec for j in jobs if j.study == "tuning"}


def test_each_target_chooses_by_itself() -> None:
    """`best` is asked once per target and method, for runs that differ in what the grid names alone."""
    asked = []

    def best(candidates: Sequence[RunSpec]) -> RunSpec:
        asked.append([(c.data.name, c.method.name, c.seed, c.optim.lr) for c in candidates])
        return candidates[candidates[0].data.name == "b"]

    jobs = transfer.transfer(**everything(grids={"at": {"lr": [0.1, 0.2]}, "trades": {"lr": [0.3, 0.4]}}, best=best))
    assert asked == [[(data, name, 0, lr) for lr in rates] for data in "ab"
                     for name, rates in (("at", (0.1, 0.2)), ("trades", (0.3, 0.4)))]
    cells = by_cell(jobs)
    assert [cells[data, name, 1].spec.optim.lr for data in "ab" for name in ("at", "trades")] == [0.1, 0.3, 0.2, 0.4]
    assert cells["a", "trades_beta3", 0].spec.optim.lr == 0.3


def test_unsettled_until_every_candidate_is_there() -> None:
    """What takes a value that is not chosen yet waits, with the first candidate in its place; nothing else does."""
    grids = {"twins_at": {"lr": [0.1, 0.2]}, "trades": {"lr": [0.3]}}
    jobs = transfer.transfer(**everything(grids=grids, best=unknown))
    waiting = {name for (data, name, _), j in by_cell(jobs).items() if data == "a" and not j.settled}
    assert waiting == {"twins_at", *CONTROLS[:6], "twins_at_lambda0.1", "twins_at_lambda3"}
    assert {name for (data, name, _), j in by_cell(jobs).items() if data == "b" and not j.settled} == {"twins_at"}
    assert all(j.settled for j in jobs if j.ship or j.study == "tuning")
    assert by_cell(jobs)["a", "at_split", 1].spec.optim.lr == 0.1 and by_cell(jobs)["a", "trades_beta3", 1].spec.optim.lr == 0.3


def test_own_candidates_wait_for_the_rate() -> None:
    """A grid without lr is tried at the rate of the method it is compared with, so not before that is chosen."""
    grids = {"at": {"lr": [0.1, 0.2]}, "l2sp": {"l2sp_weight": [0.5, 0.6]}}

    def rate_only(candidates: Sequence[RunSpec]) -> RunSpec | None:
        return candidates[1] if candidates[0].method.name == "at" else None

    def tried(best) -> list:
        jobs = transfer.transfer(**everything(grids=grids, best=best))
        runs = [(j.spec.method.l2sp_weight, j.spec.optim.lr) for j in jobs if j.study == "tuning" and j.spec.data.name == "a"
                and j.spec.method.name == "l2sp"]
        return [runs, by_cell(jobs)["a", "l2sp", 1].settled]

    assert tried(unknown) == [[], False]
    assert tried(rate_only) == [[(0.5, 0.2), (0.6, 0.2)], False]
    assert tried(last) == [[(0.5, 0.2), (0.6, 0.2)], True]


@pytest.mark.parametrize("best", [first, unknown])
def test_a_grid_of_one_value_is_a_switch(best) -> None:
    """One value leaves nothing to choose: no candidate is trained, the run has the value and waits for nothing."""
    jobs = transfer.transfer(**everything(grids={"joint_uot": {"source_classes": [3]}, "at": {"lr": [0.7]}}, best=best))
    assert not [j for j in jobs if j.study == "tuning"] and all(j.settled for j in jobs)
    spec = by_cell(jobs)["a", "joint_uot", 1].spec
    assert (spec.method.source_classes, spec.method.source_weight, spec.optim.lr) == (3, 0.3, 0.7)


# -- refused ---------------------------------------------------------------------------------------------------------
SOURCE = {"data": {"name": "toy_source"}, "optim": {}}
ROBUST = {"data": {"name": "toy_source", "image_size": 16}, "optim": {}}


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"start": "robsut"}, ValueError, "expected start to be one of natural, robust, got 'robsut'; did you mean 'robust'?"),
    ({"arch": "tiny_resnt"}, ValueError, "did you mean 'tiny_resnet'?"),
    ({"norm": "grup"}, ValueError, "did you mean 'group'?"),
    ({"norm": "group"}, ValueError, "expected norm 'batch' for the wings 'twins', got 'group'"),
    ({"methods": ["twin_at"]}, ValueError, "expected method to be one of .*; did you mean 'twins_at'?"),
    ({"optim": {"learning_rate": 1}}, ValueError, "expected key of targets.a.optim to be one of epochs, batch_size, lr"),
    ({"attack": {"eps": 8}}, ValueError, "expected eps in \\[0, 1\\] \\(pixel units\\), got 8; write 8/255"),
    ({"targets": {"a": {"optm": {}}}}, ValueError, "key of targets.a .*; did you mean 'optim'?"),
    ({"targets": {"a": None}}, TypeError, "expected a mapping for targets.a, got None"),
    ({"targets": {"a": {"method": {"twinsweight": 1.0}}, "b": {}}}, ValueError, "did you mean 'twins_weight'?"),
    ({"targets": {"a": {"data": {"crop_size": 9}}, "b": {}}}, ValueError, "expected key of targets.a.data"),
    ({"sources": {"robust": SOURCE | {"methd": "at"}}}, ValueError, "key of sources.robust .*; did you mean 'method'?"),
    ({"sources": {"robust": {"data": {"name": "a"}}}}, ValueError, "expected optim in sources.robust, got only data"),
    ({"sources": {"robust": None}}, TypeError, "expected a mapping for sources.robust, got None"),
    ({"sources": {"robust": {"weights": {"file": "a.pt"}}}}, ValueError, "expected classes in sources.robust.weights"),
    ({"evaluations": [{"kind": "clean", "images": 1, "targets": ["c"]}]}, ValueError, "target of an evaluation .* a, b"),
    ({"evaluations": [{"kind": "pgd", "images": 1, "esp": 0.1}]}, ValueError, "key of evaluations .*'eps'?"),
    ({"evaluations": [{"kind": "clean", "images": 1, "methods": ["l2ps"]}]}, ValueError,
     "expected method of an evaluation to be one of at, .*, twins_at_lambda3, got 'l2ps'; did you mean 'l2sp'?"),
    ({"evaluations": [{"kind": "clean", "images": 1, "methods": ["natural"]}]}, ValueError,
     "expected method of an evaluation .*, got 'natural'"),
    ({"evaluations": [{"kind": "clean", "images": 1, "seeds": [0, 7]}]}, ValueError,
     "expected seeds of an evaluation among \\[0, 1\\], got \\[0, 7\\]"),
    ({"compared_on": ["cifar"]}, ValueError, "expected data set of compared_on to be one of a, b, got 'cifar'"),
    ({"baselines": ["l2ps"]}, ValueError, "expected method to be one of .*; did you mean 'l2sp'?"),
    ({"controls": ["at_lrr"]}, ValueError, "expected method to be one of .*; did you mean 'at_lr'?"),
    ({"baselines": ["natural"]}, ValueError,
     "expected a baseline or control \\(distill, .*, twins_trades_wing\\), got 'natural'; list it under methods"),
    ({"methods": ["trades", "twins_at", "twins_trades"]}, ValueError,
     "expected 'at' among methods for 'distill', which takes its learning rate, got trades, twins_at, twins_trades; add it"),
    ({"methods": ["at", "trades", "twins_trades"], "controls": []}, ValueError,
     "expected 'twins_at' among methods for 'twins_at_lambda0.1', which takes its learning rate"),
    ({"methods": ["at", "twins_at", "twins_trades"]}, ValueError, "expected 'trades' among methods for 'trades_beta3'"),
    ({"methods": ["at", "trades", "twins_at"]}, ValueError, "expected 'twins_trades' among methods for 'twins_trades_wing'"),
    ({"lambdas": [-0.5]}, ValueError, "expected twins_weight >= 0, got -0.5"),
    ({"grids": {"twin_at": {"lr": [0.1]}}}, ValueError, "expected method to be one of .*; did you mean 'twins_at'?"),
    ({"grids": {"at": {"leraning": [0.1, 0.2]}}}, ValueError, "expected key of grids to be one of name, objective"),
    ({"grids": {"at": {"lr": ["1e-3"]}}}, TypeError, "expected a number for grids.lr, got the text '1e-3'; in YAML write"),
    ({"grids": {"at": {"lr": [0.1, -0.1]}}}, ValueError, "expected lr > 0, got -0.1"),
    ({"grids": {"distill": {"distill_weight": [-1.0]}}}, ValueError, "expected distill_weight >= 0, got -1.0"),
    ({"sources": {"robust": ROBUST}}, ValueError, "expected start of at_natural to be one of robust, got 'natural'"),
    ({"sources": arguments()["sources"] | {"robust": {"weights": {"file": "a.pt", "classes": 9}}}}, ValueError,
     "expected a source run for method 'joint', got 'a.pt'; joint training needs the images of the source task"),
    ({"targets": {"a": {"data": {"image_size": 32}}, "b": {}}}, ValueError,
     "expected source images of the target's size \\(32, 32\\) for method 'joint', got \\(16, 16\\)"),
])
def test_illegal_arguments(changes: dict, error: type, message: str) -> None:
    """Unknown names and wrong values anywhere in the parameters are refused before any run."""
    with pytest.raises(error, match=message):
        transfer.transfer(**everything(**changes))


@pytest.mark.parametrize(("grid", "message"), [
    ({"lr": []}, "at.*lr"), ({"lr": 0.1}, "at.*lr"), (None, "at"), ([0.1], "at"),
], ids=str)
def test_grids_that_hold_no_values(grid: object, message: str) -> None:
    """A grid is a mapping to lists with something in them; anything else is refused by name."""
    with pytest.raises((ValueError, TypeError), match=f"expected .*grids.*{message}.*, got "):
        transfer.transfer(**everything(grids={"at": grid}, best=first))


# -- runs that are followed ------------------------------------------------------------------------------------------
def follow_arguments(**changes: object) -> dict:
    """Arguments of `followed`: six methods on two targets, some with changes and limits of their own."""
    return {
        "arch": "tiny_resnet", "norm": "batch", "start": "robust", "sources": arguments()["sources"],
        "targets": {"a": {"data": {"val_images": 5, "image_size": 16}, "method": {"twins_weight": 0.4}},
                    "b": {"data": {"image_size": 16}, "optim": {"lr": 0.5, "momentum": 0.8}}},
        "runs": {"at": {}, "twins_at": {}, "at_lr": {}, "at_slow_fast": {"optim": {"schedule": "slow_fast", "momentum": 0.7}},
                 "at_random": {"data": {"train_images": 9, "val_images": 3}, "model": {"arch": "thin_resnet10"}},
                 "at_awp": {"targets": ["b"], "seeds": [4]}},
        "seeds": [0, 4], "optim": {"epochs": 2, "lr": 0.1}, "attack": {"eps": 0.1}, "follow": {"test_images": 6, "every": 2},
        "best": None,
    } | changes


def cells_of(jobs: Sequence[Job]) -> dict[tuple[str, str, int], RunSpec]:
    return {(j.spec.data.name, j.spec.method.name, j.spec.seed): j.spec for j in jobs if not j.ship and j.settled}


def test_order_of_followed_runs() -> None:
    """The start network, then all of the first seed before any of the second; targets and methods in their order, where their
    own lists name the target and the seed. Nothing is measured afterwards, nothing waits."""
    first, *jobs = followed.followed(**follow_arguments())
    every = ["at", "twins_at", "at_lr", "at_slow_fast", "at_random"]
    assert list(cells_of(jobs)) == [*((data, name, 0) for data in "ab" for name in every),
                                    *((data, name, 4) for data in "ab" for name in every), ("b", "at_awp", 4)]
    assert len(jobs) == len({j.spec.hash for j in jobs}) == 21
    assert first.ship and first.spec.source is None and first.spec.follow is None
    assert all(j.evals == j.certs == () and j.settled for j in (first, *jobs))
    assert {j.study for j in (first, *jobs)} == {"followed"}
    assert {j.study for j in followed.followed(**follow_arguments(study="rates"))} == {"rates"}


def test_runs_of_an_earlier_plan_are_kept() -> None:
    """Their specs are known, so that finished ones belong somewhere, and nothing waits for them or computes them."""
    runs = follow_arguments()["runs"]
    changed = runs | {"at_random": {**runs["at_random"], "optim": {"lr": 0.7}, "before": [runs["at_random"]]}}
    jobs = followed.followed(**follow_arguments(runs=changed))
    kept = [j.spec for j in jobs if not j.settled]
    assert kept == [j.spec for j in followed.followed(**follow_arguments()) if j.spec.method.name == "at_random"]
    assert {j.spec.optim.lr for j in jobs if j.settled and j.spec.method.name == "at_random"} == {0.7}


def test_the_start_of_followed_runs_is_shared() -> None:
    """The same parameters of a source give the network that the first study starts from, so it is trained once."""
    assert followed.followed(**follow_arguments())[0].spec == transfer.transfer(**arguments())[0].spec


def test_changes_of_followed_runs() -> None:
    """A run's own settings go over the target's and these over the shared ones, and reach no other run; what is followed is
    the same for all."""
    cells = cells_of(followed.followed(**follow_arguments()))
    shared = OptimSpec(epochs=2, lr=0.1)
    for (data, name, _), spec in cells.items():
        optim = replace(shared, lr=0.5, momentum=0.8) if data == "b" else shared
        optim = replace(optim, schedule="slow_fast", momentum=0.7) if name == "at_slow_fast" else optim
        assert replace(spec.optim, lr=1.0) == replace(optim, lr=1.0)
        assert spec.follow == FollowSpec(test_images=6, every=2) and spec.attack.eps == 0.1
        of_random = name == "at_random"
        assert (spec.data.train_images, spec.data.val_images) == ((9, 3) if of_random else (None, 5 if data == "a" else 0))
        assert spec.model.arch == ("thin_resnet10" if of_random else "tiny_resnet") and spec.data.image_size == 16


def test_rates_of_followed_runs() -> None:
    """All have the target's rate, at_lr 1 + lambda times it, with lambda the target's weight of TWINS or its default."""
    rate = {(data, name): spec.optim.lr for (data, name, _), spec in cells_of(followed.followed(**follow_arguments())).items()}
    for (data, name), lr in rate.items():
        factor = {"a": 1.4, "b": 2.0}[data] if name == "at_lr" else 1
        assert lr == pytest.approx({"a": 0.1, "b": 0.5}[data] * factor), (data, name)


def test_switches_of_followed_runs() -> None:
    """A target's method switches reach the methods that split the batch on that target, and no others."""
    for (data, name, _), spec in cells_of(followed.followed(**follow_arguments(runs={n: {} for n in ("at", *HALVES)}))).items():
        assert spec.method == replace(METHODS[name], twins_weight=0.4 if data == "a" and name in HALVES else 1.0)


@pytest.mark.parametrize("file", [False, True])
def test_starts_of_followed_runs(file: bool) -> None:
    """Runs start from the named source, a run or a file, but those from random weights from nothing and at_natural from the
    natural network; a file needs no job."""
    robust = {"weights": {"file": "a.pt", "classes": 9}} if file else arguments()["sources"]["robust"]
    sources = arguments()["sources"] | {"robust": robust}
    fresh = ["at_random", "at_short_plateau", "at_long_plateau"]
    jobs = followed.followed(**follow_arguments(sources=sources, runs={name: {} for name in ("twins_at", "at_natural", *fresh)}))
    assert [j.ship for j in jobs] == ([] if file else [True]) + [False] * 20
    for (_, name, _), spec in cells_of(jobs).items():
        if name in fresh:
            assert spec.source is None and spec.weights is None
        elif name == "at_natural":
            assert spec.source.method.name == "natural" and spec.weights is None
        else:
            assert (spec.weights.file == "a.pt" and spec.source is None) if file else spec.source == jobs[0].spec


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"start": "robsut"}, ValueError, "expected start to be one of natural, robust, got 'robsut'; did you mean 'robust'?"),
    ({"sources": {"robust": ROBUST}, "runs": {"at_natural": {}}}, ValueError,
     "expected start of at_natural to be one of robust, got 'natural'"),
    ({"targets": {"a": {"optm": {}}}}, ValueError, "key of targets.a .*; did you mean 'optim'?"),
    ({"targets": {"a": None}}, TypeError, "expected a mapping for targets.a, got None"),
    ({"targets": {"a": {"method": {"twinsweight": 1.0}}}, "runs": {"twins_at": {}}}, ValueError, "did you mean 'twins_weight'?"),
    ({"runs": {"att": {}}}, ValueError, "expected method to be one of natural, at, .*, got 'att'"),
    ({"runs": {"at": None}}, TypeError, "expected a mapping for runs.at, got None"),
    ({"runs": {"at": {"optm": {}}}}, ValueError, "expected key of runs.at to be one of optim, data, .*; did you mean 'optim'?"),
    ({"runs": {"at": {"optim": {"lrr": 1.0}}}}, ValueError, "key of runs.at.optim .*; did you mean 'lr'?"),
    ({"runs": {"at": {"optim": {"lr": "1e-3"}}}}, TypeError, "expected a number for runs.at.optim.lr, got the text '1e-3'"),
    ({"runs": {"at": {"data": {"images": 1}}}}, ValueError, "expected key of runs.at.data to be one of name"),
    ({"runs": {"at_random": {"model": {"arhc": "a"}}}}, ValueError, "key of runs.at_random.model .*; did you mean 'arch'?"),
    ({"runs": {"at": {"model": {"arch": "thin_resnet10"}}}}, ValueError,
     "expected source of arch thin_resnet10, got 'arch tiny_resnet'"),
    ({"runs": {"at": {"targets": ["c"]}}}, ValueError, "expected target of at to be one of a, b, got 'c'"),
    ({"runs": {"at": {"seeds": [0, 7]}}}, ValueError, "expected seeds of at among \\[0, 4\\], got \\[0, 7\\]"),
    ({"follow": {"evry": 1}}, ValueError, "key of follow .*; did you mean 'every'?"),
    ({"follow": {"every": 0}}, ValueError, "expected every > 0, got 0"),
    ({"follow": {"record_every": 3}}, ValueError, "expected record_every 0 with awp_gamma, got 3"),
    ({"attack": {"eps": 8}}, ValueError, "expected eps in \\[0, 1\\] \\(pixel units\\), got 8; write 8/255"),
])
def test_illegal_arguments_of_followed_runs(changes: dict, error: type, message: str) -> None:
    """Unknown names and wrong values anywhere are refused before any run."""
    with pytest.raises(error, match=message):
        followed.followed(**follow_arguments(**changes))


@pytest.mark.parametrize(("preset", "number"), FOLLOWED, ids=str)
def test_presets_of_followed_runs(preset: str, number: str) -> None:
    """The parameters make jobs: every run on each of its targets with each of its seeds, each followed; the start is the one
    of notebook 01, and accuracy is measured wherever the choice of an epoch may fall, and before and after training."""
    plan, settings = studies_plan.plan(preset, number)
    jobs, known = [job for job in plan(best=unknown) if job.study != "learning_rates"], plan.keywords
    assert settings["preset"] == preset and set(settings) == set(presets.SETTINGS)
    cells = cells_of(jobs)
    assert set(cells) == {(data, name, seed) for name, run in known["runs"].items()
                          for data in run.get("targets", known["targets"]) for seed in run.get("seeds", known["seeds"])}
    assert len({j.spec.hash for j in jobs}) == len(jobs) == len(cells) + sum(j.ship or not j.settled for j in jobs)
    first = studies_plan.plan(preset, "01")[0](best=last)
    starts = {j.spec.source or j.spec.weights for j in first if j.spec.method.name == "at" and not j.ship}
    assert {s.source or s.weights for s in cells.values()} - {None} == starts
    for (_, name, _), spec in cells.items():
        assert spec.follow and (spec.source is None and spec.weights is None) == (name in transfer.START)
        if spec.follow.test_images:
            assert spec.data.val_images and spec.optim.val_every % spec.follow.every == 0
    at, twins = ([replace(s, method=METHODS["at"]) for (_, n, _), s in cells.items() if n == name] for name in ("at", "twins_at"))
    assert at == twins  # the method is the one difference


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_of_the_experiment_on_learning_rates(preset: str) -> None:
    """Every method at every rate with every seed on each data set, all else equal but for what the methods are; the step of at_lr
    is 1 + lambda times as large; runs of more epochs wait for where TWINS-AT is furthest ahead of AT, with the first seed."""
    plan, _ = studies_plan.plan(preset, "02")
    steps, targets = plan.keywords["steps"], plan.keywords["targets"]
    jobs = [job for job in plan(best=unknown) if job.study == "learning_rates"]
    assert len({job.spec for job in jobs if dict(job.labels)["part"] == "grid"}) == sum(
        dict(job.labels)["part"] == "grid" for job in jobs)
    cells = {(dict(j.labels)["part"], j.spec.data.name, j.spec.method.name, float(dict(j.labels)["rate"]), j.spec.seed): j
             for j in jobs}
    grid = {cell: job for cell, job in cells.items() if cell[0] == "grid"}
    assert set(grid) == {("grid", d, m, r, s) for d in targets for m in steps["methods"] for r in steps["rates"]
                         for s in steps["seeds"]}
    for (_, data, name, rate, seed), job in grid.items():
        at = grid["grid", data, "at", rate, seed].spec
        weight = grid["grid", data, "twins_at", rate, seed].spec.method.twins_weight
        lr = rate * (1 + weight) if name == "at_lr" else rate
        assert job.settled and job.spec.optim.lr == pytest.approx(lr) and {e.kind for e in job.evals} == {"clean", "pgd"}
        assert replace(job.spec, method=at.method, optim=replace(job.spec.optim, lr=rate)) == at
        assert job.spec.optim.epochs == job.spec.optim.val_every == steps["epochs"][data] and not job.spec.follow
    longer = [job for cell, job in cells.items() if cell[0] == "long"]
    assert len(longer) == len(targets) * len(steps["methods"]) * len(steps["seeds"]) and not any(job.settled for job in longer)
    for job in longer:
        assert {s.method.name for s in job.candidates} == {"at", "twins_at"} and {s.seed for s in job.candidates} == {0}
        assert job.spec.optim.epochs == steps["longer"] * steps["epochs"][job.spec.data.name]
    asked = []
    chosen = [job for job in plan(best=lambda c, over=None, **_: asked.append((c, over)) or c[-1])
              if dict(job.labels).get("part") == "long"]
    assert {float(dict(job.labels)["rate"]) for job in chosen} == {steps["rates"][-1]} and all(job.settled for job in chosen)
    for ours, theirs in asked:
        assert [s.optim.lr for s in ours] == [s.optim.lr for s in theirs] == steps["rates"]
        assert {s.method.name for s in ours} == {"twins_at"} and {s.method.name for s in theirs} == {"at"}


@pytest.mark.parametrize(("change", "message"), [
    ({"methods": ["at"]}, "twins_at"), ({"epochs": {"nowhere": 3}}, "nowhere"), ({"epochs": {}}, "toy_target"),
    ({"steps": 1}, "steps"), ({"seeds": [7]}, None)])
def test_wrong_experiments_are_refused(change: dict, message: str | None) -> None:
    """Methods without the two that are compared, epochs for another data set or for none, unknown keys; other seeds are fine."""
    plan, _ = studies_plan.plan("toy", "02")
    steps = plan.keywords["steps"] | change
    if message is None:
        assert {job.spec.seed for job in plan(best=unknown, steps=steps) if job.study == "learning_rates"} == {7}
        return
    with pytest.raises(ValueError, match=message):
        plan(best=unknown, steps=steps)


@pytest.mark.parametrize(("preset", "number"), [p for p in FOLLOWED if p[1] == "03"], ids=str)
def test_schedules_of_followed_runs(preset: str, number: str) -> None:
    """Methods named after a schedule have it and share all else with AT; the two plateaus differ in their length alone: the rate
    is high for longer in one, and both train for as long."""
    cells = cells_of(studies_plan.plan(preset, number)[0](best=unknown))
    (data, _, seed), at = next((cell, spec) for cell, spec in cells.items() if cell[1] == "at")
    for name in ("cosine", "cyclic", "slow_fast"):
        other = cells[data, f"at_{name}", seed]
        assert other.optim.schedule == name and at.optim.schedule == "piecewise"
        same = replace(other.optim, schedule="piecewise", milestones=at.optim.milestones)
        assert replace(other, method=at.method, optim=same) == at
    short, long = (cells[data, f"at_{name}_plateau", seed] for name in ("short", "long"))
    high_short, high_long = (s.optim.milestones[0] * s.optim.epochs for s in (short, long))
    assert len(short.optim.milestones) == len(long.optim.milestones) == 1 and round(high_short) < round(high_long)
    assert all(x == pytest.approx(round(x)) for x in (high_short, high_long))
    cut = round(high_short) + long.optim.epochs - round(high_long)  # where the short one has had as many epochs after its drop
    assert cut % short.follow.every == 0 and cut % short.optim.val_every == 0
    same = replace(long.optim, milestones=short.optim.milestones)
    assert replace(long, method=short.method, optim=same) == short


# -- presets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("preset", "number"), TRANSFERS, ids=str)
def test_presets_build_jobs(preset: str, number: str) -> None:
    """Every preset's parameters make jobs: no two alike, all sources among them, each of its methods on the same targets,
    split, seeds and attacks, and nothing unsettled once the candidates are there."""
    plan, settings = studies_plan.plan(preset, number)
    jobs = plan(best=last)
    assert settings["preset"] == preset and set(settings) == set(presets.SETTINGS)
    asked = [j.spec.hash for j in jobs if j.study != "tuning"]
    assert asked and len(set(asked)) == len(asked) and all(j.settled for j in jobs)
    specs = {j.spec for j in jobs}
    assert all(s.source is None or s.source in specs for s in specs)
    by_method: dict[str, set] = {}
    for j in tuned(jobs):
        s = j.spec
        by_method.setdefault(s.method.name, set()).add(
            (s.data, s.seed, s.attack, s.source, s.weights, replace(s.optim, lr=1.0), j.evals))
    assert len({frozenset(by_method[name]) for name in plan.keywords["methods"]}) == 1
    for name in (*plan.keywords["baselines"], *plan.keywords["controls"]):  # where they are, as their rivals but for the start
        cells = {(cell[0], cell[1], cell[2], cell[5]) for cell in by_method[name]}
        assert cells <= {(cell[0], cell[1], cell[2], cell[5]) for cell in by_method["at"]}
        assert {cell[0].name for cell in by_method[name]} == set(plan.keywords["compared_on"])


@pytest.mark.parametrize(("preset", "number"), TRANSFERS, ids=str)
def test_presets_choose_alike(preset: str, number: str) -> None:
    """A method and what it is compared with are tuned over the same rates, so neither gets more trials."""
    grids = studies_plan.plan(preset, number)[0].keywords["grids"]
    for pair in (("at", "twins_at"), ("trades", "twins_trades")):
        assert len({tuple(grids.get(name, {}).get("lr", ())) for name in pair}) == 1


@pytest.mark.parametrize("best", [last, unknown])
@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_every_run_is_shown(preset: str, number: str, best) -> None:
    """The settings for display hold every data set, method and seed of the jobs, beside the network and the schedule that they
    have, and call only sources start networks."""
    jobs = studies_plan.plan(preset, number)[0](best=best)
    lines = studies_plan.settings(jobs)
    assert {line["data set"] for line in lines} == {j.spec.data.name for j in jobs}
    for job in jobs:
        spec = job.spec
        mine = {"data set": spec.data.name, "role": "start network" if job.ship else "target", "network": spec.model.arch,
                "epochs": spec.optim.epochs, "schedule": spec.optim.schedule, "weight decay": spec.optim.weight_decay}
        assert any(mine.items() <= line.items() and spec.method.name in line["methods"].split(", ")
                   and str(spec.seed) in line["seeds"].split(", ") and f"{spec.optim.lr:g}" in line["lr"].split(", ")
                   for line in lines), mine


def test_parents_are_methods() -> None:
    """Whatever takes another's rate or start is a method, takes it from one that has its own, and differs from it in switches
    of its method alone."""
    assert set(transfer.LR_OF) == {*AT_FAMILY, *CONTROLS} and set(transfer.START) <= set(METHODS)
    assert set(transfer.LR_OF.values()) <= set(PAPER)
    fields = {f.name for f in dataclasses.fields(MethodSpec)} - {"name"}
    for name, parent in transfer.LR_OF.items():
        differ = [f for f in fields if getattr(METHODS[name], f) != getattr(METHODS[parent], f)]
        assert len(differ) <= (2 if name == "joint_uot" else 1), (name, differ)


# -- parameters and overrides ----------------------------------------------------------------------------------------
def write_notebook(folder: Path, *sources: str, name: str = "01_x.ipynb") -> Path:
    """A notebook of cells that are all tagged parameters."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [text]} for text in sources]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": []}, *cells]}))
    return folder / name


def test_parameters_are_literals(tmp_path: Path) -> None:
    """Annotated literals are read without running the notebook."""
    path = write_notebook(tmp_path, 'a: int = 1\nb: dict = {"c": [1.5, None, "x"]}  # a comment')
    assert presets.parameters(path) == {"a": 1, "b": {"c": [1.5, None, "x"]}}


@pytest.mark.parametrize(("sources", "message"), [
    ((), "exactly one cell tagged parameters in 01_x.ipynb, got 0"),
    (("a: int = 1", "b: int = 2"), "got 2"),
    (("import os",), "only annotated literals .* got import os"),
    (("a = 1",), "got a = 1"),
    (("a: int",), "got a: int"),
    (("a: float = 8 / 255 + open('x')",), "malformed node"),
])
def test_parameters_that_are_code_are_refused(tmp_path: Path, sources: tuple[str, ...], message: str) -> None:
    """Anything but annotated literals is refused, and never run."""
    with pytest.raises(ValueError, match=message):
        presets.parameters(write_notebook(tmp_path, *sources))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder of the test's own, with parameters for preset small."""
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    write_notebook(tmp_path, "eps: float = 0.1\nseeds: list = [0]")
    (tmp_path / "params" / "small").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("text", "expected"), [("eps: 0.5", {"eps": 0.5}), ("eps: 1", {"eps": 1}), ("", {}), ("# none", {})])
def test_overrides(folder: Path, text: str, expected: dict) -> None:
    """A preset's file holds overrides only; an empty one changes nothing, toy has no file."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    known = presets.parameters(presets.notebook("01"))
    assert presets.overrides("small", "01", known) == expected and presets.overrides("toy", "01", known) == {}


@pytest.mark.parametrize(("text", "error", "message"), [
    ("epps: 0.5", ValueError, "key of params/small/01.yaml to be one of eps, seeds, got 'epps'; did you mean 'eps'?"),
    ("eps: 1e-3", TypeError, "float for eps in params/small/01.yaml, got '1e-3'; write 1.0e-3"),
    ("eps: 8/255", TypeError, "got '8/255'"),
    ("seeds: 3", TypeError, "expected list for seeds"),
    ("seeds:", TypeError, "expected list for seeds in params/small/01.yaml, got None"),
    ("- eps", TypeError, "expected a mapping of parameters in params/small/01.yaml"),
    ("eps: [0.5", ValueError, "expected YAML in params/small/01.yaml, got while parsing .* line 1"),
    ("eps: !!python/object/apply:os.getcwd []", ValueError, "expected YAML .*python/object"),
])
def test_illegal_overrides(folder: Path, text: str, error: type, message: str) -> None:
    """Unknown names, other types, no YAML and YAML that would run code are refused in one line."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    with pytest.raises(error, match=message) as caught:
        presets.overrides("small", "01", presets.parameters(presets.notebook("01")))
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_notebooks(folder: Path) -> None:
    """Each unknown name is answered with the known ones; a preset without a file names the file."""
    with pytest.raises(ValueError, match="preset to be one of toy, small, medium, paper, got 'smal'; did you mean 'small'"):
        presets.overrides("smal", "01", {})
    with pytest.raises(FileNotFoundError, match="preset medium for notebook 01 .*params/medium/01.yaml"):
        presets.overrides("medium", "01", {})
    with pytest.raises(ValueError, match="expected notebook to be one of 01, got '1'"):
        presets.notebook("1")
    settings = "\n".join(f"{name}: int = 1" for name in presets.SETTINGS)
    write_notebook(folder, settings, name="99_y.ipynb")
    with pytest.raises(ValueError, match="expected notebook with a study to be one of 01, .*, got '99'"):
        studies_plan.plan("toy", "99")
