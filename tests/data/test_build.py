"""Builders: small archives with the publishers' inner layout become packed sets; nothing is fetched unasked."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import threading
import unicodedata
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets, transforms

from tests.data.made import arrays, call, check_built, encoded, expect, image, mat, pets, shades, write, write_tar, write_zip
from twinslib.data import archives, build, decode, readers
from twinslib.data import packed as data_packed
from twinslib.data.sources import SOURCES, Archive


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINS_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(request, **_):
        address = getattr(request, "full_url", request)
        if not address.startswith("http://127.0.0.1"):
            raise AssertionError(f"a test reached for {address}")
        return real(request, **_)

    real = archives.urllib.request.urlopen
    monkeypatch.setattr(archives.urllib.request, "urlopen", refuse)


# -- one test per publisher's layout -------------------------------------------------------------------------------
def test_tiny_imagenet(folder, monkeypatch):
    """Training folders, validation list and the first synonym are read; 64 pixels are halved by averaging."""
    expect(monkeypatch, "tinyimagenet32")
    root = "tiny-imagenet-200"
    members = {
        f"{root}/wnids.txt": b"n02\nn01\n",
        f"{root}/words.txt": b"n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tbullfrog, Rana\n",
        f"{root}/val/val_annotations.txt": b"val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n",
        f"{root}/val/images/val_0.JPEG": image(200, (64, 64), "JPEG"),
        f"{root}/val/images/val_1.JPEG": image(100, (64, 64), "JPEG"),
        f"{root}/test/images/test_0.JPEG": image(1, (64, 64), "JPEG"),
    }
    for i in (10, 2):
        for wnid, base in (("n02", 100), ("n01", 0)):
            members[f"{root}/train/{wnid}/images/{wnid}_{i}.JPEG"] = image(base + i * 5, (64, 64), "JPEG")
        members[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
    write_zip(folder / "archives" / "tiny-imagenet" / "tiny-imagenet-200.zip", members)
    check_built("tinyimagenet32", None, ("n01 goldfish", "n02 bullfrog"), ([0, 0, 1, 1], [10, 50, 110, 150]),
                ([0, 1], [100, 200]), tolerance=3)


def test_cub_2010(folder, monkeypatch):
    """The official lists give the split, and each bird is cut out by its box: the dark frame is gone."""
    expect(monkeypatch, "cub64")
    home = folder / "archives" / "cub-200-2010"
    files = {f"00{c}.Bird_{c}/Bird_{c}_{i}.jpg": 60 * c + 20 * i for c in (1, 2) for i in range(3)}
    box = {"left": 10.0, "top": 14.0, "right": 50.0, "bottom": 46.0}
    pictures = {f"images/{file}": image(s, (60, 60), "PNG", border=8) for file, s in files.items()}
    write_tar(home / "images.tgz", {"images/._junk.jpg": b"x", **dict(reversed(pictures.items()))}, "w:gz")
    write_tar(home / "annotations.tgz",
              {f"annotations-mat/{f.replace('.jpg', '.mat')}": mat(bbox=box, seg=np.zeros((2, 2))) for f in files},
              "w:gz")
    lists = {
        "lists/train.txt": "\n".join(f for f in files if not f.endswith("_2.jpg")).encode(),
        "lists/test.txt": "\n".join(f for f in files if f.endswith("_2.jpg")).encode(),
    }
    write_tar(home / "lists.tgz", {f"./{name}": content for name, content in lists.items()}, "w:gz")
    packed = check_built("cub64", 16, ("001.Bird_1", "002.Bird_2"), ([0, 0, 1, 1], [60, 80, 120, 140]), ([0, 1], [100, 160]))
    assert packed.train_images.amin() >= 60


def test_cub_2011(folder, monkeypatch):
    """Numbered lists inside one archive give names, labels and the official split, wherever they stand in it."""
    expect(monkeypatch, "cub200")
    root = "CUB_200_2011"
    rows = [(1, "001.A/a1.jpg", 1, 1, 10), (2, "001.A/a2.jpg", 1, 0, 20), (3, "002.B/b1.jpg", 2, 1, 30)]
    rows += [(4, "002.B/b2.jpg", 2, 0, 40)]
    members = {f"{root}/images/{file}": image(shade) for _, file, _, _, shade in rows[::-1]}
    members |= {
        "attributes.txt": b"1 bill", f"{root}/images.txt": "\n".join(f"{i} {file}" for i, file, *_ in rows).encode(),
        f"{root}/image_class_labels.txt": "\n".join(f"{i} {label}" for i, _, label, *_ in rows).encode(),
        f"{root}/train_test_split.txt": "\n".join(f"{row[0]} {row[3]}" for row in rows).encode(),
        f"{root}/classes.txt": b"2 002.B\n1 001.A\n"
    }
    write_tar(folder / "archives" / "cub-200-2011" / "CUB_200_2011.tgz", members, "w:gz")
    check_built("cub200", 8, ("001.A", "002.B"), ([0, 1], [10, 30]), ([0, 1], [20, 40]))


@pytest.mark.parametrize(("name", "darkest"), [("dogs64", 50), ("dogs", 0)])
def test_stanford_dogs(name, darkest, folder, monkeypatch):
    """The official lists give the split; `dogs64` cuts the annotated box, `dogs` keeps the frame around it."""
    expect(monkeypatch, name)
    home = folder / "archives" / "stanford-dogs"
    files = [f"n0{c}-breed_{c}/n0{c}_{i}.jpg" for c in (1, 2) for i in range(2)]
    shade = dict(zip(files, (50, 100, 150, 200), strict=True))
    write_tar(home / "images.tar", {f"Images/{f}": image(shade[f], (40, 40), border=6) for f in files[::-1]})
    one = "<object><bndbox><xmin>6</xmin><ymin>6</ymin><xmax>34</xmax><ymax>34</ymax></bndbox></object>"
    xml = f"<annotation>{one}{one.replace('34', '20')}</annotation>".encode()
    write_tar(home / "annotation.tar", {f"Annotation/{f.removesuffix('.jpg')}": xml for f in files})

    def table(indices):
        cells = np.empty((len(indices), 1), object)
        cells[:, 0] = [files[i] for i in indices]
        return mat(file_list=cells, labels=np.array([[i // 2 + 1] for i in indices], np.uint8))

    write_tar(home / "lists.tar", {"train_list.mat": table([2, 0]), "test_list.mat": table([1, 3])})
    packed = check_built(name, 20, ("n01-breed_1", "n02-breed_2"), ([1, 0], [150, 50]), ([0, 1], [100, 200]))
    assert packed.train_images.amin() == darkest


def cifar_archive(path, monkeypatch, kind, base, files, meta):
    """Write a CIFAR archive and teach torchvision's class its checksums."""
    contents = {name: pickle.dumps(content) for name, content in {**files, **meta}.items()}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    write_tar(path, {f"{base}/{name}": content for name, content in contents.items()}, "w:gz")
    for part in ("train", "test"):
        listed = [[name, sums[name]] for name in files if ("test" in name) == (part == "test")]
        monkeypatch.setattr(kind, f"{part}_list", listed)
    (meta_name,) = meta
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta_name, "md5": sums[meta_name]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, folder, monkeypatch):
    """The archive beside it is checked, then unpacked by torchvision; pixels and the official order stay exact."""
    expect(monkeypatch, name)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (3, 3072), dtype=np.uint8) for _ in range(3)]
    path = folder / "archives" / "cifar" / SOURCES[name].archives[0].file
    if name == "cifar10":
        kind, base = datasets.CIFAR10, "cifar-10-batches-py"
        parts = ("data_batch_1", "data_batch_2", "test_batch")
        files = {part: {"data": row, "labels": [0, 1, 1]} for part, row in zip(parts, rows, strict=True)}
        meta = {"batches.meta": {"label_names": ["cat", "dog"]}}
    else:
        kind, base = datasets.CIFAR100, "cifar-100-python"
        content = {"train": np.concatenate(rows[:2]), "test": rows[2]}
        files = {part: {"data": d, "fine_labels": [0, 1, 1] * (len(d) // 3)} for part, d in content.items()}
        meta = {"meta": {"fine_label_names": ["cat", "dog"]}}
    with pytest.raises(FileNotFoundError, match=f"{path.name} in .*cifar, got no such file.*data build {name} --downl"):
        build.build(name)
    cifar_archive(path, monkeypatch, kind, base, files, meta)
    build.build(name)
    packed = data_packed.load_packed(name)
    assert packed.class_names == ("cat", "dog") and packed.train_labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert np.array_equal(packed.train_images.numpy().reshape(6, -1), np.concatenate(rows[:2]))
    assert np.array_equal(packed.test_images.numpy().reshape(3, -1), rows[2])


def test_a_bad_checksum_is_never_unpickled(folder, monkeypatch):
    """An archive of another MD5 is refused before torchvision opens it."""
    path = folder / "archives" / "cifar" / "cifar-10-python.tar.gz"
    write_tar(path, {"cifar-10-batches-py/data_batch_1": b"anything"}, "w:gz")
    with pytest.raises(ValueError, match="expected MD5 c58f30108f718f92721af3b95e74349a of .*delete it"):
        build.build("cifar10")
    assert not (folder / "archives" / "cifar" / "cifar-10-batches-py").exists()


@pytest.mark.parametrize("unpacked", [False, True])
def test_caltech_101(unpacked, folder, monkeypatch):
    """Thirty seeded images of every class train, the rest tests, the background is left out; archive or folder."""
    expect(monkeypatch, "caltech64")
    home = folder / "archives" / "caltech101"
    files = {f"101_ObjectCategories/{c}/image_{i:04d}.jpg": image(shade + i)
             for c, shade in (("BACKGROUND_Google", 217), ("Faces", 0), ("ant", 100)) for i in range(1, 34)}
    if unpacked:
        write(home, files)
    else:
        write_tar(home / "inner.tar", files)
        inner = gzip.compress((home / "inner.tar").read_bytes())
        (home / "inner.tar").unlink()
        write_zip(home / "caltech-101.zip", {"caltech-101/101_ObjectCategories.tar.gz": inner})
        monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *_, **__: True)
    build.build("caltech64", size=8)
    packed = data_packed.load_packed("caltech64")
    assert packed.class_names == ("Faces", "ant")
    assert packed.train_labels.bincount().tolist() == [30, 30] and packed.test_labels.bincount().tolist() == [3, 3]
    both = shades(packed.train_images) + shades(packed.test_images)
    assert sorted(both) == [*range(1, 34), *range(101, 134)]
    assert shades(packed.train_images)[:30] != list(range(1, 31))  # a random choice, not the first thirty


def caltech_256(folder, n, **changed):
    """torchvision's unpacked folder of two categories of n images; `changed` gives other contents by name."""
    files = {f"{name}/{c:03d}_{i:04d}.jpg": image(100 * c + i) for c, name in ((1, "001.ak47"), (2, "002.clutter"))
             for i in range(1, n + 1)}
    write(folder / "archives/caltech256/256_ObjectCategories", files | changed)


def test_caltech_256(folder, monkeypatch):
    """Nine in ten of every class train; torchvision's unpacked folder is enough."""
    expect(monkeypatch, "caltech256")
    caltech_256(folder, 20)
    build.build("caltech256", size=8)
    packed = data_packed.load_packed("caltech256")
    assert packed.class_names == ("001.ak47", "002.clutter")
    assert packed.train_labels.bincount().tolist() == [18, 18] and packed.test_labels.bincount().tolist() == [2, 2]


def test_own_folder_of_images(folder, caplog, capsys):
    """Images in NAME/train/CLASS and NAME/test/CLASS become NAME.npz, whose path the command prints; size is asked for; nothing
    is said where nothing is skipped, changed or doubled."""
    pets(folder, size=(20, 12))
    with pytest.raises(ValueError, match="add --size"):
        build.build("pets")
    assert call("build", "pets", "--size", "8") == 0
    assert capsys.readouterr().out.strip() == str(folder / "pets.npz")
    (folder / "pets.npz").unlink()
    check_built("pets", 8, ("cat", "dog"), ([0, 0, 1, 1], [0, 20, 40, 60]), ([0, 1], [80, 100]))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


# -- a folder of one's own: kinds of files -------------------------------------------------------------------------
def raw_png(depth, kind, line, clear):
    """A PNG of 8 equal rows with a transparent grey or colour, which Pillow cannot write at all depths."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, kind, 0, 0, 0)) + chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress((b"\0" + line) * 8)) + chunk(b"IEND", b"")


def palette(clear):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    return encoded(picture, transparency=clear)


DEEP, HALF = np.full((8, 8), 32896, np.uint16), (128, 128, 128)  # half of 65535
RED = np.full((8, 8, 4), (255, 0, 0, 0), np.uint8)  # wholly transparent
WHITE = (255, 255, 255)
KINDS = {  # file, contents, the colour that a viewer shows
    "16-bit grey PNG": ("a.png", encoded(DEEP), HALF),
    "16-bit grey TIFF": ("a.tif", encoded(DEEP, "TIFF"), HALF),
    "16-bit grey TIFF, compressed": ("a.tiff", encoded(DEEP, "TIFF", compression="tiff_lzw"), HALF),
    "16-bit grey TIFF, big-endian": ("a.tif", encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"), HALF),
    "16-bit grey TIFF, 0 is white": ("a.tif", encoded(DEEP // 2, "TIFF", tiffinfo={262: 0}), (191, 191, 191)),
    "16-bit PGM (mode I)": ("a.pgm", b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes(), HALF),
    "12-bit PGM (mode I)": ("a.pgm", b"P5 8 8 4095\n" + (DEEP // 16).astype(">u2").tobytes(), HALF),
    "16-bit grey PNG, clear grey": ("a.png", raw_png(16, 0, struct.pack(">8H", *[9000] * 8), struct.pack(">H", 9000)), WHITE),
    "16-bit colour PNG": ("a.png", raw_png(16, 2, struct.pack(">24H", *[32896] * 24), struct.pack(">3H", 1, 2, 3)), HALF),
    "16-bit colour PNG, clear colour": (
        "a.png", raw_png(16, 2, struct.pack(">24H", *[9000] * 24), struct.pack(">3H", *[9000] * 3)), WHITE),
    "2-bit grey PNG, clear black": ("a.png", raw_png(2, 0, b"\0\0", b"\0\0"), WHITE),
    "2-bit grey PNG, clear grey": ("a.png", raw_png(2, 0, b"\x55\x55", b"\0\1"), WHITE),
    "bits": ("a.png", encoded(Image.new("1", (8, 8), 1)), WHITE),
    "transparent": ("a.png", encoded(RED), WHITE),
    "half transparent": ("a.webp", encoded(RED + np.array([0, 0, 0, 128], np.uint8), "WEBP", lossless=True), (255, 127, 127)),
    "grey and alpha": ("a.png", encoded(Image.new("LA", (8, 8), (10, 0))), WHITE),
    "transparent TIFF": ("a.tif", encoded(RED, "TIFF"), WHITE),
    "palette, one clear": ("a.png", palette(1), WHITE),
    "palette, alpha": ("a.png", palette(bytes([0, 255])), (0, 255, 0)),
    "transparent GIF": ("a.gif", encoded(Image.new("P", (8, 8), 1), "GIF", transparency=1), WHITE),
    "upper case": ("a.JPEG", image(90, form="JPEG"), (90, 90, 90)),
    "another ending": ("a.jpg", image(90, form="BMP"), (90, 90, 90)),
    "CMYK": ("a.jpg", encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 127)), "JPEG"), HALF),
    "GIF": ("a.gif", image(90, form="GIF"), (90, 90, 90)),
    "one pixel": ("a.png", image(90, (1, 1)), (90, 90, 90)),
    "one row": ("a.png", image(90, (3000, 1)), (90, 90, 90)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_packed_as_shown(kind, folder):
    """16 bits are scaled, not clipped; transparent pixels show white, not the colour below them."""
    name, content, colour = KINDS[kind]
    pets(folder, {f"train/cat/{name}": content})
    build.build("pets", size=8)
    packed = data_packed.load_packed("pets")
    assert len(packed.train_labels) == 5 and np.allclose(packed.train_images[2, :, 4, 6], colour, atol=2)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images(form, orientation, folder):
    """A camera's note on how it was held is followed, once: the packed image equals the one turned before storing."""
    upright = np.kron(np.array([[0, 60], [120, 240]], np.uint8), np.ones((8, 8), np.uint8))
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    note = {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}
    pets(folder, {f"train/cat/a.{form.lower()}": encoded(np.ascontiguousarray(stored), form, "RGB", **note)})
    build.build("pets", size=16)
    found = data_packed.load_packed("pets").train_images[2, 0].numpy().astype(int)
    assert np.abs(found - upright)[1:-1, 1:-1].mean() < 12


def test_publishers_images_keep_their_stored_pixels(folder, monkeypatch):
    """Boxes and results of the known sets refer to pixels as stored, so these are neither turned nor made opaque."""
    exif = Image.Exif()
    exif[274] = 3
    picture = Image.open(io.BytesIO(image(50, (8, 8))))
    rgb, _ = decode.decode(io.BytesIO(encoded(picture, exif=exif)), "a", as_shown=False)
    assert np.array_equal(np.asarray(rgb), np.asarray(picture))


BROKEN = {
    "empty": b"", "text": b"<html>not found</html>",
    "truncated JPEG": encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")[:1500],
    "truncated PNG": encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[:5000],
    "32-bit integers": encoded(np.full((8, 8), 70000, np.int32), "TIFF"),
    "32-bit floats": encoded(np.full((8, 8), 0.5, np.float32), "TIFF"), "bomb, Pillow warns": b"P6 10000 10000 255\n",
    "bomb, Pillow refuses": b"P6 90000 90000 255\n"
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_images_are_named(case, folder):
    """What cannot be read is refused by its path in the set, several at once, and nothing is written."""
    pets(folder, {f"{part}/dog/bad.jpg": BROKEN[case] for part in ("train", "test")})
    with pytest.raises(ValueError, match="expected usable images in .*pets, got 2 others: ") as caught:
        build.build("pets", size=8)
    assert "train/dog/bad.jpg" in str(caught.value) and "test/dog/bad.jpg" in str(caught.value)
    assert "BytesIO" not in str(caught.value) and not list(folder.glob("*.npz*"))
    assert ("pixels" in str(caught.value)) == case.startswith("bomb") and ("8 or 16 bits" in str(caught.value)) == ("32" in case)


def test_broken_links_and_devices_are_named(folder):
    """A link to nowhere is refused, and a pipe is not waited for."""
    pets(folder)
    (folder / "pets/train/cat/x.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pets/train/cat/y.png")
    with pytest.raises(ValueError, match="got 2 others: .*train/cat/x.png.*train/cat/y.png"):
        build.build("pets", size=8)


def test_damaged_images_in_archives_are_named(folder, monkeypatch):
    """The message gives the member and the archive."""
    expect(monkeypatch, "caltech256")
    caltech_256(folder, 11, **{"002.clutter/002_0007.jpg": b""})
    with pytest.raises(ValueError, match="whole image in .*002.clutter/002_0007.jpg, got an empty file"):
        build.build("caltech256", size=8)
    write_tar(folder / "a.tar", {"images/x.jpg": image(1)[:40]})
    with pytest.raises(ValueError, match="whole image in images/x.jpg of .*a.tar"):
        readers._pack(folder / "a.tar", ["a"], [readers.Item("images/x.jpg", 0)], [], 8)


# -- a folder of one's own: what is taken --------------------------------------------------------------------------
def test_hidden_files_are_ignored_and_others_counted(folder, caplog):
    """Copies that tools leave behind neither become a class nor double images; other files are counted by ending."""
    hidden = ("train/.ipynb_checkpoints/a.png", "test/.ipynb_checkpoints/a.png", "train/cat/.ipynb_checkpoints/0.png",
              "train/cat/._0.png", "train/__MACOSX/a.png", "train/dog/Thumbs.db", "train/.DS_Store")
    other = ("train/cat/a.HEIC", "train/cat/b.heic", "train/dog/labels.txt", "test/dog/more.zip", "train/dog/README")
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 9)) for i in range(1, 4)]
    pets(folder, {
        **{name: image(7) for name in (*hidden, *other, "train/loose.png")},
        "train/cat/deep/er/a.png": image(200), "test/cat/thin.png": image(201, (30, 4)),
        "train/dog/film.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    })
    build.build("pets", size=8)
    packed = data_packed.load_packed("pets")
    assert packed.class_names == ("cat", "dog") and len(packed.train_labels) == 6 and len(packed.test_labels) == 3
    assert packed.train_images[5, :, 0, 0].tolist() == [40, 0, 9]
    for piece in ("2 .heic", "1 .txt", "1 .zip", "1 without ending", "1 .png beside the class folders",
                  "several frames, of which the first is taken: 1 (train/dog/film.gif)",
                  "a side below 8 pixels, enlarged: 1 (test/cat/thin.png)", "less than half: 1 (test/cat/thin.png)"):
        assert piece in caplog.text, piece
    assert "checkpoints" not in caplog.text and "Thumbs" not in caplog.text


def test_links(folder):
    """Linked files and folders count as what they point to; a link back into the class is refused, not walked for ever."""
    pets(folder)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/a.png").write_bytes(image(201))
    (folder / "pets/train/cat/deep").symlink_to(folder / "elsewhere")
    (folder / "pets/train/dog/a.png").symlink_to(folder / "elsewhere/a.png")
    build.build("pets", size=8)
    assert data_packed.load_packed("pets").train_labels.bincount().tolist() == [3, 3]
    (folder / "pets.npz").unlink()
    (folder / "pets/train/cat/loop").symlink_to(folder / "pets/train/cat")
    with pytest.raises(ValueError, match="each folder once in .*train/cat, got loop .*remove the link"):
        build.build("pets", size=8)


def test_doubles_are_reported(folder, caplog, capsys):
    """The same pixels in both parts, in two classes, or twice in training are named at build and counted by check."""
    pets(folder, {"test/dog/copy.bmp": image(20, (8, 8), "BMP"), "train/dog/again.png": image(60, (8, 8))})
    build.build("pets", size=8)
    for piece in ("test images that are training images too: 1 (train/cat/1.png = test/dog/copy.bmp)",
                  "images in more than one class: 1 (train/cat/1.png = test/dog/copy.bmp)",
                  "training images that repeat another", ": 1 (train/dog/1.png = train/dog/again.png)"):
        assert piece in caplog.text, piece
    caplog.clear()
    assert call("check", "pets") == 0
    assert "train image 1 (cat) = test image 2 (dog)" in caplog.text


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: write(p, {"test/fox/0.png": image(1)}), r"same classes .* got 'fox' in one only \(test\), 1 in all; add"),
    (lambda p: (p / "test/dog").rename(p / "test/Dog"), "'dog' in one only .train., 'Dog' in one only .test., 2 in all"),
    (lambda p: (p / "train/CAT").mkdir(), "upper and lower case.*'CAT' and 'cat'; rename or merge"),
    (lambda p: [(p / part / "dog").rename(p / "old") and shutil.rmtree(p / "old") for part in ("train", "test")],
     "at least 2 folders of classes in .*train, got 1"),
    (lambda p: (p / "test/cat/0.png").rename(p / "test/cat/0.heic"),
     r"images in every class of .*, got none in test/cat \(1 in all; skipped: 1 .heic\)"),
    (lambda p: [(p / part / os.fsdecode(b"caf\xe9")).mkdir() for part in ("train", "test")], "class names in UTF-8"),
], ids=["one part", "other case", "case only", "one class", "no image", "not UTF-8"])
def test_classes_that_do_not_fit(change, message, folder):
    """Classes in one part only, alike but for case, without images or alone are refused before any image is read."""
    pets(folder)
    change(folder / "pets")
    with pytest.raises(ValueError, match=message):
        build.build("pets", size=8)


def test_accents_have_one_spelling(folder):
    """A class whose name macOS wrote in one part and Linux in the other is one class, with the composed name."""
    pets(folder)
    for part, form in (("train", "NFD"), ("test", "NFC")):
        (folder / "pets" / part / "cat").rename(folder / "pets" / part / unicodedata.normalize(form, "Zoë 犬"))
    build.build("pets", size=8)
    assert data_packed.load_packed("pets").class_names == ("Zoë 犬", "dog")


@pytest.mark.parametrize("name", ["my pets", "../pets", "a/b", "/etc/x", "", ".", "..", ".hidden", "-x", "a\n", "x\0"])
def test_one_rule_for_names(name, folder):
    """What could not be loaded is not built, and no name leads out of the data folder."""
    pets(folder / "inner")
    for act in (lambda: build.build(name, size=8), lambda: data_packed.load_packed(name), lambda: call("explain", "--", name)):
        with pytest.raises(ValueError, match="bare name of an image set"):
            act()


# -- images --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("box", "size", "expected"), [
    ((10, 10, 30, 20), (100, 80), (10, 5, 30, 25)),  # the short side grows around its middle
    ((0, 0, 20, 10), (100, 80), (0, 0, 20, 20)),  # but stays in the image
    ((90, 60, 100, 80), (100, 80), (80, 60, 100, 80)),
    ((0, 0, 100, 80), (100, 80), (10, 0, 90, 80)),  # no larger than the image
    ((5, 5, 5, 5), (100, 80), (4, 4, 5, 5)),  # an empty box still gives a pixel
])
def test_square_around_a_box(box, size, expected):
    """The square holds the box where the image allows it and never leaves the image."""
    assert readers._square_around(box, size) == expected


def test_square():
    """Fine stripes turn grey and do not alias, whether the size divides the side or not; grey, palette and transparent images
    come out as RGB; an exact multiple is averaged exactly."""
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (240, 120)))
    for size in (30, 37, 100):
        assert np.ptp(readers.square(stripes, size)[2:-2, 2:-2].astype(int)) < 40
        assert 120 < readers.square(stripes, size).mean() < 136
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert np.array_equal(readers.square(picture, 16), pixels)
    assert np.array_equal(readers.square(picture, 8), np.asarray(picture.reduce(2)))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        assert readers.square(picture.convert(mode), 5).shape == (5, 5, 3)


@pytest.mark.parametrize("shape", [(300, 300), (400, 300), (300, 471)])
def test_the_test_crop_is_the_official_one(shape):
    """The middle 224 of a square of 256 is Resize(256) and CenterCrop(224) of the whole image, up to resampling."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(shape, Image.Resampling.BICUBIC)
    official = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(picture)
    ours = readers.square(picture, 256)[16:-16, 16:-16].astype(int)
    assert np.abs(ours - np.asarray(official).astype(int)).mean() < 2


# -- refusals ------------------------------------------------------------------------------------------------------
def test_missing_and_damaged_archives(folder, monkeypatch):
    """Missing, foreign, truncated and incomplete archives are named, and no packed file appears."""
    expect(monkeypatch, "cub200")
    path = folder / "archives" / "cub-200-2011" / "CUB_200_2011.tgz"
    with pytest.raises(FileNotFoundError, match="CUB_200_2011.tgz in .*cub-200-2011.*--download"):
        build.build("cub200")
    write_tar(path, {"CUB_200_2011/images.txt": b"1 a.jpg"}, "w:gz")
    with pytest.raises(ValueError, match="image_class_labels.txt in .*no such member"):
        build.build("cub200")
    whole = path.read_bytes()
    for content in (b"no archive at all" * 100, whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged|no such member"):
            build.build("cub200")
    lists = {"images.txt": b"1 001.A/a.jpg\n2 002.B/b.jpg", "image_class_labels.txt": b"1 1\n2 2",
             "train_test_split.txt": b"1 1\n2 0", "classes.txt": b"1 001.A\n2 002.B", "images/001.A/a.jpg": image(1)}
    write_tar(path, {f"CUB_200_2011/{name}": content for name, content in lists.items()}, "w:gz")
    with pytest.raises(ValueError, match=r"002.B/b.jpg in .*no such member \(1 missing in all\)"):
        build.build("cub200")  # a listed image that the archive lacks is an error, never an empty picture
    assert not list(folder.glob("*.npz*")) and not list(folder.glob(".*"))


def test_build_arguments(folder):
    """Toys need no building, unknown names get a guess, sizes have limits, a finished file is kept."""
    with pytest.raises(ValueError, match="embedded"):
        build.build("toy_source")
    with pytest.raises(FileNotFoundError, match="did you mean 'cub200'"):
        build.build("cub20")
    with pytest.raises(ValueError, match="size in 8..1024"):
        build.build("cub200", size=4)
    np.savez(folder / "cifar10.npz", **arrays(4, 4, 32, 2))
    before = (folder / "cifar10.npz").read_bytes()
    assert build.build("cifar10") == folder / "cifar10.npz"
    assert (folder / "cifar10.npz").read_bytes() == before
    with pytest.raises(ValueError, match="at 64 pixels, got 32 there; delete it"):
        build.build("cifar10", size=64)


# -- fetching ------------------------------------------------------------------------------------------------------
@pytest.fixture
def publisher():
    """A server on this machine that knows ranges; `cut` ends an answer early. Yields its address and handler."""

    class Handler(BaseHTTPRequestHandler):
        content, cut, ranges, asked = bytes(range(256)) * 40, None, True, []

        def do_GET(self):
            span = self.headers.get("Range") if self.ranges else None
            Handler.asked.append(span)
            start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
            if self.path == "/gone":
                return self.send_error(404)
            if start >= len(self.content):
                return self.send_error(416)
            rest = self.content[start:]
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest if self.cut is None else rest[: self.cut])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_fetch_resumes(publisher, tmp_path, ranges):
    """A cut connection leaves no file at the final path; the next call goes on where it stopped, or starts anew."""
    address, server = publisher
    archive = Archive("a.tar", f"{address}/a.tar", hashlib.md5(server.content).hexdigest())
    server.cut, server.ranges = 5000, ranges
    with pytest.raises(OSError, match="expected 10240 bytes of a.tar, got 5000.*run again"):
        archives.fetch(archive, tmp_path)
    assert not (tmp_path / "a.tar").exists()
    server.cut = None
    assert archives.fetch(archive, tmp_path).read_bytes() == server.content
    assert server.asked == [None, "bytes=5000-" if ranges else None]
    archives.fetch(archive, tmp_path)
    assert len(server.asked) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.part")  # killed between the last byte and the rename
    server.ranges = True
    assert archives.fetch(archive, tmp_path).read_bytes() == server.content


def test_fetch_refuses(publisher, tmp_path):
    """A wrong checksum leaves nothing behind; an absent file or publisher is said in one line."""
    address, _ = publisher
    for kind, name in (("md5", "MD5"), ("sha256", "SHA256")):
        with pytest.raises(ValueError, match=f"expected {name} 0000"):
            archives.fetch(Archive("a.tar", f"{address}/a.tar", **{kind: "0000"}), tmp_path)
    good = hashlib.sha256(publisher[1].content).hexdigest()
    archives.fetch(Archive("a.tar", f"{address}/a.tar", sha256=good), tmp_path).unlink()
    with pytest.raises(OSError, match="404.*by hand"):
        archives.fetch(Archive("a.tar", f"{address}/gone"), tmp_path)
    with pytest.raises(OSError, match="expected to reach"):
        archives.fetch(Archive("a.tar", "http://127.0.0.1:1/a.tar"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_download_is_asked_for(publisher, folder, monkeypatch):
    """`download=True` fetches each archive of the set and then builds as from archives that were there."""
    address, server = publisher
    expect(monkeypatch, "cub200")
    monkeypatch.setitem(SOURCES, "cub200",
                        dataclasses.replace(SOURCES["cub200"], archives=(Archive("CUB_200_2011.tgz", f"{address}/x"),)))
    with pytest.raises(FileNotFoundError):
        build.build("cub200")
    assert server.asked == []
    with pytest.raises(ValueError, match="damaged"):  # what the server has is no archive
        build.build("cub200", download=True)
    assert server.asked == [None]


# -- python -m twinslib data ---------------------------------------------------------------------------------------
def test_every_source_is_complete():
    """Each known set has a reader, an archive and a page, and the command explains it."""
    assert set(SOURCES) == set(readers.READERS)
    for source in SOURCES.values():
        assert source.archives and source.page.startswith("http") and source.num_classes > 1


def test_commands(folder, capsys):
    """list tells present, missing and damaged apart; check counts; explain names the archive; all return 0."""
    content = arrays(5, 5, 8, 2) | {"class_names": np.array(["cat", "dog"])}
    for name in ("mine", "my pets"):
        np.savez(folder / f"{name}.npz", **content)
    (folder / "cifar10.npz").write_bytes(b"cut short")
    assert call("list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == {"toy_source", "toy_target", "mine", "my", *SOURCES} and "no usable name" in rows["my"]
    assert "embedded" in rows["toy_source"] and "missing" in rows["cub200"] and "damaged" in rows["cifar10"]
    assert rows["mine"].split()[1:9] == "2 classes 8 px 5 train 5 test".split() and "present" in rows["mine"]
    assert call("check", "mine", "toy_source") == 0
    out = capsys.readouterr().out
    assert "mine: 5 training and 5 test images, 2 classes, 8 px, fingerprint " in out
    assert any(line.split() == ["cat", "3", "3"] for line in out.splitlines())
    assert call("explain", "dogs64") == 0
    out = capsys.readouterr().out
    for piece in ("dogs64.npz (missing)", "images.tar (missing)", "python -m twinslib data build dogs64", "terms"):
        assert piece in out
    for name in ("toy_target", "mine"):
        assert call("explain", name) == 0 and name in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="did you mean 'mine'"):
        call("explain", "mines")
    with pytest.raises(ValueError, match="damaged or foreign"):
        call("check", "cifar10")
