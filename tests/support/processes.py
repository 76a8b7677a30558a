# SPDX-License-Identifier: Apache-2.0
"""Trainings as processes of their own, which can be killed; forked from one that has imported and computed nothing."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle.scripts import run

from progressive_cascade.cli import main
from tests.bundle.test_configs import BUNDLE, TINY
from tests.support.mounts import mount_privately

_ROOT = BUNDLE.parent
# A fork of the tests' own process would inherit locks that threads of earlier tests held.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload([__name__, "tests.support.preloaded"])


def tiny_settings(output: Path, cache: Path, stage: int = 1, **changes: Any) -> dict[str, Any]:
    """A training of nine steps in three epochs, with all that is random, and a checkpoint after every step."""
    settings = {
        **TINY,
        "ckpt_dir": str(output / "models"),
        "log_dir": str(output / f"logs{stage}"),
        "cache_dir": str(cache),
        "grid": 8 << (stage - 1),
        "num_phantoms": 3,
        "epoch_size": 6,
        "batch_size": 2,
        "epochs": 3,
        "loss_weights": {"l1": 1.0, "reprojection": 0.05},
        "checkpoint_minutes": 1e-6,
        **({"window": 16} if stage > 1 else {}),
    }
    return {**settings, **changes}


def as_options(settings: Mapping[str, Any], stage: int = 1) -> list[str]:
    """The same training as arguments of the command line."""
    values = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["train", "--stages", str(stage), *values]


def train(settings: Mapping[str, Any], stage: int = 1, overlays: Sequence[str] = ()) -> None:
    """Runs a stage here, as ``python -m monai.bundle run training`` does."""
    os.chdir(BUNDLE)
    files = [f"configs/{name}.json" for name in (f"stage{stage}", *overlays)]
    run(run_id="training", config_file=files, **settings)


def type_monai(*arguments: str) -> None:
    """Runs ``python -m monai.bundle`` with arguments, in the bundle's folder."""
    os.chdir(BUNDLE)
    sys.modules.pop("monai.bundle.__main__", None)
    sys.argv = ["monai.bundle", *arguments]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except Exception:
        # A child of multiprocessing prints the traceback itself, without asking.
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)


def train_mounted(settings: Mapping[str, Any], *mounts: tuple[str, ...]) -> None:
    """Runs stage 1 here, on file systems of its own."""
    mount_privately(*mounts)
    train(settings)


def command(arguments: Sequence[str], mounts: Sequence[tuple[str, ...]] = ()) -> None:
    """Runs the command line here, on file systems of its own where there are mounts."""
    if mounts:
        mount_privately(*mounts)
    sys.exit(main([str(argument) for argument in arguments]))


def train_rank(rank: int, port: int, settings: Mapping[str, Any], stage: int = 1) -> None:
    """Runs a stage as one of two processes, in the environment that torchrun gives them."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    train(settings, stage, ["multi_gpu"])


def start_ranks(folder: Path, settings: Mapping[str, Any], stage: int = 1) -> list[Child]:
    """Starts a training of two processes; their logs are ``rank0`` and ``rank1`` in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Child(folder / f"rank{rank}", train_rank, rank, port, settings, stage) for rank in (0, 1)]


class Child:
    """A process that runs a function; what it prints goes into a file.

    Args:
        log: the file.
        function: to run.
        arguments: its own.
    """

    def __init__(self, log: Path, function: Callable[..., None], *arguments: Any) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        start_server()
        self.process = _FORK.Process(target=_logged, args=(log, function, arguments))
        self.process.start()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.process.pid or 0, number)

    def wait(self, seconds: float = 300.0) -> int:
        """Waits for the end; the exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.text()}"
        return self.process.exitcode

    def wait_for(self, happened: Callable[[], bool], seconds: float = 300.0) -> None:
        """Waits until something has happened, or the process has ended."""
        end = time.monotonic() + seconds
        while not happened() and self.process.is_alive():
            assert time.monotonic() < end, f"nothing happened for {seconds} s: {self.text()}"
            time.sleep(0.005)

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@functools.cache
def start_server() -> None:
    """Start the process to fork from, in the checkout's folder: only there does it find what it imports beforehand."""
    before = Path.cwd()
    os.chdir(_ROOT)
    multiprocessing.forkserver.ensure_running()
    os.chdir(before)


def _logged(log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    # Its loaders start their workers as those of a training from the command line do, not through this server.
    multiprocessing.set_start_method("fork", force=True)
    function(*arguments)


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
