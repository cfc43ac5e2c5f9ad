"""What the holder of a lease was told, so that it hears of a withdrawn notice whatever dies meanwhile"""

import sqlalchemy as sa
from alembic import op

from everloop.store import UtcDateTime

revision = '0012_told'
down_revision = '0013_search'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('lease') as lease:
        lease.add_column(sa.Column('told_at', UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('lease') as lease:
        lease.drop_column('told_at')
