"""Builders: small archives with the publishers' inner layout become packed sets; nothing is fetched unasked."""

import argparse
import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from twinslib import archives, build, data, readers
from twinslib.sources import SOURCES, Archive


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


def image(shade, size=(10, 8), form="PNG", border=None):
    """Encode an image of one grey shade, white in the left quarter, with `border` pixels of black all around."""
    pixels = np.full((size[1], size[0], 3), shade, np.uint8)
    if border:
        frame = np.zeros_like(pixels)
        frame[border:-border, border:-border] = pixels[border:-border, border:-border]
        pixels = frame
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


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


def expect(monkeypatch, name, num_classes):
    """Let the known set `name` have few classes and no checksum, as the archives of these tests do."""
    plain = tuple(dataclasses.replace(a, md5=None, sha256=None) for a in SOURCES[name].archives)
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], num_classes=num_classes, archives=plain))


def shades(images):
    """Grey value at the centre of each image of a packed set."""
    return images[:, 0, images.shape[2] // 2, images.shape[3] // 2].tolist()


def close(found, wanted, tolerance=3):
    return np.allclose(found, wanted, atol=tolerance)


# -- one test per publisher's layout -------------------------------------------------------------------------------


def test_tiny_imagenet(folder, monkeypatch):
    """Training folders, validation list and the first synonym are read; 64 pixels are halved by averaging."""
    expect(monkeypatch, "tinyimagenet32", 2)
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
    assert build.build("tinyimagenet32") == folder / "tinyimagenet32.npz"
    packed = data.load_packed("tinyimagenet32")
    assert packed.class_names == ("n01 goldfish", "n02 bullfrog") and packed.image_size == 32
    assert packed.train_labels.tolist() == [0, 0, 1, 1] and close(shades(packed.train_images), [10, 50, 110, 150])
    assert packed.test_labels.tolist() == [0, 1] and close(shades(packed.test_images), [100, 200])


def test_cub_2010(folder, monkeypatch):
    """The official lists give the split, and each bird is cut out by its box: the dark frame is gone."""
    expect(monkeypatch, "cub64", 2)
    home = folder / "archives" / "cub-200-2010"
    files = {f"00{c}.Bird_{c}/Bird_{c}_{i}.jpg": 60 * c + 20 * i for c in (1, 2) for i in range(3)}
    box = {"left": 10.0, "top": 14.0, "right": 50.0, "bottom": 46.0}
    pictures = {f"images/{file}": image(s, (60, 60), "PNG", border=8) for file, s in files.items()}
    write_tar(home / "images.tgz", {"images/._junk.jpg": b"x", **dict(reversed(pictures.items()))}, "w:gz")
    write_tar(
        home / "annotations.tgz",
        {f"annotations-mat/{f.replace('.jpg', '.mat')}": mat(bbox=box, seg=np.zeros((2, 2))) for f in files},
        "w:gz",
    )
    lists = {
        "lists/train.txt": "\n".join(f for f in files if not f.endswith("_2.jpg")).encode(),
        "lists/test.txt": "\n".join(f for f in files if f.endswith("_2.jpg")).encode(),
    }
    write_tar(home / "lists.tgz", {f"./{name}": content for name, content in lists.items()}, "w:gz")
    build.build("cub64", size=16)
    packed = data.load_packed("cub64")
    assert packed.class_names == ("001.Bird_1", "002.Bird_2") and packed.image_size == 16
    assert packed.train_labels.tolist() == [0, 0, 1, 1] and shades(packed.train_images) == [60, 80, 120, 140]
    assert packed.test_labels.tolist() == [0, 1] and shades(packed.test_images) == [100, 160]
    assert packed.train_images.amin() >= 60


def test_cub_2011(folder, monkeypatch):
    """Numbered lists inside one archive give names, labels and the official split, wherever they stand in it."""
    expect(monkeypatch, "cub200", 2)
    root = "CUB_200_2011"
    rows = [(1, "001.A/a1.jpg", 1, 1, 10), (2, "001.A/a2.jpg", 1, 0, 20), (3, "002.B/b1.jpg", 2, 1, 30)]
    rows += [(4, "002.B/b2.jpg", 2, 0, 40)]
    members = {f"{root}/images/{file}": image(shade) for _, file, _, _, shade in rows[::-1]}
    members |= {
        "attributes.txt": b"1 bill",
        f"{root}/images.txt": "\n".join(f"{i} {file}" for i, file, *_ in rows).encode(),
        f"{root}/image_class_labels.txt": "\n".join(f"{i} {label}" for i, _, label, *_ in rows).encode(),
        f"{root}/train_test_split.txt": "\n".join(f"{row[0]} {row[3]}" for row in rows).encode(),
        f"{root}/classes.txt": b"2 002.B\n1 001.A\n",
    }
    write_tar(folder / "archives" / "cub-200-2011" / "CUB_200_2011.tgz", members, "w:gz")
    build.build("cub200", size=8)
    packed = data.load_packed("cub200")
    assert packed.class_names == ("001.A", "002.B")
    assert packed.train_labels.tolist() == [0, 1] and shades(packed.train_images) == [10, 30]
    assert packed.test_labels.tolist() == [0, 1] and shades(packed.test_images) == [20, 40]


@pytest.mark.parametrize(("name", "darkest"), [("dogs64", 50), ("dogs", 0)])
def test_stanford_dogs(name, darkest, folder, monkeypatch):
    """The official lists give the split; `dogs64` cuts the annotated box, `dogs` keeps the frame around it."""
    expect(monkeypatch, name, 2)
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
    build.build(name, size=20)
    packed = data.load_packed(name)
    assert packed.class_names == ("n01-breed_1", "n02-breed_2")
    assert packed.train_labels.tolist() == [1, 0] and shades(packed.train_images) == [150, 50]
    assert packed.test_labels.tolist() == [0, 1] and shades(packed.test_images) == [100, 200]
    assert packed.train_images.amin() == darkest


def cifar_archive(path, monkeypatch, kind, base, files, meta):
    """Write a CIFAR archive and teach torchvision's class its checksums."""
    names = {name: pickle.dumps(content) for name, content in {**files, **meta}.items()}
    write_tar(path, {f"{base}/{name}": content for name, content in names.items()}, "w:gz")

    def md5(content):
        return hashlib.md5(content).hexdigest()

    train = [[name, md5(names[name])] for name in files if "test" not in name]
    test = [[name, md5(names[name])] for name in files if "test" in name]
    (meta_name,) = meta
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", test)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta_name, "md5": md5(names[meta_name])})
    monkeypatch.setattr(kind, "tgz_md5", md5(path.read_bytes()))
    return md5(path.read_bytes())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, folder, monkeypatch):
    """The archive beside it is checked, then unpacked by torchvision; pixels and the official order stay exact."""
    expect(monkeypatch, name, 2)
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
    md5 = cifar_archive(path, monkeypatch, kind, base, files, meta)
    build.build(name)
    packed = data.load_packed(name)
    assert packed.class_names == ("cat", "dog") and packed.train_labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert np.array_equal(packed.train_images.numpy().reshape(6, -1), np.concatenate(rows[:2]))
    assert np.array_equal(packed.test_images.numpy().reshape(3, -1), rows[2])
    assert len(md5) == 32


def test_a_bad_checksum_is_never_unpickled(folder, monkeypatch):
    """An archive of another MD5 is refused before torchvision opens it."""
    path = folder / "archives" / "cifar" / "cifar-10-python.tar.gz"
    write_tar(path, {"cifar-10-batches-py/data_batch_1": b"anything"}, "w:gz")
    with pytest.raises(ValueError, match="expected MD5 c58f30108f718f92721af3b95e74349a of .*delete it"):
        build.build("cifar10")
    assert not (folder / "archives" / "cifar" / "cifar-10-batches-py").exists()


def caltech_101(n=33):
    return {
        f"101_ObjectCategories/{c}/image_{i:04d}.jpg": image(shade + i, form="PNG")
        for c, shade in (("BACKGROUND_Google", 250 - n), ("Faces", 0), ("ant", 100))
        for i in range(1, n + 1)
    }


@pytest.mark.parametrize("unpacked", [False, True])
def test_caltech_101(unpacked, folder, monkeypatch):
    """Thirty seeded images of every class train, the rest tests, the background is left out; archive or folder."""
    expect(monkeypatch, "caltech64", 2)
    home = folder / "archives" / "caltech101"
    home.mkdir(parents=True)
    if unpacked:
        for name, content in caltech_101().items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(content)
    else:
        write_tar(home / "inner.tar", caltech_101())
        inner = gzip.compress((home / "inner.tar").read_bytes())
        (home / "inner.tar").unlink()
        write_zip(home / "caltech-101.zip", {"caltech-101/101_ObjectCategories.tar.gz": inner})
        monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *_, **__: True)
    build.build("caltech64", size=8)
    packed = data.load_packed("caltech64")
    assert packed.class_names == ("Faces", "ant")
    assert packed.train_labels.bincount().tolist() == [30, 30] and packed.test_labels.bincount().tolist() == [3, 3]
    both = shades(packed.train_images) + shades(packed.test_images)
    assert sorted(both) == [*range(1, 34), *range(101, 134)]
    assert shades(packed.train_images)[:30] != list(range(1, 31))  # a random choice, not the first thirty


def test_caltech_256(folder, monkeypatch):
    """Nine in ten of every class train; torchvision's unpacked folder is enough."""
    expect(monkeypatch, "caltech256", 2)
    home = folder / "archives" / "caltech256" / "256_ObjectCategories"
    for c, category in ((1, "001.ak47"), (2, "002.clutter")):
        (home / category).mkdir(parents=True)
        for i in range(1, 21):
            (home / category / f"{c:03d}_{i:04d}.jpg").write_bytes(image(100 * c + i))
    build.build("caltech256", size=8)
    packed = data.load_packed("caltech256")
    assert packed.class_names == ("001.ak47", "002.clutter")
    assert packed.train_labels.bincount().tolist() == [18, 18] and packed.test_labels.bincount().tolist() == [2, 2]


def test_own_folder_of_images(folder):
    """Images in NAME/train/CLASS and NAME/test/CLASS become NAME.npz; size is asked for, classes must agree."""
    for part, n in (("train", 3), ("test", 1)):
        for c, name in enumerate(("cat", "dog")):
            (folder / "pets" / part / name).mkdir(parents=True)
            for i in range(n):
                (folder / "pets" / part / name / f"{i}.png").write_bytes(image(100 * c + i, (20, 12)))
    with pytest.raises(ValueError, match="add --size"):
        build.build("pets")
    build.build("pets", size=8)
    packed = data.load_packed("pets")
    assert packed.class_names == ("cat", "dog") and packed.train_labels.tolist() == [0] * 3 + [1] * 3
    assert shades(packed.train_images) == [0, 1, 2, 100, 101, 102] and packed.image_size == 8
    (folder / "pets.npz").unlink()
    (folder / "pets" / "test" / "fox").mkdir()
    (folder / "pets" / "test" / "fox" / "0.png").write_bytes(image(1))
    with pytest.raises(ValueError, match="same classes .* got 'fox' in one only"):
        build.build("pets", size=8)
    assert not list(folder.glob("*.npz"))


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ((10, 10, 30, 20), (100, 80), (10, 5, 30, 25)),  # the short side grows around its middle
        ((0, 0, 20, 10), (100, 80), (0, 0, 20, 20)),  # but stays in the image
        ((90, 60, 100, 80), (100, 80), (80, 60, 100, 80)),
        ((0, 0, 100, 80), (100, 80), (10, 0, 90, 80)),  # no larger than the image
        ((5, 5, 5, 5), (100, 80), (4, 4, 5, 5)),  # an empty box still gives a pixel
    ],
)
def test_square_around_a_box(box, size, expected):
    """The square holds the box where the image allows it and never leaves the image."""
    assert readers._square_around(box, size) == expected


def test_square_modes():
    """Grey, palette and transparent images come out as RGB; an exact multiple is averaged exactly."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert np.array_equal(readers.square(picture, 16), pixels)
    assert np.array_equal(readers.square(picture, 8), np.asarray(picture.reduce(2)))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        assert readers.square(picture.convert(mode), 5).shape == (5, 5, 3)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_missing_and_damaged_archives(folder, monkeypatch):
    """Missing, foreign, truncated and incomplete archives are named, and no packed file appears."""
    expect(monkeypatch, "cub200", 2)
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
    assert not list(folder.glob("*.npz*")) and not list(folder.glob(".*"))


def test_an_image_missing_from_the_archive(folder, monkeypatch):
    """A listed image that the archive lacks is an error, never an empty picture."""
    expect(monkeypatch, "cub200", 2)
    root = "CUB_200_2011"
    members = {
        f"{root}/images.txt": b"1 001.A/a.jpg\n2 002.B/b.jpg",
        f"{root}/image_class_labels.txt": b"1 1\n2 2",
        f"{root}/train_test_split.txt": b"1 1\n2 0",
        f"{root}/classes.txt": b"1 001.A\n2 002.B",
        f"{root}/images/001.A/a.jpg": image(1),
    }
    write_tar(folder / "archives" / "cub-200-2011" / "CUB_200_2011.tgz", members, "w:gz")
    with pytest.raises(ValueError, match=r"002.B/b.jpg in .*no such member \(1 missing in all\)"):
        build.build("cub200")


def test_build_arguments(folder):
    """Toys need no building, unknown names get a guess, sizes have limits, a finished file is kept."""
    with pytest.raises(ValueError, match="embedded"):
        build.build("toy_source")
    with pytest.raises(FileNotFoundError, match="did you mean 'cub200'"):
        build.build("cub20")
    with pytest.raises(ValueError, match="size in 8..1024"):
        build.build("cub200", size=4)
    rng = np.random.default_rng(0)
    content = {f"{p}_images": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8) for p in ("train", "test")}
    content |= {f"{p}_labels": np.arange(4) % 2 for p in ("train", "test")}
    np.savez(folder / "cifar10.npz", class_names=np.array(["a", "b"]), **content)
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


def test_fetch_takes_up_a_complete_part(publisher, tmp_path):
    """Killed between the last byte and the rename: nothing is fetched twice."""
    address, server = publisher
    (tmp_path / "a.tar.part").write_bytes(server.content)
    archive = Archive("a.tar", f"{address}/a.tar", hashlib.md5(server.content).hexdigest())
    assert archives.fetch(archive, tmp_path).read_bytes() == server.content


def test_fetch_refuses(publisher, tmp_path):
    """A wrong checksum leaves nothing behind; an absent file or publisher is said in one line."""
    address, _ = publisher
    with pytest.raises(ValueError, match="expected MD5 0000"):
        archives.fetch(Archive("a.tar", f"{address}/a.tar", "0000"), tmp_path)
    with pytest.raises(OSError, match="404.*by hand"):
        archives.fetch(Archive("a.tar", f"{address}/gone"), tmp_path)
    with pytest.raises(OSError, match="expected to reach"):
        archives.fetch(Archive("a.tar", "http://127.0.0.1:1/a.tar"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_download_is_asked_for(publisher, folder, monkeypatch):
    """`download=True` fetches each archive of the set and then builds as from archives that were there."""
    address, server = publisher
    expect(monkeypatch, "cub200", 2)
    monkeypatch.setitem(
        SOURCES,
        "cub200",
        dataclasses.replace(SOURCES["cub200"], archives=(Archive("CUB_200_2011.tgz", f"{address}/x"),)),
    )
    with pytest.raises(FileNotFoundError):
        build.build("cub200")
    assert server.asked == []
    with pytest.raises(ValueError, match="damaged"):  # what the server has is no archive
        build.build("cub200", download=True)
    assert server.asked == [None]


# -- python -m twinslib data ---------------------------------------------------------------------------------------


def call(*words):
    parser = argparse.ArgumentParser()
    build.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *words])
    return args.func(args)


def test_every_source_is_complete():
    """Each known set has a reader, an archive and a page, and the command explains it."""
    assert set(SOURCES) == set(readers.READERS)
    for source in SOURCES.values():
        assert source.archives and source.page.startswith("http") and source.num_classes > 1


def test_commands(folder, capsys):
    """list tells present, missing and damaged apart; check counts; explain names the archive; all return 0."""
    rng = np.random.default_rng(0)
    content = {f"{p}_images": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8) for p in ("train", "test")}
    content |= {f"{p}_labels": np.arange(5) % 2 for p in ("train", "test")}
    np.savez(folder / "mine.npz", class_names=np.array(["cat", "dog"]), **content)
    (folder / "cifar10.npz").write_bytes(b"cut short")
    assert call("list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == {"toy_source", "toy_target", "mine", *SOURCES}
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


def test_build_command(folder, capsys):
    """build prints the path of each file that it made."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "pets" / part / name).mkdir(parents=True)
            (folder / "pets" / part / name / "0.png").write_bytes(image(9))
    assert call("build", "pets", "--size", "8") == 0
    assert capsys.readouterr().out.strip() == str(folder / "pets.npz")
