"""What `raymill submit` refuses before anything is sent, with no cluster there."""

from __future__ import annotations

import pytest

from components.errors import UserError
from pipelines.cli import main
from pipelines.job_commands import plain_variables

HERE = ["submit", "--cluster", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "rum", "tokens"], "No such command 'rum'"),
        (["--", "run", "tokens", "--prest", "full"], "No such option: --prest"),
        (["--", "train", "vqvae"], "Missing argument"),
        (["--", "faces"], "raymill faces is no command by itself"),
        (["--", "faces", "alin"], "No such command 'alin'"),
        (["--", "submit", "--", "list"], "is not submitted as a job"),
        ([], "Missing argument"),
        (["--detach", "--retries", "2", "--", "list"], "--retries 2 has no effect with --detach"),
        (["--submission-id", "a/b", "--", "list"], "--submission-id 'a/b' is not valid"),
        (["--env", "MLFLOW_TRACKING_PASSWORD=x", "--", "list"], "looks like a secret"),
        (["--", "list", "--store", "s3://user:hidden@bucket"], "a URL with a password in it"),
        (["--", "list"], "no Jobs API answers there"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HERE, *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert "hidden" not in err


def test_json_after_the_dashes_is_the_jobs_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HERE, "--", "rum", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_variables_are_plain_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert plain_variables(["OMP_NUM_THREADS", "A=b=c"]) == {"OMP_NUM_THREADS": "4", "A": "b=c"}
    monkeypatch.delenv("OMP_NUM_THREADS")
    with pytest.raises(UserError, match="is not set here"):
        plain_variables(["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "DB_PASSWORD", "api_key", "PASSWD"]
)
def test_what_looks_like_a_secret_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="looks like a secret") as caught:
        plain_variables([f"{name}=planted"])
    assert "planted" not in str(caught.value)


def test_a_password_in_a_url_is_refused() -> None:
    with pytest.raises(UserError, match="a URL with a password") as caught:
        plain_variables(["MLFLOW_TRACKING_URI=https://user:planted@host/"])
    assert "planted" not in str(caught.value)
