"""The benchmark of certification compares like with like: the textbook certifies as ours does, and it runs."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import certify
from benchmarks.textbook_certify import TextbookCertifier
from twinslib.base.certified import ABSTAIN
from twinslib.base.sequential import certify_plan
from twinslib.certify.smoothing import collect_votes
from twinslib.nets.arithmetic import chosen
from twinslib.nets.checkpoint import save_weights
from twinslib.nets.models import make_model

SMALL = ("--arch tiny_resnet --images 3 --groups 2 --n 320 --n0 16 --alpha 0.05 --radii 0 0.1 --stretch 400 --batch 64 "
         "--threads 1").split()


def plane():
    """One image 0.1 from the plane between two classes."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = 0, 1 / 12 ** 0.5
        net[1].bias[0], net[1].bias[1] = 0, 0.1 - 0.5 * 12 ** 0.5
    return net, torch.full((3, 2, 2), 0.5)


def test_textbook_and_ours_estimate_the_same() -> None:
    """Votes of both fit Phi(.1 / .25), and so each other; radii agree up to the draws, and both abstain on the plane."""
    net, x = plane()
    textbook, n, p = TextbookCertifier(net, 0.25, 2), 20_000, stats.norm.cdf(0.4)
    votes = collect_votes(net, x[None], certify_plan(sigma=0.25, n=n))
    for count in (textbook.count(x, n).numpy(), votes.votes[0]):
        assert count.sum() == n and stats.binomtest(int(count[1]), n, p).pvalue > 1e-3
    choice, radius = textbook.certify(x, 100, n, 0.001)
    ours = votes.certified()
    assert choice == ours.prediction[0] == 1 and radius == pytest.approx(ours.radius[0], abs=0.01) and 0.085 < radius < 0.1
    assert textbook.certify(x - 0.1 / 12 ** 0.5, 100, 1000, 0.001) == (ABSTAIN, 0.0)


def test_what_is_compared() -> None:
    """Accuracies are equal within one standard error: a difference beyond it at one radius is enough to fail."""
    fixed = {"accuracy": [0.5, 0.2], "standard_error": [0.02, 0.01]}
    for accuracy, equal in (([0.52, 0.19], True), ([0.5, 0.18], False)):
        assert certify.equal_within_errors({"sequential_on_these": {"accuracy": accuracy}, "fixed_n": fixed}) is equal


def test_command_line(tmp_path, capsys) -> None:
    """On stored weights and an image set: a table, and a JSON whose ratios follow from its times and draws."""
    weights, out = tmp_path / "weights.safetensors", tmp_path / "new" / "result.json"
    save_weights(weights, make_model("tiny_resnet", 10, seed=0), {"spec": "{}"}, half=True)
    certify.main([*SMALL, "--weights", str(weights), "--data", "toy_target", "--fixed", "2", "--out", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    result, = record["results"]
    assert "equal within one standard error" in printed and "float32" in printed
    for name, v in result["variants"].items():
        assert v["draws"] == sum(v["draws_by_image"]) + 3 * 16
        assert v["draws_ratio"] == pytest.approx(3 * (16 + 320) / v["draws"]) and v["draws_ratio"] >= 1
        for clock, ratio in v["time_ratio"].items():
            times = [sum(result["seconds"][who][clock]) for who in ("textbook", name)]
            assert ratio["estimate"] == pytest.approx(times[0] / times[1]) and min(times) > 0
    assert result["images_by_group"] == [2, 1] and len(result["fixed_n"]["accuracy"]) == 2
    assert result["fixed_n"]["images"] == 2 and f"{chosen('bfloat16', 'cpu')} on 2" in printed and "fixed n on 2" in printed
    assert {"commit", "versions", "cpu", "threads", "load_average"} <= record["provenance"].keys()
    assert str(tmp_path) not in out.read_text()


def test_images_are_spread_over_the_test_set() -> None:
    """Evenly, with their own labels and numbers."""
    images, labels, index = certify.test_images("toy_target", 16, 10)
    everything, known, numbers = certify.test_images("toy_target", 16, 1000)
    assert index == list(range(0, 1000, 100)) and numbers == list(range(1000))
    assert torch.equal(images, everything[index]) and torch.equal(labels, known[index])
    with pytest.raises(ValueError, match="expected an image set of the network's 9 classes, got toy_target with 10"):
        certify.test_images("toy_target", 16, 10, classes=9)


def test_random_weights_run(tmp_path, capsys) -> None:
    """Without weights and data as well, and the result says what its ratio of draws is worth."""
    certify.main([*SMALL, "--out", str(tmp_path / "r.json")])
    assert "means nothing" in json.loads((tmp_path / "r.json").read_text())["results"][0]["weights"]
    assert np.isfinite([float(word) for word in capsys.readouterr().out.split() if word.replace(".", "").isdigit()]).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--images", "0"], "--images of at least 1, got 0"),
    (["--images", "3", "--groups", "4"], "at most one group per image, got --groups 4 for 3 images"),
    (["--images", "3", "--groups", "1", "--fixed", "4"], "--fixed in 0..3, the images, got 4"),
    (["--n", "9"], "n of at least 10"), (["--data", "nothing"], "expected an image set"),
    (["--data", "toy_target", "--arch", "tiny_resnet", "--images", "5000"], "1 to 1000 images"),
    (["--weights", "nothing.safetensors"], "nothing.safetensors"), (["--arch", "resnet19"], "invalid choice"),
])
def test_bad_call(arguments, message, capsys) -> None:
    """One message and a non-zero exit before any work."""
    with pytest.raises(SystemExit) as end:
        certify.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err
