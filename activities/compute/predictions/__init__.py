"""The prediction log as data: lines made into Parquet, windows of it read, each row once."""

from activities.compute.predictions.reading import Logged, signatures_of

__all__ = ["Logged", "signatures_of"]
