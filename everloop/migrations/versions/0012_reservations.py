"""Who has which capacity reserved, since when"""

import sqlalchemy as sa
import sqlmodel
from alembic import op


revision = '0012_reservations'
down_revision = '0011_time'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('reservation',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('pool', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('request_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('workflow_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('queue', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('device', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('cores', sa.Integer(), nullable=False),
    sa.Column('memory_mib', sa.Integer(), nullable=False),
    sa.Column('milli_gpu', sa.Integer(), nullable=False),
    sa.Column('gpu_mib', sa.Integer(), nullable=False),
    sa.Column('idle_cores', sa.Integer(), nullable=False),
    sa.Column('idle_milli_gpu', sa.Integer(), nullable=False),
    sa.Column('start_ms', sa.BigInteger(), nullable=False),
    sa.Column('first_start_ms', sa.BigInteger(), nullable=False),
    sa.Column('waits_for', sa.JSON(), nullable=False),
    sa.Column('from_ms', sa.BigInteger(), nullable=False),
    sa.Column('to_ms', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('reservation_to', 'reservation', ['pool', 'to_ms'], unique=False)
    op.create_index('reservation_request', 'reservation', ['request_id'], unique=False)


def downgrade() -> None:
    op.drop_table('reservation')
