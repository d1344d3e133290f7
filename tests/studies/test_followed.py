"""Runs whose course is kept, and the experiment on learning rates."""

from dataclasses import replace

import pytest

from tests.studies import made
from tests.studies.made import CONSTANTS, FILE, HALVES, IMAGENET, by_cell, label, of_followed, of_transfer, sources, unknown
from twinslib.specs.method import METHODS
from twinslib.specs.run import FollowSpec, OptimSpec, RunSpec
from twinslib.studies import plan, presets, transfer
from twinslib.studies.followed import followed


def cells(**changes: object) -> dict[tuple[str, str, int], RunSpec]:
    return {cell: job.spec for cell, job in by_cell(followed(**of_followed(**changes))).items()}


def test_order() -> None:
    """The start network, then all of the first seed before any of the second; nothing is measured, nothing waits."""
    first, *jobs = followed(**of_followed())
    every = ["at", "twins_at", "at_lr", "at_slow_fast", "at_random"]
    assert list(by_cell(jobs)) == [*((data, name, 0) for data in "ab" for name in every),
                                   *((data, name, 4) for data in "ab" for name in every), ("b", "at_awp", 4)]
    assert len(jobs) == len({j.spec.hash for j in jobs}) == 21
    assert first.ship and first.spec.follow is None and first.spec == transfer.transfer(**of_transfer())[0].spec
    assert all(j.evals == j.certs == () and j.settled for j in (first, *jobs))
    assert {j.study for j in (first, *jobs)} == {"followed"} and followed(**of_followed(study="rates"))[0].study == "rates"


def test_runs_of_an_earlier_plan_are_kept() -> None:
    """Their specs are known, so that finished ones belong somewhere, and nothing waits for them or computes them."""
    runs = of_followed()["runs"]
    changed = runs | {"at_random": {**runs["at_random"], "optim": {"lr": 0.7}, "before": [runs["at_random"]]}}
    jobs = followed(**of_followed(runs=changed))
    assert [j.spec for j in jobs if not j.settled] == [s for (_, name, _), s in cells().items() if name == "at_random"]
    assert {j.spec.optim.lr for j in jobs if j.settled and j.spec.method.name == "at_random"} == {0.7}


def test_settings_of_followed_runs() -> None:
    """A run's own settings go over the target's and these over the shared ones, and reach no other run."""
    for (data, name, _), spec in cells().items():
        optim = replace(OptimSpec(epochs=2, lr=0.1), **({"lr": 0.5, "momentum": 0.8} if data == "b" else {}))
        optim = replace(optim, schedule="slow_fast", momentum=0.7) if name == "at_slow_fast" else optim
        factor = {"a": 1.4, "b": 2.0}[data] if name == "at_lr" else 1
        assert spec.optim.lr == pytest.approx(optim.lr * factor) and replace(spec.optim, lr=optim.lr) == optim
        assert spec.follow == FollowSpec(test_images=6, every=2) and spec.attack.eps == 0.1
        of_random = name == "at_random"
        assert (spec.data.train_images, spec.data.val_images) == ((9, 3) if of_random else (None, 5 if data == "a" else 0))
        assert spec.model.arch == ("thin_resnet10" if of_random else "tiny_resnet") and spec.data.image_size == 16
    for (data, name, _), spec in cells(runs={n: {} for n in ("at", *HALVES)}).items():
        assert spec.method == replace(METHODS[name], twins_weight=0.4 if data == "a" and name in HALVES else 1.0)


@pytest.mark.parametrize("file", [False, True])
def test_starts(file: bool) -> None:
    """Runs start from the named source, a run or a file, but those from random weights from nothing and at_natural from the
    natural network; a file needs no job. The normalisation of the source is that of random starts too."""
    fresh = ["at_random", "at_short_plateau", "at_long_plateau"]
    given = of_followed(sources=sources(FILE if file else None, **CONSTANTS),
                        runs={name: {} for name in ("twins_at", "at_natural", *fresh)})
    jobs = followed(**given)
    assert [j.ship for j in jobs] == ([] if file else [True]) + [False] * 20
    for (_, name, _), job in by_cell(jobs).items():
        spec = job.spec
        assert (spec.source is not None) is (name == "at_natural" or name == "twins_at" and not file)
        assert (spec.weights is not None) is (name == "twins_at" and file)
        assert spec.model.mean == (IMAGENET if name == "at_natural" else (0.5, 0.4, 0.3))
        if spec.source:
            assert spec.source.method.name == "natural" if name == "at_natural" else spec.source == jobs[0].spec


@pytest.mark.parametrize(("changes", "message"), [
    ({"start": "robsut"}, "start to be one of natural, robust, got 'robsut'; did you mean 'robust'?"),
    ({"sources": {"robust": sources()["robust"]}, "runs": {"at_natural": {}}}, "start of at_natural .*, got 'natural'"),
    ({"runs": {"att": {}}}, "method to be one of natural, at, .*, got 'att'"),
    ({"runs": {"at": {"before": [{"a": 1}]}}}, "runs.at.before"),
    ({"runs": {"at": {"model": {"arch": "thin_resnet10"}}}}, "source of arch thin_resnet10, got 'arch tiny_resnet'"),
    ({"runs": {"at": {"targets": ["c"]}}}, "targets of runs.at to be one of a, b, got 'c'"),
    ({"runs": {"at": {"seeds": [0, 7]}}}, "seeds of runs.at to be one of 0, 4, got '7'"),
    ({"follow": {"record_every": 3}}, "record_every 0 with awp_gamma, got 3"), ({"follow": {"every": 0}}, "every > 0, got 0"),
])
def test_illegal_arguments(changes: dict, message: str) -> None:
    """Unknown names and wrong values anywhere are refused before any run."""
    with pytest.raises((ValueError, TypeError), match=message):
        followed(**of_followed(**changes))


@pytest.mark.parametrize(("preset", "number"), [p for p in made.PRESETS if p[1] in ("02", "03")], ids=str)
def test_the_method_is_the_one_difference(preset: str, number: str) -> None:
    """Between the courses of AT and TWINS-AT, in every preset."""
    jobs = [job for job in plan.plan(preset, number)[0](best=unknown) if job.study != "learning_rates"]
    at, twins = ([replace(job.spec, method=METHODS["at"]) for (_, n, _), job in by_cell(jobs).items() if n == name]
                 for name in ("at", "twins_at"))
    assert at and at == twins


@pytest.mark.parametrize("preset", [p for p, number in made.PRESETS if number == "03"])
def test_schedules(preset: str) -> None:
    """Methods named after a schedule have it and share all else with AT."""
    found = {cell: job.spec for cell, job in by_cell(plan.plan(preset, "03")[0](best=unknown)).items()}
    (data, _, seed), at = next((cell, spec) for cell, spec in found.items() if cell[1] == "at")
    for name in ("cosine", "cyclic", "slow_fast"):
        other = found[data, f"at_{name}", seed]
        assert other.optim.schedule == name and at.optim.schedule == "piecewise"
        same = replace(other.optim, schedule="piecewise", milestones=at.optim.milestones)
        assert replace(other, method=at.method, optim=same) == at
    short, long = (found[data, f"at_{name}_plateau", seed] for name in ("short", "long"))
    high_short, high_long = (s.optim.milestones[0] * s.optim.epochs for s in (short, long))
    assert len(short.optim.milestones) == len(long.optim.milestones) == 1 and round(high_short) < round(high_long)
    assert all(x == pytest.approx(round(x)) for x in (high_short, high_long))
    cut = round(high_short) + long.optim.epochs - round(high_long)  # where the short one has had as many epochs after its drop
    assert cut % short.follow.every == 0 and cut % short.optim.val_every == 0
    same = replace(long.optim, milestones=short.optim.milestones)
    assert replace(long, method=short.method, optim=same) == short


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_experiment_on_learning_rates(preset: str) -> None:
    """Every method at every rate with every seed on each data set, all else equal but for what the methods are."""
    asked, _ = plan.plan(preset, "02")
    steps, targets = asked.keywords["steps"], asked.keywords["targets"]
    jobs = [job for job in asked(best=unknown) if job.study == "learning_rates"]
    grid = {(j.spec.data.name, j.spec.method.name, float(label(j, "rate")), j.spec.seed): j for j in jobs if label(j) == "grid"}
    assert set(grid) == {(d, m, r, s) for d in targets for m in steps["methods"] for r in steps["rates"] for s in steps["seeds"]}
    assert len({job.spec for job in grid.values()}) == len(grid) == sum(label(job) == "grid" for job in jobs)
    for (data, name, rate, seed), job in grid.items():
        at, weight = grid[data, "at", rate, seed].spec, grid[data, "twins_at", rate, seed].spec.method.twins_weight
        lr = rate * (1 + weight) if name == "at_lr" else rate
        assert job.settled and job.spec.optim.lr == pytest.approx(lr) and {e.kind for e in job.evals} == {"clean", "pgd"}
        assert replace(job.spec, method=at.method, optim=replace(job.spec.optim, lr=rate)) == at
        assert job.spec.optim.epochs == job.spec.optim.val_every == steps["epochs"][data] and not job.spec.follow
    longer = [job for job in jobs if label(job) == "long"]
    assert len(longer) == len(targets) * len(steps["methods"]) * len(steps["seeds"]) and not any(job.settled for job in longer)
    for job in longer:
        assert {s.method.name for s in job.candidates} == {"at", "twins_at"} and {s.seed for s in job.candidates} == {0}
        assert job.spec.optim.epochs == steps["longer"] * steps["epochs"][job.spec.data.name]
    pairs = []
    chosen = [job for job in asked(best=lambda c, over=None, **_: pairs.append((c, over)) or c[-1]) if label(job) == "long"]
    assert {float(label(job, "rate")) for job in chosen} == {steps["rates"][-1]} and all(job.settled for job in chosen)
    for ours, theirs in pairs:
        assert [s.optim.lr for s in ours] == [s.optim.lr for s in theirs] == steps["rates"]
        assert {s.method.name for s in ours} == {"twins_at"} and {s.method.name for s in theirs} == {"at"}


def test_wrong_experiments_are_refused() -> None:
    """Methods without the two that are compared, epochs for another data set or for none, unknown keys; other seeds are fine."""
    asked, _ = plan.plan("toy", "02")
    steps = asked.keywords["steps"]
    for change, message in (({"methods": ["at"]}, "twins_at"), ({"epochs": {"nowhere": 3}}, "nowhere"),
                            ({"epochs": {}}, "toy_target"), ({"steps": 1}, "steps")):
        with pytest.raises(ValueError, match=message):
            asked(best=unknown, steps=steps | change)
    assert {j.spec.seed for j in asked(best=unknown, steps=steps | {"seeds": [7]}) if j.study == "learning_rates"} == {7}
