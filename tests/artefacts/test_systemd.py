"""The units on a real systemd, and the programs on a real supervisor."""

import re
from collections.abc import Iterator

import pytest

from support.containers import require_engine
from support.project import REPOSITORY, render
from support.systemd_host import PASSWORD, Host, start_host

PROBE = REPOSITORY / "tests" / "behaviour" / "probe_tasks.py"
ANSWERS = {
    "package_slug": "a_unit",
    "include_sqlalchemy": True,
    "include_fastapi": True,
    "monitoring": ["flower"],
    "include_systemd": True,
}
WORKER = "worker@default"
#: The highest rating of systemd that passes, from 0 to 10.
EXPOSURE = 3.0
#: Seconds, so that the tests take a minute: the grace period, and systemd's own limit, which is shorter.
GRACE, STOP_LIMIT = 12, 3

pytestmark = pytest.mark.xdist_group("systemd")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server with Redis, on which the units are installed and started."""
    require_engine()
    project = render(tmp_path_factory.mktemp("systemd") / "project", ANSWERS)
    with start_host(project, PROBE) as host:
        said = host.shell("make install-systemd")
        assert "install -D -m 644 a-unit-worker@.service /etc/systemd/system/a-unit-worker@.service" in said
        host.shell(
            f"echo 'requirepass {PASSWORD}' >>/etc/redis/redis.conf && systemctl start redis-server\n"
            "cd /etc/a-unit\n"
            f"umask 077; echo 'redis://:{PASSWORD}@localhost/0' >credentials/broker_url\n"
            # A killed worker's messages are taken over sooner than by default.
            """echo CELERY_BROKER_TRANSPORT_OPTIONS=\\''{"visibility_timeout": 12}'\\' >>environment\n"""
            f"sed -i s/SHUTDOWN_TIMEOUT=.*/SHUTDOWN_TIMEOUT={GRACE}/ environment\n"
            "printf 'CELERY_WORKER_CONCURRENCY=1\\nHEALTH_MAX_SILENCE=10\\n' >>environment\n"
            "sed -i s/FLOWER_PASSWORD=.*/FLOWER_PASSWORD=secret/ environment\n"
            "echo QUEUES=default,low_priority >worker-default\n"
            "mkdir -p /etc/systemd/system/a-unit-worker@.service.d\n"
            f"printf '[Service]\\nTimeoutStopSec={STOP_LIMIT}\\nWatchdogSec=10\\n'"
            " >/etc/systemd/system/a-unit-worker@.service.d/test.conf\n"
            "systemctl daemon-reload\n"
            "systemctl enable --now --quiet a-unit.target a-unit-worker@default a-unit-beat a-unit-api a-unit-flower",
            timeout=120,
        )
        yield host


@pytest.fixture
def host(installed: Host) -> Host:
    """The server with a worker that is ready, even if the previous test has stopped it."""
    installed.run("systemctl", "start", "redis-server", installed.unit(WORKER), installed.unit("beat"))
    installed.wait_for_status(WORKER, "ready")
    return installed


def test_systemd_finds_no_mistake_in_the_units_and_little_exposure(host: Host, summary: list[str]) -> None:
    units = host.shell("ls /etc/systemd/system | grep '^a-unit.*[et]$'").replace("@.", "@default.").split()
    assert len(units) == 6
    assert host.run("systemd-analyze", "verify", *units) == ""
    for unit in [unit for unit in units if unit.endswith(".service")]:
        rating = host.run("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        [exposure] = re.findall(r"\d+\.\d", rating)
        summary.append(f"systemd-analyze security {unit}: {exposure} (limit {EXPOSURE})")
        assert float(exposure) <= EXPOSURE


def test_worker_and_beat_are_ready_and_a_task_runs(host: Host) -> None:
    host.wait_for_status("beat", "ready")
    assert host.python("print(json.dumps(probe.work.delay(notes, 'first').get(timeout=30)))") == "first"
    probe = "HEALTH_DIR=/run/a-unit/{} /opt/a-unit/.venv/bin/python -m celery_service.lifecycle.health a_unit {}"
    for folder, what in [("worker-default", "ready"), ("beat", "beat")]:
        command = f"setpriv --reuid a-unit --regid a-unit --clear-groups sh -c '{probe.format(folder, what)}'"
        assert host.attempt(command)[0] == 0
    assert host.show(WORKER, "User") == "a-unit"


def test_api_and_flower_answer(host: Host) -> None:
    for kind, url in [("api", "http://127.0.0.1:8000/health/live"), ("flower", "http://127.0.0.1:5555/healthcheck")]:
        get = f"/opt/a-unit/.venv/bin/python -c \"import urllib.request as r; print(r.urlopen('{url}').status)\""

        def answers(get: str = get) -> bool:
            return host.attempt(get)[1].strip() == "200"

        host.wait(answers, 60, f"{kind} to answer")
        assert host.show(kind, "ActiveState") == "active"


def test_the_password_is_a_credential_only(host: Host) -> None:
    assert PASSWORD not in host.run("systemctl", "show", host.unit(WORKER), host.unit("beat"))
    for kind in (WORKER, "beat"):
        process = host.main_process(kind)
        assert PASSWORD not in host.run("cat", f"/proc/{process}/environ", f"/proc/{process}/cmdline")
    assert host.attempt("journalctl --no-pager | grep -c " + PASSWORD)[1].strip() == "0"
    assert host.attempt("setpriv --reuid a-unit --regid a-unit --clear-groups ls /etc/a-unit/credentials")[0] != 0


def test_a_second_installation_keeps_the_settings(host: Host) -> None:
    said = host.shell("make install-systemd")
    assert "/etc/a-unit/environment is there: kept" in said
    assert f"SHUTDOWN_TIMEOUT={GRACE}" in host.run("cat", "/etc/a-unit/environment")


def test_a_worker_stops_within_its_own_grace_period_and_loses_nothing(host: Host) -> None:
    """The grace period is longer than systemd's limit, which the worker extends."""
    task = "probe.interrupted.delay(notes, {!r}, {})\n"
    host.python(task.format("fits", STOP_LIMIT + 2) + task.format("waits", 0))
    host.wait_for_lines(["start fits"])
    host.run("systemctl", "stop", host.unit(WORKER))
    assert host.show(WORKER, "Result") == "success"
    assert "end fits" in host.lines()
    host.python(task.format("too long", 3 * GRACE))
    host.run("systemctl", "start", host.unit(WORKER))
    host.wait_for_lines(["end waits", "start too long"])
    host.run("systemctl", "stop", host.unit(WORKER))
    assert host.show(WORKER, "Result") == "success"
    host.run("systemctl", "start", host.unit(WORKER))
    host.wait_for_lines(["end too long"])


def test_a_worker_that_is_killed_or_hangs_starts_again(host: Host) -> None:
    first = host.main_process(WORKER)
    host.shell(f"kill -KILL {first}")
    host.wait(lambda: host.main_process(WORKER) not in {0, first}, 60, "another worker")
    host.wait_for_status(WORKER, "ready")
    second = host.main_process(WORKER)
    host.shell(f"kill -STOP {second}")
    host.wait(lambda: host.main_process(WORKER) not in {0, second}, 60, "another worker")
    host.wait_for_status(WORKER, "ready")
    assert host.python("print(json.dumps(probe.work.delay(notes, 'third').get(timeout=30)))") == "third"


def test_an_outage_of_the_broker_restarts_nothing(host: Host) -> None:
    before = host.main_process(WORKER)
    host.run("systemctl", "stop", "redis-server")
    host.wait_for_status(WORKER, "waiting for its broker")
    # It can also be started meanwhile, as after a power cut.
    host.run("systemctl", "restart", host.unit(WORKER))
    host.wait_for_status(WORKER, "waiting for its broker")
    after = host.main_process(WORKER)
    assert after != before
    host.run("systemctl", "start", "redis-server")
    host.wait_for_status(WORKER, "ready")
    assert host.main_process(WORKER) == after


def test_supervisor_starts_stops_and_restarts_without_losing_a_task(host: Host) -> None:
    host.run("systemctl", "stop", "a-unit.target", host.unit(WORKER), host.unit("beat"))
    host.shell(
        f"echo CELERY_BROKER_URL=redis://:{PASSWORD}@localhost/0 >>/etc/a-unit/environment\n"
        "cp deploy/supervisor/a-unit.conf /etc/supervisor/conf.d/ && systemctl start supervisor"
    )

    def process(program: str) -> str:
        """Return the id of a running program; "" if it doesn't run."""
        words = host.attempt(f"supervisorctl status {program}")[1].split()
        return words[3].rstrip(",") if words[1] == "RUNNING" else ""

    def wait_for_another(program: str, than: str = "") -> None:
        host.wait(lambda: process(program) not in {"", than}, 60, f"{program} to run")

    wait_for_another("celery_worker")
    wait_for_another("celery_beat")
    task = "probe.interrupted.delay(notes, {!r}, {})\n"
    host.python(task.format("supervised", 4) + task.format("later", 3 * GRACE))
    host.wait_for_lines(["start supervised"])
    host.run("supervisorctl", "stop", "celery_worker")
    assert "end supervised" in host.lines()
    assert "stopped: celery_worker (exit status 0)" in host.run("cat", "/var/log/supervisor/supervisord.log")
    host.run("supervisorctl", "start", "celery_worker")
    host.wait_for_lines(["start later"])
    killed = process("celery_worker")
    host.shell(f"kill -KILL {killed}")
    wait_for_another("celery_worker", than=killed)
    host.wait_for_lines(["end later"])
    host.run("systemctl", "stop", "supervisor")
