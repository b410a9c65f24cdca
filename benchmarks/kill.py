"""Kill -9 at random moments: the next run ends with the bits of a run never killed, and nothing half made was ever visible.

    python -m benchmarks.kill --kills 20

A reference run makes every artifact undisturbed. Then the same command runs in a second store; at a random moment a random victim (the
driver, or one of Ray's training or preprocessing workers) gets SIGKILL, and the store is looked at: every artifact that shows itself must
verify, and none that was finished before may have changed. The command is started again and again until it has been killed often enough,
and then left to finish.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.work import SHORT_RUN


def command(store: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        "tokens",
        *SHORT_RUN,
        "--preset",
        "quick",
        "--workers",
        "2",
        "--store",
        str(store),
    ]


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of every file of every visible artifact, and nothing that tells one making of it from another (times, rates)."""
    files = (file for file in sorted((store / "artifacts").rglob("*")) if file.is_file())
    return {str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def weights(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(store).items() if name.endswith((".safetensors", ".arrow"))}


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`, Ray's own daemons' children included."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except OSError:
            continue
    below, found = {pid}, {}
    while grown := {child for child, parent in parents.items() if parent in below} - below:
        below |= grown
    for child in below - {pid}:
        try:
            found[child] = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def victim(driver: int, draw: random.Random) -> tuple[str, int]:
    """The driver in half of all cases, otherwise a training or preprocessing worker when there is one."""
    workers = [(line, pid) for pid, line in descendants(driver).items() if line.startswith(("ray::RayTrainWorker", "ray::Map"))]
    if not workers or draw.random() < 0.5:
        return "driver", driver
    line, pid = draw.choice(workers)
    return line.split()[0].removeprefix("ray::").split("(")[0], pid


def check(store: Path, before: dict[str, str]) -> None:
    """Raises AssertionError when a visible artifact is not whole, or one that was there before has changed."""
    for artifact in sorted((store / "artifacts").glob("*")):
        done = subprocess.run([sys.executable, "-m", "pipelines.cli", "verify", str(artifact)], capture_output=True, text=True)
        assert done.returncode == 0, f"{artifact.name} is visible but not whole: {done.stderr}"
    now = digests(store)
    changed = [name for name, digest in before.items() if now.get(name) != digest]
    assert not changed, f"finished files were made again: {changed[:3]}"


def storm(store: Path, kills: int, gaps: tuple[float, float], draw: random.Random) -> Counter[str]:
    """Runs the command in `store` until it ends well, killing something up to `kills` times on the way; returns what was killed."""
    killed: Counter[str] = Counter()
    while True:
        run = subprocess.Popen(command(store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and killed.total() < kills:
            try:
                run.wait(draw.uniform(*gaps))
            except subprocess.TimeoutExpired:
                finished = digests(store)
                name, pid = victim(run.pid, draw)
                os.kill(pid, signal.SIGKILL)
                killed[name] += 1
                print(f"  killed {name}; {len(list((store / 'artifacts').glob('*')))} artifacts finished before", flush=True)
                if name == "driver":
                    run.wait()
                check(store, finished)
        if run.wait() == 0:
            return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, killed = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        calm = Path(scratch) / "calm"
        started = time.perf_counter()
        subprocess.run(command(calm), check=True, capture_output=True)
        length = time.perf_counter() - started
        assert weights(calm), "the undisturbed run made nothing"
        print(f"undisturbed run: {length:.0f} s, {len(weights(calm))} weight and data files", flush=True)
        for number in range(options.kills):
            if killed.total() >= options.kills:
                break
            stormy = Path(scratch) / f"stormy-{number}"
            killed += storm(stormy, options.kills - killed.total(), (3.0, max(6.0, length / 4)), draw)
            if weights(calm) != weights(stormy):
                print(f"{killed.total()} kills {dict(killed)}: weights or data DIFFER")
                return 1
        print(f"{killed.total()} kills {dict(killed)}: weights and data bit-identical, nothing half made seen, nothing finished made again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
