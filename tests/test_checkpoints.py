# SPDX-License-Identifier: Apache-2.0
"""Laws of checkpoints: what is kept, how a run resumes, how stages chain."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from progressive_cascade import ConeBeam
from progressive_cascade.checkpoints import HalfPrecisionState, ResumableCheckpoint, load_predecessor
from progressive_cascade.errors import UserError


def test_checkpoints_are_half_but_keep_the_geometry(small_cascade):
    """Parameters in float16, projection matrices untouched."""
    network = small_cascade(stage=1)
    state = HalfPrecisionState(network).state_dict()
    assert state["coarse.embed.weight"].dtype == torch.float16
    assert torch.equal(state["projection_matrices"], network.projection_matrices)


def test_a_stage_starts_from_its_predecessor(small_cascade, tmp_path):
    """Encoder and stage 1 are filled, the new stage stays fresh."""
    earlier = small_cascade(stage=1)
    torch.save(HalfPrecisionState(earlier).state_dict(), tmp_path / "stage1_best.pt")
    network = small_cascade(stage=2)
    torch.nn.init.zeros_(network.coarse.embed.weight)
    load_predecessor(network, tmp_path / "stage1_best.pt")
    torch.testing.assert_close(network.coarse.embed.weight, earlier.coarse.embed.weight, atol=1e-3, rtol=0)


def test_a_missing_or_wrong_predecessor_is_one_clear_error(small_cascade, tmp_path):
    """Missing file, no checkpoint, another architecture, another stage, another geometry."""
    network = small_cascade(stage=2)
    path = tmp_path / "stage1_best.pt"
    with pytest.raises(UserError, match="train stage 1 first"):
        load_predecessor(network, path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="must be a torch state dict"):
        load_predecessor(network, path)
    torch.save(small_cascade(stage=1, voxel_dim=16).state_dict(), path)
    with pytest.raises(UserError, match="must hold stage 1 of this architecture"):
        load_predecessor(network, path)
    torch.save(small_cascade(stage=3).state_dict(), path)
    with pytest.raises(UserError, match="must hold stage 1 of this architecture"):
        load_predecessor(network, path)
    other = ConeBeam(1000, 1800, (128, 128), (3.36, 3.36))
    torch.save(small_cascade(stage=1, geometry=other).state_dict(), path)
    with pytest.raises(UserError, match="must have the geometry of the config"):
        load_predecessor(network, path)


def test_a_run_resumes_where_it_stopped(tmp_path):
    """Parameters, optimizer and epoch come back; a missing file is told."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    objects = {"network": layer, "optimizer": optimizer}

    def step(engine, batch):
        optimizer.zero_grad()
        layer(batch).sum().backward()
        optimizer.step()

    engine = Engine(step)
    ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
    engine.run([torch.ones(1, 2)] * 3, max_epochs=2)
    kept = layer.weight.detach().clone()
    torch.nn.init.zeros_(layer.weight)
    again = Engine(lambda *_: None)
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(again)
    again.run([torch.ones(1, 2)] * 3, max_epochs=3)
    assert torch.equal(layer.weight, kept) and again.state.epoch == 3
    with pytest.raises(UserError, match="resume must find"):
        ResumableCheckpoint(tmp_path / "none.pt", objects, resume=True).load(again)
