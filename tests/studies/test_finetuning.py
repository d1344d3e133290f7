"""The grid of adversarial fine-tuning: which runs there are, what each trains from, at which rate, and what is measured on it."""

import pytest

from tests.studies.made import CONSTANTS, first, label, last, unknown
from twinslib.specs.jobs import Job
from twinslib.studies import finetuning, plan, rules

CLEAN = {"kind": "clean", "images": 9, "at": ["start", "best", "last"]}
PGD = {"kind": "pgd", "images": 9, "eps": 8 / 255, "steps": 3}
PUBLIC = {"weights": {"file": "other.th", "classes": 10}, "model": {"arch": "resnet20"}, "targets": ["toy_target"]}


def arguments(**changes: object) -> dict:
    """AFT, a rival, a run with a rate of its own, one under the other threat, one schedule; two seeds, two rates."""
    return {
        "arch": "tiny_resnet", "norm": "batch",
        "starts": {"natural": {"optim": {"epochs": 7, "lr": 0.2}}},
        "targets": {"toy_target": {"data": {"image_size": 16, "train_images": 40, "val_images": 10}}},
        "main": {"aft": {"start": "natural", "follow": {"features": 5, "feature_epochs": [0, 1]}},
                 "at_scratch": {"optim": {"epochs": 4, "lr": 0.05, "keep_best": True}},
                 "aft_twins": {"start": "natural"},
                 "aft_free": {"start": "natural", "switches": {"replays": 3}, "optim": {"lr": 0.7}},
                 "aft_l2": {"start": "natural", "attack": {"threat": "l2", "eps": 0.5, "step_size": 0.2}, "seeds": [3]}},
        "schedules": {"aft_constant": {"start": "natural", "optim": {"schedule": "constant"}}},
        "lrs": [0.02, 0.1], "fractions": {"images": [10, 20], "runs": ["aft"]}, "widths": {"widths": [8], "runs": ["aft"]},
        "seeds": [3, 5], "optim": {"epochs": 2, "lr": 0.05, "schedule": "slow_fast"}, "attack": {"steps": 2},
        "evaluations": [CLEAN, PGD], "best": last,
    } | changes


def made(**changes: object) -> dict[tuple, Job]:
    """The jobs by part, method, seed and what the part varies."""
    out = {}
    for job in finetuning.finetuning(**arguments(**changes)):
        s = job.spec
        varied = {"fraction": s.data.train_images, "width": s.model.width}.get(label(job))
        out[(label(job), s.method.name, s.seed, *([varied] if varied else []))] = job
    return out


def test_jobs_and_order() -> None:
    """All of the first seed before any of the second, candidates right before what takes their rate."""
    jobs = finetuning.finetuning(**arguments())
    assert [(label(j) or j.study, j.spec.method.name, j.spec.seed) for j in jobs] == [
        *[("aft_tuning", "aft", 3)] * 2, *[("main", m, 3) for m in ("aft", "at_scratch", "aft_twins", "aft_free", "aft_l2")],
        *[("aft_tuning", "aft_constant", 3)] * 2, ("schedule", "aft_constant", 3), *[("fraction", "aft", 3)] * 2,
        ("width", "aft", 3),
        *[("main", m, 5) for m in ("aft", "at_scratch", "aft_twins", "aft_free")], ("schedule", "aft_constant", 5),
        *[("start", "natural", 3)] * 2]
    assert [j.ship for j in jobs] == [label(j) == "start" for j in jobs]
    mine = [j.spec for j in jobs if j.study == "aft"]
    assert len(set(mine)) == len(mine)


def test_what_each_run_trains() -> None:
    """Fine-tuning goes on with the head of one natural network, the same for all seeds and fractions; rivals start at random."""
    jobs = made()
    start = jobs["main", "aft", 3].spec.source
    assert (start.method.name, start.seed, start.optim.epochs, start.optim.lr, start.source) == ("natural", 3, 7, 0.2, None)
    for key, job in jobs.items():
        s = job.spec
        random = s.method.name in ("at_scratch", "natural")
        if key[0] and key[0] != "start":
            assert (s.source is None) == random and s.keep_head == (not random), key
            assert key[0] == "width" or random or s.source == start
            assert label(job, "start") == ("random" if random else "natural")
    assert [jobs["fraction", "aft", 3, n].spec.data.train_images for n in (10, 20)] == [10, 20]
    assert jobs["width", "aft", 3, 8].spec.source.model.width == 8
    assert jobs["main", "aft_free", 3].spec.method.replays == 3 and jobs["main", "aft_l2", 3].spec.attack.steps == 2
    assert [key for key, job in jobs.items() if job.spec.follow and key[0]] == [("main", "aft", 3)]  # the first seed of main


def test_learning_rates_are_shared() -> None:
    """AFT and each schedule choose on the first seed; other runs from a network take AFT's rate unless they name their own."""
    asked = []

    def best(candidates, **_):
        asked.append([(s.method.name, s.seed, s.optim.lr) for s in candidates])
        return candidates[0 if candidates[0].method.name == "aft" else 1]

    jobs = made(best=best)
    assert asked == [[("aft", 3, 0.02), ("aft", 3, 0.1)], [("aft_constant", 3, 0.02), ("aft_constant", 3, 0.1)]]
    rates = {(p, m): job.spec.optim.lr for (p, m, *_), job in jobs.items() if p not in (None, "start")}
    assert rates == {("main", "aft"): 0.02, ("main", "aft_twins"): 0.02, ("main", "aft_l2"): 0.02, ("main", "aft_free"): 0.7,
                     ("main", "at_scratch"): 0.05, ("schedule", "aft_constant"): 0.1, ("fraction", "aft"): 0.02,
                     ("width", "aft"): 0.02}
    assert all(job.settled for job in jobs.values())


def test_random_weights_choose_a_rate_of_their_own() -> None:
    """The same epochs from random weights choose from the same rates, at the first seed."""
    main = arguments()["main"] | {"aft_l2_random": {"attack": {"threat": "l2", "eps": 0.5, "step_size": 0.2}}}
    with pytest.raises(ValueError, match="chooses the learning rate of main.aft_l2_random, .* one of .*got 'aft_random'"):
        made(main=main)
    jobs = made(main=main | {"aft_random": {}}, best=lambda c, **_: c[1 if c[0].method.name == "aft_random" else 0],
                fractions={"images": [10], "runs": ["aft", "aft_random"]}, widths={"widths": [8], "runs": ["aft_random"]})
    rates = {key: job.spec.optim.lr for key, job in jobs.items() if "random" in key[1] and key[0]}
    assert rates == dict.fromkeys([
        *[("main", name, seed) for name in ("aft_random", "aft_l2_random") for seed in (3, 5)],
        ("fraction", "aft_random", 3, 10), ("width", "aft_random", 3, 8)], 0.1)
    assert jobs["fraction", "aft", 3, 10].spec.optim.lr == 0.02


def test_what_waits_for_the_choice() -> None:
    """While a candidate is missing, what takes its rate is not settled, the rest is; with one rate nothing is to be chosen."""
    waiting = {key[:2] for key, job in made(best=unknown).items() if not job.settled}
    assert waiting == {("main", "aft"), ("main", "aft_twins"), ("main", "aft_l2"), ("schedule", "aft_constant"),
                       ("fraction", "aft"), ("width", "aft")}
    single = finetuning.finetuning(**arguments(lrs=[0.3], best=lambda candidates, **_: pytest.fail("asked")))
    assert not [j for j in single if j.study == "aft_tuning"] and all(j.settled for j in single)
    assert {j.spec.optim.lr for j in single if j.spec.method.name in ("aft", "aft_twins")} == {0.3}


def test_measurements_are_where_they_can_be() -> None:
    """At best only where a run keeps it, at the start only where its head is kept, robust ones under the run's own threat."""
    jobs = made(evaluations=[CLEAN, PGD, PGD | {"threat": "l2", "eps": 0.5, "at": ["start", "last"]}])
    found = {key[1]: [(e.kind, e.threat, e.at) for e in job.evals] for key, job in jobs.items() if key[0] == "main"}
    assert found["at_scratch"] == [("clean", "linf", "best"), ("clean", "linf", "last"), ("pgd", "linf", "last")]
    assert found["aft"] == [("clean", "linf", "start"), ("clean", "linf", "last"), ("pgd", "linf", "last")]
    assert found["aft_l2"] == [*found["aft"][:2], ("pgd", "l2", "start"), ("pgd", "l2", "last")]
    assert all(not job.evals for key, job in jobs.items() if key[0] in ("start", None))


def test_measurements_are_limited() -> None:
    """To runs, parts and seeds; one that is asked for twice is done once."""
    jobs = made(evaluations=[PGD | {"runs": ["aft"], "seeds": [5]}, PGD | {"parts": ["width"]}, CLEAN | {"at": ["last", "last"]},
                             CLEAN | {"at": ["last"]}])
    kinds = {key: [e.kind for e in job.evals] for key, job in jobs.items()}
    assert kinds["main", "aft", 5] == ["pgd", "clean"] and kinds["main", "aft", 3] == ["clean"]
    assert kinds["width", "aft", 3, 8] == ["pgd", "clean"] and kinds["fraction", "aft", 3, 10] == ["clean"]


def test_targets() -> None:
    """A network from elsewhere brings its architecture and its targets, and nothing of ours is trained for it."""
    main = arguments()["main"] | {"aft_public": {"start": "public"}}
    targets = arguments()["targets"] | {"toy_source": {"data": {"image_size": 16, "val_images": 10}}}
    jobs = finetuning.finetuning(**arguments(
        starts=arguments()["starts"] | {"public": PUBLIC}, main=main, targets=targets,
        fractions={"images": [10], "runs": ["aft"], "targets": ["toy_source"]}))
    foreign = [j.spec for j in jobs if j.spec.method.name == "aft_public"]
    assert {s.data.name for s in foreign} == {"toy_target"} and len(foreign) == 2
    assert {(s.model.arch, s.weights.file, s.source, s.keep_head) for s in foreign} == {("resnet20", "other.th", None, True)}
    where = {part: {j.spec.data.name for j in jobs if label(j) == part and j.spec.method.name == "aft"}
             for part in ("main", "fraction", "width")}
    assert where == {"main": set(targets), "fraction": {"toy_source"}, "width": set(targets)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"starts": {"natural": {}, "public": PUBLIC | {"targets": ["toy"]}}}, "targets of starts.public to be one of toy_target"),
    ({"main": {"aft": {"start": "public"}}}, "start of main.aft to be one of natural, got 'public'"),
    ({"main": {"at_scratch": {}}}, "run whose learning rate is chosen to be one of at_scratch, got 'aft'"),
    ({"main": {"aft": {"seeds": [4]}}}, "seeds of main.aft to be one of 3, 5, got '4'"),
    ({"main": {"aft": {"targets": ["cifar10"]}}}, "targets of main.aft to be one of toy_target, got 'cifar10'"),
    ({"main": {"aft": {}, "aft_new": {"optim": {"lr": 1}}}, "fractions": {"images": [], "runs": []}}, "method .*got 'aft_new'"),
    ({"schedules": {"aft": {}}}, "under names of their own, got aft in both"),
    ({"widths": {"widths": [8], "runs": ["aft_constant"]}}, "runs of widths to be one of aft, .*got 'aft_constant'"),
    ({"widths": {"widths": [8], "runs": ["aft"], "targets": ["toy"]}}, "targets of widths to be one of toy_target, got 'toy'"),
    *(({"evaluations": [PGD | limits]}, message) for limits, message in (
        ({"runs": ["at"]}, "runs of an evaluation .*got 'at'"), ({"at": ["end"]}, "at of an evaluation .*got 'end'"),
        ({"parts": ["start"]}, "parts of an evaluation to be one of main, schedule, fraction, width"),
        ({"seeds": [4]}, "seeds of an evaluation to be one of 3, 5, got '4'"))),
])
def test_illegal_arguments(changes: dict, message: str) -> None:
    """Unknown keys and names are refused with what was meant."""
    with pytest.raises(ValueError, match=message):
        finetuning.finetuning(**arguments(**changes))


@pytest.mark.parametrize("claim", [c for c in rules.claims() if c.rule.measure in rules.FINETUNED], ids=lambda c: c.id)
def test_rules_can_be_applied(claim: rules.Claim) -> None:
    """At small every method of a rule is planned with its seeds, and measured on as many images as the rule asks for."""
    rule = claim.rule
    jobs = plan.plan("small", claim.notebook)[0](best=first)
    for name in {name for pair in rule.pairs for name in pair}:
        runs = [j for j in jobs if j.study == "aft" and label(j) in ("main", "schedule") and j.spec.method.name == name]
        assert len({j.spec.seed for j in runs if j.spec.data.name in rule.datasets}) >= rule.min_seeds
        for job in runs:
            start = rule.measure == "any_start" and job.spec.keep_head
            for at in ("last", *["start"] * start, *["best"] * (name == "at_scratch")):
                kinds = {e.kind for e in job.evals if e.at == at and e.images >= rule.robust.min_images
                         and (e.kind == "clean" or (e.threat, e.eps) == (rule.robust.threat, pytest.approx(rule.robust.eps)))}
                assert {"clean", "pgd"} <= kinds, (name, at)


@pytest.mark.parametrize("start", [{"optim": {"epochs": 7, "lr": 0.2}}, {k: PUBLIC[k] for k in ("weights", "model")}])
def test_normalisation_of_a_start(start: dict) -> None:
    """Mean and std of a start, ours or of others, are those of what starts from it; random starts keep ImageNet's."""
    jobs = finetuning.finetuning(**arguments(starts={"natural": start | CONSTANTS}, widths={"widths": [], "runs": []}))
    for spec in (job.spec for job in jobs):
        random = spec.method.name == "at_scratch"
        assert (spec.model.mean[0], spec.model.std[0]) == ((0.485, 0.229) if random else (0.5, 0.2))
