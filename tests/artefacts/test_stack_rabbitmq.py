"""The Compose stack on RabbitMQ with all options is started, used, attacked and stopped."""

import re

import httpx

from artefacts.promises import Promises
from support.containers import Stack, assert_is_small, watching


class TestOnRabbitMQ(Promises):
    """Half of the tests that don't depend on the broker. test_stack_redis.py has the others and runs in parallel."""

    broker = "rabbitmq"

    def test_the_image_with_all_options_is_small(self, stack: Stack, summary: list[str]) -> None:
        summary.append(assert_is_small(stack.project, 110))

    def test_the_examples_work_in_containers(self, stack: Stack) -> None:
        slug = stack.project.slug
        report = "print(json.dumps(report_on_one('.', 'all').get(timeout=30)))"
        path = stack.python(f"from {slug}.tasks.reports import report_on_one\n{report}")
        assert path == "/data/files/reports/all.json"
        mail = "print(json.dumps(send_email.delay('ada@example.com', 'Hello', '').get(timeout=30)))"
        assert stack.python(f"from {slug}.tasks.email import send_email\n{mail}")["status"] == "sent"
        user = "print(json.dumps(create_user.delay('ada@example.com', 'Ada').get(timeout=30)))"
        assert stack.python(f"from {slug}.tasks.users import create_user\n{user}") == 1

    def test_the_api_is_hardened_and_needs_its_generated_key(self, stack: Stack) -> None:
        text = (stack.folder / ".env").read_text()
        [key] = re.findall(r"^API_KEY=(\w{32})$", text, re.MULTILINE)
        [port] = re.findall(r"^API_PORT=(\d+)$", text, re.MULTILINE)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, trust_env=False) as client:
            assert client.get("/ops").status_code == 401
            client.headers["X-API-Key"] = key
            person = {"email": "grace@example.com", "name": "Grace"}
            accepted = client.post("/users", json=person)
            assert accepted.status_code == 202
            url = f"/tasks/{accepted.json()['task_id']}"
            stack.wait_until(lambda: client.get(url).json()["status"] == "SUCCESS", 60, "the task of the API")

            def is_healthy() -> bool:
                components = client.get("/health/detailed").json()["components"]
                return {part["status"] for part in components.values()} == {"healthy"}

            # Workers have a second to answer. On a busy machine they take longer, and are "degraded" until they do.
            stack.wait_until(is_healthy, 60, "all components to be healthy")
        assert stack.health("api") == "healthy"
        host = stack.inspect("api")["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert {each["HostIp"] for each in host["PortBindings"]["8000/tcp"]} == {"127.0.0.1"}
        stack.compose("stop", "api")
        assert stack.inspect("api")["State"]["ExitCode"] == 0
        stack.compose("up", "--detach", "--wait", "api")

    def test_code_is_reloaded(self, stack: Stack) -> None:
        def starts() -> int:
            return stack.logs("celery").count(" ready.")

        # A container is healthy before its worker is ready.
        stack.wait_until(lambda: starts() > 0, 60, "the worker to be ready")
        before = starts()
        with watching(stack):
            with (stack.folder / stack.project.slug / "tasks" / "probe.py").open("a") as code:
                code.write("\n\n@current_app.task(name='probe.new')\ndef new() -> int:\n    return 42\n")
            stack.wait_until(lambda: starts() > before, 60, "the worker to restart")
        assert stack.python("print(json.dumps(celery.send_task('probe.new').get(timeout=30)))") == 42

    def test_one_beat_sends_and_a_second_is_refused(self, stack: Stack) -> None:
        due = '"schedule_entry": "Test Task"'
        stack.wait_until(lambda: stack.logs("beat").count(due) >= 2, 60, "two periodic tasks")
        refused = stack.attempt("up", "--detach", "--no-recreate", "--scale", "beat=2")
        assert refused.returncode != 0
        assert 'The "beat" service is using the custom container name' in refused.stdout
        assert len(stack.containers("beat")) == 1
        assert stack.health("beat") == "healthy"
        # The worker prints as often as beat has sent, give or take the one that is on its way.
        assert stack.logs("celery").count("Hello World!") <= stack.logs("beat").count(due)
