# SPDX-License-Identifier: Apache-2.0
"""Files that were made to do harm, or were harmed: refused in one line before memory or patience is spent on them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from progressive_cascade import load_geometry
from progressive_cascade.cli.xrays import read_exposure
from progressive_cascade.ct.datalist import read_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_json, read_nifti, read_state

DEEP = "[" * 100_000 + "]" * 100_000
TOO_DEEP = "[" * 65 + "]" * 65
HUGE_NUMBER = '{"source_to_detector": 1' + "0" * 400 + "}"


@pytest.mark.parametrize("text", [DEEP, TOO_DEEP, HUGE_NUMBER, '{"a": 1e999}', '{"a": 9223372036854775808}'])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.json", read_json),
        ("geometry.json", load_geometry),
        ("exposure.json", read_exposure),
        ("datalist.json", lambda path: read_datalist(path.parent)),
    ],
)
def test_json_has_limits(tmp_path: Path, text: str, name: str, read) -> None:
    """However deep or large a number, every reader of JSON says it in one line with the file's name."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_json_takes_what_is_within_limits(tmp_path: Path) -> None:
    """The largest numbers, the deepest nesting, and a byte order mark."""
    value = {"a": [2**63 - 1, -(2**63), 1.5e308, "ü"]}
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(value), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "a.json").write_text("[" * 64 + "]" * 64)
    assert read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"detector_shape": [100_000, 100_000]}, "detector_shape and views must make at most"),
        ({"source_to_detector": 1e300}, "lengths must lie between"),
        ({"pixel_spacing": [1e-9, 1e-9]}, "lengths must lie between"),
        ({"views": [1]}, "geometry.json"),
        ({"isocenter": ["a", 0, 0]}, "isocenter must be 3 number"),
    ],
)
def test_geometry_asks_for_an_apparatus(tmp_path: Path, change: dict, words: str) -> None:
    """No detector that fills the memory, no distance beyond any hall."""
    values = {"source_to_isocenter": 1500, "source_to_detector": 1800, **change}
    (tmp_path / "geometry.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        load_geometry(tmp_path / "geometry.json")


@pytest.mark.parametrize(
    ("datalist", "words"),
    [
        ([], "must map section names to lists, got list"),
        ({"test": {"label": "a"}}, "test must be a list of cases, got dict"),
        ({"test": None}, "test must be a list of cases, got NoneType"),
        ({"training": ["a"]}, "case 0 of training must be an object, got str"),
        ({"training": [{}, {"label": 3}]}, "case 1 of training must have a text as 'label', got 3"),
        ({"training": [{"patient": ["a"]}]}, "must have a text as 'patient'"),
    ],
)
def test_datalist_of_wrong_types_is_named(tmp_path: Path, datalist: object, words: str) -> None:
    """The place in the list, what it must be, and what stands there."""
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(UserError, match=words):
        read_datalist(tmp_path)


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """Wherever it is flipped among the tensors; torch itself takes most of them."""
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    assert read_state(path)["weight"][7] == 7
    whole = path.read_bytes()
    start = whole.index(np.arange(1000, dtype=np.float32).tobytes())
    for place in np.random.default_rng(0).integers(start, start + 4000, 20):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="must be as it was written"):
            read_state(path)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.99])
def test_half_a_checkpoint_is_refused(tmp_path: Path, where: float) -> None:
    """An archive that was cut off."""
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(len(content) * where)])
    with pytest.raises(UserError, match=r"a\.pt"):
        read_state(tmp_path / "a.pt")


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    """A pickle that writes a file when it is read is refused, and the file is not there."""

    class Payload:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "written"), "w"))

    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": Payload()}))
    torch.save({"weight": Payload()}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match=name):
            read_state(tmp_path / name)
    assert not (tmp_path / "written").exists()


def test_a_packed_checkpoint_is_no_bomb(tmp_path: Path) -> None:
    """An archive whose entries are a thousand times its size is refused unread."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(10 << 20))
    with pytest.raises(UserError, match="must hold its tensors as they are"):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(("suffix", "size"), [(".nii", 9000), (".nii", 512), (".nii.gz", 800)])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path, suffix: str, size: int) -> None:
    """A small file with a large shape is refused by its header: the promise is named, no voxel is read."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    stream = io.BytesIO(image.to_bytes())
    header = bytearray(stream.getvalue())
    header[40:56] = np.array([3, size, size, size, 1, 1, 1, 1], "<i2").tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(bytes(header)) if suffix == ".nii.gz" else bytes(header))
    with pytest.raises(UserError, match=r"must (hold the \d+ bytes|have at most \d+ voxels)"):
        read_nifti(path)
