"""S3 storage behind a faulty proxy before a real server: what comes back is what was sent, and nothing half done stays."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import object_store, s3_client, storage
from components.errors import UserError
from tests.faulty_s3 import CONTROL, Faults, FaultyS3
from tests.s3 import BUCKET, S3Server

MIB = 2**20
LARGE = 5 * object_store.PART_BYTES + 17  # an upload of six parts


@pytest.fixture
def proxy(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy through which the test reaches the server."""
    with FaultyS3(s3_server.environment["AWS_ENDPOINT_URL_S3"], seed=1) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", faulty.url)
        yield faulty


def contents(length: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(str(seed).encode()).digest(length)


def unfinished_uploads(url: str) -> list[str]:
    """Keys of the uploads below `url` that were begun and not ended."""
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    return [each["Key"] for each in s3_client.request("list_multipart_uploads", Bucket=BUCKET, Prefix=prefix).get("Uploads", [])]


@pytest.mark.parametrize("kind", ["refuse", "reset", "truncate", "alter"])
def test_a_share_of_failures_changes_no_byte(s3: str, proxy: FaultyS3, kind: str, tmp_path: Path) -> None:
    proxy.faults = Faults(**{kind: 0.3})
    (tmp_path / "large").write_bytes(large := contents(LARGE))
    storage.upload(str(tmp_path / "large"), f"{s3}/large")
    small = {f"{s3}/small/{number}": contents(1000 + number, number) for number in range(12)}
    for url, data in small.items():
        storage.write_bytes(url, data)
    assert {url: storage.read_bytes(url) for url in small} == small
    assert storage.read_bytes(f"{s3}/large") == large
    storage.download(f"{s3}/large", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == large
    assert storage.list_names(f"{s3}/small") == sorted(str(number) for number in range(12))
    storage.remove(f"{s3}/small")
    assert storage.list_files(s3) == ["large"]
    assert proxy.counts[kind] >= 5, proxy.counts
    proxy.faults = Faults()
    assert unfinished_uploads(s3) == []


def test_the_server_refuses_what_was_altered_on_the_way(s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"before")
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.5")
    proxy.faults = Faults(alter=1.0, methods=("PUT",))
    with pytest.raises(UserError, match=f"cannot write {s3}/x: .*answered 400"):
        storage.write_bytes(f"{s3}/x", contents(100_000))
    assert storage.read_bytes(f"{s3}/x") == b"before"


def test_checksums_are_compared_whatever_the_signature_says(s3: str) -> None:
    """Over TLS a signature does not cover the body; the checksum does."""
    with pytest.raises(OSError, match=r"(?i)md5|digest"):
        s3_client.request("put_object", 0.0, Bucket=BUCKET, Key="altered", Body=b"arrived", ContentMD5=object_store._md5(b"sent"))
    assert storage.size(f"s3://{BUCKET}/altered") is None


@pytest.mark.parametrize("kind", ["stall", "delay"])
def test_a_stalled_connection_costs_a_bounded_time(s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("RAYMILL_STORAGE_TIMEOUT", "1")
    storage.write_bytes(f"{s3}/x", data := contents(3 * MIB))
    proxy.faults = Faults(**{kind: 1.0}, delay_seconds=60, methods=("GET",))
    threading.Timer(1.5, setattr, (proxy, "faults", Faults())).start()
    began = time.monotonic()
    assert storage.read_bytes(f"{s3}/x") == data
    assert proxy.counts[kind] >= 2
    assert time.monotonic() - began < 30  # of 3600 and 60 s


def test_a_request_that_never_succeeds_ends_with_one_line(s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.5")
    proxy.faults = Faults(refuse=1.0)
    with pytest.raises(UserError, match=rf"cannot read {s3}/x: {proxy.url} answered 503 ServiceUnavailable"):
        storage.read_bytes(f"{s3}/x")
    proxy.faults = Faults(reset=1.0)
    with pytest.raises(UserError, match=rf"cannot read {s3}/x: the endpoint {proxy.url} did not answer as expected"):
        storage.read_bytes(f"{s3}/x")


def test_a_failed_upload_leaves_the_old_object_and_no_parts(s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"before")
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.5")
    proxy.faults = Faults(refuse=1.0, methods=("PUT",), part="partNumber=4")
    with pytest.raises(UserError, match="answered 503"):
        storage.write_bytes(f"{s3}/x", contents(LARGE))
    assert proxy.counts["refuse"] >= 1
    assert storage.read_bytes(f"{s3}/x") == b"before"
    assert unfinished_uploads(s3) == []


def test_parts_of_a_killed_upload_are_abandoned(s3: str) -> None:
    key = f"{s3.removeprefix(f's3://{BUCKET}/')}/out/x"
    upload = s3_client.request("create_multipart_upload", Bucket=BUCKET, Key=key)
    s3_client.request("upload_part", Bucket=BUCKET, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"1")
    storage.abandon_uploads(f"{s3}/other")
    assert unfinished_uploads(s3) == [key]
    storage.abandon_uploads(f"{s3}/out")
    assert unfinished_uploads(s3) == []


def test_an_upload_rides_out_a_kill_of_the_server(s3: str, s3_server: S3Server, proxy: FaultyS3) -> None:
    proxy.faults = Faults(delay=1.0, delay_seconds=0.3, methods=("PUT",))  # so that the kill comes between the parts
    data = contents(LARGE)
    sender = threading.Thread(target=storage.write_bytes, args=(f"{s3}/x", data))
    sender.start()
    while proxy.counts["passed"] < 3:
        time.sleep(0.01)
    s3_server.stop()
    assert sender.is_alive()
    s3_server.start()
    sender.join()
    assert storage.read_bytes(f"{s3}/x") == data
    assert unfinished_uploads(s3) == []


def test_a_reader_sees_the_old_object_or_the_new_one(s3: str) -> None:
    storage.write_bytes(f"{s3}/x", b"a" * LARGE)
    done, seen, problems = threading.Event(), set(), set()

    def write() -> None:
        for letter in (b"b", b"a", b"b"):
            storage.write_bytes(f"{s3}/x", letter * LARGE)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = False
    while not last:
        last = done.is_set()  # a slow reader is overtaken each time but this one
        try:
            data = storage.read_bytes(f"{s3}/x")
            seen.add((len(data), len(set(data))))
        except UserError as error:
            problems.add("the object changed while it was read" in str(error))
    writer.join()
    assert seen == {(LARGE, 1)}
    assert problems <= {True}


@pytest.mark.parametrize("length", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB + 1])
def test_every_length_comes_back(s3: str, length: int) -> None:
    storage.write_bytes(f"{s3}/x", data := contents(length))
    assert storage.read_bytes(f"{s3}/x") == data
    with storage.open_read(f"{s3}/x") as file:
        assert file.read() == data
    assert storage.size(f"{s3}/x") == length


def test_more_names_than_a_page_holds(s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:02}" for number in range(25)]
    for name in names:
        storage.write_bytes(f"{s3}/many/{name}", b"")
    request = s3_client.request

    def few(method: str, patience: float | None = None, **arguments: Any) -> dict[str, Any]:
        return request(method, patience, **arguments, **({"MaxKeys": 4} if method == "list_objects_v2" else {}))

    monkeypatch.setattr(object_store, "request", few)
    proxy.faults = Faults(refuse=0.3)
    assert storage.list_names(f"{s3}/many") == storage.list_files(f"{s3}/many") == names
    storage.remove(f"{s3}/many")
    assert storage.list_files(s3) == []


def test_a_profile_gives_credentials_and_endpoint(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage.write_bytes(f"{s3}/x", b"1")
    given = s3_server.environment
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile mill]\nregion = us-east-1\nendpoint_url = {given['AWS_ENDPOINT_URL_S3']}\n")
    secret = given["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "credentials").write_text(f"[mill]\naws_access_key_id = {given['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mill")
    assert storage.read_bytes(f"{s3}/x") == b"1"
    with pytest.raises(UserError, match=f"no such bucket at {given['AWS_ENDPOINT_URL_S3']}"):
        storage.write_bytes("s3://no-such-bucket/x", b"1")
    (tmp_path / "credentials").write_text(f"[mill]\naws_access_key_id = another\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_REGION", "us-east-1")  # another environment: another client
    began = time.monotonic()
    with pytest.raises(UserError, match=r"answered 403 .*AWS_PROFILE") as refused:
        storage.read_bytes(f"{s3}/x")
    assert time.monotonic() - began < 20, "a refusal is not tried again"
    assert secret not in str(refused.value)
    monkeypatch.setenv("AWS_PROFILE", "mlil")
    with pytest.raises(UserError, match=r"mlil.*check AWS_PROFILE"):
        storage.read_bytes(f"{s3}/x")


def test_the_proxy_is_driven_from_outside(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "tests.faulty_s3", "--upstream", s3_server.environment["AWS_ENDPOINT_URL_S3"], "--port", "0"]
    with subprocess.Popen([*command, "--refuse", "1", "--seed", "3"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.2")
            with pytest.raises(UserError, match="503"):
                storage.write_bytes(f"{s3}/x", b"1")
            urllib.request.urlopen(url + CONTROL, json.dumps({"refuse": 0}).encode()).close()
            storage.write_bytes(f"{s3}/x", b"1")
            state = json.load(urllib.request.urlopen(url + CONTROL))
            assert state["faults"]["refuse"] == 0
            assert state["counts"]["refuse"] >= 1 <= state["counts"]["passed"]
        finally:
            process.kill()
