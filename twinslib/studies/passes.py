"""How many image forwards a task needs.

Passes are counted per image in forwards (F): a PGD step is 2 F (gradient with respect to the input only), a training
pass 3 F. AutoAttack is counted as if 35 % of the images survived APGD-CE (our choice), so its time is a rough guess.
"""

import math

from ..specs.jobs import Task
from ..specs.run import RunSpec

SURVIVORS = 0.35
SEQUENTIAL, WHOLE = 0.15, 0.33  # share of the draws that the sequential test needs, as on small: stopped if wrong, or not
AUTOATTACK_FORWARDS = {"apgd-ce": 200, "apgd-dlr": 200, "apgd-t": 9 * 200, "fab": 11 * 100, "fab-t": 9 * 300,
                       "square": 5000}  # fab: with 10 classes


def forwards(task: Task, train_images: int) -> float:
    """Image forwards (F) that a task needs."""
    spec, e = task.spec, task.evaluation
    if e is None:
        replays = spec.method.replays  # of Free adversarial training, which has no attack besides
        attack = 2 * spec.attack.steps if spec.method.attacks and replays == 1 else 0
        if spec.method.source_weight:  # as many source images as target images
            attack += 3 + (2 * spec.source.attack.steps if spec.source.method.objective != "natural" else 0)
        attack += 3 * len(spec.method.inputs) if spec.method.awp_gamma else 0
        attack += 1 if max(spec.method.distill_weight, spec.method.feature_weight) else 0
        measured = math.ceil(spec.optim.epochs / spec.optim.val_every) if spec.optim.val_every else 0
        validation = measured * spec.data.val_images * (1 + (2 * spec.optim.val_steps if spec.method.attacks else 0))
        followed = _followed(spec) if spec.follow else 0.0
        return spec.optim.epochs * train_images * replays * (attack + 3 * len(spec.method.inputs)) + validation + followed
    if e.kind == "certify":
        return e.images * (e.n0 + e.n * ((SEQUENTIAL if e.stop_if_wrong else WHOLE) if e.radii else 1))
    if e.kind == "clean":
        return e.images
    if e.kind == "pgd":
        return e.images * e.restarts * 2 * e.steps
    return e.images * sum(n * (1 if i == 0 else SURVIVORS) for i, n in enumerate(AUTOATTACK_FORWARDS[a] for a in e.attacks))


def _followed(spec: RunSpec) -> float:
    """Image forwards of the measurements during a run."""
    f, epochs = spec.follow, spec.optim.epochs
    times = sum(e % f.every == 0 or e <= f.dense or e == epochs for e in range(epochs + 1))
    return (times * (f.train_images + f.test_images) + len(f.feature_epochs) * f.features) * (2 * f.steps + 1)
