"""The HTTP API under load: 200 clients that submit at once while 200 streams are open, in one process.

There are two baselines: a route of the same API that sends the task by `apply_async` in a thread, under the same load;
and an API with nothing but FastAPI that does so, without streams.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from support import environment
from support.project import install, render
from support.servers import HOST, free_port, start_redis, wait_until

from .report import Row
from .run import Run

CLIENTS = STREAMS = 200
BODY = json.dumps({"folders": ["."]}).encode()
#: The route of a project, and the one with which it is compared.
REPORTS, BARE = "reports", "bare"
LOOK = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


BARE_ROUTE = """

import asyncio


@router.post("/bare", status_code=202)
async def bare(report: NewReport) -> dict[str, str]:
    result = await asyncio.to_thread(generate_report.apply_async, (report.folders,))
    return {"task_id": result.id}
"""


class Load:
    """What was measured in one round, in milliseconds."""

    def __init__(self) -> None:
        self.submits: list[float] = []
        self.lags: list[float] = []


def under_load(run: Run) -> list[Row]:
    """Compare the 99th percentile of a submit, and of a request that needs no server."""
    rendered = render(run.folder / "api" / "project", {"include_fastapi": True})
    with (rendered.folder / rendered.slug / "api" / "routes.py").open("a") as routes:
        routes.write(BARE_ROUTE)
    project = install(rendered, compiled=True)
    with start_redis(run.folder / "api-redis") as redis, contextlib.ExitStack() as stack:
        variables = {"CELERY_BROKER_URL": redis.url, "SLUG": project.slug, "PYTHONPATH": str(Path(__file__).parent)}

        def serve(program: str, *arguments: str, port: int) -> int:
            given = environment.of_a_user(variables | {"API_PORT": str(port)})
            stack.enter_context(_process([project.program(program), *arguments], project.folder, given))
            wait_until(lambda: _answers(port), 60, "the API")
            return port

        ours = serve("celery", "-A", f"{project.slug}.celery", "api", port=free_port())
        free = free_port()
        bare = serve("uvicorn", "bare_api:app", "--port", str(free), "--no-access-log", port=free)
        sides = {
            "submit": (ours, REPORTS, STREAMS),
            "a route of the same API, `apply_async` in a thread": (ours, BARE, STREAMS),
            "FastAPI alone, `apply_async` in a thread, no streams": (bare, REPORTS, 0),
        }
        lags: dict[str, list[float]] = {name: [] for name in sides}

        def measure(name: str) -> float:
            port, route, streams = sides[name]
            load = asyncio.run(_load(port, route, streams, run.seconds))
            lags[name].append(_p99(load.lags))
            return _p99(load.submits)

        submits = dict(zip(sides, run.in_turns([partial(measure, name) for name in sides]), strict=True))
        names = {
            f"submit a task, p99, {CLIENTS} clients, {STREAMS} streams": submits,
            "lag of the event loop meanwhile, p99": lags,
        }
        return [
            Row(
                what=what,
                baseline_is=baseline,
                unit="ms",
                baseline=found[baseline],
                ours=found["submit"],
                at_most=1.1 if found is submits and sides[baseline][0] == ours else None,
            )
            for what, found in names.items()
            for baseline in list(sides)[1:]
        ]


def _submission(route: str) -> bytes:
    """Give the request that submits a report to a route."""
    head = f"POST /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    async def ask() -> bool:
        reader, writer = await asyncio.open_connection(HOST, port)
        await _ask(reader, writer, LOOK)
        writer.close()
        return True

    try:
        return asyncio.run(ask())
    except OSError:
        return False


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[float, bytes]:
    """Send a request on a connection that stays open; return the milliseconds and the body."""
    began = time.perf_counter()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith((b"http/1.1 200", b"http/1.1 202")), head
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    return 1000 * (time.perf_counter() - began), body


async def _load(port: int, route: str, streams: int, seconds: float) -> Load:
    load = Load()
    async with asyncio.TaskGroup() as group:
        reader, writer = await asyncio.open_connection(HOST, port)
        _, body = await _ask(reader, writer, _submission(REPORTS))
        task_id = json.loads(body)["task_id"]
        opened = [asyncio.Event() for _ in range(streams)]
        followers = [group.create_task(_follow(port, task_id, each)) for each in opened]
        for each in opened:
            await each.wait()
        # A server closes a connection that is idle for some seconds.
        writer.close()
        reader, writer = await asyncio.open_connection(HOST, port)
        end = time.perf_counter() + seconds
        clients = [group.create_task(_submit(port, _submission(route), end, load)) for _ in range(CLIENTS)]
        while time.perf_counter() < end:
            load.lags.append((await _ask(reader, writer, LOOK))[0])
            await asyncio.sleep(0.005)
        await asyncio.gather(*clients)
        writer.close()
        for follower in followers:
            assert not follower.done(), "a stream has ended"
            follower.cancel()
    return load


async def _submit(port: int, request: bytes, end: float, load: Load) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    while time.perf_counter() < end:
        load.submits.append((await _ask(reader, writer, request))[0])
    writer.close()


async def _follow(port: int, task_id: str, opened: asyncio.Event) -> None:
    """Keep a stream open. The task waits, since no worker runs."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET /api/v1/tasks/{task_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    while await reader.read(65536):
        opened.set()
