"""What a reader meets first: commands and lines of Python that run as printed, verdicts of the ledger, files that are there."""

import re
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import resnet18

from tests.test_environment import PROJECT
from twinslib.base import paths
from twinslib.base.files import read_json
from twinslib.claims import ledger
from twinslib.data.packed import load_packed
from twinslib.store.store import Store
from twinslib.studies import rules

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "notebooks" / "examples" / "classes"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", EXAMPLE / "README.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_order() -> None:
    """A figure, the verdicts, the papers, two commands, and then the rest; the first screen has no line of code."""
    first = README.split("## Two commands")[0]
    assert first.index("![") < first.index("<!-- claims -->") < first.index("arxiv.org") and "```" not in first


def test_verdicts_are_the_ledgers() -> None:
    """They are those of the small preset, put there by the command: at most eight lines."""
    assert ledger.put_into(README, Store("small", root=ROOT / "results" / "small")) == README
    table = README.split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
    assert 2 < len(re.findall(r"^\|", table, re.MULTILINE)) <= 10


def test_what_the_verdicts_stand_on() -> None:
    """The words below the table are true of every effect in it: seeds, images, attack, data sets."""
    stored = read_json(ROOT / "results" / "small" / "claims.json")
    effects = {name: stored[name]["effects"] for name in ("C2", "C3", "C7", "C8", "C9", "AFT-C1", "AFT-C4")}
    effects = {name: [e for e in some if e["unit"] == "points"] for name, some in effects.items()}
    assert {(e["seeds"], e["images"], e["level"]) for some in effects.values() for e in some} == {(3, 1000, 0.95)}
    means = ("C2", "C3", "C8")
    assert {(e["dataset"], e["attack"]) for name in means for e in effects[name]} == {("mean", "none"), ("mean", "pgd20")}
    assert {e["dataset"] for name in means for e in stored[name]["flagged"]} == {"cub64"}
    assert {(e["dataset"], e["attack"]) for name in ("C9", "AFT-C1", "AFT-C4") for e in effects[name]} == {
        ("cifar10", "none"), ("cifar10", "pgd20")}
    assert [(e["dataset"], e["attack"]) for e in effects["C7"]] == [("cifar10", "pgd10")]
    assert {(e["dataset"], e["seeds"], e["images"], round(e["level"], 6)) for e in stored["RS-C2"]["effects"]} == {
        ("cifar10", 3, 500, 0.98)} and "on 500 test images of CIFAR-10; of its intervals each is at 98 %" in README
    assert "over three seeds and 1,000 test images" in README and "PGD-20 at 8/255" in README
    shown = {c.id: c for c in rules.claims() if c.short}
    *first, last = (name for name, c in shown.items() if "second-hand" in c.certainty)
    assert f"Of these {', '.join(first)} and {last} are known to us at second hand" in README
    assert all(c.source.startswith("abstract") for c in shown.values() if "second-hand" not in c.certainty)


def test_narrow() -> None:
    """No table of the first screens is wider than a phone: two columns, whose words wrap."""
    for line in re.findall(r"^\|[^-].*\|$", README.split("## Two commands")[0], re.MULTILINE):
        cells = re.sub(r"\]\([^)]*\)", "]", line).strip("|").split("|")
        assert len(cells) == 2 and max(len(word) for cell in cells for word in cell.split()) < 20, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """Each file that is linked is there; the papers are those of the claims."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not urlparse(link).scheme and not (page.parent / link.partition("#")[0]).exists()] == []
    papers = {c.paper.partition("(arXiv ")[2].removesuffix(")") for c in rules.claims()} - {""}
    assert page.name != "README.md" or page.parent != ROOT or papers == {
        urlparse(link).path.removeprefix("/abs/") for link in links if urlparse(link).netloc == "arxiv.org"}


def test_citation() -> None:
    """Version and licence are the project's, the references the three papers."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], str(cited["version"]), cited["license"]) == ("1.2.0", PROJECT["version"], PROJECT["license"])
    names = {identifier["value"].removeprefix("arXiv:") for r in cited["references"] for identifier in r["identifiers"]}
    assert all(f"arxiv.org/abs/{name})" in README for name in names) and len(names) == 3 and cited["message"] and cited["authors"]


def test_commands() -> None:
    """The first commands a reader meets are the two that need nothing else."""
    (first, *_) = blocks(README, "bash")
    assert [line.split("#")[0].split() for line in first.splitlines()] == [["./run_all.sh", "toy"], ["./run_tests.sh"]]


def test_twelve_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """From a folder of images and torchvision's weights to a file, with fewer epochs and draws; then the lines on two wings."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part, name, i in np.ndindex(2, 2, 4):
        file = paths.data_dir() / "flowers" / ("train", "test")[part] / "ab"[name] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(100 * name, 100 * name + 100, (40, 48, 3), dtype=np.uint8)).save(file)
    published = resnet18()
    with torch.no_grad():
        for _ in range(30):
            published(torch.randn(8, 3, 32, 32))  # statistics as after training; without, the frozen wing multiplies without end
    torch.save(published.state_dict(), "resnet18.pth")
    lines, wings = blocks(README, "python")
    assert len([line for line in lines.splitlines() if line]) <= 12
    fewer, count = re.subn(r"\b(epochs=|n=|max_images=)\d+", lambda found: found[1] + {"n=": "100"}.get(found[1], "2"), lines)
    assert count == 3
    exec(fewer, names := {})
    assert capsys.readouterr().out.splitlines()[2:] == ["flowers.safetensors", "flowers.json", "flowers.md"]
    card = Path("flowers.md").read_text()
    assert "torchvision/resnet18, 2 classes: a, b." in card and f"| PGD | {names['robust']} |" in card
    assert len(names["certified"].index) == 2
    exec(wings, names)
    assert names["logits"].shape == (8, 10) and names["plain"](names["x"]).shape == (8, 10)


def test_layout_is_true() -> None:
    """Everything in the picture exists, and every room of the package is in it."""
    picture = re.search(r"## Layout\n\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    folder, listed = "", set()
    for line in picture.splitlines():
        names = re.split(r"  +", line.strip())[0].split(", ")
        folder = folder if line.startswith(" ") else names[0] if names[0].endswith("/") else ""
        listed |= {folder + name if line.startswith(" ") else name for name in names}
    assert [name for name in listed if not (ROOT / name).exists()] == []
    rooms = {f"twinslib/{p.name}/" for p in (ROOT / "twinslib").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == {name for name in listed if name.startswith("twinslib/") and name != "twinslib/"}


def test_sets_of_the_example() -> None:
    """The lines of the example make its three sets of a pack with CIFAR-100's classes."""
    (lines,) = blocks((EXAMPLE / "README.md").read_text(encoding="utf-8"), "python")
    classes = sorted({word for words in re.findall(r'": "([\w ]+)"', lines) for word in words.split()} | {"sea"})
    x, y = np.arange(31 * 2 * 192, dtype=np.uint32).reshape(62, 8, 8, 3).astype(np.uint8), np.tile(np.arange(31), 2)
    paths.data_dir().mkdir(parents=True, exist_ok=True)
    np.savez(paths.data_dir() / "cifar100.npz", train_images=x, train_labels=y, test_images=x[:31], test_labels=y[:31],
             class_names=np.array(classes))
    exec(lines, {})
    for name in yaml.safe_load((EXAMPLE / "01.yaml").read_text())["targets"]:
        packed = load_packed(name)
        assert len(packed.class_names) == 10 and packed.train_labels.bincount().tolist() == [2] * 10
        one = classes.index(packed.class_names[3])
        assert (packed.train_images[packed.train_labels == 3][0].permute(1, 2, 0).numpy() == x[one]).all()
