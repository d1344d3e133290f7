"""A network as a file for whoever has torchvision or timm only, and its card: what it is, how accurate, how it is loaded."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save
from torch import nn

from .base.files import atomic_write, check_writable, seal_safetensors, write_json
from .nets.checkpoint import tensor_hash
from .nets.models import Cifar10ResNet, Classifier, SmallResNet, build
from .specs.choices import ARCHS
from .specs.run import ModelSpec

NORM = {"batch": "nn.BatchNorm2d", "layer": "lambda channels: nn.GroupNorm(1, channels)",
        "group": "lambda channels: nn.GroupNorm(max(g for g in range(1, 33) if channels % g == 0), channels)"}


def check_file(path: Path, onnx: bool) -> None:
    """Refuse a file of another kind, that cannot be written or whose card would replace another file, and ONNX where the packages
    of torch's exporter are missing."""
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a file that ends in .safetensors, got {path.name}")
    check_writable(path)
    beside = [path.with_suffix(suffix) for suffix in (".json", ".md", *[".onnx"] * onnx)]
    if not path.exists() and (others := [other.name for other in beside if other.exists()]):
        raise FileExistsError(f"expected room for the card beside {path.name}, got {', '.join(others)}; choose another name")
    missing = [package for package in ("onnx", "onnxscript") if onnx and importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"expected the packages of torch's ONNX exporter, got no {' and no '.join(missing)}; pip install "
                         f"{' '.join(missing)}, or leave ONNX out")


def write(path: Path, network: Classifier, model: ModelSpec | None, card: Mapping[str, object], onnx: bool) -> list[Path]:
    """Write the network's tensors, without the normalisation, and beside them the card as .json and .md, each whole or not.

    Args:
        model: how the network is made (`described`); None: not known.
        card: what it says, but for what follows from the network.
        onnx: also .onnx, of images in [0, 1], normalisation inside.
    """
    mean, std = ([round(v, 6) for v in values.flatten().tolist()] for values in (network.normalize.mean, network.normalize.std))
    state, size = plain_state(model, network.network), card["input"]["size"]
    given = {"range": [0, 1], "mean": mean, "std": std, "upsample": network.upsample}
    card = {"file": path.name} | card | {"input": card["input"] | given, "sha256": tensor_hash(state)}
    card["load"] = code(model, card["classes"], path.name, card["input"])
    meta = json.dumps({"run": card.get("run"), "preset": card.get("preset"), "mean": mean, "std": std})
    data = seal_safetensors(save(state, {"format": "pt", "meta": meta}))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))
    files = [path, path.with_suffix(".json"), path.with_suffix(".md")]
    write_json(files[1], card, digest=False)
    atomic_write(files[2], lambda temporary: temporary.write_text(markdown(card), encoding="utf-8"))
    if onnx:
        files.append(path.with_suffix(".onnx"))
        atomic_write(files[3], lambda temporary: torch.onnx.export(
            network, (torch.zeros(2, 3, size, size, dtype=torch.float32),), str(temporary), input_names=["image"],
            output_names=["logits"], dynamo=True, external_data=False, dynamic_shapes={"x": {0: "images"}}))
    return files


def plain_state(model: ModelSpec | None, network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's tensors on the CPU by the names of torchvision's ResNets, where it is one of ours: `blocks.3.conv1` is
    `layer2.1.conv1`."""
    stages = ARCHS[model.arch].options["blocks"] if model and isinstance(network, SmallResNet) else ()
    names = [f"layer{stage + 1}.{i}" for stage, blocks in enumerate(stages) for i in range(blocks)]
    state = {}
    for name, tensor in network.state_dict().items():
        room, _, rest = name.partition(".")
        if names and room == "blocks":
            number, _, rest = rest.partition(".")
            name = f"{names[int(number)]}.{rest}"
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def described(network: Classifier, classes: int, size: int) -> ModelSpec | None:
    """How a network on the CPU is made by its name in torchvision, in timm or here: made so, it has the same tensors and gives
    the same logits. None where no name does that."""
    state, side = network.network.state_dict(), network.upsample or size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.no_grad():
        logits = network.network.eval()(images)
    for model in _candidates(network.network):
        with torch.random.fork_rng(devices=[]):
            made = build(model.arch, classes, model.norm, model.width).float().eval()
        if {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in state.items()}:
            made.load_state_dict(state)
            with torch.no_grad():
                if torch.allclose(made(images), logits, rtol=1e-4, atol=1e-5 * logits.abs().max().item()):
                    return model
    return None


def _candidates(network: nn.Module) -> Iterator[ModelSpec]:
    """Networks that have the class of this one."""
    module = type(network).__module__
    if isinstance(network, SmallResNet | Cifar10ResNet):
        groups = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
        norm = "batch" if not groups else "layer" if groups == {1} else "group"
        kind, width = ("small", network.conv1.out_channels) if isinstance(network, SmallResNet) else ("cifar", None)
        yield from (ModelSpec(arch=name, norm=norm, width=width) for name, arch in ARCHS.items() if arch.kind == kind)
    elif module.startswith("torchvision."):
        names = torchvision.models.list_models(module=torchvision.models)
        yield from (ModelSpec(arch=f"torchvision/{name}", norm="own") for name in names
                    if torchvision.models.get_model_builder(name).__module__ == module)
    elif name := (getattr(network, "pretrained_cfg", None) or {}).get("architecture"):
        yield ModelSpec(arch=f"timm/{name}", norm="own")


def code(model: ModelSpec | None, classes: int, file: str, given: Mapping[str, object]) -> str:
    """Lines of Python that load the file and give logits for `images`, without this project where torchvision or timm have the
    network.

    Args:
        given: mean, std and upsample, on which side images are enlarged.
    """
    kind, _, options = ARCHS.get(model.arch if model else "", ("others", None, {}))
    library, _, name = model.arch.partition("/") if model else ("", "", "")
    norm = "" if model is None or model.norm in ("batch", "own") else ", norm_layer=norm"
    head = ["import torch", "from safetensors.torch import load_file", "from torch import nn"]
    define = [f"norm = {NORM[model.norm]}"] if kind == "small" or kind == "torchvision" and norm else []
    if kind == "small":
        width, blocks = model.width or options["width"], options["blocks"]
        head += ["from torchvision.models.resnet import BasicBlock, ResNet"]
        lines = [f"network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes={classes}{norm})",
                 f"network.inplanes, network.bn1, network.maxpool = {width}, norm({width}), nn.Identity()",
                 f"network.conv1 = nn.Conv2d(3, {width}, 3, {options['stem_stride']}, 1, bias=False)",
                 f"for stage, blocks in enumerate({(*blocks, *(0,) * (4 - len(blocks)))}):",
                 f"    layer = network._make_layer(BasicBlock, {width} * 2**stage, blocks, 1 + (stage > 0)) if blocks else None",
                 "    setattr(network, f'layer{stage + 1}', layer or nn.Identity())",
                 f"network.fc = nn.Linear({width * 2 ** (len(blocks) - 1)}, {classes})"]
    elif kind == "torchvision" or library == "torchvision" and not norm:
        head += ["from torchvision.models import get_model"]
        lines = [f"network = get_model({options.get('name', name)!r}, weights=None, num_classes={classes}{norm})"]
    elif library == "timm" and not norm:
        head += ["from timm import create_model"]
        lines = [f"network = create_model({name!r}, num_classes={classes})"]
    elif model:
        head += ["from twinslib.nets.models import build"]
        lines = [f"network = build({model.arch!r}, {classes}, {model.norm!r})"]
    else:
        lines = [f"network = ...  # what was exported, with {classes} classes"]
    side = given["upsample"]
    scaled = f"nn.functional.interpolate(images, size=({side}, {side}))" if side else "images"
    return "\n".join([
        *head, "", *define, *lines, f"network.load_state_dict(load_file({file!r}))",
        f"mean, std = (torch.tensor(v).view(3, 1, 1) for v in ({given['mean']}, {given['std']}))",
        f"logits = network.eval()(({scaled} - mean) / std)  # images: float32 (N, 3, S, S) in [0, 1]"])


def markdown(card: Mapping) -> str:
    """The card for readers."""
    def percent(row: dict) -> str:
        return f"{row['accuracy']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {row['images']}"

    lines = [f"# {card['file']}", "", f"{card['about']}.", ""]
    if not card.get("weights_as_measured", True):
        lines += ["The weights were trained again and are not those that were measured, so no accuracy is given.", ""]
    if card.get("measured"):
        lines += ["| measured | result |", "|---|---|", *(f"| {what} | {r} |" for what, r in card["measured"].items()), ""]
    if card.get("accuracies"):
        lines += ["| attack | accuracy | 95 % interval | test images |", "|---|---|---|---|"]
        for row in card["accuracies"]:
            radius = f"{row['eps'] * 255:.3g}/255" if row["threat"] == "linf" else f"{row['eps']:g}"
            under = "clean" if row["attack"] == "none" else f"{row['attack']}, {row['threat']} {radius}"
            lines.append(f"| {under} | {percent(row)} |")
        lines += ["", "Robust accuracy is an upper bound: a stronger attack can only lower it.", ""]
    if card.get("certified"):
        lines += ["| sigma | L2 radius | certified accuracy | 95 % interval | test images |", "|---|---|---|---|---|"]
        lines += [f"| {row['sigma']:g} | {row['radius']:g} | {percent(row)} |" for row in card["certified"]] + [""]
    lines += ["```python", card["load"], "```", ""]
    lines += [f"Training images: {card['terms']}.", ""] if card.get("terms") else []
    p = {"commit": "unknown", "device": "unknown", "seconds": 0, "versions": {}} | card["provenance"]
    made = f"with commit {p['commit'][:12]} of twins and torch {p['versions'].get('torch', 'unknown')}"
    lines.append(f"Trained {made} on {p.get('cpu') or p['device']}, in {p['seconds'] / 3600:.2f} h; the .json beside this file "
                 "has all settings." if "spec" in card else f"Written {made}.")
    return "\n".join(lines).rstrip() + "\n"
