"""What the tests of data share: images and archives as publishers offer them, packed sets, folders of one's own."""

import argparse
import dataclasses
import io
import tarfile
import zipfile

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from twinslib.data import build
from twinslib.data import packed as data_packed
from twinslib.data.sources import SOURCES


def encoded(pixels, form="PNG", mode=None, **options):
    """Encode an array or an image."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, form, **options)
    return stream.getvalue()


def image(shade, size=(10, 8), form="PNG", border=0):
    """Encode an image of one grey shade with `border` pixels of black all around."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[border:size[1] - border, border:size[0] - border] = shade
    return encoded(pixels, form)


def write(folder, files):
    """Write files by name below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def mat(**content):
    stream = io.BytesIO()
    savemat(stream, content)
    return stream.getvalue()


def expect(monkeypatch, name, num_classes=2):
    """Let the known set `name` have few classes and no checksum, as the archives of these tests do."""
    plain = tuple(dataclasses.replace(a, md5=None, sha256=None) for a in SOURCES[name].archives)
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], num_classes=num_classes, archives=plain))


def shades(images):
    """Grey value at the centre of each image of a packed set."""
    return images[:, 0, images.shape[2] // 2, images.shape[3] // 2].tolist()


def check_built(name, size, classes, train, test, tolerance=0):
    """Build a set; class names, and (labels, shades) of both parts, are as given. Returns it."""
    build.build(name, size=size)
    packed = data_packed.load_packed(name)
    assert packed.class_names == classes and packed.image_size == (size or SOURCES[name].image_size)
    for part, (labels, wanted) in (("train", train), ("test", test)):
        assert getattr(packed, f"{part}_labels").tolist() == labels
        assert np.allclose(shades(getattr(packed, f"{part}_images")), wanted, atol=tolerance)
    return packed


def pets(folder, extra=(), size=(8, 8)):
    """Write a set of two classes, two images each in training and one in test, all different; then `extra` files."""
    places = [("train", "cat", 0), ("train", "cat", 1), ("train", "dog", 0), ("train", "dog", 1), ("test", "cat", 0),
              ("test", "dog", 0)]
    files = {f"{part}/{c}/{i}.png": image(20 * k, size) for k, (part, c, i) in enumerate(places)}
    write(folder / "pets", {**files, **dict(extra)})


def arrays(n_train=24, n_test=12, side=8, classes=4, seed=0):
    """The arrays of a packed set of random images, classes in turn."""
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (n_train, side, side, 3), dtype=np.uint8),
        "train_labels": np.arange(n_train) % classes,
        "test_images": rng.integers(0, 256, (n_test, side, side, 3), dtype=np.uint8),
        "test_labels": np.arange(n_test) % classes,
        "class_names": np.array([f"n{i:02d} kind {i}" for i in range(classes)]),
    }


def as_set(content):
    images = {k: torch.from_numpy(content[k]).permute(0, 3, 1, 2).contiguous() for k in ("train_images", "test_images")}
    labels = {k: torch.from_numpy(content[k]) for k in ("train_labels", "test_labels")}
    return data_packed.PackedSet("mine", **images, **labels, class_names=tuple(content["class_names"].tolist()))


def call(*words):
    """Run the `data` command."""
    parser = argparse.ArgumentParser()
    build.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *words])
    return args.func(args)
