"""The metrics of workers and of beat."""

import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis
import yaml

from support.distribution import on_one_worker
from support.metrics import Scrape, address, listeners, scrape
from support.project import InstalledProject, Worker
from support.servers import promtool, start_prometheus, wait_until
from support.servers.prometheus import ask
from support.service import Service, green_project, monitored_project, service_on_redis

ServiceOn = Callable[[str, InstalledProject, Path], AbstractContextManager[Service]]
#: Any free port: other tests run on this machine.
FREE = {"METRICS_PORT": "0"}
#: Seconds for which an answer of a server is served.
KEPT = 2
STATES = ("received", "started", "succeeded", "failed", "retried", "rejected", "revoked")


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project with metrics."""
    return monitored_project("prometheus")


def counts(found: Scrape, **labels: str) -> dict[str, float]:
    """Return the numbers of tasks that aren't 0."""
    numbers = {state: found.sum(f"celery_task_{state}_total", **labels) for state in STATES}
    return {state: number for state, number in numbers.items() if number}


@pytest.mark.parametrize(("broker_name", "number"), [("redis", 2000), ("rabbitmq", 300)])
def test_counts_are_right_when_children_are_replaced_and_killed(
    broker_name: str, number: int, project: InstalledProject, service_on: ServiceOn, tmp_path: Path
) -> None:
    arguments = ("--concurrency", "2", "--max-tasks-per-child", "50")
    with (
        service_on(broker_name, project, tmp_path) as service,
        service.worker("worker", *arguments, **FREE, CELERY_WORKER_LOST_WAIT="0.5") as worker,
    ):
        url = address(worker)
        worker.wait_ready()
        first = worker.children()
        service.python(f"for key in range({number}): counted.work.delay(notes, key)")

        def has_counted() -> bool:
            return scrape(url).sum("celery_task_succeeded_total", name="counted.work") >= number

        wait_until(has_counted, 300, f"{number} tasks")
        found = scrape(url)
        killed = len(range(99, number, 200))
        assert sorted(service.lines()) == sorted(f"ran {key}" for key in range(number))
        assert counts(found, name="counted.work") == {
            "received": number + killed,
            "started": number + killed,
            "succeeded": number,
            "rejected": killed,  # delivered again
        }
        assert found.sum("celery_task_runtime_seconds_count", name="counted.work") == number
        assert found.sum("celery_task_wait_seconds_count", name="counted.work") == number + killed
        assert not set(first) & set(worker.children())
        port = port_of(url)
        assert port in listeners(worker.pid)
        assert not any(port in listeners(child) for child in worker.children())


def port_of(url: str) -> int:
    return int(url.removesuffix("/metrics").rpartition(":")[2])


# --- a worker that all tests share ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def shared(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: ServiceOn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Worker]]:
    """A worker with beat, as in `make dev`, that doesn't consume `low_priority`."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ("--concurrency", "1", "-Q", "default", "--beat", "--schedule", str(folder / "schedule"))
    with (
        service_on(request.param, project, folder) as service,
        service.worker("worker", *arguments, **FREE, CELERY_WORKER_LOST_WAIT="0.5") as worker,
    ):
        worker.wait_ready()
        yield service, worker


@pytest.fixture
def service(shared: tuple[Service, Worker]) -> Service:
    """The service of the worker."""
    return shared[0]


@pytest.fixture
def worker(shared: tuple[Service, Worker]) -> Worker:
    """The worker that all tests share."""
    return shared[1]


@pytest.fixture
def url(worker: Worker) -> str:
    """Its address."""
    return address(worker)


def when_it_says(url: str, metric: str, value: float, **labels: str) -> Scrape:
    """Wait until a metric has a value, and return the scrape."""
    found: list[Scrape] = []

    def look() -> bool:
        found[:] = [scrape(url)]
        return metric in found[0] and found[0].sum(metric, **labels) == value

    try:
        wait_until(look, 60, f"{metric} {labels} {value}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}\n{found[0].text}") from None
    return found[0]


def test_each_end_of_a_task_is_counted(service: Service, url: str) -> None:
    for call in (
        "counted.fail.delay('no')",
        "counted.again.delay()",
        "counted.reject.delay()",
        "counted.hang.delay()",
    ):
        service.send(call)
    # The second one expires while the first one runs.
    service.python(
        "counted.sleep.apply_async((2,), shadow='another name')\ncounted.sleep.apply_async((0,), expires=0.5).id"
    )
    service.send("counted.work.delay(notes, 99)")
    for name in ("counted.sleep", "counted.again", "counted.work"):
        found = when_it_says(url, "celery_task_succeeded_total", 1, name=name)
    once = {"received": 1, "started": 1}
    assert counts(found, name="counted.fail") == once | {"failed": 1}
    assert counts(found, name="counted.again") == {"received": 2, "started": 2, "retried": 1, "succeeded": 1}
    assert counts(found, name="counted.reject") == once | {"failed": 1, "rejected": 1}
    assert counts(found, name="counted.hang") == once | {"failed": 1}
    assert found.sum("celery_task_succeeded_total", name="counted.sleep") == 1
    assert found.sum("celery_task_started_total", name="counted.sleep") == 1
    assert counts(found, name="counted.work") == {"received": 2, "started": 2, "rejected": 1, "succeeded": 1}
    assert found.values("celery_task_failed_total", "exception") == {"LookupError", "Reject", "TimeLimitExceeded"}
    assert found.values("celery_task_received_total", "queue_name") == {"default"}
    assert found.sum("celery_worker_up") == 1
    assert found.sum("celery_worker_queues", queue_name="default") == 1
    assert found.values("celery_worker_queues", "queue_name") == {"default"}
    assert found.sum("celery_worker_tasks_active") == 0
    # RabbitMQ 3.10 moves expired messages to `dead_letter` itself.
    if service.broker is service.redis:
        assert found.sum("celery_task_revoked_total", name="counted.sleep") == 1


def test_labels_have_a_bound(service: Service, url: str) -> None:
    service.python("for number in range(60): counted.fail_as.delay(f'Error{number}')")
    service.send("celery.send_task('nobody.knows.this')")
    service.send("counted.sleep.apply_async((0,), shadow='anything')")
    found = when_it_says(url, "celery_task_failed_total", 60, name="counted.fail_as")
    exceptions = found.values("celery_task_failed_total", "exception")
    assert len(exceptions) <= 51
    assert "other" in exceptions
    assert not found.values("celery_task_received_total", "name") & {"nobody.knows.this", "anything"}


def test_a_wait_is_from_sending_or_from_the_eta_to_the_start(service: Service, url: str) -> None:
    sent = time.time()
    service.send("probe.work.apply_async((notes, 'later'), countdown=2)")
    service.wait_for_line("end later")
    ended = time.time()
    found = when_it_says(url, "celery_task_wait_seconds_count", 1, name="probe.work")
    assert 0 <= found.sum("celery_task_wait_seconds_sum", name="probe.work") <= ended - sent - 2 + 0.01


def test_a_message_without_the_header_is_counted_and_not_timed(service: Service, url: str) -> None:
    # As a publisher does that runs an older version, and another one that writes what it likes.
    publish = (
        "from celery.signals import before_task_publish\n"
        "def change(headers, **_):\n"
        "    headers.pop('sent_at')\n"
        "    headers.update(more)\n"
        "before_task_publish.connect(change)\n"
        "for more in ({}, {'sent_at': 'yesterday'}, {'sent_at': None}):\n"
        "    typed.add.delay(1, 2)\n"
    )
    service.python(publish, OF="another publisher")
    found = when_it_says(url, "celery_task_succeeded_total", 3, name="typed.add")
    assert found.sum("celery_task_wait_seconds_count", name="typed.add") == 0


def test_the_length_of_a_queue_and_the_age_of_its_oldest_message(service: Service, url: str) -> None:
    looked = time.time()
    when_it_says(url, "celery_broker_up", 1)
    sent = time.time()
    for _ in range(3):
        service.send("counted.sleep.apply_async((0,), queue='low_priority')")
    found = when_it_says(url, "celery_queue_length", 3, queue_name="low_priority")
    age = found.sum("celery_queue_oldest_message_age_seconds", queue_name="low_priority")
    # RabbitMQ: the queue was seen empty then.
    since = sent if service.broker is service.redis else looked - KEPT
    assert 0 < age < time.time() - since + 0.1

    def has_aged() -> bool:
        return scrape(url).sum("celery_queue_oldest_message_age_seconds", queue_name="low_priority") > age + 1

    wait_until(has_aged, 30, "an older message")
    assert found.sum("celery_queue_oldest_message_age_seconds", queue_name="high_priority") == 0
    with service.worker("another", "-Q", "low_priority", **FREE) as another:
        found = when_it_says(address(another), "celery_queue_length", 0, queue_name="low_priority")
        assert found.sum("celery_queue_oldest_message_age_seconds", queue_name="low_priority") == 0
    when_it_says(url, "celery_queue_length", 0, queue_name="low_priority")


def test_dead_letters_are_counted_by_reason_in_all_processes(service: Service, url: str) -> None:
    before = when_it_says(url, "celery_broker_up", 1)
    added = before.sum("celery_dead_letters_total", reason="failure")
    service.send("counted.fail.delay('no')")
    found = when_it_says(url, "celery_dead_letters_total", added + 1, reason="failure")
    assert found["celery_dead_letters"] == found.sum("celery_dead_letters_total")
    done = service.dead_letters("purge", "--yes")
    assert done.returncode == 0, done.stderr
    found = when_it_says(url, "celery_dead_letters", 0)
    assert found.sum("celery_dead_letters_total", reason="failure") == added + 1


def test_a_worker_runs_without_metrics_if_its_port_is_taken(service: Service, url: str, worker: Worker) -> None:
    with service.worker("second", "-Q", "high_priority", METRICS_PORT=str(port_of(url))) as second:
        second.wait_ready()
        [line] = [line for line in second.text().splitlines() if "metrics" in line and "my_service" not in line]
        told = json.loads(line)
        assert told["event"] == "metrics_not_served"
        assert told["level"] == "warning"
        assert told["port"] == port_of(url)
        assert "METRICS_PORT" in told["hint"]
    # The beat of the shared worker has no server of its own, and doesn't complain.
    assert len(re.findall("metrics_served|metrics_not_served", worker.text())) == 1


def test_a_port_that_is_none_stops_the_process_with_one_line(project: InstalledProject) -> None:
    done = project.celery("report", env={"CELERY_BROKER_URL": "memory://", "METRICS_PORT": "http"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "METRICS_PORT is 'http'; it must be a valid integer."


def test_a_scrape_answers_while_the_servers_are_away(service: Service, url: str) -> None:
    for server in {service.broker.name: service.broker, "results": service.redis}.values():
        server.pause()
    took = 0.0
    try:

        def is_down() -> bool:
            nonlocal took
            begin = time.monotonic()
            found = scrape(url)
            took = max(took, time.monotonic() - begin)
            return found["celery_broker_up"] == 0 and "celery_dead_letters" not in found

        wait_until(is_down, 30, "a scrape that says so")
        found = scrape(url)
    finally:
        service.broker.resume()
        service.redis.resume()
    assert took < 3
    assert "celery_queue_length" not in found
    assert found.sum("celery_task_started_total", name="counted.fail") > 0
    found = when_it_says(url, "celery_broker_up", 1)
    assert "celery_queue_length" in found


# --- leases, beat, pools ----------------------------------------------------------------------------------------------


def test_lost_leases_are_counted(project: InstalledProject, tmp_path: Path) -> None:
    options = json.dumps({"visibility_timeout": 4})
    with (
        service_on_redis(project, tmp_path) as service,
        service.worker("worker", **FREE, CELERY_BROKER_TRANSPORT_OPTIONS=options) as worker,
    ):
        service.send("probe.work.delay(notes, 'long', 6)")
        service.wait_for_line("start long")
        found = scrape(address(worker))
        assert found["celery_leases_held"] == 1
        assert found["celery_leases_lost_total"] == 0
        assert found["celery_worker_tasks_active"] == 1
        with redis.Redis.from_url(service.redis.url) as client:
            client.flushall()
        when_it_says(address(worker), "celery_leases_lost_total", 1)


@contextmanager
def often(project: InstalledProject, folder: Path) -> Iterator[tuple[Service, Worker]]:
    """A beat that sends a task each second, and its service."""
    changed = project.copy(folder / "project")
    (changed.folder / "celeryconfig.py").write_text(
        'beat_schedule = {"often": {"task": "counted.fail", "schedule": 1.0, "args": ["no"]}}\n'
    )
    arguments = ["--schedule", str(folder / "schedule")]
    with service_on_redis(changed, folder / "service") as service:
        env = service.variables | FREE
        with Worker(changed, env=env, log=folder / "beat.log", command="beat", arguments=arguments) as beat:
            beat.wait_for("task_enqueued.*often")
            yield service, beat


def test_beat_tells_its_lag(project: InstalledProject, tmp_path: Path) -> None:
    with often(project, tmp_path) as (service, beat):
        url = address(beat)
        found = when_it_says(url, "celery_broker_up", 1)
        promtool("check", "metrics", given=found.text)
        assert 0 <= found["celery_beat_lag_seconds"] < 10
        assert found.sum("celery_queue_length", queue_name="default") >= 1
        assert "celery_task_received_total" not in found
        service.broker.pause()
        try:
            wait_until(lambda: scrape(url)["celery_beat_lag_seconds"] > 3, 60, "beat to be late")
        finally:
            service.broker.resume()


def test_each_query_of_the_dashboard_and_of_the_alerts_returns_data(project: InstalledProject, tmp_path: Path) -> None:
    monitoring = project.folder / "deploy" / "monitoring"
    with often(project, tmp_path) as (service, beat), service.worker("worker", **FREE) as worker:
        targets = [urllib.parse.urlsplit(address(each)).netloc for each in (worker, beat)]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(monitoring / "alerts.yml")],
            "scrape_configs": [{"job_name": "it", "static_configs": [{"targets": targets}]}],
        }
        with start_prometheus(tmp_path / "prometheus", config) as prometheus:
            service.send("counted.again.delay()")
            service.send("counted.work.delay(notes, 1)")
            when_it_says(address(worker), "celery_task_succeeded_total", 1, name="counted.again")
            promtool("check", "metrics", given=scrape(address(worker)).text)

            def query(text: str) -> list[dict[str, object]]:
                answer = ask(prometheus.url, f"/api/v1/query?query={urllib.parse.quote(text)}")
                found: list[dict[str, object]] = json.loads(answer)["data"]["result"]
                return found

            dashboard = json.loads((monitoring / "grafana-dashboard.json").read_text())
            rules = yaml.safe_load((monitoring / "alerts.yml").read_text())["groups"][0]["rules"]
            queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
            metrics = {name for rule in rules for name in re.findall(r"celery_\w+", rule["expr"])}
            assert len(queries) > 15
            assert len(metrics) > 8
            for text in [*queries, *metrics]:
                filled = text.replace("$__rate_interval", "10s").replace("$__range", "1m")
                wait_until(lambda filled=filled: query(filled), 30, f"data for {filled}")
            for rule in rules:
                query(rule["expr"])

            def evaluated() -> list[str]:
                groups = json.loads(ask(prometheus.url, "/api/v1/rules"))["data"]["groups"]
                return [rule["health"] for group in groups for rule in group["rules"] if rule["health"] != "unknown"]

            wait_until(lambda: len(evaluated()) == len(rules), 30, "all rules to be evaluated")
            assert set(evaluated()) == {"ok"}


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools_count_the_same(pool: str, project: InstalledProject, tmp_path: Path) -> None:
    with (
        service_on_redis(project, tmp_path) as service,
        service.worker("worker", f"--pool={pool}", "--concurrency=2", **FREE) as worker,
    ):
        service.python("for key in range(50): counted.work.delay(notes, key)")
        service.send("counted.fail.delay('no')")
        service.send("counted.again.delay()")
        found = when_it_says(address(worker), "celery_task_succeeded_total", 1, name="counted.again")
        found = when_it_says(address(worker), "celery_task_succeeded_total", 50, name="counted.work")
        assert counts(found, name="counted.work") == {"received": 50, "started": 50, "succeeded": 50}
        assert counts(found, name="counted.fail") == {"received": 1, "started": 1, "failed": 1}
        assert found.sum("celery_task_wait_seconds_count", name="counted.work") == 50


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_pools_count_the_same(pool: str, tmp_path: Path) -> None:
    with (
        service_on_redis(green_project("prometheus"), tmp_path) as service,
        service.worker("worker", f"--pool={pool}", "--concurrency=20", **FREE) as worker,
    ):
        service.python("for key in range(50): green.work.delay(notes, str(key))")
        service.send("green.fail.delay('no')")
        when_it_says(address(worker), "celery_task_failed_total", 1, name="green.fail")
        found = when_it_says(address(worker), "celery_task_succeeded_total", 50, name="green.work")
        assert counts(found, name="green.work") == {"received": 50, "started": 50, "succeeded": 50}
        assert counts(found, name="green.fail") == {"received": 1, "started": 1, "failed": 1}
        found = when_it_says(address(worker), "celery_dead_letters", 1)
        assert found["celery_leases_held"] == 0
        when_it_says(address(worker), "celery_broker_up", 1)
