# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of CTs."""

from __future__ import annotations

import pytest

from tests.support.cube import place_coarsely


@pytest.fixture
def small_cube(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTs are placed on few voxels: what is read and said is the same."""
    place_coarsely(monkeypatch)
