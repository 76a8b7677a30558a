# SPDX-License-Identifier: Apache-2.0
"""What breaks under a training ends it in one line, with the last state whole; the long form is benchmarks/soak.py."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the faults are brought about by Linux's own means", allow_module_level=True)

from tests.support.exported import make_source
from tests.support.faults import FAULTS
from tests.support.faults_of_machines import MACHINES, small_shared_memory
from tests.support.kills import Miniature
from tests.support.mounts import CannotMountError
from tests.support.refusals import REFUSALS

# The soak has the others, which take minutes.
SHORT = {**FAULTS, **{name: MACHINES[name] for name in ("disk of 8 MB is full", "log folder is read-only")}}
SHORT["/dev/shm of 1 MB"] = partial(small_shared_memory, grid=64, megabytes=1)
TYPED = ("one patient in two sections", "two CTs of one name", "weights of another geometry")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phantoms are kept between trainings."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the miniature's stages."""
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("name", SHORT)
def test_what_breaks_ends_well(name, cache, tmp_path):
    """By itself, with the exit code and the words that say what broke."""
    try:
        good, told = SHORT[name](tmp_path, cache)
    except CannotMountError as error:
        pytest.skip(str(error))
    assert good, told


@pytest.mark.parametrize("name", TYPED)
def test_what_cannot_be_meant_is_one_line(name, cache, source, tmp_path):
    """At the command line, with exit code 2, before the first step."""
    good, told = REFUSALS[name](Miniature(tmp_path, cache, source))
    assert good, told
