"""The index of the prediction log"""

import sqlalchemy as sa
from alembic import op

import everloop.store

revision = "0014_log"
down_revision = "0012_budgets"
branch_labels = None
depends_on = None


def _moment(name: str, *, nullable: bool) -> sa.Column:
    return sa.Column(name, everloop.store.UtcDateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "log_part",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("torn", sa.Integer(), nullable=False),
        _moment("first_event", nullable=True),
        _moment("last_event", nullable=True),
        _moment("logged_until", nullable=True),
        _moment("closed_at", nullable=True),
        sa.Column("stays", sa.Boolean(), nullable=False),
        _moment("replaced_at", nullable=True),
        sa.PrimaryKeyConstraint("project", "model", "name"),
    )
    op.create_table(
        "log_hour",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        _moment("hour", nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("late", sa.Integer(), nullable=False),
        _moment("first_event", nullable=False),
        _moment("last_event", nullable=False),
        _moment("logged_until", nullable=False),
        sa.PrimaryKeyConstraint("project", "model", "name", "hour"),
    )
    op.create_index("log_hour_of_model", "log_hour", ["project", "model", "hour"], unique=False)
    op.create_table(
        "log_state",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        _moment("closed_until", nullable=True),
        sa.Column("run", sa.String(), nullable=False),
        _moment("run_started", nullable=True),
        sa.Column("removed_rows", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project", "model"),
    )


def downgrade() -> None:
    op.drop_index("log_hour_of_model", table_name="log_hour")
    for name in ("log_state", "log_hour", "log_part"):
        op.drop_table(name)
