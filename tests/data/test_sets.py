"""Packed sets, splits, augmentation: the format, exactness against Pillow and torchvision, and clear refusals."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as TF

from tests.data.made import arrays, as_set
from twinslib.base import paths
from twinslib.data import augment, packed, sets
from twinslib.specs import choices as specs_choices


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINS_DATA", str(tmp_path))
    return tmp_path


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    """TWINS_DATA and TWINS_RESULTS win; without them the cache folder and the root of the repository are used."""
    monkeypatch.setenv("TWINS_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("TWINS_RESULTS", str(tmp_path / "r"))
    assert (paths.data_dir(), paths.results_dir()) == (tmp_path / "d", tmp_path / "r")
    monkeypatch.delenv("TWINS_DATA")
    monkeypatch.delenv("TWINS_RESULTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.data_dir() == tmp_path / "cache" / "twins"
    assert paths.results_dir() == paths.notebooks_dir().parent / "results"
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "twinslib" / "base" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert paths.results_dir() == tmp_path / "results"


def test_own_set_loads_by_name(folder):
    """A user's file works by its name, channels first, and its fingerprint depends on every array but not the name."""
    content = arrays()
    np.savez(folder / "mine.npz", **content)
    np.savez(folder / "copy.npz", **content)
    loaded = packed.load_packed("mine")
    assert loaded.train_images.shape == (24, 3, 8, 8) and loaded.train_images.is_contiguous()
    assert torch.equal(loaded.test_images[5, 2], torch.from_numpy(content["test_images"][5, :, :, 2]))
    assert loaded.class_names[1] == "n01 kind 1" and loaded.image_size == 8
    assert len(loaded.fingerprint) == 16 and loaded.fingerprint == packed.load_packed("copy").fingerprint
    for key in packed.KEYS:
        other = {k: v.copy() for k, v in content.items()}
        other[key].flat[0] = "x" if key == "class_names" else other[key].flat[0] ^ 1
        assert as_set(other).fingerprint != loaded.fingerprint, key
    half = packed.load_packed("mine", image_size=4)
    assert half.image_size == 4 and half.fingerprint != loaded.fingerprint
    for size in (16, 3, 0, -4):
        with pytest.raises(ValueError, match="expected image_size to divide the stored side of 8"):
            packed.load_packed("mine", image_size=size)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_shrinking_equals_pillow(factor):
    """Block averages have the rounding of Pillow's reduce in every pixel, bright ones included."""
    images = np.random.default_rng(factor).integers(0, 256, (40, 12 * factor, 12 * factor, 3), dtype=np.uint8)
    images[20:] |= 240
    expected = np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in images])
    assert np.array_equal(packed.shrink(images, factor), expected)


BROKEN = [
    (lambda c: c.pop("train_labels"), "got no train_labels"),
    (lambda c: c.update(train_images=c["train_images"] / 255), "train_images of uint8"),
    (lambda c: c.update(test_images=c["test_images"].transpose(0, 3, 1, 2)), "channels last"),
    (lambda c: c.update(train_images=c["train_images"][:, :4]), "square RGB"),
    (lambda c: c.update(test_images=c["test_images"][:, :4, :4]), "same side in .* got 8"),
    (lambda c: c.update(test_labels=c["test_labels"].astype(np.int32)), "test_labels of int64"),
    (lambda c: c.update(test_labels=c["test_labels"][:-1]), r"shape \(11,\) for 12 images"),
    (lambda c: c.update(train_labels=c["train_labels"] + 1), r"in 0..3 \(4 class_names\).*labels 1..4"),
    (lambda c: c.update(train_labels=c["train_labels"] - 1), r"labels -1..2"),
    (lambda c: c.update(class_names=c["class_names"].astype("S")), "class_names"),
    (lambda c: c.update(class_names=c["class_names"][:1]), "at least 2 class_names"),
    (lambda c: c.update(class_names=np.array(["a"] * 4)), "distinct class_names"),
    (lambda c: c.update(class_names=c["class_names"].astype(object)), "pickled objects.*dtype=str"),
    (lambda c: c.update(test_images=c["test_images"][:0], test_labels=c["test_labels"][:0]), "at least one"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_format_is_named(change, message, folder):
    """Every breach of the format is refused with what was expected, and with the file."""
    content = arrays()
    change(content)
    np.savez(folder / "mine.npz", **content)
    with pytest.raises(ValueError, match=f"expected.*{message}") as caught:
        packed.load_packed("mine")
    assert "mine.npz" in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_file_is_refused(folder, draw):
    """A file cut short or with a changed byte either still holds the same format or is refused with a ValueError."""
    whole = folder / "whole"
    if not whole.exists():
        np.savez(folder / "mine.npz", **arrays(6, 4, 4, 2))
        whole.write_bytes((folder / "mine.npz").read_bytes())
    content = bytearray(whole.read_bytes())
    if draw.draw(st.booleans()):
        content = content[: draw.draw(st.integers(0, len(content) - 1))]
    else:
        content[draw.draw(st.integers(0, len(content) - 1))] ^= draw.draw(st.integers(1, 255))
    (folder / "mine.npz").write_bytes(content)
    try:
        packed.check_arrays({**arrays(6, 4, 4, 2), **packed._read(folder / "mine.npz")}, "mine.npz")
    except ValueError as error:
        assert str(error).startswith("expected")


def test_missing_sets_are_explained(folder):
    """A known set names file, folder, archive and command; an unknown one lists what there is."""
    (folder / "own.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"cub200.npz in .*CUB_200_2011.tgz.*python -m twinslib data build cub200"):
        packed.load_packed("cub200")
    with pytest.raises(FileNotFoundError, match="toy_source.*cifar10.*own, got 'cifar_10'; did you mean 'cifar10'"):
        packed.load_packed("cifar_10")


def test_toy_sets_are_real_and_apart():
    """Both toy sets have ten balanced classes of 16 pixels, stay the same, and share no image."""
    source, target = packed.load_packed("toy_source"), packed.load_packed("toy_target")
    for toy, n in ((source, (1433, 364)), (target, (4000, 1000))):
        assert (len(toy.train_labels), len(toy.test_labels)) == n and toy.image_size == 16 and len(toy.class_names) == 10
        for labels in (toy.train_labels, toy.test_labels):
            counts = labels.bincount(minlength=10)
            assert counts.min() >= 0.9 * counts.max() > 0
        assert toy.train_images.max() == 255 and toy.train_images.float().std() > 50
    assert (source.fingerprint, target.fingerprint) == ("914c5846a1ea847c", "4e340d758fc2afbd")
    both = ({x.numpy().tobytes() for part in (toy.train_images, toy.test_images) for x in part} for toy in (source, target))
    assert set.isdisjoint(*both)


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=30, max_size=80), val=st.integers(0, 10),
       train=st.one_of(st.none(), st.integers(1, 10)), seed=st.integers(0, 5))
def test_split_is_disjoint_and_balanced(labels, val, train, seed):
    """Parts are disjoint and sorted, sizes as asked, and no class is behind another unless it has run out."""
    content = arrays(len(labels), 12, 4, 5)
    content["train_labels"] = np.array(labels, np.int64)
    split = sets.make_split(as_set(content), train_images=train, val_images=val, seed=seed)
    assert len(split.val) == val and len(split.train) == (len(labels) - val if train is None else train)
    both = torch.cat([split.train, split.val])
    assert len(both.unique()) == len(both) and both.dtype == torch.int64
    assert torch.equal(split.train, split.train.sort().values)
    have = np.bincount(labels, minlength=5)
    for part in (split.val, split.train):
        counts = np.bincount(content["train_labels"][part.numpy()], minlength=5)
        behind = counts < counts.max() - 1
        assert (counts[behind] == have[behind]).all()
        have = have - counts


def test_split_is_reproducible_and_nested():
    """Same seed, same split for ever; another seed, another; smaller subsets and the same test order inside."""
    content = as_set(arrays(200, 50, 4, 5))
    small, large = (sets.make_split(content, train_images=n, val_images=20, seed=3) for n in (40, 90))
    assert set(small.train.tolist()) < set(large.train.tolist()) and torch.equal(small.val, large.val)
    other = sets.make_split(content, train_images=40, val_images=20, seed=4)
    assert not torch.equal(small.train, other.train) and torch.equal(small.test, other.test)
    assert small.train[:6].tolist() == [1, 7, 9, 16, 19, 22]  # stored results stand on these orders
    assert small.test[:6].tolist() == [11, 3, 20, 13, 2, 48]


def test_excluded_classes_are_gone_and_labels_are_dense():
    """Classes go by full name or first word; labels are renumbered; the rest keeps its test order."""
    whole = as_set(arrays(40, 20, 4, 4))
    split = sets.make_split(whole, exclude=("n01", "n02 kind 2"), val_images=4)
    device_set = sets.to_device(whole, split, "cpu")
    assert split.class_ids == (0, 3) and device_set.class_names == ("n00 kind 0", "n03 kind 3") and device_set.num_classes == 2
    for part, of in (("train", "train"), ("val", "train"), ("test", "test")):
        index = getattr(split, part)
        assert torch.equal(getattr(device_set, f"{part}_x"), getattr(whole, f"{of}_images")[index])
        assert torch.equal(torch.tensor(split.class_ids)[getattr(device_set, f"{part}_y")], getattr(whole, f"{of}_labels")[index])
    with pytest.raises(ValueError, match="expected a split of mine"):
        sets.to_device(as_set(arrays(seed=1)), split, "cpu")
    everything = sets.make_split(whole).test
    assert torch.equal(split.test, everything[torch.isin(whole.test_labels[everything], torch.tensor([0, 3]))])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"exclude": ("n07",)}, "one of the 4 classes of mine, got 'n07'; did you mean 'n0"),
    ({"exclude": ("n00", "n01", "n02")}, "at least 2 classes after exclude, got 1"),
    ({"train_images": 20, "val_images": 5}, "at most 24 images"), ({"val_images": 24}, "at most 24 images"),
    ({"train_images": 13, "exclude": ("n00", "n01")}, "at most 12 images"),
    ({"train_images": 0}, "train_images >= 1"), ({"val_images": -1}, "val_images >= 0"),
])
def test_bad_split_arguments(arguments, message):
    """Unknown classes and more images than there are get one clear message."""
    with pytest.raises(ValueError, match=message):
        sets.make_split(as_set(arrays()), **arguments)


def test_stored_split(tmp_path):
    """Stored once, then read; other arguments or images are refused by name; a damaged file is not trusted."""
    mine, path = as_set(arrays()), tmp_path / "deep" / "split.npz"
    arguments = {"exclude": ["n02"], "train_images": 9, "val_images": 3, "seed": 5}
    made = sets.stored_split(mine, path, **arguments)
    content = path.read_bytes()
    read = sets.stored_split(mine, path, **arguments)
    assert all(torch.equal(getattr(made, part), getattr(read, part)) for part in ("train", "val", "test"))
    assert read.class_ids == made.class_ids == (0, 1, 3)
    assert content == path.read_bytes() and [p.name for p in path.parent.iterdir()] == ["split.npz"]
    with pytest.raises(ValueError, match=r"differs in val_images: 2 here, 3 there; seed: 0 here, 5 there"):
        sets.stored_split(mine, path, exclude=("n02",), train_images=9, val_images=2)
    with pytest.raises(ValueError, match="differs in fingerprint.*another name"):
        sets.stored_split(as_set(arrays(seed=1)), path, **arguments)
    for damaged in (content[:-40], b"", b"not a split"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or foreign file"):
            sets.stored_split(mine, path, **arguments)


def batch(n=64, side=12):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", specs_choices.AUGMENTATIONS)
def test_augmentation_is_legal(kind):
    """Float32 in [0, 1], same shape, input untouched, same generator same result, global random state untouched."""
    images = batch()
    before, state = images.clone(), torch.get_rng_state()
    out = augment.augment(images, kind, draws())
    assert out.dtype == torch.float32 and out.shape == images.shape and out.is_contiguous()
    assert out.min() >= 0 and out.max() <= 1 and out.max() > 0.5
    assert torch.equal(out, augment.augment(images, kind, draws()))
    assert torch.equal(out, augment.augment(images, kind, draws(1))) == (kind in ("none", "center_crop"))
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "flips"), [("crop", 1), ("crop_flip", 2)])
def test_crop_is_a_crop_of_the_padded_image(kind, flips):
    """Each result is one of the 81 crops of the image framed by 4 zero pixels, or its mirror."""
    images = batch(600, 6)
    out = (augment.augment(images, kind, draws()) * 255).round().to(torch.uint8)
    padded = torch.nn.functional.pad(images, (4,) * 4)
    crops = padded.unfold(2, 6, 1).unfold(3, 6, 1).permute(0, 2, 3, 1, 4, 5)
    choices = torch.stack([crops, crops.flip(-1)][:flips], 1)  # (image, flip, row, column, C, S, S)
    hits = (choices == out[:, None, None, None]).flatten(4).all(-1)
    flip, row, column = (hits.flatten(1).byte().argmax(1) // n % m for n, m in ((81, 2), (9, 9), (1, 9)))
    assert hits.flatten(1).any(1).all() and len(row.unique()) == len(column.unique()) == 9
    assert flip.double().mean() == 0 if flips == 1 else 0.4 < flip.double().mean() < 0.6


@pytest.mark.parametrize("size", [7, 12, 20])
def test_box_resize_equals_torchvision(size):
    """Cutting and resizing a box gives torchvision's resized_crop (bilinear, no antialiasing), mirrored where asked."""
    images = batch(20, 16)
    top, left, height, width = augment._crop_boxes(20, 16, draws(), images.device)
    flip = torch.arange(20) % 2 == 0
    out = augment._resize_boxes(images, top, left, height, width, flip, size)
    for i in range(20):
        box = [int(v[i]) for v in (top, left, height, width)]
        expected = TF.resized_crop(images[i].float() / 255, *box, [size, size], antialias=False)
        expected = TF.hflip(expected) if flip[i] else expected
        assert torch.allclose(out[i], expected, atol=2e-6), box


def test_boxes_follow_the_recipe():
    """Boxes lie inside the image, have 8 to 100 % of its area and a ratio in 3/4 to 4/3, up to rounding."""
    top, left, height, width = augment._crop_boxes(5000, 224, draws(), torch.device("cpu"))
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    area, ratio = height * width / 224**2, width / height
    assert 0.075 < area.min() < 0.1 and 0.9 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.37
    assert abs(area.mean() - 0.5) < 0.03 and abs(ratio.log().mean()) < 0.02


def test_sizes():
    """Resized and centre crops take an output size; the middle is the middle; other kinds keep the side."""
    images = batch(4, 12)
    assert augment.augment(images, "resized_crop_flip", draws(), size=20).shape == (4, 3, 20, 20)
    assert torch.equal(augment.augment(images, "center_crop", size=8), augment.to_float(images[:, :, 2:10, 2:10]))
    assert torch.equal(augment.augment(images, "crop_flip", draws(), size=12), augment.augment(images, "crop_flip", draws()))


@pytest.mark.parametrize(("images", "kind", "arguments", "message"), [
    (batch(2), "crop_flop", {}, "did you mean 'crop_flip'"), (batch(2).float(), "none", {}, "uint8"),
    (batch(2)[..., :5], "none", {}, r"\(B, C, S, S\)"), (batch(2), "crop", {}, "torch.Generator"),
    (batch(2), "crop", {"size": 10, "generator": draws()}, "'crop' can make of 12 pixels, got 10"),
    (batch(2), "none", {"size": 10}, "center_crop"), (batch(2), "center_crop", {"size": 13}, "got 13"),
])
def test_bad_augmentation(images, kind, arguments, message):
    """Wrong kind, shape, type, size or a missing generator is refused before any work."""
    with pytest.raises(ValueError, match=message):
        augment.augment(images, kind, **arguments)
