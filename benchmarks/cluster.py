"""The main job on a Ray cluster of three raylets, with data and store on a real S3 server: the same artifacts as on this machine alone.

    python -m benchmarks.cluster [key=value ...]

Runs `raymill run tokens` twice, once here and once by `--address` with `s3://` places, and compares the artifacts fingerprint for
fingerprint, and the SHA-256 of every weight and data file in them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.work import SHIPPED, SHORT_RUN
from clusters.raylets import Raylets
from tests.s3 import S3Server


def run(store: str, images: str, overrides: tuple[str, ...], environment: dict[str, str], *options: str) -> float:
    """Seconds of one `raymill run tokens`."""
    command = [sys.executable, "-m", "pipelines.cli", "run", "tokens", *overrides, f"data={images}", "--store", store, *options]
    started = time.perf_counter()
    done = subprocess.run([*command, "--preset", "quick", "--json"], env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"run in {store} failed: {done.stderr}")
    return time.perf_counter() - started


def contents(store: str) -> dict[str, dict[str, str]]:
    """Artifact name -> SHA-256 of its weight and data files, from the manifests."""
    from components import storage

    found = {}
    for name in storage.list_names(storage.join(store, "artifacts")):
        files = storage.read_json(storage.join(store, "artifacts", name, "artifact.json"))["files"]
        found[name] = {file: entry["sha256"] for file, entry in files.items() if file.endswith((".safetensors", ".arrow"))}
    return found


def main() -> int:
    overrides = tuple(sys.argv[1:]) or SHORT_RUN
    with tempfile.TemporaryDirectory() as scratch:
        server = S3Server(Path(scratch) / "s3")
        server.start()
        server.make_bucket("raymill")
        os.environ |= server.environment
        raylets = Raylets.start("benchmark", 3, environment=server.environment)
        try:
            bucket = "s3://raymill"
            from components import storage

            images = storage.join(bucket, SHIPPED.name)
            for file in sorted(SHIPPED.iterdir()):
                storage.upload(str(file), storage.join(images, file.name))
            here = str(Path(scratch) / "store")
            seconds = run(here, str(SHIPPED), overrides, {})
            print(f"this machine alone: {seconds:.0f} s", flush=True)
            there = storage.join(bucket, "store")
            seconds = run(there, images, overrides, raylets.environment, "--address", raylets.address)
            print(f"three raylets and S3: {seconds:.0f} s", flush=True)
            one, two = contents(here), contents(there)
        finally:
            raylets.close()
            server.stop()
    names = one.keys() == two.keys()
    files = {name: one[name] == two.get(name) for name in one}
    print(json.dumps({"artifacts": sorted(one), "same fingerprints": names, "same weights and data": files}, indent=1))
    return 0 if names and all(files.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
