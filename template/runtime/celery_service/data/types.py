"""Types of columns."""

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time in UTC. SQLite stores no time zones, so it would return times without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert a time to UTC. Raise ValueError if it has no time zone, so is ambiguous."""
        if value and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; use datetime.now(UTC)")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return a time in UTC, whatever the time zone of the connection is."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))
