# SPDX-License-Identifier: Apache-2.0
"""Laws of frames: a cube laid elsewhere shows the same patient there, and comes back to where it stood."""

from __future__ import annotations

import pytest
import torch

from progressive_cascade import ConeBeam
from progressive_cascade.inference.frames import FRAMES, average_frames, deviate_frames, in_frame
from progressive_cascade.inference.refine import RefineSettings


def test_a_voxel_of_a_moved_cube_projects_where_the_same_place_did():
    """Voxel (i, j, k) of a cube laid by (1, -1, 0) is voxel (i + 1, j - 1, k) of the cube as it stood."""
    matrices = torch.from_numpy(ConeBeam().projection_matrices()).float()
    moved = in_frame(matrices, (1, -1, 0), 5.6)
    place = torch.tensor([20.0, 30.0, -40.0, 1.0])
    there = place - torch.tensor([5.6, -5.6, 0.0, 0.0])
    torch.testing.assert_close(moved @ there, matrices @ place)
    torch.testing.assert_close(in_frame(matrices, (0, 0, 0), 5.6), matrices)


def test_volumes_of_one_patient_average_to_him():
    """Cut out of a larger volume at each frame, the mean is the middle cube, its edges included."""
    patient = torch.rand(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    cut = [patient[:, :, 1 + x : 9 + x, 1 + y : 9 + y, 1 + z : 9 + z] for x, y, z in FRAMES]
    torch.testing.assert_close(average_frames(cut, FRAMES), patient[:, :, 1:9, 1:9, 1:9])


def test_a_voxel_is_the_mean_of_the_volumes_that_hold_it():
    """The cube laid by one to +x does not hold the first slice."""
    volumes = [torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)]
    found = average_frames(volumes, [(0, 0, 0), (1, 0, 0)])[0, 0, :, 0, 0]
    assert found.tolist() == [0.0, 0.5, 0.5, 0.5]
    assert average_frames(volumes[1:], [(1, 0, 0)])[0, 0, :, 0, 0].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_the_spread_is_that_of_the_body():
    """Two volumes 0.2 apart deviate by 0.1 where their mean is dense, and what lies in air does not count."""
    one = torch.full((1, 1, 4, 4, 4), 0.5)
    one[..., :2] = 0.0
    other = one + 0.2
    assert deviate_frames([one, other], [(0, 0, 0)] * 2, above=0.25) == pytest.approx(0.1, abs=1e-6)
    assert deviate_frames([one], [(0, 0, 0)], above=0.25) == 0.0
    assert deviate_frames([one, other], [(0, 0, 0)] * 2, above=0.9) == 0.0


def test_frames_lie_across_the_body_about_the_cube_as_it_stands():
    """Their mean place is the cube's, and none is laid higher or lower."""
    assert FRAMES[0] == (0, 0, 0) and len(set(FRAMES)) == len(FRAMES)
    assert [sum(axis) for axis in zip(*FRAMES, strict=True)] == [0, 0, 0]
    assert {frame[2] for frame in FRAMES} == {0}


@pytest.mark.parametrize("frames", [(), ((1, 0, 0),)])
def test_frames_begin_with_the_cube_as_it_stands(frames):
    """The unrefined volume is that of the first one."""
    with pytest.raises(ValueError, match="frames must begin with"):
        RefineSettings(frames=frames)
