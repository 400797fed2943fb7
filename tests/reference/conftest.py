"""Other people's published numbers: read from ../shared/reference, or the folder in PENCHANT_REFERENCE."""

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[3] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PENCHANT_REFERENCE", DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set PENCHANT_REFERENCE to the folder that has it")
    return folder
