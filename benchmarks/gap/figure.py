# SPDX-License-Identifier: Apache-2.0
"""One patient as a small stage 1 sees it: truth, answer and error, with the borders of body and lungs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gap.shares import TISSUE_HU, body_of
from progressive_cascade.io import atomic_path


def save_figure(prediction: np.ndarray, truth: np.ndarray, *, title: str, path: Path) -> None:
    """Truth, answer and error in a coronal and an axial slice through the middle of the body.

    Args:
        prediction: (x, y, z) [HU].
        truth: the same.
        title: above the pictures.
        path: of the picture; its ending says the format.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    inside = np.argwhere(body_of(truth))
    x, y, z = np.rint(inside.mean(0)).astype(int)
    del x
    cuts = {"coronal": np.s_[::-1, y, :], "axial": np.s_[::-1, :, z]}  # the patient's right on the left
    figure, axes = pyplot.subplots(len(cuts), 3, figsize=(9, 6.2), layout="constrained")
    columns = (("truth", truth), ("answer", prediction), ("answer − truth", prediction - truth))
    for row, (name, cut) in zip(axes, cuts.items(), strict=True):
        for axis, (label, volume) in zip(row, columns, strict=True):
            error = label == columns[2][0]
            limits = (
                {"cmap": "RdBu_r", "vmin": -600, "vmax": 600} if error else {"cmap": "gray", "vmin": -1000, "vmax": 400}
            )
            axis.imshow(volume[cut].T, origin="lower", **limits)
            for kind, color in ((truth, "tab:green"), (prediction, "tab:orange")):
                axis.contour(kind[cut].T, [TISSUE_HU], colors=color, linewidths=0.9)
            axis.set_title(f"{name}: {label}", fontsize=9)
            axis.axis("off")
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=100)
    pyplot.close(figure)
