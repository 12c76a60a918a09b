"""The options that Flower gets from us unless its variables say otherwise."""

from pathlib import Path

import pytest

from support.forks import Forks


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, "127.0.0.1 True 10000"),
        ({"FLOWER_ADDRESS": "::1", "FLOWER_READ_ONLY": "false", "FLOWER_MAX_TASKS": "5"}, "::1 False 5"),
    ],
)
def test_options_of_flower(forks: Forks, service: Path, variables: dict[str, str], options: str) -> None:
    code = (
        "from celery import Celery\n"
        "from flower.command import apply_env_options\n"
        "from flower.options import options\n"
        "from celery_service.monitoring import flower\n"
        "flower._prepare(Celery('x', broker='redis://'))\n"
        "apply_env_options()\n"
        "print(options.address, options.read_only, options.max_tasks)"
    )
    assert forks.run(code, service, variables).stdout == f"{options}\n"
