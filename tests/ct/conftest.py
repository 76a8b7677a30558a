# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of CTs."""

from __future__ import annotations

from functools import partial

import pytest

from progressive_cascade.ct import placement
from progressive_cascade.ct.placement import place_ct


@pytest.fixture
def small_cube(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTs are placed on few voxels: what is read and said is the same."""
    monkeypatch.setattr(placement, "place_ct", partial(place_ct, shape=(32, 32, 32), spacing=11.2))
