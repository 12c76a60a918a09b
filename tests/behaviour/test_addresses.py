"""Brokers and results by a socket, over TLS and on servers that refuse them. tests/runtime has every mistake."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import Server, start_redis
from support.servers.base import HOST, free_port, require
from support.service import Service

# --- a socket ---------------------------------------------------------------------------------------------------------


def test_messages_results_and_dead_letters_go_through_a_socket(project: InstalledProject, tmp_path: Path) -> None:
    with (
        # Its path may be 100 characters long.
        tempfile.TemporaryDirectory() as folder,
        start_redis(tmp_path, options=("--unixsocket", f"{folder}/redis.sock")) as server,
    ):
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "hunter2")
        variables = {"CELERY_BROKER_URL": f"redis+socket://:hunter2@{folder}/redis.sock?virtual_host=3"}
        with (
            Service(tmp_path / "service", variables, broker=server, redis=server, project=project) as service,
            service.worker() as worker,
        ):
            task = service.send("probe.work.delay(notes, 'a')")
            assert service.result(task)["state"] == "SUCCESS"
            failed = service.send("celery.send_task('unknown')")
            assert service.result(failed)["state"] == "FAILURE"
            assert [letter["id"] for letter in service.letters()] == [failed]
        with redis.Redis(unix_socket_path=f"{folder}/redis.sock", password="hunter2", db=3) as client:
            assert client.exists(f"celery-task-meta-{task}")
            assert {name: entry["keys"] for name, entry in client.info("keyspace").items()}.keys() == {"db3"}
        assert "hunter2" not in worker.text()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that is its own authority; its key is beside it."""
    openssl = require("openssl", shutil.which("openssl"))
    path = tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName=IP:{HOST}"]
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return path


def test_certificates_are_verified(project: InstalledProject, tmp_path: Path, certificate: Path) -> None:
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate.with_suffix(".key"))]
    url = f"rediss://{HOST}:{port}/0"
    trusted = {"CELERY_BROKER_URL": f"{url}?ssl_ca_certs={certificate}"}
    with (
        start_redis(tmp_path, options=options) as server,
        Service(tmp_path / "service", trusted, broker=server, redis=server, project=project) as service,
    ):
        with service.worker():
            assert service.result(service.send("probe.work.delay(notes, 'a')"))["state"] == "SUCCESS"
        with service.worker("distrustful", CELERY_BROKER_URL=url) as worker:
            worker.wait_for(r"Cannot connect to rediss://.*certificate verify failed")
        # Somebody else's certificate for the results alone.
        code = (
            "try:\n    celery.backend.client.ping()\n    found = ''\n"
            "except Exception as error:\n    found = str(error)\n'verify failed' in found"
        )
        assert service.python(code, CELERY_RESULT_BACKEND=url)
        assert not service.python(code)


# --- a Redis Cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Server]:
    """The only node of a Redis Cluster."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with start_redis(tmp_path / "node", options=options) as server:
        yield server


@pytest.mark.parametrize("has_slots", [False, True])
def test_a_node_of_a_cluster_stops_workers_and_beat_with_one_line(
    project: InstalledProject, tmp_path: Path, node: Server, has_slots: bool
) -> None:
    if has_slots:
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    with start_redis(tmp_path / "other") as other:
        for command, broker, results, variable in (
            ("worker", node.url, "", "CELERY_BROKER_URL"),
            ("worker", node.url, other.url, "CELERY_BROKER_URL"),
            ("worker", "memory://", node.url, "CELERY_RESULT_BACKEND"),
            ("beat", node.url, "", "CELERY_BROKER_URL"),
        ):
            variables = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": results, "LOG_LEVEL": "WARNING"}
            arguments = ["celery", "-A", f"{project.slug}.celery", command]
            done = run_command(project, arguments, variables, output=tmp_path / "printed")
            line = f"{variable} names a node of a Redis Cluster; name a Redis that is not a cluster."
            assert (done.returncode, done.stderr.splitlines()) == (1, [line])


# --- RabbitMQ refuses -------------------------------------------------------------------------------------------------


def rabbitmqctl(server: Server, *arguments: str) -> None:
    program = Path(server.command[0]).with_name("rabbitmqctl")
    subprocess.run([program, *arguments], env=server.environment, check=True, capture_output=True, timeout=60)


def test_workers_and_beat_wait_for_a_virtual_host_and_for_a_user(
    project: InstalledProject, tmp_path: Path, rabbitmq: Server
) -> None:
    (tmp_path / "often.py").write_text(
        f"beat_schedule = {{'often': {{'task': '{project.slug}.celery.hello_world', 'schedule': 0.5}}}}\n"
    )
    url = rabbitmq.url.replace("guest:guest", "ada:hunter2").removesuffix("/") + "new"
    with start_redis(tmp_path) as store:
        variables = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": store.url}
        variables |= {"CELERY_CONFIG_MODULE": "often", "PYTHONPATH": str(tmp_path)}
        schedule = ["--schedule", str(tmp_path / "schedule")]
        try:
            with (
                Service(tmp_path / "service", variables, broker=rabbitmq, redis=store, project=project) as service,
                service.worker() as worker,
                Worker(project, env=variables, log=tmp_path / "beat.log", command="beat", arguments=schedule) as beat,
            ):
                for each in (worker, beat):
                    each.wait_for("ACCESS_REFUSED.*Trying again in 4")
                rabbitmqctl(rabbitmq, "add_user", "ada", "hunter2")
                for each in (worker, beat):
                    each.wait_for(r"NOT_ALLOWED.*\bnew\b.*Trying again")
                rabbitmqctl(rabbitmq, "add_vhost", "new")
                rabbitmqctl(rabbitmq, "set_permissions", "-p", "new", "ada", ".*", ".*", ".*")
                worker.wait_for("\nHello World!\n", 90)
                for each in (worker, beat):
                    assert "Traceback" not in each.text()
                    assert not re.search("hunter2|Frequent restarts", each.text())
        finally:
            for command in ("delete_vhost new", "delete_user ada"):
                rabbitmqctl(rabbitmq, *command.split())
