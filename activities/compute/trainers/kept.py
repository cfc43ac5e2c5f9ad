"""How our own families are kept: arrays by name and a JSON text, in safetensors; the same model as the same bytes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from everloop.errors import IntegrityError

Arrays = dict[str, NDArray[Any]]


def packed(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bytes:
    """*about*: JSON values. It stands beside the arrays: the order of safetensors' own metadata changes."""
    text = json.dumps(about, allow_nan=False, sort_keys=True).encode()
    held = {name: np.ascontiguousarray(each) for name, each in arrays.items()}
    written: bytes = safetensors.numpy.save(held | {"about": np.frombuffer(text, np.uint8)})
    return written


def unpacked(dumped: bytes) -> tuple[Arrays, dict[str, Any]]:
    """What `packed` was given. Raises `IntegrityError`."""
    try:
        arrays: Arrays = safetensors.numpy.load(dumped)
        about: dict[str, Any] = json.loads(arrays.pop("about").tobytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise IntegrityError(f"the model cannot be read: {str(error)[:200]}") from None
    return arrays, about
