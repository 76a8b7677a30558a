# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests: a miniature geometry and cascade, and the real CTs where they are at hand."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Triton decides when its kernels are defined whether they are compiled or interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from progressive_cascade import ConeBeam, precision
from progressive_cascade.cli.common import keep_freed_memory
from progressive_cascade.networks import ProgressiveCascade

SMALL = {
    "geometry": ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36)),
    "unet_channels": ((4, 8, 16), (4, 8, 16), (4, 8, 16)),
    "encoder_channels": (4, 8, 8, 16, 16),
    "token_dim": 32,
    "num_heads": 2,
    "vit_depth": 1,
    "cross_attention": True,
    "lift_channels": 4,
    "consistency_iterations": (2, 2, 2),
}
"""Arguments of a cascade with grids of 16, 32 and 64 voxels that runs in milliseconds."""

LONGEST = (
    "test_faults",
    "test_end_to_end",
    "test_devices",
    "test_benchmarks",
    "test_multi_gpu",
    "test_programs",
    "test_uses",
    "test_resume",
    "test_poses",
    "test_reconstruct",
    "test_evaluate",
    "test_settings",
    "test_fuzzing",
    "test_results_script",
    "test_gpu",
    "test_folders_killed",
    "test_page",
    "test_killed",
    "test_configs",
    "test_clinical",
    "test_dicom",
    "test_phantom",
    "test_transforms",
    "test_survival",
    "test_named_nowhere",
    "test_services_name_nobody",
    "test_placement",
    "test_prepare",
    "test_geometry_range",
    "test_awkward_series",
    "test_dicom_objects",
    "test_packaging",
    "test_simulate",
    "test_expected_error",
    "test_folders",
    "test_growth",
    "test_uncertainty",
    "test_layers",
    "test_tracking",
)
"""Files of tests that take longest, ten seconds and more: begun first, no core waits for another at the end."""


FORKING = (
    "test_faults",
    "test_multi_gpu",
    "test_resume",
    "test_settings",
    "test_folders_killed",
    "test_results_script",
    "test_cascade",
    "test_watch",
    "test_page",
    "test_workers",
)
"""Files of tests that fork children (tests/support/processes.py): run by one process of the suite, which starts one
server to fork from, and imports once what children need."""


def pytest_sessionstart() -> None:
    """Blocks of memory are kept, as in the command line's own process: filling new ones cost a twentieth more."""
    keep_freed_memory()


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected is never garbage: not to look through it saves half a second of every search."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, those that fork among them, the others in their order."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: a test that waits for others to answer leaves its core idle."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests are run by one process, and so are all that fork."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "forking" if Path(file).stem in FORKING else file

    return ByFile(config, log)


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """No test leaves torch with more threads: on shared cores the next phantom would take five to ten times as long."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def same_path() -> Iterator[None]:
    """No test leaves another package of our name to be imported first: an exported bundle puts its own there."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    """No test leaves a log's handler: its stream is closed with the test, and the next line would be an error."""
    before = list(logging.root.handlers)
    yield
    for handler in [each for each in logging.root.handlers if each not in before]:
        logging.root.removeHandler(handler)


@pytest.fixture
def small_cascade():
    """Builds a seeded miniature cascade: ``small_cascade(stage=2, freeze_earlier=True)``."""

    def build(**changes):
        torch.manual_seed(0)
        return ProgressiveCascade(**{**SMALL, **changes})

    return build


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where a law is tested: the CPU, and the GPU where there is one."""
    return request.param


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision also on a processor that is slow at it: for networks small enough."""
    monkeypatch.setattr(precision, "has_fast", lambda dtype, device_type: True)


@pytest.fixture(scope="session")
def real_cts() -> Path:
    """Folder of real CTs beside the checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ct"
    if not folder.is_dir():
        pytest.skip(f"real CTs are not at {folder}")
    return folder
