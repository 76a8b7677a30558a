# SPDX-License-Identifier: Apache-2.0
"""Cases load as promised on every grid, and results land in the patient's world."""

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
from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, save_geometry, volume_affine
from progressive_cascade.inference.transforms import LoadGeometryd, LoadRadiographPaird, SetAffined, UnitToHUd
from progressive_cascade.io import read_nifti, save_nifti
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.check import check_views, looks_swapped
from progressive_cascade.training.transforms import LoadCased

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


def test_a_phantom_is_drawn_from_the_population_its_item_names() -> None:
    """Clinical where the item says so."""
    item = LoadCased(16)({"seed": 5, "population": "clinical"})
    phantom = generate_phantom(5, shape=(16, 16, 16), spacing=22.4, population="clinical")
    assert torch.equal(item["label"][0], torch.from_numpy(phantom.hu))


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
def radiographs() -> torch.Tensor:
    """PA and lateral line integrals of a phantom, (2, 512, 512)."""
    mu = hu_to_mu(LoadCased(64)({"seed": 0})["label"].float())[None]
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


def test_a_right_lateral_is_read_in_a_mirror(tmp_path: Path) -> None:
    """Picture and matrix change together: what lies at a column of the picture lies at its mirror image's."""
    beam = ConeBeam(views=("pa", "right_lateral"), detector_shape=(4, 6))
    save_geometry(beam, tmp_path / "geometry.json")
    image = torch.arange(48.0).reshape(2, 4, 6)
    item = LoadGeometryd()({"geometry": str(tmp_path / "geometry.json"), "image": image})
    assert torch.equal(item["image"][0], image[0])
    assert torch.equal(item["image"][1], image[1].flip(1))
    point = np.array([10.0, 20.0, 30.0, 1.0])
    there, here = beam.projection_matrices()[1] @ point, item["matrices"][1].double().numpy() @ point
    assert here[0] / here[2] == pytest.approx(5 - there[0] / there[2], rel=1e-5)


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
