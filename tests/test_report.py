"""Tables and sentences of the notebooks against calculations by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from twinslib import report, table
from twinslib.config import DataSpec, EvalSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec, canonical_json, method
from twinslib.packed import write_npz
from twinslib.runs import Job, Store, Task, write_json
from twinslib.stats import paired_difference

CLEAN = EvalSpec(kind="clean", images=10)
PGD = EvalSpec(kind="pgd", images=10, eps=8 / 255)
PART = EvalSpec(kind="autoattack", images=8, eps=8 / 255, attacks=("apgd-ce", "apgd-t"))
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())


def row(dataset="cifar10", name="at", seed=0, attack="none", eps=0.0, value=0.5, n=10, run=None):
    metric = "clean_acc" if attack == "none" else "robust_acc"
    return ["transfer", "small", dataset, "tiny_resnet", "batch", name, seed, metric, "linf", eps, value, n,
            run or f"{dataset}-{name}-{seed}", attack, f"{dataset}-0000[:{n}]"]


def frame(*rows):
    return pd.DataFrame(rows, columns=table.COLUMNS)


def job(dataset="cifar10", name="at", seed=0, evals=(CLEAN, PGD), arch="tiny_resnet", weights=None, **data):
    start = {"source": SOURCE} if arch == SOURCE.model.arch else {"weights": weights}
    spec = RunSpec(data=DataSpec(name=dataset, **data), model=ModelSpec(arch=arch), method=method(name),
                   optim=OptimSpec(), seed=seed, **start)
    return Job("transfer", spec, tuple(evals))


@pytest.fixture
def store(tmp_path):
    return Store("test", device="cpu", root=tmp_path)


def finish(store, job, masks, split="same"):
    """Put a finished run with these masks (by evaluation) into the store."""
    record = {"spec": json.loads(canonical_json(job.spec)), "split": split, "train_images": 9500}
    write_json(store.root / "runs" / f"{job.spec.hash}.json", record)
    stages = {f"{e.hash}/{e.attack_name}": np.array(mask, dtype=bool) for e, mask in masks.items()}
    write_npz(store.root / "masks" / f"{job.spec.hash}.npz", stages)


@pytest.mark.parametrize("attack, label", [
    ("none", "clean"), ("pgd20", "PGD-20"), ("pgd10x5", "PGD-10, 5 restarts"), ("apgd-ce", "APGD-CE"),
    ("apgd-ce+apgd-t", "APGD-CE + APGD-T"), ("apgd-ce+apgd-t+fab-t+square", "AutoAttack"),
    ("fab-t+square", "FAB-T + Square"),
])
def test_attack_labels(attack, label):
    """Only the whole standard suite is called AutoAttack."""
    assert report.attack_label(attack) == label


def test_number_formats():
    """Percent with interval, signed points without a negative zero, eps as k/255 (maximum norm) or plain (L2)."""
    assert report.percent(0.6234, 0.5921, 0.6529) == "62.3 [59.2, 65.3]"
    assert report.points(0.0123, -0.0004, 0.029) == "+1.2 [+0.0, +2.9]"
    assert report.points(-0.0123, -0.03, -0.001) == "-1.2 [-3.0, -0.1]"
    assert [report.eps_label(e / 255) for e in (2, 8, 0.5)] == ["2/255", "8/255", "0.5/255"]
    assert report.eps_label(0.5, "l2") == "0.5 (L2)"


def test_accuracy_table_by_hand():
    """Cells are percent with exact intervals (textbook values for 5, 0, 10 of 10), headers name attack, eps and n."""
    rows = frame(row(value=0.5), row(attack="pgd20", eps=8 / 255, value=0.0), row(name="twins_at", value=1.0))
    out = report.accuracy_table(rows)
    assert list(out.columns) == ["data set", "method", "seed", "clean (10 images)", "PGD-20 at 8/255 (10 images)"]
    assert out.values.tolist() == [["CIFAR-10", "AT", "0", "50.0 [18.7, 81.3]", "0.0 [0.0, 30.8]"],
                                   ["CIFAR-10", "TWINS-AT", "0", "100.0 [69.2, 100.0]", "not run"]]


def test_accuracy_table_shows_what_was_asked_for():
    """Lines follow the given data sets and methods, also where no row is yet; columns run clean, PGD by eps, parts."""
    rows = frame(row(attack="apgd-ce", eps=8 / 255), row(attack="pgd20", eps=8 / 255), row(attack="pgd20", eps=2 / 255),
                 row())
    out = report.accuracy_table(rows, datasets=["cub64", "cifar10"], methods=["trades", "at"])
    assert out["data set"].tolist() == ["CUB-200 (2010)"] * 2 + ["CIFAR-10"] * 2
    assert out["method"].tolist() == ["TRADES", "AT"] * 2
    assert [c.split(" (")[0] for c in out.columns[3:]] == ["clean", "PGD-20 at 2/255", "PGD-20 at 8/255",
                                                            "APGD-CE at 8/255"]
    assert (out.iloc[:3, 3:] == "not run").all(axis=None) and (out.iloc[3, 3:] != "not run").all()


def test_inner_stages_are_left_out():
    """Of each AutoAttack evaluation only the last stage shows; one attack measured twice shows where n is larger."""
    standard = "apgd-ce+apgd-t+fab-t+square"
    stages = [standard.rsplit("+", k)[0] for k in (3, 2, 1)] + [standard]
    rows = frame(row(), *(row(attack=a, eps=8 / 255, value=0.3, n=10) for a in stages),
                 *(row(attack=a, eps=8 / 255, value=0.4, n=20) for a in stages[:2]))
    out = report.accuracy_table(rows)
    assert list(out.columns[4:]) == ["APGD-CE + APGD-T at 8/255 (20 images)", "AutoAttack at 8/255 (10 images)"]
    assert out.iloc[0, 4].startswith("40.0 [") and out.iloc[0, 5].startswith("30.0 [")


def test_different_numbers_of_images():
    """Where data sets differ in n, the header gives the range and each cell its own n."""
    out = report.accuracy_table(frame(row(n=10), row("cub64", n=2000)))
    assert list(out.columns[3:]) == ["clean (10 to 2,000 images)"]
    assert out.iloc[:, 3].tolist() == ["50.0 [18.7, 81.3], n = 10", "50.0 [47.8, 52.2], n = 2,000"]


def test_seeds():
    """Several seeds: a line each over images, and the mean with Student's interval (60 +- 4.303 * 10 / sqrt 3)."""
    out = report.accuracy_table(frame(*(row(seed=s, value=v) for s, v in enumerate([0.5, 0.6, 0.7]))))
    assert out["seed"].tolist() == ["0", "1", "2", "mean of 3"]
    assert out.iloc[-1, -1] == "60.0 [35.2, 84.8]"
    assert out.iloc[0, -1] == "50.0 [18.7, 81.3]"


def test_same_table_from_file(tmp_path):
    """Rows written to CSV and read again give the same table."""
    rows = frame(row(value=1 / 3, n=9), row(attack="pgd20", eps=8 / 255, value=2 / 7, n=7))
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert report.accuracy_table(pd.read_csv(tmp_path / "rows.csv")).equals(report.accuracy_table(rows))


def test_no_rows_at_all():
    """Nothing run yet: tables are empty or say so, none fails."""
    assert report.accuracy_table(frame()).empty
    assert report.caption(frame()) == "No measurement is finished yet."
    assert report.estimates(frame()).empty


@pytest.mark.parametrize("rows, message", [
    (frame(row()).drop(columns=["attack"]), "expected rows with the columns .* none called attack"),
    (frame(row(run="a"), row(run="b", attack="pgd20")),
     "expected one run per data set, method and seed, got 2 for cifar10, at, 0"),
])
def test_refused_rows(rows, message):
    """Rows of another format and mixed studies are refused."""
    with pytest.raises(ValueError, match=message):
        report.accuracy_table(rows)


def test_caption():
    """The caption counts images per attack and says what the intervals are, for one seed and for several."""
    rows = frame(row(n=1000), row(attack="pgd20", eps=8 / 255, n=1000), row(attack="apgd-ce", eps=8 / 255, n=300))
    assert report.caption(rows) == ("Seed 0 only. Intervals: exact 95 % (Clopper-Pearson) over the test images "
                                    "(1,000 for clean, PGD-20; 300 for APGD-CE).")
    assert report.caption(frame(row(), row(seed=1))).startswith("Means over the seeds 0, 1. Intervals: 95 % (Student)")


# -- paired differences -----------------------------------------------------------------------------------------------
A = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
B = [1, 1, 1, 1, 0, 0, 1, 1, 0, 0]


def pair(store, dataset="cifar10", seed=0, a=A, b=B, split="same"):
    """A finished TWINS-AT run with mask a and a finished AT run with mask b."""
    jobs = [job(dataset, "at", seed), job(dataset, "twins_at", seed)]
    for j, mask in zip(jobs, (b, a), strict=True):
        finish(store, j, {CLEAN: mask, PGD: mask}, split=f"{split}")
    return jobs


def test_paired_rows(store):
    """Method minus baseline on the same images, with the interval of `stats`; the order of jobs does not matter."""
    jobs = pair(store)
    out = report.paired_rows(store, jobs)
    expected = paired_difference(np.array(A, bool), np.array(B, bool))
    assert out["method"].tolist() == ["twins_at"] * 2 and out["attack"].tolist() == ["none", "pgd20"]
    for found in out.itertuples():
        assert (found.value, found.low, found.high, found.n) == expected[:4]
        assert found.value == pytest.approx(0.1)
    assert report.paired_rows(store, jobs[::-1]).equals(out)


def test_paired_rows_not_run(store):
    """A planned comparison that is not finished is a line of NaN, "not run" in the table and counted in the reading."""
    jobs = [*pair(store), job("cub64", "at"), job("cub64", "twins_at"), job("tinyimagenet32", "natural", evals=[CLEAN])]
    finish(store, jobs[2], {CLEAN: A, PGD: A})
    out = report.paired_rows(store, jobs)
    assert out["value"].isna().tolist() == [False, False, True, True]
    shown = report.paired_table(out)
    assert shown["data set"].tolist() == ["CIFAR-10", "CUB-200 (2010)", "mean of 2 data sets"]
    assert (shown.iloc[1:, 3:] == "not run").all(axis=None)
    assert "2 comparisons not run" in report.reading(out)


def test_paired_rows_of_autoattack(store):
    """The last stage is compared, on the evaluation with the most images."""
    jobs = [job(name=name, evals=[PART]) for name in ("at", "twins_at")]
    for j, mask in zip(jobs, (B[:8], A[:8]), strict=True):
        finish(store, j, {PART: mask})
    (found,) = report.paired_rows(store, jobs).itertuples()
    assert (found.attack, found.n, found.value) == ("apgd-ce+apgd-t", 8, 1 / 8)


def test_paired_rows_refuses_other_images(store):
    """Runs on different splits are not the same images, even if as many."""
    jobs = pair(store)
    finish(store, jobs[0], {CLEAN: A, PGD: A}, split="another")
    with pytest.raises(ValueError, match="on the same images of cifar10, got the splits same and another"):
        report.paired_rows(store, jobs)


def test_paired_rows_refuses_two_studies(store):
    """Two runs for one data set, method and seed are not silently mixed."""
    with pytest.raises(ValueError, match="expected one run per data set, method and seed, got two for cifar10, at, 0"):
        report.paired_rows(store, [job(), job(train_images=100)])


def paired_frame(*rows):
    columns = "dataset method baseline seed metric threat eps attack n value low high".split()
    return pd.DataFrame([[d, "twins_at", "at", s, "clean_acc", "linf", 0.0, "none", 100, *v] for d, s, v in rows],
                        columns=columns)


def test_paired_table_by_hand():
    """The mean over data sets is plain, its distances to the limits are root sums of squares over k (3, 4 -> 5 / 2)."""
    out = report.paired_table(paired_frame(("cifar10", "0", (0.01, -0.02, 0.05)), ("cub64", "0", (0.03, -0.01, 0.06))))
    assert list(out.columns) == ["difference", "data set", "seed", "clean (100 images)"]
    assert out["difference"].unique().tolist() == ["TWINS-AT - AT"]
    assert out.iloc[:, 3].tolist() == ["+1.0 [-2.0, +5.0]", "+3.0 [-1.0, +6.0]", "+2.0 [-0.5, +4.5]"]
    assert out["data set"].iloc[-1] == "mean of 2 data sets"


def test_paired_table_has_a_mean_only_where_there_is_one():
    """A measurement on two of three data sets has its own line of means and leaves that of three empty."""
    three = paired_frame(*((d, "0", (0.01, -0.02, 0.05)) for d in ("cifar10", "cub64", "caltech64")))
    two = three[:2].assign(metric="robust_acc", eps=8 / 255, attack="pgd20")
    out = report.paired_table(pd.concat([three, two])).set_index("data set").iloc[:, 2:]
    assert out.loc["Caltech-101"].tolist() == ["+1.0 [-2.0, +5.0]", "not run"]
    assert [bool(cell) for cell in out.loc["mean of 3 data sets"]] == [True, False]
    assert [bool(cell) for cell in out.loc["mean of 2 data sets"]] == [False, True]


def test_paired_table_over_seeds():
    """Per data set, and for the mean over data sets, Student's interval over the seeds' differences."""
    rows = [(d, s, (v, v - 0.01, v + 0.01)) for d, base in (("cifar10", 0.0), ("cub64", 0.02))
            for s, v in (("0", base + 0.01), ("1", base + 0.02), ("2", base + 0.03))]
    out = report.paired_table(paired_frame(*rows)).set_index(["data set", "seed"]).iloc[:, -1]
    half = 4.302653 * 1.0 / math.sqrt(3)
    for name, mean in (("CIFAR-10", 2.0), ("CUB-200 (2010)", 4.0), ("mean of 2 data sets", 3.0)):
        assert out[name, "mean of 3"] == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def test_reading():
    """Counts data sets above 0 and intervals that exclude 0, both ways; ties are not "higher"."""
    out = report.reading(paired_frame(("a", "0", (0.02, 0.01, 0.03)), ("b", "0", (0.01, -0.01, 0.03)),
                                      ("c", "0", (0.0, -0.01, 0.01)), ("d", "0", (-0.02, -0.03, -0.01))))
    assert out == ("TWINS-AT against AT on the same test images (data sets, one seed): clean is higher in 2 of 4 "
                   "(interval above 0 in 1, below 0 in 1).")
    assert report.reading(paired_frame()) == ""


# -- reference and provenance -----------------------------------------------------------------------------------------
def test_reference_table(store):
    """Ours beside the public numbers, one line per method and source; what differs comes from spec, record and rows."""
    jobs = [job("caltech64", "trades"), job("caltech64", "twins_at")]
    for j in jobs:
        finish(store, j, {})
    rows = frame(row("caltech64", "trades"), row("caltech64", "trades", attack="pgd20", eps=8 / 255, value=0.3),
                 row("caltech64", "trades", attack="apgd-ce", eps=4 / 255), row("caltech64", "twins_at"))
    out = report.reference_table(rows, store, jobs)
    assert out["method"].tolist() == ["TRADES", "TRADES"]
    first, second = out.to_dict("records")
    assert (first["clean, ours"], first["clean, reference"]) == ("50.0 [18.7, 81.3]", "66.78")
    assert (first["PGD, ours"][:4], first["PGD, reference"]) == ("30.0", "47.76")
    assert (first["AutoAttack, ours"], first["AutoAttack, reference"]) == ("not run", "42.17")  # ours is at 4/255
    assert (second["PGD, reference"], second["AutoAttack, reference"]) == ("47.07 (sd 0.37)", "")
    for piece in ("Caltech-101 (there Caltech-256)", "9,500 training images", "tiny_resnet (there resnet50)",
                  "32 pixels (there 224)", "start Tiny-ImageNet, AT 8/255 (there ImageNet, AT 4/255)",
                  "clean on 10 images (there whole test set)",
                  "PGD-20 at 8/255 on 10 images (there PGD-10, whole test set)"):
        assert piece in first["what differs"].split("; "), piece


def test_reference_table_leaves_out_what_agrees(store):
    """What is the same is not listed, a set without counterpart has no line."""
    for file, differs in (("resnet50_linf_eps4.0.safetensors", ""), ("x.pt", "start x.pt (there ImageNet, AT 4/255); "),
                          (None, "start random weights (there ImageNet, AT 4/255); ")):
        same = job(arch="resnet50", image_size=224, weights=file and WeightsSpec(file=file, classes=1000))
        finish(store, same, {})
        rows = frame(row(), row("toy_target"), row("their_own_set"))
        (line,) = report.reference_table(rows, store, [same, job("toy_target")]).to_dict("records")
        assert line["what differs"] == f"9,500 training images; {differs}clean on 10 images (there number not stated)"
    assert report.reference_table(frame(row("toy_target")), store, [job("toy_target")]).empty


def test_provenance_table(store):
    """Seconds are summed per kind, each task once; changed trees are marked; unfinished tasks are counted."""
    jobs = [Job("transfer", SOURCE, (CLEAN,)), job(), job(name="trades")]
    entry = {"seconds": 1800.0, "device": "cpu", "commit": "a" * 40, "changed": False, "versions": {"torch": "2.15.0"}}
    for j in jobs[:2]:
        record = {Task(j.spec).kind: entry, Task(j.spec, CLEAN).kind: entry | {"seconds": 90.0, "changed": True}}
        write_json(store.root / "provenance" / f"{j.spec.hash}.json", record)
    out = report.provenance_table(store, jobs).set_index("work")
    assert out["tasks done"].to_dict() == {"training from random weights": "1 of 1", "fine-tuning": "1 of 2",
                                           "evaluation, clean": "2 of 3", "evaluation, PGD": "0 of 2", "all": "4 of 8"}
    assert out["hours"].to_dict() == {"training from random weights": "0.5", "fine-tuning": "0.5",
                                      "evaluation, clean": "0.05", "evaluation, PGD": "0", "all": "1.05"}
    assert out.loc["evaluation, clean", "commit"] == "aaaaaaa with changes"
    assert out.loc["all", "commit"] == "aaaaaaa, aaaaaaa with changes"
    assert out.loc["evaluation, PGD", ["device", "commit", "torch"]].tolist() == ["not run"] * 3
    assert out.loc["all", "torch"] == "2.15.0"


def test_markdown():
    """A header, a rule and one line per row, all of one width; bars in the text are escaped, nothing is lost."""
    text = report.to_markdown(pd.DataFrame({"a|b": ["x", "long text"], "n": [1, None]}))
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| a\\|b ") and set(lines[1]) == {"|", "-"}
    assert [c.strip() for c in lines[2].strip("|").split("|")] == ["x", "1.0"]
    assert [c.strip() for c in lines[3].strip("|").split("|")] == ["long text", ""]
