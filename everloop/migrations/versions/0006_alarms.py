"""Alarms: open workflows whose task fails"""

import sqlalchemy as sa
import sqlmodel
from alembic import op

import everloop.store


revision = '0006_alarms'
down_revision = '0004_trigger_window_end'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('alarm',
    sa.Column('workflow_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('run_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('workflow_type', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('lifecycle', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('message', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('since', everloop.store.UtcDateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('workflow_id')
    )
    op.create_index(op.f('ix_alarm_lifecycle'), 'alarm', ['lifecycle'], unique=False)


def downgrade() -> None:
    op.drop_index(op.f('ix_alarm_lifecycle'), table_name='alarm')
    op.drop_table('alarm')
