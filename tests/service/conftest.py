# SPDX-License-Identifier: Apache-2.0
"""What every test of a service needs: a port that nobody listens at."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def free_port() -> int:
    """Of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
