"""A model on disk: `model.safetensors` and `config.json`, nothing else. It opens with no pipeline, no Ray and no pickle.

`load_model("store/artifacts/prior-.../model")` gives the family, ready to sample or evaluate. Models that belong to it (a prior's
tokenizer) lie in `children/<name>/`, whole model folders themselves. Rows of sharded children, which only training needs, lie in files of
their own, one for each worker that trained; `load_model` leaves them there, `read_model_rows` reads some.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from components import storage
from components.config import Config, fingerprint
from components.errors import UserError, did_you_mean
from components.families.catalogue import FAMILIES
from components.families.contract import Family, replicated
from components.training.communication import Communication
from components.training.row_files import Rows, Spans, read_rows, require_sum, upload_rows

WEIGHTS, COMMIT, CHILDREN = "model.safetensors", "config.json", "children"
FORMAT_VERSION = 1


def family_class(name: str) -> type[Family]:
    """The class behind a catalogue name; raises UserError with the nearest known name."""
    if name not in FAMILIES:
        raise UserError(f"unknown family {name!r}; {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def save_model(
    family: Family, url: str, children: dict[str, str] | None = None, rows: Rows | None = None, world: Communication | None = None
) -> None:
    """Writes the model folder at `url`; `children` maps names to model folders to copy in. The config is the commit, written last.

    With `rows`, this worker's of the sharded children, every worker of `world` must call; rank 0 writes all the rest.
    """
    world = world or Communication()
    if world.rank == 0:
        storage.remove(url)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "model"
        local.mkdir()
        row_files, row_sums = upload_rows(local, url, rows or {}, world)
        if world.rank:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in replicated(family).items()}
        safetensors.torch.save_file(tensors, local / WEIGHTS)
        for child, source in (children or {}).items():
            for file in storage.list_files(source):
                place = local / CHILDREN / child / file
                place.parent.mkdir(parents=True, exist_ok=True)
                storage.download(storage.join(source, file), str(place))
        sums = {str(f.relative_to(local)): storage.sha256_file(str(f)) for f in sorted(local.rglob("*")) if f.is_file()} | row_sums
        name = next(name for name, cls in FAMILIES.items() if cls is type(family))
        header: dict[str, Any] = {"format_version": FORMAT_VERSION, "family": name, "config": family.config.to_json(), "sha256": sums}
        storage.write_json(str(local / COMMIT), header | ({"rows": row_files} if row_files else {}))
        storage.upload_folder(str(local), url, last=COMMIT)


def load_model(url: str, expect: str | None = None) -> Family:
    """The model of the folder at `url`, in evaluation mode on the CPU.

    Raises UserError when the folder is missing or incomplete, of another version or (with `expect`) of another family, when weights are a
    pickle, damaged or do not fit the config.
    """
    header = _header(url)
    if expect is not None and header["family"] != expect:
        raise UserError(
            f"model folder {url} holds a {header['family']!r} model, expected {expect!r}; give the folder of a {expect!r} model"
        )
    cls = family_class(header["family"])
    family = cls(cls.Config.parse(header["config"], storage.join(url, COMMIT)))
    _load_weights(family, url, header["sha256"].get(WEIGHTS))
    for child in storage.list_names(storage.join(url, CHILDREN)):
        family.adopt(child, load_model(storage.join(url, CHILDREN, child)))
    return family.eval()


def model_fingerprint(url: str) -> str:
    """Of the weights and config of the model at `url`, by the checksums of its folder; raises UserError when there is none."""
    header = _header(url)
    return fingerprint([header["family"], header["config"], header["sha256"]])


def read_model_rows(url: str, spans: Spans) -> Rows:
    """Rows of the sharded children of the model at `url`: child -> those in its span. Raises UserError when they are not all there."""
    header = _header(url)
    return read_rows(url, header.get("rows", {}), header["sha256"], spans)


def copy_model(url: str, out: str, config: Config) -> None:
    """Copies the model folder at `url` to `out` with other values in its config, of which none may change the weights' shapes."""
    header = _header(url)
    assert header["config"].keys() == config.to_json().keys(), "a config of another family"
    storage.remove(out)
    with tempfile.TemporaryDirectory() as scratch:
        for name in header["sha256"]:
            local = str(Path(scratch) / "file")
            storage.download(storage.join(url, name), local)
            storage.upload(local, storage.join(out, name))
    storage.write_json(storage.join(out, COMMIT), header | {"config": config.to_json()})


def verify_model(url: str) -> int:
    """Checks every file of the folder against its checksum and opens the model; returns the number of files. Raises UserError."""
    header = _header(url)
    for name, expected in header["sha256"].items():
        with tempfile.TemporaryDirectory() as scratch:
            local = str(Path(scratch) / "file")
            storage.download(storage.join(url, name), local)
            require_sum(storage.join(url, name), storage.sha256_file(local), expected)
    load_model(url)
    return len(header["sha256"])


def _header(url: str) -> dict:
    place = storage.join(url, COMMIT)
    if not storage.exists(place):
        raise UserError(f"{url} is no model folder: it has no {COMMIT}; give a folder made by raymill train or raymill run")
    header = storage.read_json(place)
    if not isinstance(header, dict) or not {"format_version", "family", "config", "sha256"} <= set(header):
        raise UserError(f"{place} is no model header: expected the keys format_version, family, config and sha256")
    if header["format_version"] != FORMAT_VERSION:
        raise UserError(f"{place} has format version {header['format_version']}, this Raymill reads {FORMAT_VERSION}")
    return header


def _load_weights(family: Family, url: str, expected_sum: str | None) -> None:
    place = storage.join(url, WEIGHTS)
    if not storage.exists(place):
        others = [name for name in storage.list_names(url) if name.endswith((".pt", ".pth", ".bin", ".pkl", ".ckpt"))]
        found = f"; {others[0]!r} there is a pickle, which is never loaded" if others else ""
        raise UserError(f"model folder {url} has no {WEIGHTS}{found}; weights must be safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        local = str(Path(scratch) / WEIGHTS)
        storage.download(place, local)
        try:
            tensors = safetensors.torch.load_file(local)
        except SafetensorError as error:
            raise UserError(f"{place} is not a safetensors file ({error}); pickles are never loaded, weights must be safetensors") from None
        if expected_sum is not None:
            require_sum(place, storage.sha256_file(local), expected_sum)
    known = replicated(family)
    own = {name: value for name, value in family.state_dict().items() if name not in known}
    try:
        family.load_state_dict(tensors | own)
    except RuntimeError as error:
        raise UserError(f"{place} does not fit its config: {str(error).split(':', 1)[-1]}; it belongs to another model") from None
