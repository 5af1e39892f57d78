"""Federations of tests score often: on a quarter of the generated examples."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _small(small_data):
    """Nothing beside it."""
