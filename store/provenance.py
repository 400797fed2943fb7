"""Where a number came from: digests of inputs, and a stamp of the software that made it."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

STAMPED_PACKAGES = ("penchant", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn", "h5py")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a number is about: a name for people, its architecture family, and a digest of what it computes."""

    name: str
    family: str
    fingerprint: str


def digest(*parts: Any) -> str:
    """SHA-256 (hexadecimal) of any nesting of mappings, sequences, arrays, bytes, strings, numbers and None.

    Equal values have equal digests in every process: mappings are taken in key order, floats at full precision.
    """
    hasher = hashlib.sha256()
    _feed(hasher, parts)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    # Every value is preceded by its kind and size, so that no two different nestings give the same bytes.
    if isinstance(value, bytes | bytearray | memoryview):
        hasher.update(b"bytes %d:" % len(value))
        hasher.update(value)
    elif isinstance(value, np.ndarray):
        hasher.update(f"array {value.dtype.str} {value.shape}:".encode())
        hasher.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        hasher.update(b"mapping %d:" % len(value))
        for key in sorted(value):
            _feed(hasher, key)
            _feed(hasher, value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        hasher.update(b"sequence %d:" % len(value))
        for item in value:
            _feed(hasher, item)
    elif value is None or isinstance(value, str | bool | int | float):
        text = json.dumps(value).encode()
        hasher.update(b"plain %d:" % len(text))
        hasher.update(text)
    else:
        raise TypeError(f"Cannot digest a {type(value).__name__}; expected plain values, arrays or nestings of them.")


@cache
def stamp() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in STAMPED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
