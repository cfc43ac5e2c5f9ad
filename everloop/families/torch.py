"""torch: a network for tables."""

from typing import Annotated, Literal

from pydantic import Field

from everloop.families.space import Space, choice, integer, number
from everloop.strict import Strict

STEP = "epochs"


class Params(Strict):
    """`params:` of `trainer: torch`: embeddings of the categories, then blocks of layers, learned with AdamW."""

    architecture: Literal["resnet", "mlp"] = "resnet"
    """resnet: each layer is a block of two beside what it was given; mlp: one layer after the other."""
    layers: Annotated[int, Field(ge=1, le=16)] = 2
    width: Annotated[int, Field(ge=4, le=2048)] = 128
    """Numbers between two layers."""
    embedding: Annotated[int, Field(ge=1, le=64)] = 8
    """Numbers that stand for a category's value."""
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.001
    """The highest: it rises over the first epoch and falls to nothing as a cosine over `epochs`."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Rows in memory at once; left out, from 64 to 2,048 by the number of rows."""
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 1
    """Batches whose gradients are summed before the weights change."""
    epochs: Annotated[int, Field(ge=1, le=5000)] = 60
    """At most."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 12
    """Epochs without a better validation loss after which training stops."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products while it learns; auto: bfloat16 on a GPU that has it. Answers are always float32."""


def space(task: str, rows: int) -> Space:  # noqa: ARG001
    return Space(
        parameters=(
            choice("architecture", "resnet", "mlp"),
            integer("layers", 1, 4),
            integer("width", 32, 256 if rows < 50_000 else 512, log=True),  # noqa: PLR2004
            integer("embedding", 2, 16, log=True),
            number("dropout", 0.0, 0.5),
            number("learning_rate", 1e-4, 1e-2, log=True),
            number("weight_decay", 1e-6, 0.1, log=True),
        ),
        portfolio=(
            {},
            {"architecture": "mlp", "layers": 3, "width": 128, "dropout": 0.2, "learning_rate": 0.002},
            {"layers": 1, "width": 64, "dropout": 0.3, "weight_decay": 0.05},
        ),
    )
