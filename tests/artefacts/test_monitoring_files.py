"""The files in `deploy/monitoring/`, for all combinations of the options that change them."""

import json
import re
from pathlib import Path

import pytest

from support.project import Project, render
from support.servers import promtool

COMBINATIONS = [
    {"broker": "redis", "include_periodic_tasks": True, "include_docker": True},
    {"broker": "redis", "include_periodic_tasks": False, "include_docker": False},
    {"broker": "rabbitmq", "include_periodic_tasks": True, "include_docker": False},
    {"broker": "rabbitmq", "include_periodic_tasks": False, "include_docker": True},
]


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda answers: ",".join(map(str, answers.values())))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return render(tmp_path_factory.mktemp("project") / "it", request.param | {"monitoring": ["prometheus"]})


@pytest.fixture
def folder(project: Project) -> Path:
    return project.folder / "deploy" / "monitoring"


def test_promtool_accepts_the_files_and_the_alerts_pass_their_tests(folder: Path) -> None:
    promtool("check", "config", str(folder / "prometheus.yml"))
    promtool("check", "rules", str(folder / "alerts.yml"))
    promtool("test", "rules", str(folder / "alerts.test.yml"))


def test_each_alert_is_tested_and_documented(project: Project, folder: Path) -> None:
    alerts = set(re.findall(r"alert: (\w+)", (folder / "alerts.yml").read_text()))
    tests = (folder / "alerts.test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n +exp_alerts", tests))
    silent = set(re.findall(r"alertname: (\w+)\}", tests))
    assert fired == silent == alerts
    page = (project.folder / "docs/dev/metrics.md").read_text()
    assert set(re.findall(r"`(Celery\w+)`", page)) == alerts


def test_the_dashboard_uses_its_data_source_and_its_panels_do_not_overlap(folder: Path) -> None:
    dashboard = json.loads((folder / "grafana-dashboard.json").read_text())
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
    for panel in panels:
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
