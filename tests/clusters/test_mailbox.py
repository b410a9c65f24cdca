"""The mailbox between a driver and a warm worker group, without Ray: jobs, rows, ends, deaths."""

from __future__ import annotations

import asyncio

import pytest

from clusters.mailbox import Mailbox


def test_a_job_goes_to_every_worker_and_its_rows_come_back() -> None:
    async def scene() -> None:
        box = Mailbox(max_attempts=2)
        waiting = [asyncio.create_task(box.next_job(-1, rank)) for rank in range(2)]
        await asyncio.sleep(0)
        number = await box.post({"steps": 3})
        assert [await task for task in waiting] == [(number, {"steps": 3})] * 2
        await box.show(number, {"step": 1})
        await box.show(number, {"step": 2})
        assert await box.news(number, 1, 0.1) == ([{"step": 2, "restarts": 0}], False, None, None)
        await box.end(number)
        assert await box.news(number, 2, 0.1) == ([], True, None, None)

    asyncio.run(scene())


def test_workers_that_come_back_find_the_open_job_but_no_ended_one() -> None:
    async def scene() -> None:
        box = Mailbox(max_attempts=3)
        number = await box.post({})
        assert await box.next_job(-1, 0) == (number, {})
        assert await box.next_job(-1, 0) == (number, {})  # a new group, after a death
        await box.end(number)
        waiting = asyncio.create_task(box.next_job(-1, 0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await box.close()
        assert await waiting is None

    asyncio.run(scene())


def test_too_many_deaths_end_the_job() -> None:
    async def scene() -> None:
        box = Mailbox(max_attempts=2)
        number = await box.post({})
        for _ in range(3):
            await asyncio.wait_for(box.next_job(-1, 0), 1)
        _, done, user_error, crash = await box.news(number, 0, 0.1)
        assert (done, user_error) == (False, None)
        assert crash == "its workers died 2 times"

    asyncio.run(scene())


@pytest.mark.parametrize("attempts_before", [1, 2])
def test_an_exception_is_final_only_on_the_last_attempt(attempts_before: int) -> None:
    async def scene() -> None:
        box = Mailbox(max_attempts=2)
        number = await box.post({})
        for _ in range(attempts_before):
            await box.next_job(-1, 0)
        await box.end(number, crash="OSError: gone")
        assert (await box.news(number, 0, 0.05))[3] == ("OSError: gone" if attempts_before == 2 else None)

    asyncio.run(scene())


def test_the_first_word_about_an_end_counts() -> None:
    async def scene() -> None:
        box = Mailbox(max_attempts=2)
        number = await box.post({})
        await box.next_job(-1, 0)
        await box.end(number, user_error="labels out of range")
        await box.end(number)
        assert await box.news(number, 0, 0.1) == ([], False, "labels out of range", None)

    asyncio.run(scene())
