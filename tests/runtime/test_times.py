"""The time in messages, by which doctor, metrics and API tell how long they wait."""

import json
from collections.abc import Iterator

import pytest
from celery.signals import before_task_publish
from celery_service.brokers import times


@pytest.fixture
def publisher() -> Iterator[None]:
    """A process that writes the time."""
    times.write_times()
    yield
    before_task_publish.disconnect(times._write_time)


@pytest.mark.usefixtures("publisher")
def test_a_message_that_is_sent_again_has_a_new_time() -> None:
    headers = {times.SENT_AT: 1.0}
    before_task_publish.send(sender="task", headers=headers)
    sent = times.time_of(json.dumps({"headers": headers}))
    assert sent == headers[times.SENT_AT]
    assert sent > 1.0


@pytest.mark.parametrize("message", [None, b"", "{}", '{"headers": {}}', '{"headers": {"sent_at": "soon"}}', "[]"])
def test_a_message_without_a_time_has_none(message: str | None) -> None:
    assert times.time_of(message) is None
