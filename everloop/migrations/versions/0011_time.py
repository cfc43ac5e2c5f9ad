"""How the time of devices and jobs went"""

import sqlalchemy as sa
import sqlmodel
from alembic import op


revision = '0011_time'
down_revision = '0010_rearmed'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('device_time',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('pool', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('device', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('kind', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('from_ms', sa.BigInteger(), nullable=False),
    sa.Column('to_ms', sa.BigInteger(), nullable=False),
    sa.Column('cores', sa.Integer(), nullable=False),
    sa.Column('milli_gpu', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('device_time_to', 'device_time', ['pool', 'to_ms'], unique=False)
    op.create_table('job_time',
    sa.Column('job', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('token', sa.BigInteger(), nullable=False),
    sa.Column('stage', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('from_ms', sa.BigInteger(), nullable=False),
    sa.Column('to_ms', sa.BigInteger(), nullable=False),
    sa.Column('done', sa.Boolean(), nullable=False),
    sa.Column('ended', sa.Boolean(), nullable=False),
    sa.Column('checkpointed_ms', sa.BigInteger(), nullable=False),
    sa.Column('writing_ms', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('job', 'attempt', 'token')
    )
    op.create_index('job_time_token', 'job_time', ['token'], unique=False)
    op.drop_index('lease_time_from', table_name='lease_time')
    op.create_index('lease_time_to', 'lease_time', ['pool', 'to_ms'], unique=False)
    op.create_index('lease_time_token', 'lease_time', ['pool', 'token'], unique=False)


def downgrade() -> None:
    op.drop_index('lease_time_token', table_name='lease_time')
    op.drop_index('lease_time_to', table_name='lease_time')
    op.create_index('lease_time_from', 'lease_time', ['pool', 'from_ms'], unique=False)
    for name in ('job_time', 'device_time'):
        op.drop_table(name)
