"""What a net answers to a fixed image, noted beside its weights.

Weights alone do not say what a net computes: the code of its backbone, one's own or a library's, may change under them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auxnet.machine import random_kept, seed_random
from auxnet.modules import copied, in_mode
from auxnet.network import AuxNet

COLUMNS = 8  # logits of an output that are noted, at most
TOLERANCE = 1e-3  # of the largest logit: more than processors, memory formats and versions of PyTorch differ by


def answers(net: AuxNet, image_shape: Sequence[int]) -> Tensor:
    """The logits [K, classes] of a net on the CPU, in float32, for one random image (C, H, W), the same every time.

    Also what the net itself draws is the same every time.
    """
    cpu = torch.device("cpu")
    with torch.no_grad(), torch.autocast("cpu", enabled=False), in_mode(net, training=False), random_kept(cpu):
        seed_random(0, cpu)
        return torch.cat(net(torch.randn(1, *image_shape, device=cpu, dtype=torch.float32)))


def alike(some: Tensor, others: Tensor) -> bool:
    """Whether logits are the same, but for what processors and memory formats differ by."""
    scale = float(others.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(some, others, rtol=0, atol=TOLERANCE * scale, equal_nan=True)


def noted(net: AuxNet, image_shape: Sequence[int]) -> str | None:
    """The answers of a net, wherever it is, as `check_answers` takes them; None if they cannot be compared later.

    (If they are not finite, or the net does not run on a CPU.)
    """
    try:
        said = answers(copied(net).cpu().float(), image_shape)[:, :COLUMNS]
    except Exception:  # of code of one's own, while a training is saved
        return None
    if not said.isfinite().all():
        return None
    return json.dumps({"image": [*image_shape], "logits": [[float(f"{x:.6g}") for x in row] for row in said.tolist()]})


def check_answers(net: AuxNet, note: Any, where: Path) -> None:
    """Raise RuntimeError if a net with its weights does not give the answers that were `noted` for them.

    A note that cannot be read says nothing.
    """
    try:
        content = json.loads(note)
        image_shape, expected = [int(n) for n in content["image"]], torch.tensor(content["logits"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return
    try:
        said = answers(copied(net).cpu().float(), image_shape)[:, :COLUMNS]
        if alike(said, expected):
            return
        how = f"by {float((said - expected).abs().max()):.3g} in a logit"
    except Exception as error:  # of code of one's own
        how = f"it fails: {type(error).__name__}"
    raise RuntimeError(
        f"the net answers otherwise than when {where} was saved ({how}): the code of its backbone, or of a library "
        "that it uses, has changed since: put that back, or train again"
    )
