"""What is sent runs: on one worker for each broker."""

import time

import pytest

from support.project import Worker
from support.service import Service

#: A worker waits so many seconds for the result of a child that has died; by default, ten.
SOON = {"CELERY_WORKER_LOST_WAIT": "1"}


@pytest.fixture
def service(of_the_broker: tuple[Service, Worker]) -> Service:
    """The service without notes."""
    service, _ = of_the_broker
    service.notes.write_text("")
    return service


def test_a_task_sent_from_plain_python_runs_on_a_worker(service: Service, worker: Worker) -> None:
    assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
    # Standard output of the worker is a file: what a task prints is there at once, also where nobody sets
    # PYTHONUNBUFFERED.
    worker.wait_for("\nHello World!\n", 2)


def test_a_worker_answers_a_ping(service: Service) -> None:
    assert service.python("list(celery.control.inspect(timeout=30, limit=1).ping().values())") == [{"ok": "pong"}]


def test_a_killed_child_loses_nothing(service: Service, worker: Worker) -> None:
    task = service.send("probe.work.delay(notes, 'a', 2)")
    service.wait_for_line("start a")
    worker.kill_child()
    assert service.result(task) == {"state": "SUCCESS", "result": "a"}
    assert service.lines() == ["start a", "start a", "end a"]


def test_a_countdown_is_kept(service: Service) -> None:
    sent = time.monotonic()
    task = service.send("probe.work.apply_async((notes, 'late'), countdown=4)")
    service.send("probe.work.delay(notes, 'now')")
    service.wait_for_line("end now")
    assert service.lines()[-1] == "end now"
    assert service.result(task)["state"] == "SUCCESS"
    assert time.monotonic() - sent >= 4


def test_a_message_in_pickle_is_refused(service: Service, worker: Worker) -> None:
    printed = worker.text().count("Hello World!")
    service.python(
        "from kombu.serialization import disable_insecure_serializers, enable_insecure_serializers\n"
        "enable_insecure_serializers()\n"
        "try: hello_world.apply_async(serializer='pickle')\n"
        "finally: disable_insecure_serializers()"
    )
    worker.wait_for("ContentDisallowed|Refusing to deserialize")
    assert service.result(service.send("probe.work.delay(notes, 'after')"))["state"] == "SUCCESS"
    assert worker.text().count("Hello World!") == printed


def test_a_garbage_collection_leaves_out_what_the_worker_has_imported(service: Service) -> None:
    """It takes 0.1 s otherwise, and copies the memory that processes share."""
    looked_at, left_out = service.result(service.send("probe.count_objects.delay()"))["result"]
    assert left_out > 50_000
    assert looked_at < left_out / 4
