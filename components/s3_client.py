"""One request to S3, patiently: bounded in time, tried again with jittered pauses while its failure may pass, explained when it does not.

Endpoint, region and credentials come from the standard AWS environment or profile alone (`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`,
`AWS_PROFILE`, ...). `RAYMILL_STORAGE_PATIENCE` is for how many seconds a request is tried again (60), `RAYMILL_STORAGE_TIMEOUT` how many
one try may take (20), which a connection that stalls or drips uses up.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from components.errors import UserError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
REQUEST_SECONDS = 20.0
_KNOWN_TO_PASS = {408, 425, 429, 500, 502, 503, 504}  # HTTP: throttled, or the server is starting, stopping or behind a proxy
_CODES_TO_PASS = {  # S3: what arrived is not what was sent, or two requests met
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "RequestTimeout", "SlowDown"),
    *("OperationAborted", "ConditionalRequestConflict", "InternalError", "ServiceUnavailable"),
}


def request(method: str, patience: float | None = None, **arguments: Any) -> dict[str, Any]:
    """The answer to one call of the S3 API, with the bytes of its body under `Body`; tried again for `patience` seconds.

    Raises FileNotFoundError, PermissionError or another OSError for an answer that no patience changes; `status` tells which it was.
    """
    from fsspec.asyn import sync

    def once() -> dict[str, Any]:
        client, seconds = _client(), _request_seconds()
        return sync(client.loop, _answer, client, method, arguments, timeout=seconds)

    return _patiently(once, patience_seconds() if patience is None else patience)


async def _answer(client: S3FileSystem, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    answer = await client._call_s3(method, **arguments)
    if "Body" in answer:
        body = answer["Body"]
        try:
            answer["Body"] = await body.read()
        finally:
            body.close()
        if len(answer["Body"]) != answer["ContentLength"]:
            raise ConnectionError(f"{len(answer['Body'])} bytes came of {answer['ContentLength']}")
    return answer


def status(error: BaseException) -> int | None:
    """The HTTP status of a refusal, or None when the server did not answer."""
    answer = _refusal(error)
    return None if answer is None else answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")


def code(error: BaseException) -> str:
    """The S3 code of a refusal, such as NoSuchBucket; '' when there is none."""
    answer = _refusal(error)
    return "" if answer is None else str(answer.response.get("Error", {}).get("Code", ""))


def explain(error: BaseException) -> str | None:
    """What went wrong in words that help and hold no secret, or None when it is no failure of an object store."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

    if isinstance(error, ProfileNotFound):
        return f"{error}; check AWS_PROFILE and the files ~/.aws/config and ~/.aws/credentials"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no complete credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    number, name = status(error), code(error)
    if name == "NoSuchBucket":
        return f"there is no such bucket at {_endpoint()}; check the URL, or make the bucket if it is new"
    if number == 403:
        return f"{_endpoint()} answered 403 {name}: {error}; check AWS_ACCESS_KEY_ID or AWS_PROFILE, and what they may do there"
    if isinstance(error, FileNotFoundError):
        return "there is no such object or bucket; check the URL, and make the bucket if it is new"
    if number is not None:
        return f"{_endpoint()} answered {number} {name}: {error}"
    if may_pass(error) or isinstance(error, BotoCoreError):
        problem = f"{type(error).__name__}: {error}".removesuffix(": ")
        return f"the endpoint {_endpoint()} did not answer as expected ({problem}); check AWS_ENDPOINT_URL_S3 or the profile's endpoint_url"
    return None


def may_pass(error: BaseException) -> bool:
    """Whether the failure is the network's or the server's passing state, not an answer such as 'no such key' or 'denied'."""
    from aiohttp import ClientError as HttpError
    from botocore import exceptions as aws

    if _refusal(error) is not None:
        return status(error) in _KNOWN_TO_PASS or code(error) in _CODES_TO_PASS
    passing = (
        *(aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.ResponseStreamingError, aws.FlexibleChecksumError),
        *(HttpError, ConnectionError, TimeoutError),
    )
    return isinstance(error, passing) or (isinstance(error, OSError) and isinstance(error.__cause__, passing))


def _refusal(error: BaseException) -> ClientError | None:
    from botocore.exceptions import ClientError

    return next((each for each in (error, error.__cause__) if isinstance(each, ClientError)), None)


def _patiently(call: Callable[[], T], patience: float) -> T:
    """`call()`, tried again with growing, jittered pauses while its failure may pass by itself and patience lasts."""
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error) or time.monotonic() - began + pause > patience:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 4.0)


def patience_seconds() -> float:
    """For how long a failure that may pass is waited out."""
    return _seconds("RAYMILL_STORAGE_PATIENCE", PATIENCE_SECONDS)


def _request_seconds() -> float:
    return _seconds("RAYMILL_STORAGE_TIMEOUT", REQUEST_SECONDS)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise UserError(f"environment: {name}={text!r} is not a number of seconds, for example {default:g}") from None


def _client() -> S3FileSystem:
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _connect(os.getpid(), _request_seconds(), environment)  # a fork and a new environment need a new client


@functools.lru_cache(maxsize=4)
def _connect(_process: int, request_seconds: float, _environment: tuple[tuple[str, str], ...]) -> S3FileSystem:
    from s3fs import S3FileSystem  # 0.5 s of imports that local runs do without

    once = {"mode": "standard", "total_max_attempts": 1}  # patience is ours, above: one clock instead of three nested ones
    file_system = S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": once, "connect_timeout": min(5.0, request_seconds), "read_timeout": request_seconds},
    )
    file_system.retries = 1
    return file_system


def _endpoint() -> str:
    """Where requests go: the client knows, since a profile may name it."""
    connected = getattr(_client(), "_s3", None)
    if connected is not None:
        return str(connected.meta.endpoint_url)
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
