"""The mailbox between a driver and a warm worker group, without Ray: jobs, rows, ends, deaths, rests."""

from __future__ import annotations

import asyncio

from clusters.mailbox import Mailbox


def test_a_job_goes_to_every_worker_and_its_rows_come_back() -> None:
    async def scene() -> None:
        box = Mailbox()
        waiting = [asyncio.create_task(box.next_job(-1, rank, f"node {rank}")) for rank in range(2)]
        await asyncio.sleep(0)
        number = await box.post({"steps": 3})
        assert [await task for task in waiting] == [(number, {"steps": 3})] * 2
        await box.show(number, {"step": 1})
        await box.show(number, {"step": 2})
        news = await box.news(number, 1, 0.1)
        assert (news.rows, news.done, news.nodes, news.taken) == ([{"step": 2}], False, {0: "node 0", 1: "node 1"}, 1)
        await box.end(number)
        news = await box.news(number, 2, 0.1)
        assert (news.rows, news.done) == ([], True)

    asyncio.run(scene())


def test_workers_that_come_back_find_the_open_job_but_no_ended_one() -> None:
    async def scene() -> None:
        box = Mailbox()
        number = await box.post({})
        assert await box.next_job(-1, 0, "a") == (number, {})
        await box.end(number, crash="OSError: gone")
        assert await box.next_job(-1, 0, "b") == (number, {})  # a new group, after a death
        news = await box.news(number, 0, 0.1)
        assert (news.done, news.crash, news.taken, news.nodes) == (False, "OSError: gone", 2, {0: "b"})
        await box.end(number)
        waiting = asyncio.create_task(box.next_job(-1, 0, "b"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await box.close()
        assert await waiting is None

    asyncio.run(scene())


def test_the_first_word_about_an_end_counts() -> None:
    async def scene() -> None:
        box = Mailbox()
        number = await box.post({})
        await box.next_job(-1, 0, "a")
        await box.end(number, user_error="labels out of range")
        await box.end(number)
        news = await box.news(number, 0, 0.1)
        assert (news.done, news.user_error) == (False, "labels out of range")

    asyncio.run(scene())


def test_a_rest_is_asked_of_one_group_only_and_of_one_job() -> None:
    async def scene() -> None:
        box = Mailbox()
        number = await box.post({})
        await box.next_job(-1, 0, "a")
        asked = asyncio.create_task(box.asked_to_rest(number))
        await asyncio.sleep(0.01)
        assert not asked.done()
        await box.ask_to_rest(number)
        await asyncio.wait_for(asked, 1)
        assert await box.next_job(-1, 0, "a") == (number, {})  # the next group, with the job as open as before
        again = asyncio.create_task(box.asked_to_rest(number))
        await asyncio.sleep(0.01)
        assert not again.done()
        await box.end(number)
        await asyncio.wait_for(again, 1)  # nobody waits for an ended job

    asyncio.run(scene())
