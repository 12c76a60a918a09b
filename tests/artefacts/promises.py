"""Tests of the Compose stack for both brokers. test_stack_redis.py and test_stack_rabbitmq.py run them.

The tests of a class share one stack, and leave it running.
"""

from pathlib import Path

from support.commands import run
from support.containers import Stack


def send(stack: Stack, prefix: str, count: int, call: str = "probe.work.delay(notes, key, 0.5)") -> list[str]:
    """Send tasks from a container, and return the lines that they write when they end."""
    keys = [f"{prefix}-{number}" for number in range(count)]
    stack.python(f"for key in {keys!r}: {call}\n")
    return [f"end {key}" for key in keys]


class Promises:
    """The tests of one broker. A subclass names the broker."""

    broker: str

    def test_tasks_from_the_host_and_from_containers_run(self, stack: Stack) -> None:
        stack.make("call", "TASK=probe.work", 'ARGS=["/data/notes", "host"]')
        assert stack.python("print(json.dumps(probe.work.delay(notes, 'inside').get(timeout=30)))") == "inside"
        stack.wait_for_lines(["end host", "end inside"], 30)

    def test_the_worker_receives_signals_directly_and_containers_are_hardened(self, stack: Stack) -> None:
        command = stack.compose("exec", "-T", "celery", "cat", f"/proc/{stack.main_process()}/cmdline").split("\0")
        assert Path(command[0]).name == "python"
        assert Path(command[1]).name == "celery"
        for service in ("celery", "beat"):
            host = stack.inspect(service)["HostConfig"]
            assert host["ReadonlyRootfs"]
            assert host["CapDrop"] == ["ALL"]
            assert host["Memory"] > 0
            assert host["RestartPolicy"]["Name"] == "unless-stopped"
        grace = stack.inspect("beat")["Config"]["StopTimeout"]
        assert str(grace) == stack.settings["CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT"]

    def test_a_stop_with_running_tasks_loses_nothing_and_needs_no_kill(self, stack: Stack) -> None:
        lines = send(stack, "long", 4, "probe.interrupted.delay(notes, key, 8.5)") + send(stack, "waiting", 4)
        stack.wait_for_lines(["start long-0"], 30)
        stack.compose("stop", "celery")
        # What the engine has to kill ends with 137.
        assert stack.inspect("celery")["State"]["ExitCode"] == 0
        stack.compose("up", "--detach", "--wait", "celery")
        stack.wait_for_lines(lines, 60)

    def test_a_killed_worker_and_restarted_servers_lose_nothing(self, stack: Stack) -> None:
        lines = send(stack, "killed", 6, "probe.interrupted.delay(notes, key, 5)")
        stack.wait_for_lines(["start killed-0"], 30)
        run("docker", "kill", *stack.containers("celery"))
        stack.compose("restart", *{"redis", self.broker})
        stack.compose("up", "--detach", "--wait", "celery")
        # On Redis, what the dead worker held comes back when its lease ends.
        stack.wait_for_lines(lines, 90)

    def test_an_outage_of_the_broker_loses_nothing_and_does_not_restart_the_worker(self, stack: Stack) -> None:
        lines = send(stack, "before", 12)
        stack.wait_for_lines(["start before-0"], 30)
        stack.compose("stop", self.broker)
        probes: set[str] = set()

        def seven_probes() -> bool:
            """These probes take longer than the silence after which a worker is unhealthy."""
            probes.add(stack.last_probe("celery"))
            assert stack.health("celery") == "healthy"
            return len(probes) > 7

        stack.wait_until(seven_probes, 60, "seven probes")
        stack.compose("up", "--detach", "--wait", self.broker)
        stack.wait_for_lines(lines + send(stack, "after", 2), 90)
        assert stack.inspect("celery")["RestartCount"] == 0
