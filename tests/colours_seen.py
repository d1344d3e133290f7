"""How far apart colours look, to all and to the colour-blind: simulated by Machado, Oliveira and Fernandes (2009), severity 1."""

import itertools
from collections.abc import Iterable

import numpy as np
from matplotlib.colors import to_rgb

KINDS = {  # of linear red, green and blue
    "all": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def lab(colour: str, kind: str) -> np.ndarray:
    """CIE 1976 L*, a*, b* (white point of sRGB) of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(KINDS[kind] @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: Iterable[str]) -> tuple[float, tuple[str, str, str]]:
    """The least distance of two of the colours to anybody, and which two to whom; about 2 can just be told apart side by side."""
    pairs = itertools.product(itertools.combinations(sorted(set(colours)), 2), KINDS)
    return min((float(np.linalg.norm(lab(a, kind) - lab(b, kind))), (a, b, kind)) for (a, b), kind in pairs)
