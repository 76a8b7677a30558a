# SPDX-License-Identifier: Apache-2.0
"""What the command line asks of the C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from progressive_cascade.cli.common import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(1 << 23, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_taken_again():
    """A second block of 64 MB costs no page fault where it is kept, one a page where it is not."""
    # Huge pages would count as one fault each.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}

    def count(mode: str) -> int:
        command = [sys.executable, "-c", _FAULTS, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    assert count("keep") < 1000
    assert count("default") > 10000
