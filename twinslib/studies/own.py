"""A study of one's own: a folder with a parameter file per notebook, written from a preset, and how commands are told of it."""

import argparse
import os
import textwrap
from pathlib import Path

import yaml

from ..base.errors import choose
from ..base.files import atomic_write
from . import presets

ABOUT = {  # what a user would change: parameter -> what it is
    "arch": "the network, by name",
    "norms": "norms of the networks: batch, group, layer",
    "start": "which of the sources fine-tuning starts from",
    "sources": "networks to start from: data, optim and attack of a pre-training, or weights: {file: NAME.pt, classes: N}",
    "source": "what all pre-trainings share",
    "starts": "networks to start from: optim of a natural training on the target, or weights: {file: NAME.pt, classes: N}",
    "pretraining": "pre-trainings: the noise of each (sigmas), and where it is limited to some norms or targets",
    "targets": "data sets to fine-tune on, with what each changes; make one of your images: python -m twinslib data build NAME",
    "methods": "methods, on every target",
    "baselines": "rivals, on the targets compared_on",
    "controls": "methods that differ from one of the others in a single thing, on the targets compared_on",
    "lambdas": "further weights of the frozen wing of twins_at, on the targets compared_on",
    "compared_on": "targets of baselines, controls and lambdas",
    "runs": "methods, with what each changes",
    "main": "methods, with what each changes",
    "finetuning": "fine-tunings: the noise of each (sigmas), method and optim, and where it is limited to some targets or seeds",
    "grids": "what is chosen by validation accuracy, by method: learning rates, or a setting of the method",
    "lrs": "learning rates to choose from by validation accuracy",
    "steps": "the experiment on learning rates: methods, rates, epochs of each target",
    "seeds": "random seeds; a setting is chosen with the first",
    "optim": "how long and how fast to train: epochs, batch_size, lr, schedule",
    "attack": "attack in training: eps and step_size in [0, 1] pixels or as 8/255, steps",
    "evaluations": "what is measured on how many test images, and where that is limited to some targets, methods or seeds",
    "certifications": "what is certified, under which noise (sigmas), with how many draws (n) on how many images",
    "crossed": "networks of notebook 01 to certify as well, of a preset or of this study by its name; {} for none",
}


class _Dumper(yaml.SafeDumper):
    """YAML in which every value is written out, and each key at the left margin."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def serialize(self, node: yaml.Node) -> None:
        node.flow_style = False  # else braces around a single number
        super().serialize(node)


def text(name: str, preset: str, number: str) -> str:
    """A parameter file for notebook `number` that asks for what `preset` does, with the parameters of `ABOUT` to edit.

    >>> "# learning rates to choose from by validation accuracy\\nlrs: [0.05, 0.15, 0.45]\\n" in text("mine", "small", "06")
    True
    """
    known = presets.parameters(presets.notebook(number))
    values = known | presets.overrides(preset, number, known)
    intro = (f"Study {name}, notebook {number}. What is not in this file is as in preset {preset}; what is takes the place of "
             f"the whole parameter there. Compute and show it: ./run_all.sh --params {name} {number}")
    lines = [*textwrap.wrap(intro, 120, initial_indent="# ", subsequent_indent="# "), f"from: {preset}"]
    for key in (key for key in known if key in ABOUT):
        lines += ["", f"# {ABOUT[key]}", yaml.dump({key: values[key]}, Dumper=_Dumper, default_flow_style=None, sort_keys=False,
                                                   allow_unicode=True, width=110).rstrip()]
    return "\n".join(lines) + "\n"


def write(name: str, preset: str, numbers: list[str], to: Path) -> list[Path]:
    """Write a parameter file per notebook into `to`/`name`, all or none; returns the files.

    Raises:
        ValueError: no name for a study, an unknown preset or notebook.
        FileExistsError: one of the files is there already.
    """
    presets.check_name(name)
    numbers = presets.numbers(choose(preset, presets.PRESETS, "preset"), numbers)
    files = {to / name / f"{number}.yaml": text(name, preset, number) for number in numbers}
    for path in files:
        if os.path.lexists(path):
            raise FileExistsError(f"expected no file {path} yet, got one; edit it, or choose another name")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda tmp, content=content: tmp.write_text(content, encoding="utf-8"))
    return list(files)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the `study` command, which sets `func(args) -> int`."""
    parser = commands.add_parser("study", allow_abbrev=False, help="write the parameter files of a study of your own")
    parser.add_argument("action", choices=("new",))
    parser.add_argument("name", help="of the study, its folder and its results")
    parser.add_argument("--from", dest="origin", nargs="+", required=True, metavar=("PRESET", "NN"),
                        help="the preset that it starts from, and notebook numbers; default: all")
    parser.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="where its folder is put; default: here")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write what the command asks for and say where."""
    preset, *numbers = args.origin
    files = write(args.name, preset, numbers, args.to)
    print(*(f"wrote {path}" for path in files), f"edit, then: ./run_all.sh --params {files[0].parent} --dry-run", sep="\n")
    return 0


def add_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --preset, --params in its place, whose folder becomes `args.preset` as `presets.check` takes it, and --results."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--preset", help=", ".join(presets.PRESETS))
    group.add_argument("--params", dest="preset", type=_whole, metavar="FOLDER", help="in place of a preset: your own parameter "
                       "files (study new)")
    parser.add_argument("--results", type=_whole, metavar="FOLDER", help="keep results there, not in results/")


def _whole(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
