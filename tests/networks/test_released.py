# SPDX-License-Identifier: Apache-2.0
"""Laws of checkpoints that exist: names stay, and a file written by an earlier version is read."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam
from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.io import released
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.training.checkpoints import HalfPrecisionState

# SHA-256 of every entry's name, shape and type, a line each, in the first weights that were released with today's
# architecture, read off the files stage1_best.pt and model.pt themselves.
RELEASED = {
    1: "85a82aac025157aa",
    3: "8d4e316d7dfac78b",
}
DATA = Path(__file__).resolve().parents[1] / "data"
BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


def earlier_radiographs() -> torch.Tensor:
    """The line integrals (1, 2, 64, 64) that the kept outputs were made of."""
    y, x = np.mgrid[0:64, 0:64] / 64 - 0.5
    views = [6 * np.exp(-((x / width) ** 4) - (y / 0.45) ** 4) for width in (0.35, 0.25)]
    return torch.tensor(np.stack(views), dtype=torch.float32)[None]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that an earlier revision wrote, and what its code made of them."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(DATA / "checkpoints_2a5651e.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_earlier_checkpoints_mean_what_they_meant(earlier: Path, stage: int) -> None:
    """A file of an earlier revision loads, and makes the same volume, to the rounding of what was kept."""
    network = load_cascade(earlier / f"stage{stage}_best.pt")
    with torch.no_grad():
        volume = network(earlier_radiographs())[0, 0, ::stage, ::stage, ::stage].numpy()
    kept = np.load(earlier / "outputs.npz")[f"stage{stage}"]
    assert network.stage == stage and kept.std() > 0.1
    np.testing.assert_allclose(volume, kept, atol=5e-4)


def test_weights_that_lost_their_meaning_are_refused(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes that still fit under other arithmetic, entries that are missing: one line, and what to do."""
    path = earlier / "stage2_best.pt"
    monkeypatch.setattr(released, "RETIRED", frozenset({released.file_hash(path)}))
    with pytest.raises(UserError, match=r"stage2_best.pt must be of today's architecture.*: take today's, or train"):
        load_cascade(path)
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "detector_size"}, tmp_path / "first.pt")
    with pytest.raises(UserError, match=r"first.pt must hold a ProgressiveCascade .* lacks detector_size: train again"):
        load_cascade(tmp_path / "first.pt")


@pytest.mark.parametrize("stage", RELEASED)
def test_released_entries_keep_their_names(stage: int) -> None:
    """Who renames a layer makes every checkpoint unreadable that somebody has trained."""
    state = dict(HalfPrecisionState(ProgressiveCascade(stage=stage)).state_dict())
    del state["range_values"]  # a later addition, filled in for files that lack it
    lines = "\n".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == RELEASED[stage]


def test_weights_of_an_earlier_architecture_are_read(small_cascade, tmp_path: Path) -> None:
    """The first release had one level more in stage 2 than in stage 3; channels are read off the file."""
    channels = ((4, 8, 16), (4, 8, 16, 16), (4, 8, 16))
    network = small_cascade(
        unet_channels=channels, cross_attention=False, lift_channels=0, consistency_iterations=(0, 0, 3)
    )
    # As that release's training wrote it: a plain dictionary, parameters in half precision.
    parameters = {name for name, _ in network.named_parameters()}
    state = network.state_dict()
    torch.save(
        {name: value.half() if name in parameters else value for name, value in state.items()}, tmp_path / "a.pt"
    )
    read = load_cascade(tmp_path / "a.pt")
    found = read.state_dict()
    assert all(torch.equal(found[name], state[name].half().float()) for name in parameters)
    assert set(found) == set(state)
    assert found["stages.1.unet.before.conv1.weight"].shape[0] == 16
