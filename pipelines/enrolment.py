"""What the commands about faces do: enrol people from folders of pictures, say who is in a picture, check a claim, compare two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from components import storage
from components.config import fingerprint, override
from components.errors import UserError
from components.faces.aligned import folder_pictures, picture_files, read_picture
from components.faces.aligner import FaceConfig, Several
from components.faces.gallery import Gallery, GalleryHeader, read_gallery, write_gallery
from components.faces.system import FaceModel, FaceSystem, SeenFace, similarity
from components.families.model_folder import COMMIT, load_model
from components.lease import writing
from pipelines.shell import Answer
from pipelines.store import Store
from pipelines.training import find_model


def enroll(
    model: str,
    people_folder: str,
    gallery: str,
    overrides: Sequence[str] = (),
    *,
    threshold: float | None = None,
    several: Several = "error",
    replace: bool = False,
    store: str = "store",
) -> Answer:
    """Adds the people of `people_folder/NAME/*` to the gallery file, made when it is new; nothing is written unless all went well.

    Others who add people to the file meanwhile lose none, on s3:// neither. Raises UserError for a picture that is
    unreadable or shows no face or several, a person without pictures or known already, and a gallery of another model.
    """
    names, pictures = folder_pictures(people_folder)
    url = _model_folder(model, store)
    faces = _gallery(gallery, url).header.faces if storage.exists(gallery) else FaceConfig()
    system = _system(url, faces, overrides)
    newcomers = () if replace else names
    _to_add_to(gallery, url, system, threshold, newcomers)  # its mistakes now, not after a look at all pictures
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for picture in pictures:
        found[names[picture.label]].append(system.only(picture.read(), picture.place, several).embedding)
    people = {name: np.stack(embeddings) for name, embeddings in found.items()}
    with writing(gallery, lambda owner: None) as lease:  # for as long as one file takes to write
        after = _to_add_to(gallery, url, system, threshold, newcomers).enrol(people, replace)
        lease.check()
        write_gallery(after, gallery)
    values = {"gallery": gallery, "people": len(after.names), "enrolled": {name: len(vectors) for name, vectors in found.items()}}
    values |= {"threshold": after.header.threshold, "false_accept_rate": after.header.false_accept_rate}
    return Answer(values, [f"{gallery}: {len(names)} enrolled from {len(pictures)} pictures, {len(after.names)} people in all"])


def identify(
    model: str,
    gallery: str,
    pictures: str,
    overrides: Sequence[str] = (),
    *,
    threshold: float | None = None,
    store: str = "store",
) -> Answer:
    """Who is in a picture, or in every picture of a folder: each face with its box, and a name or None for unknown.

    A picture without faces is a normal answer. Raises UserError for what is no picture, and for a gallery of another model.
    """
    files = [pictures] if storage.size(pictures) is not None else picture_files(pictures)
    if not files:
        problem = "holds no PNG, JPEG or PGM pictures" if storage.exists(pictures) else "does not exist"
        raise UserError(f"{pictures} {problem}; give a picture or a folder of pictures")
    people, system = _gallery_and_system(model, gallery, overrides, threshold, store)
    answers = []
    for file in files:
        matches = [(face, people.identify(face.embedding)) for face in system.faces(read_picture(file))]
        faces = [_shown(face) | {"name": match.name, "score": match.score} for face, match in matches]
        answers.append({"picture": file, "faces": faces})
    lines = [f"{answer['picture']}: {_say(cast(list[dict], answer['faces']))}" for answer in answers]
    return Answer({"gallery": gallery, "threshold": people.header.threshold, "pictures": answers}, lines)


def check_claim(
    model: str,
    gallery: str,
    name: str,
    picture: str,
    overrides: Sequence[str] = (),
    *,
    threshold: float | None = None,
    several: Several = "error",
    store: str = "store",
) -> Answer:
    """Whether the face in a picture is the person `name` of the gallery.

    Raises UserError for a name that is not there, and for a picture that is unreadable or shows no face or several.
    """
    people, system = _gallery_and_system(model, gallery, overrides, threshold, store)
    verdict = people.verify(name, system.only(read_picture(picture), picture, several).embedding)
    values = {"gallery": gallery, "name": name, "picture": picture, "accepted": verdict.accepted}
    values |= {"score": verdict.score, "threshold": verdict.threshold}
    return Answer(values, [f"{picture}: {'is' if verdict.accepted else 'is not'} {name} ({_against(verdict.score, verdict.threshold)})"])


def compare(
    model: str,
    picture_a: str,
    picture_b: str,
    overrides: Sequence[str] = (),
    *,
    threshold: float | None = None,
    several: Several = "error",
    store: str = "store",
) -> Answer:
    """Whether two pictures show the same person.

    Raises UserError for a picture that is unreadable or shows no face or several, and for a model without a threshold when none is given.
    """
    url = _model_folder(model, store)
    system = _system(url, FaceConfig(), overrides)
    least, rate = _threshold(url, system, threshold)
    a, b = (system.only(read_picture(picture), picture, several) for picture in (picture_a, picture_b))
    score = similarity(a, b)
    values: dict[str, Any] = {"same": score >= least, "score": score, "threshold": least, "false_accept_rate": rate}
    values["faces"] = [{"picture": picture} | _shown(face) for picture, face in ((picture_a, a), (picture_b, b))]
    return Answer(values, [f"{'the same person' if score >= least else 'different people'} ({_against(score, least)})"])


def _to_add_to(gallery: str, model_url: str, system: FaceSystem, threshold: float | None, newcomers: Sequence[str]) -> Gallery:
    """The gallery as it is now, with the threshold when one is given; an empty one when there is none.

    Raises UserError when one of the newcomers is there already, and when its faces were found and aligned in another way.
    """
    if not storage.exists(gallery):
        return Gallery.empty(_header(model_url, system, threshold))
    people = _gallery(gallery, model_url)
    for name, value in people.header.faces:
        if value != getattr(system.config, name):
            given = getattr(system.config, name)
            raise UserError(
                f"{gallery} was made with other options of faces: {name}={value}, not {given}; leave them out, or begin another gallery"
            )
    if known := next((name for name in newcomers if name in people.names), None):
        raise UserError(f"{gallery} has {known!r} already; take the folder away, or give --replace to enrol known people anew")
    return people if threshold is None else people.with_threshold(threshold)


def _gallery_and_system(
    model: str, gallery: str, overrides: Sequence[str], threshold: float | None, store: str
) -> tuple[Gallery, FaceSystem]:
    """The gallery, with the threshold when one is given, and the system to ask it with: faces are aligned as they were for it."""
    url = _model_folder(model, store)
    people = _gallery(gallery, url)
    system = _system(url, people.header.faces, overrides)
    if system.config.model_copy(update={"detector": people.header.faces.detector}) != people.header.faces:
        raise UserError(
            f"{gallery} was made with another alignment; of {' '.join(overrides)} only detector options can differ; leave out the rest"
        )
    return (people if threshold is None else people.with_threshold(threshold)), system


def _model_folder(model: str, store: str) -> str:
    return find_model(model, Store(store))


def _gallery(gallery: str, model_url: str) -> Gallery:
    return read_gallery(gallery, _fingerprint(model_url))


def _header(model_url: str, system: FaceSystem, threshold: float | None) -> GalleryHeader:
    """What holds for a new gallery; raises UserError without a threshold."""
    least, rate = _threshold(model_url, system, threshold)
    return GalleryHeader(
        model=_fingerprint(model_url), embedding_dim=system.embedding_dim, threshold=least, false_accept_rate=rate, faces=system.config
    )


def _threshold(model_url: str, system: FaceSystem, given: float | None) -> tuple[float, float | None]:
    try:
        return system.threshold(given)
    except UserError as error:
        raise UserError(f"{model_url}: {error}") from None


def _system(model_url: str, config: FaceConfig, overrides: Sequence[str]) -> FaceSystem:
    """The model with the detector; raises UserError for a model that makes no embeddings of pictures."""
    loaded = load_model(model_url)
    if not hasattr(loaded, "embed"):
        raise UserError(f"{model_url} holds a {type(loaded).__name__}, which makes no embeddings; give a recognition model")
    return FaceSystem(cast(FaceModel, loaded), override(config, overrides))


def _fingerprint(model_url: str) -> str:
    """Of what decides embeddings, the weights: a model whose threshold alone is chosen anew keeps its galleries."""
    header = storage.read_json(storage.join(model_url, COMMIT))
    return fingerprint([header["family"], header["sha256"]])


def _shown(face: SeenFace) -> dict[str, Any]:
    return {"box": [round(edge, 1) for edge in face.face.box], "detection": face.face.score}


def _say(faces: list[dict[str, Any]]) -> str:
    return ", ".join(f"{face['name'] or 'unknown'} ({face['score']:.3f})" for face in faces) or "no face"


def _against(score: float, threshold: float) -> str:
    return f"cosine {score:.3f}, threshold {threshold:.3f}"
