# SPDX-License-Identifier: Apache-2.0
"""Laws of the batch simulation, the stage objective, the handlers and the chaining of checkpoints."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from monai.engines.trainer import SupervisedTrainer

from progressive_cascade import line_integrals, volume_affine
from progressive_cascade.attenuation import hu_to_mu, hu_to_unit
from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.errors import RunError
from progressive_cascade.geometry import GeometryRange
from progressive_cascade.losses import CascadeLoss
from progressive_cascade.projector import project
from progressive_cascade.training.engine import MaskedPSNR, StageObjective
from progressive_cascade.training.handlers import ClipGradients
from progressive_cascade.training.simulation import SimulateBatch
from tests.conftest import SMALL

BEAM = SMALL["geometry"]


def _batch(size: int = 32) -> dict[str, torch.Tensor]:
    hu = torch.full((2, 1, size, size, size), -1000, dtype=torch.int16)
    hu[:, :, size // 4 : -size // 4, size // 4 : -size // 4] = 40
    return {"label": hu, "valid": torch.ones_like(hu, dtype=torch.uint8)}


def test_simulated_batch_holds_the_projected_volume():
    """Without jitter and noise: the line integrals of the volume, its average as the target, the beam's matrices."""
    image, targets, _, arguments = SimulateBatch(16, geometry=BEAM)(_batch())
    expected = line_integrals(hu_to_mu(_batch()["label"].float()), BEAM, affine=volume_affine((32, 32, 32), 11.2))
    torch.testing.assert_close(image, expected)
    assert targets["label"].shape == (2, 1, 16, 16, 16)
    torch.testing.assert_close(targets["label"][0, 0, 8, 8, 8], hu_to_unit(torch.tensor(40.0)))
    torch.testing.assert_close(
        arguments["projection_matrices"][0].double(), torch.as_tensor(BEAM.projection_matrices())
    )


def test_simulation_is_seeded():
    """Same seed, same jitter, noise and windows; another seed, others."""
    options = {
        "geometry": BEAM,
        "distance_jitter": 0.02,
        "shift_jitter": 5.0,
        "photons": 1e4,
        "uncalibrated": 0.5,
        "window": 8,
    }
    first, second, other = (SimulateBatch(16, **options, seed=seed)(_batch()) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and first[3]["window"] == second[3]["window"]
    assert not torch.equal(first[0], other[0])


def test_noise_follows_the_photons():
    """The variance of a line integral is that of Poisson counts: 1 / (photons exp(-p))."""
    clean = SimulateBatch(16, geometry=BEAM)(_batch())[0]
    noisy = SimulateBatch(16, geometry=BEAM, photons=1e5)(_batch())[0]
    middle = clean > 0.5 * clean.max()
    expected = torch.exp(clean[middle]) / 1e5
    assert float(((noisy - clean)[middle] ** 2 / expected).mean()) == pytest.approx(1.0, rel=0.1)


def test_uncalibrated_samples_are_told():
    """A sample whose scale was lost is flagged, and the others are left alone."""
    image, targets, _, arguments = SimulateBatch(16, geometry=BEAM, uncalibrated=0.5, seed=3)(_batch())
    clean = SimulateBatch(16, geometry=BEAM)(_batch())[0]
    changed = torch.tensor([not torch.equal(a, b) for a, b in zip(image, clean, strict=True)])
    assert torch.equal(targets["calibrated"] == 0, changed)
    assert torch.equal(arguments["calibrated"], targets["calibrated"])


def test_geometries_are_drawn_from_the_range():
    """All samples inside it, no two alike, and the image is the projection by the very matrices that are told."""
    spread = GeometryRange((800.0, 1900.0), (330.0, 430.0), turn=8.0, offset=20.0, opposite=True)
    batch = {**_batch(), "draw": torch.tensor([3, 4]), "step": torch.tensor([1, 1])}
    image, _, _, arguments = SimulateBatch(16, geometry=BEAM, geometry_range=spread)(batch)
    matrices = arguments["projection_matrices"]
    for each in matrices.double().numpy():
        assert spread.misfits(each, BEAM.projection_matrices(), BEAM.detector_shape[0]) == []
    assert not torch.equal(matrices[0], matrices[1])
    affine = torch.as_tensor(volume_affine((32, 32, 32), 11.2)).expand(2, 4, 4)
    expected = project(hu_to_mu(_batch()["label"].float()), matrices, affine, BEAM.detector_shape)
    torch.testing.assert_close(image, expected)
    nominal = SimulateBatch(16, geometry=BEAM, geometry_range=spread, range_share=0.0)(batch)[3]["projection_matrices"]
    torch.testing.assert_close(nominal[0].double(), torch.as_tensor(BEAM.projection_matrices()))


def test_patients_are_augmented_by_their_number_in_the_run():
    """The same draw is the same patient in any batch; another draw another."""
    simulate = SimulateBatch(32, geometry=BEAM, augment=RandAnatomyd(prob=1.0), seed=5)

    def label(draws: list[int]) -> torch.Tensor:
        return simulate({**_batch(), "draw": torch.tensor(draws), "step": torch.tensor([0, 0])})[1]["label"]

    first, swapped = label([7, 8]), label([8, 7])
    torch.testing.assert_close(first.flip(0), swapped, rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])


def test_radiographs_see_the_patient_around_the_cube():
    """A trunk goes on along z: rays through the cube's ends are longer, those pixels are not the cube's to explain."""
    alone, *_ = SimulateBatch(32, geometry=BEAM)(_batch())
    image, targets, _, arguments = SimulateBatch(32, geometry=BEAM, surroundings_mm=50.0)(_batch())
    torch.testing.assert_close(targets["label"], SimulateBatch(32, geometry=BEAM)(_batch())[1]["label"])
    counts = targets["weights"] > 0
    assert "weights" not in arguments and 0.3 < counts.float().mean() < 1
    torch.testing.assert_close(image[counts], alone[counts], atol=0.051, rtol=0)
    assert (image[~counts] > alone[~counts] + 0.049).all()
    exact, wrong = (
        float(StageObjective(CascadeLoss({"reprojection": 1.0}))(targets["label"] * factor, targets))
        for factor in (1, 0.9)
    )
    assert exact < 0.1 * wrong


def test_of_pictures_for_the_eye_a_wrong_geometry_is_told():
    """The network is told another than the radiographs were taken in; of line integrals it is told the true one."""
    errors, draws = {"size": 0.05, "shift": 10.0, "turn": 2.0}, torch.arange(2)
    batch = {**_batch(), "draw": draws, "step": draws * 0}
    for display in (0.0, 1.0):
        acquisition = {"display": display, "scaled": 0.0, "spectra": 0.0, "photons": [1e9, 1e9]}
        simulate = SimulateBatch(32, geometry=BEAM, acquisition=acquisition, display_errors=errors)
        image, targets, _, told = simulate(batch)
        moved = (told["projection_matrices"] - targets["matrices"]).abs().amax(dim=(1, 2, 3)) > 0
        assert moved.tolist() == [bool(display)] * 2
        plain = SimulateBatch(32, geometry=BEAM, acquisition=acquisition)(batch)
        assert torch.equal(image, plain[0]) and torch.equal(plain[3]["projection_matrices"], targets["matrices"])


def test_augmentation_leaves_what_it_moves_out_of_the_cube_in_the_radiographs():
    """The cube of the surrounded patient is the patient's without; beyond it stands what was moved there."""
    augment = RandAnatomyd(prob=1.0, max_scale=0.5)
    hu, valid = (volume.float() for volume in _batch().values())
    hu[:] = 40
    cube, _ = augment.vary(hu, valid, [3, 4])
    seen, _ = augment.vary(hu, valid, [3, 4], margin=4)
    torch.testing.assert_close(seen[:, :, 4:-4, 4:-4, 4:-4], cube)
    assert seen.shape[-1] == 40 and (seen[:, :, 3, 20, 20] > -500).any()


def test_label_grid_must_be_a_multiple():
    """A volume that cannot be averaged to the stage's grid is refused."""
    with pytest.raises(ValueError, match="label must be cubes of a multiple of 24"):
        SimulateBatch(24, geometry=BEAM)(_batch())


def test_objective_looks_at_the_window_alone():
    """What lies outside the refined window costs nothing in the voxel terms."""
    _, targets, _, _ = SimulateBatch(16, geometry=BEAM, window=8, seed=1)(_batch())
    objective = StageObjective(CascadeLoss({"l1": 1.0}))
    x, y, z = (slice(start, start + 8) for start in targets["window"][:3])
    prediction = torch.zeros_like(targets["label"])
    prediction[:, :, x, y, z] = targets["label"][:, :, x, y, z]
    assert float(objective(prediction, targets)) == pytest.approx(0.0, abs=1e-7)
    assert set(objective.terms) == {"l1", "loss"}


def test_objective_projects_the_whole_volume():
    """The reprojection term is small for the truth and grows with an error outside the window."""
    _, targets, _, _ = SimulateBatch(16, geometry=BEAM, window=8, seed=1)(_batch(16))
    objective = StageObjective(CascadeLoss({"reprojection": 1.0}))
    exact = float(objective(targets["label"], targets))
    wrong = float(objective(torch.zeros_like(targets["label"]), targets))
    assert exact < 0.05 * wrong


def _trainer(layer: torch.nn.Module, optimizer: torch.optim.Optimizer, handler: ClipGradients) -> SupervisedTrainer:
    """Fits zeros to what the batch holds; a batch's `scale` multiplies the loss without its gradient."""

    def prepare(batch, *_, **__):
        return batch["image"], batch["scale"]

    def loss(prediction, scale):
        return (prediction**2).mean() + scale - 1

    return SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=[], network=layer, optimizer=optimizer, loss_function=loss,
        prepare_batch=prepare, decollate=False, train_handlers=[handler],
    )  # fmt: skip


def _steps(trainer: SupervisedTrainer, kinds: str) -> None:
    """One step per letter: `g`ood, `n`an in the image, `i`nfinite loss of finite gradients."""
    good = {"image": torch.ones(3, 2), "scale": torch.tensor(1.0)}
    batches = {
        "g": good,
        "n": {**good, "image": torch.full((3, 2), torch.nan)},
        "i": {**good, "scale": torch.tensor(torch.inf)},
    }
    trainer.data_loader = [batches[kind] for kind in kinds]
    trainer.state.epoch_length = len(kinds)
    trainer.run()


@pytest.mark.parametrize("bad", ["n", "i"])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    """Parameters and the optimizer's state stay bit-identical, and the step is counted."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    handler = ClipGradients(layer)
    _steps(_trainer(layer, optimizer, handler), "g")
    before = deepcopy((layer.state_dict(), optimizer.state_dict()["state"]))
    trainer = _trainer(layer, optimizer, handler)
    _steps(trainer, bad)
    after = (layer.state_dict(), optimizer.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert trainer.state.metrics["bad_steps"] == 1


def test_bad_steps_in_a_row_stop_the_run():
    """A good step ends a row of failures but not their total; the message says what to do."""
    layer = torch.nn.Linear(2, 1)
    handler = ClipGradients(layer, max_bad_steps=3)
    trainer = _trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.01), handler)
    _steps(trainer, "nigni")
    assert (handler.bad_steps, handler.bad_steps_in_a_row) == (4, 2)
    with pytest.raises(RunError, match="got 3 non-finite steps in a row, the last at iteration 4; lower learning_rate"):
        _steps(_trainer(layer, torch.optim.SGD(layer.parameters(), lr=0.01), handler), "gnin")
    assert handler.bad_steps == 7
    with pytest.raises(ValueError, match="max_bad_steps must be positive, got 0"):
        ClipGradients(layer, max_bad_steps=0)


def test_gradients_are_clipped():
    """A step is at most as long as max_norm times the learning rate."""
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 100.0)
    _steps(_trainer(layer, torch.optim.SGD(layer.parameters(), lr=1.0), ClipGradients(layer, max_norm=0.5)), "g")
    assert float((layer.weight.detach() - 100).norm()) == pytest.approx(0.5, rel=1e-4)


def test_masked_psnr_ignores_what_was_not_scanned():
    """20.48 HU of error is 40 dB, whatever stands where valid is 0."""
    label = torch.full((1, 1, 4, 4, 4), 0.5)
    valid = torch.ones_like(label)
    valid[..., 0] = 0
    prediction = label + 0.01
    prediction[..., 0] = 0
    metric = MaskedPSNR()
    metric(prediction, torch.cat((label, valid), 1))
    assert float(metric.aggregate()) == pytest.approx(40.0, abs=1e-3)
