# SPDX-License-Identifier: Apache-2.0
"""A folder of X-rays: the views as NIfTI, their geometry, how they were exposed, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, save_geometry

if TYPE_CHECKING:
    import numpy as np

    from progressive_cascade.physics import Exposure

VIEW_FILES = ("pa.nii.gz", "lateral.nii.gz")
"""Names of the two radiographs in a folder of X-rays of a PA and a left lateral."""
EXPOSURE_FILE = "exposure.json"
"""Name of the exposure's settings beside radiographs that are not of 70 keV without noise."""
DISPLAY_WHITE = 4095
"""Largest pixel value of a display radiograph: 12 bits, as radiographs are stored. So large a number is no line
integral, and `reconstruct` sees that."""


def view_files(beam: ConeBeam) -> tuple[str, ...]:
    """File names of a geometry's radiographs: :data:`VIEW_FILES`, or the view's name for any other set of views.

    Raises:
        UserError: if two views have the same name.
    """
    if len(set(beam.views)) != len(beam.views):
        raise UserError(f"geometry must have different views, got {', '.join(beam.views)}")
    if beam.views == ConeBeam().views:
        return VIEW_FILES
    return tuple(f"{view}.nii.gz" for view in beam.views)


def folder_files(beam: ConeBeam, folder: Path) -> list[Path]:
    """Every file that :func:`write_xrays` writes or removes.

    Raises:
        UserError: if two views have the same name.
    """
    return [folder / name for name in (*view_files(beam), "geometry.json", EXPOSURE_FILE, "radiographs.png")]


def read_exposure(path: Path) -> Exposure:
    """Reads the exposure that `simulate` wrote beside its X-rays.

    Args:
        path: exposure.json.

    Returns:
        The settings.

    Raises:
        UserError: if the file does not hold an exposure.
    """
    from progressive_cascade.io import read_json
    from progressive_cascade.physics import Exposure

    try:
        record = read_json(path, "exposure file")
        return Exposure.from_dict({key: value for key, value in record.items() if key not in ("seed", "pixels")})
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"exposure file {path}: {error}") from error


def write_xrays(
    image: np.ndarray,
    beam: ConeBeam,
    folder: Path,
    *,
    photometric: str | None = None,
    exposure: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder of X-rays.

    Args:
        image: line integrals (view, rows, cols).
        beam: their geometry.
        folder: where to; made where it is missing.
        photometric: store display values of 12 bits, MONOCHROME1 or MONOCHROME2; None: the line integrals.
        exposure: what exposure.json says; None: an ideal exposure, no such file.
    """
    import numpy as np

    from progressive_cascade.io import atomic_paths, save_json, save_nifti

    stored = image if photometric is None else _display_values(image, photometric)
    dtype = np.float32 if photometric is None else np.int16
    *names, exposure_file, picture = folder_files(beam, folder)
    # An exposure that an earlier run left here would tell of other radiographs.
    files, obsolete = (
        ([*names, picture], [exposure_file]) if exposure is None else ([*names, picture, exposure_file], [])
    )
    with atomic_paths(*files, obsolete=obsolete) as temporaries:
        for view in range(len(beam.views)):
            pixels = np.ascontiguousarray(stored[view].T[..., None], dtype=dtype)
            save_nifti(pixels, beam.detector_affine(view), temporaries[view])
        save_geometry(beam, temporaries[len(beam.views)])
        _draw(image, beam, temporaries[len(names)])
        if exposure is not None:
            save_json(dict(exposure), temporaries[-1])


def _display_values(image: np.ndarray, photometric: str) -> np.ndarray:
    import torch

    from progressive_cascade.physics import display_image

    return (display_image(torch.from_numpy(image), photometric=photometric) * DISPLAY_WHITE).round().numpy()


def _draw(image: np.ndarray, beam: ConeBeam, path: Path) -> None:
    """The views side by side, bone bright."""
    from progressive_cascade.report.figures import radiographs_figure

    if beam.views == ConeBeam().views:
        radiographs_figure(image, path)
        return
    import numpy as np

    from progressive_cascade.report.drawing import caption, film_values, heading, mosaic, save_figure
    from progressive_cascade.report.stills import side_letters

    height, width = (size * step for size, step in zip(beam.detector_shape, beam.pixel_spacing, strict=True))
    aspect = beam.pixel_spacing[0] / beam.pixel_spacing[1]
    figure, grid = mosaic([width] * len(beam.views), [height], top=0.3)
    for view, name in enumerate(beam.views):
        axes = figure.add_subplot(grid[0, view])
        film = film_values(image[view])
        white = max(float(np.quantile(film, 0.995)), 1e-3)
        axes.imshow(film, cmap="gray", vmin=0, vmax=white, interpolation="bilinear", aspect=aspect)
        axes.set_axis_off()
        heading(axes, name.replace("_", " "))
        caption(axes, side_letters(beam, view)[0])
    save_figure(figure, path)
