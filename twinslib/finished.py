"""Finished runs as ordinary networks: loading one by its hash, and exporting it for whoever has torchvision or timm only.

    python -m twinslib export 3688e3 robust.safetensors --preset small          # beside it robust.json and robust.md
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from . import cards
from .base.certified import certified_accuracy
from .base.errors import text
from .base.files import read_about, read_json
from .base.stats import clopper_pearson
from .compute import provenance
from .compute.given import bar, classes_of, pick_device, prepared
from .compute.networks import Networks
from .compute.worker import Worker
from .data import given
from .data.sources import SOURCES
from .nets import norms
from .nets.checkpoint import load_weights, tensor_hash
from .nets.models import Classifier
from .specs.jobs import Task
from .specs.measure import EvalSpec
from .specs.reading import from_dict
from .specs.run import RunSpec
from .store.store import Store
from .store.votes import load_votes

log = logging.getLogger(__name__)
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # on the card of a network that was certified without radii of its own


def load(run: str, preset: str = "small", *, train: bool = False, device: str | torch.device | None = None) -> nn.Module:
    """The network of a finished run, ordinary (of two wings the adaptive one), in eval mode; images in [0, 1] in, logits out.

    >>> import twinslib
    >>> twinslib.load("0123", preset="no such preset")
    Traceback (most recent call last):
    FileNotFoundError: expected finished runs of preset 'no such preset', got none; python -m twinslib sweep makes them

    Args:
        run: its hash, or as much of it as no other run begins with.
        train: train it again where its weights are not there (those of fine-tunes are not shipped), and what it starts from.
        device: None: CUDA where there is one.
    Raises:
        FileNotFoundError: no such preset, or no weights; the message says what to do.
        ValueError: no run or several begin so.
    """
    store = Store(preset)
    return norms.to_plain(_trained(store, _find(store, run), train, pick_device(device))).eval()


def export(network: nn.Module | str, file: str | Path, preset: str = "small", *, images: object = None,
           measured: Mapping[str, object] | None = None, train: bool = False, onnx: bool = False) -> list[Path]:
    """Write a network, or that of a finished run, as the ordinary one it is deployed as, and a card; returns the files.

    `file`, a .safetensors, has the tensor names of torchvision and timm, float32, without the normalisation, which the card
    gives: beside it, .json and .md with accuracies, provenance, of a run its spec and intervals, and the lines that load it. Of
    two wings the adaptive one is exported.

    >>> import tempfile, torchvision, twinslib
    >>> images = torch.arange(6144, dtype=torch.int32).remainder(256).to(torch.uint8).view(2, 3, 32, 32), [0, 1]
    >>> network = torchvision.models.resnet18(num_classes=2)
    >>> found = twinslib.robust_accuracy(network, images, attack="none")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = twinslib.export(network, f"{folder}/net.safetensors", images=images, measured={"clean": found})
    >>> [path.name for path in files]
    ['net.safetensors', 'net.json', 'net.md']

    Args:
        network: as `fine_tune` takes and returns it; or the hash of a run, or as much of it as no other run begins with.
        preset, train: of a run, see `load`.
        images: of a network, what it is for (as in `fine_tune`): size and names of the classes.
        measured: of a network, what the card says of it, such as {"PGD": robust_accuracy(network, images)}.
        onnx: also .onnx, of images in [0, 1], normalisation inside.
    Raises:
        FileNotFoundError, ValueError: as `load`; a file of another kind; the packages for ONNX are missing.
        FileExistsError: one of the other files is there and `file` is not, whose card it would be.
    """
    path = Path(file)
    cards.check_file(path, onnx)
    if isinstance(network, nn.Module):
        return _export(network, path, images, measured or {}, onnx)
    store = Store(preset)
    spec = _find(store, network)
    trained = _trained(store, spec, train, torch.device("cpu"))
    return cards.write(path, norms.to_plain(trained).eval(), spec.model, _card(store, spec, trained), onnx)


def _export(network: nn.Module, path: Path, images: object, measured: Mapping[str, object], onnx: bool) -> list[Path]:
    """Write a network of no run."""
    if images is None:
        raise ValueError("expected images, those that the network is for, got none; name the set, or give some of them")
    if not isinstance(measured, Mapping):
        raise TypeError(f"expected measured as a mapping from names to results, got {type(measured).__name__}")
    found = given.draw(images, 1)
    plain = prepared(network, None, None, torch.device("cpu"))
    if not isinstance(plain, Classifier):  # it normalises inside, or takes pixels as they are
        plain = Classifier(plain, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    size = found.x.shape[-1]
    classes = classes_of(plain, size)
    model = cards.described(plain, classes, size)
    names = list(found.class_names) if len(found.class_names) == classes else []
    about = f"{model.arch if model else type(plain.network).__name__}, {classes} classes" + f": {', '.join(names)}" * bool(names)
    card = {"about": about, "classes": classes, "class_names": names, "input": {"size": size},
            "measured": {what: str(value) for what, value in measured.items()},
            "provenance": provenance.commit() | {"versions": {p: provenance.version(p) for p in provenance.PACKAGES}}}
    return cards.write(path, plain, model, card, onnx)


def _find(store: Store, run: str) -> RunSpec:
    """The finished run of a store whose hash begins so."""
    text(run, "the hash of a run")
    names = sorted(path.stem for path in (store.root / "runs").glob("*.json"))
    if not names:
        raise FileNotFoundError(f"expected finished runs of preset {store.preset!r}, got none; python -m twinslib sweep makes "
                                "them")
    matches = [name for name in names if run and name.startswith(run)]
    if len(matches) != 1:
        raise ValueError(f"expected the hash of one of {len(names)} finished runs of {store.preset}, or its beginning, got "
                         f"{run!r}, with which {len(matches) or 'none'} begin{': ' * bool(matches)}{', '.join(matches[:5])}")
    return from_dict(RunSpec, read_json(store.root / "runs" / f"{matches[0]}.json")["spec"])


def _trained(store: Store, spec: RunSpec, train: bool, device: torch.device) -> nn.Module:
    """A run's network with its wings."""
    if store.weights_path(spec) is None:
        if not train:
            seconds = (store.provenance(Task(spec)) or {}).get("seconds")
            took = f", which took {seconds / 3600:.1f} h" if seconds else ""
            raise FileNotFoundError(f"expected the weights of run {spec.hash} of {store.preset}, got none, since those of "
                                    f"fine-tunes are not shipped; train it again{took}: load({spec.hash!r}, {store.preset!r}, "
                                    "train=True), or export --train")
        _train_again(Worker(store, device), spec)
    return Networks(store, device).trained(spec)


def _train_again(worker: Worker, spec: RunSpec) -> None:
    """Make the weights of a finished run again, after those of the runs that it starts from."""
    if spec.source is not None and worker.store.weights_path(spec.source) is None:
        _train_again(worker, spec.source)
    shipped = (worker.store.root / "weights" / f"{spec.hash}.json").exists()
    with worker.store.leases.hold(spec.hash, log.info), bar(str(Task(spec))) as on_step:
        if worker.store.weights_path(spec) is None:  # whoever was at it may have left them
            worker.do(Task(spec), ship=shipped, stop=lambda: False, on_step=on_step)


def _card(store: Store, spec: RunSpec, trained: nn.Module) -> dict:
    """What a reader of the file of a run wants to know, as plain values."""
    record, names = store.run(spec), store.root / "weights" / f"{spec.hash}.json"
    terms = SOURCES[spec.data.name].licence if spec.data.name in SOURCES else ""
    recorded = tensor_hash(load_weights(store.weights_path(spec))[0]) == record["weights"]
    start = (f"from a network trained by {spec.source.method.name} on {spec.source.data.name}" if spec.source else
             f"from {spec.weights.file}" if spec.weights else "from random weights")
    about = (f"{spec.model.arch}, {record['classes']} classes of {spec.data.name}, trained by {spec.method.name} {start}: run "
             f"{spec.hash} of the preset {store.preset} of twins")
    return {"about": about, "run": spec.hash, "preset": store.preset, "spec": record["spec"], "classes": record["classes"],
            "class_names": read_json(names).get("classes", []) if names.exists() else [], "terms": terms,
            "input": {"size": spec.data.crop or spec.data.image_size},
            "accuracies": _accuracies(store, spec) if recorded else [],
            "certified": _certified(store, spec, tensor_hash(trained.state_dict())[:16]),
            "weights_as_measured": recorded, "provenance": store.provenance(Task(spec)) or {}}


def _accuracies(store: Store, spec: RunSpec) -> list[dict]:
    """Of the network of the last epoch, one row for each attack that it met, with 95 % intervals."""
    found = [read_about(path)["measurement"] for path in sorted((store.root / "masks").glob(f"{spec.hash}-*.npz"))]
    rows = []
    for e in dict.fromkeys(from_dict(EvalSpec, values) for values in found):
        for stage, mask in (store.masks(spec, e) or {}).items() if e.at == "last" else ():
            value, low, high, n = clopper_pearson(int(mask.sum()), len(mask))
            rows.append({"attack": stage, "threat": e.threat, "eps": e.eps, "accuracy": value, "low": low, "high": high,
                         "images": n})
    return sorted(rows, key=lambda row: (row["threat"], row["eps"], -row["accuracy"]))


def _certified(store: Store, spec: RunSpec, model_hash: str) -> list[dict]:
    """Certified accuracies of exactly this network: none of those whose statistics were estimated again."""
    rows = []
    for votes in map(load_votes, sorted((store.root / "votes").glob(f"{spec.hash}-*.npz"))):
        if votes.model_hash == model_hash:
            for point in certified_accuracy(votes.certified(), votes.plan.radii or RADII):
                rows.append({"sigma": votes.plan.sigma, "alpha": votes.plan.alpha, "n": votes.plan.n, "radius": point.radius,
                             "accuracy": point.accuracy, "low": point.low, "high": point.high, "images": point.n})
    return rows
