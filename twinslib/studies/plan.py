"""The plan of a notebook: its jobs at a preset, and what was asked for in words."""

import functools
from collections.abc import Callable, Sequence

from ..base.errors import choose
from ..specs.jobs import Job, Plan
from ..specs.run import RunSpec
from .finetuning import finetuning
from .followed import followed, rates
from .presets import chosen, file_name, is_own, numbers
from .smoothing import smoothing
from .transfer import transfer


def settings(jobs: Sequence[Job]) -> list[dict]:
    """What was asked for, one line per data set, network, schedule and training attack, for display; numbers straight from the
    specs."""
    lines = {}
    for job in jobs:
        s = job.spec
        key = (s.data.name, s.data.train_images, job.ship and s.method.name, s.model.arch, s.model.width, s.optim.epochs,
               s.optim.schedule, s.optim.weight_decay, _attack_in_words(s))
        line = lines.setdefault(key, {
            "data set": s.data.name, "role": "start network" if key[2] else "target",
            "training images": s.data.train_images or f"all but {s.data.val_images}",
            "network": s.model.arch + (f", width {s.model.width}" if s.model.width else ""),
            "pixels": s.model.upsample or s.data.crop or s.data.image_size, "epochs": s.optim.epochs,
            "batch": s.optim.batch_size, "lr": [], "weight decay": s.optim.weight_decay,
            "schedule": s.optim.schedule, "precision": s.optim.precision,
            "training attack": key[-1],
            "λ": [], "methods": [], "seeds": []})
        weights = [s.method.twins_weight] if s.method.wings == "twins" else []
        for column, values in (("λ", weights), ("lr", [s.optim.lr]), ("methods", [s.method.name]), ("seeds", [s.seed])):
            line[column] += [value for value in values if value not in line[column]]
    lists = {"λ": sorted, "lr": sorted, "methods": list, "seeds": list}
    return [line | {c: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in order(line[c]))
                    for c, order in lists.items()} for line in lines.values()]


def _attack_in_words(spec: RunSpec) -> str:
    if not spec.method.attacks:
        return "none"
    a, replays = spec.attack, spec.method.replays
    radius = f"{a.threat} " + (f"{a.eps * 255:.3g}/255" if a.threat == "linf" else f"{a.eps:.3g}")
    warm = f", over the first {100 * a.eps_warmup:g} % from 0" if a.eps_warmup else ""
    return (f"free, {replays} replays" if replays > 1 else f"PGD-{a.steps}") + f", {radius}{warm}"


STUDIES: dict[str, Callable[..., list[Job]]] = {"01": transfer, "02": rates,
                                                "03": functools.partial(followed, study="overfitting"),
                                                "04": functools.partial(smoothing, study="norms"),
                                                "05": functools.partial(smoothing, study="certified"), "06": finetuning}


def plan(preset: str, number: str) -> tuple[Plan, dict]:
    """The jobs of notebook `number` at `preset`, as a function of how hyper-parameters are chosen, and the settings
    (`presets.SETTINGS`) that go with them. A study of one's own has none of a notebook that it has no file for. ValueError,
    TypeError: wrong parameters, with the file that has them."""
    if is_own(preset) and number not in numbers(preset):
        return lambda best: [], {}
    values, settings = chosen(preset, number)
    study = functools.partial(STUDIES[choose(number, STUDIES, "notebook with a study")], **values)
    try:
        for spec in {spec for job in study(best=lambda *_, **__: None) for spec in job.candidates}:
            if not (spec.data.val_images and spec.optim.val_every):
                raise ValueError(f"expected val_images and val_every above 0 where the best of several runs is chosen (method "
                                 f"{spec.method.name}, {spec.data.name}), got {spec.data.val_images} and {spec.optim.val_every}")
    except (ValueError, TypeError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{error}; in {file_name(preset, number)}") from None
    return study, settings
