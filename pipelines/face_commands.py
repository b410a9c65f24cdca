"""The commands `raymill faces ...`: choose a model's threshold, enrol people, say who is in a picture."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from components.errors import UserError
from pipelines.options import ConfigOption, JsonOption, Overrides, StoreOption, VerboseOption, console
from pipelines.shell import Answer

faces = typer.Typer(help="Chooses a threshold, enrols people, and says who is in a picture.", rich_markup_mode=None)

Model = Annotated[str, typer.Argument(help="A recognition model: folder, URL, or an artifact of the store.")]
GalleryFile = Annotated[str, typer.Argument(metavar="GALLERY", help="One Arrow file; .arrow by custom.")]
Picture = Annotated[str, typer.Argument(help="A PNG, JPEG or PGM picture.")]


def _cosine(value: float | None) -> float | None:
    if value is not None and not -1 <= value <= 1:
        raise UserError(f"--threshold {value} is no cosine; give a number from -1 to 1")
    return value


Threshold = Annotated[float | None, typer.Option("--threshold", callback=_cosine, help="Cosine to accept from (default: the model's).")]
Largest = Annotated[bool, typer.Option("--largest", help="Take the largest of several faces, which are an error otherwise.")]


@faces.command()
def align(
    people: Annotated[str, typer.Argument(help="A folder with a folder of pictures for each person.")],
    out: Annotated[str, typer.Argument(help="A new or empty folder or s3:// URL.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Finds the face in every picture and writes a data set of aligned faces, everybody in its split train.

    \b
    raymill faces align people data/faces size=112
    """
    from pipelines.faces_config import AlignedConfig
    from pipelines.preparing import align_people
    from pipelines.settings import configure
    from pipelines.training import require_empty

    settings = configure(AlignedConfig(), {}, None, config, overrides or [])
    require_empty(out)
    with console(json) as progress:
        progress.begins("align")
        index = align_people(people, out, settings, lambda row: progress.reports("align", row))
    values = {"data": out, "fingerprint": index.fingerprint, "rows": index.num_rows("train"), "people": list(index.class_names)}
    return Answer(values, [f"{out}: {index.num_rows('train')} faces of {len(index.class_names)} people"])


@faces.command()
def split(
    data: Annotated[str, typer.Argument(help="Data set of identities.")],
    out: Annotated[str, typer.Argument(help="A new or empty folder or s3:// URL.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Cuts a data set by identity: some to train on, some to choose thresholds by, some to test. Nobody is in two of them.

    \b
    raymill faces split data/faces data/people folds=5 fold=0 development=8
    """
    from components.data.identities import IdentityFold, split_identities
    from pipelines.settings import configure
    from pipelines.store import Store
    from pipelines.training import find_data, require_empty

    settings = configure(IdentityFold(), {}, None, config, overrides or [])
    require_empty(out)
    index = split_identities(find_data(data, Store(store)), out, settings)
    found = {name: sum(rows > 0 for rows in by_class) for name, by_class in index.shape.rows_by_class.items()}
    values = {"data": out, "fingerprint": index.fingerprint, "identities": found}
    return Answer(values, [f"{out}: " + ", ".join(f"{count} {name} identities" for name, count in found.items())])


@faces.command()
def calibrate(
    model: Model,
    data: Annotated[str, typer.Argument(help="Data set of identities that the model was not trained on.")],
    out: Annotated[str, typer.Argument(help="Where the model with its threshold goes: a new or empty folder.")],
    split: Annotated[str, typer.Option("--split", help="Which part of the data set.")] = "validation",
    far: Annotated[float, typer.Option("--far", help="False-accept rate, between 0 and 1.")] = 0.001,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Chooses the threshold at a false-accept rate on development identities, and keeps it in a copy of the model.

    \b
    raymill faces calibrate recognition data/orl-fold models/faces --far 0.01
    """
    from components.data.dataset import Dataset
    from components.evaluation.calibration import calibrate as choose
    from components.families.model_folder import copy_model, load_model
    from components.families.recognition import Recognition
    from pipelines.store import Store
    from pipelines.training import find_data, find_model, require_empty

    if not 0 < far < 1:
        raise UserError(f"--far {far} is not a rate between 0 and 1; give for example 0.001")
    require_empty(out)
    place = Store(store)
    url = find_model(model, place)
    loaded = load_model(url, expect="recognition")
    assert isinstance(loaded, Recognition)
    found = choose(loaded, Dataset.open(find_data(data, place), split), far)
    copy_model(url, out, loaded.config.model_copy(update={"threshold": found.threshold, "false_accept_rate": far}))
    values = {"model": out, "threshold": found.threshold, "false_accept_rate": far, "true_accept_rate": found.true_accept_rate}
    line = (
        f"{out}: threshold {found.threshold:.4f} at a false-accept rate of {far:g}, where {found.true_accept_rate:.1%} are accepted rightly"
    )
    return Answer(values | {"pairs": found.pairs}, [line])


@faces.command()
def enroll(
    model: Model,
    people: Annotated[str, typer.Argument(help="A folder with a folder of pictures for each person.")],
    gallery: GalleryFile,
    overrides: Overrides = None,
    threshold: Threshold = None,
    largest: Largest = False,
    replace: Annotated[bool, typer.Option("--replace", help="Enrol people anew who are in the gallery already.")] = False,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Adds people to a gallery, made when it is new. It is written only when every picture shows a face.

    \b
    raymill faces enroll models/faces people team.arrow
    raymill faces enroll models/faces newcomers team.arrow detector.padding=20
    """
    from pipelines import enrolment

    return enrolment.enroll(
        model,
        people,
        gallery,
        overrides or (),
        threshold=threshold,
        several=_several(largest),
        replace=replace,
        store=store,
    )


@faces.command()
def identify(
    model: Model,
    gallery: GalleryFile,
    pictures: Annotated[str, typer.Argument(help="A picture, or a folder of pictures.")],
    overrides: Overrides = None,
    threshold: Threshold = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Says who is in each picture: every face is somebody of the gallery, or unknown.

    \b
    raymill faces identify models/faces team.arrow party.jpg
    """
    from pipelines import enrolment

    return enrolment.identify(model, gallery, pictures, overrides or (), threshold=threshold, store=store)


@faces.command()
def verify(
    model: Model,
    gallery: GalleryFile,
    name: Annotated[str, typer.Argument(help="Who it is said to be.")],
    picture: Picture,
    overrides: Overrides = None,
    threshold: Threshold = None,
    largest: Largest = False,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Says whether the face in a picture is that person of the gallery.

    \b
    raymill faces verify models/faces team.arrow ada door.jpg
    """
    from pipelines import enrolment

    return enrolment.check_claim(
        model,
        gallery,
        name,
        picture,
        overrides or (),
        threshold=threshold,
        several=_several(largest),
        store=store,
    )


@faces.command()
def compare(
    model: Model,
    picture_a: Picture,
    picture_b: Picture,
    overrides: Overrides = None,
    threshold: Threshold = None,
    largest: Largest = False,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Says whether two pictures show the same person.

    \b
    raymill faces compare models/faces passport.png door.jpg
    """
    from pipelines import enrolment

    return enrolment.compare(
        model,
        picture_a,
        picture_b,
        overrides or (),
        threshold=threshold,
        several=_several(largest),
        store=store,
    )


def _several(largest: bool) -> Literal["error", "largest"]:
    return "largest" if largest else "error"
