# SPDX-License-Identifier: Apache-2.0
"""What a machine runs out of under a training: shared memory, memory, disk; and folders that cannot be written."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

from progressive_cascade.training.kept import list_states, load_state
from tests.support.faults import Outcome, ended, running, told, with_cts
from tests.support.mounts import check_mounts, read_only, seen_by, small
from tests.support.processes import Child, as_options, command, tiny_settings, train_mounted

_GRID = 64


def small_shared_memory(folder: Path, cache: Path, grid: int = 256, megabytes: int = 64) -> Outcome:
    """/dev/shm of 64 MB, as containers have, and a worker that hands over batches of 100 MB."""
    check_mounts()
    settings = with_cts(folder, num_workers=1, simulation_grid=grid, batch_size=2)
    child = Child(folder / "log", train_mounted, settings, small("/dev/shm", megabytes))
    return ended(folder, child, "shared memory", seconds=400)


def full_small_disk(folder: Path, cache: Path) -> Outcome:
    """A disk of 8 MB that somebody else fills; its states are looked at afterwards."""
    check_mounts()
    disk = folder / "disk"
    disk.mkdir()
    settings = tiny_settings(disk, cache, epochs=500)
    child = Child(folder / "log", train_mounted, settings, small(disk, 8))
    end = time.monotonic() + 120
    seen = None
    while child.process.is_alive() and time.monotonic() < end:
        place = Path(f"/proc/{child.process.pid}/root{disk}")
        if list_states(place / "logs1" / "checkpoints"):
            seen = seen_by(child.process.pid or 0, disk)
            break
        time.sleep(0.01)
    if seen is None:
        return False, f"no state was written: {child.text()}"
    with (seen / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 14))
        except OSError:
            pass
    code, line = child.wait(90), told(child)
    step = load_state(list_states(seen / "logs1" / "checkpoints")[0])["iteration"]
    good = code == 1 and "No space left on device" in line
    return good, f"exit {code}: {line.replace(str(folder), '…')}; whole state of step {step}"


def no_memory(folder: Path, cache: Path) -> Outcome:
    """From a moment on, no more memory than half of what a step needs on top of what is held between steps."""
    geometry = {**tiny_settings(folder, cache)["geometry"], "detector_shape": [512, 512], "pixel_spacing": [0.84, 0.84]}
    settings = tiny_settings(
        folder, cache, geometry=geometry, grid=_GRID, simulation_grid=_GRID, batch_size=4, epochs=500,
        loss_weights={"l1": 1.0}, checkpoint_minutes=10, epoch_size=4,
    )  # fmt: skip
    child = running(folder, settings)
    sizes = []
    end = time.monotonic() + 20
    while child.process.is_alive() and time.monotonic() < end:
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        sizes.append(int(status.partition("VmSize:")[2].split()[0]) * 1024)
        time.sleep(0.005)
    limit = min(sizes) + (max(sizes) - min(sizes)) * 6 // 10
    resource.prlimit(child.process.pid or 0, resource.RLIMIT_AS, (limit, limit))
    good, line = ended(folder, child, "out of memory")
    return good and "fits: --set batch_size=" in line, line


def read_only_logs(folder: Path, cache: Path) -> Outcome:
    """The folder of logs is on a file system that can only be read."""
    check_mounts()
    logs = folder / "logs1"
    logs.mkdir()
    child = Child(folder / "log", command, as_options(tiny_settings(folder, cache)), read_only(logs))
    code, line = child.wait(90), refusal(child)
    good = code == 2 and "log_dir must be a folder that can be written" in line
    return good and not any(logs.iterdir()), f"exit {code}: {line.replace(str(folder), '…')}"


def refusal(child: Child) -> str:
    """The one line in which the command line refuses; all of it where there are more."""
    lines = [line for line in child.text().splitlines() if line.startswith("progressive-cascade: error: ")]
    return lines[0].partition("error: ")[2] if len(lines) == 1 and "Traceback" not in child.text() else child.text()


MACHINES: dict[str, Callable[[Path, Path], Outcome]] = {
    "/dev/shm of 64 MB": small_shared_memory,
    "disk of 8 MB is full": full_small_disk,
    "out of memory": no_memory,
    "log folder is read-only": read_only_logs,
}
"""By name, as :data:`~.faults.FAULTS`; some need the right to mount, and raise :class:`CannotMountError` without."""
