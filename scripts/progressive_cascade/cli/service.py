# SPDX-License-Identifier: Apache-2.0
"""`serve`: reconstructions over HTTP; and what a worker of any service runs, which is `reconstruct` itself."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import secrets
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_checkpoint,
    add_command,
    check_checkpoint,
    check_output_folder,
    describe_error,
)
from progressive_cascade.cli.numbers import positive, positive_amount
from progressive_cascade.errors import RunError, UserError

RUNNER = "progressive_cascade.cli.service:load_runner"
"""What a worker loads."""
TOKEN = "PROGRESSIVE_CASCADE_TOKEN"
"""The environment's name for the bearer token."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
NOT_INSTALLED = "{} is not installed; pip install 'progressive-cascade[service]'"
"""Of a package that a service needs."""
_SERVE = f"""
Reconstruct for other programs and people, over HTTP.

POST two X-rays (or a zip with both) to /jobs, ask for the job until it is done, take CT, DICOM series, sidecar and
report page. http://127.0.0.1:8000/ is a page onto which two files are dragged, /docs describes every request. Jobs that
were accepted survive kill -9 and loss of power: they lie in --data. Only this machine is answered unless --host says
otherwise; then every request needs the token in the environment's {TOKEN} (or in the file
--token-file).

examples:
  progressive-cascade serve
  {TOKEN}=$(openssl rand -hex 32) progressive-cascade serve --host 0.0.0.0 --workers 2
  progressive-cascade serve --dask tcp://scheduler:8786 --workers 8
"""


def add_serve(commands: Any) -> None:
    """Adds `serve`."""
    parser = add_command(commands, "serve", run=run_serve, text=_SERVE)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=positive, default=8000, help="default: 8000")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"bearer token (default: ${TOKEN})")
    parser.add_argument("--name", action="append", metavar="HOST", help="a name clients use for it (default: any)")
    parser.add_argument(
        "--data", type=Path, default=Path("service"), metavar="DIR", help="queue and results (default: service)"
    )
    add_worker_options(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue", type=positive, default=32, metavar="N", help="jobs that wait or run (default: 32)"
    )
    limits.add_argument("--max-upload", type=positive, default=128, metavar="MIB", help="of one request (default: 128)")
    limits.add_argument(
        "--keep-hours", type=positive_amount, default=24.0, metavar="H", help="results are removed then (default: 24)"
    )


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `serve`, `watch` and `listen` want to know of their workers."""
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="jobs at a time (default: 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="run jobs on this Dask scheduler's workers, tcp://HOST:8786")
    parser.add_argument(
        "--job-seconds", type=positive_amount, default=900.0, metavar="S", help="in which a job must end (default: 900)"
    )
    add_checkpoint(parser)
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)


def worker_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What workers load, checked as far as that goes without loading it.

    Raises:
        UserError: where there is no such checkpoint.
    """
    checkpoint = options.checkpoint
    if checkpoint is not None and options.dask is None:
        if not checkpoint.is_file():
            raise UserError(f"--checkpoint must be an existing file, got {checkpoint}")
        check_checkpoint(options)
        checkpoint = checkpoint.absolute()
    path = None if checkpoint is None else str(checkpoint)
    return {"checkpoint": path, "device": options.device, "allow_unverified": options.allow_unverified}


def run_serve(options: argparse.Namespace) -> int:
    """Listens until it is told to end."""
    token = _read_token(options)
    is_local = options.host in _LOOPBACK
    if not is_local and token is None:
        raise UserError(f"--host {options.host} must come with a token, in ${TOKEN} or --token-file; got none")
    check_output_folder(options.data, "--data")
    try:
        import uvicorn

        from progressive_cascade.service import Settings, build_app
    except ImportError as error:
        raise UserError(NOT_INSTALLED.format(error.name)) from error
    hosts = ("localhost", "127.0.0.1", "[::1]") if is_local else None
    settings = Settings(
        folder=options.data.absolute(),
        runner=RUNNER,
        runner_settings={**worker_settings(options), "zip": True},
        workers=options.workers,
        max_queue=options.max_queue,
        max_upload=options.max_upload << 20,
        job_seconds=options.job_seconds,
        keep_hours=options.keep_hours,
        token=token,
        hosts=(*(hosts or ()), *options.name) if options.name else hosts,
        dask=options.dask,
    )
    start_log()
    app = build_app(settings)
    # Uploads pass through temporary files, which in a container's /tmp would take memory.
    tempfile.tempdir = str(settings.folder)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=256,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    where = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{where}:{options.port}/ (data in {settings.folder}); Ctrl-C ends it", flush=True)
    server.run()
    return 0 if server.started else 1


def start_log() -> None:
    """Lines with time, from this package alone: what libraries log may hold anything."""
    logger = logging.getLogger("progressive_cascade")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)


def _read_token(options: argparse.Namespace) -> str | None:
    if options.token_file is None:
        token = os.environ.get(TOKEN, "").strip()
        where = f"${TOKEN}"
    else:
        where = f"--token-file {options.token_file}"
        if not options.token_file.is_file():
            raise UserError(f"{where} must exist, there is no such file")
        token = options.token_file.read_text(encoding="utf-8").strip()
        if not token:
            raise UserError(f"{where} must hold a token, it is empty")
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        example = secrets.token_hex(24)
        raise UserError(f"{where} must be 16 letters or more without spaces, such as {example}")
    return token or None


def load_runner(settings: Mapping[str, Any]) -> Callable[[Sequence[str]], None]:
    """Loads the network once; what it gives runs `reconstruct` with it.

    Args:
        settings: ``checkpoint`` and ``device``, each may be None; ``zip``: whether a DICOM series is zipped, too.

    Returns:
        What takes the arguments of `reconstruct`. It raises UserError or RunError with one line.
    """
    from progressive_cascade.cli import build_parser
    from progressive_cascade.cli.common import select_device
    from progressive_cascade.cli.reconstruction import check_outputs, reconstruct_pair
    from progressive_cascade.cli.weights import Weights
    from progressive_cascade.io.released import check_released

    checkpoint, device = settings.get("checkpoint"), select_device(settings.get("device"))
    if checkpoint:  # on a cluster it is the cluster's file, which nobody has looked at yet
        check_released(Path(checkpoint), allow_unverified=bool(settings.get("allow_unverified")))
    weights, parser = Weights(Path(checkpoint) if checkpoint else None, device), build_parser()
    fixed = [*(["--checkpoint", checkpoint] if checkpoint else []), "--device", device]

    def run(arguments: Sequence[str]) -> None:
        options = parser.parse_args(["reconstruct", *arguments, *fixed])
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check_outputs(options)
                weights.run(options, reconstruct_pair)
            if settings.get("zip") and options.dicom_output is not None:
                _pack(options.dicom_output)
        except Exception as error:
            raise _told(error, {str(options.pa): "pa", str(options.lateral): "lateral"}) from error

    return run


def _told(error: Exception, names: Mapping[str, str]) -> Exception:
    """The error as one that is told in a line, where it can be, with what was sent in place of where it lies here."""
    from progressive_cascade.cli.common import broke_underway
    from progressive_cascade.cli.radiographs import Warned

    if isinstance(error, Warned):
        return UserError(f"strict: {error}")
    line = describe_error(error)
    if line is None:
        return error
    for path, name in names.items():
        line = line.replace(path, name)
    return RunError(line) if broke_underway(error) or isinstance(error, OSError) else UserError(line)


def _pack(folder: Path) -> None:
    """A zip beside a folder of slices."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
