"""The command `convert`: weights of others as one safetensors file, without the objects that were pickled beside them."""

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `convert`."""
    parser = commands.add_parser("convert", allow_abbrev=False, help="store weights of others as safetensors; nothing in them is "
                                 "run")
    parser.add_argument("file", type=Path, help="a file, or a folder with one")
    parser.add_argument("out", type=Path, help="the safetensors file to be made")
    parser.add_argument("--key", default="", help="which of several state dicts, such as state_dict_ema")
    parser.set_defaults(func=_convert)


def _convert(args: argparse.Namespace) -> int:
    import torch
    from safetensors.torch import save

    from ..base.files import atomic_write
    from .checkpoint import load_weights
    from .placing import fitting

    if args.out.suffix != ".safetensors" or args.out.exists():
        raise ValueError(f"expected a new file NAME.safetensors, got {str(args.out)!r}; choose another name")
    state, _ = load_weights(args.file, key=args.key)
    odd = [name for name, tensor in state.items() if tensor.layout != torch.strided or tensor.is_meta]
    if odd:
        raise ValueError(f"expected ordinary tensors in {args.file.name}, got a sparse or empty one in {odd[0]}; "
                         "use the file as it is")
    data = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()})
    atomic_write(args.out, lambda path: path.write_bytes(data))
    of = " or ".join(fitting(state)) or "no network of ours by name"
    print(f"{args.out}: {len(state)} tensors, {len(data):,} bytes; of {of}")
    return 0
