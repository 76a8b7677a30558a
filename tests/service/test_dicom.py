# SPDX-License-Identifier: Apache-2.0
"""Laws of the DICOM node and the archive: a pair in, a series out, and nothing in between that names anybody."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom")
import httpx
import requests
from pydicom import dcmread

from progressive_cascade.errors import RunError
from progressive_cascade.service.delivery import Delivery
from progressive_cascade.service.dicom_node import Node, short_hash, start_listener
from progressive_cascade.service.dicomweb import Archive
from tests.support.dicom_nodes import pacs_at, send_to
from tests.support.service import radiographs, wait_for, watching

_IDENTITY = b"Doe"


class _Taken:
    """A destination that fails at first."""

    def __init__(self) -> None:
        self.calls, self.files = 0, []

    def send(self, files: Sequence[Path]) -> None:
        self.calls += 1
        if self.calls == 1:
            raise RunError("no")
        self.files += files


def test_a_pair_comes_and_a_series_goes_by_c_store(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again after a failure, once; C-ECHO is answered; another title is refused; names of files name nobody."""
    monkeypatch.setattr("progressive_cascade.service.delivery._FIRST_PAUSE", 0.1)
    paths = radiographs(tmp_path / "given")
    received: list[Any] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        pacs_port = probe.getsockname()[1]
    pacs = pacs_at(pacs_port, received)
    node, taken = Node.parse(f"PACS@127.0.0.1:{pacs_port}", "CASCADE"), _Taken()
    delivery = Delivery(tmp_path / "in", tmp_path / "out", taken)
    arguments = ("--dicom-output", "work/dicom", "--keep-identity")
    with watching(tmp_path, "load_series", delivery.look, arguments=arguments):
        listener = start_listener(tmp_path / "in", host="127.0.0.1", port=free_port, title="CASCADE")
        assert send_to(paths, free_port) == [0, 0, 0]
        assert send_to(paths, free_port, "OTHER") == []
        wait_for(lambda: len(taken.files) == 8)
        listener.shutdown()
    assert taken.calls == 2 and list((tmp_path / "out").glob("*/sent.txt"))
    node.send(taken.files)
    pacs.shutdown()
    assert {one.StudyInstanceUID for one in received} == {dcmread(paths[0]).StudyInstanceUID}
    assert len({one.SOPInstanceUID for one in received}) == 8 and received[0].Modality == "CT"
    assert not [path for path in tmp_path.rglob("*") if _IDENTITY in path.name.encode()]
    delivery._keep = -1.0
    delivery.look()
    assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "in" / "done").iterdir())
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"done"}


def test_a_node_that_is_not_there_is_told_of(free_port: int, tmp_path: Path) -> None:
    """In one line, so that the series is sent again."""
    with pytest.raises(RunError, match="must take an association"):
        Node.parse(f"PACS@127.0.0.1:{free_port}", "CASCADE").send([])


def test_a_node_that_leaves_between_two_slices_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, too: an association that was aborted takes no further slice."""
    from pynetdicom import AE
    from pynetdicom.association import Association

    aborted = Association(AE(), "requestor")
    monkeypatch.setattr(aborted, "is_established", True)
    monkeypatch.setattr(AE, "associate", lambda *_, **__: aborted)

    def leave(path: Path) -> Any:
        aborted.is_established = False
        return dcmread(path)

    monkeypatch.setattr("pydicom.dcmread", leave)
    with pytest.raises(RunError, match="PACS must take CT images: The association"):
        Node.parse("PACS@127.0.0.1:104", "CASCADE").send(radiographs(tmp_path)[:1])


def test_a_disk_that_is_full_does_not_end_a_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be noted as sent is sent again; nothing is begun when it is not wanted any more."""
    folder, taken = tmp_path / "out" / "a", _Taken()
    folder.mkdir(parents=True)
    (tmp_path / "in" / "done").mkdir(parents=True)
    (folder / "made_of.txt").write_text("-")
    (folder / "a.dcm").write_text("-")
    taken.calls = 1
    delivery = Delivery(tmp_path / "in", tmp_path / "out", taken)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    delivery.look(lambda: False)
    assert taken.files == []
    with monkeypatch.context() as patch:
        patch.setattr("progressive_cascade.service.delivery.atomic_path", full)
        delivery.look()
    assert len(taken.files) == 1 and not (folder / "sent.txt").exists()
    delivery._next = 0.0
    delivery.look()
    assert len(taken.files) == 2 and (folder / "sent.txt").exists()


@pytest.fixture
def orthanc(tmp_path: Path, free_port: int) -> Iterator[tuple[str, int]]:
    """Debian's Orthanc with its DICOMweb plugin: URL and DICOM port; skips where it is not installed."""
    program, plugin = shutil.which("Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if program is None or not plugin.exists() or shutil.which("storescu") is None:
        pytest.skip("Orthanc, its DICOMweb plugin or dcmtk's storescu are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dicom_port = probe.getsockname()[1]
    settings = {
        **{"StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"), "Plugins": [str(plugin)]},
        **{"HttpPort": free_port, "DicomPort": dicom_port, "DicomCheckCalledAet": False, "HttpsVerifyPeers": False},
        **{"RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True},
        **{"DicomWeb": {"Enable": True}},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{free_port}"
    try:
        wait_for(lambda: process.poll() is not None or _answers(url))
        yield url, dicom_port
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/system").status_code == 200
    except httpx.TransportError:
        return False


def test_what_an_archive_lists_no_more_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lists is taken once, however often it is looked at; a mark it no longer needs goes after a day."""
    archive, taken = Archive("http://archive.invalid"), []
    listed = [("1", "2", "3"), ("1", "2", "4")]
    (path,) = radiographs(tmp_path / "given")[:1]

    def retrieve(*instance: str) -> Any:
        taken.append(instance)
        return dcmread(path)

    monkeypatch.setattr(archive, "_radiographs", lambda: iter(listed))
    monkeypatch.setattr(archive._client, "retrieve_instance", retrieve)

    def look() -> set[str]:
        archive._next = 0.0
        archive.look(tmp_path / "in", tmp_path / "seen")
        return {mark.name for mark in (tmp_path / "seen").iterdir()}

    archive.look(tmp_path / "in", tmp_path / "seen", lambda: False)
    assert not taken
    marks = look()
    assert len(marks) == 2 and look() == marks and taken == listed
    gone = listed.pop()
    assert look() == marks, "an archive may be slow to list what it has"
    for mark in (tmp_path / "seen").iterdir():
        os.utime(mark, (0, 0))
    assert look() == {short_hash("3")} and taken == [*listed, gone]


def test_one_bad_object_holds_no_other_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the archive does not give, or what has no study, is passed over and asked for again; without an archive the
    look ends.
    """
    archive, asked = Archive("http://archive.invalid"), []
    (path,) = radiographs(tmp_path / "given")[:1]
    nameless = dcmread(path)
    del nameless.StudyInstanceUID
    answers = {"1": requests.HTTPError("404"), "2": nameless, "3": dcmread(path), "4": requests.ConnectionError()}

    def retrieve(study: str, series: str, instance: str) -> Any:
        asked.append(instance)
        if isinstance(answers[instance], Exception):
            raise answers[instance]
        return answers[instance]

    monkeypatch.setattr(archive, "_radiographs", lambda: (("8", "9", one) for one in ("1", "2", "3", "4", "1")))
    monkeypatch.setattr(archive._client, "retrieve_instance", retrieve)
    for times in (1, 2):
        archive._next = 0.0
        archive.look(tmp_path / "in", tmp_path / "seen")
        assert asked == ["1", "2", "3", "4", "1", "2", "4"][: 4 * times]
        assert [mark.name for mark in (tmp_path / "seen").iterdir()] == [short_hash("3")]
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 1


def test_orthanc_gets_a_ct_series_for_a_pair(tmp_path: Path, orthanc: tuple[str, int]) -> None:
    """DX pair by storescu, CT series by STOW-RS into the same study, and by WADO-RS it comes back as it was."""
    url, dicom_port = orthanc
    paths = radiographs(tmp_path / "given")
    command = ["storescu", "-aec", "ORTHANC", "127.0.0.1", str(dicom_port), *map(str, paths)]
    subprocess.run(command, check=True)
    archive = Archive(f"{url}/dicom-web")
    delivery = Delivery(tmp_path / "in", tmp_path / "out", archive)

    def each() -> None:
        archive.look(tmp_path / "in", tmp_path / "seen")
        delivery.look()

    arguments = ("--dicom-output", "work/dicom", "--keep-identity")
    with watching(tmp_path, "load_series", each, arguments=arguments):
        wait_for(lambda: list((tmp_path / "out").glob("*/sent.txt")))
    modalities = sorted(
        httpx.get(f"{url}/series/{one}").json()["MainDicomTags"]["Modality"]
        for one in httpx.get(f"{url}/series").json()
    )
    assert modalities == ["CT", "DX", "DX"] and len(httpx.get(f"{url}/studies").json()) == 1
    sent = [dcmread(path) for path in sorted((tmp_path / "out").glob("*/dicom/*.dcm"))]
    for one in sent:
        identity = (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        assert archive._client.retrieve_instance(*identity) == one
    assert len(sent) == 8
