"""What every record is, and the bytes that it points to."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable value that crosses a process boundary."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Blob(Record):
    """Immutable bytes in the artifact store, addressed by their SHA-256 (64 hex digits)."""

    sha256: str
    size_bytes: int
    name: str = ""
    """What a person would call it: `model.onnx`, `drift.json`. Not part of the address."""
