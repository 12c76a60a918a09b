"""Types of columns."""

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, in UTC. SQLite keeps no time zones, so what it returns would have none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store UTC. Raises ValueError for a time without a zone: nobody knows when that is."""
        if value and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; use datetime.now(UTC)")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read UTC, whatever the time zone of the connection."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))
