"""Traces of publishers, tasks and what these use, as they arrive at a collector."""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.api import Api
from support.collector import Collector, Span, start_collector
from support.distribution import on_one_worker
from support.project import InstalledProject, Worker, kept_project
from support.servers import HOST, wait_until
from support.service import FULL, TASK_MODULES, Service, full_project, service_on_redis

SECRET = "an-argument-that-is-a-password"

#: Each task has a process of its own.
REPLACED = ("--concurrency", "2", "--max-tasks-per-child", "1")


@pytest.fixture(scope="module")
def project() -> InstalledProject:
    """A project with a database, a cache and traces."""
    return kept_project(FULL | {"monitoring": ["opentelemetry"]}, TASK_MODULES, like=full_project())


@pytest.fixture(scope="module", params=on_one_worker("prefork"))
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    """A collector. Tests that have it share a worker."""
    assert request.param
    with start_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(project: InstalledProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("tracing")
    with service_on_redis(project, folder) as service:
        service.variables |= {
            "CACHE_URL": service.redis.url,
            "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/sqlite",
            "CELERY_WORKER_LOST_WAIT": "1",
        }
        yield service


@pytest.fixture(scope="module")
def worker(service: Service, collector: Collector) -> Iterator[Worker]:
    with service.worker("worker", *REPLACED, **collector.variables) as worker:
        worker.wait_ready()
        yield worker


@pytest.fixture
def send(service: Service, collector: Collector, worker: Worker) -> Callable[[str], Any]:
    """Send tasks from a process that is traced; the worker is, too."""

    def run(code: str) -> Any:
        assert worker.process.poll() is None
        return service.python(code, **collector.variables)

    return run


def lines(worker: Worker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.text().splitlines() if line.startswith("{")]


def test_one_trace_leads_from_the_publisher_over_a_retry_to_database_cache_server_and_child(
    send: Callable[[str], Any], collector: Collector, worker: Worker
) -> None:
    order_id = send(f"traced.order.delay({collector.url!r}, {SECRET!r}).id")

    last = collector.wait_for("run/traced.deliver")
    first_run = ["apply_async/traced.order", "run/traced.order"]
    second_run = first_run * 2
    path = [*second_run, "apply_async/traced.deliver", "run/traced.deliver"]
    wait_until(lambda: collector.path_of(last) == path, 30, "the spans of the other processes")
    spans = [span for span in collector.spans if span.trace == last.trace]

    runs = [span for span in spans if span.name == "run/traced.order"]
    by_state = {span.attributes["celery.state"]: span for span in runs}
    assert set(by_state) == {"RETRY", "SUCCESS"}
    assert {span.resource["service.name"] for span in spans} == {"my_service"}
    # The publisher, and a process for each of the three tasks.
    assert len({span.resource["service.instance.id"] for span in spans}) == 4

    # The coroutine's requests, and not those that Celery makes of Redis.
    inside = [span for span in spans if span.kind == "client"]
    assert {span.parent for span in inside} == {by_state["SUCCESS"].id}
    assert [span.attributes["db.statement"] for span in inside if "db.statement" in span.attributes] == [
        "BEGIN IMMEDIATE",
        "select ?",
        "PSETEX ? ? ?",
    ]
    [request] = [span for span in inside if "http.method" in span.attributes]
    assert collector.asked[-1]["traceparent"].split("-")[1:3] == [request.trace, request.id]

    # The correlation id of all tasks is the id of the first one.
    of_tasks = [span for span in spans if span.kind != "client"]
    assert {span.attributes["correlation_id"] for span in of_tasks} == {order_id}
    assert SECRET not in repr(spans)

    said = [line for line in lines(worker) if line["event"] == "order in progress"]
    assert [line["trace_id"] for line in said] == [last.trace] * 2
    assert {line["span_id"] for line in said} == {span.id for span in runs}


def test_the_tasks_of_a_canvas_are_in_one_trace(send: Callable[[str], Any], collector: Collector) -> None:
    send("chord([traced.add.s(1, 2), traced.add.s(3)], traced.add.s())().id")

    def of_callback(span: Span) -> bool:
        return len(collector.path_of(span)) == 5

    last = collector.wait_for("run/traced.add", of_callback)
    assert collector.path_of(last) == ["apply_async/chord", *["apply_async/traced.add", "run/traced.add"] * 2]


def test_an_error_is_in_the_span(send: Callable[[str], Any], collector: Collector) -> None:
    send("traced.fail.delay().id")

    span = collector.wait_for("run/traced.fail")
    assert span.error == "ValueError: a traced error"
    assert span.attributes["celery.state"] == "FAILURE"
    assert [event["exception.type"] for event in span.events] == ["ValueError"]


def test_a_task_whose_process_is_killed_has_a_span_and_its_replay_is_in_its_trace(
    send: Callable[[str], Any], service: Service, collector: Collector
) -> None:
    send("traced.hang.delay().id")

    killed = collector.wait_for("lost/traced.hang")
    assert "TimeLimitExceeded" in str(killed.error)
    path = ["apply_async/traced.hang", "lost/traced.hang"]
    wait_until(lambda: collector.path_of(killed) == path, 30, "the span of the publisher")

    wait_until(lambda: service.letters("--task", "traced.hang"), 30, "the dead letter")
    assert service.dead_letters("replay", "--task", "traced.hang", "--yes").returncode == 0
    replayed = collector.wait_for("run/traced.hang", lambda span: span.attributes.get("celery.state") == "SUCCESS")
    assert replayed.trace == killed.trace


def test_a_process_that_ends_exports_before(project: InstalledProject, service: Service, collector: Collector) -> None:
    done = project.celery("send", "traced.add", "[7]", env=service.variables | collector.variables)
    assert done.returncode == 0, done.stderr
    sent = {span.attributes["messaging.message.id"] for span in collector.named("apply_async/traced.add")}
    assert done.stdout.strip() in sent


def test_one_trace_leads_from_a_request_to_its_task(service: Service, collector: Collector, worker: Worker) -> None:
    of_the_client = "0af7651916cd43dd8448eb211c80319c"
    with Api(service, more=collector.variables).wait_ready() as api:
        accepted = api.report(traceparent=f"00-{of_the_client}-b7ad6b7169203331-01")
        assert api.result(accepted.json()["task_id"])["status"] == "SUCCESS"
        assert api.stop() == 0
    of_the_task = "my_service.tasks.reports.generate_report"
    path = ["POST /api/v1/reports", f"apply_async/{of_the_task}", f"run/{of_the_task}"]

    def found() -> bool:
        runs = [span for span in collector.spans if span.trace == of_the_client and span.name == path[-1]]
        return [collector.path_of(run) for run in runs] == [path]

    wait_until(found, 30, f"the path {path}")
    # Probes ask all the time.
    assert [span.name for span in collector.spans if "health" in span.name] == []
    assert worker.process.poll() is None


def test_what_the_worker_and_publishers_ask_redis_all_the_time_is_no_trace(
    send: Callable[[str], Any], collector: Collector
) -> None:
    # A worker that waits renews its leases and its heartbeat each second or two, and so does a client that waits.
    assert send("import time; time.sleep(2); traced.add.delay(4).get(timeout=30)") == 4
    collector.wait_for("run/traced.add")
    # Those of the API begin with a request.
    ours = [span for span in collector.spans if span.kind != "server"]
    roots = {span.name.partition("/")[0] for span in ours if not span.parent}
    assert roots == {"apply_async"}


def test_a_process_keeps_its_own_provider(service: Service, collector: Collector) -> None:
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from kombu.exceptions import OperationalError
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
for _ in range(2):
    try: traced.add.delay(1)
    except OperationalError: pass
[[span.name, span.status.status_code.name, span.parent is None] for span in exporter.get_finished_spans()]
"""
    found = service.python(code, **collector.variables, CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    # The span of a publish that fails ends, too: the second is no part of the first.
    assert found == [["apply_async/traced.add", "ERROR", True]] * 2
    assert not any(span.error for span in collector.named("apply_async/traced.add"))


def test_nothing_is_traced_without_a_collector(service: Service) -> None:
    code = """
import sys
from celery.signals import before_task_publish
seen = []
@before_task_publish.connect
def note(headers, **_): seen.extend(headers)
traced.add.delay(1)
['traceparent' in seen, 'opentelemetry.sdk.trace' in sys.modules]
"""
    assert service.python(code, OTEL_SERVICE_NAME="any") == [False, False]


def test_a_collector_that_hangs_delays_no_task_and_is_one_line(service: Service) -> None:
    with socket.create_server((HOST, 0)) as hanging:
        url = f"http://{HOST}:{hanging.getsockname()[1]}"
        with service.worker("hanging", *REPLACED, OTEL_EXPORTER_OTLP_ENDPOINT=url) as worker:
            worker.wait_ready()
            ids = service.python("[traced.add.delay(n).id for n in range(4)]")
            assert [service.result(task_id)["result"] for task_id in ids] == [0, 1, 2, 3]
            begin = time.monotonic()
            worker.send(signal.SIGTERM)
            worker.wait()
            assert time.monotonic() - begin < 10
    told = [line for line in lines(worker) if line["event"] == "spans_not_exported"]
    assert len(told) == 1, worker.text()
