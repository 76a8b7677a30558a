# SPDX-License-Identifier: Apache-2.0
"""The report page: a case as one HTML file that opens anywhere, without a network and without a server.

Slices and rendering are drawn by NiiVue, which the page carries; without JavaScript, without WebGL 2 and in print it
still shows pictures, numbers and warnings. Its content security policy names the scripts by their hashes and forbids
every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.io import atomic_paths
from progressive_cascade.report import wording
from progressive_cascade.report.embedding import VOLUME_BUDGET, embed, embed_volumes, shrink
from progressive_cascade.report.expected import expected_cards, expected_sections
from progressive_cascade.report.figures import comparison_figure, volume_figure
from progressive_cascade.report.stills import films, picture_address

NIIVUE_VERSION = "0.69.0"
"""Of the viewer in `assets`; `tools/update_niivue.py` renews it."""
PAGE_SUFFIXES = (".html", ".htm")
"""How a page's name may end."""
WINDOWS = {"Lung": (1500, -600), "Soft tissue": (400, 40), "Bone": (1800, 400), "Wide": (1600, -300)}
"""Windows to choose from (width, level) [HU], as set at a reading station."""
DIFFERENCE_LIMIT_HU = 500
"""End of the colour scale of reconstruction minus truth [HU]."""
_SIGMA_GRID = 64
_SCRIPTS = ("boot.js", "niivue.umd.js", "volumes.js", "first.js", "viewer.js", "page.js")


@dataclass(frozen=True)
class ReportCase:
    """A finished case.

    Args:
        name: what the page is called.
        hu: the reconstruction (x, y, z) [HU].
        affine: (4, 4), voxel index to RAS mm.
        beam: geometry of the radiographs.
        reprojected: line integrals of the reconstruction (view, rows, cols).
        radiographs: those it was made from, same shape; None where they were not kept.
        record: the sidecar; keys that this version does not know are shown as they are.
        sigma: standard deviation of the error, of the shape of ``hu`` [HU].
        truth: the true CT, of the shape of ``hu`` [HU].
        scores: against the truth, by name.
        picture: a PNG that shows the case already; None to draw one.
    """

    name: str
    hu: np.ndarray
    affine: np.ndarray
    beam: ConeBeam
    reprojected: np.ndarray
    radiographs: np.ndarray | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    sigma: np.ndarray | None = None
    truth: np.ndarray | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    picture: Path | None = None

    def __post_init__(self) -> None:
        for name in ("sigma", "truth"):
            volume = getattr(self, name)
            if volume is not None and volume.shape != self.hu.shape:
                raise ValueError(f"{name} must have the reconstruction's shape {self.hu.shape}, got {volume.shape}")
        expected = (len(self.beam.views), *self.beam.detector_shape)
        for name in ("reprojected", "radiographs"):
            image = getattr(self, name)
            if image is not None and image.shape != expected:
                raise ValueError(f"{name} must have the geometry's shape {expected}, got {image.shape}")


def write_page(case: ReportCase, path: str | PathLike[str]) -> None:
    """Writes the page of a case, whole or not at all.

    Args:
        case: what to show.
        path: the file, ``.html``.

    Raises:
        UserError: where the file cannot be written.
    """
    save_text(render_page(case), path)


def save_text(text: str, path: str | PathLike[str]) -> None:
    """Writes a page, whole or not at all.

    Raises:
        UserError: where the file cannot be written.
    """
    try:
        with atomic_paths(path) as (temporary,):
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"page {path} must be writable, got: {error.strerror or error}") from error


def render_page(case: ReportCase) -> str:
    """The page of a case as HTML."""
    volumes, sigma, sigma_max = _volumes(case)
    step = volumes["ct"].step
    shape, spacing = case.hu.shape, np.linalg.norm(case.affine[:3, :3], axis=0)
    data = {
        "volumes": {name: {"header": v.header, "shape": v.shape, "step": v.step} for name, v in volumes.items()},
        "sigma_max": sigma_max,
        "difference_limit": DIFFERENCE_LIMIT_HU,
    }
    grid = f"{' × '.join(map(str, shape))} voxels of {spacing[0]:.3g} mm"
    boot, *scripts = (asset(name) for name in _SCRIPTS)
    versions = case.record.get("versions")
    return fill(
        "page.html",
        policy=policy([boot, *scripts]),
        boot=boot,
        style=asset("page.css"),
        title=case.name,
        subtitle=f"CT of {grid}, estimated from {len(case.beam.views)} radiographs",
        warnings=wording.warnings(case.record),
        windows=WINDOWS,
        has_sigma=case.sigma is not None,
        has_truth=case.truth is not None,
        sigma_max=sigma_max,
        difference_limit=DIFFERENCE_LIMIT_HU,
        films=films(case.beam, case.reprojected, case.radiographs),
        cards=[*expected_cards(case.record), *wording.cards(case.record, *_on_sigma_grid(case, sigma))],
        stills=_stills(case),
        sections=_sections(case),
        record=json.dumps(case.record, indent=2, ensure_ascii=False, default=str),
        version=versions.get("progressive-cascade", "") if isinstance(versions, Mapping) else "",
        rounding=f"Its CT is rounded to {step} HU; the file beside it is exact." if step > 1 else "",
        niivue_version=NIIVUE_VERSION,
        licence=asset("niivue.LICENSE.txt"),
        data=data,
        volumes={name: volume.text for name, volume in volumes.items()},
        scripts=scripts,
    )


def fill(template: str, **values: Any) -> str:
    """A template of `assets` with its values; every text is escaped, what the package ships is not.

    Args:
        template: file name.
        values: by their names in the template.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    for name in ("style", "policy", "boot"):
        values[name] = Markup(values.get(name, ""))
    if "scripts" in values:
        values["scripts"] = [Markup(script) for script in values["scripts"]]
    return environment.from_string(asset(template)).render(asset=asset, **values)


@cache
def asset(name: str) -> str:
    """A text file of `assets`."""
    folder = resources.files("progressive_cascade.report") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def policy(scripts: list[str]) -> str:
    """A content security policy that runs these scripts and no other, and lets no request out."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    allowed = f"script-src {' '.join(hashes)}; " if hashes else ""
    return (
        f"default-src 'none'; {allowed}style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def _volumes(case: ReportCase):
    """The embedded volumes by name, sigma on its coarse grid (or None), and the end of its colour scale [HU]."""
    found, small, top, budget = {}, None, 0, VOLUME_BUDGET
    if case.sigma is not None:
        small, affine = shrink(case.sigma, case.affine, _SIGMA_GRID)
        found["sigma"] = embed(small, affine)
        top = int(max(100, 50 * np.ceil(np.quantile(small, 0.995) / 50)))
        budget -= len(found["sigma"].text)
    cts = {"ct": case.hu} if case.truth is None else {"ct": case.hu, "truth": case.truth}
    return {**embed_volumes(cts, case.affine, budget=budget), **found}, small, top


def _on_sigma_grid(case: ReportCase, sigma: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray]:
    return sigma, case.hu if sigma is None else shrink(case.hu, case.affine, _SIGMA_GRID)[0]


def _stills(case: ReportCase) -> list[dict[str, str]]:
    """The picture of the case: as it was drawn already, or drawn now."""
    if case.truth is not None:
        alt = "True CT, reconstruction and error on three planes; radiographs, re-projections and their difference"
    else:
        alt = "The reconstruction on axial, coronal and sagittal planes in a lung and a soft-tissue window"
    caption = f"{alt}. The patient's right is on the left; in lateral views the front is."
    if case.picture is not None and case.picture.is_file():
        return [{"uri": picture_address(case.picture), "alt": alt, "caption": caption}]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        spacing = [float(step) for step in np.linalg.norm(case.affine[:3, :3], axis=0)]
        if case.truth is not None and case.radiographs is not None and len(case.reprojected) == 2:
            comparison_figure(
                case.truth,
                case.hu,
                radiographs=case.radiographs,
                reprojected=case.reprojected,
                path=path,
                spacing=spacing,
            )
        else:
            two = case.radiographs is not None and len(case.radiographs) == 2
            volume_figure(case.hu, spacing, path, radiographs=case.radiographs if two else None)
        return [{"uri": picture_address(path), "alt": alt, "caption": caption}]


def _sections(case: ReportCase) -> list[dict[str, Any]]:
    """The text below the viewer."""
    record, sections = case.record, []
    rows = wording.score_rows(case.scores)
    if rows:
        text = "The true CT of this patient is known. These numbers say how close the reconstruction comes to it."
        sections.append(wording.Section("Against the true CT", "scores", [text], rows=rows))
    else:
        text = "The true CT of this patient is not known here: how close this one is can be expected, not measured."
        sections.append(wording.Section("Scores", "scores", [text]))
    sections += expected_sections(record)
    measured = wording.clinical_rows(record)
    if measured:
        text = (
            "Found by thresholds, with no organ recognised: body above -500 HU, lung between -950 and -500, bone above "
            "150. The heart is what stands between the lungs. Dice is 1 where two masks are the same."
        )
        sections.append(wording.Section("Measured on the chest", "clinical", [text], rows=measured))
    sections.append(wording.reading_section(has_sigma=case.sigma is not None))
    assumptions = wording.texts_of(record.get("assumptions"))
    if assumptions:
        text = "The files did not say this; it was assumed. If one of these is wrong, so is the CT."
        sections.append(wording.Section("Assumptions", "assumptions", [text], bullets=assumptions))
    sections.append(wording.Section("Geometry", "geometry", rows=wording.geometry_rows(case.beam, case.record)))
    refined = wording.refinement_rows(record)
    if refined:
        sections.append(wording.Section("Refined on this case", "refinement", rows=refined))
    return [asdict(section) for section in sections]
