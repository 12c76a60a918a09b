"""Rewrite includes/variables-*.md, the tables of variables in the docs/dev/celery.md of a project.

Run it after a change of a default in runtime/config.py, and after an update of Celery:

    uv run python scripts/variables.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import copier

ROOT = Path(__file__).parents[1]
PRINT_TABLE = "from my_service.runtime.variables import table; print(table())"


def main() -> None:
    """Render a project for each broker, and ask it for its table."""
    with tempfile.TemporaryDirectory() as folder:
        # Outside git, where Copier takes the files as they are.
        template = Path(folder, "template")
        for part in ("template", "includes"):
            shutil.copytree(ROOT / part, template / part)
        shutil.copy(ROOT / "copier.yml", template)
        for broker in ("redis", "rabbitmq"):
            name = f"includes/variables-{broker}.md"
            (template / name).touch()
            project = Path(folder, broker)
            answers = {"package_slug": "my_service", "broker": broker}
            copier.run_copy(str(template), project, answers, defaults=True, quiet=True)
            command = [sys.executable, "-c", PRINT_TABLE]
            table = subprocess.run(command, cwd=project, check=True, stdout=subprocess.PIPE).stdout
            (ROOT / name).write_bytes(table)
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
