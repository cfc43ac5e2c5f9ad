"""Leases have members and amounts, devices a capacity; queues, policies, and what was used."""

import sqlalchemy as sa
import sqlmodel
from alembic import op

import everloop.store


revision = '0007_leases'
down_revision = '0006_alarms'
branch_labels = None
depends_on = None

COUNTED = ('cores', 'memory_mib', 'milli_gpu', 'gpu_mib')
LIVE = "('offered', 'active', 'noticed', 'killing')"


def text(name: str, default: str = '') -> sa.Column:
    return sa.Column(name, sqlmodel.sql.sqltypes.AutoString(), server_default=default, nullable=False)


def number(name: str, default: int = 0, kind: type = sa.Integer) -> sa.Column:
    return sa.Column(name, kind(), server_default=str(default), nullable=False)


def truth(name: str, default: bool) -> sa.Column:
    return sa.Column(name, sa.Boolean(), server_default=sa.true() if default else sa.false(), nullable=False)


def moment(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, everloop.store.UtcDateTime(timezone=True), nullable=nullable)


def document(name: str, default: str) -> sa.Column:
    return sa.Column(name, sa.JSON(), server_default=default, nullable=False)


MORE = {
    'device': [
        text('node'), text('state', 'ready'), moment('drain_by'), text('why'), number('cores', 1),
        *(number(name) for name in COUNTED[1:]), *(number(f'used_{name}') for name in COUNTED),
        number('job_cores', 1),        number('since_ms', kind=sa.BigInteger),
    ],
    'lease': [
        text('queue', 'default'), moment('noticed_at'), moment('deadline_at'), text('notice'), text('beneficiary'),
        text('why'), moment('checkpoint_at'), sa.Column('follows', sa.BigInteger(), nullable=True),
    ],
    'lease_request': [
        text('queue', 'default'), number('priority', 50), truth('preemptible', True), number('cores', 1),
        *(number(name) for name in COUNTED[1:]), number('members_min', 1), number('members_max', 1),
        number('max_runtime_ms', kind=sa.BigInteger), text('stage'), text('model'), document('preempted_ms', '[]'),
        text('code'), document('detail', '[]'), number('position'), number('ahead'),
    ],
    'pool_decision': [
        truth('whole', True), sa.Column('policy', sa.Text(), server_default='', nullable=False),
        number('now_ms', kind=sa.BigInteger),
    ],
}
"""Columns that tables of before get; what they hold for old rows is what was true of them."""


def upgrade() -> None:
    _new_tables()
    for table, columns in MORE.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for column in columns:
                batch_op.add_column(column.copy())
    # What is leased now goes on: one core of its slot each.
    op.execute("INSERT INTO lease_member (pool, token, rank, device, cores, memory_mib, milli_gpu, gpu_mib, live, "
               "since_ms) SELECT pool, token, 0, device, 1, 0, 0, 0, "
               f"CASE WHEN state IN {LIVE} THEN TRUE ELSE FALSE END, 0 FROM lease")
    op.execute('UPDATE device SET used_cores = 1 WHERE EXISTS (SELECT 1 FROM lease_member AS member WHERE member.live '
               'AND member.pool = device.pool AND member.device = device.name)')
    with op.batch_alter_table('device', schema=None) as batch_op:
        for name in COUNTED:
            batch_op.create_check_constraint(f'device_{name}', f'0 <= used_{name} AND used_{name} <= {name}')
    with op.batch_alter_table('lease', schema=None) as batch_op:
        batch_op.drop_index('one_live_lease_per_device')
        batch_op.drop_column('live_device')
    _tokens_are(sa.BigInteger(), sa.Integer())


def _new_tables() -> None:
    op.create_table('lease_member',
    text('pool'), sa.Column('token', sa.BigInteger(), nullable=False), sa.Column('rank', sa.Integer(), nullable=False),
    text('device'), number('cores', 1), *(number(name) for name in COUNTED[1:]), truth('live', True),
    number('since_ms', kind=sa.BigInteger),
    sa.PrimaryKeyConstraint('pool', 'token', 'rank')
    )
    op.create_index('lease_member_of_device', 'lease_member', ['pool', 'device', 'live'], unique=False)
    op.create_index('lease_member_token', 'lease_member', ['token'], unique=False)
    op.create_table('lease_time',
    sa.Column('id', sa.Integer(), nullable=False), text('pool'), number('token', kind=sa.BigInteger), text('device'),
    text('queue'), text('workflow_id'), text('model'), text('stage'), number('from_ms', kind=sa.BigInteger),
    number('to_ms', kind=sa.BigInteger), number('cores'), number('milli_gpu'), text('kind'), text('charged_to'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('lease_time_from', 'lease_time', ['pool', 'from_ms'], unique=False)
    op.create_index('lease_time_workflow', 'lease_time', ['workflow_id'], unique=False)
    op.create_table('pool_policy',
    text('pool'), document('policy', '{}'), text('person'), moment('at', nullable=False),
    sa.PrimaryKeyConstraint('pool')
    )
    op.create_table('queue',
    text('pool'), text('id'), text('parent'), *(number(f'{bound}_{what}', -1) for bound in ('quota', 'limit')
    for what in ('cores', 'milli_gpu')), number('weight', 1), number('priority'),
    *(number(name, kind=sa.BigInteger) for name in ('usage_cores', 'usage_milli_gpu', 'usage_at_ms')),
    text('person'), moment('updated_at', nullable=False),
    sa.PrimaryKeyConstraint('pool', 'id')
    )


def _tokens_are(now: sa.types.TypeEngine, before: sa.types.TypeEngine) -> None:
    for table in ('lease', 'result', 'version'):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column('token', existing_type=before, type_=now, existing_nullable=False)


def downgrade() -> None:
    _tokens_are(sa.Integer(), sa.BigInteger())
    with op.batch_alter_table('lease', schema=None) as batch_op:
        batch_op.add_column(sa.Column('live_device', sqlmodel.sql.sqltypes.AutoString(), nullable=True))
    op.execute("UPDATE lease SET live_device = device WHERE state IN ('offered', 'active')")
    with op.batch_alter_table('lease', schema=None) as batch_op:
        batch_op.create_index('one_live_lease_per_device', ['pool', 'live_device'], unique=True)
    with op.batch_alter_table('device', schema=None) as batch_op:
        for name in COUNTED:
            batch_op.drop_constraint(f'device_{name}', type_='check')
    for table, columns in MORE.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for column in reversed(columns):
                batch_op.drop_column(column.name)
    for table in ('queue', 'pool_policy', 'lease_time', 'lease_member'):
        op.drop_table(table)
