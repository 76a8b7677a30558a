# SPDX-License-Identifier: Apache-2.0
"""Laws of the export: complete, the same bytes twice, and all or nothing."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import monai
import pytest
import torch
from monai.bundle.scripts import verify_metadata

import progressive_cascade
from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.export import BUNDLE_NAME, Export, archive, export_bundle
from progressive_cascade.export import bundle as bundle_module
from progressive_cascade.export.configs import read_config, to_text
from progressive_cascade.export.metadata import build_metadata
from progressive_cascade.export.weights import build_network, collect_weights
from tests.support.exported import BUNDLE, export, make_source

PACKAGE = Path(progressive_cascade.__file__).parent
SCHEMA = BUNDLE.parents[1] / "shared" / "data" / "schema" / "meta_schema_20240725.json"
# What the schema requires, for where the file itself is absent.
REQUIRED = {
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's source."""
    return make_source(tmp_path_factory.mktemp("source"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_holds_what_a_zoo_asks_for(source, monkeypatch, tmp_path):
    """The zoo's files, every config, the whole package under its own name, and nothing else."""
    contents = _contents(export(source, tmp_path / "out", monkeypatch))
    files = set(contents)
    models = {f"models/{name}.pt" for name in ("model", "stage1_best", "stage2_best", "stage3_best", "perceptual_ct")}
    needed = {"LICENSE", "configs/metadata.json", "configs/inference.json", "configs/logging.conf", "docs/README.md"}
    assert needed | models <= files
    code = {f"progressive_cascade/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    hashes = "progressive_cascade/io/weights.sha256"
    assert {*code, hashes} == {file for file in files if file.startswith("progressive_cascade/")}
    own = {f"{hashlib.sha256(contents[name]).hexdigest()}  {name.removeprefix('models/')}" for name in models}
    assert set(contents[hashes].decode().splitlines()) == own
    assert {file.partition("/")[0] for file in files} == {"LICENSE", "configs", "docs", "models", "progressive_cascade"}


def test_weights_for_other_geometries_go_along(source, monkeypatch, tmp_path):
    """Where the source holds them and the whole cascade is exported; of another architecture they are refused."""
    mine = tmp_path / "mine"
    shutil.copytree(source, mine)
    wide = mine / "models" / "any_geometry.pt"
    state = torch.load(mine / "models" / "stage3_best.pt", weights_only=True)
    torch.save({**state, "stages.0.unet.out.bias": state["stages.0.unet.out.bias"] + 1}, wide)
    folder = export(mine, tmp_path / "out", monkeypatch)
    assert (folder / "models" / "any_geometry.pt").read_bytes() == wide.read_bytes()
    hashes = (folder / "progressive_cascade" / "io" / "weights.sha256").read_text(encoding="ascii")
    assert f"{hashlib.sha256(wide.read_bytes()).hexdigest()}  any_geometry.pt" in hashes
    shutil.copy(mine / "models" / "stage1_best.pt", wide)
    with pytest.raises(UserError, match=r"any_geometry\.pt must hold stage 3"):
        export(mine, tmp_path / "other", monkeypatch)


def test_export_is_deterministic(source, monkeypatch, tmp_path):
    """Twice the same input, the same bytes; one top folder in the archive."""
    archives = []
    for name in ("first", "second"):
        export(source, tmp_path / name, monkeypatch, zip=True)
        archives.append((tmp_path / name / f"{BUNDLE_NAME}.zip").read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(tmp_path / "first" / f"{BUNDLE_NAME}.zip") as packed:
        names = packed.namelist()
    assert {name.partition("/")[0] for name in names} == {BUNDLE_NAME} and names == sorted(names)
    assert len(names) == len(_contents(tmp_path / "first" / BUNDLE_NAME))


@pytest.mark.parametrize("stage", [1, 2])
def test_a_bundle_may_end_with_an_earlier_stage(source, monkeypatch, tmp_path, stage):
    """model.pt, train.json, inference.json and the metadata are that stage's."""
    folder = export(source, tmp_path / "out", monkeypatch, stage=stage)
    weights = (folder / "models" / f"stage{stage}_best.pt").read_bytes()
    assert (folder / "models" / "model.pt").read_bytes() == weights
    assert not (folder / "models" / f"stage{stage + 1}_best.pt").exists()
    inference = read_config(folder / "configs" / "inference.json")
    network = build_network(inference, inference["stage"])
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True), strict=True)
    metadata = read_config(folder / "configs" / "metadata.json")
    assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [4 << stage] * 3
    assert f"{4 << stage}³" in metadata["task"] and f"stage{stage}_data_format" not in metadata
    assert read_config(folder / "configs" / "train.json")["stage"] == stage


def test_stages_are_cut_out_of_a_single_checkpoint(source, monkeypatch, tmp_path):
    """A wheel ships model.pt alone; frozen earlier stages stand in it unchanged."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(source / "models" / "model.pt", models)
    folder = export(source, tmp_path / "out", monkeypatch, models=models)
    for stage in (1, 2, 3):
        name = f"models/stage{stage}_best.pt"
        cut, trained = (torch.load(root / name, weights_only=True) for root in (folder, source))
        assert cut.keys() == trained.keys()
        assert all(torch.equal(cut[key], trained[key]) for key in trained)


def test_files_above_the_limit_are_listed(source, monkeypatch, tmp_path):
    """large_files.yml names path, address and sha256, and MONAI reads it."""
    monkeypatch.setattr(archive, "SIZE_LIMIT", 1_000_000)
    folder = export(source, tmp_path / "out", monkeypatch, large_files_url="https://example.org/files/")
    text = (folder / archive.LARGE_FILES).read_text(encoding="utf-8")
    assert '  - path: "models/perceptual_ct.pt"\n    url: "https://example.org/files/perceptual_ct.pt"\n' in text
    assert hashlib.sha256((folder / "models" / "perceptual_ct.pt").read_bytes()).hexdigest() in text


def _refused(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = _contents(output.parent)
    assert main(["export", "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("progressive-cascade: error: ") and error.count("\n") == 1
    assert _contents(output.parent) == before and not (output / BUNDLE_NAME).exists()
    assert not [path for path in output.parent.rglob("*") if path.name.startswith(".export-")]
    return error


@pytest.fixture
def models(source, monkeypatch, tmp_path) -> Path:
    """A copy of the miniature's weights that a test may spoil; the command line exports the miniature."""
    monkeypatch.setattr(bundle_module, "bundle_root", lambda: source)
    return shutil.copytree(source / "models", tmp_path / "models")


def test_a_folder_that_is_not_empty_is_refused(models, tmp_path, capsys):
    """Nothing of the user's is touched."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert "must be a new or an empty folder" in _refused([], output, capsys)
    assert "is a file" in _refused([], output / "notes.txt" / "deeper", capsys)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda models: (models / "stage2_best.pt").unlink(), "stage2_best.pt must exist"),
        (lambda models: (models / "stage2_best.pt").write_bytes(b"x"), "must be a torch state dict"),
        (lambda models: shutil.copy(models / "stage1_best.pt", models / "stage2_best.pt"), "must hold stage 2 of this"),
        (lambda models: shutil.copy(models / "stage3_best.pt", models / "stage1_best.pt"), "must hold stage 1 of this"),
        (lambda models: shutil.copy(models / "stage1_best.pt", models / "model.pt"), "must hold the weights of stage3"),
        (
            lambda models: _scale(models / "stage1_best.pt", "projection_matrices"),
            "must have the geometry of the config",
        ),
        (lambda models: _widen(models / "stage1_best.pt"), "first difference: stages.0.unet.out.weight"),
    ],
)
def test_wrong_weights_are_refused(models, tmp_path, capsys, spoil, words):
    """A missing file, no checkpoint, another stage, another geometry, another architecture."""
    spoil(models)
    assert words in _refused(["--models", str(models)], tmp_path / "out", capsys)


def _scale(path: Path, name: str) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, name: state[name] * 1.5}, path)


def _widen(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "stages.0.unet.out.weight": torch.zeros(8, 999, 3, 3, 3)}, path)


def test_a_published_version_keeps_its_content(source, models, monkeypatch, tmp_path, capsys):
    """The same again passes; other weights, or another word in the changelog, need a new version."""
    export(source, tmp_path / "published", monkeypatch, zip=True)
    published = tmp_path / "published" / f"{BUNDLE_NAME}.zip"
    assert main(["export", "--output", str(tmp_path / "again"), "--published", str(published)]) == 0
    capsys.readouterr()
    state = torch.load(models / "stage1_best.pt", weights_only=True)
    torch.save({**state, "stages.0.unet.out.bias": state["stages.0.unet.out.bias"] + 1}, models / "stage1_best.pt")
    arguments = ["--models", str(models), "--published"]
    for last in (published, tmp_path / "published" / BUNDLE_NAME):
        error = _refused([*arguments, str(last)], tmp_path / "out", capsys)
        assert "is already in the changelog with other content" in error and "models/stage1_best.pt" in error
    metadata = tmp_path / "published" / BUNDLE_NAME / "configs" / "metadata.json"
    changed = read_config(metadata)
    changed["changelog"]["0.0.1"] = "an older one"
    metadata.write_text(to_text(changed), encoding="utf-8")
    error = _refused(["--published", str(tmp_path / "published" / BUNDLE_NAME)], tmp_path / "out", capsys)
    assert "version 0.0.1 must stay in the changelog" in error
    assert "must be a bundle's folder or zip" in _refused(["--published", "nowhere.zip"], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "9.9.9"}, "must have the code's version"),
        ({"changelog": {"0.0.0": "none"}}, "must say in its changelog"),
        ({"authors": ""}, "metadata.json must have authors"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(source, change, words):
    """Version, changelog, and what only a person can write."""
    network = build_network(read_config(source / "configs" / "inference.json"), 1)
    with pytest.raises(UserError, match=words):
        build_metadata({**read_config(BUNDLE / "configs" / "metadata.json"), **change}, {1: network})


def test_an_interrupted_export_leaves_nothing(source, monkeypatch, tmp_path):
    """Neither a folder nor a temporary one, whatever stops it."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "write_zip", fail)
    monkeypatch.setattr(bundle_module, "bundle_root", lambda: source)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tmp_path / "out", Export(zip=True))
    assert list(tmp_path.iterdir()) == []


def test_shipped_metadata_and_weights_are_those_of_the_code():
    """metadata.json is what would be generated; each checkpoint loads strictly and is small enough for a zoo."""
    inference = read_config(BUNDLE / "configs" / "inference.json")
    weights = collect_weights(BUNDLE / "models", inference, 3)
    assert all(len(part.content) < archive.SIZE_LIMIT for part in weights.values())
    written = read_config(BUNDLE / "configs" / "metadata.json")
    generated = build_metadata(written, {stage: part.network for stage, part in weights.items()})
    if sys.version_info < (3, 11):  # numpy and scipy are older there, see constraints.txt
        names = ("numpy_version", "required_packages_version")
        written, generated = ({**values, **dict.fromkeys(names)} for values in (written, generated))
    assert to_text(generated) == to_text(written)
    assert written["monai_version"] == monai.__version__


def test_metadata_fits_the_schema(tmp_path):
    """MONAI's own check where its schema is at hand, the list of fields otherwise."""
    metadata = BUNDLE / "configs" / "metadata.json"
    assert set(read_config(metadata)) >= REQUIRED
    if SCHEMA.is_file():
        pytest.importorskip("jsonschema")
        verify_metadata(meta_file=str(metadata), filepath=shutil.copy(SCHEMA, tmp_path / "schema.json"))
