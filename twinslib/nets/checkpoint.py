"""Files of weights and of training states: written whole or not at all, read without running anything in them.

Weights are safetensors with JSON metadata; other people's are read by `foreign`. A training state holds tensors and
plain types.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ..base.errors import shown, some
from ..base.files import atomic_write, check_safetensors, read_bytes, seal_safetensors, write_bytes
from ..specs.choices import IMAGENET_MEAN, IMAGENET_STD
from . import foreign
from .constants import check_constants, split_constants
from .pickles import LONGEST
from .placing import Placing, fitting, place

log = logging.getLogger(__name__)
BUFFERS = ("normalize.mean", "normalize.std")
PLAIN_TYPES = (type(None), bool, int, float, str)


def save_weights(path: str | Path, model: nn.Module, meta: Mapping, *, half: bool = False) -> None:
    """Store a network's state as safetensors, atomically; `load_weights` gives it back with `meta`. `meta`: anything JSON can
    hold, such as the spec the weights come from. `half`: parameters of two or more dimensions are stored in float16 (unless too
    large for it); norm layers, biases, statistics and buffers keep their precision."""
    large = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2} if half else set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name in large and (tensor.abs() <= torch.finfo(torch.float16).max).all():
            tensor = tensor.half()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)  # safetensors refuses shared memory
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    data = seal_safetensors(save(tensors, {"meta": text}))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_weights(path: str | Path, *, key: str = "") -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors by name, on the CPU, smaller floats widened to float32; and our metadata, {} where there is none.

    The file may be ours, or of others in any form that `foreign.read` knows: safetensors or torch whatever its name,
    with the state dict in wrappers, beside pickled objects (which are not run), or in a folder.

    Args:
        key: which of several state dicts in a file.
    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or foreign file, one of ours that is damaged, no network in it, or several and no key.
    """
    state, meta = foreign.read(Path(path), key)
    if meta:
        check_safetensors(Path(path))
    for name in state:
        if len(name) > LONGEST or not name.isprintable():
            raise ValueError(f"expected names of tensors in {Path(path).name}, got {shown(name)}; use another file")
    small = {n for n, tensor in state.items() if tensor.is_floating_point() and tensor.dtype.itemsize < 4}
    return {name: tensor.float() if name in small else tensor for name, tensor in state.items()}, meta


def load_into(model: nn.Module, state: Mapping[str, torch.Tensor], *, prefix: str = "", head: str = "") -> nn.Module:
    """Copy tensors into a network, in place, and return it; nothing is copied if anything is wrong.

    Names need not be equal: the prefix that wrappers have added is found, also for the network inside a `Classifier`,
    and tensors without it (of a loss, of a second network) are left out, with a warning. Step counters of batch norm may
    be missing.

    Constants of the input's normalisation go into the `Classifier`'s first layer where that has ImageNet's, the default;
    where it has others, they have to be those. Without constants in the state, as where they belong to a data pipeline,
    the model's stay.

    Args:
        prefix: of the tensors to take, where several networks are in one state.
        head: name of a layer that may be missing, as in a backbone; it then stays as it is.
    Raises:
        ValueError: another architecture, another number of classes, other normalisation, several networks, or tensors that
            are no finite floating-point numbers.
    """
    for name in (name for name, tensor in state.items() if tensor.device.type == "meta"):
        raise ValueError(f"expected weights, got a tensor without values in {name}; take the file that holds them")
    expected = model.state_dict()
    buffers = BUFFERS if BUFFERS[0] in expected else ()
    inner = "network." if buffers and all(n.startswith("network.") for n in expected if n not in buffers) else ""
    ours = {name.removeprefix(inner): name for name in expected if name not in buffers}
    channels = expected[BUFFERS[0]].numel() if buffers else 3
    state, constants = split_constants(state, channels=channels, own=ours)
    placing = place(state, ours, prefix=prefix, head=head.removeprefix(inner))
    _refuse_rivals(state, placing)
    theirs = {ours[name]: state[other] for name, other in placing.names.items()}
    for name, tensor in theirs.items():
        if tensor.is_quantized or (expected[name].is_floating_point() and not tensor.is_floating_point()):
            raise ValueError(f"expected floating-point weights, got {str(tensor.dtype).removeprefix('torch.')} in {name}; "
                             "take the network before it was quantised or converted")
    unexpected = placing.unexpected or (placing.outside if placing.missing else [])
    if placing.missing or unexpected or not theirs:
        raise ValueError(f"expected the tensors of {type(getattr(model, 'network', model)).__name__}, got another "
                         f"architecture: {some([ours[name] for name in placing.missing])} missing, "
                         f"{some(unexpected)} unexpected; make the model these weights were saved from{_fits(state)}")
    wrong = [name for name, tensor in theirs.items() if tensor.shape != expected[name].shape]
    if wrong:
        raise ValueError(_shape_message(wrong, expected, theirs, _fits(state)))
    found = {name: tensor if tensor.layout == torch.strided else tensor.to_dense() for name, tensor in theirs.items()}
    if broken := not_finite(model, found):
        raise ValueError(f"expected finite weights, got NaN or infinity in {broken}; use an earlier checkpoint")
    if constants and buffers:
        found |= _normalisation(constants, [expected[name] for name in buffers])
    elif constants:
        log.warning("normalisation of the checkpoint left out, since %s has none: mean %s, std %s",
                    type(model).__name__, *(values.tolist() for values in constants))
    if placing.prefix != inner:
        log.info("%s: %d tensors taken behind the prefix %r, %d left", type(getattr(model, "network", model)).__name__,
                 len(theirs), placing.prefix, len(state) - len(theirs))
    if placing.outside:
        log.warning("left out, without the prefix %r of the network: %s", placing.prefix, some(placing.outside))
    expected.update(found)  # with the versions of its modules, which some of them ask for
    model.load_state_dict(expected)
    return model


def not_finite(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor of a network's state with NaN or infinity; -infinity may stand in a buffer, as in masks of attention."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    return next((name for name, tensor in state.items() if tensor.is_floating_point() and not (
        torch.isfinite(tensor) | ((tensor == -torch.inf) & (name not in weights))).all()), None)


def tensor_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, hex; the same for equal states whatever file or device they are in.

    (The bytes of a torch file depend on more than its tensors.)

    >>> tensor_hash({"w": torch.ones(2)})[:8]
    '2b95105f'
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_training(path: str | Path, state: Mapping, *, run: str) -> None:
    """Store a training state atomically, with the hash of the run it belongs to. `state`: tensors and None, bool, int, float, str
    in dicts, lists and tuples: what `load_training` accepts. TypeError: anything else in it, such as a NumPy number."""
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(Path(path), buffer.getvalue(), {"run": run})


def load_training(path: str | Path, *, run: str) -> dict:
    """The state stored by `save_training`, on the CPU. FileNotFoundError: no such file. ValueError: a damaged or foreign file, or
    the state of another run."""
    return foreign.load_torch(read_bytes(Path(path), {"run": run}), Path(path))


def _refuse_rivals(state: Mapping[str, torch.Tensor], placing: Placing) -> None:
    """Refuse to choose between two networks, unless they are one twice."""
    for rival in placing.rivals:
        theirs = {name: state[f"{rival}{name}"] for name in placing.names if f"{rival}{name}" in state}
        if not foreign.same({name: state[placing.names[name]] for name in theirs}, theirs):
            listed = ", ".join(repr(p) for p in (placing.prefix, *placing.rivals))
            raise ValueError(f"expected one network, got several behind the prefixes {listed}; "
                             "choose one by prefix, under weights")


def _normalisation(constants: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What goes into the first layer: the file's constants in place of the default, else ours if they agree."""
    flat = [values.flatten().cpu() for values in ours]
    default = all(values.tolist() == torch.tensor(known).tolist()
                  for values, known in zip(flat, (IMAGENET_MEAN, IMAGENET_STD), strict=True))
    if not default:
        check_constants(constants, flat)
        return {}
    if not all(torch.equal(a, b) for a, b in zip(constants, flat, strict=True)):
        log.info("normalisation of the checkpoint in place of ImageNet's: mean %s, std %s",
                 *(values.tolist() for values in constants))
    return {name: values.view_as(our) for name, values, our in zip(BUFFERS, constants, ours, strict=True)}


def _fits(state: Mapping[str, torch.Tensor]) -> str:
    known = " or ".join(fitting(state))
    return f" ({known})" if known else ""


def _shape_message(wrong: list[str], expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor],
                   fits: str) -> str:
    first = wrong[0]
    want, got = tuple(expected[first].shape), tuple(found[first].shape)
    head = first.rpartition(".")[0]
    if {name.rpartition(".")[0] for name in wrong} == {head} and want[1:] == got[1:] and len(want) in (1, 2):
        return (f"expected a head of {want[0]} classes in {head}, got {got[0]}; make the model with {got[0]} "
                "classes, load, then replace_head")
    return (f"expected {first} of shape {want}, got {got} ({len(wrong)} tensors differ); make the model these "
            f"weights were saved from{fits}")


def _check_plain(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN_TYPES:
        raise TypeError("expected tensors and plain types in a checkpoint, got "
                        f"{type(value).__module__}.{type(value).__name__} at {where}; convert it, for example with "
                        "float()")
