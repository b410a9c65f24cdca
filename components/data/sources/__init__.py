"""Kinds of source files; a new kind is one reader here and one line in `READERS`."""

from __future__ import annotations

from components.data.sources.folder import SourceFolder
from components.data.sources.idx import IdxReader
from components.data.sources.npz import NpzReader
from components.data.sources.parquet import ParquetReader
from components.data.sources.pictures import UNREAD_SUFFIXES, PictureReader
from components.data.sources.reader import Reader
from components.data.sources.tar import TarReader
from components.errors import UserError

PICTURES = "pictures"
READERS: dict[str, Reader] = {
    "idx": IdxReader(),
    PICTURES: PictureReader(),
    "npz": NpzReader(),
    "parquet": ParquetReader(),
    "tar": TarReader(),
}
_KNOWN = "IDX (NAME-images-idx3-ubyte), pictures (.png .jpg .pgm), .npz, .parquet, .tar"


def find_kind(source: SourceFolder) -> tuple[str, list[str]]:
    """The kind of a source and its files of that kind, sorted; other files are left alone.

    Raises UserError when there is no such file, or there are several kinds, or pictures of a format that is not read.
    """
    claimed = {kind: [path for path in source.files if reader.claims(path)] for kind, reader in READERS.items()}
    claimed = {kind: paths for kind, paths in claimed.items() if paths}
    if not claimed:
        raise UserError(f"source {source.url} has no file of a known kind (there is {source.files[0]}); known: {_KNOWN}")
    if len(claimed) > 1:
        examples = ", ".join(f"{paths[0]} ({kind})" for kind, paths in claimed.items())
        raise UserError(f"source {source.url} mixes kinds of files: {examples}; give each kind a folder of its own")
    ((kind, paths),) = claimed.items()
    unread = [path for path in source.files if path.lower().endswith(UNREAD_SUFFIXES)]
    if kind == PICTURES and unread:
        raise UserError(f"source {source.url}: {unread[0]} is a picture of a format that is not read; convert it to PNG or remove it")
    return kind, paths
