"""Finished runs as ordinary networks: loading one by its hash, and exporting it for whoever has torchvision or timm only.

    python -m twinslib export 3688e3 robust.safetensors --preset small          # beside it robust.json and robust.md
"""

import importlib.util
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from .base.certified import certified_accuracy
from .base.files import atomic_write, read_about, read_json, read_npz, seal_safetensors, write_json
from .base.stats import clopper_pearson
from .compute.given import bar, pick_device
from .compute.networks import Networks
from .compute.worker import Worker
from .data.sources import SOURCES
from .nets import norms
from .nets.checkpoint import load_weights, tensor_hash
from .specs.choices import ARCHS
from .specs.jobs import Task
from .specs.measure import EvalSpec
from .specs.reading import from_dict
from .specs.run import RunSpec
from .store.store import Store
from .store.votes import load_votes

log = logging.getLogger(__name__)
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # on the card of a network that was certified without radii of its own
OTHERS = ("others", None, {})  # a network by the name of its library, or of a function
NORM = {"batch": "nn.BatchNorm2d", "layer": "lambda channels: nn.GroupNorm(1, channels)",
        "group": "lambda channels: nn.GroupNorm(max(g for g in range(1, 33) if channels % g == 0), channels)"}


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


def export(run: str, file: str | Path, preset: str = "small", *, train: bool = False, onnx: bool = False) -> list[Path]:
    """Write a finished run's network as the ordinary network it is deployed as, and a card; returns the files.

    `file`, a .safetensors, has the tensor names of torchvision and timm, float32, without the normalisation, which the card
    gives: beside it, .json and .md with the spec, accuracies with intervals, provenance, and the lines that load it. Of two wings
    the adaptive one is exported.

    Args:
        run, preset, train: see `load`.
        onnx: also .onnx, of images in [0, 1], normalisation inside.
    Raises:
        FileNotFoundError, ValueError: as `load`; a file of another kind; the packages for ONNX are missing.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a file that ends in .safetensors, got {path.name}")
    missing = [package for package in ("onnx", "onnxscript") if onnx and importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"expected the packages of torch's ONNX exporter, got no {' and no '.join(missing)}; pip install "
                         f"{' '.join(missing)}, or leave --onnx out")
    store = Store(preset)
    spec = _find(store, run)
    trained = _trained(store, spec, train, torch.device("cpu"))
    network = norms.to_plain(trained).eval()
    state = plain_state(spec, network.network)
    card = _card(store, spec, path.name, network, trained)
    card["sha256"] = tensor_hash(state)
    meta = json.dumps({"run": spec.hash, "preset": preset, "mean": card["input"]["mean"], "std": card["input"]["std"]})
    data = seal_safetensors(save(state, {"format": "pt", "meta": meta}))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))
    files = [path, path.with_suffix(".json"), path.with_suffix(".md")]
    write_json(files[1], card, digest=False)
    atomic_write(files[2], lambda temporary: temporary.write_text(_markdown(card), encoding="utf-8"))
    if onnx:
        image = torch.rand(2, 3, card["input"]["size"], card["input"]["size"])
        files.append(path.with_suffix(".onnx"))
        atomic_write(files[3], lambda temporary: torch.onnx.export(
            network, (image,), str(temporary), input_names=["image"], output_names=["logits"], dynamo=True, external_data=False,
            dynamic_shapes={"x": {0: "images"}}))
    return files


def plain_state(spec: RunSpec, network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a run's network by the names of torchvision's ResNets, where it is one: `blocks.3.conv1` is `layer2.1.conv1`."""
    kind, _, options = ARCHS.get(spec.model.arch, OTHERS)
    stages = options["blocks"] if kind == "small" else ()
    names = [f"layer{stage + 1}.{i}" for stage, blocks in enumerate(stages) for i in range(blocks)]
    state = {}
    for name, tensor in network.state_dict().items():
        room, _, rest = name.partition(".")
        if names and room == "blocks":
            number, _, rest = rest.partition(".")
            name = f"{names[int(number)]}.{rest}"
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def _find(store: Store, run: str) -> RunSpec:
    """The finished run of a store whose hash begins so."""
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
        worker.do(Task(spec), ship=shipped, stop=lambda: False, on_step=on_step)


def _card(store: Store, spec: RunSpec, file: str, network: nn.Module, trained: nn.Module) -> dict:
    """What a reader of the file wants to know, as plain values."""
    record, names = store.run(spec), store.root / "weights" / f"{spec.hash}.json"
    mean, std = ([round(v, 6) for v in values.flatten().tolist()] for values in (network.normalize.mean, network.normalize.std))
    terms = SOURCES[spec.data.name].licence if spec.data.name in SOURCES else ""
    recorded = tensor_hash(load_weights(store.weights_path(spec))[0]) == record["weights"]
    return {"file": file, "run": spec.hash, "preset": store.preset, "spec": record["spec"], "classes": record["classes"],
            "class_names": read_json(names).get("classes", []) if names.exists() else [], "terms": terms,
            "input": {"size": spec.data.crop or spec.data.image_size, "range": [0, 1], "mean": mean, "std": std,
                      "upsample": spec.model.upsample},
            "accuracies": _accuracies(store, spec) if recorded else [],
            "certified": _certified(store, spec, tensor_hash(trained.state_dict())[:16]),
            "weights_as_measured": recorded, "provenance": store.provenance(Task(spec)) or {},
            "load": _code(spec, record["classes"], file, mean, std)}


def _accuracies(store: Store, spec: RunSpec) -> list[dict]:
    """Of the network of the last epoch, one row for each attack that it met, with 95 % intervals."""
    found = [read_about(path)["measurement"] for path in sorted((store.root / "masks").glob(f"{spec.hash}-*.npz"))]
    earlier = store.root / "masks" / f"{spec.hash}.npz"
    if earlier.exists():
        found += [json.loads(str(value)) for name, value in read_npz(earlier).items() if name.endswith("/spec")]
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


def _code(spec: RunSpec, classes: int, file: str, mean: list[float], std: list[float]) -> str:
    """Lines of Python that load the file and give logits for `images`, without this project where torchvision has the network."""
    kind, _, options = ARCHS.get(spec.model.arch, OTHERS)
    norm = "" if spec.model.norm == "batch" else ", norm_layer=norm"
    lines = ["import torch", "from safetensors.torch import load_file", "from torch import nn", "",
             *([f"norm = {NORM[spec.model.norm]}"] if kind in ("torchvision", "small") else [])]
    if kind == "torchvision":
        lines[3:4] = ["from torchvision.models import get_model", ""]
        lines += [f"network = get_model({options['name']!r}, weights=None, num_classes={classes}{norm})"]
    elif kind == "small":
        width, blocks = spec.model.width or options["width"], options["blocks"]
        lines[3:4] = ["from torchvision.models.resnet import BasicBlock, ResNet", ""]
        lines += [f"network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes={classes}{norm})",
                  f"network.inplanes, network.bn1, network.maxpool = {width}, norm({width}), nn.Identity()",
                  f"network.conv1 = nn.Conv2d(3, {width}, 3, {options['stem_stride']}, 1, bias=False)",
                  f"for stage, blocks in enumerate({(*blocks, *(0,) * (4 - len(blocks)))}):",
                  f"    layer = network._make_layer(BasicBlock, {width} * 2**stage, blocks, 1 + (stage > 0)) if blocks else None",
                  "    setattr(network, f'layer{stage + 1}', layer or nn.Identity())",
                  f"network.fc = nn.Linear({width * 2 ** (len(blocks) - 1)}, {classes})"]
    else:
        lines[3:4] = ["from twinslib.nets.models import build", ""]
        lines += [f"network = build({spec.model.arch!r}, {classes}, {spec.model.norm!r})"]
    side = spec.model.upsample
    scaled = f"nn.functional.interpolate(images, size=({side}, {side}))" if side else "images"
    lines += [f"network.load_state_dict(load_file({file!r}))",
              f"mean, std = (torch.tensor(v).view(3, 1, 1) for v in ({mean}, {std}))",
              f"logits = network.eval()(({scaled} - mean) / std)  # images: float32 (N, 3, S, S) in [0, 1]"]
    return "\n".join(lines)


def _markdown(card: dict) -> str:
    """The card for readers."""
    def percent(row: dict) -> str:
        return f"{row['accuracy']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {row['images']}"

    spec, source = card["spec"], card["spec"].get("source", {})
    start = (f"from a network trained by {source['method']['name']} on {source['data']['name']}" if source else
             f"from {spec['weights']['file']}" if "weights" in spec else "from random weights")
    lines = [f"# {card['file']}", "", f"{spec['model']['arch']}, {card['classes']} classes of {spec['data']['name']}, trained by "
             f"{spec['method']['name']} {start}: run {card['run']} of the preset {card['preset']} of twins.", ""]
    if not card["weights_as_measured"]:
        lines += ["The weights were trained again and are not those that were measured, so no accuracy is given.", ""]
    if card["accuracies"]:
        lines += ["| attack | accuracy | 95 % interval | test images |", "|---|---|---|---|"]
        for row in card["accuracies"]:
            radius = f"{row['eps'] * 255:.3g}/255" if row["threat"] == "linf" else f"{row['eps']:g}"
            under = "clean" if row["attack"] == "none" else f"{row['attack']}, {row['threat']} {radius}"
            lines.append(f"| {under} | {percent(row)} |")
        lines += ["", "Robust accuracy is an upper bound: a stronger attack can only lower it.", ""]
    if card["certified"]:
        lines += ["| sigma | L2 radius | certified accuracy | 95 % interval | test images |", "|---|---|---|---|---|"]
        lines += [f"| {row['sigma']:g} | {row['radius']:g} | {percent(row)} |" for row in card["certified"]] + [""]
    lines += ["```python", card["load"], "```", ""]
    lines += [f"Training images: {card['terms']}.", ""] if card["terms"] else []
    p = {"commit": "unknown", "device": "unknown", "seconds": 0, "versions": {}} | card["provenance"]
    lines.append(f"Trained with commit {p['commit'][:12]} and torch {p['versions'].get('torch', 'unknown')} on "
                 f"{p.get('cpu') or p['device']}, in {p['seconds'] / 3600:.2f} h; the .json beside this file has all settings.")
    return "\n".join(lines).rstrip() + "\n"
