"""The servers go away and come back: workers wait for them, publishers hear of it soon."""

import pytest

from support.service import Service


def test_a_worker_waits_for_its_broker_at_start(service: Service) -> None:
    if service.broker is service.redis:
        service.redis.kill()
    else:
        service.broker.stop()
    with service.worker() as worker:
        worker.wait_for(r"Cannot connect to \w+://", 20)
        service.broker.start()
        worker.wait_ready(60)
        assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
        assert worker.process.poll() is None


def test_a_worker_survives_a_restart_of_its_broker(service: Service) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        service.broker.restart()
        assert service.result(service.send("probe.work.delay(notes, 'after')"))["state"] == "SUCCESS"
        assert worker.process.poll() is None


@pytest.mark.parametrize("state", ["stopped", "frozen"])
def test_a_publisher_gets_an_error_within_seconds(service: Service, state: str) -> None:
    publish = (
        "import time\n"
        "hello_world.delay()\n"  # connect while the broker answers
        "open(notes, 'w').write('connected')\n"
        "while open(notes).read() == 'connected': time.sleep(0.01)\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    hello_world.delay()\n"
        "    error = None\n"
        "except Exception as exception:\n"
        "    error = repr(exception)\n"
        "print(json.dumps([error, time.monotonic() - start]))\n"
    )
    error, seconds = _while_unavailable(service, publish, state)
    assert error
    assert seconds < 10


def _while_unavailable(service: Service, code: str, state: str) -> tuple[str | None, float]:
    """Run a publisher that waits for our word, and give it once the broker is away."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        outcome = executor.submit(service.python, code)
        service.wait_for_line("connected")
        if state == "frozen":
            service.broker.pause()
        else:
            service.broker.stop()
        try:
            service.notes.write_text("gone\n")
            error, seconds = outcome.result()
            return error, seconds
        finally:
            if state == "frozen":
                service.broker.resume()
            else:
                service.broker.start()


def test_work_that_ends_while_results_can_not_be_stored_is_no_failure(service: Service) -> None:
    with service.worker() as worker:
        task = service.send("probe.work.delay(notes, 'a', 3)")
        service.wait_for_line("start a")
        service.redis.stop()
        service.wait_for_line("end a")
        worker.wait_for("(?i)retry|connection", 10)
        service.redis.start()
        assert service.result(task, seconds=60) == {"state": "SUCCESS", "result": "a"}
