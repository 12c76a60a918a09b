"""The callback of a chord whose task has failed: a dead letter of its own, for Celery drops it.

Celery collects the results of a chord in Redis, counts each task once, and marks the callback as
failed when one of them has failed. A task that is replayed afterwards stores its result, but
nobody counts it. So the callback is replayed by itself, when all tasks have succeeded.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery import Celery, states
from celery.canvas import Signature, group
from celery.result import GroupResult

from celery_service.dead_letters.story import Record

#: The reason of such a dead letter.
CHORD = "chord"


class CanNotRun(Exception):
    """The callback of a chord can't run."""


def callback_of(record: Record) -> Record | None:
    """Return the record of the callback that doesn't run because this task is a dead letter."""
    try:
        in_chord = next(each for each in _with_what_follows(record) if each.get("chord"))
        callback, group_id = in_chord["chord"], in_chord["group_id"]
        callback_id, name = callback["options"]["task_id"], callback["task"]
    except (StopIteration, AttributeError, KeyError, TypeError):
        return None  # not in a chord, or not in one of Celery's
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
        "deliveries": 0,
        "reason": CHORD,
        "error": f"{record['task']}[{record['id']}] of its chord failed: {record['error']}",
        "time": now.timestamp(),
        "failed_at": now.isoformat(timespec="seconds"),
    }


def sender(app: Celery, record: Record) -> Callable[[], object]:
    """Return what sends the callback of a chord, under its old id, with the results that it takes.

    Raises:
        CanNotRun: One of the tasks hasn't succeeded, the results have expired, or Celery refuses
            the callback by now.
        RedisError: Redis can't be asked.
    """
    callback = Signature.from_dict(record["callback"], app=app)
    if isinstance(callback, group):
        raise CanNotRun("its callback is a group, whose tasks Celery has revoked; send it anew")
    headers = (callback.options.get("headers") or {}) | {"replayed_from": record["id"]}
    results = _results_of(app, record["chord"])
    return partial(callback.apply_async, (results,), headers=headers)


def _results_of(app: Celery, group_id: str) -> list[Any]:
    """Return what the tasks of a chord have returned, in its order."""
    backend: Any = app.backend
    client, key = backend.client, backend.get_key_for_group
    if client.exists(key(group_id, ".s")):
        raise CanNotRun("the other tasks of its chord have not ended")
    is_ordered = app.conf.result_backend_transport_options.get("result_chord_ordered", True)
    fetch = client.zrange if is_ordered else client.lrange
    parts = [backend.decode(part)[1:] for part in fetch(key(group_id, ".j"), 0, -1)]
    if not parts:
        raise CanNotRun("the results of its chord have expired")
    # As Celery has counted them; what had failed then may have succeeded since.
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

    # Celery keeps how a chord was built where it has groups inside.
    built = GroupResult.restore(group_id, app=app)
    return results_in(built) if built else [result_of(task_id) for task_id, _, _ in parts]


def _with_what_follows(record: Record) -> Iterator[Record]:
    """Give the options of a task and of those that follow it in a chain, the last of a chord's."""
    yield record["options"]
    for task in record["options"].get("chain") or ():
        yield task["options"]
