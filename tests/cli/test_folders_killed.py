# SPDX-License-Identifier: Apache-2.0
"""`reconstruct --input` as a process that is killed: what was done is kept, the rest is made, nothing is made twice."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from progressive_cascade import ConeBeam
from progressive_cascade.io.commits import STAGE
from progressive_cascade.networks import ProgressiveCascade
from tests.cli.test_folders import BROKEN, NUM_PAIRS, write_pairs
from tests.support.cube import reconstruct_coarsely
from tests.support.processes import Child, command

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

_AT_LEAST = 5


def _reconstruct(arguments: list[str]) -> None:
    """The command, on few voxels and without its figures, which are slow."""
    import progressive_cascade.report

    progressive_cascade.report.volume_figure = lambda hu, spacing, path, **_: path.touch()  # type: ignore[assignment]
    reconstruct_coarsely(pytest.MonkeyPatch())  # of this process, which ends
    torch.set_num_threads(1)
    command(arguments)


def _volumes(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every CT."""
    found = (path for path in output.glob("case*.nii.gz") if not path.name.endswith(".radiographs.nii.gz"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_killed_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    """Twenty pairs, two broken, SIGKILL in the middle, started again: 18 volumes, two failures, nothing twice."""
    write_pairs(tmp_path / "in")
    beam = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))
    network = ProgressiveCascade(
        geometry=beam, stage=1, unet_channels=((4, 8),), normalize=(False,), consistency_iterations=(0,)
    )
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    output = tmp_path / "out"
    arguments = ["reconstruct", "--input", str(tmp_path / "in"), "--output", str(output), "--no-report"]
    arguments += ["--checkpoint", str(tmp_path / "tiny.pt"), "--allow-unverified", "--refine", "0"]
    first, end = Child(tmp_path / "first.log", _reconstruct, arguments), time.monotonic() + 300
    while len(_volumes(output)) < _AT_LEAST and first.process.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, first.log.read_text()
    before = _volumes(output)
    assert _AT_LEAST <= len(before) < NUM_PAIRS - len(BROKEN)
    for stage in output.glob(f"{STAGE}*"):
        os.utime(stage, (0, 0))  # one that was killed while it was made or removed is cleared away after a minute

    again = Child(tmp_path / "second.log", _reconstruct, arguments)
    assert again.wait() == 2, again.log.read_text()
    after = _volumes(output)
    assert len(after) == NUM_PAIRS - len(BROKEN) and before.items() <= after.items()
    with open(output / "summary.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [f"case{index:02d}" for index in range(NUM_PAIRS)]
    assert tuple(row["case"] for row in rows if row["status"] != "done") == BROKEN
    said = [line for line in again.log.read_text().splitlines() if ": failed: " in line]
    assert len(said) == len(BROKEN)
    assert not [path for path in output.iterdir() if path.name.startswith(".")], "a killed run's stage is cleared away"
