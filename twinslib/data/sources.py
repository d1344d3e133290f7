"""The known image sets: what each is, whose it is, and which files its publisher offers. Facts only, no code that runs.

A set that is not listed here needs no entry: a `NAME.npz` in the data folder works by its name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it, with its checksum where one is published or pinned.

    `md5` is pinned by torchvision, `sha256` by TensorFlow Datasets. The archives of CUB-200 (2010) have neither.
    """

    file: str
    url: str
    md5: str | None = None
    sha256: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Name of the hash and the digest, or None."""
        return ("MD5", self.md5) if self.md5 else ("SHA256", self.sha256) if self.sha256 else None


@dataclass(frozen=True)
class DataSource:
    """A known image set, with all its training images.

    `archives` are looked for in the folder `archives/FOLDER` of the data folder.
    """

    description: str
    num_classes: int
    image_size: int
    train_images: int
    folder: str
    archives: tuple[Archive, ...]
    page: str
    licence: str


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
_CUB_2010 = "http://www.vision.caltech.edu/visipedia-data/CUB-200/"
_CALTECH = "https://data.caltech.edu/records/"
_IMAGENET_TERMS = "images from ImageNet: non-commercial research and education only"
_PHOTO_TERMS = "images stay with their photographers: non-commercial research and education only"
_CIFAR_TERMS = "no licence stated; cite the technical report (Krizhevsky 2009)"
_DOGS_SUMS = {"images.tar": "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
              "lists.tar": "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
              "annotation.tar": "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd"}
_DOGS_ARCHIVES = tuple(Archive(name, _DOGS + name, sha256=digest) for name, digest in _DOGS_SUMS.items())


def _at(folder: str, file: str, md5: str) -> tuple[Archive]:
    """The one archive of a set, in a folder on its publisher's server."""
    return (Archive(file, folder + file, md5),)


SOURCES: dict[str, DataSource] = {  # description, classes, pixels, training images, folder, archives, page, licence
    "tinyimagenet32": DataSource(
        "Tiny-ImageNet-200, halved to 32 pixels; test: the labelled validation images", 200, 32, 100_000, "tiny-imagenet",
        _at("http://cs231n.stanford.edu/", "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
        "http://cs231n.stanford.edu/", _IMAGENET_TERMS),
    "cifar10": DataSource(
        "CIFAR-10, official split", 10, 32, 50_000, "cifar",
        _at(_CIFAR, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"), _CIFAR + "cifar.html", _CIFAR_TERMS),
    "cifar100": DataSource(
        "CIFAR-100, fine labels, official split", 100, 32, 50_000, "cifar",
        _at(_CIFAR, "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"), _CIFAR + "cifar.html", _CIFAR_TERMS),
    "caltech64": DataSource(
        "Caltech-101 without the background class, centre crop; 30 seeded training images per class, the rest test", 101, 64,
        3_030, "caltech101",
        _at(_CALTECH + "mzrjq-6wc02/files/", "caltech-101.zip", "3138e1922a9193bfa496528edbbc45d0"),
        _CALTECH + "mzrjq-6wc02", "CC BY 4.0"),
    "cub64": DataSource(
        "Caltech-UCSD Birds 200 (2010 edition), official split, cropped to the bird's box", 200, 64, 3_000, "cub-200-2010",
        tuple(Archive(name, _CUB_2010 + name) for name in ("images.tgz", "lists.tgz", "annotations.tgz")),
        "https://www.vision.caltech.edu/datasets/cub_200_2010/", _PHOTO_TERMS),
    "dogs64": DataSource(
        "Stanford Dogs, official split, cropped to the dog's box", 120, 64, 12_000, "stanford-dogs", _DOGS_ARCHIVES, _DOGS,
        _IMAGENET_TERMS),
    "caltech256": DataSource(
        "Caltech-256 with the clutter class, centre crop; seeded 9:1 split of every class", 257, 256,
        27_660,  # about nine tenths of 30,607
        "caltech256",
        _at(_CALTECH + "nyy15-4j048/files/", "256_ObjectCategories.tar", "67b4f42ca05d46448c6bb8ecd2220f6d"),
        _CALTECH + "nyy15-4j048", "CC BY 4.0"),
    "cub200": DataSource(
        "Caltech-UCSD Birds-200-2011, official split, centre crop", 200, 256, 5_994, "cub-200-2011",
        _at(_CALTECH + "65de6-vp158/files/", "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"),
        "https://www.vision.caltech.edu/datasets/cub_200_2011/", _PHOTO_TERMS),
    "dogs": DataSource(
        "Stanford Dogs, official split, whole image, centre crop", 120, 256, 12_000, "stanford-dogs", _DOGS_ARCHIVES[:2], _DOGS,
        _IMAGENET_TERMS),
}
