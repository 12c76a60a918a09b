"""The code of Celery and Kombu that the library overrides hasn't changed."""

from typing import Any

import celery.worker.worker
import kombu.transport.redis
import pytest

from support import pins

ADVICE = (
    "Look at what has changed in Celery, Kombu, redis-py or aiocache, and whether the library still does what it says. "
    "Then run `make pins`."
)


def test_overridden_methods_have_not_changed() -> None:
    changes = pins.changes()
    assert not changes, "\n".join([*changes, ADVICE])


def test_the_table_of_pins_is_complete() -> None:
    missing = pins.missing()
    assert not missing, "\n".join([*missing, "Name what they belong to in USED of tests/support/pins.py."])


def test_a_change_is_named_with_the_code_that_relies_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: Any, message: Any, delivery_tag: Any) -> None:
        """Do something else."""

    monkeypatch.setattr(kombu.transport.redis.QoS, "append", append)
    monkeypatch.delattr(celery.worker.worker.WorkController, "wait_for_soft_shutdown")
    assert pins.changes() == [
        "celery.worker.worker:WorkController.wait_for_soft_shutdown is gone; see celery_service/lifecycle/shutdown",
        "kombu.transport.redis:QoS.append has changed; see celery_service/brokers/redis/qos",
    ]


def test_overridden_methods_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_service.brokers.redis import qos

    monkeypatch.setattr(qos.QoS, "can_consume", lambda _: True, raising=False)
    assert pins.changes() == ["kombu.transport.virtual.base:QoS.can_consume is new in celery_service/brokers/redis/qos"]
    monkeypatch.setattr(pins, "USED", {})
    assert any(each.endswith("connection._ensure_connection") for each in pins.missing())
    assert any(each.endswith("worker.wait_for_soft_shutdown") for each in pins.missing())
