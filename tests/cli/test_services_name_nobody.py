# SPDX-License-Identifier: Apache-2.0
"""Services that take a patient's files say nowhere whose they are: in no file, name, answer, log or series."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("pynetdicom")
import uvicorn
from fastapi.testclient import TestClient
from pydicom import dcmread

from progressive_cascade.cli import main
from progressive_cascade.cli.service import load_runner
from progressive_cascade.service.watch import Watch
from tests.support.dicom_nodes import pacs_at, send_to
from tests.support.planted import PERSON, found
from tests.support.service import InProcess, finished, wait_for


@pytest.fixture(autouse=True)
def service(cascade: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers in this process, without networks; signals, logs and the place of temporary files as they were."""
    monkeypatch.setattr(
        "progressive_cascade.service.pool.make_worker",
        lambda settings: InProcess(load_runner({**settings.runner_settings, "device": "cpu"})),
    )
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr(logging.getLogger("progressive_cascade"), "handlers", [])
    # What another test has left there prints twice, and what this test's own client asks for.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def cut(person: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    """His radiographs in another study, the second cut short."""
    contents = []
    for path in sorted((person / "dx").glob("*.dcm")):
        dataset = dcmread(path)
        dataset.StudyInstanceUID += ".1"
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:60] + ".1"
        dataset.save_as(tmp_path / "cut.dcm")
        contents.append((tmp_path / "cut.dcm").read_bytes())
    (tmp_path / "cut.dcm").unlink()
    return contents[0], contents[1][:-1000]


def _said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command printed that ran until it was asked to end."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    return captured.out + captured.err


def _end_watch(monkeypatch: pytest.MonkeyPatch, is_over: Callable[[], Any]) -> None:
    """Ends the next watch when something has happened."""
    run = Watch.run

    def until(watch: Watch, each: Callable[[], None] = lambda: None) -> None:
        def look() -> None:
            each()
            if is_over():
                watch.is_stopping.set()

        run(watch, look)

    monkeypatch.setattr(Watch, "run", until)


@pytest.mark.parametrize(("options", "file"), [(("--dicom",), "dicom/IM0001.dcm"), ((), "ct/IM0001.dcm")])
def test_a_watch_names_nobody(
    options: tuple[str, ...],
    file: str,
    person: Path,
    cut: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pair that is done, one that fails, a view alone; `--format dicom` gives the series without NIfTI."""
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(person / "dx", source / PERSON)
    (source / f"{PERSON}_cut").mkdir()
    for number, content in enumerate(cut):
        (source / f"{PERSON}_cut" / f"{number}.dcm").write_bytes(content)
    alone = dcmread(person / "dx" / f"{PERSON}_1.dcm")
    alone.StudyInstanceUID += ".2"
    alone.save_as(source / f"{PERSON}.dcm")
    _end_watch(monkeypatch, lambda: len(list(source.glob("*/*/*.dcm"))) == 5)
    after = () if options else ("--", "--format", "dicom")
    said = _said(capsys, "watch", source, out, "--settle", 0.1, "--wait", 0.3, *options, *after)
    for path in source.glob("failed/*/reason.txt"):
        said += path.read_text()
    assert said.count(": refused") == 2 and "must hold the" in said and "a lateral beside it" in said
    assert found(out, said) == []
    (case,) = out.iterdir()
    assert (case / file).is_file() and (case / "ct.json").is_file() and (case / "ct.html").is_file()
    assert bool(list(case.glob("*.nii.gz"))) == bool(options) and not list(out.rglob("*.zip"))


def test_a_dicom_node_names_nobody(
    person: Path, tmp_path: Path, free_ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Neither what it keeps beside the objects themselves, nor the names of those, nor what it sends."""
    port, pacs_port = free_ports
    received: list[Any] = []
    pacs = pacs_at(pacs_port, received)
    spool = tmp_path / "spool"
    _end_watch(monkeypatch, lambda: list(spool.glob("out/*/sent.txt")))
    sender = threading.Thread(
        target=lambda: wait_for(lambda: send_to(sorted((person / "dx").glob("*.dcm")), port)), daemon=True
    )
    sender.start()
    node = ("--send", f"PACS@127.0.0.1:{pacs_port}", "--port", port)
    said = _said(capsys, "listen", "--spool", spool, "--settle", 0.2, *node)
    sender.join()
    pacs.shutdown()
    assert len(received) == 32 and received[0].PatientName == received[0].PatientID != ""
    said += "".join(map(str, received)) + "".join(str(path.relative_to(spool)) for path in spool.rglob("*"))
    assert found(spool / "out", said) == []


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two of this machine."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def test_the_http_service_names_nobody(
    person: Path, cut: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A job that is done, one that fails, a zip that holds no pair, and every page: answers, data folder and log."""
    answers: list[str] = []
    given = tuple(path.read_bytes() for path in sorted((person / "dx").glob("*.dcm")))
    dark = dcmread(person / "dx" / f"{PERSON}_2.dcm")
    dark.PixelData = bytes(len(dark.PixelData))
    dark.save_as(tmp_path / "dark.dcm")
    empty = (given[0], (tmp_path / "dark.dcm").read_bytes())

    def ask(client: Any) -> None:
        def post(pair: tuple[bytes, ...], key: str) -> str:
            files = {view: (f"{PERSON}_{view}.dcm", one) for view, one in zip(("pa", "lateral"), pair, strict=True)}
            answer = client.post("/jobs", files=files, headers={"Idempotency-Key": key})
            answers.append(answer.text + str(answer.headers))
            return answer.json().get("id", "")

        done, failed = (finished(client, post(pair, f"{PERSON} {pair is empty}")) for pair in (given, empty))
        assert post(cut, f"{PERSON} cut") == "" and "must hold the" in answers[-1]
        assert (done["state"], failed["state"]) == ("done", "failed")
        assert {"ct.nii.gz", "ct.json", "ct.png", "report", "dicom.zip"} <= set(done["links"])
        zipped = shutil.make_archive(str(tmp_path / "study"), "zip", person.parent, f"{PERSON}/ct")
        refused = client.post("/jobs", files={"study": (f"{PERSON}.zip", Path(zipped).read_bytes())})
        assert refused.status_code == 422
        places = (*failed["links"].values(), f"/jobs/{failed['id']}/ct.nii.gz", "/metrics", "/ready", "/", "/docs")
        for answer in (refused, *map(client.get, (*done["links"].values(), *places, f"/jobs/{PERSON}"))):
            answers.append(answer.text + str(answer.headers))
        assert client.delete(f"/jobs/{failed['id']}").status_code == 204

    class Asked(uvicorn.Server):
        """Starts the application as the server does, and asks it in place of listening."""

        def run(self, *_: object, **__: object) -> None:
            self.started = True
            with TestClient(self.config.app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:  # type: ignore[arg-type]
                ask(client)

    monkeypatch.setattr(uvicorn, "Server", Asked)
    said = _said(capsys, "serve", "--data", tmp_path / "data")
    assert "refused after" in said and "done after" in said
    assert found(tmp_path / "data", "\n".join([said, *answers])) == []
