"""One counter of tokens for all pools; the lease ledger is looked up by index; offers count their renewals."""

import sqlalchemy as sa
import sqlmodel
from alembic import op


revision = '0003_lease_lookups'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('counter',
    sa.Column('name', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('value', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('name')
    )
    # Above every token that any pool has given out: a token stays the greater one of any two.
    op.execute("INSERT INTO counter (name, value) SELECT 'lease_tokens', COALESCE(MAX(token), 0) FROM "
               "(SELECT token FROM pool UNION ALL SELECT token FROM lease) AS given")

    with op.batch_alter_table('pool', schema=None) as batch_op:
        batch_op.drop_column('token')

    with op.batch_alter_table('lease_request', schema=None) as batch_op:
        batch_op.add_column(sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), server_default='', nullable=False))
        batch_op.drop_index(batch_op.f('ix_lease_request_pool'))
        batch_op.drop_index(batch_op.f('ix_lease_request_state'))
        batch_op.create_index('lease_request_queue', ['pool', 'state', 'arrival'], unique=False)
        batch_op.create_index('lease_request_arrival', ['pool', 'arrival'], unique=False)
        batch_op.create_index('lease_request_workflow', ['workflow_id', 'state'], unique=False)

    with op.batch_alter_table('lease', schema=None) as batch_op:
        batch_op.add_column(sa.Column('renewals', sa.Integer(), server_default='0', nullable=False))
        batch_op.drop_index(batch_op.f('ix_lease_state'))
        batch_op.drop_index('lease_holder')
        batch_op.create_index('lease_holder', ['holder', 'token'], unique=False)
        batch_op.create_index('lease_token', ['token'], unique=False)
        batch_op.create_index('lease_live', ['pool', 'state'], unique=False)
        batch_op.create_index('lease_of_request', ['request_id', 'state'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('lease', schema=None) as batch_op:
        batch_op.drop_index('lease_of_request')
        batch_op.drop_index('lease_live')
        batch_op.drop_index('lease_token')
        batch_op.drop_index('lease_holder')
        batch_op.create_index('lease_holder', ['holder'], unique=False)
        batch_op.create_index(batch_op.f('ix_lease_state'), ['state'], unique=False)
        batch_op.drop_column('renewals')

    with op.batch_alter_table('lease_request', schema=None) as batch_op:
        batch_op.drop_index('lease_request_workflow')
        batch_op.drop_index('lease_request_arrival')
        batch_op.drop_index('lease_request_queue')
        batch_op.create_index(batch_op.f('ix_lease_request_state'), ['state'], unique=False)
        batch_op.create_index(batch_op.f('ix_lease_request_pool'), ['pool'], unique=False)
        batch_op.drop_column('reason')

    with op.batch_alter_table('pool', schema=None) as batch_op:
        batch_op.add_column(sa.Column('token', sa.Integer(), server_default='0', nullable=False))

    op.execute("UPDATE pool SET token = (SELECT value FROM counter WHERE name = 'lease_tokens')")
    op.drop_table('counter')
