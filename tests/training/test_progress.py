# SPDX-License-Identifier: Apache-2.0
"""Laws of the small helpers' trainings: interrupted anywhere and begun again they end at the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from progressive_cascade.errors import RunError
from progressive_cascade.networks.uncertainty import NUM_INPUTS, UncertaintyHead
from progressive_cascade.training import orientation, perceptual, uncertainty
from progressive_cascade.training.progress import Progress

Training = Callable[[Path | None], tuple[nn.Module, Progress]]


def _orientation(checkpoint: Path | None) -> tuple[nn.Module, Progress]:
    images = torch.rand(3, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    return orientation.train_orientation(images, torch.tensor([0, 1, 1]), steps=5, batch_size=2, checkpoint=checkpoint)


def _perceptual(checkpoint: Path | None) -> tuple[nn.Module, Progress]:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    classes = torch.from_numpy(random.integers(0, 3, (20, 20, 20), dtype=np.uint8))
    cases = {"ct": [perceptual.Case((1000 * classes.short() - 1000), classes)]}
    model = perceptual.TissueNamer({"ct": 3})
    return model, perceptual.train(model, cases, steps=5, batch=2, size=16, seed=0, checkpoint=checkpoint)


def _uncertainty(checkpoint: Path | None) -> tuple[nn.Module, Progress]:
    torch.manual_seed(0)
    shape = (32, 32, 32)
    cases = [
        {"inputs": torch.rand(NUM_INPUTS, *shape), "rms": 50 + torch.rand(1, *shape), "weight": torch.ones(1, *shape)}
        for _ in range(3)
    ]
    head = UncertaintyHead()
    return head, uncertainty.train(head, cases, steps=5, batch=2, seed=0, checkpoint=checkpoint)


@pytest.mark.parametrize("training", [_orientation, _perceptual, _uncertainty], ids=lambda each: each.__name__)
def test_an_interrupted_training_ends_like_one_that_was_not(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after two of five steps and begun again: bit for bit the same weights, and no file is left at the end."""
    for module, name in ((orientation, "_REPORT"), (perceptual, "_KEEP_EVERY"), (uncertainty, "_KEEP_EVERY")):
        monkeypatch.setattr(module, name, 1)
    path, keep = tmp_path / "state.pt", Progress.keep
    whole, _ = training(None)

    def keep_and_end(progress: Progress, step: int) -> None:
        keep(progress, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "keep", keep_and_end)
    with pytest.raises(KeyboardInterrupt):
        training(path)
    began: list[int] = []
    monkeypatch.setattr(Progress, "keep", lambda progress, step: began.append(step) or keep(progress, step))
    again, progress = training(path)
    assert began == [3, 4, 5], "it goes on after the second step"
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    progress.end()
    assert not path.exists()


def _parts() -> tuple[dict[str, nn.Module], Tensor]:
    module = nn.Linear(2, 2)
    return {"module": module}, module.weight


def test_other_settings_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was made with other settings is no state to go on from, and it is said."""
    parts, _ = _parts()
    Progress(tmp_path / "state.pt", parts, {"steps": 5}).keep(3)
    assert Progress(tmp_path / "state.pt", parts, {"steps": 5}).resume() == 3
    other, weight = _parts()
    before = weight.detach().clone()
    assert Progress(tmp_path / "state.pt", other, {"steps": 6}).resume() == 0
    assert torch.equal(weight, before)
    assert capsys.readouterr().out == "state.pt is of other settings: begun anew\n"


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    """One line that names the file."""
    parts, _ = _parts()
    path = tmp_path / "state.pt"
    Progress(path, parts, {}).keep(1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"state\.pt is damaged"):
        Progress(path, parts, {}).resume()
