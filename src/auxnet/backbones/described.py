"""The AuxNet that plain options describe, as a recipe makes them and a config.json keeps them.

The options are the arguments of `resnet`, or name a backbone: {"backbone", "cuts", "num_classes", "in_channels",
"image_size"}. With "alone" the net is that output by itself. "cuts" are names of modules: even cuts are searched for
once, and kept by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from auxnet.backbones.attaching import attach
from auxnet.backbones.cuts import even_cuts
from auxnet.backbones.named import build_backbone
from auxnet.errors import error_prefix
from auxnet.machine import random_kept
from auxnet.network import AuxNet
from auxnet.precision import usual_defaults
from auxnet.residual import resnet
from auxnet.sections import LARGEST


@usual_defaults()
def net_from(options: Mapping[str, Any], backbone_weights: str | None = None) -> AuxNet:
    """The net of such options, with random weights; those of its backbone come from a file, if one is given.

    Raises ValueError for options that describe no net, and what `build_backbone` raises.
    """
    if options.get("alone") is not None:
        rest = {key: value for key, value in options.items() if key != "alone"}
        return net_from(rest, backbone_weights).alone(options["alone"])
    if "backbone" not in options:
        return resnet(**options)
    name, number, channels = options["backbone"], options["num_classes"], options["in_channels"]
    height, width = options["image_size"]
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
        raise ValueError(f"images must have 1..{LARGEST} pixels a side, got {height} x {width}")
    backbone = build_backbone(name, number, channels, backbone_weights)
    with error_prefix(f"backbone {name}"):
        return attach(backbone, tuple(options["cuts"]), number, example=torch.empty(1, channels, height, width))


@cache
def cuts_of(
    backbone: str, cuts: int, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> tuple[str, ...]:
    """The names of the modules after which `cuts` even cuts are, for images of this size (H, W).

    A process searches for them once, and restores the random state: otherwise a second training, which does not search
    again, would begin with other weights than the first. Raises ValueError if there are fewer places than cuts, and
    what `build_backbone` raises.
    """
    with random_kept(torch.device("cpu")):
        built = build_backbone(backbone, num_classes, in_channels)
        with error_prefix(f"backbone {backbone}, cuts={cuts}"):
            return even_cuts(built, cuts, (in_channels, *image_size))
