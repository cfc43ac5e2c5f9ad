"""Searches and their trials"""

import sqlalchemy as sa
import sqlmodel
from alembic import op

import everloop.store

revision = "0013_search"
down_revision = "0012_reservations"
branch_labels = None
depends_on = None


def upgrade() -> None:
    text = sqlmodel.sql.sqltypes.AutoString
    op.create_table(
        "study",
        sa.Column("id", text(), nullable=False),
        sa.Column("lifecycle", text(), nullable=False),
        sa.Column("state", text(), nullable=False),
        sa.Column("metric", text(), nullable=False),
        sa.Column("sampler", text(), nullable=False),
        sa.Column("pruner", text(), nullable=False),
        sa.Column("families", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("trials", sa.Integer(), nullable=True),
        sa.Column("spent_seconds", sa.Float(), nullable=False),
        sa.Column("told", sa.Integer(), nullable=False),
        sa.Column("best", sa.Integer(), nullable=True),
        sa.Column("sentence", text(), nullable=False),
        sa.Column("started_at", everloop.store.UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", everloop.store.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_study_lifecycle", "study", ["lifecycle"], unique=False)
    op.create_table(
        "trial",
        sa.Column("study", text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("family", text(), nullable=False),
        sa.Column("state", text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("at", everloop.store.UtcDateTime(timezone=True), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("study", "number"),
    )


def downgrade() -> None:
    op.drop_table("trial")
    op.drop_index("ix_study_lifecycle", table_name="study")
    op.drop_table("study")
