# SPDX-License-Identifier: Apache-2.0
"""Little memory, for headers that promise much."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

_ALLOWED = 512 << 20


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than half a gigabyte beyond what the process has."""
    pytest.importorskip("SimpleITK")
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _ALLOWED, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
