"""Pictures: PNG, JPEG and PGM/PPM bytes to pixels, and pixels of any size and colour to the (C, H, W) of a data set."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from components.data.prepare_config import PictureConfig
from components.errors import UserError

FORMATS = ("PNG", "JPEG", "PPM")  # Pillow's PPM reads PBM, PGM and PPM
SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm")
MAX_PIXELS = 10**8  # a small file can claim to be a huge picture

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(data: bytes, name: str) -> np.ndarray:
    """Pixels, (H, W) grey or (H, W, 3) colour, uint8, upright; raises UserError naming `name` when it is no picture or damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()  # PNG: checksums and the end mark, which loading does not look at
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; make it smaller")
            image.load()
            return _pixels(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except _DAMAGED as error:
        cause = "it is none of these" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{name} is no readable PNG, JPEG or PGM picture: {cause}; mend it or remove it") from None


def shape_of(pixels: np.ndarray, config: PictureConfig) -> tuple[int, int, int]:
    """The (C, H, W) that `to_row` makes of pixels (H, W) or (H, W, 3)."""
    channels = config.channels or (1 if pixels.ndim == 2 else 3)
    height, width = config.size or pixels.shape[:2]
    return channels, height, width


def to_row(pixels: np.ndarray, config: PictureConfig, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) as uint8 of `shape` (C, H, W); raises UserError naming `name` when they do not come to that."""
    found = shape_of(pixels, config)
    if found != shape:
        option = "size" if found[1:] != shape[1:] else "channels"
        raise UserError(
            f"{name} is a picture of {_say(found)}, the first one is of {_say(shape)}; give {option}= to bring all pictures to one {option}"
        )
    if config.changes:
        pixels = _fit(Image.fromarray(pixels), config)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def _fit(image: Image.Image, config: PictureConfig) -> np.ndarray:
    if config.channels is not None:
        image = image.convert("L" if config.channels == 1 else "RGB")
    if config.size is not None and image.size != config.size[::-1]:
        width_height = config.size[::-1]
        if config.fit == "stretch":
            image = image.resize(width_height, Image.Resampling.BICUBIC)
        else:
            image = ImageOps.fit(image, width_height, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits a pixel: the upper eight
        return (np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8).astype(np.uint8)
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _say(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]} pixels and {shape[0]} channel{'s' if shape[0] > 1 else ''}"
