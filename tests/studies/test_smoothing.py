"""The grid of smoothing runs: which cells there are, what each trains and certifies, and networks of another notebook."""

import pytest

from tests.studies.made import CONSTANTS, first, last, unknown
from twinslib.evidence.cells import planned
from twinslib.studies import plan, rules, smoothing
from twinslib.studies.smoothing import cell_of

CERTIFY = {"images": 4, "n": 64, "n0": 8, "sigmas": [0.25, 0.5]}
CROSSED = {"preset": "toy", "notebook": "01", "methods": ["twins_at", "at"], "targets": ["toy_target"], "seeds": [0],
           "certifications": [CERTIFY]}


def arguments(**changes: object) -> dict:
    """Two pre-trainings, two norms, three fine-tunings, one target, two seeds."""
    return {
        "arch": "tiny_resnet", "norms": ["batch", "group"],
        "source": {"data": {"name": "toy_source", "image_size": 16}, "optim": {"epochs": 1}},
        "pretraining": {"clean": {}, "mixed": {"sigmas": [0.0, 0.5]}},
        "targets": {"toy_target": {"data": {"image_size": 16}}},
        "finetuning": {"clean": {}, "noise0.5": {"sigmas": [0.5], "optim": {"lr": 0.3}},
                       "frozen": {"method": "natural_frozen", "norms": ["batch"]}},
        "seeds": [3, 5], "optim": {"epochs": 2, "lr": 0.1}, "evaluations": [{"kind": "clean", "images": 9}],
        "certifications": [CERTIFY], "best": first,
    } | changes


def cells(jobs) -> list:
    return [(str(cell_of(job)), job.spec.seed) for job in jobs if cell_of(job)]


def test_cells_and_order() -> None:
    """Start networks first, then every cell with the first seed before any with the second; limits of a fine-tuning hold."""
    jobs = smoothing.smoothing(**arguments())
    assert [job.ship for job in jobs] == [True] * 4 + [False] * 20
    names = [f"{p}/{f}/{n}" for p in ("clean", "mixed") for n in ("batch", "group") for f in ("clean", "noise0.5", "frozen")
             if (n, f) != ("group", "frozen")]
    assert cells(jobs) == [(name, seed) for seed in (3, 5) for name in names]
    assert len({job.spec.hash for job in jobs}) == len(jobs)


def test_what_each_cell_trains() -> None:
    """Noise, method, schedule and norm of a cell are those of its parts; all seeds start from one network of the first seed."""
    for job in smoothing.smoothing(**arguments()):
        spec, cell = job.spec, cell_of(job)
        if cell is None:
            assert spec.seed == 3 and spec.data.name == "toy_source"
            continue
        assert spec.source.seed == 3 and spec.source.model == spec.model and spec.model.norm == cell.norm
        assert (spec.source.noise.sigmas if spec.source.noise else None) == {"clean": None, "mixed": (0.0, 0.5)}[cell.pretraining]
        expected = {"clean": (None, "natural", 0.1), "frozen": (None, "natural_frozen", 0.1), "noise0.5": ((0.5,), "noise", 0.3)}
        assert (spec.noise.sigmas if spec.noise else None, spec.method.name, spec.optim.lr) == expected[cell.finetuning]
        assert [e.kind for e in job.evals] == ["clean"] and [c.sigma for c in job.certs] == [0.25, 0.5]


def test_certifications_are_limited() -> None:
    """To cells, targets and seeds; re-estimated statistics are for batch norm only; one asked for twice is done once."""
    limited = [CERTIFY | {"norms": ["group"], "finetuning": ["clean"], "seeds": [5]}, CERTIFY | {"sigmas": [0.5]},
               CERTIFY | {"sigmas": [0.5], "seeds": [3]},
               CERTIFY | {"sigmas": [1.0], "restat_images": 8, "finetuning": ["clean"]}]
    found = {}
    for p in planned(smoothing.smoothing(**arguments(certifications=limited))):
        found.setdefault((p.cell.finetuning, p.cell.norm, p.seed), []).append((p.certification.sigma, p.cell.restat))
    assert found["clean", "group", 5] == [(0.25, False), (0.5, False)] * 2  # of two pre-trainings
    assert set(found["noise0.5", "batch", 3]) == {(0.5, False)}
    assert set(found["clean", "batch", 3]) == {(0.5, False), (1.0, True)}
    assert set(found["clean", "group", 3]) == {(0.5, False)}


def test_targets_and_pretrainings_have_limits_of_their_own() -> None:
    """A target may have fewer seeds and optimiser settings of its own, a pre-training fewer targets and norms."""
    targets = {"toy_target": {"data": {"image_size": 16}}, "toy_source": {"data": {"image_size": 16}, "seeds": [3],
                                                                          "optim": {"epochs": 7}}}
    pretraining = {"clean": {"targets": ["toy_target"]}, "mixed": {"sigmas": [0.5, 1.0], "norms": ["group"]}}
    jobs = [j for j in smoothing.smoothing(**arguments(targets=targets, pretraining=pretraining)) if cell_of(j)]
    where = {(j.spec.data.name, cell_of(j).pretraining, cell_of(j).norm, j.spec.seed) for j in jobs}
    assert {(d, p, n) for d, p, n, _ in where} == {("toy_target", "clean", "batch"), ("toy_target", "clean", "group"),
                                                  ("toy_target", "mixed", "group"), ("toy_source", "mixed", "group")}
    assert {s for d, _, _, s in where if d == "toy_source"} == {3} and {s for *_, s in where} == {3, 5}
    assert {j.spec.optim.epochs for j in jobs if j.spec.data.name == "toy_source"} == {7}


def test_random_start() -> None:
    """Without pre-training a cell starts from random weights, and nothing is shipped for it."""
    jobs = smoothing.smoothing(**arguments(pretraining={"random": {"random": True}}, finetuning={"noise0.5": {"sigmas": [0.5]}}))
    assert len(jobs) == 4 and all(job.spec.source is None and not job.ship for job in jobs)


@pytest.mark.parametrize(("changes", "message"), [
    ({"finetuning": {"clean": {"method": "twins_at"}}}, "method of finetuning.clean to be one of natural, natural_f"),
    ({"finetuning": {"clean": {"pretraining": ["mixd"]}}},
     "pretraining of finetuning.clean to be one of clean, mixed, got 'mixd'"),
    ({"certifications": [CERTIFY | {"norms": ["layer"]}]}, "norms of a certification to be one of batch, group, got 'layer'"),
    ({"targets": {"toy_target": {"seeds": [4]}}}, "seeds of targets.toy_target to be one of 3, 5, got '4'"),
    ({"certifications": [CERTIFY | {"seeds": ["3"]}]}, r"seeds of a certification as \[3, 5\], got '3'; mind the quotes"),
    ({"pretraining": {"mixed-noise": {}}}, "letters, digits, _ and . in the name of a pre-training .*, got 'mixed-noise'"),
    ({"finetuning": {"noise_small": {}}}, "noise only before its level, as in noise0.5, got 'noise_small'"),
    ({"source": {"data": {}, "optim": {}, "std": [0.2, 0.2, 0.2]}}, "mean and std, both or neither, in source"),
    *(({"crossed": CROSSED | {key: [value]}}, f"{key} of crossed to be one of .*, got '{value}'")
      for key, value in (("methods", "twins"), ("targets", "cifar10"), ("seeds", 9))),
])
def test_illegal_arguments(changes: dict, message: str) -> None:
    """Unknown keys, methods and names are refused with what was meant."""
    with pytest.raises(ValueError, match=message):
        smoothing.smoothing(**arguments(**changes))


def test_crossed_networks_are_those_of_the_other_notebook() -> None:
    """The chosen runs themselves, certified in place of their evaluations, with their start network and candidates."""
    jobs = smoothing.smoothing(**arguments(crossed=CROSSED, best=last))
    theirs = plan.plan("toy", "01")[0](best=last)
    tuned = [job.spec for job in theirs if job.study == "transfer" and not job.ship]
    chosen = {spec for spec in tuned if spec.method.name in ("at", "twins_at")}
    mine = [p for p in planned(jobs) if p.cell.pretraining == "crossed"]
    assert {p.spec for p in mine} == chosen and {p.cell.finetuning for p in mine} == {"at", "twins_at"}
    assert sorted({p.certification.sigma for p in mine}) == [0.25, 0.5]
    assert {job.spec.source for job in jobs} - {None} <= {job.spec for job in jobs if job.ship}
    candidates = [job.spec for job in jobs if job.study.endswith("_tuning")]
    assert candidates == [j.spec for j in theirs if j.study == "tuning" and j.spec.method.name in ("at", "twins_at")]
    # while a candidate is missing the crossed runs are not settled, and the grid's own are
    waiting = [job for job in smoothing.smoothing(**arguments(crossed=CROSSED, best=unknown)) if not job.settled]
    assert {job.spec.method.name for job in waiting} == {"at", "twins_at"}
    assert {cell_of(job).pretraining for job in waiting} == {"crossed"}
    borrowed = smoothing.smoothing(**arguments(crossed=CROSSED | {"methods": ["at_split"]}, best=unknown))
    (wanted,) = {job.candidates for job in borrowed if job.waits}  # of TWINS-AT, whose rate it takes
    assert {job.spec for job in borrowed if job.study.endswith("_tuning")} == {*wanted}


@pytest.mark.parametrize("preset", rules.SCALES)
@pytest.mark.parametrize("claim", [c for c in rules.claims() if c.rule.measure in rules.CERTIFIED], ids=lambda c: c.id)
def test_rules_can_be_applied(preset: str, claim: rules.Claim) -> None:
    """Every cell of a rule is planned at each scale that judges, with the draws, radii, images and seeds it asks for."""
    jobs = plan.plan(preset, claim.notebook)[0](best=first)
    rule = claim.rule
    names = [*(name for pair in rule.pairs for name in pair), *([rule.reference] if rule.reference else [])]
    wanted = [rules.cell(name) for name in names]
    asked: dict[tuple, set] = {}
    for p in planned(jobs):
        c = p.certification
        if c.n >= rule.smooth.n and c.alpha == rule.smooth.alpha and c.images >= rule.smooth.min_images and (
                set(rule.smooth.radii) <= set(c.radii)):
            asked.setdefault((p.cell, c.sigma, c.n), set()).add((p.dataset, p.seed))
    if rule.measure == "clean_kept":
        for job in jobs:
            if cell_of(job) and any(e.kind == "clean" and e.images >= rule.smooth.min_images for e in job.evals):
                asked.setdefault((cell_of(job), 0.0, 0), set()).add((job.spec.data.name, job.spec.seed))
    common = None
    for cell in wanted:
        for sigma in rule.smooth.sigmas or (0.0,):
            here = {n: places for (c, s, n), places in asked.items() if (c, s) == (cell.at(sigma), sigma)}
            common = here if common is None else {n: common[n] & here[n] for n in common.keys() & here.keys()}
    runs = max(common.values(), key=len)
    datasets = {d for d, _ in runs if not rule.datasets or d in rule.datasets}
    assert len(datasets) >= rule.min_datasets
    enough = [d for d in datasets if sum(d == name for name, _ in runs) >= rule.min_seeds]
    assert len(enough) >= (1 if (claim.id, preset) == ("RS-C8", "small") else rule.min_datasets)


def test_normalisation_of_the_source() -> None:
    """Its mean and std are those of every network of the study."""
    jobs = smoothing.smoothing(**arguments(source=arguments()["source"] | CONSTANTS))
    assert {(job.spec.model.mean, job.spec.model.std) for job in jobs} == {((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))}
