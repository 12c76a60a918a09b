"""The callback of a chord. If a task of the chord fails, the callback becomes a dead letter, too.

Celery collects the results of a chord in Redis, counts each task once, and marks the callback as
failed if one of them has failed. If you replay this task, it stores its result, but Celery doesn't
count it again. So you replay the callback separately, when all tasks have succeeded.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery import Celery, states
from celery.canvas import Signature, group
from celery.result import GroupResult

from celery_service.dead_letters.story import Record, headers_of

#: The reason of these dead letters.
CHORD = "chord"


class CanNotRun(Exception):
    """The callback of a chord can't run."""


def callback_of(record: Record) -> Record | None:
    """Return the record of the callback that doesn't run because this task has failed."""
    try:
        in_chord = next(each for each in _with_what_follows(record) if each.get("chord"))
        callback, group_id = in_chord["chord"], in_chord["group_id"]
        callback_id, name = callback["options"]["task_id"], callback["task"]
    except (StopIteration, AttributeError, KeyError, TypeError):
        return None  # not in a chord, or the options don't have Celery's format
    now = datetime.now(UTC)
    return {
        "id": callback_id,
        "task": name,
        "args": callback.get("args"),
        "kwargs": callback.get("kwargs"),
        "queue": "",
        "options": {},
        "callback": callback,
        "chord": group_id,
        "correlation_id": record.get("correlation_id"),
        "deliveries": 0,
        "reason": CHORD,
        "error": f"{record['task']}[{record['id']}] of its chord failed: {record['error']}",
        "time": now.timestamp(),
        "failed_at": now.isoformat(timespec="seconds"),
    }


def sender(app: Celery, record: Record) -> Callable[[], object]:
    """Return a function that sends the callback of a chord, with its old id and the results.

    Raises:
        CanNotRun: One of the tasks hasn't succeeded, the results have expired, or the callback is
            a group, whose tasks Celery has revoked.
        RedisError: Redis is unreachable.
    """
    callback = Signature.from_dict(record["callback"], app=app)
    if isinstance(callback, group):
        raise CanNotRun("its callback is a group, whose tasks Celery has revoked; send it anew")
    headers = (callback.options.get("headers") or {}) | headers_of(record)
    results = _results_of(app, record["chord"])
    return partial(callback.apply_async, (results,), headers=headers)


def _results_of(app: Celery, group_id: str) -> list[Any]:
    """Return the results of the tasks of a chord, in the order of the tasks."""
    backend: Any = app.backend
    client, key = backend.client, backend.get_key_for_group
    if client.exists(key(group_id, ".s")):
        raise CanNotRun("the other tasks of its chord have not ended")
    is_ordered = app.conf.result_backend_transport_options.get("result_chord_ordered", True)
    fetch = client.zrange if is_ordered else client.lrange
    parts = [backend.decode(part)[1:] for part in fetch(key(group_id, ".j"), 0, -1)]
    if not parts:
        raise CanNotRun("the results of its chord have expired")
    # The results that Celery has counted. A task that had failed may have succeeded since.
    counted = {task_id: result for task_id, state, result in parts if state == states.SUCCESS}

    def result_of(task_id: str) -> Any:
        if task_id in counted:
            return counted[task_id]
        meta = backend.get_task_meta(task_id, cache=False)
        if meta["status"] != states.SUCCESS:
            raise CanNotRun(f"{task_id} of its chord is {meta['status']}")
        return meta["result"]

    def results_in(parts: Any) -> list[Any]:
        return [
            results_in(each) if isinstance(each, GroupResult) else result_of(each.id)
            for each in parts.results
        ]

    # Celery stores the structure of a chord only if the chord contains groups.
    built = GroupResult.restore(group_id, app=app)
    return results_in(built) if built else [result_of(task_id) for task_id, _, _ in parts]


def _with_what_follows(record: Record) -> Iterator[Record]:
    """Yield the options of a task and of the tasks that follow it in a chain."""
    yield record["options"]
    for task in record["options"].get("chain") or ():
        yield task["options"]
