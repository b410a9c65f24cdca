"""Jobs on a real cluster of three raylets: submitted once, followed through a cut connection, tried again, stopped, refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters.processes import is_alive
from clusters.raylets import Raylets
from components.errors import UserError
from pipelines.cli import main
from tests.proxy import Proxy
from tests.ray_tokens import client_of

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent
NAME = f"test-{os.getpid()}"
SECRET = "planted-secret-that-no-job-shows"
TALK = "import time\nfor line in range(60): print('line', line, flush=True); time.sleep(0.1)"
LONG = ["run", "tokens", "--preset", "quick", "--workers", "0", "judge.train.steps=100000"]


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    """Three raylets; this process's environment names them."""
    with Raylets.start(NAME, nodes=3) as raylets, client_of(raylets) as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield raylets


def eventually(condition: Callable[[], object], seconds: float = 120.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


def test_the_state_of_a_cluster_is_its_owners_alone(raylets: Raylets) -> None:
    assert stat.S_IMODE(raylets.token_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(raylets.folder.stat().st_mode) == 0o700
    token = raylets.token_path.read_text()
    for file in raylets.folder.glob("*.*"):
        assert token not in file.read_text()
    with pytest.raises(UserError, match=f"cluster {NAME} is up already"):
        Raylets.start(NAME)


def test_a_job_ends_as_its_command_does_and_shows_nothing_secret(
    raylets: Raylets, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAYMILL_TEST_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("RAYMILL_STORE", str(raylets.folder / "store"))
    assert main(["submit", "--env", "RAYMILL_STORE", "--", "list", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["store"] == str(raylets.folder / "store")
    assert err.count("\n") == 1
    from clusters.jobs import Jobs

    job = Jobs(None).known()[0]
    assert SECRET not in job.model_dump_json()
    assert job.runtime_env is not None
    assert len(job.runtime_env["py_modules"]) == 3


def test_submitted_twice_it_runs_once(raylets: Raylets, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["submit", "--json", "--submission-id", "once", "--code", "installed", "--", "run", "tokns"]
    for already in (False, True):
        assert main(command) == 2  # the job's own exit code
        out, err = capsys.readouterr()
        assert json.loads(out)["attempts"] == [{"id": "once", "state": "FAILED", "exit": 2, "reason": "exit 2"}]
        assert "did you mean 'tokens'?" in err
        assert ("job once is there already" in err) == already
    assert main(["jobs", "--json"]) == 0
    ids = [job["id"] for job in json.loads(capsys.readouterr().out)["jobs"]]
    assert [name for name in ids if name.startswith("once")] == ["once"]
    assert main([*command[:-1], "faces"]) == 2
    err = capsys.readouterr().err
    assert "once is the id of `raymill run tokns`, not of `raymill run faces`" in err
    assert main(["logs", "onec"]) == 2
    assert "did you mean 'once'?" in capsys.readouterr().err


def test_a_cut_connection_loses_and_repeats_nothing(raylets: Raylets) -> None:
    from ray.job_submission import JobSubmissionClient

    from clusters.jobs import Jobs

    job_id = JobSubmissionClient().submit_job(entrypoint=shlex.join([sys.executable, "-c", TALK]))
    proxy = Proxy(raylets.ports["jobs"])
    shown: list[str] = []
    told: list[str] = []
    place = Jobs(f"http://127.0.0.1:{proxy.port}", patience=60, tell=told.append)

    def break_twice() -> None:
        for line in ("line 5\n", "line 25\n"):
            eventually(lambda line=line: line in "".join(shown))
            proxy.cut()
            time.sleep(1.5)
            proxy.mend()

    breaker = threading.Thread(target=break_twice)
    breaker.start()
    end = place.follow(job_id, shown.append)
    breaker.join()
    proxy.close()
    assert "".join(shown) == "".join(f"line {number}\n" for number in range(60))
    assert (end.state, end.code) == ("SUCCEEDED", 0)
    assert [line for line in told if "does not answer" in line]
    assert [line for line in told if "answers again" in line]


def test_who_leaves_does_not_end_the_job(raylets: Raylets) -> None:
    from ray.job_submission import JobSubmissionClient

    from clusters.jobs import Jobs

    job_id = JobSubmissionClient().submit_job(entrypoint=shlex.join([sys.executable, "-c", TALK]))
    command = [sys.executable, "-m", "pipelines.cli", "logs", job_id, "--follow"]
    following = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert following.stdout.readline() == "line 0\n"
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"left job {job_id} running" in err
    assert Jobs(None).follow(job_id, lambda text: None).code == 0


def test_a_killed_job_is_submitted_again_and_a_stopped_one_is_not(
    raylets: Raylets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*LONG, f"data={ROOT / 'datasets' / 'fashion-mnist'}", "--store", str(tmp_path)]
    codes: list[int] = []
    arguments = ["submit", "--json", "--submission-id", "killed", "--retries", "2", "--", *command]
    waiting = threading.Thread(target=lambda: codes.append(main(arguments)))
    waiting.start()
    os.kill(int(str(eventually(lambda: driver(command)))), signal.SIGKILL)
    from clusters.jobs import Jobs

    place = Jobs(None)
    eventually(lambda: place.find("killed-2"))
    eventually(lambda: driver(command) and list((tmp_path / "artifacts").glob("images-*")))
    state, stopped = place.stop("killed-2")
    waiting.join()
    assert (state, stopped, codes) == ("STOPPED", True, [130])
    tried = json.loads(capsys.readouterr().out)["attempts"]
    assert [(end["id"], end["state"], end["exit"]) for end in tried] == [("killed", "FAILED", 137), ("killed-2", "STOPPED", 130)]
    assert "goes on where it stopped" in place.output("killed-2")  # it left in order
    assert driver(command) is None
    assert place.find("killed-3") is None
    assert place.stop("killed-2") == ("STOPPED", False)


def driver(command: list[str]) -> int | None:
    """The pid of the job's own process, by its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
        if words[-len(command) :] == command and "submit" not in words:
            return int(folder.name)
    return None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token here"),
        ({"RAY_AUTH_MODE": "disabled"}, "refuses the token here"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}, "no Jobs API answers there"),
        ({"RAY_API_SERVER_ADDRESS": ""}, "no cluster is named"),
    ],
)
def test_no_entry_and_no_cluster_are_one_line(raylets: Raylets, environment: dict[str, str], message: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "jobs"]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "wrong" not in done.stderr


def test_nodes_come_and_go_and_the_end_leaves_nothing(raylets: Raylets, capsys: pytest.CaptureFixture[str]) -> None:
    node = raylets.add_node()
    environments = [(Path("/proc") / str(process.pid) / "environ").read_bytes().split(b"\0") for process in node.processes]
    marked = f"RAY_ADDRESS={raylets.address}".encode()
    assert any(
        marked in environment for environment in environments
    )  # some write their title over it; else Ray's helpers stay after a kill, where several clusters are
    assert raylets.kill_node(node.number) >= 2
    assert not any(is_alive(process) for process in node.processes)
    others = [process for one in raylets.nodes for process in one.processes]
    assert all(is_alive(one.processes[0]) for one in raylets.nodes)
    assert main(["cluster", "down", "--name", NAME]) == 0
    assert not any(is_alive(process) for process in others)
    assert not raylets.folder.exists()
    assert main(["cluster", "down", "--name", NAME]) == 0
    assert "nothing to do" in capsys.readouterr().out
