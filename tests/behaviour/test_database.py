"""The database on PostgreSQL: event loops, no lost or repeated writes, connections, and error messages."""

import contextlib
import itertools
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.project import InstalledProject
from support.servers import Server, start_postgres, wait_until
from support.service import Service, full_project

POOLS = ("prefork", "solo", "threads")
#: Enough to show an error in the life of a loop. By hand, 5,000: it takes a minute for each pool.
TASKS = 300
ROWS = 20
#: What a process may open, in these tests: one connection that stays and one more.
POOL_SIZE, OVERFLOW = 1, 1

TABLES = """
create schema probe;
create table probe.counter (id integer primary key, n integer not null);
create table probe.ledger (task_id text primary key);
insert into probe.counter select id, 0 from generate_series(0, %d) id;
"""


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project with a database and a cache."""
    return full_project()


#: A database that has all tables, from which those of the tests are copied.
MODEL = "model"


@pytest.fixture(scope="session")
def cluster(project: InstalledProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One PostgreSQL for all tests of a process. Each test has its own database."""
    with start_postgres(tmp_path_factory.mktemp("postgres")) as server:
        execute(server.url, f"create database {MODEL}")
        url = url_of(server, MODEL)
        done = project.run("python", "-m", "alembic", "upgrade", "head", env={"DATABASE_URL": url})
        assert done.returncode == 0, done.stderr
        execute(url, TABLES % (ROWS - 1))
        yield server


def url_of(server: Server, database: str) -> str:
    return f"{server.url.removesuffix('postgres')}{database}"


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements.encode())


class Database:
    """A database of a server."""

    numbers = itertools.count(1)

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"test{next(self.numbers)}"
        self.url = url_of(server, self.name)
        execute(server.url, f"create database {self.name} template {MODEL}")

    def ask(self, statement: str) -> int:
        """Return the number that a query returns."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(statement.encode()).fetchone()
        assert row
        return int(row[0])

    def connections(self) -> int:
        """Return the number of open connections, without the one that asks."""
        return self.ask(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
        )

    def written(self) -> tuple[int, int]:
        """Return the number of increments, and the number of tasks that made them."""
        return self.ask("select sum(n) from probe.counter"), self.ask("select count(*) from probe.ledger")


@pytest.fixture
def broker_name() -> str:
    """One broker is enough: it doesn't affect the database."""
    return "redis"


@pytest.fixture
def postgres(service: Service, cluster: Server) -> Database:
    """A database with the tables of the project and of these tests. The service uses it."""
    cluster.recover()
    database = Database(cluster)
    service.variables |= {
        "DATABASE_URL": database.url,
        "DATABASE_POOL_SIZE": str(POOL_SIZE),
        "DATABASE_MAX_OVERFLOW": str(OVERFLOW),
    }
    return database


def run(service: Service, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return service.project.run(*command, env=service.variables | variables)


def alembic(service: Service, *arguments: str) -> str:
    done = run(service, "python", "-m", "alembic", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(service: Service, expression: str, header: str = "") -> Any:
    """Evaluate an expression in a publisher, where `users` is the project's example module."""
    imports = (
        f"from {service.project.slug}.tasks import users\n"
        "def ends(result): return repr(result.get(timeout=60, propagate=False))\n"
    )
    return service.python(f"{imports}{header}{expression}")


def send_many(service: Service, task: str, times: int) -> None:
    """Send tasks and wait until all have succeeded."""
    sent = f"sent = [database.{task}.delay(i % {ROWS}) for i in range({times})]\n"
    assert call(service, "len([result.get(timeout=100) for result in sent])", sent) == times


@contextlib.contextmanager
def watched(database: Database) -> Iterator[list[int]]:
    """Count the connections repeatedly during the block."""
    seen: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.1):
            seen.append(database.connections())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def all_are_closed(database: Database) -> None:
    wait_until(lambda: database.connections() == 0, 30, "all connections to be closed")


# --- it works ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_many_tasks_write_once_each_and_stay_within_the_connection_limit(
    service: Service, postgres: Database, pool: str
) -> None:
    concurrency = 1 if pool == "solo" else 2
    with service.worker("worker", f"--pool={pool}", f"--concurrency={concurrency}") as worker:
        with watched(postgres) as seen:
            send_many(service, "count", TASKS)
            wide = "[result.get(timeout=30) for result in [database.wide.delay() for _ in range(4)]]"
            assert call(service, wide) == [10] * 4
        assert postgres.written() == (TASKS, TASKS)
        assert 0 < max(seen) <= concurrency * (POOL_SIZE + OVERFLOW)

        # A sync task may use `asyncio.run`, again and again, beside those that are async.
        send_many(service, "count_in_new_loop", 60)
        send_many(service, "count", 60)
        send_many(service, "count_in_new_loop", 60)
        assert postgres.written() == (TASKS + 180, TASKS + 180)
    assert "Traceback" not in worker.text()
    all_are_closed(postgres)


def test_replaced_processes_close_their_connections(service: Service, postgres: Database) -> None:
    with (
        service.worker("worker", "--concurrency=2", "--max-tasks-per-child=5") as worker,
        watched(postgres) as seen,
    ):
        send_many(service, "count", 40)
    assert postgres.written() == (40, 40)
    assert max(seen) <= 2 * (POOL_SIZE + OVERFLOW)
    assert "Traceback" not in worker.text()
    all_are_closed(postgres)


def test_a_user_is_processed_once_if_the_message_is_delivered_twice(service: Service, postgres: Database) -> None:
    create = "one = users.create_user.delay('ada@example.com', 'Ada').get(timeout=30)\n"
    again = "two = users.create_user.delay('ada@example.com', 'Ada').get(timeout=30)\n"
    with service.worker("worker", "--concurrency=2"):
        process = "[users.process_user.delay(one) for _ in range(20)]"
        same = f"[one == two, len({{each.get(timeout=30) for each in {process}}})]"
        assert call(service, same, create + again) == [True, 1]
    assert postgres.ask("select count(*) from users") == 1


def test_a_soft_time_limit_rolls_back_and_keeps_the_connection(service: Service, postgres: Database) -> None:
    with service.worker(CELERY_TASK_SOFT_TIME_LIMIT="2"):
        assert "SoftTimeLimitExceeded" in call(service, "ends(database.slow_query.delay())")
        assert call(service, "database.count.delay(0).get(timeout=30)") == 1
        statements = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and state = 'active'"
        # This question holds the words it looks for.
        wait_until(lambda: postgres.ask(statements) == 1, 30, "the statement to be called off")
    assert postgres.written() == (1, 1)


# --- it is away -------------------------------------------------------------------------------------------------------


def test_tasks_are_retried_and_name_the_database_while_it_is_unreachable(service: Service, postgres: Database) -> None:
    service.variables["DATABASE_URL"] = postgres.url.replace("postgres@", "postgres:secret@")
    where = f"the database '{postgres.name}' on 127.0.0.1:"
    with service.worker() as worker:
        assert call(service, "database.patient.delay().get(timeout=30)") == 1
        postgres.server.kill()
        waiting = call(service, "database.patient.delay().id")
        example = call(service, "users.process_user.delay(1).id")
        state = f"[celery.AsyncResult({example!r}).state, repr(celery.AsyncResult({example!r}).info)]"
        found = wait_until(lambda: (s := call(service, state))[0] == "RETRY" and s, 20, "a retry of the example")
        assert "DatabaseUnavailable" in found[1]
        assert where in found[1].replace("\\", "")
        postgres.server.start()
        assert service.result(waiting, 60) == {"state": "SUCCESS", "result": 1}
    assert "secret" not in worker.text()


def test_a_lost_connection_is_replaced_before_it_is_used(service: Service, postgres: Database) -> None:
    with service.worker() as worker:
        assert call(service, "database.count.delay(0).get(timeout=30)") == 1
        postgres.server.restart()
        assert call(service, "database.count.delay(0).get(timeout=30)") == 2
    assert "Traceback" not in worker.text()


# --- it is configured wrongly -----------------------------------------------------------------------------------------


def test_an_invalid_url_stops_a_migration_with_one_line(service: Service) -> None:
    done = run(service, "python", "-m", "alembic", "upgrade", "head", DATABASE_URL="mysql://ada:secret@db/orders")
    assert done.returncode == 1
    assert done.stderr.startswith("DATABASE_URL starts with mysql://, which has no driver here; write ")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr + done.stdout


# --- migrations -------------------------------------------------------------------------------------------------------


#: `make schema`.
CHECK = ("python", "-m", "celery_service.data.schema")


def test_migrations_match_the_models_and_can_be_undone(service: Service, postgres: Database) -> None:
    alembic(service, "check")
    alembic(service, "downgrade", "base")
    assert postgres.ask("select count(*) from pg_tables where tablename = 'users'") == 0
    alembic(service, "upgrade", "head")


def test_migrating_an_unreachable_database_prints_one_line(service: Service, postgres: Database) -> None:
    postgres.server.stop()
    done = run(service, "python", "-m", "alembic", "upgrade", "head")
    assert done.returncode != 0
    assert f"FAILED: the database '{postgres.name}' on 127.0.0.1:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_migration_is_named_in_one_line_until_it_is_written(service: Service, tmp_path: Path) -> None:
    project = service.project.copy(tmp_path / "project")

    def run_there(*command: str) -> subprocess.CompletedProcess[str]:
        return project.run(*command, env=service.variables | {"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"})

    assert run_there(*CHECK).returncode == 0
    model = project.folder / project.slug / "models" / "user.py"
    model.write_text(model.read_text().replace("String(200)", "String(100)") + "    age: Mapped[int | None]\n")
    done = run_there(*CHECK)
    assert done.returncode == 1
    assert done.stderr == (
        'No migration does what models/ says: add_column users.age, modify_type users.name. Run: make migration M="…"\n'
    )

    for arguments in (("upgrade", "head"), ("revision", "--autogenerate", "-m", "add age")):
        done = run_there("python", "-m", "alembic", *arguments)
        assert done.returncode == 0, done.stderr
    assert run_there(*CHECK).returncode == 0
    written_file = next((project.folder / "migrations" / "versions").glob("*_add_age.py"))
    for command in (("check",), ("format", "--check")):
        done = run_there("ruff", *command, "--no-cache", str(written_file))
        assert done.returncode == 0, done.stdout
