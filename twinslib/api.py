"""Your own network and images in a few lines: fine-tune, measure under attack, certify.

All of it is the training loop, the attacks and the certifier of the experiments; here is only what their specs need to know of
networks and images that they did not make.
"""

import dataclasses
import hashlib
import inspect
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from .attack import autoattack
from .base.certified import Certified
from .base.errors import choose, each, integer, real, text
from .base.files import check_writable, refused, write_json
from .base.stats import clopper_pearson
from .certify import smoothing
from .compute.given import bar, check_labels, classes_of, pick_device, prepared
from .compute.networks import with_wings
from .compute.worker import CHECKED, evaluate_block
from .data import given, sets
from .data.packed import PackedSet
from .nets import arithmetic, heads, norms
from .nets.checkpoint import load_weights, save_weights, tensor_hash
from .nets.copies import tensors_of
from .nets.fold import FoldedCopy
from .specs import method as methods
from .specs.measure import CertifySpec, EvalSpec
from .specs.reading import canonical_json, from_dict, to_dict
from .specs.run import RunSpec
from .specs.schedules import SCHEDULES
from .specs.strength import STANDARD, parse
from .store.votes import join_votes
from .train import loop, retain

ANY = "torchvision/resnet18"  # stands where a spec names its network; a user's is named by the hash of its weights
PARTS, DRAWS = 50, 100_000  # most parts of a certification, as its progress is shown, and draws that make one worth while
Images = object  # as `given.read` takes them


def fine_tune(network: nn.Module, images: Images, method: str = "twins_at", *, epochs: int | None = None, lr: float = 0.003,
              batch_size: int = 128, schedule: str | None = None, weight_decay: float = 1e-5, eps: float = 8 / 255,
              threat: str = "linf", steps: int = 10, step_size: float | None = None, augment: str = "crop_flip",
              noise: float | Sequence[float] = (), validation: int | Images = 0, keep_best: bool = False,
              source: Images = None, num_classes: int | None = None, new_head: bool | None = None,
              mean: Sequence[float] | None = None, std: Sequence[float] | None = None, precision: str = "float32", seed: int = 0,
              folder: str | Path | None = None, device: str | torch.device | None = None, **switches: object) -> nn.Module:
    """A fine-tuned copy of a classifier, an ordinary network in eval mode; the given one is unchanged.

    The network takes images in [0, 1] and normalises them inside; or `mean` and `std` say how, and the copy does. All its weights
    train, by SGD with momentum 0.9 and a method of the papers: "twins_at" and "twins_trades" (Liu et al., CVPR 2023), which need
    batch norm, "at", "trades", "aft" (arXiv 2012.13628), "distill", "l2sp", "natural", "linear_probe" or another of
    `specs.method.METHODS`. Of two wings the adaptive one is returned.

    >>> import twinslib
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    >>> images, labels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8), np.arange(20) % 2
    >>> tuned = twinslib.fine_tune(network, (images, labels), "twins_at", epochs=1, batch_size=10, steps=2, twins_weight=0.4)
    >>> tuned(torch.rand(1, 3, 8, 8, device=tuned[3].weight.device)).shape
    torch.Size([1, 2])

    Args:
        images: see `given.read`; of a packed set the training images. Each is read once; `augment` is applied here.
        method: its switches, such as twins_weight or trades_beta, may follow as further arguments.
        epochs: None: 60, or 10 for "aft" and its variants.
        lr, schedule: peak rate and its course (`specs.schedules`); schedule None: the method's, mostly "piecewise".
        eps, step_size: radius and step of PGD in [0, 1] pixels; step_size None: 2.5 eps / steps.
        threat: "linf" or "l2".
        augment: "none", "crop", "crop_flip" or "resized_crop_flip".
        noise: standard deviation of Gaussian noise in [0, 1] pixels, or several levels, for method "natural".
        validation: so many images to hold out, or images; accuracy on them is logged and kept after each epoch.
        keep_best: return the network of the epoch that was most robust on them.
        source: images of the task that the network comes from, for "joint" and "joint_uot".
        num_classes: None: those of the data set, where it names them, else the largest label and one.
        new_head: give it a fresh last layer; None: where it has another number of classes.
        precision: "bfloat16": training in it where the hardware has it.
        folder: keeps checkpoints, rows of the epochs and weights under a hash of all that decides them, but for the code of the
            network's own classes. The same call goes on where it was killed, bit for bit on a CPU unless the network draws random
            numbers itself (dropout), or returns what is finished.
        device: None: CUDA where there is one. The result stays there.
    Raises:
        ValueError, TypeError: an argument that cannot be, images or a network that do not fit, wings without batch norm.
        Diverged: loss or weights are no longer finite.
    """
    own = [*inspect.signature(fine_tune).parameters][3:-1]
    for name in switches:
        choose(name, [*own, *(f.name for f in dataclasses.fields(methods.MethodSpec)[1:])], "argument of fine_tune")
    chosen, device = methods.method(_told_apart(method), **switches), pick_device(device)
    data, called = _device_set(images, validation, num_classes, device)
    start, size, classes = prepared(network, mean, std, device), data.train_x.shape[-1], data.num_classes
    outputs = classes_of(start, size)
    new_head = (outputs != classes or chosen.source_weight > 0) if new_head is None else new_head
    if not new_head and outputs != classes:
        raise ValueError(f"expected a network of {classes} classes with new_head=False, got one of {outputs}")
    if not any(isinstance(module, _BatchNorm) for module in start.modules()) and chosen.wings not in ("single", "split"):
        raise ValueError(f"expected a network with batch norm for method {method!r}, which keeps its statistics, got "
                         f"{type(network).__name__} without; take a method that does not, such as at, trades or l2sp")
    schedule, epochs = schedule or _schedule(method), _epochs(method) if epochs is None else epochs
    eps, steps, levels = real(eps, "eps"), integer(steps, "steps", 0), each(real)(np.atleast_1d(noise), "noise")
    step_size = (2.5 * eps / max(steps, 1) or 2 / 255) if step_size is None else step_size
    common = {"model": {"arch": ANY}, "attack": {"threat": threat, "eps": eps, "step_size": step_size, "steps": steps},
              "optim": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
                        "schedule": schedule, "milestones": (0.5, 5 / 6) if schedule == "piecewise" else (),
                        "precision": precision}}
    weights = f"{type(network).__name__}-{_hashes(start)}"
    if chosen.source_weight:
        if source is None:
            raise ValueError(f"expected source for method {method!r}, images of the task that the network comes from, got none")
        source_data, source_called = _device_set(source, 0, outputs, device)
        described = {"name": f"{source_called}-{weights}", "image_size": source_data.train_x.shape[-1], "augment": augment}
        origin = {"source": {"data": described, "method": methods.method("at"), **common}}
    else:
        source_data, origin = None, {"weights": {"file": weights, "classes": outputs}}
    spec = from_dict(RunSpec, {
        "data": {"name": called, "image_size": size, "augment": augment, "val_images": len(data.val_y)}, "method": chosen,
        "noise": {"sigmas": levels} if levels else None, "keep_head": not new_head, "seed": seed, **origin, **common,
        "optim": {**common["optim"], "keep_best": keep_best}})
    if chosen.source_classes:
        source_data = retain.nearest_classes(start, source_data, data, chosen.source_classes)
    model = heads.replace_head(start, classes, image_size=size, seed=spec.seed) if new_head else norms.to_plain(start)
    model = _trained(spec, with_wings(spec, model), data, device, folder, start=start if chosen.needs_origin else None,
                     source=source_data)
    return norms.to_plain(model).to(memory_format=torch.contiguous_format).requires_grad_(True).eval()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RobustAccuracy:
    """Share of images that are classified correctly whatever an attack of radius eps does, an upper bound of the true one.

    Args:
        value, low, high: fraction, and its 95 % interval over images (Clopper-Pearson).
        mask: bool (N,), True where an image is right and stands. index: int64 (N,), numbers of the images as given.
        checks: what must hold for the number to be believed (`autoattack.checks`), name to passed; empty without an attack.
    """

    value: float
    low: float
    high: float
    mask: np.ndarray
    index: np.ndarray
    attack: str
    threat: str
    eps: float
    checks: dict[str, bool]

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        radius = f"{self.eps * 255:.3g}/255" if self.threat == "linf" else f"{self.eps:g}"
        under = "clean" if self.attack == "none" else f"under {self.attack}, {self.threat} {radius}"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}) of {len(self.mask)} images, {under}"


def robust_accuracy(network: nn.Module, images: Images, *, eps: float = 8 / 255, threat: str = "linf", attack: str = "pgd20",
                    steps: int | None = None, step_size: float | None = None, n: int | None = None, batch_size: int = 250,
                    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, seed: int = 0,
                    device: str | torch.device | None = None) -> RobustAccuracy:
    """Accuracy under attack, in float32 and eval mode; the network is unchanged, and takes images as in `fine_tune`.

    >>> import twinslib
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> _ = nn.init.zeros_(network[1].weight), nn.init.constant_(network[1].bias[0].detach(), 9)
    >>> images = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2), [0, 0, 0, 1]
    >>> twinslib.robust_accuracy(network, images, attack="none")
    75.0% (19.4% to 99.4%) of 4 images, clean

    Args:
        images: see `given.read`; of a packed set the test images.
        eps: radius in [0, 1] pixels ("linf") or as a length ("l2").
        attack: "pgd20" or "pgd50x5" (steps, restarts; an image counts if it stands at every iterate), "autoattack" (the
            standard suite), some of its parts such as "apgd-ce+apgd-t", or "none".
        steps: of PGD, in place of attack. step_size: None: 2.5 eps / steps.
        n: so many images, always the same; None: all.
        batch_size: part of what decides the random starts.
        device: None: CUDA where there is one.
    Raises:
        ValueError, TypeError: an argument that cannot be, images or a network that do not fit.
        Diverged: logits, or all gradients, are not finite.
    """
    device, found = pick_device(device), given.draw(images, n)
    attack = text(attack, "attack") if steps is None else f"pgd{integer(steps, 'steps', 1)}"
    asked = parse("+".join(STANDARD) if attack == "autoattack" else attack)
    e = from_dict(EvalSpec, {"kind": "clean" if asked.kind == "none" else asked.kind, "images": len(found.y), "threat": threat,
                             "eps": eps, "step_size": step_size, "steps": asked.steps or 20, "restarts": asked.restarts,
                             "attacks": asked.parts or STANDARD, "batch_size": batch_size, "seed": seed})
    copy, x, y = FoldedCopy(prepared(network, mean, std, device)), found.x, found.y
    classes = classes_of(copy, x.shape[-1])
    check_labels(y, classes)
    checks = {}
    if e.kind == "autoattack":
        autoattack.check_attacks(e.attacks, classes)
    if e.kind != "clean":
        checks = autoattack.checks(copy, x[:CHECKED].to(device), y[:CHECKED], eps=e.eps, step_size=e.step, steps=e.steps,
                                   threat=e.threat, seed=e.seed)
        if failed := [name for name, passed in checks.items() if not passed]:
            warnings.warn(f"robust accuracy may be too high, since of the checks on {min(CHECKED, len(y))} images these did not "
                          f"pass: {', '.join(failed)} (twinslib.attack.autoattack.checks)", stacklevel=2)
    blocks = [slice(a, a + e.batch_size) for a in range(0, len(y), e.batch_size)]
    masks = [evaluate_block(e, copy, x[part].to(device), y[part], number)[e.attack_name]
             for number, part in enumerate(tqdm(blocks, desc=e.attack_name, unit="block", disable=None))]
    mask, rows = torch.cat(masks).numpy(), np.argsort(found.index)
    value, low, high, _ = clopper_pearson(int(mask.sum()), len(mask))
    return RobustAccuracy(value, low, high, mask[rows], found.index[rows], e.attack_name, threat, e.eps, checks)


def certify(network: nn.Module, images: Images, *, sigma: float, n: int = 100_000, n0: int = 100, alpha: float = 0.001,
            radii: Sequence[float] | None = None, max_images: int | None = None, file: str | Path | None = None,
            precision: str = "float32", batch_size: int | None = None, mean: Sequence[float] | None = None,
            std: Sequence[float] | None = None, seed: int = 0, device: str | torch.device | None = None) -> Certified:
    """L2 radii within which the network, smoothed by Gaussian noise, keeps its answer, each true with probability at least
    1 - alpha (Cohen et al. 2019); the network takes images as in `fine_tune`.

    >>> import twinslib
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> _ = nn.init.zeros_(network[1].weight), nn.init.constant_(network[1].bias[0].detach(), 9)
    >>> images = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2), [0, 0, 0, 1]
    >>> found = twinslib.certify(network, images, sigma=0.5, n=1000)
    >>> found
    75.0% certified at radius 0, 75.0% at 0.5, 75.0% at 1, of 4 images (mean radius 0.924, abstained 0)
    >>> found.accuracy(0.25).low > 0.19
    True

    Args:
        images: see `given.read`; of a packed set the test images.
        sigma: of the noise, in [0, 1] pixels; a network that was trained with it (`fine_tune(..., noise=sigma)`) certifies more.
        n, n0: draws that bound a class's probability, and that choose the class.
        radii: stop drawing for an image as soon as these are settled (a sequential test; other radii then count less).
        max_images: so many images, always the same; None: all.
        file: .npz that keeps the votes; the same call goes on where it was killed, and another alpha needs no new draws
            (`store.votes.load_votes`).
        precision: "bfloat16": a network in it, where the hardware has it, is what is certified.
        device: None: CUDA where there is one.
    Returns:
        rows in the order of the images; `index` tells their numbers.
    Raises:
        ValueError, TypeError: an argument that cannot be, images or a network that do not fit, a file of other votes.
    """
    device, found = pick_device(device), given.draw(images, max_images)
    radii = () if radii is None else each(real)(radii, "radii")
    spec = from_dict(CertifySpec, {"sigma": sigma, "images": len(found.y), "n": n, "n0": n0, "alpha": alpha,
                                   "radii": radii, "precision": precision, "seed": seed,
                                   "spending": "linear" if radii else None})
    model = prepared(network, mean, std, device)
    check_labels(found.y, classes_of(model, found.x.shape[-1]))
    precision = arithmetic.chosen(precision, device)
    copy = FoldedCopy(model, dtype=arithmetic.dtype(precision))
    parts = np.array_split(np.argsort(found.index), min(PARTS, len(found.y), 1 + len(found.y) * spec.n // DRAWS))
    votes = [smoothing.collect_votes(copy, found.x[rows].to(device), spec.plan, labels=found.y[rows], indices=found.index[rows],
                                     seed=seed, precision=precision, model_hash=tensor_hash(model.state_dict())[:16],
                                     batch_size=batch_size, file=file)
             for rows in tqdm(parts, desc=f"sigma {spec.sigma:g}", unit="part", disable=None)]
    return join_votes(votes).certified()


def _trained(spec: RunSpec, model: nn.Module, data: sets.DeviceSet, device: torch.device, folder: str | Path | None,
             **more: object) -> nn.Module:
    """`model` after the run, or as the folder has it where the run is finished."""
    weights = None if folder is None else Path(folder) / f"{spec.hash}.safetensors"
    if weights is not None and weights.exists():
        state, meta = load_weights(weights)
        if meta.get("spec") != canonical_json(spec):
            raise refused(weights, f"the weights of run {spec.hash}", "those of another one")
        model.load_state_dict(state)
        return model
    if weights is not None:
        check_writable(weights)
    checkpoint = weights and weights.with_suffix(".ckpt")
    with bar(f"{spec.method.name}, seed {spec.seed}") as on_step, torch.autocast(device.type, enabled=False):
        history = loop.fit(spec, model, data, device=device, checkpoint=checkpoint, on_step=on_step, **more)
    if history.best:
        model.load_state_dict(history.best)
    if weights is not None:
        write_json(weights.with_suffix(".json"), {"spec": to_dict(spec), "epochs": history.epochs})
        save_weights(weights, model, {"spec": canonical_json(spec), "precision": history.precision})
        checkpoint.unlink(missing_ok=True)
    return model


def _device_set(images: Images, validation: int | Images, num_classes: int | None,
                device: torch.device) -> tuple[sets.DeviceSet, str]:
    """Images on the device as training takes them, and a name that is theirs alone."""
    found, counted = given.read(images), isinstance(validation, int | np.integer)
    other = found._replace(x=found.x[:0], y=found.y[:0]) if counted else given.draw(validation)
    if other.x.shape[2:] != found.x.shape[2:]:
        raise ValueError(f"expected validation images of {found.x.shape[-1]} pixels, as those to train on have, got "
                         f"{other.x.shape[-1]}; resize them")
    largest = int(torch.cat((found.y, other.y)).max())
    if num_classes is None and not found.class_names and found.y.min() > 0:
        raise ValueError(f"expected labels from 0 on, got {int(found.y.min())}..{largest}; number the classes from 0, or say "
                         "num_classes")
    classes = max(len(found.class_names), largest + 1) if num_classes is None else integer(num_classes, "num_classes", 1)
    check_labels(torch.tensor(largest), classes)
    names = found.class_names if len(found.class_names) == classes else tuple(map(str, range(classes)))
    packed = PackedSet("images", found.x, found.y, other.x, other.y, names)
    held_out = integer(validation, "validation", 0) if counted else 0
    data = sets.to_device(packed, sets.make_split(packed, val_images=held_out), device)
    if len(other.y):
        data = dataclasses.replace(data, val_x=data.test_x, val_y=data.test_y)
    return data, f"{images if isinstance(images, str) else 'images'}-{packed.fingerprint}"


def _hashes(network: nn.Module) -> str:
    """Tell networks apart by all that they compute with but the code of their classes: their layers, as ReLU from SiLU, and
    whatever these hold, also numbers and tensors that no state dict has, such as constants of a normalisation."""
    modules, usual = dict(network.named_modules()), vars(nn.Module()).keys()
    tensors = {f"{name}.{key}": tensor for name, module in modules.items() for _, key, tensor in tensors_of(module)}
    held = [(name, key, sorted(map(repr, value)) if isinstance(value, set | frozenset) else value)
            for name, module in modules.items() for key, value in vars(module).items()
            if key not in usual and not isinstance(value, torch.Tensor)]
    layers = re.sub(r" at 0x[0-9a-f]+", "", f"{network!r} {held!r}")
    return f"{hashlib.sha256(layers.encode()).hexdigest()[:8]}-{tensor_hash(tensors)[:16]}"


def _schedule(method: str) -> str:
    """The one in the name of a method; slow start and fast decay for the other adversarial fine-tunings."""
    tail = method.partition("_")[2]
    return tail if tail in SCHEDULES else "slow_fast" if method.startswith("aft") else "piecewise"


def _epochs(method: str) -> int:
    return 10 if method.startswith("aft") else 60


def _told_apart(method: str) -> str:
    """Refuse names that stand for another start, rate or attack of a method: those are arguments here."""
    def key(name: str) -> tuple:
        return dataclasses.replace(methods.METHODS[name], name=""), _schedule(name), _epochs(name)

    same = next(name for name in methods.METHODS if key(name) == key(choose(method, methods.METHODS, "method")))
    if same != method:
        raise ValueError(f"expected a method that is told apart by its switches or its schedule, got {method!r}, which is "
                         f"{same!r} from another start, at another rate or on other images; say these by the arguments")
    return method
