"""An S3 server with faults: a proxy on loopback that refuses, delays, stalls, cuts, alters and resets a share of the requests, by a seed.

    python -m tests.faulty_s3 --upstream http://127.0.0.1:8333 --port 8334 --refuse 0.2 --seed 0
    curl -d '{"refuse": 0, "stall": 1}' http://127.0.0.1:8334/-/faults    # change what happens from now on; GET tells it, with counts

The Host header is kept, for the signature holds for it: who asks the proxy with the credentials of the server gets its answers.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import threading
from collections import Counter
from types import TracebackType

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, web
from yarl import URL

CONTROL = "/-/faults"  # no bucket is called so
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


@dataclasses.dataclass
class Faults:
    """Shares of the requests, each from 0 to 1, and which requests they are shares of."""

    refuse: float = 0.0  # answered 503 and not passed on
    reset: float = 0.0  # passed on, and the connection cut instead of an answer
    stall: float = 0.0  # passed on; half of the answer comes, then nothing more
    truncate: float = 0.0  # passed on; half of the answer comes, then the connection ends
    alter: float = 0.0  # one byte of what is sent is another on arrival
    delay: float = 0.0  # answered late by `delay_seconds`
    delay_seconds: float = 0.5
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    part: str = ""  # of the path and query, such as "uploadId"


KINDS = ("refuse", "reset", "stall", "truncate", "alter")


class FaultyS3:
    """The proxy, in a thread: `faults` may be changed at any time, `counts` tells what happened so far."""

    def __init__(self, upstream: str, port: int = 0, seed: int = 0, faults: Faults | None = None) -> None:
        self.upstream, self.port, self.faults, self.counts = upstream.rstrip("/"), port, faults or Faults(), Counter[str]()
        self._draws = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._session = ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar(), timeout=ClientTimeout(total=None))
        self._runner = web.AppRunner(self._application(), shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", CONTROL, self._control)
        application.router.add_route("*", "/{path:.*}", self._pass)
        return application

    async def _control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            changes = json.loads(await request.text())
            self.faults = dataclasses.replace(self.faults, **changes)
        return web.json_response({"faults": dataclasses.asdict(self.faults), "counts": dict(self.counts)})

    def _draw(self, request: web.Request) -> str:
        """The fault of this request, or ''. Every request takes as many draws, so that a changed share does not shift the others."""
        draws = {kind: self._draws.random() for kind in (*KINDS, "delay")}
        concerned = request.method in self.faults.methods and self.faults.part in request.raw_path
        kind = next((kind for kind in KINDS if concerned and draws[kind] < getattr(self.faults, kind)), "")
        self.counts[kind or "passed"] += 1
        if concerned and draws["delay"] < self.faults.delay:
            self.counts["delay"] += 1
            return f"{kind} delay"
        return kind

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body, fault = await request.read(), self._draw(request)
        if "delay" in fault:
            await asyncio.sleep(self.faults.delay_seconds)
        if "refuse" in fault:
            text = "<Error><Code>ServiceUnavailable</Code><Message>refused by the proxy</Message></Error>"
            return web.Response(status=503, content_type="application/xml", text=text)
        if "alter" in fault and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        target = URL(self.upstream + request.raw_path, encoded=True)
        try:
            async with self._session.request(request.method, target, headers=headers, data=body or None, allow_redirects=False) as answer:
                return await self._answer(request, answer.status, answer.headers.items(), await answer.read(), fault)
        except OSError:  # the server is away: so is the proxy
            return self._cut(request)

    async def _answer(self, request: web.Request, status: int, headers: object, data: bytes, fault: str) -> web.StreamResponse:
        if "reset" in fault:
            return self._cut(request)
        response = web.StreamResponse(status=status)
        for name, value in headers:  # type: ignore[attr-defined]
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        await response.prepare(request)
        whole = not ("stall" in fault or "truncate" in fault)
        if request.method != "HEAD" and data:
            await response.write(data if whole else data[: len(data) // 2])
        if "stall" in fault:
            await asyncio.sleep(3600)  # ends with the connection
        if "truncate" in fault:
            return self._cut(request, response)
        await response.write_eof()
        return response

    def _cut(self, request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort() if response is None else request.transport.close()
        return response or web.Response(status=500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    for kind in (*KINDS, "delay"):
        parser.add_argument(f"--{kind}", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--delay-seconds", type=float, default=0.5)
    given = parser.parse_args()
    shares = {kind: getattr(given, kind) for kind in (*KINDS, "delay", "delay_seconds")}
    with FaultyS3(given.upstream, given.port, given.seed, Faults(**shares)) as proxy:
        print(f"{proxy.url} stands before {proxy.upstream}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
