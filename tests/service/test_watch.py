# SPDX-License-Identifier: Apache-2.0
"""Laws of the watched folder: what has settled is done once, nothing is deleted, an interruption costs nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from progressive_cascade.errors import RunError
from progressive_cascade.service import WorkerProcess
from progressive_cascade.service.watch import Watch, WatchSettings
from tests.support.commands import fails_with
from tests.support.service import DEADLY, SLOW, WRONG, picture, wait_for, watching


def _put(folder: Path, name: str, level: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view, content in (("pa", picture(level)), ("lat", picture())):
        (folder / f"{name}_{view}.png").write_bytes(content)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_pairs_are_done_or_failed_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A good pair, one that is wrong, one that kills its workers, a view alone, and a file that is no radiograph."""
    caplog.set_level("INFO")
    source = tmp_path / "in"
    for name, level in (("Doe", 100), ("Wrong", WRONG), ("Deadly", DEADLY)):
        _put(source, name, level)
    (source / "Doe_pa.json").write_text("{}")
    (source / "Alone_pa.png").write_bytes(picture())
    (source / "notes.txt").write_text("-")
    with watching(tmp_path, wait_seconds=0.5):
        wait_for(lambda: _names(source) >= {"done/Doe/Doe_pa.png", "failed/Alone/Alone_pa.png"})
        wait_for(lambda: _names(source) >= {"failed/Deadly/Deadly_pa.png", "failed/Wrong/Wrong_lat.png"})
    assert _names(source) == {
        *("notes.txt", "done/Doe/Doe_pa.png", "done/Doe/Doe_lat.png", "done/Doe/Doe_pa.json"),
        *(f"failed/{name}/{name}_{view}.png" for name in ("Wrong", "Deadly") for view in ("pa", "lat")),
        *("failed/Alone/Alone_pa.png", *(f"failed/{name}/reason.txt" for name in ("Wrong", "Deadly", "Alone"))),
    }
    assert "must show a patient" in (source / "failed" / "Wrong" / "reason.txt").read_text()
    assert (tmp_path / "out" / "Doe" / "ct.nii.gz").is_file()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"Doe"}
    assert "Doe" not in caplog.text and "done" in caplog.text


def test_what_takes_long_beside_the_looks_holds_no_pair_up(tmp_path: Path) -> None:
    """While a series is sent for minutes pairs are taken; it is not begun twice."""
    sends, is_over = [], threading.Event()

    def send() -> None:
        sends.append(1)
        is_over.wait(60)

    source = tmp_path / "in"
    with watching(tmp_path, each=send):
        wait_for(lambda: len(sends) == 1)
        _put(source, "later")
        wait_for(lambda: "done/later/later_pa.png" in _names(source))
        assert len(sends) == 1
        is_over.set()
        wait_for(lambda: len(sends) > 1)


def test_what_is_raised_beside_the_looks_ends_the_watch(tmp_path: Path) -> None:
    """At once: the pair under way stays in the input, and its worker is gone; also what is raised at the very end."""
    source, target = tmp_path / "in", tmp_path / "out"
    _put(source, "a", SLOW)
    settings = WatchSettings(source=source, target=target, settle_seconds=0.1, poll_seconds=0.05)
    worker = WorkerProcess("tests.support.service:load", {"log": str(tmp_path / "ran.txt")})
    watch = Watch(settings, [worker])

    def breaks() -> None:
        if any(target.glob(".work-*/input/lateral.png")):
            raise RunError("it broke")

    with pytest.raises(RunError, match="it broke"):
        watch.run(breaks)
    assert not worker.is_ready and {"a_pa.png", "a_lat.png"} == _names(source) and not list(target.iterdir())
    ending = Watch(settings, [worker])

    def breaks_late() -> None:
        ending.is_stopping.set()
        time.sleep(0.2)
        raise RunError("it broke late")

    with pytest.raises(RunError, match="late"):
        ending.run(breaks_late)


def test_a_pair_that_was_moved_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """The folder was looked into while the pair was seen to: what was found is not failed a second time."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "Alone_pa.png").write_bytes(picture())
    watch = Watch(WatchSettings(source=source, target=tmp_path / "out", settle_seconds=0, wait_seconds=0), [])
    (pair,) = watch.settled()
    for _ in range(2):
        watch._see_to(pair)
    assert [folder.name for folder in (source / "failed").iterdir()] == ["Alone"]


def test_a_pair_is_done_once_whatever_interrupts(tmp_path: Path) -> None:
    """Stopped at work it is begun again; stopped between result and move it is only moved; a new pair of the same name
    stands beside the old one.
    """
    source = tmp_path / "in"
    _put(source, "a", SLOW)
    with watching(tmp_path):
        wait_for(lambda: any((tmp_path / "out").glob(".work-*/input/lateral.png")))
    assert not (source / "done").exists() and not list((tmp_path / "out").iterdir())
    _put(source, "a")
    for times in (1, 1, 2):
        with watching(tmp_path):
            wait_for(lambda: not list(source.glob("*.png")))
        assert len((tmp_path / "ran.txt").read_text().split()) == times
        _put(source, "a", 100 if times == 1 and not (source / "done" / "a-2").exists() else 101)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "a-2"}
    assert {path.name for path in (source / "done").iterdir()} == {"a", "a-2", "a-3"}


def test_a_file_that_grows_is_left_alone(tmp_path: Path) -> None:
    """Until it has not changed for a while."""
    _put(tmp_path / "in", "a")
    path, content = tmp_path / "in" / "a_pa.png", picture()
    with watching(tmp_path, settle_seconds=0.4) as watch:
        for length in range(1, len(content), 1 + len(content) // 10):
            path.write_bytes(content[:length])
            watch.is_stopping.wait(0.1)
            assert path.exists()
        path.write_bytes(content)
        wait_for(lambda: (tmp_path / "out" / "a").exists())


def test_a_study_that_is_no_pair_fails_as_a_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two frontals beside a lateral, and films whose view nothing tells: every file moves, and the log names the case,
    which is a hash.
    """
    import numpy as np

    from tests.support.radiographs import save_dx

    caplog.set_level("INFO")
    source = tmp_path / "in"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4095, (64, 64))
    for number, view in enumerate(("PA", "PA", "LL")):
        save_dx(pixels, source / f"{number}.dcm", StudyInstanceUID="1.2.3", ViewPosition=view)
    for number in (3, 4):
        save_dx(pixels, source / f"{number}.dcm", StudyInstanceUID="1.2.4", ViewPosition="", PatientOrientation="")
    with watching(tmp_path, wait_seconds=0.3):
        wait_for(lambda: not list(source.glob("*.dcm")))
    failed = {folder.name: _names(folder) for folder in (source / "failed").iterdir()}
    whole = [{"reason.txt", *names} for names in (("0.dcm", "1.dcm", "2.dcm"), ("3.dcm", "4.dcm"))]
    assert sorted(failed.values(), key=len, reverse=True) == whole
    reasons = [path.read_text() for path in (source / "failed").glob("*/reason.txt")]
    assert sorted("must say its view" in reason for reason in reasons) == [False, True]
    assert all(f"pair {case}: refused" in caplog.text for case in failed)


# What a watch sets for each pair, or is an option of its own, and what does not go with it.
AFTER = {
    "--outp x.nii.gz": "--output must not stand after --",
    "--output work/ct.nii.gz": "--output must not",
    **{
        f"--{name} x": f"--{name} must not"
        for name in ("pa", "lateral", "input", "pairs", "key", "report", "checkpoint")
    },
    **{f"--{name} x": f"--{name} must not" for name in ("uncertainty", "dicom-output", "device")},
    **{
        f"--{name}": f"--{name} must not" for name in ("overwrite", "resume", "keep-names", "debug", "allow-unverified")
    },
    "--no-resume": "--resume must not",
    "--keep-identity": "--keep-identity must come with --dicom or --format dicom",
    "--multiframe": "--multiframe must come with --dicom or --format dicom",
    "--refine -3": "--refine",
    "--spectrum 4": "--spectrum",
    "--geometry no.json": "no.json",
    "--preset c_arm --geometry no.json": "--preset must come without --geometry",
    "more": "unrecognized arguments: more",
}


def test_a_watch_refuses_what_must_not_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of `reconstruct` that contradict the watch, each in one line before it begins."""
    (tmp_path / "in").mkdir()
    both = ("watch", tmp_path / "in", tmp_path / "out")
    for given, words in AFTER.items():
        assert words in fails_with(capsys, *both, "--", *given.split())
    assert "without --format dicom" in fails_with(capsys, *both, "--dicom", "--", "--format", "dicom")
    assert not (tmp_path / "out").exists()


def test_commands_refuse_what_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before they begin."""
    (tmp_path / "in").mkdir()
    assert "outside of IN" in fails_with(capsys, "watch", tmp_path / "in", tmp_path / "in" / "out")
    assert "IN must be" in fails_with(capsys, "watch", tmp_path / "no", tmp_path / "out")
    spool = ("listen", "--spool", tmp_path / "spool")
    assert "--port or --dicomweb" in fails_with(capsys, *spool)
    assert "--send" in fails_with(capsys, *spool, "--port", 11112)
    assert "AET@HOST:PORT" in fails_with(capsys, *spool, "--port", 11112, "--send", "PACS")
    assert "--caller" in fails_with(capsys, *spool, "--port", 11112, "--send", "PACS@h:104", "--host", "0.0.0.0")
