# SPDX-License-Identifier: Apache-2.0
"""A service whose workers need no network: what they do stands in the radiograph; and radiographs to send."""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.service import Settings
from progressive_cascade.service.settings import Outcome

RUNNER = "tests.support.service:load"
SLOW, DEADLY, WRONG, BROKEN, BUG = 11, 12, 13, 14, 15
"""The first grey level of a radiograph, and what a worker makes of it."""


def load(settings: dict[str, Any]) -> Callable[[Sequence[str]], None]:
    """A runner in place of the network."""
    if settings.get("broken"):
        raise UserError("checkpoint must be one, got none")
    loaded = f"{os.getpid()}"

    def run(arguments: Sequence[str]) -> None:
        parser = argparse.ArgumentParser()
        for name in ("--pa", "--lateral", "--output", "--refine"):
            parser.add_argument(name)
        options, _ = parser.parse_known_args(arguments)
        level = np.asarray(Image.open(options.pa))[0, 0]
        _act(level, settings, options.pa)
        output = Path(options.output)
        for name, content in (("ct.nii.gz", f"ct of {options.refine}"), ("ct.json", loaded), ("ct.html", "<p>page")):
            (output.parent / name).write_text(content)
        with open(settings["log"], "a", encoding="utf-8") as stream:
            stream.write(f"{Path.cwd().name}\n")

    return run


def _act(level: int, settings: dict[str, Any], name: str) -> None:
    if level == SLOW:
        time.sleep(settings.get("seconds", 30.0))
    if level == DEADLY:
        os._exit(9)
    if level == WRONG:
        raise UserError(f"{name} must show a patient,\ngot nothing")
    if level == BROKEN:
        raise RunError("out of memory")
    if level == BUG:
        raise KeyError("Doe^Jane")


def load_series(settings: dict[str, Any]) -> Callable[[Sequence[str]], None]:
    """A runner that writes a small CT series of the DICOM radiographs it is given."""
    from progressive_cascade.export.dicom import write_dicom_series

    def run(arguments: Sequence[str]) -> None:
        parser = argparse.ArgumentParser()
        for name in ("--pa", "--lateral", "--dicom-output"):
            parser.add_argument(name)
        parser.add_argument("--keep-identity", action="store_true")
        options, _ = parser.parse_known_args(arguments)
        hu = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
        sources = (options.pa, options.lateral)
        kept = options.keep_identity
        write_dicom_series(hu, np.diag([2.0, 2, 2, 1]), options.dicom_output, sources=sources, keep_identity=kept)

    return run


def radiographs(folder: Path) -> list[Path]:
    """A DX pair of one study of today, without anything that tells which is which in its names."""
    import datetime

    from tests.support import dicom_files

    study, paths = dicom_files.pydicom.uid.generate_uid(), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (view, letters) in enumerate((("PA", ["L", "F"]), ("LL", ["A", "F"]))):
        dataset = dicom_files.dx(ViewPosition=view, PatientOrientation=letters, StudyInstanceUID=study)
        dataset.Rows = dataset.Columns = 64
        dataset.SeriesInstanceUID = dicom_files.pydicom.uid.generate_uid()
        dataset.PatientName, dataset.StudyDate = "Doe^Jane", f"{datetime.date.today():%Y%m%d}"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = np.full((64, 64), 100 + number, np.uint16).tobytes()
        paths.append(dicom_files.save(dataset, folder / f"{number}.dcm"))
    return paths


class InProcess:
    """A worker in this process, so that a test's stand-in for the network is what runs.

    Args:
        run: what :func:`progressive_cascade.cli.service.load_runner` gives.
    """

    starts, problem, is_ready = 1, "", True

    def __init__(self, run: Callable[[Sequence[str]], None]) -> None:
        self._run = run

    def ensure(self) -> bool:
        """It always is ready."""
        return True

    def run(self, folder: Path, arguments: Sequence[str], **_: object) -> Outcome:
        """Runs a job in its folder, as a worker's process does."""
        from progressive_cascade.service.worker import attempt

        place = Path.cwd()
        os.chdir(folder)
        try:
            return Outcome(*attempt(self._run, arguments))  # type: ignore[arg-type]
        finally:
            os.chdir(place)

    def stop(self) -> None:
        """There is nothing to end."""


@contextmanager
def watching(
    folder: Path, runner: str = "load", each: Callable[[], None] = lambda: None, **changes: Any
) -> Iterator[Any]:
    """A watch of ``folder/in`` that is looking."""
    import threading

    from progressive_cascade.service import WorkerProcess
    from progressive_cascade.service.watch import Watch, WatchSettings

    quick = {"settle_seconds": 0.1, "poll_seconds": 0.05, "source": folder / "in", "target": folder / "out"}
    settings = WatchSettings(**{**quick, **changes})
    worker = WorkerProcess(f"{__name__}:{runner}", {"log": str(folder / "ran.txt")})
    watch = Watch(settings, [worker])
    thread = threading.Thread(target=watch.run, args=(each,))
    thread.start()
    try:
        yield watch
    finally:
        watch.is_stopping.set()
        thread.join()


def picture(level: int = 100, side: int = 64) -> bytes:
    """A PNG whose first pixel is of that level."""
    pixels = np.full((side, side), 200, np.uint8)
    pixels[0, 0] = level
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pair(level: int = 100) -> dict[str, tuple[str, bytes]]:
    """Two files as a client sends them, under a patient's name."""
    return {"pa": ("Doe_Jane_pa.png", picture(level)), "lateral": ("Doe_Jane_lat.png", picture())}


def deflated_dicom(size: int) -> bytes:
    """A DICOM file of zeros that are deflated, made without ever holding them."""
    import zlib

    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    stream = io.BytesIO()
    stream.write(bytes(128) + b"DICM")
    write_file_meta_info(stream, meta)  # pyright: ignore[reportArgumentType]
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    # What follows a full flush does not refer to what was before it, and can be repeated.
    megabyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return stream.getvalue() + megabyte * (size >> 20) + deflate.flush()


def settings(folder: Path, **changes: Any) -> Settings:
    """A service for tests, which names itself `testserver`."""
    runner_settings = {"log": str(folder / "ran.txt"), **changes.pop("runner_settings", {})}
    usual = {"hosts": ("testserver", "127.0.0.1"), "grace_seconds": 5.0}
    return Settings(folder=folder / "data", runner=RUNNER, runner_settings=runner_settings, **{**usual, **changes})


@contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[Any]:
    """A client of a service in this process, whose first worker has loaded."""
    from fastapi.testclient import TestClient

    from progressive_cascade.service import build_app

    with TestClient(build_app(settings(folder, **changes)), raise_server_exceptions=False) as client:
        if not changes.get("runner_settings", {}).get("broken"):
            wait_for(lambda: client.get("/ready").status_code == 200)
        yield client


def wait_for(happened: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What a function gives when it first gives something true."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"nothing happened for {seconds} s"
        time.sleep(0.02)
    return found


def finished(client: Any, identifier: str) -> dict[str, Any]:
    """A job that has ended."""
    return wait_for(lambda: _ended(client.get(f"/jobs/{identifier}").json()))


def _ended(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["state"] in ("done", "failed") else None
