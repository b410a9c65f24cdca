"""The command line `raymill`: parse, call, print. `raymill --help` and `raymill COMMAND --help` have examples.

Every command takes `--json` (one JSON object on stdout, nothing else there) and `--verbose`. Exit codes are in `pipelines/shell.py`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from clusters.code_package import require_version
from components import storage
from components.errors import UserError
from components.report.numbers import duration
from pipelines.catalogue import PIPELINES, find_pipeline
from pipelines.cluster_command import cluster
from pipelines.evaluate_command import evaluate
from pipelines.face_commands import faces
from pipelines.job_commands import jobs, logs, stop, submit
from pipelines.options import (
    DEFAULT_WORKERS,
    AddressOption,
    ConfigOption,
    JsonOption,
    Overrides,
    PresetOption,
    StoreOption,
    TrackOption,
    VerboseOption,
    WorkersOption,
    again,
    console,
    counted,
    shown,
    table,
    told_scores,
    watched,
)
from pipelines.registry_commands import models, promote, register, rollback, track_artifact
from pipelines.sampling_command import sample
from pipelines.schedule.commands import schedule
from pipelines.shell import Answer, answer
from pipelines.store import COMMIT, Store, open_artifact
from pipelines.sweep_command import sweep
from pipelines.workers import Workers

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(faces, name="faces")
app.add_typer(cluster, name="cluster")
app.add_typer(schedule, name="schedule")


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # what follows is a job's
    return answer(
        lambda: app(args=arguments, prog_name="raymill", standalone_mode=False),
        as_json="--json" in own,
        verbose="--verbose" in own,
    )


@app.callback(invoke_without_command=True)
def raymill(context: typer.Context) -> None:
    """Training pipelines on Ray: data in, trained models and a report out.

    \b
    raymill run tokens                          the whole pipeline on the data that comes with Raymill
    raymill run tokens data=~/pictures          the same on your own pictures
    raymill list                                families, pipelines, and what is in the store
    """
    require_version()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_(store: StoreOption = "store", json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Lists model families, pipelines, and the artifacts in the store.

    \b
    raymill list
    raymill list --store s3://bucket/store --json
    """
    from components.data.collections import COLLECTIONS
    from components.families.catalogue import FAMILIES

    collections = {name: found.about for name, found in sorted(COLLECTIONS.items())}
    families = {name: (cls.__doc__ or "").strip().partition("\n")[0] for name, cls in sorted(FAMILIES.items())}
    pipelines = {name: find_pipeline(name).about for name in sorted(PIPELINES)}
    artifacts = Store(store).artifacts()
    kinds = {"families": families, "pipelines": pipelines, "collections": collections}
    values = kinds | {"store": Store(store).url, "artifacts": [shown(a) for a in artifacts]}
    lines = [line for name, found in kinds.items() for line in (name, *table(found.items()), "")]
    rows = [(a.name, f"{a.manifest.made_at[:19].replace('T', ' ')} UTC, {duration(a.manifest.seconds)}") for a in artifacts]
    return Answer(values, [*lines, f"artifacts in {Store(store).url}", *(table(rows) or ["  none"])])


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="Name of a pipeline; `raymill list` has them.")],
    overrides: Overrides = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    workers: WorkersOption = DEFAULT_WORKERS,
    store: StoreOption = "store",
    address: AddressOption = None,
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Makes what is missing of a pipeline, and says where its report is. A killed run goes on where it stopped.

    \b
    raymill run tokens
    raymill run tokens --preset full data=/usr/share/datasets/fashion-mnist
    raymill run tokens prior.train.steps=2000 prior.model.depth=6
    raymill run tokens --address 10.0.0.5:6379 --workers 8 --store s3://bucket/store data=s3://bucket/pictures
    raymill run tokens --address 10.0.0.5:6379 --workers 1..3
    """
    from pipelines.settings import configure, take_preset

    chosen = find_pipeline(pipeline)
    preset, assignments = take_preset(preset, overrides or [])
    settings = configure(
        chosen.config(), chosen.presets[preset or chosen.default_preset], preset or chosen.default_preset, config, assignments
    )
    place = Store(store, tracking=track)
    command = again("run", pipeline, *assignments, preset=preset or chosen.default_preset, config=config)
    with watched(json, pipeline, place) as progress, Workers(workers, address, progress) as crew:
        done = chosen.run(settings, place, crew, progress, command)
    made = [name for name, (_, new) in done.items() if new]
    artifacts = {name: shown(found) | {"made": new} for name, (found, new) in done.items()}
    values: dict[str, Any] = {"pipeline": pipeline, "store": place.url, "made": made, "artifacts": artifacts}
    last = list(done.values())[-1][0]
    lines = [f"{pipeline}: {counted(len(done), 'artifact')}, " + (f"{len(made)} made now" if made else "all there already; nothing to do")]
    values["scores"], score_lines = told_scores(found for found, _ in done.values())
    if "page.html" in last.manifest.files:
        values["report"] = last.path("page.html")
        score_lines.append(f"report: {values['report']}")
    return Answer(values, [*lines, *score_lines])


@app.command()
def fetch(
    collection: Annotated[str, typer.Argument(help="orl or glyphs; `raymill list` says what they are.")],
    out: Annotated[str, typer.Argument(help="A new or empty folder or s3:// URL.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Gets a collection of pictures: faces of 40 people, or Chinese characters drawn from the fonts of this machine.

    \b
    raymill fetch orl people
    raymill fetch glyphs data/glyphs
    """
    from components.data.collections import fetch as get
    from components.data.collections import find_collection
    from pipelines.settings import configure

    settings = configure(find_collection(collection).config(), {}, None, config, overrides or [])
    with console(json) as progress:
        progress.begins(collection)
        made = get(collection, out, settings, lambda step, steps: progress.reports(collection, {"step": step, "steps": steps}))
    rows = [f"{count} {split} pictures of {made.identities[split]}" for split, count in made.pictures.items()]
    following = f"raymill run faces data={out}" if made.form == "pictures" else f"raymill train recognition {out}"
    values = {"out": out, "form": made.form, "pictures": made.pictures, "identities": made.identities}
    return Answer(values, [f"{out}: {', '.join(rows)}", f"next: {following}"])


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="IDX files, class folders of images, Parquet, WebDataset tars or .npz.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// URL of the data set.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    workers: WorkersOption = DEFAULT_WORKERS,
    address: AddressOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Reads a source of pictures and writes a data set of Arrow shards. Run again after adding files, it makes only what is new.

    \b
    raymill prepare datasets/fashion-mnist data/fashion
    raymill prepare ~/pictures s3://bucket/pictures --workers 8
    """
    from components.data.prepare_config import PrepareConfig
    from pipelines.preparing import prepare_data
    from pipelines.settings import configure

    settings = configure(PrepareConfig(), {}, None, config, overrides or [])
    with watched(json, "prepare") as progress, Workers(workers, address, progress) as crew:
        progress.begins("prepare")
        index = prepare_data(
            source, out, settings, crew, lambda row: progress.reports("prepare", row), lambda owner: progress.waits("prepare", owner)
        )
    rows = {split: index.num_rows(split) for split in index.splits}
    shape = {name: list(column.shape) for name, column in index.columns.items()}
    values = {"data": out, "fingerprint": index.fingerprint, "rows": rows, "columns": shape, "classes": list(index.class_names)}
    return Answer(values, [f"{out}: " + ", ".join(f"{count} {split} rows" for split, count in rows.items()) + f", {len(shape)} columns"])


@app.command()
def train(
    family: Annotated[str, typer.Argument(help="Name of a model family; `raymill list` has them.")],
    data: Annotated[str, typer.Argument(help="Data set folder or URL, or an artifact of the store.")],
    overrides: Overrides = None,
    with_: Annotated[list[str] | None, typer.Option("--with", metavar="NAME=MODEL", help="A model that it builds on.")] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    workers: WorkersOption = DEFAULT_WORKERS,
    store: StoreOption = "store",
    address: AddressOption = None,
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Trains one model into an artifact of the store. A killed run goes on where it stopped; a finished one is not trained again.

    \b
    raymill train vqvae data/fashion train.steps=2000 model.num_codes=512
    raymill train prior codes --with tokenizer=tokenizer --preset quick
    """
    from pipelines.settings import Training, configure, family_preset, take_preset
    from pipelines.training import make_model

    place = Store(store, tracking=track)
    preset, assignments = take_preset(preset, overrides or [])
    settings = configure(
        Training.parse({"family": family}, "command line"), family_preset(family, preset or ""), preset, config, assignments
    )
    command = again("train", family, data, *assignments, preset=preset, config=config, with_=with_)
    with watched(json, family, place) as progress, Workers(workers, address, progress) as crew:
        artifact, made = make_model(settings, data, with_ or [], place, crew, progress, command)
    state = "made" if made else "there already; nothing to do"
    values = shown(artifact) | {
        "made": made,
        "model": artifact.path("model"),
        "scores": storage.read_json(artifact.path("run.json"))["scores"],
    }
    numbers = [(name, f"{value:.5g}") for name, value in values["scores"].items() if isinstance(value, float)]
    return Answer(values, [f"{artifact.name}: {state}", *table(numbers), f"model: {values['model']}"])


app.command("track")(track_artifact)
for command in (sample, evaluate, sweep, submit, jobs, logs, stop, register, models, promote, rollback):
    app.command()(command)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model folder or URL, or an artifact of the store.")],
    out: Annotated[str, typer.Argument(help="A new or empty folder.")],
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Writes a model in a form that a public library opens: a prior as a Hugging Face GPT-2 folder.

    \b
    raymill export prior exported/prior
    """
    from components.families.model_folder import load_model
    from pipelines.training import empty_folder, find_model

    loaded = load_model(find_model(model, Store(store)))
    with empty_folder(out) as folder:
        loaded.export(folder)
    files = storage.list_files(out)
    return Answer({"model": model, "out": out, "files": files}, [storage.join(out, file) for file in files])


@app.command()
def report(
    artifact: Annotated[str, typer.Argument(help="A pipeline, or an artifact of the store.")],
    out: Annotated[str | None, typer.Option("--out", help="Where to write the page (default: NAME.html here).")] = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Writes one HTML page about an artifact and all it was made from; for a pipeline, the page of its last run.

    \b
    raymill report tokens
    raymill report tokenizer --out tokenizer.html
    """
    from pipelines.reporting import write_page

    place = Store(store)
    chosen = place.resolve(find_pipeline(artifact).stages[-1].name if artifact in PIPELINES else artifact)
    page = write_page(place, chosen, out)
    return Answer({"artifact": shown(chosen), "report": page}, [page])


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="Data set, artifact or model folder, or an artifact of the store.")],
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Reads every byte of a data set, artifact or model folder and compares it with its checksums.

    \b
    raymill verify data/fashion
    raymill verify tokenizer
    """
    from components.data.index import INDEX
    from components.families.model_folder import COMMIT as MODEL_COMMIT

    kinds = [("artifact", COMMIT), ("data set", INDEX), ("model", MODEL_COMMIT)]
    url, kind = path, next((kind for kind, commit in kinds if storage.exists(storage.join(path, commit))), None)
    if kind is None and storage.exists(path):
        raise UserError(f"{path} is neither a data set ({INDEX}), an artifact ({COMMIT}) nor a model folder ({MODEL_COMMIT})")
    if kind is None:
        url, kind = Store(store).resolve(path).url, "artifact"
    files = _verify(kind, url)
    return Answer({"path": url, "kind": kind, "files": files}, [f"{url}: {kind}, {counted(files, 'file')}, every checksum is right"])


def _verify(kind: str, url: str) -> int:
    if kind == "artifact":
        artifact = open_artifact(url)
        artifact.verify()
        return len(artifact.manifest.files)
    if kind == "model":
        from components.families.model_folder import verify_model

        return verify_model(url)
    from components.data.verify import verify_dataset

    return verify_dataset(url).shards


if __name__ == "__main__":
    sys.exit(main())
