# SPDX-License-Identifier: Apache-2.0
"""The cascade: one module, one tensor in, one tensor out."""

from typing import Any, ClassVar, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.consistency import program_axes
from progressive_cascade.geometry import ConeBeam, GeometryRange, parse_beam, parse_range
from progressive_cascade.networks.blocks import Block
from progressive_cascade.networks.stages import RefinementStage, StageContext
from progressive_cascade.networks.xray import XrayConditioningModule

NUM_STAGES = 3
# The mean of a thorax in its cube, in [0, 1].
_START = 0.3
# What stands in a state dict for no range.
_NO_RANGE = [0.0] * 7
# A refining stage changes a voxel by some 0.05, and its features are of the size of 1. Without this factor the first
# steps of its last layer, each as large as the learning rate in every weight, would throw the volume away.
_REFINEMENT_GAIN = 0.1


class ProgressiveCascade(nn.Module):
    """Two radiographs in, a CT volume out, through one to three stages of doubling resolution.

    Every stage is a residual U-Net on what the stage before made and on the radiographs (:class:`RefinementStage`);
    the first one starts from a constant. Data consistency can close any stage. The world of the network has its
    isocenter at the origin; the geometry sits in it as projection matrices and travels in its state dict.

    Args:
        stage: number of stages, 1 to 3; the output grid is ``64 * 2 ** (stage - 1)`` at the default ``image_size``.
        geometry: preset's name, mapping of :class:`ConeBeam` fields, or the object itself.
        unet_channels: of the U-Net of each stage, at 1/2, 1/4, ... of the stage's grid.
        normalize: whether each stage's U-Net normalises its features, voxel by voxel.
        consistency_iterations: conjugate-gradient steps that close each stage; 0: none.
        encoder_channels: of the radiograph pyramid at 1/2, 1/4, 1/8, 1/16 and 1/32.
        token_dim: channels of an X-ray token.
        num_heads: attention heads; must divide ``token_dim`` and the last of each stage's ``unet_channels``.
        vit_depth: transformer blocks over the radiographs.
        cross_view: whether X-ray tokens attend to both views.
        cross_attention: whether the U-Nets attend to X-ray tokens at their coarsest level.
        lift_pixels: whether every voxel gathers the radiographs at its own projection.
        lift_channels: features per view that are lifted likewise; 0 and no cross-attention: no 2-D encoder at all.
        gradient_checkpointing: recompute every block in the backward pass instead of keeping its activations.
        freeze_earlier: train the last stage alone; the encoder and the earlier stages stay as loaded, in eval mode.
        geometry_range: what geometries it is trained for, the object or a mapping of its fields; None: its own alone.
            It travels in the state dict.

    Raises:
        ValueError: if an argument does not fit, or the geometry's detector is not a square multiple of 64.
    """

    __jit_unused_properties__: ClassVar[List[str]] = ["geometry_range"]
    projection_matrices: Tensor
    range_values: Tensor

    def __init__(
        self,
        *,
        stage: int = NUM_STAGES,
        geometry: Union[str, Dict, ConeBeam] = "chest_stand",
        unet_channels: Sequence[Sequence[int]] = ((32, 80, 128, 128), (16, 48, 96), (16, 48, 96)),
        normalize: Sequence[bool] = (False, True, True),
        consistency_iterations: Sequence[int] = (0, 0, 3),
        encoder_channels: Sequence[int] = (12, 24, 48, 96, 128),
        token_dim: int = 128,
        num_heads: int = 4,
        vit_depth: int = 2,
        cross_view: bool = True,
        cross_attention: bool = False,
        lift_pixels: bool = True,
        lift_channels: int = 0,
        gradient_checkpointing: bool = False,
        freeze_earlier: bool = False,
        geometry_range: Union[Dict, GeometryRange, None] = None,
    ) -> None:
        super().__init__()
        beam = parse_beam(geometry)
        self.stage = _parse_stage(stage)
        self.freeze_earlier = freeze_earlier
        self.image_size = _image_size(beam)
        self.start_value = _START
        sizes = {"image_size": self.image_size, "num_views": len(beam.views), "dim": token_dim, "num_heads": num_heads}
        reads_features = cross_attention or (lift_channels > 0 and lift_pixels)
        self.xray: Optional[XrayConditioningModule] = None
        if reads_features:
            encoder = {"channels": encoder_channels, "depth": vit_depth, "cross_view": cross_view}
            self.xray = XrayConditioningModule(**sizes, **encoder)
        self.stages = nn.ModuleList(
            RefinementStage(
                **sizes,
                grid=self.image_size // 8 << index,
                level_channels=encoder_channels[2 - index] if reads_features else 0,
                channels=unet_channels[index],
                lift_pixels=lift_pixels,
                lift_channels=lift_channels,
                cross_attention=cross_attention,
                consistency_iterations=consistency_iterations[index],
                normalize=normalize[index],
                gain=_REFINEMENT_GAIN if index > 0 else 1.0,
                axes=program_axes(beam),
            )
            for index in range(stage)
        )
        self._register_geometry(beam, parse_range(geometry_range))
        self._prepare_layers(gradient_checkpointing)

    def _register_geometry(self, beam: ConeBeam, trained: Optional[GeometryRange]) -> None:
        matrices = torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices(), dtype=torch.float32)
        self.register_buffer("projection_matrices", matrices)
        # With the matrices it tells a checkpoint's reader what radiographs it wants.
        self.register_buffer("detector_size", torch.tensor(self.image_size))
        self.register_buffer("range_values", torch.tensor(_NO_RANGE if trained is None else trained.to_values()))

    def _prepare_layers(self, gradient_checkpointing: bool) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                module.gradient_checkpointing = gradient_checkpointing
            # Channels last is what bfloat16 convolutions want, on CPU two to four times as fast; loading keeps it.
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.freeze_earlier:
            for module in self.frozen_modules():
                module.requires_grad_(False)
        self.train(self.training)

    @property
    def geometry_range(self) -> Optional[GeometryRange]:
        """What geometries it was trained for; None: nothing is kept about it."""
        values = self.range_values.cpu().tolist()
        return None if values == _NO_RANGE else GeometryRange.from_values(values)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints of before were trained for one geometry and say nothing about a range.
        state_dict.setdefault(f"{prefix}range_values", torch.tensor(_NO_RANGE))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def grid(self) -> int:
        """Voxels per axis of the output."""
        return (self.image_size // 8) << (self.stage - 1)

    def frozen_modules(self) -> List[nn.Module]:
        """The parts that stay as loaded while the last stage trains; none for stage 1."""
        if self.stage == 1:
            return []
        encoder: List[nn.Module] = [] if self.xray is None else [self.xray]
        return [*encoder, *list(self.stages)[:-1]]

    def train(self, mode: bool = True) -> "ProgressiveCascade":
        """Set training mode; frozen parts stay in eval mode."""
        super().train(mode)
        if self.freeze_earlier:
            for module in self.frozen_modules():
                module.eval()
        return self

    def forward(
        self,
        image: Tensor,
        projection_matrices: Optional[Tensor] = None,
        calibrated: Optional[Tensor] = None,
        window: Optional[List[int]] = None,
        weights: Optional[Tensor] = None,
        coarse: Optional[Tensor] = None,
    ) -> Tensor:
        """Reconstruct.

        Args:
            image: line integrals (b, view, s, s), without unit.
            projection_matrices: (b, view, 3, 4), RAS mm about the isocenter to pixels; default: the geometry's own.
            calibrated: (b,), 1 where the image holds true line integrals, 0 where scale or offset are unknown and the
                data-consistency steps must be skipped; default: all calibrated.
            window: ``[x, y, z, size_x, size_y, size_z]``: the last stage refines this window alone, and the rest of
                the volume is the upsampled earlier stage, without the closing consistency step. For training on crops.
            weights: (b, view, s, s), 1 where a pixel shows the patient and 0 where it says nothing of him (a shutter, a
                marker): data consistency and what it leaves unexplained pass over these; default: all show him.
            coarse: see :meth:`prepare_stage`.

        Returns:
            (b, 1, g, g, g) in [0, 1], float32: :func:`progressive_cascade.attenuation.unit_to_hu` gives HU.
        """
        matrices = self._matrices(image, projection_matrices)
        volume, context = self.prepare_stage(image, matrices, calibrated, weights, coarse)
        last = self.stages[-1]
        if window is not None:
            x, y, z = window[0], window[1], window[2]
            cut = volume[:, :, x : x + window[3], y : y + window[4], z : z + window[5]]
            refined = last(cut, [x, y, z], context)
            volume = volume.clone()
            volume[:, :, x : x + window[3], y : y + window[4], z : z + window[5]] = refined
            return volume
        refined = last(volume, [0, 0, 0], context)
        return last.consistency(refined, image, matrices, calibrated, weights)  # pyright: ignore[reportCallIssue]

    def prepare_stage(
        self,
        image: Tensor,
        projection_matrices: Optional[Tensor] = None,
        calibrated: Optional[Tensor] = None,
        weights: Optional[Tensor] = None,
        coarse: Optional[Tensor] = None,
        number: Optional[int] = None,
    ) -> Tuple[Tensor, StageContext]:
        """Everything up to a stage, so that it can run window by window, or its weights be refined.

        Args:
            image: line integrals (b, view, s, s).
            projection_matrices: see :meth:`forward`.
            calibrated: see :meth:`forward`.
            weights: see :meth:`forward`.
            coarse: (b, 1, s / 8, s / 8, s / 8), a volume to go on with in place of stage 1's, of a cascade that has
                more stages than that.
            number: the stage, 1 to ``stage``; default: the last.

        Returns:
            The volume so far at the stage's grid (b, 1, g, g, g), and the context its windows share.
        """
        last = self.stage if number is None else number
        matrices = self._matrices(image, projection_matrices)
        levels, tokens = self._encode(image, matrices)
        volume = self._start(image)
        for index, stage in enumerate(self.stages):
            if index > 0:
                volume = upsample(volume)
            context = stage.context(volume, levels[index], tokens, image, matrices, calibrated, weights)  # pyright: ignore[reportCallIssue]
            if index == last - 1:
                return volume, context
            if index == 0 and coarse is not None:
                volume = coarse.float()
            else:
                refined = stage(volume, [0, 0, 0], context)  # pyright: ignore[reportCallIssue]
                volume = stage.consistency(refined, image, matrices, calibrated, weights)  # pyright: ignore[reportCallIssue]
        return volume, context

    def _start(self, image: Tensor) -> Tensor:
        g = self.image_size // 8
        return torch.full([image.shape[0], 1, g, g, g], self.start_value, device=image.device)

    def _encode(self, image: Tensor, matrices: Tensor) -> Tuple[List[Tensor], Tensor]:
        # Without an encoder the stages read no features; the image stands in for them.
        levels, tokens = [image, image, image], image
        if self.xray is not None:
            features = self.xray(image, matrices)
            levels, tokens = [features.coarse, features.medium, features.fine], features.tokens
        return levels, tokens

    def _matrices(self, image: Tensor, projection_matrices: Optional[Tensor]) -> Tensor:
        if projection_matrices is None:
            return self.projection_matrices.unsqueeze(0).expand(image.shape[0], -1, -1, -1)
        return projection_matrices.to(device=image.device, dtype=torch.float32)


def _parse_stage(stage: int) -> int:
    if stage not in range(1, NUM_STAGES + 1):
        raise ValueError(f"stage must be 1, 2 or 3, got {stage}")
    return stage


def _image_size(beam: ConeBeam) -> int:
    """Pixels per side of the radiographs."""
    rows, cols = beam.detector_shape
    if rows != cols or rows % 64:
        raise ValueError(f"geometry must have a square detector of a multiple of 64 pixels, got {rows} x {cols}")
    return cols


def upsample(volume: Tensor) -> Tensor:
    """Double the grid of a volume, trilinear about voxel centres.

    Args:
        volume: (b, 1, x, y, z).

    Returns:
        (b, 1, 2x, 2y, 2z).
    """
    return F.interpolate(volume, scale_factor=2.0, mode="trilinear", align_corners=False)
