"""Collections of pictures that a user gets by name; a new one is one file here and one line in `COLLECTIONS`."""

from __future__ import annotations

from contextlib import suppress

from components import storage
from components.config import Config
from components.data.collections.collection import Collection, Fetched, OnProgress
from components.data.collections.glyphs import GlyphsConfig, fetch_glyphs
from components.data.collections.orl import OrlConfig, fetch_orl
from components.errors import UserError, did_you_mean

COLLECTIONS = {
    "glyphs": Collection(
        "Chinese characters in the faces of many fonts: 10,240 to train on, 1,000 others to test", GlyphsConfig, fetch_glyphs
    ),
    "orl": Collection("ORL faces of AT&T Laboratories Cambridge: 40 people, 10 pictures of each", OrlConfig, fetch_orl),
}


def find_collection(name: str) -> Collection:
    """The collection of this name; raises UserError with the nearest one when there is none."""
    if name not in COLLECTIONS:
        raise UserError(f"there is no collection {name!r}; {did_you_mean(name, COLLECTIONS)}")
    return COLLECTIONS[name]


def fetch(name: str, out: str, config: Config, on_progress: OnProgress | None = None) -> Fetched:
    """Gets a collection into the folder or prefix `out`, which must be empty, and says what is there now.

    Raises UserError when there is no such collection, something lies at `out`, or it cannot be had; then `out` stays as it was.
    """
    collection = find_collection(name)
    assert isinstance(config, collection.config), f"{name} takes a {collection.config.__name__}, not a {type(config).__name__}"
    if storage.size(out) is not None or storage.list_names(out):
        raise UserError(f"fetch {name}: {out} is not empty; name another place, or remove it")
    try:
        return collection.fetch(out, config, on_progress or (lambda done, total: None))
    except BaseException:
        with suppress(UserError):  # a storage that fails must not hide why it failed
            for made in storage.list_names(out):
                storage.remove(storage.join(out, made))
        raise
