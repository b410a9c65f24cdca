"""The main job as people run it on a cluster: three raylets, an S3 server and Prometheus, all real and all on this machine.

    python -m benchmarks.cluster [--compare] [key=value ...]

Data and store are on S3, `raymill submit -- run tokens` goes through the Jobs API behind a token, and Prometheus asks
all the while. Then it is looked at: the report, the samples and every artifact on S3, each expected series in Prometheus, the alert rules
and the configuration with promtool. With --compare the same job runs here alone too, and must come to the same bytes of weights and data.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from benchmarks.table import Table
from benchmarks.work import SHIPPED, SHORT_RUN
from clusters.raylets import Raylets
from clusters.scrape import RULES, scrape_config
from components import storage
from tests.prometheus import Prometheus, free_port, prometheus, promtool
from tests.s3 import S3Server

WATCHED = ("prior.train.evaluate_every=60", "tokenizer.train.evaluate_every=60")
STORE, DATA = "s3://raymill/store", "s3://raymill/pictures"
# What must have been seen of a run of tokens; the families and phases are in the labels.
SERIES = (
    *("build_info", "run_state", "run_start_timestamp_seconds", "run_heartbeat_timestamp_seconds", "runs_total"),
    *("stage_state", "stage_start_timestamp_seconds", "stage_last_progress_timestamp_seconds", "stage_steps_done", "stage_steps"),
    *("stage_restarts_total", "preprocess_shards_done", "preprocess_shards", "preprocess_rows_done"),
    *("training_loss", "training_gradient_norm", "training_learning_rate", "training_samples_per_second", "training_step_duration_seconds"),
    *("training_data_wait_seconds_total", "training_peak_memory_bytes", "training_model_flops_per_second", "training_workers"),
    *("training_last_checkpoint_timestamp_seconds", "training_last_checkpoint_step", "training_held_out_score", "training_term"),
)


@contextmanager
def timed(table: Table, label: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    table.add(label, time.perf_counter() - started)


def run(arguments: list[str], environment: dict[str, str]) -> None:
    """A `raymill` command with the settings of the quick preset; ends this program with what it said when it fails."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-3000:]} {done.stderr[-3000:]}")


def work(store: str, data: str, overrides: list[str]) -> list[str]:
    return ["run", "tokens", *overrides, f"data={data}", "--preset", "quick", "--store", store, "--workers", "2"]


def contents(store: str) -> dict[str, dict[str, str]]:
    """Artifact name -> SHA-256 of its weight and data files, from the manifests."""
    found = {}
    for name in storage.list_names(storage.join(store, "artifacts")):
        files = storage.read_json(storage.join(store, "artifacts", name, "artifact.json"))["files"]
        found[name] = {file: entry["sha256"] for file, entry in files.items() if file.endswith((".safetensors", ".arrow"))}
    return found


def look_at_storage(table: Table) -> list[str]:
    """Sizes of what a person wants to see; returns what is missing."""
    names = storage.list_names(storage.join(STORE, "artifacts"))
    table.add("artifacts on S3", len(names))
    missing = []
    for stage, file in (("report", "page.html"), ("samples", "samples.png"), ("samples", "samples.safetensors")):
        places = [storage.join(STORE, "artifacts", name, file) for name in names if name.startswith(f"{stage}-")]
        size = storage.size(places[0]) if places else None
        table.add(f"{stage}/{file} on S3, bytes", size)
        missing += [] if size else [f"{stage}/{file}"]
    return missing


def look_at_series(table: Table, server: Prometheus) -> list[str]:
    """How many series of Raymill there were; returns the names that Prometheus never saw."""
    found = server.query('count by (__name__) (last_over_time({__name__=~"raymill_.*"}[1h]))')
    seen = {each["__name__"]: each["value"] for each in found}
    table.add("names of series in Prometheus", len(seen))
    table.add("series of all names", sum(seen.values()))
    table.add("targets of Ray's own metrics", len(server.query('up{job="ray"} == 1')))
    return [f"raymill_{name}" for name in SERIES if f"raymill_{name}" not in seen]


def check_configuration(config: Path) -> list[str]:
    checks = {"rules": ["check", "rules", str(RULES)], "config": ["check", "config", str(config)]}
    return [f"promtool {name}: {said}" for name, arguments in checks.items() for code, said in [promtool(*arguments)] if code]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="run the job here alone too, and compare every byte")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run (default: a short one)")
    given = parser.parse_args()
    overrides = given.overrides or [*SHORT_RUN, *WATCHED]
    lacking = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    if lacking:
        raise SystemExit(f"{' and '.join(lacking)} not installed; on Debian: apt-get install prometheus")
    table = Table("run tokens by way of the Jobs API: three raylets, S3 and Prometheus", ["what", "figure"])
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder, port = Path(scratch), free_port()
        with timed(table, "S3 server up and data there, s"):
            server = S3Server(folder / "s3")
            stack.callback(server.stop)
            server.start()
            server.make_bucket("raymill")
            os.environ |= server.environment
            for file in sorted(SHIPPED.iterdir()):
                storage.upload(str(file), storage.join(DATA, file.name))
        with timed(table, "three raylets up, s"):
            name = f"benchmark-{secrets.token_hex(3)}"
            raylets = stack.enter_context(Raylets.start(name, 3, environment={"RAYMILL_METRICS_PORT": str(port)}))
        discovery = str(raylets.folder / "0" / "prom_metrics_service_discovery.json")
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(scrape_config([f"127.0.0.1:{port}"], discovery, interval="1s")))
        problems = check_configuration(config)
        watcher = stack.enter_context(prometheus(config, folder))
        environment = {**raylets.environment, "RAY_API_SERVER_ADDRESS": raylets.jobs_url}
        with timed(table, "job submitted, run and ended, s"):
            run(["submit", "--submission-id", "tokens", "--", *work(STORE, DATA, overrides)], environment)
        with timed(table, "the same id again, s"):
            run(["submit", "--submission-id", "tokens", "--", *work(STORE, DATA, overrides)], environment)
        problems += [f"not on S3: {missing}" for missing in look_at_storage(table)]
        problems += [f"never seen by Prometheus: {missing}" for missing in look_at_series(table, watcher)]
        if given.compare:
            alone = str(folder / "store")
            with timed(table, "this machine alone, s"):
                run(work(alone, str(SHIPPED), overrides), {})
            here, there = contents(alone), contents(STORE)
            problems += [f"not the same bytes: {each}" for each in sorted(here.keys() | there.keys()) if here.get(each) != there.get(each)]
            table.add("files of weights and data with equal bytes", sum(len(files) for files in here.values()))
    print(table)
    print(json.dumps({"problems": problems}, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
