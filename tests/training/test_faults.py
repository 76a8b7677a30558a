# SPDX-License-Identifier: Apache-2.0
"""What breaks under a training ends it in one line, with the last state whole; the long form is benchmarks/soak.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the faults are brought about by Linux's own means", allow_module_level=True)

from tests.support.faults import FAULTS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms are kept between trainings."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_ends_well(name, cache, tmp_path):
    """By itself, with the exit code and the words that say what broke."""
    good, told = FAULTS[name](tmp_path, cache)
    assert good, told
