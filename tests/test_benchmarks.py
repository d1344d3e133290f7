"""The benchmarks compare like with like: the textbook and ours do the same, the recorder moves nothing, tests of draws have one
guarantee; they run, and the README states what was measured."""

import copy
import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import autoattack, certify, command, draws, growth, recorder, textbook, timing, twins_step
from benchmarks.textbook_certify import TextbookCertifier
from twinslib import __main__ as twins
from twinslib.base.certified import ABSTAIN
from twinslib.base.sequential import certify_plan, exact_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.compute import provenance
from twinslib.nets.checkpoint import save_weights
from twinslib.nets.models import make_model
from twinslib.nets.norms import twinsify
from twinslib.specs.labels import method_label
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec
from twinslib.specs.strength import STANDARD
from twinslib.train.step import Step, generator

ARCH, BATCH, WEIGHT = "tiny_resnet", 8, 0.4


def both_steps(steps: int):
    """(textbook's network and step, ours) in float32 from one start, with a PGD attack of `steps` steps."""
    spec = replace(twins_step.run_spec(ARCH, BATCH, "float32"), attack=AttackSpec(steps=steps),
                   method=method("twins_at", twins_weight=WEIGHT))
    start, optim = twins_step.start_network(ARCH), spec.optim
    plain, twin = textbook.two_wings(start), twinsify(start)
    step = textbook.TextbookStep(plain, eps=spec.attack.eps if steps else 0.0, step_size=spec.attack.step_size,
                                 steps=steps, twins_weight=WEIGHT, lr=optim.lr, momentum=optim.momentum,
                                 weight_decay=optim.weight_decay, autocast=False)
    ours = Step(twin, spec, "cpu")
    return plain, step, twin, lambda x, y, count: ours(x, y, count, optim.lr)[0]


@pytest.mark.parametrize(("steps", "tolerance"), [(0, 1e-5), (1, 1e-3), (3, 2e-2)])
def test_both_take_the_same_step(steps: int, tolerance: float) -> None:
    """Loss, weights and statistics after one step, and after a second one; an attack turns rounding into pixel steps."""
    plain, step, twin, ours = both_steps(steps)
    before = copy.deepcopy(plain.state_dict())
    for count in range(2):
        x, y = twins_step.random_batch(twins_step.run_spec(ARCH, BATCH, "float32"), "cpu", count)
        expected = step(x, y, generator("cpu", 0, "attack", count))
        torch.testing.assert_close(ours(x, y, count), expected, atol=tolerance, rtol=0)
    left, right = plain.state_dict(), twin.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        if "frozen.running" in name:
            assert torch.equal(value, before[name]) and torch.equal(right[name], before[name]), name
        elif "num_batches" not in name:
            moved = (value - before[name]).norm()
            assert "normalize" in name or moved > 0, name
            assert (right[name] - value).norm() <= tolerance * moved + 1e-7 * value.norm(), name


def test_what_is_reported_of_a_step() -> None:
    """Ours in float32 is the textbook's step, bfloat16 roughly so."""
    check = twins_step.same_step(ARCH, BATCH, "cpu")
    assert set(check) == set(twins_step.variants("cpu")) - {twins_step.REFERENCE}
    for variant, (loss, update) in {"ours float32": (1e-3, 0.05), "textbook bfloat16": (0.05, 0.5),
                                    "ours bfloat16": (0.05, 0.5)}.items():
        assert variant not in check or (check[variant]["loss"] < loss and check[variant]["update"] < update), variant


def test_ratio() -> None:
    """Of medians or sums, above 1 where the second is faster; a common load on whole rounds leaves the interval narrow."""
    load = [1.0, 9.0, 2.0, 5.0, 3.0]
    for of, expected in ((np.median, 2), (np.sum, 33 / 4)):
        assert set(timing.ratio([3 * v for v in load], [2 * v for v in load], of).values()) == {1.5}
        estimate, low, high = timing.ratio([1.0, 2.0, 30.0], [1.0, 1.0, 2.0], of).values()
        assert estimate == expected and low <= expected <= high and low < high
    found = recorder.ratios({"without": load, "with a line": [1.5 * v for v in load]})
    assert {name: r["estimate"] for name, r in found.items()} == pytest.approx(
        {"every 10": 1.05, "every 5": 1.1, "a step with a line": 1.5})


@pytest.mark.parametrize("name", recorder.METHODS)
def test_a_recorder_that_moves_a_weight_is_noticed(name: str, monkeypatch) -> None:
    """With and without a recorder the same weights; what it adds is done at its own steps alone."""
    spec = replace(recorder.run_spec(ARCH, 4, name, "float32"), attack=AttackSpec(steps=1))
    seconds, same = recorder.measure(spec, "cpu", 5)
    assert same and {len(v) for samples in seconds.values() for v in samples.values()} == {5}
    after, calls = recorder.Recorder.after, []

    def moving(self, count, lr) -> None:
        calls.append(count)
        self._weights[0].data[0] += 1e-3
        after(self, count, lr)

    monkeypatch.setattr(recorder.Recorder, "after", moving)
    assert not recorder.measure(spec, "cpu", 1)[1]
    calls.clear()
    step = recorder.make_step(spec, "cpu", 5)
    for count in range(6):
        step(*twins_step.random_batch(spec, "cpu", count), count, 0.01)
    assert calls == [0, 5]


def test_textbook_and_ours_estimate_the_same() -> None:
    """An image 0.1 from the plane between two classes: votes of both fit Phi(.1 / .25), both abstain on the plane."""
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval(), torch.full((3, 2, 2), 0.5)
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = 0, 1 / 12 ** 0.5
        net[1].bias[0], net[1].bias[1] = 0, 0.1 - 0.5 * 12 ** 0.5
    book, n, p = TextbookCertifier(net, 0.25, 2), 20_000, stats.norm.cdf(0.4)
    votes = collect_votes(net, x[None], certify_plan(sigma=0.25, n=n))
    for count in (book.count(x, n).numpy(), votes.votes[0]):
        assert count.sum() == n and stats.binomtest(int(count[1]), n, p).pvalue > 1e-3
    choice, radius = book.certify(x, 100, n, 0.001)
    ours = votes.certified()
    assert choice == ours.prediction[0] == 1 and radius == pytest.approx(ours.radius[0], abs=0.01) and 0.085 < radius < 0.1
    assert book.certify(x - 0.1 / 12 ** 0.5, 100, 1000, 0.001) == (ABSTAIN, 0.0)


def test_what_is_compared() -> None:
    """Accuracies on images spread evenly over the test set, equal where no radius differs by more than one standard error."""
    fixed = {"accuracy": [0.5, 0.2], "standard_error": [0.02, 0.01]}
    for accuracy, equal in (([0.52, 0.19], True), ([0.5, 0.18], False)):
        assert certify.equal_within_errors({"sequential_on_these": {"accuracy": accuracy}, "fixed_n": fixed}) is equal
    images, labels, index = certify.test_images("toy_target", 16, 10)
    everything, known, _ = certify.test_images("toy_target", 16, 1000)
    assert index == list(range(0, 1000, 100)) and torch.equal(images, everything[index]) and torch.equal(labels, known[index])


@pytest.mark.parametrize(("log", "abstained"), [
    ("cifar10 resnet110 0.25", 43), ("cifar10 resnet110 0.50", 83), ("imagenet resnet50 1.00", 148)])
def test_logs_are_whole(log, abstained) -> None:
    """500 images each, abstentions as in the logs, no radius above what 100,000 draws can give at alpha .01."""
    p = draws.probabilities(log)
    assert len(p) == 500 and (p == draws.ABSTAINED).sum() == abstained
    assert stats.norm.ppf(p.max()) <= 0.01 + certify_plan(sigma=1.0, alpha=0.01).ceiling


@pytest.mark.parametrize("exact_end", [False, True])
def test_betting_has_the_guarantee(exact_end) -> None:
    """At each radius false at any look in at most alpha, by enumeration; with an exact end in nearly that."""
    plan = exact_plan(sigma=0.5, radii=(0, 0.3, 0.6), n=1500, alpha=0.02, ratio=1.3)
    looks, reach, drop = draws.betting(plan, exact_end)
    for r, row in zip(plan.radii, reach, strict=True):
        wrong = draws._crossed(looks, row, stats.norm.cdf(r / plan.sigma))[-1]
        assert wrong <= plan.alpha and (not exact_end or wrong > 0.8 * plan.alpha)
    assert (drop < reach).all() and looks == plan.looks


def test_simulation_by_hand() -> None:
    """All votes alike: the first look that certifies or gives up ends the draws, and nothing is lost but what was given up."""
    looks, reach, drop = (10, 20, 40), np.array([[11, 18, 30]]), np.array([[2, 5, -1]])
    for p, expected in ((1.0, 20), (0.0, 10)):
        found = draws.simulate((looks, reach, drop), np.full(3, p), np.array([30]), 2)
        assert found == {"draws": expected, "standard_error": 0, "lost": 0}
    assert draws.simulate((looks, reach, drop + 20), np.ones(1), np.array([30]), 1)["lost"] == 100


@pytest.mark.parametrize(("axis", "value"), [("steps", 3), ("width", 8), ("side", 48)])
def test_one_number_changes(axis, value) -> None:
    """The spec differs in the axis alone, and network and images follow it."""
    usual = {"steps": growth.PGD_STEPS, "width": 32, "side": 32}
    spec, base = growth.spec_at(axis, value, 2), growth.spec_at(axis, usual[axis], 2)
    assert [name for name in vars(spec) if getattr(spec, name) != getattr(base, name)] == [growth.PLACES[axis][0]]
    x, _ = twins_step.random_batch(spec, "cpu", 0)
    model, _ = twins_step.make_step("ours", spec, "cpu")
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert x.shape[2] == (value if axis == "side" else 32) and first.out_channels == (value if axis == "width" else 32)


def hold(mib):
    np.ones((mib, 2**17))


def test_memory_is_that_of_the_work() -> None:
    """As much as is held, whatever this process has held before."""
    hold(400)
    assert growth.peak(partial(hold, 200), "cpu", 1) == pytest.approx(200, abs=10)


def test_workers(monkeypatch, tmp_path) -> None:
    """One worker and all take turns over the same sweep, by a call that the command understands."""
    calls = []
    provenance.commit()  # it is asked for once in a process
    monkeypatch.setattr(growth.subprocess, "run", lambda words, **how: calls.append(words))
    growth.main(["workers", "--repeats", "2", "--out", str(tmp_path / "result.json")])
    assert [words[words.index("--workers") + 1] for words in calls] == ["1", "2", "2", "1"]
    assert calls[0][:3] == [sys.executable, "-m", "twinslib"] and twins.main([*calls[1][3:], "--dry-run"]) == 0


SMALL = "--arch tiny_resnet --images 3 --groups 2 --n 320 --n0 16 --alpha 0.05 --radii 0 0.1 --stretch 400 --batch 64 --threads 1"


@pytest.mark.parametrize(("main", "arguments"), [
    (twins_step.main, f"--arch {ARCH} --batch 4 --repeats 2"), (recorder.main, f"--arch {ARCH} --batch 2 --repeats 2"),
    (certify.main, SMALL), (certify.main, f"{SMALL} --weights WEIGHTS --data toy_target --fixed 2"),
    (draws.main, "--logs=cifar10\xa0resnet110\xa00.25 --n 1000 --repeats 3"),
    (growth.main, "steps --values 2 --batch 2 --repeats 2"), (growth.main, "n --values 200 --batch 2 --images 5"),
    (autoattack.main, f"--arch {ARCH} --side 16 --images 2 --steps 1 --queries 1"), (autoattack.main, "--masks 4")])
def test_command_line(main, arguments: str, tmp_path, monkeypatch, capsys) -> None:
    """Prints a table and leaves a JSON with samples and provenance, without names of folders; what follows from them does."""
    monkeypatch.setattr(recorder, "PGD_STEPS", 1)
    monkeypatch.setattr(autoattack, "BLOCK", 3)
    if "masks" in arguments:
        monkeypatch.setattr(autoattack, "STANDARD", STANDARD[:2])
    weights, out = tmp_path / "weights.safetensors", tmp_path / "new" / "result.json"
    save_weights(weights, make_model(ARCH, 10, seed=0), {"spec": "{}"}, half=True)
    words = [word.replace("\xa0", " ").replace("WEIGHTS", str(weights)) for word in arguments.split(" ")]
    main([*words, "--out", str(out)])
    record = json.loads(out.read_text())
    assert capsys.readouterr().out and record["results"] and str(tmp_path) not in out.read_text()
    assert {"commit", "versions", "cpu", "threads", "load_average"} <= record["provenance"].keys()
    for result in record["results"]:
        assert result.get("differ", 0) == 0 and result.get("same_weights", True)
        for v in result.get("variants", {}).values():
            assert v["draws"] == sum(v["draws_by_image"]) + 3 * 16 and v["draws_ratio"] == pytest.approx(3 * 336 / v["draws"])
        if "tests" in result:
            assert result["tests"]["exact, linear"]["draws"] < 0.95 * result["tests"]["shares of alpha"]["draws"] < result["n"]
        for times in result.get("milliseconds", {}).values():
            assert 0 < times["at least"] <= times["forward"] + times["backward"] + times["rest"]


@pytest.mark.parametrize(("main", "arguments", "message"), [
    *((main, *bad) for main in (twins_step.main, recorder.main) for bad in (
        ("--batch 1", "--batch of at least 2, got 1"), ("--arch resnet19", "invalid choice"),
        ("--device tpu", "expected cpu, cuda or cuda:N, got 'tpu'"))),
    (certify.main, "--images 3 --groups 4", "at most one group per image"), (certify.main, "--fixed 101", "--fixed in 0..100"),
    (certify.main, "--data toy_target --arch tiny_resnet --images 5000", "1 to 1000 images"),
    (certify.main, "--weights nothing.safetensors", "nothing.safetensors")])
def test_bad_calls(main, arguments: str, message: str, capsys) -> None:
    """One message and a non-zero exit before any work."""
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_committed_results_follow_from_their_samples() -> None:
    """Ratios from the samples beside them; a line every 5 steps costs at most 10 %; AutoAttack differs on no image."""
    steps, lines, masks = ([(file.name, result) for file in folder.glob("*.json") for result in json.loads(
        file.read_text())["results"]] for folder in (command.RESULTS, recorder.RESULTS, autoattack.RESULTS / "masks"))
    assert steps and lines and masks and all(result["differ"] == 0 and result["ours"] for _, result in masks)
    for file, result in steps:
        for clock, ratios in result["ratios"].items():
            for name, found in ratios.items():
                slow, fast = (result["seconds"][clock][variant] for variant in twins_step.RATIOS[name])
                assert found["estimate"] == pytest.approx(timing.ratio(slow, fast)["estimate"]), file
    for file, result in lines:
        assert result["same_weights"] and result["batch_size"] == 128
        for clock, samples in result["seconds"].items():
            for name, found in recorder.ratios(samples).items():
                assert result["ratios"][clock][name] == pytest.approx(found), (file, name)
        assert result["ratios"].get("processor", result["ratios"]["wall"])["every 5"]["estimate"] <= 1.1, file


def test_readme_states_what_was_measured() -> None:
    """Each line of the README's tables is that of a committed file: estimate and interval, digit for digit."""
    readme = (command.RESULTS.parent / "README.md").read_text()
    lines, steps, cost = set(readme.splitlines()), set(), set()
    for folder, found in ((command.RESULTS, steps), (recorder.RESULTS, cost)):
        for stored in (json.loads(file.read_text()) for file in folder.glob("*.json")):
            for r in stored["results"]:
                steady = "processor" if "processor" in r["ratios"] else "wall"
                for clock, ratios in r["ratios"].items():
                    digits, label = 3, f"{method_label(r['method'])}, {r['precision']}" if found is cost else ""
                    if found is steps:
                        time = "wall" if clock == "wall" else "processor time"
                        digits, label = 2, f"{r['arch']} | {stored['provenance']['threads']}, {time}"
                    cells = ["{estimate:.{n}f} ({low:.{n}f} to {high:.{n}f})".format(n=digits, **v) for v in ratios.values()]
                    if found is steps or clock == steady:
                        found.add(f"| {label} | {' | '.join(cells)} |")
    shown = {line for line in lines if line.startswith("| thin_")}
    assert shown and shown <= steps
    assert cost and cost == {line for line in lines if line.startswith(("| AT, ", "| TWINS-AT, "))}
    points = [p for file in growth.RESULTS.glob("*/*.json") for p in json.loads(file.read_text())["results"]]
    axes = tuple(f"| {axis} " for axis in growth.VALUES)
    assert {growth.line(p) for p in points} == {line for line in lines if line.startswith(axes)}
    parts = [line for file in autoattack.RESULTS.glob("*.json") for r in json.loads(file.read_text())["results"]
             for line in autoattack.lines(r)]
    assert parts and set(parts) <= lines
    for file in autoattack.RESULTS.glob("masks/*.json"):
        ten, five = json.loads(file.read_text())["results"]
        assert f"{ten['ours']} and {five['ours']} images stand in both, and no image differs" in readme
