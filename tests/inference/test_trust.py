# SPDX-License-Identifier: Apache-2.0
"""Laws of the expected error: inside its interval, for known cases alone, from a whole file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.errors import UserError
from progressive_cascade.inference import expect
from progressive_cascade.inference.reconstruct import Reconstruction, default_checkpoint, wide_checkpoint
from progressive_cascade.inference.refine import REVISION, RefinementReport
from progressive_cascade.inference.signs import SIGNS, measure_signs
from progressive_cascade.inference.trust import Line, Term, Trust, load_trust, unknown
from progressive_cascade.io.released import file_hash
from progressive_cascade.paths import bundle_root

BEAM = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
REPORT = RefinementReport(8, 8, "steps", 0.2, 0.1, 0.25, 0.15)
SEEN = {**dict.fromkeys(SIGNS, 0.0), "residual_before": -2.0, "lung_hu": math.nan}


def _trust(**changes: Any) -> Trust:
    terms = (
        Term("residual_before", 0.3, -2.0, 0.5, -3.0, -1.0),
        Term("soft_hu²", 0.1, 20.0, 10.0, -100.0, 100.0),
        Term("lung_hu", 0.2, -800.0, 50.0, -900.0, -700.0, optional=True),
        Term("beyond", 0.0, 0.0, 1.0, 0.0, 0.0),
    )
    lines = {"body_mae_hu": Line(4.5, terms, -0.2, 0.3), "psnr_3d_db": Line(24.0, terms[:1], -1.0, 1.5, False)}
    known = {
        "checkpoints": {"a" * 64: "model.pt"},
        "uncertainty": "",
        "refine_steps": 8,
        "refine_revision": REVISION,
        "sigma": {},
    }
    return Trust(**{**known, "lines": lines, "calibrated_on": "two patients", **changes})


def test_expected_error_is_the_line_inside_its_interval() -> None:
    """By hand: a sign at its center adds nothing, one that is missing and may be neither, a square counts from it."""
    found = _trust().expect(SEEN)
    assert found["body_mae_hu"]["value"] == pytest.approx(math.exp(4.5 + 0.1 * 4))
    assert found["psnr_3d_db"] == {"value": 24.0, "interval": [23.0, 25.5], "unit": "dB"}
    for name in ("body_mae_hu", "psnr_3d_db"):
        low, high = found[name]["interval"]
        assert low <= found[name]["value"] <= high
    assert found["text"] == "expect errors of about 134 HU inside the body (110 to 181 in 9 cases of 10)"
    assert found["confidence"] == 0.9 and found["calibrated_on"] == "two patients"


def test_expected_error_grows_with_what_was_unexplained() -> None:
    """A positive slope makes the error, and both ends, grow with the residual."""
    three = [_trust().expect({**SEEN, "residual_before": value})["body_mae_hu"] for value in (-2.5, -2.0, -1.2)]
    for pick in (lambda e: e["value"], lambda e: e["interval"][0], lambda e: e["interval"][1]):
        values = [pick(each) for each in three]
        assert values == sorted(values) and values[0] < values[2]


def test_what_follows_from_the_first_error_is_told_from_what_is_expected_of_it() -> None:
    """By hand: an MAE expected one deviation above its center takes 2 dB away; for too large a body none is told."""
    follows = (Term("expected_mae", -2.0, 4.9 - 0.5, 0.5, 3.0, 6.0), Term("body", 1.0, 0.0, 1.0, -1.0, 1.0))
    trust = _trust(lines={**_trust().lines, "psnr_3d_db": Line(24.0, follows, -1.0, 1.5, False)})
    assert trust.expect(SEEN)["body_mae_hu"]["value"] == pytest.approx(math.exp(4.9))
    assert trust.expect(SEEN)["psnr_3d_db"]["value"] == pytest.approx(22.0)
    assert "psnr_3d_db" not in trust.expect({**SEEN, "body": 3.0})
    assert "expected_mae" not in trust.expect(SEEN)["signs"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("residual_before", math.nan, "what refining found unexplained at first is not to be had"),
        ("residual_before", math.inf, "is not to be had"),
        ("residual_before", 0.0, "unexplained at first is 1, calibrated from 0.0498 to 0.368"),
        ("beyond", 0.03, "beyond the trained range, as a share is 0.03, calibrated from 0 to 0"),
    ],
)
def test_case_unlike_the_calibrations_gets_no_number(name: str, value: float, words: str) -> None:
    """Beyond what was seen, or without a number, the reason stands in the place of a false interval."""
    found = _trust().expect({**SEEN, name: value})
    assert set(found) == {"text", "reason"} and words in found["reason"]
    assert found["text"].startswith("expected error: not known, unlike the cases of the calibration")


def test_error_without_its_signs_is_left_out_alone() -> None:
    """The chest without lungs has no border of the lungs, but an error in the body."""
    line = Line(1.0, (Term("lung_share", 0.0, 0.0, 1.0, 0.1, 0.6),), -0.1, 0.1)
    trust = _trust(lines={**_trust().lines, "lungs_surface_mm": line})
    assert "lungs_surface_mm" not in trust.expect(SEEN)
    found = trust.expect({**SEEN, "lung_share": 0.3})
    assert found["lungs_surface_mm"]["unit"] == "mm"
    assert found["text"].endswith("; borders of the lungs to about 3 mm (2 to 3)")


def test_sigma_is_recalibrated_by_the_reconstructions_tissue() -> None:
    """Factor and power of each tissue act on its voxels alone; without them sigma stays as it is."""
    hu = np.array([-1000, -950, -500, -100, 40, 150, 800], np.int16)
    sigma = np.full(hu.shape, 50.0, np.float32)
    np.testing.assert_array_equal(_trust().recalibrate(sigma, hu), sigma)
    pairs = {name: (1.0 + index, 1.0 if index < 4 else 0.5) for index, name in enumerate(TISSUES)}
    expected = [50, 100, 100, 150, 200, 5 * 100 * 0.5**0.5, 5 * 100 * 0.5**0.5]
    np.testing.assert_allclose(_trust(sigma=pairs).recalibrate(sigma, hu), expected, rtol=1e-5)


def test_shipped_calibration_belongs_to_the_shipped_weights() -> None:
    """Both checkpoints by their hashes; all four errors; every term a sign."""
    trust = load_trust()
    assert trust.checkpoints == {file_hash(path): path.name for path in (default_checkpoint(), wide_checkpoint())}
    assert list(trust.lines) == ["body_mae_hu", "psnr_3d_db", "lungs_surface_mm", "body_surface_mm"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("errors"),
        lambda content: content["errors"]["body_mae_hu"].update(below=0.1),
        lambda content: content["errors"]["body_mae_hu"]["terms"][0].update(name="mood"),
        lambda content: content["errors"]["body_mae_hu"]["terms"][0].update(scale=0),
        lambda content: content.update(sigma={"air": [1, 1]}),
    ],
)
def test_calibration_that_cannot_be_is_refused(change: Any, tmp_path: Path) -> None:
    """The file is named, whatever is wrong in it."""
    content = json.loads((default_checkpoint().parent / "trust.json").read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"trust\.json must hold a calibration"):
        load_trust(path)


def _result(**changes: Any) -> Reconstruction:
    size = 32
    x, y, _ = np.indices((size,) * 3) - (size - 1) / 2
    hu = np.where(x**2 + y**2 < 100, 30, -1000).astype(np.int16)
    image = np.random.default_rng(0).uniform(0, 4, (2, 128, 128)).astype(np.float32)
    values = {"agreement": {}, "reprojected": image, "image": image, "calibrated": True, "refinement": REPORT}
    return Reconstruction(hu, volume_affine((size,) * 3, 11.2), **{**values, **changes})


def test_other_weights_and_other_steps_get_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not calibrated is said in one line, before anything is computed."""
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"mine")
    network = cast(Any, SimpleNamespace())
    found = expect.expect_error(_result(), BEAM, network, weights)
    known = "it is calibrated for the released model.pt and any_geometry.pt alone, not for weights of SHA-256"
    assert found["reason"] == f"{known} {file_hash(weights)[:8]}"
    monkeypatch.setattr(expect, "load_trust", lambda: _trust(checkpoints={file_hash(weights): "mine.pt"}))
    fewer = replace(REPORT, steps=4)
    for report in (None, fewer):
        found = expect.expect_error(_result(refinement=report), BEAM, network, weights)
        assert found == unknown("it is calibrated for CTs refined in 8 steps")
    badly = replace(REPORT, stopped="unexplained", steps=0)
    assert "explained worse" in expect.expect_error(_result(refinement=badly), BEAM, network, weights)["reason"]
    older = _trust(checkpoints={file_hash(weights): "mine.pt"}, refine_revision=REVISION - 1)
    monkeypatch.setattr(expect, "load_trust", lambda: older)
    assert "another way of refining" in expect.expect_error(_result(), BEAM, network, weights)["reason"]
    monkeypatch.setattr(expect, "load_trust", lambda: replace(older, refine_revision=REVISION))
    posed = replace(REPORT, calibration=[{"known": "calibrated", "pose": {}}])
    assert "pose" in expect.expect_error(_result(refinement=posed), BEAM, network, weights)["reason"]


def test_shipped_calibration_belongs_to_todays_refining(tmp_path: Path) -> None:
    """Whoever changes what refining does must calibrate again; a file that does not say its way is of an older one."""
    shipped = bundle_root() / "models" / "trust.json"
    assert load_trust(shipped).refine_revision == REVISION
    content = json.loads(shipped.read_text(encoding="utf-8"))
    del content["refine_revision"]
    (tmp_path / "trust.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_trust(tmp_path / "trust.json").refine_revision == 0


def test_signs_are_finite_and_tell_a_second_opinion(small_cascade: Any) -> None:
    """Twice the same; another network differs from the first, the same one does not; what is absent is NaN."""
    network, other = (small_cascade(stage=1).eval() for _ in range(2))
    for parameter in other.parameters():
        parameter.data.add_(0.01)
    result = _result()
    alone, again = (measure_signs(result, BEAM, network) for _ in range(2))
    assert list(alone) == list(SIGNS)
    missing = {name for name, value in alone.items() if not math.isfinite(value)}
    assert missing == {"second", "second_change", "second_residual", "sigma", "lung_hu"}
    assert {n: v for n, v in alone.items() if n not in missing} == {n: v for n, v in again.items() if n not in missing}
    same = measure_signs(result, BEAM, network, second=network, sigma=np.full((32,) * 3, 50.0, np.float32))
    assert same["second"] < math.log(1e-3) < measure_signs(result, BEAM, network, second=other)["second"]
    assert same["sigma"] == pytest.approx(math.log(50))
    assert alone["residual_before"] == pytest.approx(math.log(0.2)) and alone["soft_hu"] == 30
    litres = float((result.hu > -500).sum()) * 11.2**3 / 1e6
    assert alone["body"] == pytest.approx(math.log(litres))
