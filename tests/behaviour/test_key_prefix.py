"""Deployments that share a Redis, each with a `global_keyprefix` and a Redis user that may use nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from support.project import InstalledProject
from support.servers import Server, start_redis, wait_until
from support.service import Service


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The Redis that they share."""
    with start_redis(tmp_path) as server:
        yield server


def deployment(server: Server, project: InstalledProject, folder: Path, name: str) -> Service:
    """A service whose Redis user may use what begins with its name."""
    # What a worker subscribes to by pattern, Redis compares with this list letter by letter.
    patterns = (f"&{name}:/0.celery.pidbox", f"&{name}:/0.celeryev/worker.*")
    rules = ("on", ">secret", f"~{name}:*", f"&{name}:*", *patterns, "+@all", "-@dangerous")
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", name, *rules)
    variables = {
        "CELERY_BROKER_URL": f"redis://{name}:secret@{urlsplit(server.url).netloc}/0",
        "CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps({"global_keyprefix": f"{name}:", "visibility_timeout": 3}),
        "CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS": json.dumps({"global_keyprefix": f"{name}:"}),
        "CELERY_WORKER_LOST_WAIT": "1",
    }
    return Service(folder / name, variables, broker=server, redis=server, project=project)


def denied(server: Server) -> list[str]:
    """What Redis has denied to any user, and who asked for it."""
    with redis.Redis.from_url(server.url) as client:
        return [f"{entry['username']}: {entry['object']}" for entry in client.acl_log()]


def wait_for_letters(server: Server, service: Service, count: int) -> list[dict[str, Any]]:
    """Wait until a deployment has so many dead letters, and give them."""
    name = f"{service.folder.name}:{service.project.slug}:dead-letters:times"
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: client.zcard(name) == count, 60, f"{count} dead letters in {name}")
    return service.letters()


def test_deployments_that_share_a_redis_share_no_keys(
    server: Server, project: InstalledProject, tmp_path: Path
) -> None:
    one, two = (deployment(server, project, tmp_path, name) for name in ("one", "two"))
    with one, two, one.worker() as first, two.worker() as second:
        for worker in (first, second):
            worker.wait_ready()
        # The same work, by the same key and by the same message.
        for each in (one, two):
            for call in ("(notes, 0, 'invoice 7')", "(notes,), task_id='same'"):
                task = each.send(f"celery.send_task('once.work', {call})")
                assert each.result(task)["result"] == "first"
        # A chord, events and replies go over channels.
        assert one.python("chord([typed.add.s(1, 2), typed.add.s(3, 4)])(typed.total.s()).get(timeout=30)") == 10
        assert one.python("list(celery.control.inspect(timeout=30, limit=1).ping().values())") == [{"ok": "pong"}]
        # Deliveries are counted for each, under the same id, and so are dead letters.
        for each in (one, two):
            each.send("failing.poison.apply_async((notes, 'child'), task_id='poison')")
        for each in (one, two):
            [letter] = wait_for_letters(server, each, 1)
            assert (letter["id"], letter["deliveries"]) == ("poison", 3)
            assert each.lines().count("poison") == 3
        one.send("failing.fail.delay(notes, 'x')")
        wait_for_letters(server, one, 2)
        assert len(two.letters()) == 1
        (one.folder / "mended").touch()
        assert one.dead_letters("replay", "--task", "failing.fail", "--yes").stdout == "1 replayed, 0 kept\n"
        assert one.dead_letters("purge", "--yes").stdout == "1 dropped\n"
        assert len(two.letters()) == 1
    with redis.Redis.from_url(server.url) as client:
        assert [key for key in client.scan_iter() if not key.startswith((b"one:", b"two:"))] == []
    assert denied(server) == []


def test_a_permission_error_of_redis_is_logged_and_not_retried(
    server: Server, project: InstalledProject, tmp_path: Path
) -> None:
    elsewhere = {"CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS": '{"global_keyprefix": "other:"}'}
    with deployment(server, project, tmp_path, "one") as service, service.worker(**elsewhere) as worker:
        worker.wait_ready()
        failed = service.send("failing.fail.delay(notes, 'x')")
        service.send("celery.send_task('once.work', (notes, 0))")
        service.send("probe.work.delay(notes, 'next')")
        service.wait_for_line("end next", 30)
        for event in ("result_not_stored", "dead_letter_not_kept"):
            worker.wait_for(f'"event": "{event}".*"task_id": "{failed}".*"server": "redis://one:\\*\\*\\*@')
        assert "secret" not in worker.text()
