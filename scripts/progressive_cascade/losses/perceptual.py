# SPDX-License-Identifier: Apache-2.0
"""Perceptual loss on random slices, with a VGG16 trunk whose weights need no network and no foreign licence."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progressive_cascade.losses.masked import as_float32, autocast_disabled, masked_means
from progressive_cascade.paths import bundle_root, check_shipped
from progressive_cascade.precision import mixed_precision

# Output channels of the 3x3 convolutions, one tuple per block; a 2x2 max-pooling stands between blocks
# (configuration D of Simonyan and Zisserman).
_BLOCKS: dict[str, tuple[tuple[int, ...], ...]] = {"relu3_3": ((64, 64), (128, 128), (256, 256, 256))}
_BLOCKS["relu4_3"] = (*_BLOCKS["relu3_3"], (512, 512, 512))

# Channel statistics of ImageNet; `ct` weights are trained behind the same constants, so that files can be exchanged.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

CT_WEIGHTS = "perceptual_ct.pt"


class VGG16Trunk(nn.Sequential):
    """The first blocks of VGG16, with torchvision's numbering of layers.

    Args:
        depth: last layer, "relu3_3" (1.7 M weights) or "relu4_3" (7.6 M).

    Raises:
        ValueError: if `depth` is another name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: str = "relu3_3") -> None:
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {sorted(_BLOCKS)}, got {depth!r}")
        layers: list[nn.Module] = []
        taps: list[int] = []
        in_channels = 3
        for block in _BLOCKS[depth]:
            if layers:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            for out_channels in block:
                layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
                in_channels = out_channels
            taps.append(len(layers) - 1)
        super().__init__(*layers)
        self.taps = tuple(taps)
        self.tap_channels = tuple(block[-1] for block in _BLOCKS[depth])
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> list[Tensor]:
        """Features after the last activation of each block.

        Args:
            input: grey images (n, 1, h, w) in [0, 1]; h and w at least `min_size`.

        Returns:
            relu1_2 (n, 64, h, w), relu2_2 (n, 128, h/2, w/2), relu3_3 (n, 256, h/4, w/4) and so on.
        """
        x = (input.expand(-1, 3, -1, -1) - self.mean) / self.std
        features = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return features

    @property
    def min_size(self) -> int:
        """Smallest height and width [pixels] that leaves one pixel at the last block."""
        return 2 ** (len(self.taps) - 1)


class VGGPerceptualLoss(nn.Module):
    r"""Distance of VGG16 features between two volumes, on random slices of all three planes.

    .. math:: \frac{1}{L} \sum_l \frac{\mathrm{mean}|f_l(\hat x) - f_l(x)|}{\mathrm{mean}|f_l(x)|}

    with :math:`f_l` the features at relu1_2, relu2_2, relu3_3 (and relu4_3). Dividing by the size of the truth's
    features gives the layers equal say, whatever the weights are. Where `valid` is 0 the prediction is replaced by the
    truth, and a feature counts by the share of valid pixels in its cell.

    The trunk is frozen: it has no parameters, and no state dict contains it.

    Args:
        weights: "ct" (shipped in the bundle, trained by `train_perceptual.py`), "imagenet" (torchvision), or the path
            of a state dict with VGG16's layers.
        depth: last layer compared, "relu3_3" or "relu4_3"; the "ct" weights end at relu3_3.
        num_slices: slices drawn from each plane at each call.
        seed: seed of the loss's own generator of slice numbers; None draws from the global one.
        amp: run the trunk in bfloat16, three times as fast on a CPU that multiplies such matrices; the distances of
            its features are always taken in full precision.

    Attributes:
        weights_name: "ct", "imagenet" or the name of the file: to be printed with every number.

    Raises:
        ValueError: if a file does not hold this trunk's weights, or `num_slices` is below 1.
        FileNotFoundError: if there is no such file.
        ImportError: if "imagenet" is asked for without torchvision.

    Example:
        >>> loss = VGGPerceptualLoss(weights="ct", num_slices=4)
        >>> loss(prediction, target)  # (b, 1, x, y, z) in [0, 1]

    References:
        Johnson, Alahi, Fei-Fei: Perceptual losses for real-time style transfer and super-resolution (2016),
        doi:10.1007/978-3-319-46475-6_43. Simonyan, Zisserman: Very deep convolutional networks (2015), arXiv:1409.1556.
    """

    def __init__(
        self,
        weights: str | Path = "ct",
        *,
        depth: str = "relu3_3",
        num_slices: int = 4,
        seed: int | None = None,
        amp: bool = False,
    ) -> None:
        super().__init__()
        if num_slices < 1:
            raise ValueError(f"num_slices must be at least 1, got {num_slices}")
        self.num_slices = num_slices
        self.amp = amp
        self.trunk = VGG16Trunk(depth)
        self.weights_name = _load_weights(self.trunk, weights)
        _freeze(self.trunk)
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(self, prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """The distance, averaged over planes.

        Args:
            prediction: volumes (b, 1, x, y, z) in [0, 1].
            target: truth, same shape; receives no gradient.
            valid: mask (b, 1, x, y, z), 1 where voxels count.

        Returns:
            A scalar, 0 where both are equal.

        Raises:
            ValueError: if shapes differ, or a side is too small for the trunk.
        """
        prediction, target, valid = as_float32(prediction, target, valid)
        if min(prediction.shape[2:]) < self.trunk.min_size:
            raise ValueError(
                f"prediction must measure at least {self.trunk.min_size} voxels a side, got {tuple(prediction.shape)}"
            )
        target = target.detach()
        if valid is not None:
            prediction = torch.where(valid > 0, prediction, target)
        total = prediction.new_zeros(())
        for axis in (2, 3, 4):
            index = self._draw(prediction.shape[axis]).to(prediction.device)
            slices = [_take(volume, axis, index) for volume in (prediction, target)]
            mask = None if valid is None else _take(valid, axis, index)
            with autocast_disabled(prediction):
                total = total + self._distance(slices[0], slices[1], mask, volumes=len(prediction))
        return total / 3

    def _draw(self, size: int) -> Tensor:
        """Numbers of distinct slices, in random order."""
        return torch.randperm(size, generator=self._generator)[: self.num_slices]

    def _distance(self, prediction: Tensor, target: Tensor, mask: Tensor | None, *, volumes: int) -> Tensor:
        """Mean over layers and volumes of the relative feature distance of a volume's images, in all (n, 1, h, w)."""
        with torch.no_grad():
            wanted = self._features(target)
        total = prediction.new_zeros(())
        for ours, theirs in zip(self._features(prediction), wanted, strict=True):
            weight = None if mask is None else F.adaptive_avg_pool2d(mask, (ours.shape[-2], ours.shape[-1]))
            size = masked_means(theirs.abs(), weight, groups=volumes)
            # 1e-6 is far below the features of any image with contrast; it keeps a dead layer from dividing by 0.
            total = total + (masked_means((ours - theirs).abs(), weight, groups=volumes) / (size + 1e-6)).mean()
        return total / len(wanted)

    def _features(self, images: Tensor) -> list[Tensor]:
        if not self.amp:
            return self.trunk(images)
        with mixed_precision(images.device.type):
            return [feature.float() for feature in self.trunk(images)]


def _take(volume: Tensor, axis: int, index: Tensor) -> Tensor:
    """Slices (b * len(index), 1, h, w) across `axis` of (b, 1, x, y, z)."""
    slices = volume.index_select(axis, index).movedim(axis, 1)
    return slices.flatten(0, 1).contiguous()


def _freeze(trunk: VGG16Trunk) -> None:
    """Turn parameters into buffers outside the state dict: nothing to train, nothing to save, still moved by `.to`."""
    for layer in trunk:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            value = parameter.detach().float()
            if value.ndim == 4:  # what convolutions in bfloat16 want
                value = value.contiguous(memory_format=torch.channels_last)
            layer.register_buffer(name, value, persistent=False)


def _load_weights(trunk: VGG16Trunk, weights: str | Path) -> str:
    """Fill the trunk and return the name of what it was filled with."""
    if weights == "imagenet":
        trunk.load_state_dict(_imagenet_state(trunk))
        return "imagenet"
    path = bundle_root() / "models" / CT_WEIGHTS if weights == "ct" else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights must name an existing file, got {path}; train_perceptual.py writes one")
    check_shipped(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        trunk.load_state_dict(_select(state, trunk))
    except (RuntimeError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        wanted = sum(parameter.numel() for parameter in trunk.parameters())
        raise ValueError(
            f"weights must hold the {wanted} VGG16 weights up to layer {trunk.taps[-1]}, got {path}: {error}"
        ) from error
    return "ct" if weights == "ct" else path.name


def _select(state: dict[str, Tensor], trunk: VGG16Trunk) -> dict[str, Tensor]:
    """The trunk's entries of a state dict, with or without torchvision's prefix and deeper layers."""
    bare = {name.removeprefix("features."): value for name, value in state.items()}
    return {name: bare[name] for name in trunk.state_dict()}


def _imagenet_state(trunk: VGG16Trunk) -> dict[str, Tensor]:
    """VGG16 weights of torchvision; downloaded on first use."""
    try:
        from torchvision.models import VGG16_Weights, vgg16  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('weights="imagenet" needs torchvision: pip install torchvision, or weights="ct"') from error
    return _select(vgg16(weights=VGG16_Weights.IMAGENET1K_V1).state_dict(), trunk)
