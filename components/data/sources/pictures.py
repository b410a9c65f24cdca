"""Folders of picture files: `CLASS/*.png`, optionally below `train/` and `test/`; without class folders the pictures are unlabelled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.data.pictures import SUFFIXES, decode
from components.data.prepare_config import PrepareConfig
from components.data.sources.folder import SourceFile
from components.data.sources.reader import IMAGE, SPLIT_WORDS, Group, RawColumn, Scan, picture_column
from components.errors import UserError

UNREAD_SUFFIXES = (".gif", ".bmp", ".webp", ".tif", ".tiff", ".heic")


class PictureReader:
    options = frozenset({"size", "fit", "channels"})

    def claims(self, path: str) -> bool:
        return path.lower().endswith(SUFFIXES)

    def groups(self, files: list[SourceFile]) -> list[Group]:
        return [(file,) for file in files]

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        column = picture_column(decode(group[0].read(), group[0].place), config)
        return {"train": Scan(1, {IMAGE: column}, -1)}

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> dict[str, RawColumn]:
        return {IMAGE: RawColumn([decode(group[0].read(), group[0].place)], True, group[0].place)}


@dataclass(frozen=True)
class Place:
    """Where a picture file stands in the folders: its split and its class (None when unlabelled)."""

    split: str
    class_name: str | None


def places_of(paths: list[str], url: str) -> list[Place]:
    """Split and class by path; the first folders are splits when all of them are named like one, the next ones are classes.

    Raises UserError naming a file that has no class while others do.
    """
    tops = {path.split("/")[0] for path in paths if "/" in path}
    by_split = bool(tops) and all(top.lower() in SPLIT_WORDS for top in tops) and all("/" in path for path in paths)
    places = []
    for path in paths:
        folders = path.split("/")[:-1]
        split = SPLIT_WORDS[folders.pop(0).lower()] if by_split else "train"
        places.append(Place(split, folders[0] if folders else None))
    stray = next((path for path, place in zip(paths, places, strict=True) if place.class_name is None), None)
    if stray is not None and any(place.class_name is not None for place in places):
        raise UserError(f"source {url}: {stray} lies beside the class folders; move it into one, or all pictures out of them")
    return places
