"""The speed benchmark compares like with like: the textbook step and ours move the weights alike, and it runs."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from benchmarks import textbook, twins_step
from twinslib.config import AttackSpec, method
from twinslib.norms import twinsify
from twinslib.train import Step, generator

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
        x, y = twins_step.random_batch(ARCH, BATCH, "cpu", count)
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
    assert set(check) == set(twins_step.VARIANTS[1:])
    assert check["ours float32"]["loss"] < 1e-3 and check["ours float32"]["update"] < 0.05
    for variant in ("textbook bfloat16", "ours bfloat16"):
        assert 0 < check[variant]["loss"] < 0.05 and 0 < check[variant]["update"] < 0.5, variant


def test_ratio() -> None:
    """Of medians, above 1 where the second is faster; a common load on whole rounds leaves the interval narrow."""
    load = [1.0, 9.0, 2.0, 5.0, 3.0]
    assert twins_step.ratio([3 * v for v in load], [2 * v for v in load]) == pytest.approx((1.5, 1.5, 1.5))
    estimate, low, high = twins_step.ratio([1.0, 2.0, 30.0], [1.0, 1.0, 2.0])
    assert estimate == 2 and low <= 2 <= high and low < high


def test_command_line(tmp_path, capsys) -> None:
    """Prints a table and leaves a JSON with all samples and their provenance, without names of machine or folders."""
    out = tmp_path / "new" / "result.json"
    twins_step.main(["--arch", ARCH, "--batch", "4", "--repeats", "2", "--threads", "1", "--out", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    result, = record["results"]
    for clock in ("wall", "processor"):
        assert all(len(samples) == 2 and min(samples) > 0 for samples in result["seconds"][clock].values())
        assert set(result["ratios"][clock]) == set(twins_step.RATIOS)
    assert all(variant in printed for variant in twins_step.VARIANTS)
    assert {"commit", "versions", "cpu", "threads", "load_average"} <= record["provenance"].keys()
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--batch", "1"], "--batch of at least 2, got 1"),
    (["--repeats", "0"], "--repeats of at least 1, got 0"),
    (["--arch", "resnet19"], "invalid choice"),
    (["--device", "tpu"], "expected cpu, cuda or cuda:N, got 'tpu'"),
])
def test_bad_call(arguments: list[str], message: str, capsys) -> None:
    """One message and a non-zero exit before any work."""
    with pytest.raises(SystemExit) as end:
        twins_step.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_committed_results_are_complete() -> None:
    """Each committed file has the ratios that the bar names, from the samples beside them."""
    files = sorted(twins_step.RESULTS.glob("*.json"))
    assert files
    for file in files:
        for result in json.loads(file.read_text())["results"]:
            for clock, ratios in result["ratios"].items():
                for name, (slow, fast) in twins_step.RATIOS.items():
                    estimate = twins_step.ratio(result["seconds"][clock][slow], result["seconds"][clock][fast])[0]
                    assert ratios[name]["estimate"] == pytest.approx(estimate), file.name


def test_readme_states_the_measured_ratios() -> None:
    """Each line of the README's table is that of a committed file: estimate and interval, digit for digit."""
    text = (twins_step.RESULTS.parent / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| thin_")]
    measured = {}
    for file in twins_step.RESULTS.glob("*.json"):
        stored = json.loads(file.read_text())
        for result in stored["results"]:
            for clock, ratios in result["ratios"].items():
                cells = [f"{r['estimate']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios.values()]
                label = f"{stored['provenance']['threads']}, {'wall' if clock == 'wall' else 'processor time'}"
                measured[f"| {result['arch']} | {label} | {' | '.join(cells)} |"] = file.name
    assert lines and set(lines) <= set(measured)
