"""Notes which files the project opens to read, so that a test can count them."""

from __future__ import annotations

from typing import BinaryIO

import pytest

from components import storage


def note_files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URL of every file that is opened or read from now on, in order."""
    read: list[str] = []
    open_read, read_bytes = storage.open_read, storage.read_bytes

    def noting_open(url: str) -> BinaryIO:
        read.append(url)
        return open_read(url)

    def noting_read(url: str) -> bytes:
        read.append(url)
        return read_bytes(url)

    monkeypatch.setattr(storage, "open_read", noting_open)
    monkeypatch.setattr(storage, "read_bytes", noting_read)
    return read
