"""One image file of any common kind to 8-bit RGB as a viewer shows it, or an error that names the file."""

import contextlib
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# what Pillow reads by itself; others (EPS, PDF, camera raw) call programs, need extras or have no one picture
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_PIXELS = 2**30 // 12  # from here on Pillow warns of a decompression bomb
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


def formats() -> list[str]:
    """Formats that are read, as far as this Pillow has them."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def suffixes() -> set[str]:
    """Endings, in lower case, of the files that are taken for images."""
    known = set(formats())
    return {suffix for suffix, name in Image.registered_extensions().items() if name in known}


def decode(source: Path | BinaryIO, where: str, *, as_shown: bool = True) -> tuple[Image.Image, bool]:
    """Return the (first) picture in `source` as 8-bit RGB, and whether there are more after it.

    As shown: turned as EXIF says, 16 bits scaled to 8, transparency on white. Otherwise Pillow's `convert` of the
    stored pixels, as the usual loaders of published sets read them.

    Args:
        where: what messages call the file.
    Raises:
        ValueError: a broken or foreign file, 32-bit values, or more than `MOST_PIXELS` pixels.
    """
    then = "replace it or take it out"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, refused below, and of metadata, without the file's name
            with Image.open(source, formats=formats()) as image:
                pixels = image.width * image.height
                if pixels <= MOST_PIXELS:
                    more = getattr(image, "is_animated", False) and image.format != "MPO"  # there: previews
                    return (_as_shown(image) if as_shown else image.convert("RGB")), more
        got, then = f"{pixels} pixels, more than {MOST_PIXELS}", "shrink it or take it out"
    except Image.DecompressionBombError:
        got, then = f"more than {MOST_PIXELS} pixels", "shrink it or take it out"
    except UnidentifiedImageError:
        got = f"an empty file, or none of {', '.join(formats())}"
    except Exception as error:  # a broken file can make a decoder raise anything
        got = f"{error or type(error).__name__}"
    raise ValueError(f"expected a whole image in {where}, got {got}; {then}")


def _as_shown(image: Image.Image) -> Image.Image:
    clear, kind, tags, mask = _clear(image), image.format, getattr(image, "tag_v2", {}), None
    image.load()
    with contextlib.suppress(Exception):  # broken metadata around whole pixels: viewers show them as they are
        image = ImageOps.exif_transpose(image)  # after load: Pillow turns TIFF itself
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(image)
        mask = values == clear if clear is not None else None
        image = _eight_bits(values, tags)
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit values (mode {image.mode}), of which none is known to be white: use 8 or 16 bits")
    elif clear is not None:
        image.info["transparency"] = clear
    if mask is not None:
        image.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _clear(image: Image.Image) -> int | bytes | tuple[int, ...] | None:
    """The transparent grey or colour before loading; a PNG gives it at the file's depth, Pillow's pixels have 8 bits."""
    clear = image.info.get("transparency")
    if clear is None or image.format != "PNG" or not image.tile:
        return clear
    raw = image.tile[0][3]
    raw = raw if isinstance(raw, str) else raw[0]
    if isinstance(clear, tuple):
        return tuple(value >> 8 for value in clear) if raw == "RGB;16B" else clear
    return clear * {"L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(clear, int) else clear


def _eight_bits(values: np.ndarray, tags: dict) -> Image.Image:
    """Scale grey values to 0..255; `tags` of a TIFF tell 12 bits from 16, and whether 0 is white."""
    bits = tags.get(_BITS, (16,))[0]
    grey = np.rint(values.astype(np.float32) * (255 / (2**bits - 1))).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey)
