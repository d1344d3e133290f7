"""The normalisation that a checkpoint brings: mean and std of its images, under whatever names its authors chose."""

import logging
import re
from collections.abc import Collection, Mapping

import torch

log = logging.getLogger(__name__)
MEAN = re.compile(r"(.*[._])?(mean|means|mu)")
STDS = ("std", "stds", "sd", "sds", "stdev", "sigma")
SETTINGS = ("hyper_parameters", "hparams", "config", "cfg", "args", "pretrained_cfg", "data_config")  # beside a state dict
State = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


def split_constants(state: Mapping[str, torch.Tensor], *, channels: int = 3,
                    own: Collection[str] = ()) -> tuple[State, Pair | None]:
    """(the other tensors, (mean, std) or None), both of shape (channels,), for pixels in [0, 1].

    The constants are a pair of tensors called mean and std (or mu and sigma, new_mean and new_std, ...), in any module,
    of one number or one per channel. Those for pixels in 0..255 are divided by 255.

    >>> split_constants({"mu": torch.tensor([127.5]), "sigma": torch.tensor([51.0]), "w": torch.ones(2)})[1]
    (tensor([0.5000, 0.5000, 0.5000]), tensor([0.2000, 0.2000, 0.2000]))

    Args:
        own: names that belong to the network itself.
    Raises:
        ValueError: several pairs that differ, or a std that is not positive.
    """
    pairs = {}
    for name in state:
        stem = MEAN.fullmatch(name)
        partners = (f"{stem[1] or ''}{std}" for std in STDS) if stem else ()
        partner = next((p for p in partners if p in state), None)
        if partner is None or not {state[name].numel(), state[partner].numel()} <= {1, channels}:
            continue
        if not any(name == other or name.endswith(f".{other}") for other in own):
            pairs[name, partner] = [state[n].to_dense().double().flatten().expand(channels) for n in (name, partner)]
    if not pairs:
        return dict(state), None
    (first, (mean, std)), *others = pairs.items()
    for names, values in others:
        if not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values, (mean, std), strict=True)):
            raise ValueError(
                f"expected one normalisation, got mean {_listed(mean)} and std {_listed(std)} in {first[0]}, mean "
                f"{_listed(values[0])} and std {_listed(values[1])} in {names[0]}; take out all but the network's")
    if not (torch.isfinite(mean) & torch.isfinite(std) & (std > 0)).all():
        raise ValueError(f"expected finite constants and a positive std of normalisation, got mean {_listed(mean)} "
                         f"and std {_listed(std)} in {first[0]}; use another checkpoint")
    if mean.max() > 1 or std.max() > 1:
        log.info("normalisation in %s is of pixels in 0..255; divided by 255", first[0])
        mean, std = mean / 255, std / 255
    constants = {name for pair in pairs for name in pair}
    return {name: tensor for name, tensor in state.items() if name not in constants}, (mean.float(), std.float())


def stand_beside(*levels: Mapping) -> State:
    """The constants among plain values and tensors that stand beside a state dict, or in settings that do, as "beside.mean"
    and "beside.std"; {} if there are none."""
    loose = {}
    settings = [level[name] for level in levels for name in SETTINGS if isinstance(level.get(name), dict)]
    for name, value in (item for level in (*levels, *settings) for item in level.items()):
        numbers = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, torch.Tensor):
            loose[str(name)] = value
        elif 0 < len(numbers) < 9 and all(type(v) in (int, float) and abs(v) < 1e9 for v in numbers):
            loose[str(name)] = torch.tensor(numbers, dtype=torch.float64)
    try:
        found = split_constants(loose)[1]
    except ValueError:  # statistics of something else
        found = None
    return {} if found is None else dict(zip(("beside.mean", "beside.std"), found, strict=True))


def check_constants(theirs: Pair, ours: Pair) -> None:
    """Refuse constants of a file that differ from those asked for by more than 0.001."""
    if any((a - b).abs().max() > 1e-3 for a, b in zip(theirs, ours, strict=True)):
        (mean, std), (my_mean, my_std) = (map(_listed, pair) for pair in (theirs, ours))
        raise ValueError(f"expected normalisation with mean {my_mean} and std {my_std}, as the model says, got mean "
                         f"{mean} and std {std} in the checkpoint; leave mean and std out to take the checkpoint's")


def _listed(values: torch.Tensor) -> list[float]:
    return [round(v, 4) for v in values.flatten().tolist()]
