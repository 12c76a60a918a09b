"""The HTTP API with a real worker: send, follow and cancel tasks; dead letters; health."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from support.api import Api, allow
from support.distribution import on_one_worker
from support.project import InstalledProject
from support.servers import wait_until
from support.service import Service, api_project


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    return api_project()


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def served(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Api]]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        service_on(request.param, project, folder) as service,
        service.worker("worker", "--concurrency", "2") as worker,
        Api(service) as api,
    ):
        worker.wait_ready()
        yield service, api.wait_ready()


@pytest.fixture
def service(served: tuple[Service, Api]) -> Service:
    return served[0]


@pytest.fixture
def api(served: tuple[Service, Api]) -> Api:
    return served[1]


def test_a_task_is_accepted_and_followed_to_its_result(api: Api) -> None:
    answer = api.report(".", ".")
    accepted = answer.json()
    assert answer.status_code == 202
    assert accepted == {
        "task_id": accepted["task_id"],
        "status": "PENDING",
        "check_url": f"/api/v1/tasks/{accepted['task_id']}",
    }
    assert answer.headers["location"] == accepted["check_url"]
    status = api.result(accepted["task_id"])
    assert status.keys() == {"task_id", "status", "result"}
    assert [folder["folder"] for folder in status["result"]["folders"]] == [".", "."]

    answer = api.post("/emails/welcome", {"email": "ada@example.com", "name": "Ada"})
    assert api.result(answer.json()["task_id"])["status"] == "SUCCESS"


def test_a_stream_shows_each_step_and_ends_with_the_result(service: Service, api: Api) -> None:
    task_id = api.send("api.steps.delay(notes, 'stream', 3)")
    seen: list[dict[str, Any]] = []
    with api.follow(task_id) as events:
        for event in events:
            seen.append(event)
            allow(service.notes, "stream", len(seen))
    assert [event["event"] for event in seen] == ["state", "progress", "progress", "progress", "state"]
    assert [event["data"]["progress"]["percent"] for event in seen[1:4]] == [33, 66, 100]
    assert seen[1]["data"] == {
        "task_id": task_id,
        "status": "PROGRESS",
        "progress": {"current": 1, "total": 3, "percent": 33, "message": "step 1"},
    }
    assert seen[-1]["data"] == {"task_id": task_id, "status": "SUCCESS", "result": "stream"}
    assert len({event["id"] for event in seen}) == len(seen)


def test_a_stream_goes_on_after_the_last_event(service: Service, api: Api) -> None:
    task_id = api.send("api.steps.delay(notes, 'again', 2)")
    with api.follow(task_id) as events:
        assert next(events)["data"]["status"] == "STARTED"
        allow(service.notes, "again", 1)
        last = next(events)
        assert last["data"]["progress"]["current"] == 1
    with api.follow(task_id, Last_Event_ID=last["id"]) as events:
        allow(service.notes, "again", 2)
        *between, end = list(events)
    # A state may be over before the stream has begun, but the one that was seen isn't sent again.
    assert [event["data"]["progress"]["current"] for event in between] in ([], [2])
    assert end["data"]["status"] == "SUCCESS"
    # A client that hasn't seen the end gets it, and so does one that asks once more.
    for last_id in (last["id"], end["id"]):
        with api.follow(task_id, Last_Event_ID=last_id) as events:
            assert [event["data"]["status"] for event in events] == ["SUCCESS"]


def test_many_streams_share_a_subscription(service: Service, api: Api) -> None:
    task_id = api.send("api.steps.delay(notes, 'many', 2)")

    def follow(_: int) -> Any:
        with api.follow(task_id) as events:
            return list(events)[-1]["data"]

    with redis.Redis.from_url(service.redis.url) as client, ThreadPoolExecutor(30) as executor:
        streams = [executor.submit(follow, number) for number in range(30)]
        channel = f"celery-task-meta-{task_id}"
        wait_until(lambda: dict(client.pubsub_numsub(channel))[channel.encode()] == 1, 30, "the subscription")
        allow(service.notes, "many", 1)
        api.wait_for(task_id, lambda found: found["status"] == "PROGRESS")
        assert dict(client.pubsub_numsub(channel))[channel.encode()] == 1
        allow(service.notes, "many", 2)
        assert {stream.result(60)["status"] for stream in streams} == {"SUCCESS"}
        wait_until(lambda: dict(client.pubsub_numsub(channel))[channel.encode()] == 0, 30, "its end")


def test_a_running_task_is_cancelled_only_if_asked_to(service: Service, api: Api) -> None:
    task_id = api.send("api.steps.delay(notes, 'cancelled', 1)")
    service.wait_for_line("start cancelled")
    assert api.delete(f"/tasks/{task_id}").status_code == 202
    assert api.get(f"/tasks/{task_id}").json()["status"] == "STARTED"
    assert api.delete(f"/tasks/{task_id}?terminate=true").status_code == 202
    status = api.result(task_id)
    assert status["status"] == "REVOKED"
    assert status["error"]["type"] == "TaskRevokedError"
    assert api.delete("/tasks/unknown").status_code == 404


def test_a_waiting_task_is_cancelled(service: Service, api: Api) -> None:
    running = [api.send(f"api.steps.delay(notes, 'busy{number}', 1)") for number in range(2)]
    task_id = api.report().json()["task_id"]
    assert api.get(f"/tasks/{task_id}").json() == {"task_id": task_id, "status": "PENDING"}
    with api.follow(task_id) as events:
        assert next(events)["data"]["status"] == "PENDING"
        assert api.delete(f"/tasks/{task_id}").status_code == 202
        for number in range(2):
            allow(service.notes, f"busy{number}", 1)
        assert [event["data"]["status"] for event in events] == ["REVOKED"]
    assert {api.result(each)["status"] for each in running} == {"SUCCESS"}


def test_one_key_sends_one_task(api: Api) -> None:
    first = api.report(".", Idempotency_Key="one")
    again = api.report(".", Idempotency_Key="one")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]

    other = api.report("..", Idempotency_Key="one")
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    elsewhere = api.post("/emails/welcome", {"email": "a@b.c", "name": "A"}, Idempotency_Key="one")
    assert elsewhere.status_code == 422
    # A request that isn't valid uses up no key.
    assert api.post("/reports", {}, Idempotency_Key="two").status_code == 422
    assert api.report(Idempotency_Key="two").status_code == 202


def test_requests_at_the_same_time_send_one_task(service: Service, api: Api) -> None:
    with ThreadPoolExecutor(20) as executor:
        answers = list(executor.map(lambda _: api.report(Idempotency_Key="at once"), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    task_id = answers[0].json()["task_id"]
    api.result(task_id)
    log = (service.folder / "worker.log").read_text()
    assert len(re.findall(rf'"task_started".*"{task_id}"', log)) == 1


def test_errors_are_problem_details(api: Api) -> None:
    answers = {
        404: [api.get("/nowhere"), api.get("/tasks/unknown"), api.get("/tasks/unknown/events")],
        405: [api.get("/reports")],
        413: [api.report("x" * 200_000)],
        422: [api.post("/reports", {"folders": [5]}), api.get("/tasks/a%20b")],
    }
    for status, found in answers.items():
        for answer in found:
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["status"] == status
            assert problem["request_id"] == answer.headers["x-request-id"]
    assert answers[405][0].headers["allow"] == "POST"
    assert answers[422][0].json()["errors"] == [{"field": "folders.0", "message": "Input should be a valid string"}]

    def chunks() -> Iterator[bytes]:
        yield from [b" " * 50_000] * 5

    sent = api.client.post("/api/v1/reports", content=chunks(), headers={"Content-Type": "application/json"})
    assert (sent.status_code, sent.headers["content-type"]) == (413, "application/problem+json")


def test_a_failed_task_shows_no_traceback(api: Api) -> None:
    task_id = api.send("api.fail.delay(notes)")
    assert api.result(task_id)["error"] == {"type": "ValueError", "message": "a secret/path.py is missing"}
    with api.follow(task_id) as events:
        assert "raise" not in str(list(events))
    assert api.result(api.send("api.odd.delay()"))["result"] == ["?", None]


def test_the_request_id_is_the_correlation_id(api: Api) -> None:
    answer = api.client.get("/health/live", headers={"X-Request-ID": "from-a-client"})
    assert answer.headers["x-request-id"] == "from-a-client"
    for bad in ("a b", "x" * 200, "<script>", ""):
        answer = api.client.get("/health/live", headers={"X-Request-ID": bad})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    # It fails, so that its message can be seen: as a dead letter.
    task_id = api.report("../..", X_Request_ID="of-a-report").json()["task_id"]
    assert api.result(task_id)["status"] == "FAILURE"
    wait_until(lambda: api.get(f"/ops/dead-letters/{task_id}").status_code == 200, 30, "the dead letter")
    letter = api.get(f"/ops/dead-letters/{task_id}").json()
    assert letter["correlation_id"] == "of-a-report"
    assert '"of-a-report"' in api.text()


def test_operators_replay_and_drop_dead_letters(service: Service, api: Api) -> None:
    for letter in api.get("/ops").json()["dead_letters"]:
        assert api.delete(f"/ops/dead-letters/{letter['id']}").status_code == 204
    first, second = (service.send("api.fail.delay(notes)") for _ in range(2))
    wait_until(lambda: api.get("/ops").json()["dead_letters_total"] == 2, 30, "two dead letters")
    overview = api.get("/ops").json()
    assert {each["name"] for each in overview["queues"]} == {"high_priority", "default", "low_priority", "dead_letter"}
    assert [each["active"] for each in overview["workers"]] == [0]
    assert {each["id"] for each in overview["dead_letters"]} == {first, second}
    assert not {"args", "kwargs", "traceback"} & overview["dead_letters"][0].keys()
    assert len(api.get("/ops?limit=1").json()["dead_letters"]) == 1

    story = api.get(f"/ops/dead-letters/{first}").json()
    assert story["args"] == [str(service.notes)]
    assert "ValueError" in story["traceback"]

    with Path(service.notes).open("a") as file:
        file.write("mended\n")
    answer = api.post(f"/ops/dead-letters/{first}/replay")
    assert (answer.status_code, answer.json()["task_id"]) == (202, first)
    wait_until(lambda: api.get(f"/tasks/{first}").json()["status"] == "SUCCESS", 30, "the replay")
    assert api.post(f"/ops/dead-letters/{first}/replay").status_code == 404
    assert api.delete(f"/ops/dead-letters/{second}").status_code == 204
    assert api.get(f"/ops/dead-letters/{second}").status_code == 404
    assert api.get("/ops").json()["dead_letters_total"] == 0


def test_health_names_the_workers(api: Api) -> None:
    def healthy(prefix: str) -> Any:
        """Give the report, unless the worker takes longer than a second to answer, as on a busy machine."""
        report = api.client.get(f"{prefix}/health/detailed").json()
        return report if report["status"] == "healthy" else None

    for prefix in ("", "/api/v1"):
        report = wait_until(partial(healthy, prefix), 60, "the service to be healthy")
        assert report["components"].keys() == {"celery", "broker", "results"}
        assert [name.split("@")[0] for name in report["components"]["celery"]["workers"]] == ["worker"]
        assert api.client.get(f"{prefix}/health/ready").json() == {"status": "healthy"}
        assert api.client.get(f"{prefix}/health/live").status_code == 200


def test_every_response_has_the_headers_of_a_strict_policy(api: Api) -> None:
    for answer in (api.get("/ops"), api.get("/nowhere"), api.client.get("/openapi.json")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    preflight = api.client.options(
        "/api/v1/reports", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in preflight.headers
    crossing = api.client.post("/api/v1/ops/dead-letters/x/replay", headers={"Sec-Fetch-Site": "cross-site"})
    assert crossing.status_code == 403
