"""What can be configured, except Celery itself, which reads `CELERY_*`: see docs/dev/celery.md.

Each field is an environment variable of the same name in capitals; `.env.example` lists them.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """Settings of this service, checked when the process starts."""

    # --- e-mail: services/mail.py ---
    smtp_host: str = "localhost"
    smtp_port: int = Field(default=587, ge=1, le=65535)
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    # starttls: plain, then encrypted (port 587) · tls: encrypted (port 465) · none: never encrypted
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    # Seconds to wait for the mail server.
    smtp_timeout: float = Field(default=10, gt=0)
    mail_from: str = "noreply@localhost"

    # --- files: tasks/cleanup.py and tasks/reports.py ---
    # What is kept for a while, FILE_CLEANUP_MAX_AGE_DAYS; then `cleanup_old_files` deletes it.
    files_dir: Path = Path("files")
    file_cleanup_max_age_days: int = Field(default=90, ge=1)
    # What is needed only while something runs; a day later `cleanup_temporary_files` deletes it.
    temp_dir: Path = Path("temp")

    # --- yours: add fields below this line, so that updates from the template don't touch them ---


settings = Settings()
