"""Write the next migration: `python -m everloop.migrations.new "what changed"` (a developer's tool)."""

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from everloop.store import Store


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/empty.db")
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent))
        config.attributes["engine"] = store.engine
        versions = sorted(Path(__file__).parent.glob("versions/[0-9]*.py"))
        if versions:
            command.upgrade(config, "head")
        command.revision(config, sys.argv[1], autogenerate=True, rev_id=f"{len(versions) + 1:04d}")


if __name__ == "__main__":
    main()
