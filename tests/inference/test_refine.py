# SPDX-License-Identifier: Apache-2.0
"""Laws of refinement: it explains more, touches nothing, repeats itself, and knows when to stop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from progressive_cascade.consistency import apply_projector
from progressive_cascade.errors import UserError
from progressive_cascade.inference import evidence as evidence_module
from progressive_cascade.inference import refine as refine_module
from progressive_cascade.inference.calibration import ViewCalibration, fit_view
from progressive_cascade.inference.frames import FRAMES, average_frames, in_frame
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.inference.tuned import TunedWeights
from progressive_cascade.networks.stages import EXTENT


@pytest.fixture
def network(small_cascade):
    """A miniature cascade of three stages, its first one slightly trained on nothing in particular."""
    network = small_cascade(stage=3, consistency_iterations=(0, 0, 0)).eval()
    torch.nn.init.normal_(network.stages[0].unet.out.weight, std=0.02)
    return network


@pytest.fixture
def image(network):
    """The radiographs of a box of water in air (1, view, 128, 128)."""
    volume = torch.full((1, 1, 16, 16, 16), 0.01)
    volume[:, :, 4:12, 5:11, 3:13] = 0.5
    layer = network.stages[0].consistency
    return apply_projector(layer.to_mu(volume), network.projection_matrices[None], layer.affine[None], (128, 128))


def _refine(network, image, **changes):
    settings = RefineSettings(**{"steps": 5, "learning_rate": 1e-3, **changes})
    return refine(network, image, network.projection_matrices[None], settings=settings)


def test_refinement_explains_held_back_patches_better(network, image):
    """The patches kept out of the loss are explained better, not only the others."""
    report = _refine(network, image, steps=15).reports[0]
    assert report.kept > 0
    assert report.held_out_after < 0.8 * report.held_out_before
    assert report.residual_after < 0.8 * report.residual_before


def test_refinement_leaves_the_network_and_repeats_itself(network, image):
    """Weights stay as they are, without gradients, and the same input gives the same volume."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = _refine(network, image), _refine(network, image)
    assert torch.equal(first.volume, second.volume)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_refinement_of_a_batch_is_that_of_each_sample(network, image):
    """Samples share nothing, nor does inference mode change anything."""
    other = image.flip(-1) * 0.9
    alone = _refine(network, other)
    with torch.inference_mode():
        together = _refine(network, torch.cat((image, other)))
    torch.testing.assert_close(together.volume[1:], alone.volume)
    assert together.reports[1].held_out_after == pytest.approx(alone.reports[0].held_out_after, rel=1e-4)


def _round(network, image, calibrated=None):
    """The mean of stage 1's volumes over all frames, unrefined."""
    volumes = []
    for frame in FRAMES:
        matrices = in_frame(network.projection_matrices[None], frame, EXTENT / 16)
        start, context = network.prepare_stage(image, matrices, calibrated, number=1)
        volumes.append(network.stages[0](start, [0, 0, 0], context))
    return average_frames(volumes, FRAMES)


def test_where_no_step_is_needed_the_volume_is_the_mean_of_all_frames(network, image, monkeypatch):
    """It explains the radiographs better than stage 1's own, and is no other network's."""
    monkeypatch.setattr(evidence_module, "EXPECTED_RESIDUAL", 100.0)
    found = _refine(network, image)
    with torch.no_grad():
        torch.testing.assert_close(found.volume, _round(network, image))
    assert found.reports[0].steps == 0
    assert found.reports[0].held_out_after < found.reports[0].held_out_before
    assert found.reports[0].spread_hu > 0 and _refine(network, image, steps=0).reports[0].spread_hu == 0


def test_no_steps_give_the_networks_own_volume(network, image):
    """Zero steps: stage 1 as it is."""
    with torch.no_grad():
        start, context = network.prepare_stage(image, number=1)
        plain = network.stages[0](start, [0, 0, 0], context)
    torch.testing.assert_close(_refine(network, image, steps=0).volume, plain)


def test_a_rising_residual_keeps_the_unrefined_volume(network, image, monkeypatch):
    """Steps that lead uphill are noticed; the unrefined volume comes back with a warning."""
    monkeypatch.setattr(torch.optim, "Adam", partial(torch.optim.Adam, maximize=True))
    found = _refine(network, image, steps=30, learning_rate=0.1)
    assert found.reports[0].stopped == "rising"
    torch.testing.assert_close(found.volume, _refine(network, image, steps=0).volume)
    assert found.reports[0].kept == 0
    assert any("unrefined volume is kept" in line for line in found.reports[0].warnings)


def test_steps_that_are_too_long_are_taken_back(network, image):
    """A rate at which the loss comes to double still ends with more explained than before."""
    report = _refine(network, image, steps=12, learning_rate=0.013).reports[0]
    assert report.stopped != "rising" and report.kept > 0
    assert report.residual_after < report.residual_before


def test_refinement_stops_at_the_expected_residual(network, image, monkeypatch):
    """What noise and grid leave unexplained is no reason for another step."""
    monkeypatch.setattr(evidence_module, "EXPECTED_RESIDUAL", 100.0)
    report = _refine(network, image).reports[0]
    assert (report.steps, report.stopped) == (0, "discrepancy")


def test_steps_are_shorter_where_little_is_left_to_explain(network, image, monkeypatch):
    """A fifth above what is expected the first step goes a tenth of the way that it goes from far above."""
    before, way = _refine(network, image, steps=0).reports[0].residual_before, {}
    for excess in (1.2, 100.0):
        monkeypatch.setattr(evidence_module, "EXPECTED_RESIDUAL", before / excess**0.5)
        volumes, settings = [], RefineSettings(steps=1, frames=((0, 0, 0),))
        refine(
            network,
            image,
            network.projection_matrices[None],
            settings=settings,
            observe=lambda _, volume, seen=volumes: seen.append(volume),
        )
        way[excess] = float((volumes[1] - volumes[0]).square().mean().sqrt())
    assert way[1.2] / way[100.0] == pytest.approx(0.1, rel=0.1)


def test_only_named_parameters_are_tuned(network, image):
    """Prefixes choose; none that fits is an error."""
    with pytest.raises(ValueError, match="parameters must name"):
        _refine(network, image, parameters=("no such",))
    copies = TunedWeights(network.stages[0], ("unet.out",), 1e-3).values
    assert {name for name, copy in copies.items() if copy.requires_grad} == {"unet.out.weight", "unet.out.bias"}


@pytest.mark.parametrize("steps", [-1, 1001, 2.5, True])
def test_impossible_steps_are_refused_in_one_line(steps):
    """Outside 0 to 1000, or no whole number."""
    with pytest.raises(UserError, match="0 \\(off\\) to 1000"):
        RefineSettings(steps=steps)


def test_radiographs_without_a_body_are_refused(network, image):
    """There is nothing to refine on."""
    with pytest.raises(UserError, match="must show a patient"):
        _refine(network, torch.zeros(1, 2, 128, 128))
    blank = torch.cat((image[:, :1], torch.full((1, 1, 128, 128), 2.0)), dim=1)
    for known in ("scaled", "display"):
        with pytest.raises(UserError, match=f"view 1 has nothing but {known} values within 0.2 of 2"):
            refine(network, blank, network.projection_matrices[None], known=known)


def test_a_program_is_no_cascade_to_refine(network, image, caplog):
    """Exported programs have no weights to tune: refine refuses, the inferer warns and keeps the program's volume."""
    program = torch.jit.script(torch.nn.Identity())
    with pytest.raises(UserError, match="refine needs a cascade's weights, got RecursiveScriptModule"):
        refine(program, image, network.projection_matrices[None])  # pyright: ignore[reportArgumentType]
    assert CascadeInferer(None, refine_steps=2)(image, program) is image
    assert "no weights to refine" in caplog.text


def test_a_checkpoint_of_any_stage_is_refined_in_its_first(network, small_cascade, image):
    """A cascade of stage 1 alone, filled from one of three stages, refines to the same volume."""
    first = small_cascade(stage=1, consistency_iterations=(0,)).eval()
    state = {name: value for name, value in network.state_dict().items() if name in first.state_dict()}
    first.load_state_dict(state)
    torch.testing.assert_close(_refine(first, image, steps=2).volume, _refine(network, image, steps=2).volume)


def test_the_command_lines_default_is_the_packages():
    """`--refine` without a number is what Python does without one."""
    from progressive_cascade.cli.common import DEFAULT_REFINE_STEPS, MAX_REFINE_STEPS

    assert (RefineSettings().steps, refine_module.MAX_STEPS) == (DEFAULT_REFINE_STEPS, MAX_REFINE_STEPS)


def test_masked_pixels_do_not_count(network, image):
    """What lies under the mask changes neither the loss nor the residuals."""
    mask = torch.ones_like(image)
    mask[..., :32] = 0
    matrices, settings = network.projection_matrices[None], RefineSettings(steps=0)
    report = refine(network, image, matrices, settings=settings, mask=mask).reports[0]
    assert report.residual_before != _refine(network, image, steps=0).reports[0].residual_before


def test_the_inferer_hands_the_refined_volume_on(network, image):
    """The later stages start from it, as if it were given to them; zero steps change nothing."""
    with torch.no_grad():
        plain = CascadeInferer(None, consistency_rounds=0)(image, network)
        refined = CascadeInferer(None, consistency_rounds=0, refine_steps=3)(image, network)
        coarse = refine(network, image, network.projection_matrices[None], settings=RefineSettings(steps=3)).volume
        torch.testing.assert_close(refined, network(image, coarse=coarse))
    assert not torch.allclose(refined, plain)


def test_gain_and_offset_are_found_exactly():
    """Where a volume explains all but gain and offset, both come out; the prior counts for little."""
    pixels = torch.rand(64, 64, dtype=torch.float64) * 5
    view = ViewCalibration.start("scaled", pixels.numpy())
    fitted = fit_view(
        view,
        basis=view.basis(pixels),
        explained=1.25 * pixels - 0.1,
        weights=torch.full_like(pixels, 1e6),
        matrix=torch.eye(3, 4),
    )
    assert fitted.values == pytest.approx([1.25, -0.1], abs=1e-3)
    assert fitted.at_edge() == {}


def test_a_gain_beyond_its_range_is_reported():
    """It stops at the edge, and says so."""
    pixels = torch.rand(64, 64, dtype=torch.float64) * 5
    view = ViewCalibration.start("scaled", pixels.numpy())
    weights = torch.full_like(pixels, 1e6)
    fitted = fit_view(view, basis=view.basis(pixels), explained=3 * pixels, weights=weights, matrix=torch.eye(3, 4))
    assert "gain" in fitted.at_edge()


def test_a_tone_curve_is_found_and_stays_monotone():
    """Five knots follow a bent curve, and never fall."""
    pixels = torch.linspace(0, 6, 64 * 64, dtype=torch.float64).reshape(64, 64)
    view = ViewCalibration.start("display", pixels.numpy())
    bent = 6 * (pixels / 6) ** 1.3
    basis, weights = view.basis(pixels), torch.full_like(pixels, 1e6)
    fitted = fit_view(view, basis=basis, explained=bent, weights=weights, matrix=torch.eye(3, 4))
    torch.testing.assert_close(view.line_integrals(pixels), pixels)
    assert (fitted.line_integrals(pixels) - bent).abs().max() < 0.1
    assert (fitted.values[1:] > 0).all()


def test_a_shift_of_the_patient_is_found(network, image):
    """Radiographs of a patient who stood 3 mm aside: the finite differences lead there."""
    layer, matrix = network.stages[0].consistency, network.projection_matrices[0].double()
    volume = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, 6), (16, 16, 16), mode="trilinear")
    mu = layer.to_mu(volume)

    def project(one):
        return apply_projector(mu, one[None, None].float(), layer.affine[None], (128, 128))[0, 0]

    view = ViewCalibration.start("calibrated", image[0, 0].numpy())
    moved = ViewCalibration("calibrated", view.knots, view.values, torch.tensor([3.0, 0, 0, 0, 0]).double().numpy())
    measured = project(moved.move(matrix))
    found = view
    for _ in range(4):
        found = fit_view(
            found,
            basis=view.basis(measured),
            explained=project(found.move(matrix)),
            weights=torch.full_like(measured, 1e4),
            matrix=matrix,
            project=project,
        )
    assert found.pose[0] == pytest.approx(3.0, abs=0.5)


def test_later_stages_train_behind_a_refined_stage_1(network, small_cascade, image):
    """In training the last stage's input is the refined volume, through which its own weights learn; stage 1's stay."""
    network.train()
    inferer = CascadeInferer(None, refine_steps=2, intensities="scaled")
    unit = inferer(image, network, calibrated=torch.ones(1))
    coarse = refine(network, image, network.projection_matrices[None], settings=RefineSettings(steps=2)).volume
    torch.testing.assert_close(unit, network(image, coarse=coarse))
    unit.sum().backward()
    assert all(weight.grad is None for weight in network.stages[0].parameters())
    assert network.stages[2].unet.out.weight.grad is not None
    first = small_cascade(stage=1, consistency_iterations=(0,)).train()
    torch.testing.assert_close(inferer(image, first), first(image))


def test_a_workflow_logs_what_refining_warns_of(network, image, caplog):
    """The inferer hands on no report; whoever calls `refine` or `reconstruct` has it, and nothing is logged."""
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 6
    refine(network, noise, network.projection_matrices[None], known="display", settings=RefineSettings(steps=1))
    assert not caplog.text
    inferer = CascadeInferer(None, consistency_rounds=0, refine_steps=1, intensities="display")
    inferer(noise, network, calibrated=torch.zeros(1))
    assert "refine: the first stage leaves" in caplog.text


def test_pictures_that_are_hardly_explained_are_not_believed(network, image):
    """Noise told display: stage 1's own volume, the picture as it was, a line, no consistency."""
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 6
    settings = RefineSettings(steps=3, learning_rate=1e-3)
    given = {"known": ["display", "calibrated"], "settings": settings}
    matrices = network.projection_matrices[None]
    found = refine(network, torch.cat((noise, noise)), matrices, **given)
    assert found.calibrated.tolist() == [0.0, 1.0]
    assert [report.stopped == "unexplained" for report in found.reports] == [True, False]
    torch.testing.assert_close(found.image[0], noise[0])
    assert "neither refined" in found.reports[0].warnings[-1]
    with torch.no_grad():
        torch.testing.assert_close(found.volume[:1], _round(network, noise, torch.zeros(1)))
    trusting = replace(settings, believable=0.0)
    assert refine(network, noise, matrices, known="display", settings=trusting).calibrated.tolist() == [1.0]
