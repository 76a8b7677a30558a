# SPDX-License-Identifier: Apache-2.0
"""The service as a user starts it, with a miniature cascade; what the command line makes of the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
from tools.fuzzing.inputs import write_inputs

CASES, WORKERS = 3, 2
"""Pairs of radiographs, and workers of the service."""
CLI = [sys.executable, "-m", "progressive_cascade.cli"]
"""The command line."""


class Served:
    """The service as a process, started as a user starts it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        options = [
            "--data",
            str(self.folder / "data"),
            "--checkpoint",
            str(self.folder / "in" / "tiny.pt"),
            "--allow-unverified",
        ]
        command = [*CLI, "serve", "--port", str(self.port), "--workers", str(WORKERS), "--max-queue", "12", *options]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9, and at once a new one."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def kill_worker(self) -> bool:
        """kill -9 of one worker that has loaded; whether there was one."""
        with contextlib.suppress(ProcessLookupError, IndexError, httpx.TransportError):
            if httpx.get(f"{self.url}/ready").status_code == 200:
                os.kill(self.workers()[0], signal.SIGKILL)
                return True
        return False

    def workers(self) -> list[int]:
        """Processes of the workers."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        with contextlib.suppress(OSError):
            return [int(number) for task in tasks for number in task.read_text().split()]
        return []

    def wait_ready(self) -> None:
        """Until a worker has loaded."""
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.2)


def resident(pid: int) -> float:
    """MiB that a process holds; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return 0.0


def make_cases(folder: Path) -> list[tuple[dict[str, bytes], str]]:
    """Files of each case, and the SHA-256 of what the command line makes of them."""
    write_inputs(folder / "in")
    geometry, all_files = (folder / "in" / "geometry.json").read_bytes(), []
    for number in range(CASES):
        case, files = folder / "cases" / f"{number}", {"geometry": geometry}
        case.mkdir(parents=True)
        (case / "geometry.json").write_bytes(geometry)
        for name in ("pa", "lateral"):
            image: Any = nib.load(folder / "in" / f"{name}.nii.gz")  # type: ignore[attr-defined]
            pixels = (np.asarray(image.dataobj) * (1 - 0.05 * number)).astype(np.float32)
            nib.save(nib.Nifti1Image(pixels, image.affine), case / f"{name}.nii.gz")  # type: ignore[attr-defined]
            files[name] = (case / f"{name}.nii.gz").read_bytes()
        all_files.append(files)
    rest = ["--checkpoint", "in/tiny.pt", "--allow-unverified", "--refine", "0", "--no-report"]
    subprocess.run([*CLI, "reconstruct", "--input", "cases", "--output", "alone", *rest], cwd=folder, check=True)
    made = [(folder / "alone" / f"{number}.nii.gz").read_bytes() for number in range(CASES)]
    return [(files, hashlib.sha256(ct).hexdigest()) for files, ct in zip(all_files, made, strict=True)]
