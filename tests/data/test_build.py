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
        assert request.full_url.startswith("http://127.0.0.1"), f"a test reached for {request.full_url}"
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
        monkeypatch.setattr(kind, f"{part}_list", [[n, sums[n]] for n in files if ("test" in n) == (part == "test")])
    (meta_name,) = meta
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta_name, "md5": sums[meta_name]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(("name", "kind", "base", "names", "labels"), [
    ("cifar10", datasets.CIFAR10, "cifar-10-batches-py", ("data_batch_1", "data_batch_2", "test_batch"), "label"),
    ("cifar100", datasets.CIFAR100, "cifar-100-python", ("train", "test"), "fine_label")])
def test_cifar(name, kind, base, names, labels, folder, monkeypatch):
    """The archive beside it is checked, then unpacked by torchvision; pixels and the official order stay exact."""
    expect(monkeypatch, name)
    rows = np.random.default_rng(0).integers(0, 256, (len(names), 3, 3072), dtype=np.uint8)
    path = folder / "archives" / "cifar" / SOURCES[name].archives[0].file
    with pytest.raises(FileNotFoundError, match=f"{path.name} in .*cifar, got no such file.*data build {name} --downl"):
        build.build(name)
    files = {part: {"data": row, f"{labels}s": [0, 1, 1]} for part, row in zip(names, rows, strict=True)}
    meta = {"batches.meta" if name == "cifar10" else "meta": {f"{labels}_names": ["cat", "dog"]}}
    cifar_archive(path, monkeypatch, kind, base, files, meta)
    build.build(name)
    packed = data_packed.load_packed(name)
    assert packed.class_names == ("cat", "dog") and packed.train_labels.tolist() == [0, 1, 1] * (len(names) - 1)
    assert np.array_equal(packed.train_images.numpy().reshape(-1, 3072), np.concatenate(rows[:-1]))
    assert np.array_equal(packed.test_images.numpy().reshape(3, -1), rows[-1])


def test_a_bad_checksum_is_never_unpickled(folder, monkeypatch):
    """An archive of another MD5 is refused before torchvision opens it."""
    path = folder / "archives" / "cifar" / "cifar-10-python.tar.gz"
    write_tar(path, {"cifar-10-batches-py/data_batch_1": b"anything"}, "w:gz")
    with pytest.raises(ValueError, match="expected MD5 c58f30108f718f92721af3b95e74349a of .*delete it"):
        build.build("cifar10")
    assert not (folder / "archives" / "cifar" / "cifar-10-batches-py").exists()


def test_caltech_101(folder, monkeypatch):
    """Thirty seeded images of every class train, the rest tests, the background is left out; from the archive."""
    expect(monkeypatch, "caltech64")
    home = folder / "archives" / "caltech101"
    write_tar(home / "inner.tar", {f"101_ObjectCategories/{c}/image_{i:04d}.jpg": image(shade + i) for c, shade in (
        ("BACKGROUND_Google", 217), ("Faces", 0), ("ant", 100)) for i in range(1, 34)})
    inner = gzip.compress((home / "inner.tar").read_bytes())
    write_zip(home / "caltech-101.zip", {"caltech-101/101_ObjectCategories.tar.gz": inner})
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *_, **__: True)
    build.build("caltech64", size=8)
    packed = data_packed.load_packed("caltech64")
    assert packed.class_names == ("Faces", "ant")
    assert packed.train_labels.bincount().tolist() == [30, 30] and packed.test_labels.bincount().tolist() == [3, 3]
    assert sorted(shades(packed.train_images) + shades(packed.test_images)) == [*range(1, 34), *range(101, 134)]
    assert shades(packed.train_images)[:30] != list(range(1, 31))  # a random choice, not the first thirty


def test_caltech_256(folder, monkeypatch):
    """Nine in ten of every class train; torchvision's unpacked folder is enough."""
    expect(monkeypatch, "caltech256")
    write(folder / "archives/caltech256/256_ObjectCategories",
          {f"{name}/{c:03d}_{i:04d}.jpg": image(100 * c + i) for c, name in ((1, "001.ak47"), (2, "002.clutter"))
           for i in range(1, 21)})
    build.build("caltech256", size=8)
    packed = data_packed.load_packed("caltech256")
    assert packed.class_names == ("001.ak47", "002.clutter")
    assert packed.train_labels.bincount().tolist() == [18, 18] and packed.test_labels.bincount().tolist() == [2, 2]


def test_own_folder_of_images(folder, caplog, capsys):
    """Images in NAME/train/CLASS and NAME/test/CLASS become NAME.npz, whose path the command prints; size is asked for."""
    pets(folder, size=(20, 12))
    for part, form in (("train", "NFD"), ("test", "NFC")):
        (folder / "pets" / part / "dog").rename(folder / "pets" / part / unicodedata.normalize(form, "Zoë 犬"))
    with pytest.raises(ValueError, match="add --size"):
        build.build("pets")
    assert call("build", "pets", "--size", "8") == 0
    assert capsys.readouterr().out.strip() == str(folder / "pets.npz")
    (folder / "pets.npz").unlink()
    check_built("pets", 8, ("Zoë 犬", "cat"), ([0, 0, 1, 1], [40, 60, 0, 20]), ([0, 1], [100, 80]))
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
KINDS = {  # contents, the colour that a viewer shows
    "16-bit grey PNG": (encoded(DEEP), HALF),
    "16-bit grey TIFF, big-endian": (encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"), HALF),
    "16-bit grey TIFF, 0 is white": (encoded(DEEP // 2, "TIFF", tiffinfo={262: 0}), (191, 191, 191)),
    "12-bit PGM (mode I)": (b"P5 8 8 4095\n" + (DEEP // 16).astype(">u2").tobytes(), HALF),
    "16-bit grey PNG, clear grey": (raw_png(16, 0, struct.pack(">8H", *[9000] * 8), struct.pack(">H", 9000)), WHITE),
    "16-bit RGB PNG, clear colour": (raw_png(16, 2, struct.pack(">24H", *[9000] * 24), struct.pack(">3H", *[9000] * 3)), WHITE),
    "2-bit grey PNG, clear grey": (raw_png(2, 0, b"\x55\x55", b"\0\1"), WHITE),
    "half transparent": (encoded(RED + np.array([0, 0, 0, 128], np.uint8), "WEBP", lossless=True), (255, 127, 127)),
    "grey and alpha": (encoded(Image.new("LA", (8, 8), (10, 0))), WHITE), "palette, one clear": (palette(1), WHITE),
    "palette, alpha": (palette(bytes([0, 255])), (0, 255, 0)),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 127)), "JPEG"), HALF),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_packed_as_shown(kind):
    """16 bits are scaled, not clipped; transparent pixels show white, not the colour below them."""
    content, colour = KINDS[kind]
    pixels = np.asarray(decode.decode(io.BytesIO(content), kind)[0])
    assert pixels.shape[2] == 3 and np.allclose(pixels[-1, 6], colour, atol=2)


@pytest.mark.parametrize(("form", "orientation"), [*(("PNG", i) for i in range(1, 9)), ("TIFF", 6)])
def test_exif_turns_images(form, orientation):
    """A camera's note on how it was held is followed, once: the image equals the one turned before storing."""
    upright = np.kron(np.array([[0, 60], [120, 240]], np.uint8), np.ones((8, 8), np.uint8))
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    note = {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}
    content = encoded(np.ascontiguousarray(stored), form, "RGB", **note)
    assert np.array_equal(decode.decode(io.BytesIO(content), "a")[0].convert("L"), upright)
    if form == "PNG":
        assert np.array_equal(decode.decode(io.BytesIO(content), "a", as_shown=False)[0].convert("L"), stored)


BROKEN = {"empty": b"", "text": b"<html>not found</html>", "bomb": b"P6 10000 10000 255\n",
          "truncated": encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[:5000],
          "32-bit integers": encoded(np.full((8, 8), 70000, np.int32), "TIFF")}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_images_are_named(case, folder):
    """What cannot be read, a link to nowhere too, is refused by its path in the set, several at once, and nothing is written."""
    pets(folder, {"train/dog/bad.jpg": BROKEN[case]})
    (folder / "pets/test/dog/link.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(ValueError, match="expected usable images in .*pets, got 2 others: ") as caught:
        build.build("pets", size=8)
    assert "train/dog/bad.jpg" in str(caught.value) and "test/dog/link.jpg" in str(caught.value)
    assert "BytesIO" not in str(caught.value) and not list(folder.glob("*.npz*"))
    assert ("pixels" in str(caught.value)) == (case == "bomb") and ("8 or 16 bits" in str(caught.value)) == ("32" in case)


# -- a folder of one's own: what is taken --------------------------------------------------------------------------
def test_hidden_files_are_ignored_and_others_counted(folder, caplog):
    """Copies that tools leave behind neither become a class nor double images; other files are counted by ending."""
    hidden = ("train/.ipynb_checkpoints/a.png", "train/cat/._0.png", "train/__MACOSX/a.png", "train/dog/Thumbs.db")
    other = ("train/cat/a.HEIC", "train/cat/b.heic", "train/dog/labels.txt", "train/dog/README", "train/loose.png")
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 9)) for i in range(1, 4)]
    pets(folder, {
        **{name: image(7) for name in (*hidden, *other)}, "../linked/er/a.png": image(200),
        "test/cat/thin.png": image(201, (30, 4)),
        "train/dog/f.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames)
    })
    (folder / "pets/train/cat/deep").symlink_to(folder / "linked")
    build.build("pets", size=8)
    packed = data_packed.load_packed("pets")
    assert packed.class_names == ("cat", "dog") and len(packed.train_labels) == 6 and len(packed.test_labels) == 3
    assert packed.train_images[5, :, 0, 0].tolist() == [40, 0, 9]
    for piece in ("2 .heic", "1 .txt", "1 without ending", "1 .png beside the class folders",
                  "several frames, of which the first is taken: 1 (train/dog/f.gif)",
                  "a side below 8 pixels, enlarged: 1 (test/cat/thin.png)", "less than half: 1 (test/cat/thin.png)"):
        assert piece in caplog.text, piece
    assert "checkpoints" not in caplog.text and "Thumbs" not in caplog.text
    (folder / "pets.npz").unlink()
    (folder / "pets/train/cat/loop").symlink_to(folder / "pets/train/cat")
    with pytest.raises(ValueError, match="each folder once in .*train/cat, got loop .*remove the link"):
        build.build("pets", size=8)


def test_doubles_are_reported(folder, caplog):
    """The same pixels in both parts, in two classes, or twice in training are named at build and counted by check."""
    pets(folder, {"test/dog/copy.bmp": image(20, (8, 8), "BMP"), "train/dog/again.png": image(60, (8, 8))})
    build.build("pets", size=8)
    for piece in ("test images that are training images too: 1 (train/cat/1.png = test/dog/copy.bmp)",
                  "images in more than one class: 1 (train/cat/1.png = test/dog/copy.bmp)",
                  "training images that repeat another", ": 1 (train/dog/1.png = train/dog/again.png)"):
        assert piece in caplog.text, piece
    assert call("check", "pets") == 0 and "train image 1 (cat) = test image 2 (dog)" in caplog.text


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


@pytest.mark.parametrize("act", [lambda name: build.build(name, size=8), data_packed.load_packed,
                                 lambda name: call("explain", "--", name)])
def test_one_rule_for_names(act, folder):
    """What could not be loaded is not built, and no name leads out of the data folder."""
    for name in ("my pets", "../pets", "/etc/x", "", ".", ".hidden", "-x", "x\0"):
        with pytest.raises(ValueError, match="bare name of an image set"):
            act(name)


# -- images --------------------------------------------------------------------------------------------------------
def test_square():
    """Fine stripes turn grey and do not alias, whether the size divides the side or not."""
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (240, 120)))
    for size in (30, 37):
        assert np.ptp(readers.square(stripes, size)[2:-2, 2:-2].astype(int)) < 40
        assert 120 < readers.square(stripes, size).mean() < 136
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert np.array_equal(readers.square(picture, 8), np.asarray(picture.reduce(2)))
    assert readers.square(picture.convert("P"), 5).shape == (5, 5, 3)
    picture = picture.resize((300, 471), Image.Resampling.BICUBIC)
    official = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(picture)
    assert np.abs(readers.square(picture, 256)[16:-16, 16:-16].astype(int) - np.asarray(official).astype(int)).mean() < 2


# -- refusals ------------------------------------------------------------------------------------------------------
def test_missing_and_damaged_archives(folder, monkeypatch):
    """Missing, foreign, truncated and incomplete archives are named, and no packed file appears."""
    expect(monkeypatch, "cub200")
    path = folder / "archives" / "cub-200-2011" / "CUB_200_2011.tgz"
    with pytest.raises(FileNotFoundError, match="CUB_200_2011.tgz in .*cub-200-2011.*--download"):
        build.build("cub200")
    lists = {"images.txt": b"1 001.A/a.jpg\n2 002.B/b.jpg", "image_class_labels.txt": b"1 1\n2 2",
             "train_test_split.txt": b"1 1\n2 0", "classes.txt": b"1 001.A\n2 002.B", "images/001.A/a.jpg": image(1)}
    write_tar(path, {f"CUB_200_2011/{name}": content for name, content in lists.items()}, "w:gz")
    with pytest.raises(ValueError, match=r"002.B/b.jpg in .*no such member \(1 missing in all\)"):
        build.build("cub200")  # a listed image that the archive lacks is an error, never an empty picture
    for content in (b"no archive at all" * 100, path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            build.build("cub200")
    assert not list(folder.glob("*.npz*")) and not list(folder.glob(".*"))


def test_build_arguments(folder):
    """Toys need no building, unknown names get a guess, sizes have limits, a finished file is kept."""
    for name, size, error, message in (("toy_source", None, ValueError, "embedded"), ("cub200", 4, ValueError, "size in 8..1024"),
                                       ("cub20", None, FileNotFoundError, "did you mean 'cub200'")):
        with pytest.raises(error, match=message):
            build.build(name, size=size)
    path = folder / "cifar10.npz"
    np.savez(path, **arrays(4, 4, 32, 2))
    before = path.read_bytes()
    assert build.build("cifar10") == path and path.read_bytes() == before
    (folder / "mine.npz").write_bytes(before)  # as copied to a machine without the folder of images
    assert build.build("mine") == build.build("mine", size=32) == folder / "mine.npz"
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
    address, server = publisher
    for kind, name in (("md5", "MD5"), ("sha256", "SHA256")):
        with pytest.raises(ValueError, match=f"expected {name} 0000"):
            archives.fetch(Archive("a.tar", f"{address}/a.tar", **{kind: "0000"}), tmp_path)
    for url, message in ((f"{address}/gone", "404.*by hand"), ("http://127.0.0.1:1/a.tar", "expected to reach")):
        with pytest.raises(OSError, match=message):
            archives.fetch(Archive("a.tar", url), tmp_path)
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
def test_commands(folder, capsys):
    """list tells present, missing and damaged apart; check counts; explain names the archive; all return 0."""
    content = arrays(5, 5, 8, 2) | {"class_names": np.array(["cat", "dog"])}
    for name in ("mine", "my pets"):
        np.savez(folder / f"{name}.npz", **content)
    (folder / "cifar10.npz").write_bytes(b"cut short")
    assert call("list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == {"toy_source", "toy_target", "mine", "my", *SOURCES}
    for name, state in {"toy_source": "embedded", "my": "no usable name", "cub200": "missing", "cifar10": "damaged",
                        "mine": "2 classes    8 px       5 train      5 test   present"}.items():
        assert state in rows[name]
    assert call("check", "mine", "toy_source") == 0
    out = capsys.readouterr().out
    assert "mine: 5 training and 5 test images, 2 classes, 8 px, fingerprint " in out
    assert any(line.split() == ["cat", "3", "3"] for line in out.splitlines())
    for name, piece in (("dogs64", "images.tar (missing)"), ("toy_target", "embedded"), ("mine", "a set of your own")):
        assert call("explain", name) == 0 and piece in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="did you mean 'mine'"):
        call("explain", "mines")
