# SPDX-License-Identifier: Apache-2.0
"""Laws of what refining keeps: found again to the bit, and only where everything it depends on is the same."""

from __future__ import annotations

import pytest
import torch

from progressive_cascade.inference import refine_cache as cache_module
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.refine import Refinement, RefineSettings, refine
from progressive_cascade.inference.refine_cache import refine_cached


@pytest.fixture
def network(small_cascade):
    """A miniature cascade of two stages."""
    network = small_cascade(stage=2, consistency_iterations=(0, 0)).eval()
    torch.nn.init.normal_(network.stages[0].unet.out.weight, std=0.02)
    return network


@pytest.fixture
def image():
    """Line integrals of two patients of sorts (2, view, 128, 128)."""
    across = 1 - torch.linspace(-1, 1, 128).square()
    return torch.stack((across, across**2))[:, None, None] * across[:, None] * torch.tensor([3.0, 4.0])[:, None, None]


@pytest.fixture
def counted(monkeypatch):
    """How many pairs were truly refined."""
    seen = []

    def count(network, image, *args, **named):
        seen.extend([1] * len(image))
        return refine(network, image, *args, **named)

    monkeypatch.setattr(cache_module, "refine", count)
    return seen


def _find(network, image, folder, steps: int = 1, known: str = "scaled", mask=None) -> Refinement:
    settings, matrices = RefineSettings(steps=steps), network.projection_matrices[None]
    return refine_cached(network, image, matrices, known=known, settings=settings, mask=mask, folder=folder)


def test_what_was_found_is_found_again(network, image, tmp_path, counted):
    """The second time nothing is refined, and volumes, radiographs, matrices and reports are the first time's."""
    first = _find(network, image, tmp_path / "new")
    second = _find(network, image.flip(0), tmp_path / "new")
    assert len(counted) == 2 and len(list((tmp_path / "new").glob("*.pt"))) == 2
    for name in ("volume", "image", "matrices"):
        assert torch.equal(getattr(first, name), getattr(second, name).flip(0))
    assert first.reports == second.reports[::-1]


def test_whatever_changes_the_result_is_refined_anew(network, image, tmp_path, counted):
    """Other radiographs, knowledge, steps, masks and weights of stage 1; not other weights of stage 2."""
    image = image[:1]
    mask = torch.ones_like(image)
    mask[..., :32] = 0
    _find(network, image, tmp_path)
    for changes in ({"image": image * 1.01}, {"known": "display"}, {"steps": 2}, {"mask": mask}):
        _find(network, **{"image": image, "folder": tmp_path, **changes})
    assert len(counted) == 5
    with torch.no_grad():
        network.stages[1].unet.out.weight.add_(0.1)
        _find(network, image, tmp_path)
        assert len(counted) == 5
        network.stages[0].unet.out.weight.add_(0.1)
        _find(network, image, tmp_path)
    assert len(counted) == 6


def test_a_torn_file_is_made_anew(network, image, tmp_path, counted):
    """A file that ends early is warned of and replaced."""
    first = _find(network, image[:1], tmp_path)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(_find(network, image[:1], tmp_path).volume, first.volume)
    assert torch.equal(_find(network, image[:1], tmp_path).volume, first.volume) and len(counted) == 2


def test_a_folder_that_cannot_be_written_stops_nothing(network, image, tmp_path):
    """The volume comes all the same, with a warning."""
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        found = _find(network, image[:1], tmp_path / "file" / "folder")
    assert torch.equal(found.volume, _find(network, image[:1], None).volume)


def test_a_stage_trains_behind_what_was_kept(network, image, tmp_path, counted):
    """In training the second step of the same samples refines nothing, and its prediction is the first one's."""
    network.train()
    inferer = CascadeInferer(None, refine_steps=1, intensities="scaled", refine_cache=tmp_path)
    first, second = (inferer(image, network, calibrated=torch.ones(2)) for _ in range(2))
    assert torch.equal(first, second) and len(counted) == 2
    second.sum().backward()
    assert network.stages[1].unet.out.weight.grad is not None
