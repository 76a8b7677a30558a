# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of a job: options of `reconstruct`, checked before the job is accepted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from progressive_cascade.errors import UserError

Length = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]


class JobOptions(BaseModel):
    """Options of one job; what is left out is read from the files, or assumed and said so."""

    model_config = ConfigDict(extra="forbid", strict=True)

    refine: Annotated[int, Field(ge=0, le=1000, description="steps of refinement on these X-rays")] = 8
    find_pose: Annotated[bool, Field(description="also look for small shifts and turns")] = False
    find_size: Annotated[bool, Field(description="as large as stage 1 explains line integrals best")] = False
    preset: Literal["bedside_ap", "c_arm", "chest_stand", "x2ct", "xmed"] | None = None
    source_to_detector: Annotated[Length | None, Field(description="mm")] = None
    source_to_isocenter: Annotated[Length | None, Field(description="mm")] = None
    pixel_spacing: Annotated[Length | None, Field(description="mm, at the detector")] = None
    field_of_view: Annotated[Length | None, Field(description="mm, longer side at the detector")] = None
    intensities: Literal["calibrated", "scaled", "display"] | None = None
    spectrum: Annotated[str | None, Field(pattern=r"^\d{2,3}(\.\d)?(kV|keV)$", description="120kV or 70keV")] = None
    trust: Literal["tags", "picture"] | None = None
    surroundings: Annotated[Literal["seen", "none"] | None, Field(description="above and below the cube")] = None
    strict: Annotated[bool, Field(description="refuse at a warning")] = False
    dicom: Annotated[bool, Field(description="also a DICOM series")] = True
    keep_identity: Annotated[bool, Field(description="of the DICOM series: the patient of the X-rays")] = False
    uncertainty: Annotated[bool, Field(description="also the standard deviation of every voxel")] = False
    report: Annotated[bool, Field(description="also the report page")] = True

    def arguments(self) -> list[str]:
        """Arguments of `reconstruct`, paths relative to the job's folder."""
        found = ["--output", "work/ct.nii.gz", "--refine", str(self.refine)]
        for name in ("preset", "source_to_detector", "source_to_isocenter", "pixel_spacing", "field_of_view"):
            found += _given(name, getattr(self, name))
        for name in ("intensities", "spectrum", "surroundings"):
            found += _given(name, getattr(self, name))
        found += [f"--trust-{self.trust}"] if self.trust else []
        found += ["--dicom-output", "work/dicom"] if self.dicom else []
        found += ["--uncertainty", "work/sigma.nii.gz"] if self.uncertainty else []
        found += [] if self.report else ["--no-report"]
        flags = ("find_pose", "find_size", "strict", "keep_identity")
        return found + [f"--{name.replace('_', '-')}" for name in flags if getattr(self, name)]


def _given(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name.replace('_', '-')}", str(value)]


def read_options(text: str) -> JobOptions:
    """Reads a client's options.

    Args:
        text: a JSON object, empty for none.

    Returns:
        The options.

    Raises:
        UserError: naming the first that is wrong and what it must be.
    """
    try:
        options = JobOptions.model_validate_json(text or "{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise UserError(f"options{' ' + where if where else ''}: {first['msg'][:160]}") from error
    if options.keep_identity and not options.dicom:
        raise UserError("options keep_identity must come with dicom")
    if options.pixel_spacing is not None and options.field_of_view is not None:
        raise UserError("options pixel_spacing must come without field_of_view")
    return options
