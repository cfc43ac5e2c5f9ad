"""The log, or some of it, as one table in a file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from activities.compute.predictions.columns import BESIDE, FEATURE, schema_of
from activities.compute.predictions.reading import Logged
from activities.compute.predictions.united import as_type
from activities.predictions.asked import Export, Exported
from everloop.records import Signature

PROBABILITY = "probability:"


def export(request: Export) -> Exported:
    """Write the rows of the window into `out`, each once."""
    schema, sources = _schema(request.signatures)
    latest = _latest(request.signatures)
    logged = Logged(Path(request.folder), request.parts, request.window, request.signatures, latest)
    with _writer(request, schema) as target:
        for batch in logged.batches():
            target.write_table(_flat(batch, schema, sources, request.signatures))
    return Exported(rows=logged.rows, torn=logged.torn)


def _latest(signatures: dict[int, Signature]) -> Signature | None:
    return signatures[max(signatures)] if signatures else None


def _writer(request: Export, schema: pa.Schema) -> pa.parquet.ParquetWriter | pa.csv.CSVWriter:
    if request.form == "csv":
        return pa.csv.CSVWriter(request.out, schema)
    return pa.parquet.ParquetWriter(request.out, schema, compression="zstd")


def _schema(signatures: dict[int, Signature]) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of all versions, and where each of them comes from."""
    kinds: dict[str, pa.DataType] = {}
    classes: dict[str, None] = {}
    for version in sorted(signatures):
        signature = signatures[version]
        kinds |= {field.name: field.type for field in schema_of(signature, version) if field.name.startswith(FEATURE)}
        classes |= dict.fromkeys(signature.classes)
    beside = [field for field in BESIDE if field.name != "probabilities"]
    made = [*beside, *(pa.field(PROBABILITY + name, pa.float64()) for name in classes)]
    taken = Counter(field.name for field in made)
    sources = {field.name: field.name for field in beside}
    for name, kind in kinds.items():
        plain = name.removeprefix(FEATURE)
        shown = plain if plain not in taken else name
        taken[shown] += 1
        sources[shown] = name
        made.append(pa.field(shown, kind))
    return pa.schema(made), sources


def _flat(batch: pa.Table, schema: pa.Schema, sources: dict[str, str], signatures: dict[int, Signature]) -> pa.Table:
    chances = _chances(batch, signatures)
    columns = []
    for field in schema:
        name = sources.get(field.name)
        if name is None:
            found = chances.get(field.name.removeprefix(PROBABILITY))
            columns.append(pa.nulls(batch.num_rows, field.type) if found is None else found)
        elif name in batch.schema.names:
            columns.append(as_type(batch[name], field.type))
        else:
            columns.append(pa.nulls(batch.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _chances(batch: pa.Table, signatures: dict[int, Signature]) -> dict[str, pa.Array]:
    """Each class's probability. All rows of a batch are of one version."""
    version = int(batch["version"][0].as_py())
    signature = signatures.get(version) or _latest(signatures)
    if signature is None or batch["probabilities"].null_count == batch.num_rows:
        return {}
    lists: Sequence[list[float] | None] = batch["probabilities"].to_pylist()
    return {
        name: pa.array([None if each is None else each[place] for each in lists], pa.float64())
        for place, name in enumerate(signature.classes)
    }
