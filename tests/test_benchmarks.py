"""The speed benchmarks compare like with like: the textbook step and ours move the weights alike, the recorder moves none; and
they run."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import autoattack, command, recorder, textbook, timing, twins_step
from twinslib.nets import arithmetic
from twinslib.nets.norms import TwinNorm, twinsify
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


def test_variants_start_alike_and_bfloat16_stays_near() -> None:
    """The check that the benchmark reports: ours in float32 is the textbook's step, bfloat16 roughly so."""
    check = twins_step.same_step(ARCH, BATCH, "cpu")
    assert set(check) == set(twins_step.variants("cpu")) - {twins_step.REFERENCE}
    assert check["ours float32"]["loss"] < 1e-3 and check["ours float32"]["update"] < 0.05
    for variant in {"textbook bfloat16", "ours bfloat16"} & set(check):
        assert 0 < check[variant]["loss"] < 0.05 and 0 < check[variant]["update"] < 0.5, variant


def test_ratio() -> None:
    """Of medians or sums, above 1 where the second is faster; a common load on whole rounds leaves the interval narrow."""
    load = [1.0, 9.0, 2.0, 5.0, 3.0]
    for of, expected in ((np.median, 2), (np.sum, 33 / 4)):
        assert set(timing.ratio([3 * v for v in load], [2 * v for v in load], of).values()) == {1.5}
        estimate, low, high = timing.ratio([1.0, 2.0, 30.0], [1.0, 1.0, 2.0], of).values()
        assert estimate == expected and low <= expected <= high and low < high


def test_command_line(tmp_path, capsys) -> None:
    """Prints a table and leaves a JSON with all samples and their provenance, without names of machine or folders."""
    out = tmp_path / "new" / "result.json"
    twins_step.main(["--arch", ARCH, "--batch", "4", "--repeats", "2", "--threads", "1", "--out", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    result, = record["results"]
    for clock in ("wall", "processor"):
        assert all(len(samples) == 2 and min(samples) > 0 for samples in result["seconds"][clock].values())
        there = set(twins_step.variants("cpu"))
        assert set(result["ratios"][clock]) == {name for name, pair in twins_step.RATIOS.items() if set(pair) <= there}
    assert result["chosen_for_bfloat16"] == arithmetic.chosen("bfloat16", "cpu")
    assert all(variant in printed for variant in twins_step.variants("cpu"))
    assert {"commit", "versions", "cpu", "threads", "load_average"} <= record["provenance"].keys()
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize("main", [twins_step.main, recorder.main])
def test_bad_calls(main, capsys) -> None:
    """One message and a non-zero exit before any work."""
    for arguments, message in (("--batch 1", "--batch of at least 2, got 1"), ("--repeats 0", "--repeats of at least 1, got 0"),
                               ("--arch resnet19", "invalid choice"), ("--threads 0", "--threads of at least 1, got 0"),
                               ("--device tpu", "expected cpu, cuda or cuda:N, got 'tpu'")):
        with pytest.raises(SystemExit) as end:
            main(arguments.split())
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_committed_results_are_complete() -> None:
    """Each committed file has the ratios that the bar names, from the samples beside them."""
    files = sorted(command.RESULTS.glob("*.json"))
    assert files
    for file in files:
        for result in json.loads(file.read_text())["results"]:
            for clock, ratios in result["ratios"].items():
                assert "float32, ours against textbook" in ratios
                for name, found in ratios.items():
                    slow, fast = (result["seconds"][clock][variant] for variant in twins_step.RATIOS[name])
                    assert found["estimate"] == pytest.approx(timing.ratio(slow, fast)["estimate"]), file.name


def test_readme_states_what_was_measured() -> None:
    """Each line of the README's tables is that of a committed file: estimate and interval, digit for digit."""
    lines = (command.RESULTS.parent / "README.md").read_text().splitlines()
    steps, cost = set(), set()
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


# -- the recorder -------------------------------------------------------------------------------------------------------
def test_ratios_of_the_recorder() -> None:
    """A line that costs half a step more: 5 % every 10 steps, 10 % every 5, whatever the load on pairs of steps."""
    load = [1.0, 3.0, 2.0, 9.0, 4.0]
    found = recorder.ratios({"without": load, "with a line": [1.5 * v for v in load]})
    expected = {"every 10": 1.05, "every 5": 1.1, "a step with a line": 1.5}
    assert found == {name: pytest.approx(dict.fromkeys(("estimate", "low", "high"), r)) for name, r in expected.items()}


def test_steps_between_lines_cost_nothing(monkeypatch) -> None:
    """What the recorder adds is done at its own steps alone, so the cost of a line may be divided by their distance."""
    calls = []
    for name in ("before", "gradients", "after"):
        monkeypatch.setattr(recorder.Recorder, name, lambda self, *rest, name=name: calls.append(name))
    spec = replace(recorder.run_spec(ARCH, 2, "twins_at", "float32"), attack=AttackSpec(steps=0))
    step = recorder.make_step(spec, "cpu", 5)
    for count in range(6):
        step(*twins_step.random_batch(spec, "cpu", count), count, 0.01)
    assert calls == ["before", "gradients", "after"] * 2


@pytest.mark.parametrize("name", recorder.METHODS)
def test_variants_of_the_recorder_train_alike(name: str, monkeypatch) -> None:
    """With and without a recorder the same weights, from the networks that the methods train; a recorder that moves one is
    noticed."""
    spec = recorder.run_spec(ARCH, 4, name, "float32")
    assert (spec.attack.steps, spec.method.name, spec.optim.batch_size) == (5, name, 4)
    steps = [recorder.make_step(spec, "cpu", every) for every in recorder.VARIANTS.values()]
    assert [step.recorder and step.recorder.every for step in steps] == [None, 1]
    assert any(isinstance(m, TwinNorm) for m in steps[0].model.modules()) == (name == "twins_at")
    quick = replace(spec, attack=AttackSpec(steps=1))
    seconds, same = recorder.measure(quick, "cpu", 5)
    assert same and {len(v) for samples in seconds.values() for v in samples.values()} == {5}
    after = recorder.Recorder.after

    def moving(self, count, lr) -> None:
        self._weights[0].data[0] += 1e-3
        after(self, count, lr)

    monkeypatch.setattr(recorder.Recorder, "after", moving)
    assert not recorder.measure(quick, "cpu", 1)[1]


def test_command_line_of_the_recorder(tmp_path, capsys, monkeypatch) -> None:
    """Prints a table per method and precision and leaves a JSON with all samples and their provenance."""
    monkeypatch.setattr(recorder, "PGD_STEPS", 1)
    out = tmp_path / "new" / "result.json"
    recorder.main(["--arch", ARCH, "--batch", "2", "--repeats", "2", "--out", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    made = [(r["method"], r["precision"]) for r in record["results"]]
    assert made == [(name, precision) for name in recorder.METHODS
                    for precision in dict.fromkeys(("float32", arithmetic.chosen("bfloat16", "cpu")))]
    for name, precision in made:
        assert f"{name} in {precision}, {ARCH} at 16 pixels, batch 2, PGD-1; same weights: yes" in printed
    assert {"commit", "versions", "cpu", "threads", "load_average"} <= record["provenance"].keys()
    assert str(tmp_path) not in out.read_text()


def test_committed_results_of_the_recorder() -> None:
    """Each committed file has all methods and precisions at preset small's size, ratios from the samples beside them, no changed
    weight, and by its steadiest clock at most 10 % more time at a line every 5 steps."""
    files = sorted(recorder.RESULTS.glob("*.json"))
    assert files
    for file in files:
        results = json.loads(file.read_text())["results"]
        assert {(r["method"], r["precision"]) for r in results} >= {(m, "float32") for m in recorder.METHODS}
        for result in results:
            assert (result["batch_size"], result["image_size"], result["attack_steps"]) == (128, 32, 5) and result["same_weights"]
            for clock, samples in result["seconds"].items():
                for name, found in recorder.ratios(samples).items():
                    assert result["ratios"][clock][name] == pytest.approx(found), (file.name, name)
            steady = result["ratios"].get("processor", result["ratios"]["wall"])
            assert steady["every 10"]["estimate"] <= 1.1 and steady["every 5"]["estimate"] <= 1.1, file.name


def test_profile_of_autoattack(tmp_path, capsys) -> None:
    """Each part on both networks, its times, and no more at least than in all; what is stated is what was measured."""
    out = tmp_path / "aa.json"
    autoattack.main(["--arch", ARCH, "--side", "16", "--images", "2", "--steps", "1", "--queries", "1", "--out", str(out)])
    stored = [json.loads(file.read_text())["results"] for file in (out, *autoattack.RESULTS.glob("*.json"))]
    for results in stored:
        assert [result["suite"] for result in results] == ["pyautoattack", "ours"]
        for times in (result["milliseconds"][part] for result in results for part in (*STANDARD, "all")):
            assert 0 < times["at least"] <= times["forward"] + times["backward"] + times["rest"]
    readme = (command.RESULTS.parent / "README.md").read_text().splitlines()
    lines = [line for results in stored[1:] for result in results for line in autoattack.lines(result)]
    assert lines and set(lines) <= set(readme) and "| square |" in capsys.readouterr().out


def test_masks_of_autoattack(tmp_path, capsys, monkeypatch) -> None:
    """Block by block those of the package, on networks of ten classes and of fewer than it has targets; also as committed."""
    monkeypatch.setattr(autoattack, "BLOCK", 3)
    monkeypatch.setattr(autoattack, "STANDARD", STANDARD[:2])
    out = tmp_path / "masks.json"
    autoattack.main(["--masks", "4", "--out", str(out)])
    stored = [json.loads(file.read_text())["results"] for file in (out, *autoattack.RESULTS.glob("masks/*.json"))]
    for results in stored:
        assert [result["classes"] for result in results] == [10, 5]
        assert all(result["differ"] == 0 and 0 < result["ours"] == result["package"] for result in results)
    readme = (command.RESULTS.parent / "README.md").read_text()
    for ten, five in stored[1:]:
        assert ten["images"] == 500 and f"{ten['ours']} and {five['ours']} images stand in both, and no image differs" in readme
