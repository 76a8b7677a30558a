# SPDX-License-Identifier: Apache-2.0
"""What the commands share: parsing, errors in one line, outputs that are checked before the work begins."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import ctypes
import io
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.geometry import PRESETS

DISTRIBUTIONS = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "SimpleITK", "itk", "matplotlib")
"""The packages whose versions go into reports."""
DEVICE_HELP = "cpu, cuda, cuda:1, mps (default: cuda where there is one)"
"""Help of `--device`."""
PROTOCOL_NAMES = ("native", "x2ct", "perx2ct", "xmed")
"""What `--protocol` takes: the names of :data:`progressive_cascade.evaluation.metrics.PROTOCOLS`, which needs torch."""
DEFAULT_REFINE_STEPS, MAX_REFINE_STEPS = 8, 1000
"""As in :mod:`progressive_cascade.inference.refine`, which needs torch."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_PLAIN = {"³": "^3", "²": "^2", "±": "+-", "×": "x", "µ": "u", "°": " deg", "–": "-", "—": "-", "…": "...", "→": "->"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs and examples of a help text as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        """Turns argparse's complaint into the one line the command line prints."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def add_command(commands: Any, name: str, *, run: Callable[[argparse.Namespace], int | None], text: str) -> Parser:
    """Adds a sub-command.

    Args:
        commands: what `add_subparsers` returned.
        name: the command.
        run: called with the parsed options; what it returns is the exit code, None for 0.
        text: help text; its first line is the summary in the list of commands.

    Returns:
        The command's parser.
    """
    text = textwrap.dedent(text).strip()
    summary = text.splitlines()[0]
    parser = commands.add_parser(name, help=summary, description=text, formatter_class=HelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds `--overwrite`, without which a command replaces no file."""
    parser.add_argument("--overwrite", action="store_true", help="replace what exists (default: refuse)")


def print_what_the_terminal_can() -> None:
    """Lets stdout and stderr of a terminal without Unicode take any text: `256^3` for 256³, `?` for the unknown."""
    codecs.register_error("progressive-cascade", lambda error: (_plain(error), error.end))  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="progressive-cascade")


def _plain(error: UnicodeError) -> str:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end])


def keep_freed_memory() -> None:
    """Lets the C library hand freed memory out again instead of returning it to the system, where it is glibc.

    A network at 256³ frees and takes hundreds of blocks of 30 to 270 MB; by default each is a new mapping whose pages
    the system fills with zeros, a sixth of the processor time of a reconstruction. Only for a process that is ours.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            set_option(option, 1 << 30)


def add_preset(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds `--preset` to a command or to a group of its options; `what` begins the help."""
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="chest_stand",
        metavar="NAME",
        help=f"{what}: {', '.join(sorted(PRESETS))} (default: chest_stand)",
    )


def add_protocols(parser: argparse._ActionsContainer) -> None:
    """Adds `--protocol`."""
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOL_NAMES,
        default=["native"],
        metavar="NAME",
        help="native x2ct perx2ct xmed (default: native)",
    )


def add_refine(parser: argparse.ArgumentParser) -> None:
    """Adds `--refine` to a command that reconstructs."""
    parser.add_argument(
        "--refine",
        type=_refine_steps,
        default=DEFAULT_REFINE_STEPS,
        metavar="STEPS",
        help=f"steps in which stage 1 is refined on the X-rays themselves, 0 (off) to {MAX_REFINE_STEPS} "
        f"(default: {DEFAULT_REFINE_STEPS})",
    )


def _refine_steps(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_REFINE_STEPS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 (off) to {MAX_REFINE_STEPS}, got {text!r}")
    return int(text)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint` and `--allow-unverified`."""
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights (default: the shipped ones)")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="take weights of one's own, whose SHA-256 the package does not know (default: refuse them)",
    )


def check_checkpoint(options: argparse.Namespace) -> None:
    """Refuses, before any work, weights that were not released, unless they are allowed.

    Raises:
        UserError: naming the file and both hashes.
    """
    from progressive_cascade.io.released import check_released

    if options.checkpoint is not None:
        check_released(options.checkpoint, allow_unverified=options.allow_unverified)


def add_assume_spacing(parser: argparse.ArgumentParser) -> None:
    """Adds `--assume-spacing`, for CT files whose header says neither voxel size nor orientation."""
    parser.add_argument(
        "--assume-spacing",
        type=_spacing,
        metavar="MM",
        help="voxel size, 1 or 0.7,0.7,1.25, of files that do not say where their voxels are; their axes are taken to "
        "run to the patient's right, front and head (default: refuse such files)",
    )


def _spacing(text: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(0 < number < 1000 for number in numbers):
        raise argparse.ArgumentTypeError(f"must be one length or three, such as 0.7,0.7,1.25, got {text!r}")
    x, y, z = numbers * (3 // len(numbers))
    return x, y, z


def check_output_file(path: Path, suffixes: tuple[str, ...], name: str = "--output") -> None:
    """Refuses, before any work, an output file of another type or in a folder that cannot be written.

    Raises:
        UserError: naming the option and the path.
    """
    if not path.name.endswith(suffixes) or path.name in suffixes:
        raise UserError(f"{name} must be a file that ends in {' or '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise UserError(f"{name} must be a file, got the folder {path}")
    check_output_folder(path.parent, name)


def check_output_folder(folder: Path, name: str = "--output") -> None:
    """Refuses, before any work, a folder that is a file, lies below a file or cannot be written.

    Raises:
        UserError: naming the option and the path.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{name} must be in a folder, got {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{name} must be writable, got {folder}: no permission to write into {existing}")


def select_device(name: str | None) -> str:
    """The device a user asked for, or CUDA where there is one, or the CPU.

    Raises:
        UserError: for a name torch does not know, or a device this machine does not have.
    """
    import torch

    from progressive_cascade.precision import usual_device

    if name is None:
        return usual_device()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = _one_line(error).split(". ")[0]
        raise UserError(
            f"--device must be a device of this machine (cpu, cuda, mps), got {name!r}: {reason}"
        ) from error
    return name


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it stands on; `-` for what is not installed."""
    from progressive_cascade import __version__

    found = {"progressive-cascade": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def describe_error(error: BaseException) -> str | None:
    """One line for an error that is the user's to mend, None for one that is ours.

    A workflow wraps what went wrong in its configuration, so the causes are searched, too.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, (UserError, RunError)):
            return _one_line(cause)
    for cause in chain:
        if isinstance(cause, OSError) and cause.strerror:
            names = [str(name) for name in (cause.filename, cause.filename2) if name is not None]
            return ": ".join([*names, cause.strerror])
        if isinstance(cause, (FileNotFoundError, PermissionError)):
            return _one_line(cause)
        if type(cause).__name__ == "OutOfMemoryError":
            return "out of GPU memory; try --device cpu, or --preset low_memory for training"
    if isinstance(error, (ValueError, OSError)):
        return _one_line(error)
    return None


def broke_underway(error: BaseException) -> bool:
    """Whether an error is of a run that was asked for rightly."""
    return any(isinstance(cause, RunError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
