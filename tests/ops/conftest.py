"""The loop over live blocks, at sizes that are quick to test."""

import pytest

from sparsejax.ops import _share


@pytest.fixture(autouse=True)
def _no_product_is_too_small(monkeypatch):
  monkeypatch.setattr(_share, "_SMALLEST", 0)
