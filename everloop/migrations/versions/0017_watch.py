"""Monitors: measures beside the drift of columns, and the quarantine of broken data"""

import sqlalchemy as sa
from alembic import op

import everloop.store

revision = "0017_watch"
down_revision = "0016_labels"
branch_labels = None
depends_on = None

LISTS = (
    ("drift", "measures"),
    ("drift", "broken"),
    ("trigger", "over"),
    ("monitor", "quarantine"),
    ("monitor", "accepted"),
)


def upgrade() -> None:
    for table, column in LISTS:
        op.add_column(table, sa.Column(column, sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("monitor", sa.Column("quarantined_at", everloop.store.UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("monitor", "quarantined_at")
    for table, column in LISTS:
        op.drop_column(table, column)
