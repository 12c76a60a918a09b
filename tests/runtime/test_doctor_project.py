"""What `celery doctor` sees without a server: settings, secrets, `.env`, versions."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery_service.lifecycle import versions
from celery_service.observability.doctor import examine, project
from celery_service.observability.doctor.finding import Finding
from kombu.exceptions import OperationalError

from support.forks import Forks

MEMORY = {"CELERY_BROKER_URL": "memory://"}

FIND = """
import json
from my_service.celery import celery
from celery_service.observability.doctor import project
print(json.dumps(list(project.check_env_file(celery))))
"""


def look_at_env_file(forks: Forks, service: Path, text: str) -> list[list[str]]:
    (service / "pyproject.toml").touch()
    (service / ".env").write_text(text)
    done = forks.run(FIND, service, MEMORY)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("DEAD_LETERS_MAX_COUNT=5", "Did you mean DEAD_LETTERS_MAX_COUNT? "),
        ("export CELERY_BROKER_ULR=redis://localhost", "Did you mean CELERY_BROKER_URL? "),
        ("HEALTH_MAX_SILENSE=90", "Did you mean HEALTH_MAX_SILENCE? "),
        ("NOTHING_LIKE_IT='x=1'", ""),
    ],
)
def test_a_variable_that_nobody_reads(forks: Forks, service: Path, line: str, fix: str) -> None:
    (service / ".env.example").write_text("# HEALTH_MAX_SILENCE=90\n")
    name = line.removeprefix("export ").partition("=")[0]
    found = look_at_env_file(forks, service, f"CELERY_TASK_TIME_LIMIT=5\n{line}\n")
    assert found == [["warning", ".env", f"nobody reads {name}", f"{fix}Correct its name, or remove the line."]]


def test_variables_that_somebody_reads(forks: Forks, service: Path) -> None:
    (service / "my_service/settings.py").write_text(
        "import os\n"
        "from pydantic_settings import BaseSettings\n"
        "class Settings(BaseSettings, env_prefix='mail_'):\n"
        "    sender: str = 'a'\n"
        "DIRECT = os.environ.get('READ_DIRECTLY')\n"
    )
    (service / "my_service/tasks/work.py").write_text("from my_service import settings\n")
    (service / "compose.yaml").write_text("services: {redis: {ports: ['${REDIS_PORT:-6379}:6379']}}\n")
    (service / "Makefile").write_text("all:\n\techo $(WHO)\n")
    names = (
        *("MAIL_SENDER", "READ_DIRECTLY", "REDIS_PORT", "WHO", "DEAD_LETTERS_MAX_COUNT", "HEALTH_DIR"),
        *("CELERY_BROKER_URL_FILE", "CELERY_WORKER_LOGLEVEL", "HTTPS_PROXY", "TZ", "COMPOSE_PROJECT_NAME"),
    )
    found = look_at_env_file(forks, service, "".join(f"{name}=x\n" for name in names))
    assert found == [["ok", ".env", f"{len(names)} variables, all are read", ""]]


def test_lines_of_a_long_value_are_no_variables(forks: Forks, service: Path) -> None:
    found = look_at_env_file(forks, service, 'HEALTH_DIR="first\nMIIEvQIBADANBg=\nlast"\n')
    assert found == [["ok", ".env", "1 variables, all are read", ""]]


def test_versions_that_are_not_tested(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    [tested] = project.check_versions(app)
    assert tested.level == "ok"
    monkeypatch.setattr(versions, "version", lambda _: "99.0")
    monkeypatch.setattr(versions, "requires", lambda _: ["kombu>=5.7,<5.8"])
    [untested] = project.check_versions(app)
    assert untested[:3] == ("warning", "versions", "untested: kombu 99.0 (needs <5.8,>=5.7)")


# --- settings ---------------------------------------------------------------------------------------------------------

SOURCES = """
import json
from my_service.celery import celery
from celery_service.observability.doctor import settings
celery.conf.task_publish_retry = False
found = settings.settings(celery)
names = {names!r}
shown = [each.text for each in settings.check(celery)]
print(json.dumps([{{name: found[name] for name in names}}, shown]))
"""


def sources(forks: Forks, service: Path, *names: str, **variables: str) -> tuple[dict[str, Any], list[str]]:
    done = forks.run(SOURCES.format(names=names), service, {"CELERY_BROKER_URL": "redis://:s3cret@h/0", **variables})
    assert done.returncode == 0, done.stderr
    found, shown = json.loads(done.stdout)
    return found, shown


def test_where_settings_come_from(forks: Forks, service: Path, tmp_path: Path) -> None:
    (service / "pyproject.toml").touch()
    (service / "celeryconfig.py").write_text("result_expires = 60\ntask_time_limit = 50\n")
    secret = tmp_path / "secret"
    secret.write_text("redis://:hidden@results/1")
    names = (
        *("broker_url", "result_backend", "result_expires", "task_time_limit", "task_acks_late", "worker_pool"),
        *("task_publish_retry", "broker_transport_options"),
    )
    found, shown = sources(
        forks,
        service,
        *names,
        CELERY_RESULT_BACKEND_FILE=str(secret),
        CELERY_TASK_TIME_LIMIT="70",
        CELERY_BROKER_TRANSPORT_OPTIONS='{"sentinel_kwargs": {"password": "pass1"}}',
    )
    assert found["broker_url"] == ["redis://:***@h/0", "CELERY_BROKER_URL"]
    assert found["result_backend"] == ["redis://:***@results/1", "CELERY_RESULT_BACKEND_FILE"]
    assert found["result_expires"] == [60.0, "celeryconfig.py"]
    assert found["task_time_limit"] == [70.0, "CELERY_TASK_TIME_LIMIT, instead of celeryconfig.py"]
    assert found["task_acks_late"] == [True, "default of celery-service"]
    assert found["worker_pool"] == ["prefork", "default of Celery"]
    assert found["task_publish_retry"] == [False, "code"]
    assert found["broker_transport_options"][0]["sentinel_kwargs"] == {"password": "***"}
    assert {text.partition(" = ")[0] for text in shown} == {*names} - {"task_acks_late", "worker_pool"}
    assert not [text for text in shown if "s3cret" in text or "hidden" in text or "pass1" in text]


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_check_that_fails_or_hangs_does_not_stop_the_others(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hangs(_: Celery) -> Any:
        yield Finding("ok", "hangs", "at first")
        released.wait(30)

    def away(_: Celery) -> Any:
        yield from ()
        raise OperationalError("amqp://user:s3cret@host: refused")

    def fails(_: Celery) -> Any:
        yield from ()
        raise KeyError("x")

    monkeypatch.setattr(examine, "LIMIT", 1.0)
    monkeypatch.setattr(examine, "CHECKS", {"hangs": hangs, "broker": away, "queues": away, "fails": fails})
    found = examine.examine(app)
    released.set()
    assert [each[:3] for each in found] == [
        ("ok", "hangs", "at first"),
        ("unseen", "hangs", "can't be seen: no answer within 1 s"),
        ("broken", "broker", "can't be reached: amqp://user:***@host: refused"),
        ("unseen", "queues", "can't be seen, for the same reason"),
        ("unseen", "fails", "can't be checked: KeyError: 'x'"),
    ]


def test_a_worker_does_not_import_the_checks(forks: Forks, service: Path) -> None:
    code = (
        "import sys\nfrom my_service.celery import celery\nfrom celery.bin.celery import celery as group\n"
        "import celery_service.observability.doctor.command\n"
        "celery.loader.import_default_modules()\n"
        "print([name for name in sys.modules if 'doctor' in name])\n"
    )
    done = forks.run(code, service, MEMORY)
    package = "celery_service.observability.doctor"
    assert done.stdout.strip() == str([package, f"{package}.command"])
