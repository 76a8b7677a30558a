# SPDX-License-Identifier: Apache-2.0
"""Cases load as promised on every grid, augmentation stays anatomical, and results land in the patient's world."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import SaveImaged

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, save_geometry, volume_affine
from progressive_cascade.io import read_nifti, save_nifti
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from progressive_cascade.transforms import (
    LoadCased,
    LoadGeometryd,
    LoadRadiographPaird,
    RandAnatomyd,
    SetAffined,
    UnitToHUd,
)
from progressive_cascade.views import check_views, looks_swapped

ISOCENTER = (10.0, -20.0, 300.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A prepared CT: HU are the slice index, 1000 more on one side; the lower slices and one voxel not scanned."""
    folder = tmp_path_factory.mktemp("dataset")
    hu = np.broadcast_to(np.arange(256, dtype=np.int16), (256, 256, 256)).copy()
    hu[200:] += 1000
    valid = np.ones((256, 256, 256), dtype=np.uint8)
    valid[:, :, :9] = 0
    valid[255, 255, 255] = 0
    item = {"label": str(folder / "p1.nii.gz"), "valid": str(folder / "valid.nii.gz")}
    affine = volume_affine(isocenter=ISOCENTER)
    save_nifti(hu, affine, item["label"])
    save_nifti(valid, affine, item["valid"])
    return item


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_prepared_ct_is_averaged_over_blocks(prepared: dict[str, str], size: int) -> None:
    """HU are block means, valid only where all of a block is, and the centre stays where it was."""
    item = LoadCased(size)(prepared)
    factor = 256 // size
    assert item["label"].shape == item["valid"].shape == (1, size, size, size)
    assert (item["label"].dtype, item["valid"].dtype) == (torch.int16, torch.uint8)
    means = torch.arange(256.0).reshape(size, factor).mean(dim=1).round().short()
    assert torch.equal(item["label"][0, 3, 5], means)
    assert int((item["valid"][0, 3, 5] == 0).sum()) == -(-9 // factor)
    assert item["valid"][0, -1, -1, -1] == 0
    center = item["affine"] @ torch.tensor([*[(size - 1) / 2] * 3, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(center[:3], ISOCENTER, atol=1e-4)
    assert item["case"] == "p1"


def test_a_mirrored_ct_is_the_ct_left_for_right(prepared: dict[str, str]) -> None:
    """HU and mask alike, in the same cube."""
    load = LoadCased(32)
    plain, mirrored = load(prepared), load({**prepared, "mirrored": True})
    for key in ("label", "valid"):
        assert torch.equal(mirrored[key], plain[key].flip(1)) and not torch.equal(mirrored[key], plain[key])
    assert torch.equal(mirrored["affine"], plain["affine"])


def test_a_phantom_is_painted_on_the_grid_as_it_is() -> None:
    """It is the generator's volume, all valid; air outside is -1000 HU, as outside a prepared body."""
    item = LoadCased(32)({"seed": 5})
    phantom = generate_phantom(5, shape=(32, 32, 32), spacing=11.2)
    assert torch.equal(item["label"][0], torch.from_numpy(phantom.hu))
    assert item["label"][0, 0, 0, 0] == -1000
    assert bool(item["valid"].all())
    np.testing.assert_allclose(item["affine"], phantom.affine)
    assert item["case"] == "phantom_5"


def test_cts_and_phantoms_collate_into_one_batch(prepared: dict[str, str]) -> None:
    """Same keys that matter, same shapes, same types."""
    load = Compose([LoadCased(32), RandAnatomyd(prob=0.0)])
    items = [load(prepared), load({"seed": 1})]
    batch = list_data_collate([{key: item[key] for key in ("label", "valid", "affine", "case")} for item in items])
    assert batch["label"].shape == (2, 1, 32, 32, 32)


def test_what_is_no_case_is_refused(prepared: dict[str, str], tmp_path: Path) -> None:
    """Another grid, another item, a CT that was not prepared."""
    with pytest.raises(UserError, match="divide 256"):
        LoadCased(100)
    with pytest.raises(UserError, match="'seed'"):
        LoadCased(64)({"image": "a"})
    save_nifti(np.zeros((8, 8, 8), dtype=np.int16), np.eye(4), tmp_path / "raw.nii.gz")
    with pytest.raises(UserError, match=r"raw\.nii\.gz must be a prepared CT"):
        LoadCased(64)({**prepared, "label": str(tmp_path / "raw.nii.gz")})


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    item = LoadCased(64)({"seed": 0})
    return {"label": item["label"], "valid": item["valid"]}


def _augment(item: dict[str, torch.Tensor], seed: int = 0, **options: float) -> dict[str, torch.Tensor]:
    still = {
        "max_scale": 0.0, "max_shift_mm": 0.0, "max_rotation_deg": 0.0,
        "max_warp_mm": 0.0, "hu_shift": 0.0, "bone_scale": 0.0, "max_blur_mm": 0.0,
    }  # fmt: skip
    transform = RandAnatomyd(prob=1.0, **{**still, **options})
    transform.set_random_state(seed)
    return transform(item)


def test_augmentation_without_amplitude_is_the_identity(case: dict[str, torch.Tensor]) -> None:
    """Up to the rounding of the interpolation."""
    out = _augment(case)
    assert out["label"].dtype == torch.float32
    assert out["valid"].dtype == torch.uint8
    torch.testing.assert_close(out["label"], case["label"].float(), atol=0.5, rtol=0)
    assert torch.equal(out["valid"], case["valid"])


def test_augmentation_with_probability_zero_only_converts(case: dict[str, torch.Tensor]) -> None:
    """The item keeps its values."""
    out = RandAnatomyd(prob=0.0)(case)
    assert torch.equal(out["label"], case["label"].float())


def test_augmentation_is_seeded_and_leaves_its_input_alone(case: dict[str, torch.Tensor]) -> None:
    """Same seed, same patient; another seed, another one."""
    before = case["label"].clone()
    transform = RandAnatomyd(prob=1.0)
    results = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        results.append(transform(case)["label"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(case["label"], before)
    floats = {**case, "label": before.float()}
    transform(floats)
    assert torch.equal(floats["label"], before.float())


def test_augmentation_shifts_by_at_most_what_was_asked() -> None:
    """A ball's centre moves within the range, the same for CT and mask, and the ball stays a ball."""
    index = (torch.stack(torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij")) - 31.5) * 5.6
    ball = (index.norm(dim=0) < 60)[None]
    item = {"label": torch.where(ball, 40, -1024).short(), "valid": ball.to(torch.uint8)}
    centers = []
    for seed in range(4):
        out = _augment(item, seed, max_shift_mm=20.0)
        for volume in (out["label"] > -500, out["valid"] > 0):
            centers.append(torch.stack([axis[volume[0]].mean() for axis in index]))
            assert abs(int(volume.sum()) / int(ball.sum()) - 1) < 0.05
    shifts = torch.stack(centers)
    assert 5 < shifts.abs().max() < 21
    torch.testing.assert_close(shifts[::2], shifts[1::2], atol=2.0, rtol=0)


def test_augmentation_never_mirrors(case: dict[str, torch.Tensor]) -> None:
    """A mark on the right stays on the right, one in front in front, one on top on top."""
    for axis in range(3):
        mark = torch.zeros(1, 64, 64, 64, dtype=torch.uint8)
        mark.narrow(axis + 1, 40, 16).fill_(1)
        for seed in range(3):
            transform = RandAnatomyd(prob=1.0)
            transform.set_random_state(seed)
            out = transform({"label": case["label"], "valid": mark})["valid"][0].float()
            weights = out.sum(dim=[a for a in range(3) if a != axis])
            assert float((weights * torch.arange(64)).sum() / weights.sum()) > 36


def test_augmentation_changes_density_but_not_air(case: dict[str, torch.Tensor]) -> None:
    """Water moves by up to the given HU, air stays, bone is scaled."""
    uniform = {key: torch.zeros(1, 64, 64, 64, dtype=torch.int16) for key in ("label", "valid")}
    levels = torch.tensor([-1000, 0, 1000], dtype=torch.int16)
    uniform["label"][0, 0, 0, :3] = levels
    shifted = _augment(uniform, hu_shift=20.0)["label"][0, 0, 0, :3]
    assert abs(float(shifted[0]) + 1000) < 0.1
    assert 0 < abs(float(shifted[1])) <= 20
    bone = _augment(uniform, bone_scale=0.1)["label"][0, 0, 0, :3]
    assert abs(float(bone[1])) < 0.1
    assert 0 < abs(float(bone[2]) - 1000) <= 85


@pytest.mark.parametrize("size", [64, 128])
def test_another_kernel_blurs_the_slices_alone(size: int) -> None:
    """An impulse keeps its sum and its place, gets the variance of the drawn width within the slice, none across."""
    impulse = {"label": torch.full((1, size, size, size), -1000.0), "valid": torch.ones(1, size, size, size)}
    impulse["label"][0, 30, 20, 25] = 500.0
    transform = RandAnatomyd(
        prob=1.0, max_scale=0, max_shift_mm=0, max_rotation_deg=0, max_warp_mm=0, hu_shift=0, bone_scale=0, blur_prob=1
    )
    widths = []
    for seed in range(3):
        transform.set_random_state(seed)
        mass = (transform(impulse)["label"][0].double() + 1000) / 1500
        axes = [mass.sum(dim=[a for a in range(3) if a != axis]) for axis in range(3)]
        index = torch.arange(size).double()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-2)
        for profile, place in zip(axes, (30, 20, 25), strict=True):
            assert float((profile * index).sum() / profile.sum()) == pytest.approx(place, abs=1e-2)
        variance = [
            float((profile * (index - place) ** 2).sum()) * (358.4 / size) ** 2
            for profile, place in zip(axes, (30, 20, 25), strict=True)
        ]
        assert variance[0] == pytest.approx(variance[1], abs=1e-2) and abs(variance[2]) < 0.05
        widths.append(variance[0] ** 0.5)
    assert max(widths) <= 1.25 and max(widths) - min(widths) > 0.1


def test_only_part_of_the_cases_is_blurred(case: dict[str, torch.Tensor]) -> None:
    """As many as asked; blur smooths texture."""
    sharp = _augment(case)["label"]
    changed = [not torch.equal(_augment(case, seed, max_blur_mm=1.2)["label"], sharp) for seed in range(20)]
    assert 1 <= sum(changed) <= 12
    blurred = _augment(case, max_blur_mm=3.0, blur_prob=1.0)["label"]
    assert blurred.diff(dim=1).abs().mean() < sharp.diff(dim=1).abs().mean()


def test_the_body_goes_on_beyond_the_cube_but_is_not_valid() -> None:
    """A shrunk patient has no flat end along z; what was never scanned is marked."""
    column = torch.full((1, 64, 64, 64), -1024, dtype=torch.int16)
    column[:, 20:44, 20:44] = 40
    item = {"label": column, "valid": torch.ones(1, 64, 64, 64, dtype=torch.uint8)}
    outs = [_augment(item, seed, max_scale=0.4) for seed in range(6)]
    shrunk = [out for out in outs if not bool(out["valid"].all())]
    assert shrunk
    for out in shrunk:
        torch.testing.assert_close(out["label"][0, 32, 32], torch.full((64,), 40.0), atol=0.5, rtol=0)
        assert out["label"].min() >= -1024


@pytest.fixture(scope="module")
def radiographs(case: dict[str, torch.Tensor]) -> torch.Tensor:
    """PA and lateral line integrals of a phantom, (2, 512, 512)."""
    mu = hu_to_mu(case["label"].float())[None]
    return line_integrals(mu, ConeBeam(), affine=volume_affine((64, 64, 64), 5.6))[0]


def _write_pair(folder: Path, image: torch.Tensor) -> dict[str, str]:
    item = {}
    for view, key in enumerate(("pa", "lateral")):
        item[key] = str(folder / f"{key}.nii.gz")
        save_nifti(image[view].numpy().T.copy()[..., None], ConeBeam().detector_affine(view), item[key])
    return item


def test_a_pair_of_files_is_the_networks_image(radiographs: torch.Tensor, tmp_path: Path) -> None:
    """Rows and columns are as displayed, with PA first."""
    item = LoadRadiographPaird()(_write_pair(tmp_path, radiographs))
    assert item["image"].dtype == torch.float32
    torch.testing.assert_close(item["image"], radiographs)
    memory = LoadRadiographPaird()({"pa": radiographs[0].T, "lateral": radiographs[1].T.numpy()})
    torch.testing.assert_close(memory["image"], radiographs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p[0], p[0]), "same image twice"),
        (lambda p: (p[1], p[0]), "swapped"),
        (lambda p: (p[0][:, :500], p[1]), "pa must have 512 rows and 512 columns"),
        (lambda p: (p[0], torch.stack([p[1], p[1]])), "lateral must have 512 rows"),
        (lambda p: (p[0], torch.where(p[1] > 3, torch.nan, p[1])), "lateral must hold finite numbers"),
        (lambda p: (torch.ones_like(p[0]), p[1]), "constant value 1"),
        (lambda p: (p[0], 0.01 * torch.sin(p[1])), "lateral must show a patient, got nothing but values below 0.2"),
    ],
)
def test_an_unusable_pair_is_one_clear_error(radiographs: torch.Tensor, change, message: str) -> None:
    """The view is named."""
    pa, lateral = change(radiographs)
    with pytest.raises(UserError, match=message):
        LoadRadiographPaird()({"pa": pa.numpy().T, "lateral": lateral.numpy().T})


def test_the_check_of_the_views_can_be_left_out(radiographs: torch.Tensor) -> None:
    """For whoever knows better."""
    LoadRadiographPaird(check=False)({"pa": radiographs[1].T, "lateral": radiographs[0].T})


def test_views_are_told_apart_at_any_scale_but_never_when_collimated(radiographs: torch.Tensor) -> None:
    """Scaled and saturated images count, too; a field inside the body gives no verdict."""
    check_views(radiographs)
    for image in (radiographs, radiographs * 1000, 1 - torch.exp(-radiographs)):
        assert not looks_swapped(image)
        assert looks_swapped(image.flip(0))
    for margin in range(0, 200, 20):
        assert not looks_swapped(radiographs[:, margin : 512 - margin, margin : 512 - margin])


def test_geometry_becomes_matrices_about_the_origin_and_an_isocenter(tmp_path: Path) -> None:
    """The network's world is centred; where the patient stood is kept beside."""
    beam = ConeBeam(1400.0, 1700.0, isocenter=ISOCENTER)
    save_geometry(beam, tmp_path / "geometry.json")
    item = LoadGeometryd()({"geometry": str(tmp_path / "geometry.json")})
    centered = ConeBeam(1400.0, 1700.0)
    np.testing.assert_allclose(item["matrices"], centered.projection_matrices(), rtol=1e-6)
    assert item["isocenter"].tolist() == list(ISOCENTER)
    for bare in ({}, {"geometry": None}):
        item = LoadGeometryd()(bare)
        np.testing.assert_allclose(item["matrices"], ConeBeam().projection_matrices(), rtol=1e-6)
        assert "geometry" not in item
        assert "matrices" in list_data_collate([item, item])


def test_output_is_whole_hu_within_the_window() -> None:
    """0 and 1 are the window's ends; what exceeds them is clipped."""
    out = UnitToHUd("pred")({"pred": torch.tensor([-0.1, 0.0, 0.5, 0.5002, 1.0, 2.0])})["pred"]
    assert out.tolist() == [-1024, -1024, 0, 0, 1024, 1024]


@pytest.mark.parametrize("size", [256, 64])
def test_the_result_lies_where_the_patient_stood(size: int) -> None:
    """The affine is the cube's around the isocenter, never the radiograph's."""
    pred = MetaTensor(torch.zeros(1, size, size, size), affine=torch.eye(4) * 0.84)
    item = {"pred": pred, "isocenter": torch.tensor(ISOCENTER, dtype=torch.float64)}
    out = SetAffined("pred")(item)["pred"]
    np.testing.assert_allclose(out.affine, volume_affine((size,) * 3, 358.4 / size, ISOCENTER), atol=1e-9)
    default = SetAffined("pred", isocenter=(1, 2, 3))({"pred": pred})["pred"]
    center = default.affine @ torch.tensor([*[(size - 1) / 2] * 3, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(center[:3], (1, 2, 3), atol=1e-9)


def test_a_saved_result_has_the_cases_name_and_affine(tmp_path: Path) -> None:
    """What SaveImaged writes is the volume, in HU, in the patient's world."""
    save = Compose(
        [
            UnitToHUd("pred"),
            SetAffined("pred"),
            SaveImaged(
                "pred", output_dir=tmp_path, output_postfix="ct", output_dtype=np.int16, resample=False,
                separate_folder=False, print_log=False,
            ),
        ]
    )  # fmt: skip
    values = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    save({"pred": values, "isocenter": ISOCENTER, "case": "p1"})
    hu, affine = read_nifti(tmp_path / "p1_ct.nii.gz")
    np.testing.assert_array_equal(hu, (values[0] * 2048 - 1024).round().numpy())
    np.testing.assert_allclose(affine, volume_affine((16, 16, 16), 22.4, ISOCENTER), atol=1e-4)


def test_transforms_can_be_sent_to_other_processes() -> None:
    """Data loaders pickle them."""
    for transform in (
        LoadCased(64),
        RandAnatomyd(),
        LoadRadiographPaird(),
        LoadGeometryd(),
        UnitToHUd("pred"),
        SetAffined("pred"),
    ):
        assert type(pickle.loads(pickle.dumps(transform))) is type(transform)
