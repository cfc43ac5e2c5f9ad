"""How long one row takes in the one graph of each family: `python bench/single_row.py [TABLE ...]`.

Each family as a spec gets it, with every choice among features on (numbers made even, products and ratios), and an
ensemble of four, on three real tables. The graph that `export` would keep answers single rows from raw values in ONNX
Runtime on one thread. Prints `NAME VALUE goal LIMIT met|missed` and exits 1 when one is missed; a graph is also at most
20 MiB. It says what the machine's load was: a busy one is slower.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from activities.compute import export, training
from activities.compute.features import prepared_as
from bench.dev_trials import SLOT, Ready, ready
from bench.figures import said
from everloop import families
from everloop.contracts import ExportRequest, RefitRequest, TrainRequest
from everloop.specs import Features

TABLES = ("credit", "hpc", "ames")
ROW_MILLISECONDS, MIB = 1.0, 20
MEMBERS = [{"family": name} for name in ("lightgbm", "xgboost", "forest", "linear")]
EVERY = Features(skew="yeo_johnson", interactions=6)


def exported(table: Ready, family: str, features: Features) -> tuple[float, float]:
    """Milliseconds of a row, and MiB of the graph."""
    params: dict[str, Any] = {"members": MEMBERS} if family == "ensemble" else {}
    update = {"trainer": family, "params": params, "features": features, "model_mib": 1024}
    spec = table.spec.model_copy(update=update | {"validation": table.spec.validation.model_copy(update=HELD_OUT)})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        prepared = prepared_as(spec, table.snapshot, table.prepared, features, table.job)
        given: dict[str, Any] = {"spec": spec, "snapshot": table.snapshot, "slot": SLOT}
        trained = training.train(TrainRequest(prepared=prepared, **given), table.job)
        refitted = training.refit(RefitRequest(prepared=prepared, trained=trained, **given), table.job)
        found = export.export(ExportRequest(refitted=refitted, **given), table.job)
    assert found.latency_ms is not None
    return found.latency_ms, found.model.size_bytes / 2**20


HELD_OUT = {"method": "holdout"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(TABLES))
    parser.add_argument("--families", nargs="+", default=list(families.FAMILIES))
    given, missed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as folder:
        for name in given.tables:
            table = ready(name, 1_000_000, Path(folder))
            for family in given.families:
                for how, features in (("plain", Features()), ("all choices", EVERY)):
                    milliseconds, mib = exported(table, family, features)
                    missed += not said(f"{name} {family} {how}: ms for one row", milliseconds, ROW_MILLISECONDS)
                    missed += not said(f"{name} {family} {how}: MiB", mib, MIB)
    print(f"load of the machine while it ended: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
