"""The people that a face system knows: one Arrow IPC file with a row for each, which any pyarrow reads.

A person's embedding is the normalised mean of the normalised embeddings of their pictures. The file says which model made them and from
which cosine on two faces are one person's; what another model made means nothing to this one and is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from components import storage
from components.config import Config
from components.errors import UserError, did_you_mean
from components.faces.aligner import FaceConfig

METADATA = b"raymill.gallery"


class GalleryHeader(Config):
    """What holds for all people of a gallery."""

    model: str = Field(description="fingerprint of the model that made the embeddings")
    embedding_dim: int = Field(gt=0)
    threshold: float = Field(ge=-1, le=1, description="cosine from which two faces count as one person's")
    false_accept_rate: float | None = Field(None, gt=0, lt=1, description="at which the threshold was chosen, where it was measured")
    faces: FaceConfig = Field(FaceConfig(), description="how faces were found and aligned")


class _Stored(GalleryHeader):
    """The header in the file, with the SHA-256 of itself and the rows."""

    version: int = Field(1, ge=1, le=1)
    sha256: str


@dataclass(frozen=True)
class Match:
    """Who a face is: the name of the most similar person, or None when nobody is similar enough; and their cosine."""

    name: str | None
    score: float


@dataclass(frozen=True)
class Verdict:
    """Whether a face is who it is said to be: accepted when the cosine is at least the threshold."""

    accepted: bool
    score: float
    threshold: float


@dataclass(frozen=True)
class Gallery:
    """Names (N), unit embeddings (N, D) float32, and how many pictures each is the mean of; in order of enrolment."""

    header: GalleryHeader
    names: tuple[str, ...]
    embeddings: np.ndarray
    pictures: tuple[int, ...]

    @classmethod
    def empty(cls, header: GalleryHeader) -> Gallery:
        return cls(header, (), np.empty((0, header.embedding_dim), np.float32), ())

    def enrol(self, people: Mapping[str, np.ndarray], replace: bool = False) -> Gallery:
        """This gallery with more people, each with the embeddings (n, D) of n >= 1 pictures.

        Raises UserError for somebody who is there already, unless they are to be replaced.
        """
        known = [name for name in people if name in self.names]
        if known and not replace:
            raise UserError(f"{known[0]!r} is in the gallery already; remove the folder or ask to replace known people")
        stay = [i for i, name in enumerate(self.names) if name not in people]
        added = [_mean(embeddings, self.header.embedding_dim) for embeddings in people.values()]
        return Gallery(
            self.header,
            (*(self.names[i] for i in stay), *people),
            np.stack([*self.embeddings[stay], *added]) if stay or added else self.embeddings,
            (*(self.pictures[i] for i in stay), *(len(embeddings) for embeddings in people.values())),
        )

    def identify(self, embedding: np.ndarray) -> Match:
        """Who a face with this embedding (D,) is; the first enrolled of equally similar people, and nobody in an empty gallery."""
        if not self.names:
            return Match(None, -1.0)
        scores = self.embeddings @ _unit(embedding)
        best = int(scores.argmax())
        score = float(scores[best])
        return Match(self.names[best] if score >= self.header.threshold else None, score)

    def verify(self, name: str, embedding: np.ndarray) -> Verdict:
        """Whether a face with this embedding (D,) is the person `name`; raises UserError with the nearest name for a stranger."""
        if name not in self.names:
            raise UserError(f"nobody named {name!r} is in the gallery; {did_you_mean(name, self.names)}")
        score = float(self.embeddings[self.names.index(name)] @ _unit(embedding))
        return Verdict(score >= self.header.threshold, score, self.header.threshold)

    def with_threshold(self, threshold: float) -> Gallery:
        """The same people with another threshold, of which no false accept rate is known; raises UserError outside [-1, 1]."""
        values = self.header.to_json() | {"threshold": threshold, "false_accept_rate": None}
        return dataclasses.replace(self, header=GalleryHeader.parse(values, "gallery"))


def write_gallery(gallery: Gallery, url: str) -> None:
    """Writes the gallery at `url` (local or s3://) in one atomic step; when it fails, the one of before is still there."""
    header = _Stored(**gallery.header.to_json(), sha256=_checksum(gallery))
    schema = _schema(gallery.header.embedding_dim).with_metadata({METADATA: header.model_dump_json().encode()})
    flat = pa.array(np.ascontiguousarray(gallery.embeddings, np.float32).reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, gallery.header.embedding_dim)
    columns = [pa.array(gallery.names, pa.string()), embeddings, pa.array(gallery.pictures, pa.int32())]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema))
    storage.write_bytes(url, sink.getvalue().to_pybytes())


def read_gallery(url: str, model: str | None = None) -> Gallery:
    """The gallery at `url`; raises UserError when it is missing, foreign or damaged, or (with `model`) made by another model."""
    try:
        table = pa.ipc.open_file(pa.py_buffer(storage.read_bytes(url))).read_all()
        stored = (table.schema.metadata or {}).get(METADATA)
        if stored is None:
            raise UserError(f"{url} is an Arrow file but no gallery; give one that raymill faces enroll made")
        header = _Stored.model_validate_json(stored)
        if not table.schema.equals(_schema(header.embedding_dim)):
            raise UserError(f"{url} has other columns than a gallery; give one that raymill faces enroll made")
        table.validate(full=True)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{url} is no readable gallery: {error}; it is another file, or was cut short or altered") from None
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, header.embedding_dim)
    plain = GalleryHeader.parse(header.model_dump(mode="json", exclude={"version", "sha256"}), url)
    gallery = Gallery(plain, tuple(table["name"].to_pylist()), vectors, tuple(table["pictures"].to_pylist()))
    if _checksum(gallery) != header.sha256:
        raise UserError(f"{url} was altered: its content has sha256 {_checksum(gallery)}, expected {header.sha256}; enrol its people again")
    if model is not None and model != header.model:
        raise UserError(f"{url} was made by the model {header.model}, this is the model {model}; use that one, or enrol the people anew")
    return gallery


def _schema(embedding_dim: int) -> pa.Schema:
    embedding = pa.list_(pa.field("item", pa.float32(), nullable=False), embedding_dim)
    fields = [("name", pa.string()), ("embedding", embedding), ("pictures", pa.int32())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _checksum(gallery: Gallery) -> str:
    digest = hashlib.sha256(gallery.header.model_dump_json().encode())
    digest.update(np.ascontiguousarray(gallery.embeddings, "<f4").tobytes())
    for name, pictures in zip(gallery.names, gallery.pictures, strict=True):
        digest.update(f"{name}\0{pictures}\0".encode())
    return digest.hexdigest()


def _mean(embeddings: np.ndarray, embedding_dim: int) -> np.ndarray:
    assert embeddings.ndim == 2, f"embeddings have shape {embeddings.shape}, expected (n, {embedding_dim})"
    assert embeddings.shape[0] >= 1, "a person without pictures"
    assert embeddings.shape[1] == embedding_dim, f"embeddings of {embeddings.shape[1]} numbers, expected {embedding_dim}"
    return _unit(np.mean([_unit(embedding) for embedding in embeddings], axis=0))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector.astype(np.float64))
    assert np.isfinite(length), "an embedding that is not finite"
    assert length > 0, "an embedding of length zero"
    return (vector / length).astype(np.float32)
