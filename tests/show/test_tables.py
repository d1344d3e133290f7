"""Tables that every study has against calculations by hand, and where their numbers come from."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from tests import store_made
from twinslib.base import markdown
from twinslib.base.files import write_json, write_npz
from twinslib.evidence import pairs, public
from twinslib.evidence import rows as evidence_rows
from twinslib.show import origins, tables
from twinslib.specs import labels
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store.store import Store

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
    return pd.DataFrame(rows, columns=evidence_rows.COLUMNS)


def job(dataset="cifar10", name="at", seed=0, evals=(CLEAN, PGD), arch="tiny_resnet", weights=None, **data):
    start = {"source": SOURCE} if arch == SOURCE.model.arch else {"weights": weights}
    spec = RunSpec(data=DataSpec(name=dataset, **data), model=ModelSpec(arch=arch), method=method(name),
                   optim=OptimSpec(), seed=seed, **start)
    return Job("transfer", spec, tuple(evals))


@pytest.fixture
def store(tmp_path):
    return Store("test", root=tmp_path)


def finish(store, job):
    store_made.finish(store, job.spec, {}, train_images=9500)


def test_number_formats():
    """Percent with interval, signed points without a negative zero, eps as k/255 (maximum norm) or plain (L2); only the whole
    standard suite is called AutoAttack."""
    assert labels.percent(0.6234, 0.5921, 0.6529) == "62.3 [59.2, 65.3]"
    assert labels.points(0.0123, -0.0004, 0.029) == "+1.2 [+0.0, +2.9]"
    assert [labels.eps_label(e / 255) for e in (8, 0.5)] == ["8/255", "0.5/255"] and labels.eps_label(0.5, "l2") == "0.5 (L2)"
    names = {"none": "clean", "pgd10x5": "PGD-10, 5 restarts", "apgd-ce+apgd-t": "APGD-CE + APGD-T",
             "apgd-ce+apgd-t+fab-t+square": "AutoAttack", "fab-t+square": "FAB-T + Square"}
    assert {name: labels.attack_label(name) for name in names} == names


def test_pivot():
    """A line for each that was asked for, columns in the frame's order; what has no number says why, is not run, or is empty in a
    line of means; a mark follows its number."""
    columns = ["line", "column", "value", "low", "high", "absent", "mark"]
    found = pd.DataFrame([["a", "y", 0.5, 0.4, 0.6, "", " *"], ["a", "x", np.nan, np.nan, np.nan, "diverged", ""],
                          ["mean", "x", 0.25, -0.1, 1.1, "", ""]], columns=columns)
    lines = {"a": ("A",), "b": ("B",), "c": ("C",), "mean": ("mean of 2",)}
    out = tables.pivot(found, lines, ("who",), tables.within, {"c": "lost"})
    assert list(out.columns) == ["who", "y", "x"]
    assert out.values.tolist() == [["A", "50.0 [40.0, 60.0] *", "diverged"], ["B", "not run", "not run"], ["C", "lost", "lost"],
                                   ["mean of 2", "", "25.0 [0.0, 100.0]"]]


@pytest.mark.parametrize(("found", "text"), [
    ((2.156, 1.8, 2.59), "2.16 [1.80, 2.59]"), ((2.0, np.nan, np.nan), "2.00"), ((np.inf, np.nan, np.nan), "never"),
    ((np.nan, np.nan, np.nan), "undefined"), ((-0.001, -0.004, 0.0), "0.00 [0.00, 0.00]")])
def test_intervals(found, text):
    """Without an interval the value alone, no negative zero, words for what is no number."""
    assert tables.interval(found, "{:.2f}") == text


def test_accuracy_table_by_hand():
    """Cells are percent with exact intervals (textbook values for 5, 0, 10 of 10), headers name attack, eps and n."""
    rows = frame(row(value=0.5), row(attack="pgd20", eps=8 / 255, value=0.0), row(name="twins_at", value=1.0))
    out = tables.accuracy_table(rows)
    assert list(out.columns) == ["data set", "method", "seed", "clean (10 images)", "PGD-20 at 8/255 (10 images)"]
    assert out.values.tolist() == [["CIFAR-10", "AT", "0", "50.0 [18.7, 81.3]", "0.0 [0.0, 30.8]"],
                                   ["CIFAR-10", "TWINS-AT", "0", "100.0 [69.2, 100.0]", "not run"]]


def test_different_numbers_of_images():
    """Where data sets differ in n, the header gives the range and each cell its own n."""
    out = tables.accuracy_table(frame(row(n=10), row("cub64", n=2000)))
    assert list(out.columns[3:]) == ["clean (10 to 2,000 images)"]
    assert out.iloc[:, 3].tolist() == ["50.0 [18.7, 81.3], n = 10", "50.0 [47.8, 52.2], n = 2,000"]


def test_seeds():
    """Several seeds: a line each over images, and the mean with Student's interval (60 +- 4.303 * 10 / sqrt 3)."""
    out = tables.accuracy_table(frame(*(row(seed=s, value=v) for s, v in enumerate([0.5, 0.6, 0.7]))))
    assert out["seed"].tolist() == ["0", "1", "2", "mean of 3"]
    assert (out.iloc[-1, -1], out.iloc[0, -1]) == ("60.0 [35.2, 84.8]", "50.0 [18.7, 81.3]")
    with pytest.raises(ValueError, match="expected one run per data set, method and seed, got 2 for cifar10, at, 0"):
        tables.accuracy_table(frame(row(run="a"), row(run="b", attack="pgd20")))


def test_student():
    """Student's interval over seeds, also of logarithms; none of one seed or of times that are never reached."""
    half = 4.302653 * np.std([1, 2, 6], ddof=1) / math.sqrt(3)
    assert tables.student([1, 2, 6]) == pytest.approx((3, 3 - half, 3 + half))
    assert tables.student(np.log([1.0, 2.0, 4.0]), np.exp)[0] == pytest.approx(2)
    assert all(math.isnan(x) for values in ([1.5], [1.5, math.inf]) for x in tables.student(values)[1:])


def test_caption():
    """The caption counts images per attack and says what the intervals are, for one seed and for several."""
    rows = frame(row(n=1000), row(attack="pgd20", eps=8 / 255, n=1000), row(attack="apgd-ce", eps=8 / 255, n=300))
    assert tables.caption(rows) == ("Seed 0 only. Intervals: exact 95 % (Clopper-Pearson) over the test images "
                                    "(1,000 for clean, PGD-20; 300 for APGD-CE).")
    assert tables.caption(frame(row(), row(seed=1))).startswith("Means over the seeds 0, 1. Intervals: 95 % (Student)")
    assert tables.caption(frame()) == "No measurement is finished yet." and tables.accuracy_table(frame()).empty


# -- differences ---------------------------------------------------------------------------------------------
def test_paired_table():
    """Points with the interval, one line per comparison, data set and seed, no line of means."""
    lines = [["cifar10", "twins_at", "at", s, "clean_acc", "linf", 0.0, "none", 100, 0.01, -0.02, v] for s, v in
             (("0", 0.05), ("1", 0.06))]
    columns = ["dataset", "method", "baseline", "seed", *pairs.MEASURED, "n", "value", "low", "high"]
    out = tables.paired_table(pd.DataFrame(lines, columns=columns))
    assert list(out.columns) == ["difference", "data set", "seed", "clean (100 images)"]
    assert out.values.tolist() == [["TWINS-AT - AT", "CIFAR-10", "0", "+1.0 [-2.0, +5.0]"],
                                   ["TWINS-AT - AT", "CIFAR-10", "1", "+1.0 [-2.0, +6.0]"]]
    assert tables.paired_table(pd.DataFrame(columns=columns)).empty


def differences(*lines):
    """(dataset, method, seeds, value, p_holm) of clean accuracy on 100 images, with limits 1 point off."""
    columns = ["dataset", "method", "baseline", *pairs.MEASURED, "n", "seeds", "value", "low", "high", "p_value", "p_holm"]
    return pd.DataFrame([[d, m, "at", "clean_acc", "linf", 0.0, "none", 100, seeds, v, v - 0.01, v + 0.01, p, p]
                         for d, m, seeds, v, p in lines], columns=columns).assign(near=False)


def test_difference_table():
    """One line per comparison and data set, then the mean; a star from 5 % down; seeds as a range where measures differ."""
    found = differences(("cifar10", "twins_at", 3, 0.02, 0.05), ("cub64", "twins_at", 1, 0.03, 0.051),
                  ("mean", "twins_at", 1, 0.025, math.nan), ("cifar10", "distill", 2, -0.02, 0.001))
    attacked = found[:1].assign(metric="robust_acc", eps=8 / 255, attack="pgd20", seeds=2)
    out = tables.difference_table(pd.concat([found, attacked]))
    assert list(out.columns) == ["difference", "data set", "seeds", "clean (100 images)", "PGD-20 at 8/255 (100 images)"]
    assert out.iloc[:, :4].values.tolist() == [
        ["TWINS-AT - AT", "CIFAR-10", "2 to 3", "+2.0 [+1.0, +3.0] *"],
        ["TWINS-AT - AT", "CUB-200 (2010)", "1", "+3.0 [+2.0, +4.0]"],
        ["TWINS-AT - AT", "mean of data sets", "1", "+2.5 [+1.5, +3.5]"],
        ["distillation - AT", "CIFAR-10", "2", "-2.0 [-3.0, -1.0] *"]]
    assert out.iloc[0, 4] == "+2.0 [+1.0, +3.0] *" and out.iloc[1, 4] == out.iloc[3, 4] == "not run"


def test_mean_stays_empty_where_there_is_none():
    """A measurement on too few data sets has no mean: the cell is empty, not "not run"."""
    found = differences(*((d, "twins_at", 3, 0.02, p) for d, p in (("cifar10", 0.05), ("cub64", 0.1), ("mean", 1))))
    out = tables.difference_table(pd.concat([found, found[:1].assign(eps=8 / 255, attack="pgd20")]))
    assert out.iloc[:, 4].tolist() == ["+2.0 [+1.0, +3.0] *", "not run", ""]


# -- numbers of others -----------------------------------------------------------------------------------------
def test_reference_table(store):
    """Ours beside the public numbers, one line per method and source; what differs comes from spec, record and rows."""
    jobs = [job("caltech64", "trades"), job("caltech64", "twins_at")]
    for j in jobs:
        finish(store, j)
    rows = frame(row("caltech64", "trades"), row("caltech64", "trades", attack="pgd20", eps=8 / 255, value=0.3),
                 row("caltech64", "trades", attack="apgd-ce", eps=4 / 255), row("caltech64", "twins_at"))
    out = public.reference_table(rows, store, jobs)
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
        finish(store, same)
        rows = frame(row(), row("toy_target"), row("their_own_set"))
        (line,) = public.reference_table(rows, store, [same, job("toy_target")]).to_dict("records")
        assert line["what differs"] == f"9,500 training images; {differs}clean on 10 images (there number not stated)"
    assert public.reference_table(frame(row("toy_target")), store, [job("toy_target")]).empty


# -- what was chosen, and where it comes from -------------------------------------------------------------------------
def candidates(store, results, name="at", field="lr"):
    """Jobs of study "tuning" for values of `field`; results: value -> (clean, robust) validation accuracy, None if not run, or
    why it diverged."""
    jobs = []
    for value, result in results.items():
        changed = {"optim": OptimSpec(lr=value)} if field == "lr" else {"method": method(name, **{field: value})}
        jobs.append(Job("tuning", dataclasses.replace(job(name=name).spec, **changed), ()))
        path = f"{jobs[-1].spec.hash}.json"
        if isinstance(result, str):
            store_made.diverge(store, jobs[-1].spec, result)
        elif result:
            last = dict(zip(("val_clean_acc", "val_robust_acc"), result, strict=True))
            epochs = [{"epoch": 1, "val_clean_acc": 0.99, "val_robust_acc": 0.99}, {"epoch": 2, **last}, {"epoch": 3}]
            write_json(store.root / "runs" / path, {"spec": json.loads(canonical_json(jobs[-1].spec)), "val_images": 500,
                                                    "epochs": epochs})
    return jobs


@pytest.mark.parametrize(("results", "chosen"), [
    ({0.01: (0.8, 0.1), 0.03: (0.5, 0.42), 0.1: (0.45, 0.43)}, ["", "yes", ""]),
    ({0.01: (0.5, 0.3), 0.03: (0.4, 0.3), 0.1: (0.8, 0.4)}, ["", "", "yes, at an end of its grid"]),
    ({0.01: (0.5, 0.3), 0.03: (0.8, 0.4)}, ["", "yes"]),
    ({0.01: (0.8, 0.4), 0.03: (0.5, 0.3), 0.1: None}, ["", "", ""]),
    ({0.01: (0.4, 0.2), 0.03: (0.5, 0.3), 0.1: "loss is nan"}, ["", "yes", ""]),
], ids=["best mean", "upper end", "two values have no middle", "one missing", "one diverged"])
def test_choice(store, results, chosen):
    """An end of a grid of three is marked; nothing is chosen before all are done; a run that diverged loses and is called so."""
    out = origins.tuning_table(store, [*candidates(store, results), job(), job(seed=1)])
    assert out["chosen"].tolist() == chosen and out["candidate"].tolist() == [f"lr {lr:g}" for lr in results]
    for value, shown in zip(results.values(), out["clean, validation"], strict=True):
        assert shown == (f"{100 * value[0]:.1f}" if isinstance(value, tuple) else "diverged" if value else "not run")


def test_tuning_table_names_switches(store):
    """A switch of a method is named like a learning rate; without tuning the table is empty."""
    jobs = candidates(store, {0.3: None, 1.0: None}, name="distill", field="distill_weight")
    assert origins.tuning_table(store, jobs)["candidate"].tolist() == ["distill_weight 0.3", "distill_weight 1"]
    assert origins.tuning_table(store, [job()]).empty


def test_provenance_table(store):
    """Seconds are summed per kind, each task once; changed trees are marked; unfinished tasks are counted."""
    jobs = [Job("transfer", SOURCE, (CLEAN,)), job(), job(name="trades")]
    entry = {"seconds": 1800.0, "device": "cpu", "commit": "a" * 40, "changed": False, "versions": {"torch": "2.15.0"}}
    for j in jobs[:2]:
        store_made.prove(store, j.spec, **entry)
        about = {"provenance": entry | {"seconds": 90.0, "changed": True}}
        write_npz(store.path(Task(j.spec, CLEAN)), {"none": np.ones(3, bool)}, about)
    out = origins.provenance_table(store, jobs).set_index("work")
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
    text = markdown.to_markdown(pd.DataFrame({"a|b": ["x", "long text"], "n": [1, None]}))
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| a\\|b ") and set(lines[1]) == {"|", "-"}
    assert [c.strip() for c in lines[2].strip("|").split("|")] == ["x", "1.0"]
    assert [c.strip() for c in lines[3].strip("|").split("|")] == ["long text", ""]


def test_both_precisions_are_named(store):
    """Runs of two precisions are counted apart, what is not finished is not counted; nothing finished: not run."""
    jobs = [job(seed=seed) for seed in range(4)]
    assert origins.computed_in(store, jobs) == "not run"
    for j, precision in zip(jobs, ("bfloat16", "float32", "bfloat16"), strict=False):
        store_made.prove(store, j.spec, precision=precision)
    assert origins.computed_in(store, jobs) == "trained in bfloat16 (2) and float32 (1)"
    store_made.diverge(store, jobs[3].spec)
    assert origins.computed_in(store, jobs) == "trained in bfloat16 (2) and float32 (1); Diverged: AT, seed 3 (CIFAR-10)"
