"""Draws characters in a font's face as small grey pictures, light ink on black, each where the font places it.

Smallest use: `Pen("DejaVuSans.ttf", 0, 32, range(0x41, 0x5B)).draw([0x41])`, a picture of the letter A.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from components.errors import UserError

INK = 255


class Pen:
    """One face at one size: the cell of a character (its usual advance) is as wide as the picture; characters stand in the middle."""

    def __init__(self, file: str, index: int, size: int, alphabet: range) -> None:
        """Opens face `index` of a font file to draw characters of the alphabet on `size` x `size` pixels.

        Raises UserError when the file is no font, or has no such face.
        """
        logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of odd dates in old fonts
        try:
            with TTFont(file, fontNumber=index, lazy=True) as font:
                glyphs = {character: glyph for character, glyph in (font.getBestCmap() or {}).items() if character in alphabet}
                em = font["head"].unitsPerEm
                advance = float(np.median([font["hmtx"][glyph][0] for glyph in glyphs.values()])) if glyphs else em
            # the basic layout: one character at a time needs no shaping, and an optional library must not change the picture
            self._font = ImageFont.truetype(file, size * em / (advance or em), index=index, layout_engine=ImageFont.Layout.BASIC)
        except (OSError, TTLibError, KeyError) as error:
            raise UserError(f"font {file}, face {index}, cannot be opened: {error}; install its package again") from None
        self.characters = tuple(sorted(glyphs))  # code points of the alphabet that the face maps to a glyph
        self._size = size

    def draw(self, characters: Sequence[int]) -> np.ndarray:
        """Pictures (N, size, size) uint8 of characters that the face has. The median of all boxes is the face's middle."""
        pictures = np.zeros((len(characters), self._size, self._size), np.uint8)
        if not len(characters):
            return pictures
        boxes = np.array([self._font.getbbox(chr(character), anchor="ls") for character in characters])
        origin = self._size / 2 - np.median((boxes[:, :2] + boxes[:, 2:]) / 2, axis=0)
        place = (round(float(origin[0])), round(float(origin[1])))  # whole pixels: hinted strokes stay sharp
        for number, character in enumerate(characters):
            picture = Image.new("L", (self._size, self._size))
            ImageDraw.Draw(picture).text(place, chr(character), fill=INK, font=self._font, anchor="ls")
            pictures[number] = np.asarray(picture)
        return pictures


def tells_apart(pictures: np.ndarray) -> np.ndarray:
    """Which pictures (N, H, W) show one character and no other: False (N,) for empty ones and for those that are there more than once.

    A face that lacks a character may still map it, to nothing or to one and the same placeholder.
    """
    if not len(pictures):
        return np.zeros(0, bool)
    flat = pictures.reshape(len(pictures), -1)
    _, inverse, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
    return flat.any(axis=1) & (counts[inverse.reshape(-1)] == 1)
