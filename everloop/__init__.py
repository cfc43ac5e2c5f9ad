"""Durable, closed-loop machine learning on Temporal."""

__version__ = "0.1.0"
