"""Monitors: from where on retrainings count, once a person has looked"""

import sqlalchemy as sa
from alembic import op

import everloop.store

revision = "0010_rearmed"
down_revision = "0007_leases"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("monitor", sa.Column("rearmed_at", everloop.store.UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("monitor", "rearmed_at")
