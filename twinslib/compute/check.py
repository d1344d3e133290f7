"""What is wrong with the images or weights that tasks need, said before any work."""

import logging
from collections.abc import Sequence

import torch

from ..attack import autoattack
from ..base import reference, stats
from ..data import packed as data_packed
from ..data import sets
from ..nets import heads, models, norms
from ..specs.choices import ARCHS
from ..specs.jobs import Task
from ..specs.run import DataSpec, RunSpec
from ..train import follow
from .networks import Networks

log = logging.getLogger(__name__)
FAR_BELOW = 0.03  # the upper end of its interval so far below the published accuracy is worth a warning


def check(networks: Networks, tasks: Sequence[Task]) -> None:
    """Raise, before any work, what is wrong with the images or weights that `tasks` need.

    Raises:
        FileNotFoundError: a packed set or pre-trained weights are missing.
        ValueError: a damaged set, an unknown class to leave out, more images asked for than there are, attacks that need
            more classes than there are, the best weights of a run that does not keep them, a network of others that is not
            there or does not do what the run needs, a start network that does not fit, or one whose head is kept and that is at
            chance.
    """
    wanted: dict[DataSpec, int] = {}
    for spec in {t.spec.weights: t.spec for t in tasks if t.spec.weights}.values():
        networks.source_of(spec)  # that it is there, before any image is looked for
    for task in tasks:
        if task.evaluation and task.evaluation.at == "best" and not task.spec.optim.keep_best:
            raise ValueError(f"expected keep_best in run {task.spec.hash} ({task.spec.method.name}), whose best weights are "
                             "to be evaluated, got none; set it under optim")
        images = task.evaluation.images if task.evaluation else 0
        wanted[task.spec.data] = max(images, wanted.get(task.spec.data, 0))
        if task.spec.method.source_weight and task.evaluation is None:
            _check_source(task.spec)
    for spec, images in wanted.items():
        packed = data_packed.load_packed(spec.name, spec.image_size)
        split = sets.make_split(packed, exclude=spec.exclude, train_images=spec.train_images,
                                    val_images=spec.val_images, seed=spec.split_seed)
        if images > len(split.test):
            raise ValueError(f"expected at most {len(split.test)} test images of {spec.name}, got {images}; "
                             "lower images in the evaluation")
        for task in (t for t in tasks if t.spec.data == spec):
            if task.evaluation and task.evaluation.kind == "autoattack":
                autoattack.check_attacks(task.evaluation.attacks, len(packed.class_names) - len(spec.exclude), spec.name)
            restat = getattr(task.evaluation, "restat_images", 0)
            if restat > len(split.train):
                raise ValueError(f"expected at most {len(split.train)} training images of {spec.name} as restat_images, got "
                                 f"{restat}; lower it in the certification")
            if task.spec.follow:
                follow.check_images(task.spec, len(split.train), len(split.test))
    for spec in {(t.spec.model, t.spec.method, t.spec.data): t.spec for t in tasks if t.spec.model.arch not in ARCHS}.values():
        _check_network(networks, spec)
    starts = {(t.spec.weights, t.spec.model, t.spec.keep_head and t.spec.data, networks.spare_head(t.spec)): t.spec
              for t in tasks if t.spec.weights}
    for spec in starts.values():
        if spec.keep_head:
            _check_start(networks, spec)
        else:
            networks.origin(spec)


def _check_network(networks: Networks, spec: RunSpec) -> None:
    """Build a network of others, and pass two images through it as a run does: there is such a network, it takes images of that
    size, has the wings and the head that are asked for, and gives logits."""
    classes, size = networks.data(spec.data).num_classes, spec.data.crop or spec.data.image_size
    model = networks._shell(spec)
    if spec.method.wings == "frozen":
        norms.freeze_statistics(model)
    with models.named(spec.model.arch, size), torch.no_grad(), torch.random.fork_rng(devices=[]):
        shape = tuple(model(torch.rand(2, 3, size, size)).shape)
    if shape != (2, classes):
        raise ValueError(f"expected logits of shape (2, {classes}) from {spec.model.arch}, got {shape}; let it end in as many "
                         "logits as num_classes says")
    if (spec.source or spec.weights) and not spec.keep_head:
        heads.find_head(model, size)


def _check_start(networks: Networks, spec: RunSpec) -> None:
    """Log how well a foreign network whose head is kept knows the run's images; refuse one at chance, and warn
    where it is far below what its publisher says."""
    data, start = networks.data(spec.data), networks.measure_start(spec, networks.start(spec))
    right, images, name = start["right"], start["images"], spec.weights.file
    interval = stats.clopper_pearson(right, images)
    hint = "check the order of its classes and its normalisation (mean and std of the model)"
    if interval.low <= 1 / data.num_classes:
        raise ValueError(f"expected a network that knows {spec.data.name} in {name}, got one at chance: "
                         f"{right} of {images} images right, with {data.num_classes} classes; {hint}, or leave keep_head out")
    says = f"start network {name}: {right} of {images} {start['of']} images of {spec.data.name} right ({right / images:.1%})"
    known = reference.published_network(name)
    published = spec.weights.accuracy or (known and known["clean_acc"])
    log.info("%s, normalised with mean %s and std %s", says, start["mean"], start["std"])
    if published and interval.high < published - FAR_BELOW:
        log.warning("%s, far below the published %.1f %%; %s", says, 100 * published, hint)


def _check_source(spec: RunSpec) -> None:
    source = spec.source.data
    try:
        packed = data_packed.load_packed(source.name, source.image_size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected the source images {source.name} for method {spec.method.name!r}, which trains "
                                f"on them too, got none; leave the method out or get them: {error}") from None
    classes = len(packed.class_names) - len(source.exclude)
    if (spec.method.source_classes or 0) > classes:
        raise ValueError(f"expected source_classes of at most {classes} for method {spec.method.name!r} "
                         f"({source.name}), got {spec.method.source_classes}")
