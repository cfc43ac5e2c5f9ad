"""Columns that are the same on SQLite and Postgres."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, TypeDecorator
from sqlmodel import Field


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ANN401, ARG002
        return value.astimezone(UTC) if value else value

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ANN401, ARG002
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def moment(**kwargs: Any) -> Any:  # noqa: ANN401
    """A column for a moment in UTC."""
    return Field(sa_type=UtcDateTime, **kwargs)


def document(default: Any = dict, **kwargs: Any) -> Any:  # noqa: ANN401
    """A column for JSON."""
    return Field(default_factory=default, sa_column=Column(JSON, nullable=False), **kwargs)
