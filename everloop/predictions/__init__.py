"""The prediction log: what serve answered, by event time.

Serve appends lines (`PredictionLog`); control counts them in SQL (activities/predictions), and has closed files made
into Parquet (activities/compute/predictions). `LogParts` says which files hold the log at one moment.
"""

from everloop.predictions.parts import LogPart, LogParts, Piece, PieceHour, line_files, on_disk
from everloop.predictions.writing import PredictionLog, Row

__all__ = ["LogPart", "LogParts", "Piece", "PieceHour", "PredictionLog", "Row", "line_files", "on_disk"]
