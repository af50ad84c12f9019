"""A job's progress as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from anyio import to_thread

from runtime.serve.jobs import JobRecord, Jobs
from runtime.serve.models import Job, Problem
from runtime.serve.refusal import RefusedRequestError

ALIVE_S = 15.0
"""A comment is sent when nothing else was for so long, so that proxies keep the connection."""
_TOGETHER_S = 0.05
"""Changes that are closer than this go out as one."""


async def job_events(jobs: Jobs, id: str, described: Callable[[JobRecord], Job]) -> AsyncIterator[bytes]:
    """The job now, and again whenever it has changed; ends after a final state.

    The event's name is the job's state and its data the job as JSON; ``removed`` where it was removed meanwhile.
    A client that reads slowly misses states in between, never the last one.
    """
    loop, changed, last = asyncio.get_running_loop(), asyncio.Event(), b""

    def on_change() -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever listened with it
            loop.call_soon_threadsafe(changed.set)

    with jobs.watched(id, on_change):
        while True:
            changed.clear()
            try:
                job = await to_thread.run_sync(jobs.get, id)
            except RefusedRequestError as error:
                yield _event("removed", Problem(detail=error.detail).model_dump_json())
                return
            event = _event(job.state, described(job).model_dump_json())
            if event != last:
                yield event
                last = event
            if job.state.is_final:
                return
            try:
                await asyncio.wait_for(changed.wait(), ALIVE_S)
            except TimeoutError:
                yield b": nothing new\n\n"
            await asyncio.sleep(_TOGETHER_S)


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
