"""The Compose stack on RabbitMQ with all options is started, used, attacked and stopped."""

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
