# SPDX-License-Identifier: Apache-2.0
"""The MONAI component stores: what this package adds to MONAI, by name."""

from __future__ import annotations

from monai.utils import ComponentStore

from progressive_cascade.consistency import DataConsistency
from progressive_cascade.losses import CascadeLoss, GradientLoss, ReprojectionLoss, SSIMLoss3D, VGGPerceptualLoss
from progressive_cascade.networks import ProgressiveCascade, RefinementStage, XrayConditioningModule
from progressive_cascade.projector import DRR

NETWORKS = ComponentStore("progressive cascade networks", "Networks that turn radiographs into CT volumes.")
LOSSES = ComponentStore("progressive cascade losses", "Losses between CT volumes, and between volumes and radiographs.")
OPERATORS = ComponentStore("progressive cascade operators", "Projection operators and layers built on them.")

NETWORKS.add("ProgressiveCascade", "Two radiographs in, a CT volume out, in one to three stages.", ProgressiveCascade)
NETWORKS.add("XrayConditioningModule", "2-D encoder and vision transformer over the views.", XrayConditioningModule)
NETWORKS.add("RefinementStage", "A residual 3-D U-Net that reads the radiographs, on any window.", RefinementStage)

LOSSES.add("SSIMLoss3D", "1 - SSIM with separable Gaussian windows.", SSIMLoss3D)
LOSSES.add("VGGPerceptualLoss", "Distance of VGG16 features on slices of all three planes.", VGGPerceptualLoss)
LOSSES.add("GradientLoss", "L1 between finite differences.", GradientLoss)
LOSSES.add("ReprojectionLoss", "L1 between re-projected and measured line integrals.", ReprojectionLoss)
LOSSES.add("CascadeLoss", "The weighted sum of a stage, each term by name.", CascadeLoss)

OPERATORS.add("DRR", "Digitally reconstructed radiographs of a CT in HU.", DRR)
OPERATORS.add("DataConsistency", "Conjugate gradients that pull a volume back to its radiographs.", DataConsistency)
