"""The database on PostgreSQL: no loop errors, nothing lost or doubled, no connections left, and what errors say."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.project import InstalledProject
from support.servers import start_postgres, wait_until
from support.service import Service, install_with_tasks

POOLS = ("prefork", "solo", "threads")
#: Enough to show an error in the life of a loop. By hand, 5,000: it takes a minute for each pool.
TASKS = 1000
BATCH = 1000
ROWS = 20
#: What a process may open, in these tests: one connection that stays and one more.
POOL_SIZE, OVERFLOW = 1, 1

TABLES = """
create schema probe;
create table probe.counter (id integer primary key, n integer not null);
create table probe.ledger (task_id text primary key);
insert into probe.counter select id, 0 from generate_series(0, %d) id;
"""


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], InstalledProject]:
    """A project with a database, for the fixture `service`."""
    folder = tmp_path_factory.mktemp("database") / "project"
    installed = install_with_tasks(folder, {"include_sqlalchemy": True}, "probe", "database")
    return lambda _: installed


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to a database."""
    return "redis"


@pytest.fixture
def postgres(service: Service, tmp_path: Path) -> Iterator[Any]:
    """A PostgreSQL with the tables of the project and of these tests, which the service uses."""
    with start_postgres(tmp_path / "postgres") as server:
        service.variables |= {
            "DATABASE_URL": server.url,
            "DATABASE_POOL_SIZE": str(POOL_SIZE),
            "DATABASE_MAX_OVERFLOW": str(OVERFLOW),
        }
        alembic(service, "upgrade", "head")
        with psycopg.connect(server.url) as connection:
            connection.execute((TABLES % (ROWS - 1)).encode())
        yield server


def run(service: Service, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return service.project.run(*command, env=service.variables | variables)


def alembic(service: Service, *arguments: str) -> str:
    done = run(service, "python", "-m", "alembic", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(service: Service, expression: str, header: str = "") -> Any:
    """Evaluate an expression in a publisher, with the tasks of database_tasks.py as `t`."""
    imports = (
        f"from {service.project.slug}.tasks import database as t, users\n"
        "from celery import group\n"
        "def ends(result): return repr(result.get(timeout=60, propagate=False))\n"
    )
    return service.python(f"{imports}{header}print(json.dumps({expression}, default=repr))")


def send_many(service: Service, task: str, times: int) -> None:
    """Send them and wait until all have ended; none may fail."""
    while times > 0:
        number = min(times, BATCH)
        sent = f"sent = [t.{task}.delay(i % {ROWS}) for i in range({number})]\n"
        assert call(service, "len([result.get(timeout=100) for result in sent])", sent) == number
        times -= number


def ask(server: Any, statement: str) -> int:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row
    return int(row[0])


def connections(server: Any) -> int:
    """How many are open, but for the one that asks."""
    return ask(
        server,
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()",
    )


@contextlib.contextmanager
def watched(server: Any) -> Iterator[list[int]]:
    """Count the connections again and again during the block."""
    seen: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.05):
            seen.append(connections(server))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def all_are_closed(server: Any) -> None:
    wait_until(lambda: connections(server) == 0, 5, "all connections to be closed")


def written(server: Any) -> tuple[int, int]:
    """How often the numbers went up, and how many tasks did it."""
    return ask(server, "select sum(n) from probe.counter"), ask(server, "select count(*) from probe.ledger")


# --- it works ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_many_tasks_write_once_each_within_the_bound_of_connections(service: Service, postgres: Any, pool: str) -> None:
    concurrency = 1 if pool == "solo" else 2
    with (
        service.worker("worker", f"--pool={pool}", f"--concurrency={concurrency}") as worker,
        watched(postgres) as seen,
    ):
        send_many(service, "count", TASKS)
        assert call(service, "[result.get(timeout=30) for result in [t.wide.delay() for _ in range(4)]]") == [10] * 4
    assert written(postgres) == (TASKS, TASKS)
    assert 0 < max(seen) <= concurrency * (POOL_SIZE + OVERFLOW)
    assert "Traceback" not in worker.text()
    all_are_closed(postgres)


def test_processes_that_are_replaced_leave_no_connections(service: Service, postgres: Any) -> None:
    with (
        service.worker("worker", "--concurrency=2", "--max-tasks-per-child=5") as worker,
        watched(postgres) as seen,
    ):
        send_many(service, "count", 100)
    assert written(postgres) == (100, 100)
    assert max(seen) <= 2 * (POOL_SIZE + OVERFLOW)
    assert "Traceback" not in worker.text()
    all_are_closed(postgres)


@pytest.mark.parametrize("pool", POOLS)
def test_asyncio_run_in_a_sync_task_works_again_and_again(service: Service, postgres: Any, pool: str) -> None:
    with service.worker("worker", f"--pool={pool}", "--concurrency=2") as worker:
        send_many(service, "count_in_new_loop", 60)
        send_many(service, "count", 60)
        send_many(service, "count_in_new_loop", 60)
    assert written(postgres) == (180, 180)
    assert "Traceback" not in worker.text()
    all_are_closed(postgres)


def test_a_user_is_processed_once_however_often_the_message_comes(service: Service, postgres: Any) -> None:
    create = "one = users.create_user.delay('ada@example.com', 'Ada').get(timeout=30)\n"
    again = "two = users.create_user.delay('ada@example.com', 'Ada').get(timeout=30)\n"
    with service.worker("worker", "--concurrency=2"):
        process = "[users.process_user.delay(one) for _ in range(20)]"
        same = f"[one == two, len({{each.get(timeout=30) for each in {process}}})]"
        assert call(service, same, create + again) == [True, 1]
    assert ask(postgres, "select count(*) from users") == 1


def test_a_soft_limit_rolls_back_and_the_connection_serves_on(service: Service, postgres: Any) -> None:
    with service.worker(CELERY_TASK_SOFT_TIME_LIMIT="2"):
        assert "SoftTimeLimitExceeded" in call(service, "ends(t.slow_query.delay())")
        assert call(service, "t.count.delay(0).get(timeout=30)") == 1
        statements = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and state = 'active'"
        # This question holds the words it looks for.
        wait_until(lambda: ask(postgres, statements) == 1, 5, "the statement to be called off")
    assert written(postgres) == (1, 1)


# --- it is away -------------------------------------------------------------------------------------------------------


def test_while_the_database_is_away_tasks_are_retried_and_say_which_it_is(service: Service, postgres: Any) -> None:
    service.variables["DATABASE_URL"] = postgres.url.replace("postgres@", "postgres:secret@")
    where = "the database 'postgres' on 127.0.0.1:"
    with service.worker() as worker:
        assert call(service, "t.patient.delay().get(timeout=30)") == 1
        postgres.kill()
        waiting = call(service, "t.patient.delay().id")
        example = call(service, "users.process_user.delay(1).id")
        state = f"[celery.AsyncResult({example!r}).state, repr(celery.AsyncResult({example!r}).info)]"
        found = wait_until(lambda: (s := call(service, state))[0] == "RETRY" and s, 20, "a retry of the example")
        assert "DatabaseUnavailable" in found[1]
        assert where in found[1].replace("\\", "")
        postgres.start()
        assert service.result(waiting, 60) == {"state": "SUCCESS", "result": 1}
    assert "secret" not in worker.text()


def test_a_lost_connection_is_noticed_before_it_is_used(service: Service, postgres: Any) -> None:
    with service.worker() as worker:
        assert call(service, "t.count.delay(0).get(timeout=30)") == 1
        postgres.restart()
        assert call(service, "t.count.delay(0).get(timeout=30)") == 2
    assert "Traceback" not in worker.text()


# --- it is configured wrongly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+psycopg2://ada:secret@db/orders", "DATABASE_URL starts with postgresql+psycopg2://, which"),
        ("mysql://ada:secret@db/orders", "DATABASE_URL starts with mysql://, which has no driver here"),
        ("ada:secret@db/orders", "DATABASE_URL can't be read; write postgresql://user:password@host:5432/name"),
        ("postgresql://ada:secret@db:port/orders", "DATABASE_URL can't be read"),
        ("postgresql://ada:secret@db", "DATABASE_URL names no database"),
    ],
)
def test_a_bad_address_stops_every_process_with_one_line(service: Service, url: str, says: str) -> None:
    slug = service.project.slug
    for command in (
        ("celery", "-A", f"{slug}.celery", "worker"),
        ("python", "-c", f"import {slug}.tasks.users"),
        ("python", "-m", "alembic", "upgrade", "head"),
    ):
        done = run(service, *command, DATABASE_URL=url)
        assert done.returncode == 1
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr + done.stdout


def test_a_bad_setting_of_another_kind_does_so_too(service: Service) -> None:
    done = run(service, "celery", "-A", f"{service.project.slug}.celery", "worker", SMTP_PORT="abc")
    assert (done.returncode, done.stderr) == (1, "SMTP_PORT is 'abc'; it must be a valid integer.\n")


# --- migrations -------------------------------------------------------------------------------------------------------


def test_migrations_agree_with_the_models_and_go_down_again(service: Service, postgres: Any) -> None:
    alembic(service, "check")
    alembic(service, "downgrade", "base")
    assert ask(postgres, "select count(*) from pg_tables where tablename = 'users'") == 0
    alembic(service, "upgrade", "head")


def test_migrating_a_database_that_is_away_says_so_in_one_line(service: Service, postgres: Any) -> None:
    postgres.stop()
    done = run(service, "python", "-m", "alembic", "upgrade", "head")
    assert done.returncode != 0
    assert "FAILED: the database 'postgres' on 127.0.0.1:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_what_no_migration_makes_is_named_in_one_line_until_one_is_written(service: Service, tmp_path: Path) -> None:
    project = InstalledProject(
        folder=tmp_path / "project", slug=service.project.slug, environment=service.project.environment
    )
    shutil.copytree(service.project.folder, project.folder)
    changed = Service(project, tmp_path, None, None, {"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"})
    assert run(changed, "python", "-m", "migrations.check").returncode == 0

    model = project.folder / project.slug / "models" / "user.py"
    model.write_text(model.read_text().replace("String(200)", "String(100)") + "    age: Mapped[int | None]\n")
    done = run(changed, "python", "-m", "migrations.check")
    assert done.returncode == 1
    assert done.stderr == (
        'No migration does what models/ says: add_column users.age, modify_type users.name. Run: make migration M="…"\n'
    )

    alembic(changed, "upgrade", "head")
    alembic(changed, "revision", "--autogenerate", "-m", "add age")
    assert run(changed, "python", "-m", "migrations.check").returncode == 0
    written_file = next((project.folder / "migrations" / "versions").glob("*_add_age.py"))
    for command in (("check",), ("format", "--check")):
        done = run(changed, "ruff", *command, "--no-cache", str(written_file))
        assert done.returncode == 0, done.stdout
