# SPDX-License-Identifier: Apache-2.0
"""Weights are those that were released, or their user says that they are his own; none of them runs code."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.inference.trust import load_trust
from progressive_cascade.inference.uncertainty import load_uncertainty
from progressive_cascade.io import released as weights
from progressive_cascade.io.released import check_released, file_hash, released_hashes, write_manifest
from progressive_cascade.losses.perceptual import VGGPerceptualLoss
from progressive_cascade.paths import bundle_root, check_shipped, record_trained

ROOT = Path(__file__).resolve().parents[2]
LOADERS = {
    "model.pt": lambda path: load_cascade(path),
    "trust.json": lambda path: load_trust(path),
    "uncertainty.pt": lambda path: load_uncertainty(path),
}


def test_the_list_of_released_weights_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file in the bundle's models as it is, and no other; the command writes the same."""
    models = bundle_root() / "models"
    files = {path.name: file_hash(path) for path in (*models.glob("*.pt"), models / "trust.json")}
    assert released_hashes() == files, "run python -m progressive_cascade.io.released bundle/models"
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "weights.sha256")
    write_manifest(bundle_root() / "models")
    assert released_hashes() == files


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_a_flipped_bit_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shipped weights lie, a file that differs in one bit is named with both hashes; untouched it is read."""
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / name
    shutil.copy(bundle_root() / "models" / name, path)
    monkeypatch.setattr("progressive_cascade.paths.bundle_root", lambda: tmp_path)
    LOADERS[name](path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} must be as released") as told:
        LOADERS[name](path)
    assert released_hashes()[name] in str(told.value) and file_hash(path) in str(told.value)


def test_weights_trained_in_the_bundle_are_taken_as_they_were_written(tmp_path, monkeypatch) -> None:
    """MONAI's own command trains into the bundle's models, where the next stage and inference read; damage is not."""
    (tmp_path / "models").mkdir()
    monkeypatch.setattr("progressive_cascade.paths.bundle_root", lambda: tmp_path)
    path, other = tmp_path / "models" / "stage1_best.pt", tmp_path / "models" / "stage2_best.pt"
    for file, content in ((path, b"first"), (path, b"trained"), (other, b"next")):
        file.write_bytes(content)
        with pytest.raises(UserError, match="must be as released"):
            check_shipped(file)
        record_trained(file)
        check_shipped(file)
    path.write_bytes(b"first")
    with pytest.raises(UserError, match="must be as released"):
        check_shipped(path)
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(b"mine")
    record_trained(elsewhere)
    assert sorted(file.name for file in tmp_path.rglob("*.sha256")) == ["own.sha256"]


def test_every_shipped_file_is_checked_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list of other hashes nothing that the package ships is read."""
    from progressive_cascade.radiograph.orientation import load_orientation_net

    monkeypatch.setattr(weights, "released_hashes", lambda: {"model.pt": "0" * 64})
    load_orientation_net.cache_clear()
    for read in (
        load_cascade,
        load_trust,
        load_uncertainty,
        load_orientation_net,
        lambda: VGGPerceptualLoss(weights="ct"),
    ):
        with pytest.raises(UserError, match="must be as released"):
            read()


def test_weights_of_ones_own_are_taken_when_that_is_said(tmp_path: Path) -> None:
    """A released file passes under any name; another one is refused, and taken with allow_unverified."""
    own = tmp_path / "mine.pt"
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="--allow-unverified"):
        check_released(own)
    check_released(own, allow_unverified=True)
    check_released(shutil.copy(bundle_root() / "models" / "orientation.pt", tmp_path / "other name.pt"))


@pytest.mark.parametrize("text", ["", "no hash  model.pt\n", "0" * 64 + "  ../model.pt\n"])
def test_a_damaged_list_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list would let everything pass."""
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "weights.sha256")
    weights.MANIFEST.write_text(text)
    with pytest.raises(UserError, match="install the package again"):
        released_hashes()


def test_no_file_of_weights_can_run_code() -> None:
    """Every torch.load of package, benchmarks and tools says weights_only=True; nothing else unpickles."""
    found = 0
    for path in (file for folder in ("scripts", "benchmarks", "tools") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = getattr(node.func.value, "id", ""), node.func.attr
            assert (owner, name) not in {("pickle", "load"), ("pickle", "loads"), ("joblib", "load")}, (
                f"{path}:{node.lineno}"
            )
            if (owner, name) == ("torch", "load"):
                said = [
                    k.value.value
                    for k in node.keywords
                    if k.arg == "weights_only" and isinstance(k.value, ast.Constant)
                ]
                assert said == [True], f"{path}:{node.lineno}"
                found += 1
            if name == "load" and owner == "np":
                assert all(k.arg != "allow_pickle" for k in node.keywords), f"{path}:{node.lineno}"
    assert found > 5
