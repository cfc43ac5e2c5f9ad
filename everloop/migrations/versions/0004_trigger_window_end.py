"""The trigger ledger's key includes the window's end; rows that come after their window closed are counted."""

import sqlalchemy as sa
import sqlmodel
from alembic import op

import everloop.store


revision = '0004_trigger_window_end'
down_revision = '0003_lease_lookups'
branch_labels = None
depends_on = None


def upgrade() -> None:
    _made_again(['project', 'model', 'window_start', 'window_end'], [
        sa.Column('closed_at', everloop.store.UtcDateTime(timezone=True), nullable=True),
        sa.Column('late_rows', sa.Integer(), server_default='0', nullable=False),
    ])
    with op.batch_alter_table('monitor', schema=None) as batch_op:
        batch_op.add_column(sa.Column('late_counted_at', everloop.store.UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('monitor', schema=None) as batch_op:
        batch_op.drop_column('late_counted_at')
    _made_again(['project', 'model', 'window_start'], [])


def _made_again(key: list[str], more: list[sa.Column]) -> None:
    """SQLite cannot change a primary key: the table is made anew, and every row is kept."""
    columns = [
        sa.Column('project', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column('model', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column('window_start', everloop.store.UtcDateTime(timezone=True), nullable=False),
        sa.Column('window_end', everloop.store.UtcDateTime(timezone=True), nullable=False),
        sa.Column('version', sa.Integer(), nullable=False),
        sa.Column('share', sa.Float(), nullable=True),
        sa.Column('verdict', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column('lifecycle', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column('decided_at', everloop.store.UtcDateTime(timezone=True), nullable=False),
    ]
    kept = ', '.join(column.name for column in columns)
    op.create_table('trigger_again', *columns, *more, sa.PrimaryKeyConstraint(*key))
    op.execute(f'INSERT INTO trigger_again ({kept}) SELECT {kept} FROM "trigger"')
    op.drop_table('trigger')
    op.rename_table('trigger_again', 'trigger')
