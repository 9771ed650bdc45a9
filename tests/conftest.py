"""Fixtures for the tests of all packages."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data that lies beside the checkout; a clone has none, and its tests skip."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data in {folder}, which is not part of the repository")
    return folder
