# SPDX-License-Identifier: Apache-2.0
"""`watch` and `listen`: reconstructions where images already flow, a folder, a DICOM node, an archive."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import add_command, check_output_folder
from progressive_cascade.cli.numbers import amount, positive, positive_amount
from progressive_cascade.cli.radiographs import check_settings
from progressive_cascade.cli.service import NOT_INSTALLED, RUNNER, add_worker_options, start_log, worker_settings
from progressive_cascade.errors import UserError
from progressive_cascade.paths import is_same_place, lies_inside

if TYPE_CHECKING:
    from progressive_cascade.service.watch import Watch

LOGIN = "PROGRESSIVE_CASCADE_DICOMWEB"
"""The environment's name for user:password of the archive."""
_CT, _SERIES = "work/ct.nii.gz", "work/ct"
_OWN = (
    *("pa", "lateral", "input", "pairs", "keep_names", "key", "overwrite", "debug"),
    *("report", "uncertainty", "dicom_output", "checkpoint", "allow_unverified", "device"),
)
"""Options of `reconstruct` that are each pair's own or the watch's."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WATCH = """
Reconstruct every pair of X-rays that comes into a folder.

Pairs are found as by `reconstruct --input`: ID_pa.* and ID_lat.*, pa.* and lateral.* in a folder of their own, or DICOM
by study and view. When the files have not changed for --settle seconds, the CT and what belongs to it are written into
OUT/ID, and the X-rays move to IN/done/ID, or to IN/failed/ID with reason.txt. No file is ever deleted or replaced.
Started again after whatever ended it, the watch goes on where it was. What follows `--` are options of `reconstruct`;
with `--format dicom` the CT is the DICOM series OUT/ID/ct alone.

examples:
  progressive-cascade watch incoming cts
  progressive-cascade watch incoming cts --dicom --workers 2 -- --field-of-view 430 --refine 30
"""
_LISTEN = f"""
Reconstruct the X-rays that a PACS sends or an archive has, and send the CT series back.

Radiographs (DX, CR, secondary capture) come by C-STORE to --port, or are looked for in the archive --dicomweb
(Orthanc). They are paired by study; the CT series goes to --send AET@HOST:PORT by C-STORE, or else to the archive by
STOW-RS, until it is taken. C-ECHO is answered. What is under way lies in --spool and survives restarts. The series is
of an anonymous patient; `-- --keep-identity` puts it into the study of the X-rays. Beyond this machine only nodes named
by --caller are heard. ${LOGIN} holds user:password of the archive.

examples:
  progressive-cascade listen --port 11112 --host 0.0.0.0 --caller MODALITY --send PACS@10.0.0.5:104 -- --keep-identity
  progressive-cascade listen --dicomweb http://localhost:8042/dicom-web
"""


def add_watch(commands: Any) -> None:
    """Adds `watch`."""
    parser = add_command(commands, "watch", run=run_watch, text=_WATCH)
    parser.add_argument("source", type=Path, metavar="IN", help="folder into which X-rays come")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder for the CTs")
    parser.add_argument("--dicom", action="store_true", help="also write each CT as a DICOM series")
    _add_common(parser)


def add_listen(commands: Any) -> None:
    """Adds `listen`."""
    parser = add_command(commands, "listen", run=run_listen, text=_LISTEN)
    parser.add_argument("--port", type=positive, help="of a DICOM listener (default: none)")
    parser.add_argument("--host", default="127.0.0.1", help="address of the listener (default: 127.0.0.1)")
    parser.add_argument("--ae-title", default="CASCADE", metavar="AET", help="of this node (default: CASCADE)")
    parser.add_argument(
        "--caller", action="append", default=[], metavar="AET", help="a node that may send (default: any)"
    )
    parser.add_argument("--dicomweb", metavar="URL", help="an archive to poll, http://HOST:8042/dicom-web")
    parser.add_argument("--days", type=positive, default=1, metavar="N", help="how old studies may be (default: 1)")
    parser.add_argument("--send", metavar="AET@HOST:PORT", help="node for the series (default: the archive)")
    parser.add_argument(
        "--spool", type=Path, default=Path("spool"), metavar="DIR", help="what is under way (default: ./spool)"
    )
    parser.add_argument(
        "--keep-hours",
        type=positive_amount,
        default=24.0,
        metavar="H",
        help="then what was sent goes (default: 24)",
    )
    _add_common(parser)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of `watch` or `listen`, and what follows `--`; of another command all are its own."""
    if not {"watch", "listen"} & set(arguments[:1]) or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settle", type=amount, default=5.0, metavar="S", help="files unchanged so long are whole (default: 5)"
    )
    parser.add_argument(
        "--wait", type=amount, default=3600.0, metavar="S", help="a view waits so long for the other (default: 3600)"
    )
    add_worker_options(parser)


def run_watch(options: argparse.Namespace) -> None:
    """Watches until it is told to end."""
    if not options.source.is_dir():
        raise UserError(f"IN must be a folder, got {options.source}")
    check_output_folder(options.target, "OUT")
    if is_same_place(options.source, options.target) or lies_inside(options.target, options.source):
        raise UserError(f"OUT must lie outside of IN, got {options.target}")
    watch = _make_watch(options, options.source, options.target)
    print(f"watching {options.source}; Ctrl-C ends it", flush=True)
    _run(watch)


def run_listen(options: argparse.Namespace) -> None:
    """Listens and polls until it is told to end."""
    if options.port is None and options.dicomweb is None:
        raise UserError("--port or --dicomweb must be given")
    if options.send is None and options.dicomweb is None:
        raise UserError("--send must say where the series go, or --dicomweb")
    if options.port is not None and options.host not in _LOOPBACK and not options.caller:
        raise UserError(f"--host {options.host} must come with --caller, the nodes that may send; got none")
    check_output_folder(options.spool, "--spool")
    source, target = options.spool / "in", options.spool / "out"
    options.dicom = True
    watch = _make_watch(options, source, target)
    os.chmod(options.spool, 0o700)
    from progressive_cascade.service.delivery import Delivery
    from progressive_cascade.service.dicom_node import Node, start_listener
    from progressive_cascade.service.dicomweb import Archive

    archive = Archive(options.dicomweb, login=_login(), days=options.days) if options.dicomweb else None
    destination = Node.parse(options.send, options.ae_title) if options.send else archive
    assert destination is not None
    delivery = Delivery(source, target, destination, keep_hours=options.keep_hours)
    titles = {"title": options.ae_title, "callers": options.caller}
    listener = start_listener(source, host=options.host, port=options.port, **titles) if options.port else None
    print(f"listening as {options.ae_title}; Ctrl-C ends it", flush=True)

    def is_wanted() -> bool:
        return not watch.is_stopping.is_set()

    def each() -> None:
        if archive is not None:
            archive.look(source, options.spool / "seen", is_wanted)
        delivery.look(is_wanted)

    try:
        _run(watch, each)
    finally:
        if listener is not None:
            listener.shutdown()


def _make_watch(options: argparse.Namespace, source: Path, target: Path) -> Watch:
    arguments, parsed = _reconstruct_arguments(options)
    try:
        from progressive_cascade.service.pool import make_worker
        from progressive_cascade.service.settings import Settings
        from progressive_cascade.service.watch import Watch, WatchSettings
    except ImportError as error:
        raise UserError(NOT_INSTALLED.format(error.name)) from error
    settings = Settings(folder=target, runner=RUNNER, runner_settings=worker_settings(options), dask=options.dask)
    watched = WatchSettings(
        source=source,
        target=target,
        arguments=tuple(arguments),
        with_geometry=parsed.preset is None,
        settle_seconds=options.settle,
        wait_seconds=options.wait,
        job_seconds=options.job_seconds,
        poll_seconds=min(2.0, max(0.1, options.settle / 2)),
    )
    start_log()
    return Watch(watched, [make_worker(settings) for _ in range(options.workers)])


def _reconstruct_arguments(options: argparse.Namespace) -> tuple[list[str], argparse.Namespace]:
    """Options of `reconstruct` for every pair, and what its own parser makes of them.

    Raises:
        UserError: for what it does not know, what is each pair's own, or what does not go together.
    """
    given, parsed = options.arguments, _parse_for_pairs(options.arguments)
    check_settings(parsed)
    given = [*given, *(["--geometry", str(parsed.geometry.absolute())] if parsed.geometry else [])]
    if parsed.format == "dicom":
        if options.command == "watch" and options.dicom:
            raise UserError("--dicom must come without --format dicom, which writes no NIfTI file")
        return [*given, "--output", _SERIES], parsed
    if options.dicom:
        return [*given, "--dicom-output", "work/dicom"], parsed
    for name in ("keep_identity", "multiframe"):
        if getattr(parsed, name):
            raise UserError(f"--{name.replace('_', '-')} must come with --dicom or --format dicom")
    return given, parsed


def _parse_for_pairs(given: list[str]) -> argparse.Namespace:
    """What follows `--`, without anything that the watch sets for each pair, or that is the watch's own option."""
    from progressive_cascade.cli import build_parser

    parse = build_parser().parse_args
    # What is given explicitly has its value whatever stands before it.
    parsed, other, bare = (
        parse(["reconstruct", "--output", output, resume, *more])
        for output, resume, more in ((_CT, "--resume", given), ("-", "--no-resume", given), (_CT, "--resume", []))
    )
    set_twice = [name for name in ("output", "resume") if getattr(parsed, name) == getattr(other, name)]
    taken = [*set_twice, *(name for name in _OWN if getattr(parsed, name) != getattr(bare, name))]
    if taken:
        raise UserError(f"--{taken[0].replace('_', '-')} must not stand after --")
    return parsed


def _login() -> tuple[str, str] | None:
    user, colon, password = os.environ.get(LOGIN, "").partition(":")
    return (user, password) if colon else None


def _run(watch: Watch, each: Callable[[], None] = lambda: None) -> None:
    """Runs the watch; SIGTERM and Ctrl-C end it."""

    def stop(*_: object) -> None:
        watch.is_stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    watch.run(each)
