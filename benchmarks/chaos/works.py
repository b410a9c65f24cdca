"""The work that the storm disturbs: Raymill commands as jobs of the cluster, submitted once and never touched again by this script."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.processes import Seen
from benchmarks.chaos.world import Request, World, patiently
from components import storage
from components.data.verify import verify_dataset
from pipelines.store import COMMIT, Store, describe

RETRIES = 60
EVERY = 10  # steps between checkpoints
ROOT = Path(__file__).parent.parent.parent
SOURCE = "source/fashion-mnist"
REFERENCE = "reference"

TOKENS = (
    *("images.limit=1000", "images.rows_per_shard=1000", "samples.per_class=20"),
    *(f"{stage}.train.checkpoint_every={EVERY}" for stage in ("judge", "tokenizer", "prior")),
    *(
        "judge.train.steps=120",
        "tokenizer.train.steps=120",
        "prior.train.steps=80",
        "prior.model.layers=2",
        "prior.model.width=32",
        "prior.model.heads=2",
    ),
    *("tokenizer.model.discriminator_start=30", "tokenizer.model.gan_start=40"),
)
PREPARE = ("limit=9000", "rows_per_shard=600")
SAMPLES = 1000
SWEEP = (
    *(f"train.checkpoint_every={EVERY}", "train.steps=60", "--trials", "4", "--scheduler", "none"),
    *("--vary", "train.optimizer.lr=log: [1e-3, 1e-1]", "--vary", "model.dropout=uniform: [0, 0.5]"),
)


@dataclass(frozen=True)
class Work:
    """A command, where its results lie below the bucket, and how they and its workers are known."""

    kind: str
    name: str  # of this time that it is done; the reference has its own
    words: tuple[str, ...]
    result: Callable[[str], dict[str, str]]  # URL of the results -> what must be bit-identical
    commit: str  # file whose presence makes a folder count
    workers: tuple[str, ...] = ()  # how the titles of its Ray workers begin
    signs: tuple[str, ...] = ()  # ends of keys whose writing shows that it goes on after a kill

    @property
    def prefix(self) -> str:
        return f"{self.kind}/{self.name}/"

    def goes_on(self, request: Request) -> bool:
        """Whether this write shows that the work goes on after something of it was killed."""
        if request.key.endswith("/run.json") and b'"seconds"' in request.body:
            return False  # the end of a training, by a process that the kill did not reach
        return request.method == "PUT" and request.key.endswith(self.signs)


def works(world: World, reference: str) -> dict[str, Callable[[str], Work]]:
    """Kind -> the work of that kind under a name; `reference` is the store of the undisturbed pipeline, from which later work starts."""
    source = world.url(SOURCE)

    def tokens(name: str) -> Work:
        words = ("run", "tokens", "--preset", "quick", *TOKENS, f"data={source}", "--store", world.url("tokens", name), "--workers", "2")
        signs = ("/run.json", f"/{COMMIT}", ".arrow")
        return Work("tokens", name, words, of_store, COMMIT, ("ray::RayTrainWorker", "ray::Map"), signs)

    def prepare(name: str) -> Work:
        words = ("prepare", source, world.url("prepare", name, "data"), *PREPARE, "--workers", "1")
        return Work("prepare", name, words, of_data, "index.json", ("ray::Map",), (".arrow", "/index.json"))

    def sample(name: str) -> Work:
        out = world.url("sample", name, "out")
        words = ("sample", "prior", "--count", str(SAMPLES), "--seed", "7", "--out", out, "--store", reference)
        return Work("sample", name, words, of_samples, "samples.safetensors", (), ("/samples.safetensors",))

    def sweep(name: str) -> Work:
        images = patiently(lambda: Store(reference).resolve("images").url)
        words = ("sweep", "classifier", images, "--preset", "quick", *SWEEP, "--store", world.url("sweep", name), "--workers", "1")
        return Work("sweep", name, words, of_store, COMMIT, ("ray::TrialProcess",), ("/run.json",))

    return {"tokens": tokens, "prepare": prepare, "sample": sample, "sweep": sweep}


def of_store(url: str) -> dict[str, str]:
    """SHA-256 of every weight and data file of every artifact, each read and compared with its manifest."""
    found: dict[str, str] = {}
    for artifact in Store(url).artifacts():
        artifact.verify()
        files = artifact.manifest.files.items()
        found |= {f"{artifact.name}/{file}": entry.sha256 for file, entry in files if file.endswith((".safetensors", ".arrow"))}
    return found


def of_data(url: str) -> dict[str, str]:
    """Fingerprint of a data set, every byte of which was compared with its index; and no file that the index does not name."""
    place = storage.join(url, "data")
    verified = verify_dataset(place)
    return {"fingerprint": verified.fingerprint, "files": " ".join(storage.list_files(place))}


def of_samples(url: str) -> dict[str, str]:
    return {file: describe(storage.join(url, "out", file)).sha256 for file in storage.list_files(storage.join(url, "out"))}


class Client:
    """`raymill submit --retries`, as a user runs it: it alone starts again what was killed."""

    def __init__(self, world: World, work: Work) -> None:
        self.world, self.work, self.id = world, work, f"{work.kind}-{work.name}"
        self.log = world.scratch / f"{self.id}.log"
        command = [
            sys.executable,
            "-m",
            "pipelines.cli",
            "submit",
            "--json",
            "--cluster",
            world.raylets.jobs_url,
            "--submission-id",
            self.id,
        ]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, "--submission-id", self.id, "--retries", str(RETRIES), "--", *work.words],
                env=world.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.began = time.monotonic()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ended(self) -> tuple[int, int, str]:
        """Exit code, attempts, and the last line that it said."""
        out, _ = self._process.communicate()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        try:
            attempts = len(json.loads(out)["attempts"])
        except (ValueError, KeyError):
            attempts = 0
        return self._process.returncode, attempts, lines[-1] if lines else ""

    def give_up(self) -> None:
        """Ends the job too: it hangs, which has been told."""
        self._process.kill()
        self._process.wait()
        stop = [sys.executable, "-m", "pipelines.cli", "stop", self.id, "--cluster", self.world.raylets.jobs_url]
        subprocess.run(stop, env=self.world.environment, cwd=ROOT, capture_output=True)

    def driver(self) -> Seen | None:
        """The job's own process."""
        size = len(self.work.words)
        found = (process for process in self.world.processes() if process.words[-size:] == self.work.words)
        return next((process for process in found if "submit" not in process.words), None)

    def supervisor(self) -> Seen | None:
        """The head's process that watches over the driver: the nearest of its ancestors that is an actor."""
        known = {process.pid: process for process in self.world.processes()}
        process = self.driver()
        while process is not None and "JobSupervisor" not in process.title:
            process = known.get(process.parent)
        return process

    def workers(self) -> list[Seen]:
        return [process for process in self.world.processes() if process.title.startswith(self.work.workers)] if self.work.workers else []

    def jobs(self) -> set[str]:
        """Ray's names of its attempts so far, by which their workers are known."""
        from clusters.jobs import Jobs

        known = Jobs(self.world.raylets.jobs_url).known()
        return {str(job.job_id) for job in known if job.submission_id is not None and job.submission_id.startswith(self.id)}
