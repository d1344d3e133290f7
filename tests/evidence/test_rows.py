"""Rows from a store that is written by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from tests import store_made
from twinslib.evidence import rows as evidence_rows
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import METHODS
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store

SPEC = RunSpec(data=DataSpec(name="cifar10"), model=ModelSpec(arch="tiny_resnet"), method=METHODS["at"], optim=OptimSpec())
CLEAN = EvalSpec(kind="clean", images=4)
PGD = EvalSpec(kind="pgd", images=4, eps=8 / 255)
WEAK = EvalSpec(kind="pgd", images=4, eps=2 / 255)
AUTO = EvalSpec(kind="autoattack", images=2, eps=8 / 255, attacks=("apgd-ce", "apgd-t"))
JOB = Job("transfer", SPEC, (CLEAN, PGD, AUTO))
MASKS = {CLEAN: {"none": [1, 1, 1, 0]}, PGD: {"pgd20": [1, 0, 0, 0]}, WEAK: {"pgd20": [1, 1, 0, 0]},
         AUTO: {"apgd-ce": [1, 1], "apgd-ce+apgd-t": [1, 0]}}


def finish(store: Store, spec: RunSpec = SPEC, masks: dict = MASKS, checks: dict | None = None) -> None:
    """Leave what a finished run and its evaluations leave."""
    store_made.finish(store, spec, masks, entries={e: {"checks": checks or {}} for e in masks},
                      split="cifar10-0123", epochs=[{"epoch": 1, "train_loss": 2.0},
                                                    {"epoch": 2, "train_loss": 1.0, "val_clean_acc": 0.5}])


def test_rows(store: Store) -> None:
    """One row per stage of each finished evaluation, in order, with everything that the number stands on."""
    finish(store)
    rows = evidence_rows.rows(store, [JOB])
    assert list(rows.columns) == evidence_rows.COLUMNS
    assert rows[["metric", "attack", "eps", "value", "n", "images"]].values.tolist() == [
        ["clean_acc", "none", 0.0, 0.75, 4, "cifar10-0123[:4]"],
        ["robust_acc", "pgd20", 8 / 255, 0.25, 4, "cifar10-0123[:4]"],
        ["robust_acc", "apgd-ce", 8 / 255, 1.0, 2, "cifar10-0123[:2]"],
        ["robust_acc", "apgd-ce+apgd-t", 8 / 255, 0.5, 2, "cifar10-0123[:2]"]]
    same = {"claim": "transfer", "preset": "small", "dataset": "cifar10", "arch": "tiny_resnet", "norm": "batch",
            "method": "at", "seed": 0, "threat": "linf", "run": SPEC.hash}
    assert all((rows[column] == value).all() for column, value in same.items())


def test_only_what_is_finished_has_rows(store: Store) -> None:
    """Missing runs and evaluations, and masks whose run record is gone, are left out of rows and epochs."""
    other = Job("transfer", replace(SPEC, seed=1), (CLEAN, PGD))
    assert len(evidence_rows.rows(store, [JOB, other])) == len(evidence_rows.epochs(store, [JOB, other])) == 0
    finish(store, masks={CLEAN: MASKS[CLEAN]})
    assert evidence_rows.rows(store, [JOB, other])[["seed", "metric"]].values.tolist() == [[0, "clean_acc"]]
    (store.root / "runs" / f"{SPEC.hash}.json").unlink()
    assert len(evidence_rows.rows(store, [JOB])) == len(evidence_rows.epochs(store, [JOB])) == 0


def test_unsettled_jobs_have_no_rows(store: Store) -> None:
    """A run that only stands in for another is in no table, also where it is finished; the jobs around it are."""
    finish(store)
    waiting = replace(JOB, settled=False)
    assert len(evidence_rows.rows(store, [waiting])) == len(evidence_rows.epochs(store, [waiting])) == 0
    pd.testing.assert_frame_equal(evidence_rows.rows(store, [waiting, JOB, waiting]), evidence_rows.rows(store, [JOB]))
    pd.testing.assert_frame_equal(evidence_rows.epochs(store, [waiting, JOB]), evidence_rows.epochs(store, [JOB]))
    finish(store, checks={"logits": False})
    assert all(evidence_rows.sanity(store, [waiting]).values()) and not all(evidence_rows.sanity(store, [JOB]).values())


@pytest.mark.parametrize(("masks", "checks", "failing"), [
    (MASKS, {}, None),
    (MASKS, {"norm_kept": True, "logits": False}, "recorded checks"),
    (MASKS | {PGD: {"pgd20": [1, 0, 0, 1]}}, {}, "no image is right under attack and wrong without"),
    (MASKS | {PGD: {"pgd20": [1, 1, 1, 0]}}, {}, "accuracy falls"),
    (MASKS | {AUTO: {"apgd-ce": [1, 1], "apgd-ce+apgd-t": [1, 1]}}, {}, "AutoAttack"),
    ({CLEAN: MASKS[CLEAN]}, {}, None),
    ({}, {}, None),
], ids=["all well", "check failed", "wrong but robust", "rising", "weak AutoAttack", "clean only", "none"])
def test_sanity(store: Store, masks: dict, checks: dict, failing: str | None) -> None:
    """Each way in which robust numbers contradict each other fails its own line and no other."""
    finish(store, masks=masks, checks=checks)
    found = evidence_rows.sanity(store, [Job("transfer", SPEC, (CLEAN, WEAK, PGD, AUTO))])
    assert len(found) == 4 and all(type(holds) is bool for holds in found.values())
    assert [name for name, holds in found.items() if not holds] == [name for name in found if failing and failing in name]
