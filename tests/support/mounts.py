# SPDX-License-Identifier: Apache-2.0
"""File systems that one process and its children see: a small one, a read-only one. Needs the right to mount."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of <sched.h>


class CannotMountError(RuntimeError):
    """This machine does not let us mount; says why."""


def check_mounts() -> None:
    """Refuses where nothing can be mounted.

    Raises:
        CannotMountError: with the reason.
    """
    if shutil.which("unshare") is None:
        raise CannotMountError("there is no unshare")
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMountError(f"mounting is not allowed: {done.stderr.strip()}")


def mount_privately(*mounts: tuple[str, ...]) -> None:
    """Mounts in this process and its children alone; `mounts` are arguments of mount(8)."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for arguments in (("--make-rprivate", "/"), *mounts):
        subprocess.run(["mount", *arguments], check=True)


def small(folder: Path | str, megabytes: int) -> tuple[str, ...]:
    """A file system in memory of so many MB."""
    return ("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))


def read_only(folder: Path) -> tuple[tuple[str, ...], ...]:
    """A folder that can be read only, also by root."""
    return (("--bind", str(folder), str(folder)), ("-o", "remount,ro,bind", str(folder)))


def seen_by(pid: int, folder: Path) -> Path:
    """A folder as a process sees it, which outlives the process."""
    descriptor = os.open(f"/proc/{pid}/root{folder}", os.O_RDONLY | os.O_DIRECTORY)
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")
