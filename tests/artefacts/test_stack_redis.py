"""The Compose stack on Redis is started, used, attacked and stopped, on a real engine."""

import base64
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from artefacts.promises import Promises, send
from support.commands import attempt
from support.containers import Stack
from support.servers import free_port


class TestOnRedis(Promises):
    """Half of the tests that don't depend on the broker. test_stack_rabbitmq.py has the others and runs in parallel."""

    broker = "redis"

    def test_a_full_redis_refuses_writes(self, stack: Stack) -> None:
        assert "noeviction" in stack.compose("exec", "-T", "redis", "redis-cli", "config", "get", "maxmemory-policy")
        assert "yes" in stack.compose("exec", "-T", "redis", "redis-cli", "config", "get", "appendonly")
        assert "NOAUTH" in stack.compose("exec", "-T", "-e", "REDISCLI_AUTH=", "redis", "redis-cli", "ping")

    def test_a_frozen_worker_is_unhealthy(self, stack: Stack) -> None:
        worker = stack.main_process()
        stack.compose("exec", "-T", "celery", "sh", "-c", f"kill -STOP {worker}")
        try:
            stack.wait_until(lambda: stack.health("celery") == "unhealthy", 60, "the worker to be unhealthy")
        finally:
            stack.compose("exec", "-T", "celery", "sh", "-c", f"kill -CONT {worker}")
        stack.wait_until(lambda: stack.health("celery") == "healthy", 30, "the worker to be healthy again")

    def test_flower_is_hardened_and_asks_for_its_password(self, stack: Stack) -> None:
        assert stack.health("flower") == "healthy"
        host = stack.inspect("flower")["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        settings = dict(re.findall(r"^(FLOWER_\w+)=(\S+)$", (stack.folder / ".env").read_text(), re.MULTILINE))
        port, pair = settings["FLOWER_PORT"], f"admin:{settings['FLOWER_PASSWORD']}"
        assert host["PortBindings"]["5555/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": port}]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/tasks")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=20)
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200

    def test_the_error_about_a_taken_port_names_its_variable(self, stack: Stack, tmp_path: Path) -> None:
        second = Path(shutil.copytree(stack.folder, tmp_path / "second", ignore=shutil.ignore_patterns(".venv")))
        text = (second / ".env").read_text().replace(stack.name, f"{stack.name}-second")
        (second / ".env").write_text(re.sub(r"^MAIL_PORT=.*", f"MAIL_PORT={free_port()}", text, flags=re.MULTILINE))
        [port] = re.findall(r"^REDIS_PORT=(\d+)$", text, re.MULTILINE)
        try:
            done = attempt("make", "up", cwd=second)
        finally:
            attempt("docker", "compose", "down", "--volumes", cwd=second)
        assert done.returncode != 0
        says = [line for line in done.stdout.splitlines() if line.startswith("Port ")]
        assert says == [f"Port {port} is taken: set REDIS_PORT in .env to another one, then run make up again."]

    def test_scale_and_down(self, stack: Stack) -> None:
        [line] = send(stack, "kept", 1)
        stack.wait_for_lines([line], 30)
        stack.make("scale", "N=2")
        assert len(stack.containers("celery")) == 2
        stack.make("down")
        assert stack.compose("ps", "--all", "--quiet") == ""
        # What the volumes hold is there again.
        stack.make("up")
        assert line in stack.lines()
