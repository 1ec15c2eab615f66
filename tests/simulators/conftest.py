"""Where the real Amazon data are, for the tests that read them."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of the real data sets; without it fail where CI is set, and skip elsewhere."""
    folder = Path(os.environ.get("DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no real Amazon data in {folder}: set DATA_ROOT to the folder of the data sets"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
