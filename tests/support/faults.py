# SPDX-License-Identifier: Apache-2.0
"""What breaks under a training, brought about by real signals, limits and files; each says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from progressive_cascade.geometry import volume_affine
from progressive_cascade.training.kept import list_states, load_state
from tests.support.processes import Child, start_ranks, tiny_settings, train

Outcome = tuple[bool, str]


def states_of(folder: Path) -> list[Path]:
    """The states of a run of stage 1."""
    return list_states(folder / "logs1" / "checkpoints")


def told(child: Child) -> str:
    """The line in which a training ends: what its error says."""
    lines = [line for line in child.text().splitlines() if "RunError: " in line or "UserError: " in line]
    return lines[-1].partition("Error: ")[2] if lines else ""


def running(folder: Path, settings: dict[str, Any]) -> Child:
    """A training that has written its first state."""
    child = Child(folder / "log", train, settings)
    child.wait_for(lambda: bool(states_of(folder)))
    return child


def ended(folder: Path, child: Child, words: str, seconds: float = 120) -> Outcome:
    """Whether a training ended by itself, in words that say why, with its last state whole."""
    code, line = child.wait(seconds), told(child)
    whole = load_state(states_of(folder)[0])["iteration"] if states_of(folder) else 0
    good = code == 1 and words in line
    return good, f"exit {code}: {line.replace(str(folder), '…')}; whole state of step {whole}"


def full_disk(folder: Path, cache: Path) -> Outcome:
    """No file may become as large as a state any more, as on a disk that is nearly full."""
    child = running(folder, tiny_settings(folder, cache, epochs=500))
    limit = states_of(folder)[0].stat().st_size - 1
    resource.prlimit(child.process.pid or 0, resource.RLIMIT_FSIZE, (limit, limit))
    return ended(folder, child, "cannot be written: File too large")


def killed_worker(folder: Path, cache: Path) -> Outcome:
    """kill -9 of a loader's worker, as a system does when memory runs out."""
    child = running(folder, tiny_settings(folder, cache, epochs=500, num_workers=1, epoch_size=60))
    tasks = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children")
    end = time.monotonic() + 60
    # One that has just delivered its last batch is not missed, so the next one is killed, too.
    while child.process.is_alive() and time.monotonic() < end:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for worker in tasks.read_text().split():
                os.kill(int(worker), signal.SIGKILL)
        time.sleep(0.2)
    return ended(folder, child, "a loader's worker")


def lost_numbers(folder: Path, cache: Path) -> Outcome:
    """A loss that is not finite, step after step."""
    settings = tiny_settings(folder, cache, loss_weights={"l1": 1e39}, max_bad_steps=3)
    child = Child(folder / "log", train, settings)
    return ended(folder, child, "the loss must be finite, got 3 non-finite steps in a row")


def dead_process(folder: Path, cache: Path) -> Outcome:
    """kill -9 of one of two processes that train together."""
    pair = start_ranks(folder, tiny_settings(folder, cache, epochs=500, num_validation_phantoms=2, batch_size=1))
    pair[0].wait_for(lambda: bool(states_of(folder)))
    pair[1].signal(signal.SIGKILL)
    start = time.monotonic()
    good, line = ended(folder, pair[0], "process 0 lost the others")
    seconds = time.monotonic() - start
    pair[1].wait()
    return good and seconds < 60, f"after {seconds:.0f} s {line}"


def make_dataset(folder: Path, count: int = 3) -> Path:
    """A prepared dataset of boxes of water, the last one for validation."""
    items = []
    for number in range(count):
        hu = np.full((256, 256, 256), -1000, np.int16)
        hu[60:190, 80 + 5 * number : 180, 20:230] = 40
        item = {"patient": f"p{number}", "label": f"ct/p{number}.nii.gz", "valid": f"valid/p{number}.nii.gz"}
        for key, voxels in (("label", hu), ("valid", np.ones(hu.shape, np.uint8))):
            path = folder / item[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, volume_affine((256, 256, 256), 1.4)), path)
        items.append(item)
    (folder / "datalist.json").write_text(json.dumps({"training": items[:-1], "validation": items[-1:]}))
    return folder


def with_cts(folder: Path, **changes: Any) -> dict[str, Any]:
    """A training on a dataset of three CTs."""
    dataset = make_dataset(folder / "dataset")
    phantoms = {"num_phantoms": 0, "num_validation_phantoms": 0}
    return tiny_settings(folder, folder / "cache", dataset_dir=str(dataset), **{**phantoms, "epoch_size": 2, **changes})


def vanished_folder(folder: Path, cache: Path) -> Outcome:
    """The dataset is gone, as when a network drive is."""
    child = running(folder, with_cts(folder, epochs=500))
    shutil.rmtree(folder / "dataset")
    return ended(folder, child, "cannot be read")


def unreadable_volume(folder: Path, cache: Path) -> Outcome:
    """One CT is damaged: the run ends with its name; with skip_bad it goes on and names it at the end."""
    settings = with_cts(folder)
    damaged = folder / "dataset" / "ct" / "p0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    first = Child(folder / "log", train, settings)
    good, line = ended(folder, first, f"case {damaged} cannot be read")
    second = Child(folder / "log2", train, {**settings, "skip_bad": 1})
    code = second.wait(90)
    skipped = [text for text in second.text().splitlines() if text.startswith("1 cases were skipped: ")]
    return good and code == 0 and len(skipped) == 1, f"{line}; with skip_bad 1: exit {code}, named at the end"


def interrupt(folder: Path, cache: Path) -> Outcome:
    """Ctrl-C: a state and exit 130."""
    child = running(folder, tiny_settings(folder, cache, epochs=500))
    before = load_state(states_of(folder)[0])["iteration"]
    child.signal(signal.SIGINT)
    code, step = child.wait(60), load_state(states_of(folder)[0])["iteration"]
    return code == 130 and step >= before, f"exit {code}, whole state of step {step}"


FAULTS: dict[str, Callable[[Path, Path], Outcome]] = {
    "disk full": full_disk,
    "loader worker killed": killed_worker,
    "loss not finite": lost_numbers,
    "one of two processes killed": dead_process,
    "dataset folder vanishes": vanished_folder,
    "damaged volume": unreadable_volume,
    "Ctrl-C": interrupt,
}
"""By name: brings a fault about in a folder, with a cache of phantoms; whether it ended well, and how."""
