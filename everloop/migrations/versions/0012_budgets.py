"""Prices, budgets, and what jobs used of their leases"""

import sqlalchemy as sa
import sqlmodel
from alembic import op

from everloop.store import UtcDateTime

revision = '0012_budgets'
down_revision = '0012_told'
branch_labels = None
depends_on = None

TEXT = sqlmodel.sql.sqltypes.AutoString


def upgrade() -> None:
    op.create_table('price',
    sa.Column('pool', TEXT(), nullable=False),
    sa.Column('from_ms', sa.BigInteger(), nullable=False),
    sa.Column('currency', TEXT(), nullable=False),
    sa.Column('core_micros', sa.BigInteger(), nullable=False),
    sa.Column('gpu_micros', sa.BigInteger(), nullable=False),
    sa.Column('person', TEXT(), nullable=False),
    sa.Column('at', UtcDateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('pool', 'from_ms')
    )
    numbers = ('core_ms', 'gpu_ms', 'micros', 'since_ms', 'used_core_ms', 'used_gpu_ms', 'used_micros', 'until_row')
    op.create_table('budget',
    sa.Column('pool', TEXT(), nullable=False),
    sa.Column('scope', TEXT(), nullable=False),
    sa.Column('name', TEXT(), nullable=False),
    *(sa.Column(name, sa.BigInteger(), nullable=False) for name in numbers),
    sa.Column('spent', sa.Boolean(), nullable=False),
    sa.Column('person', TEXT(), nullable=False),
    sa.Column('updated_at', UtcDateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('pool', 'scope', 'name')
    )
    with op.batch_alter_table('job_time') as job_time:
        job_time.add_column(sa.Column('cpu_ms', sa.BigInteger(), nullable=False, server_default='0'))
        job_time.add_column(sa.Column('peak_mib', sa.Integer(), nullable=False, server_default='0'))


def downgrade() -> None:
    with op.batch_alter_table('job_time') as job_time:
        job_time.drop_column('peak_mib')
        job_time.drop_column('cpu_ms')
    for name in ('budget', 'price'):
        op.drop_table(name)
