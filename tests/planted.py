"""Fake secrets that are planted where real ones lie, and the search for them in all that was written: plain, quoted, encoded, packed."""

from __future__ import annotations

import base64
import gzip
import io
import json
import secrets
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path


class Planted:
    """One random text for each name; those for URLs have no signs that need quoting there."""

    def __init__(self, *names: str, in_urls: tuple[str, ...] = ()) -> None:
        self.values: dict[str, str] = {}
        self._forms: dict[bytes, str] = {}
        for name in (*names, *in_urls):
            self.plant(name, secrets.token_hex(16) if name in in_urls else f"{secrets.token_hex(8)}/+{secrets.token_hex(8)}")

    def plant(self, name: str, value: str) -> None:
        """Searches for this one too."""
        self.values[name] = value
        self._forms |= {form.encode(): name for form in _forms(value)}

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def found(self, data: bytes | str) -> set[str]:
        """Names of the secrets that are in the bytes, in zip and gzip files inside too."""
        data = data.encode() if isinstance(data, str) else data
        names = {name for form, name in self._forms.items() if form in data}
        return names.union(*(self.found(part) for part in _packed(data)))

    def found_below(self, folder: Path) -> dict[str, set[str]]:
        """File -> the secrets in its bytes or name, of those that have any; all files below count, unfinished and hidden ones too."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files, f"nothing was written below {folder}"
        looked = {str(path): self.found(path.read_bytes()) | self.found(str(path)) for path in files}
        return {path: names for path, names in looked.items() if names}


def _forms(value: str) -> Iterator[str]:
    """The text as it may be written: as it is, quoted for a URL or JSON, in hexadecimal, in base64 at any place of a longer text."""
    yield from (value, urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value), json.dumps(value)[1:-1])
    yield from (value.replace("/", "\\/"), value.encode().hex())
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + value.encode()).decode().rstrip("=")
        middle = whole[4 if before else 0 : -3]  # without what the neighbours decide too
        yield from (middle, middle.replace("+", "-").replace("/", "_"))


def _packed(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
