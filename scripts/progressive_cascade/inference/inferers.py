# SPDX-License-Identifier: Apache-2.0
"""Running a cascade: mixed precision around it, and the last stage by sliding windows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from progressive_cascade.consistency import DataConsistency, estimate_noise
from progressive_cascade.errors import UserError
from progressive_cascade.inference.refine import RefineSettings
from progressive_cascade.inference.refine_cache import refine_cached
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.stages import EXTENT
from progressive_cascade.precision import mixed_precision
from progressive_cascade.projector import prefer_backend

_log = logging.getLogger(__name__)
# Conjugate-gradient steps of a round.
_ITERATIONS = 3
# Voxels a side of the last stage's windows where the whole volume is not taken at once.
_WINDOW = 160
# What refining 256³ voxels whole needs at once: 1.9 GB were measured on an H100 in float32, twice that is asked for.
_WHOLE_VOLUME_BYTES = 4 * 2**30
# The cascade's further arguments in their order.
_ARGUMENTS = ("projection_matrices", "calibrated", "window", "weights", "coarse")


class _Given(NamedTuple):
    """What is known of the radiographs, see :meth:`ProgressiveCascade.forward`."""

    projection_matrices: Tensor | None = None
    calibrated: Tensor | None = None
    weights: Tensor | None = None

    def matrices(self, image: Tensor, cascade: ProgressiveCascade) -> Tensor:
        """(1 or b, view, 3, 4), the cascade's own where none are given."""
        given = self.projection_matrices
        return (cascade.projection_matrices[None] if given is None else given).to(image)


class DeviceDefaults(NamedTuple):
    """How a cascade is run on a device where nobody says otherwise.

    Attributes:
        roi_size: window of the last stage [voxels]; None: no windows.
        amp: mixed precision where the device has it.
    """

    roi_size: int | None
    amp: bool


def device_defaults(device: str | torch.device, free: int | None = None) -> DeviceDefaults:
    """The fastest window and precision that fit.

    Whole volumes are faster everywhere: in windows of 160 voxels a CPU takes 1.4 times the time, and a third
    less memory; results differ by 0.1 HU. Half precision wins on a CPU that has instructions for it. On an
    H100, where launches take the time, a reconstruction took 0.40 s in float32 and 0.58 s in bfloat16.

    Args:
        device: where the network lies.
        free: memory that a GPU has left [bytes]; default: it is asked.

    Returns:
        Window and precision.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return DeviceDefaults(None, amp=True)
    if device.type == "cuda" and free is None:
        free = torch.cuda.mem_get_info(device)[0]
    return DeviceDefaults(None if (free or 0) >= _WHOLE_VOLUME_BYTES else _WINDOW, amp=device.type != "cuda")


class CascadeInferer(Inferer):
    """Stages before the last run whole, the last one by Gaussian-weighted windows; data consistency closes it whole.

    While the network trains, or where ``roi_size`` is None or covers the grid, the network runs in one piece. So does
    a network that is no :class:`ProgressiveCascade`, such as its TorchScript, which also keeps its own precision.

    Args:
        roi_size: window of the last stage per axis, a multiple of 8 [voxels]; None: no windows.
        overlap: share of a window that its neighbour covers, in [0, 1).
        sw_batch_size: windows that run at once.
        amp: run in mixed precision; on a CPU that has no instructions for it, in float32 all the same.
        amp_dtype: "bfloat16" or "float16".
        progress: show a progress bar over the windows.
        consistency_rounds: times that the result of a calibrated pair is pulled further to its radiographs than the
            network does by itself, each time by three conjugate-gradient steps and a return to the range of HU, with λ
            from the radiographs' noise; 0 to leave it. Not while the network trains.
        portable: project in plain torch, so that a reconstruction is the same voxel for voxel with numba and without;
            it takes two to three times as long on a CPU, and differs by rounding alone.
        refine_steps: steps in which stage 1 is refined on the radiographs at hand (:mod:`.refine`), 0 to 1000; also
            while a later stage trains behind it, not while stage 1 trains, nor where the network is a program.
        intensities: what refining takes for known of pairs that are not calibrated, ``scaled`` or ``display``.
        refine_cache: folder that keeps what refining found (:mod:`.refine_cache`); None: nothing is kept.

    Raises:
        UserError: if the number of steps is impossible.
        ValueError: if another argument does not fit.
    """

    def __init__(
        self,
        roi_size: int | Sequence[int] | None = _WINDOW,
        *,
        overlap: float = 0.25,
        sw_batch_size: int = 1,
        amp: bool = False,
        amp_dtype: str = "bfloat16",
        progress: bool = False,
        consistency_rounds: int = 2,
        portable: bool = False,
        refine_steps: int = 0,
        intensities: str = "display",
        refine_cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        sizes = [roi_size] * 3 if isinstance(roi_size, int) else None if roi_size is None else list(roi_size)
        if sizes is not None and (len(sizes) != 3 or any(size < 8 or size % 8 for size in sizes)):
            raise ValueError(f"roi_size must be one or three positive multiples of 8, got {roi_size}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
        if amp_dtype not in ("bfloat16", "float16"):
            raise ValueError(f"amp_dtype must be 'bfloat16' or 'float16', got {amp_dtype!r}")
        if consistency_rounds < 0:
            raise ValueError(f"consistency_rounds must not be negative, got {consistency_rounds}")
        if intensities not in ("scaled", "display"):
            raise ValueError(f"intensities must be 'scaled' or 'display', got {intensities!r}")
        self.refine_settings = RefineSettings(steps=refine_steps)
        self.intensities = intensities
        self.refine_cache = refine_cache
        self.consistency_rounds = consistency_rounds
        self.roi_size = sizes
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.amp = amp
        self.amp_dtype = getattr(torch, amp_dtype)
        self.progress = progress
        self.backend = "torch" if portable else "auto"

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Reconstruct.

        Args:
            inputs: line integrals (b, view, rows, cols).
            network: a :class:`ProgressiveCascade`, bare, wrapped for distributed training, or as TorchScript.
            args: further positional arguments of the network.
            kwargs: its ``projection_matrices``, ``calibrated``, ``weights``, ``window`` (training on crops), and
                ``coarse``, a volume in place of stage 1's, which is then not refined.

        Returns:
            (b, 1, g, g, g) in [0, 1], float32.

        Raises:
            UserError: if the device's memory does not suffice, with sizes and a way out.
        """
        try:
            return self._run(inputs, network, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            window = "none" if self.roi_size is None else " x ".join(map(str, self.roi_size))
            raise UserError(
                f"the reconstruction must fit into the memory of {inputs.device}, got a batch of {len(inputs)} pairs "
                f"of {inputs.shape[2]} x {inputs.shape[3]} pixels with windows (roi_size) of {window}; take a smaller "
                "window, such as roi_size 128, a smaller batch, or the CPU"
            ) from error

    def _run(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        cascade = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        if not isinstance(cascade, ProgressiveCascade):
            if self.refine_settings.steps and isinstance(cascade, torch.jit.ScriptModule):
                _log.warning("refine_steps: a TorchScript program has no weights to refine; its own volume is kept")
            with self._autocast(inputs.device.type, network), prefer_backend(self.backend):
                return network(inputs, *args, **kwargs)
        named = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        window, coarse = named.pop("window", None), named.pop("coarse", None)
        given = _Given(**named)
        with self._autocast(inputs.device.type, network), prefer_backend(self.backend):
            # What stage 1 itself learns from must be its own.
            if self.refine_settings.steps and coarse is None and (cascade.stage > 1 or not cascade.training):
                inputs, given, coarse = self._refine(inputs, cascade, given)
            if cascade.training:
                return network(inputs, window=window, coarse=coarse, **given._asdict())
            if cascade.stage == 1 and coarse is not None:
                volume = coarse
            elif window is None and cascade.stage > 1 and min(self.roi_size or [cascade.grid]) < cascade.grid:
                volume = self._by_windows(inputs, cascade, given, coarse)
            else:
                volume = network(inputs, window=window, coarse=coarse, **given._asdict())
            return self._solve(volume, inputs, cascade, given) if self.consistency_rounds else volume

    def _refine(self, image: Tensor, cascade: ProgressiveCascade, given: _Given) -> tuple[Tensor, _Given, Tensor]:
        """The radiographs as calibrated, what is known of them then, and stage 1's refined volume."""
        flags = [True] * len(image) if given.calibrated is None else (given.calibrated > 0).cpu().tolist()
        known = ["calibrated" if flag else self.intensities for flag in flags]
        matrices = given.matrices(image, cascade)
        found = refine_cached(
            cascade,
            image,
            matrices,
            known=known,
            settings=self.refine_settings,
            mask=given.weights,
            folder=self.refine_cache,
        )
        for report in found.reports:
            for line in report.warnings:
                _log.warning("refine: %s", line)
        return found.image, _Given(found.matrices, found.calibrated, given.weights), found.volume

    def _autocast(self, device_type: str, network: Any) -> AbstractContextManager[Any]:
        # A scripted projector cannot leave autocast by itself, and line integrals in half precision are worthless.
        scripted = isinstance(network, torch.jit.ScriptModule)
        return mixed_precision(device_type, self.amp_dtype) if self.amp and not scripted else nullcontext()

    def _solve(self, volume: Tensor, image: Tensor, cascade: ProgressiveCascade, given: _Given) -> Tensor:
        matrices = given.matrices(image, cascade).expand(len(image), -1, -1, -1)
        noise = float(estimate_noise(image).max())
        solver = DataConsistency(cascade.grid, EXTENT / cascade.grid, _ITERATIONS, noise=noise).to(image.device)
        for _ in range(self.consistency_rounds):
            volume = solver(volume, image, matrices, given.calibrated, given.weights)
        return volume

    def _by_windows(
        self,
        image: Tensor,
        cascade: ProgressiveCascade,
        given: _Given,
        coarse: Tensor | None,
    ) -> Tensor:
        prior, context = cascade.prepare_stage(image, *given, coarse)
        last = cascade.stages[-1]
        volumes = []
        for b in range(len(image)):
            shared = type(context)(*(part[b : b + 1] for part in context))

            def refine_windows(windows: Tensor, coordinates: Sequence[Sequence[slice]], shared: Any = shared) -> Tensor:
                starts = [[axis.start for axis in where[2:]] for where in coordinates]
                parts = [last(window[None], start, shared) for window, start in zip(windows, starts, strict=True)]
                return torch.cat(parts)

            volume = sliding_window_inference(
                prior[b : b + 1],
                self.roi_size or cascade.grid,
                self.sw_batch_size,
                refine_windows,
                overlap=self.overlap,
                mode="gaussian",
                with_coord=True,
                progress=self.progress,
            )
            volumes.append(volume)
        known = (context.matrices, given.calibrated, given.weights)
        return last.consistency(torch.cat(volumes), image, *known)  # pyright: ignore[reportCallIssue]
