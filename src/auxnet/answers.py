"""What a net answers to a fixed image, noted beside its weights.

Weights alone do not say what a net computes: the code of its backbone, one's own or a library's, may change under them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auxnet.errors import first_line
from auxnet.machine import random_kept, seed_random
from auxnet.modules import copied, in_mode
from auxnet.network import AuxNet
from auxnet.sections import LARGEST

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
    """The answers of a net, as `check_answers` takes them; None if they are not finite, or the net fails on a CPU."""
    try:
        return _note(answers(copied(net).cpu().float(), image_shape), image_shape)
    except Exception:  # of code of one's own, while something is saved
        return None


@dataclass
class Rebuilt:
    """A net built a second time, as loading builds it: it is asked what the weights of the first answer."""

    net: AuxNet
    """on the CPU, in float32; its weights are overwritten"""
    image_shape: Sequence[int]
    differs: bool = False
    """whether the last trained net answered otherwise than this one with the same weights"""

    def note(self, trained: AuxNet) -> str | None:
        """The answers of a trained net's weights, as `check_answers` takes them.

        None if the trained net answers otherwise: it keeps more than weights (a buffer that is not saved, a counter,
        random numbers of its own), and what is loaded later may differ as well. None also as `noted` says.
        """
        self.differs = False
        try:
            self.net.load_state_dict(trained.state_dict())
            said = answers(self.net, self.image_shape)
            self.differs = not alike(said, answers(copied(trained).cpu().float(), self.image_shape))
        except Exception:  # of code of one's own, while a training is saved
            return None
        return None if self.differs else _note(said, self.image_shape)


def check_answers(net: AuxNet, note: Any, where: Path) -> None:
    """Raise RuntimeError if a net with its weights does not give the answers that were `noted` for them.

    A note that cannot be read says nothing.
    """
    try:
        content = json.loads(note)
        image_shape = [int(n) for n in content["image"]]
        if not all(1 <= n <= LARGEST for n in image_shape):  # a file may be a stranger's
            return
        expected = torch.tensor(content["logits"], dtype=torch.float32, device="cpu")
    except (ValueError, TypeError, LookupError, RecursionError):
        return
    try:
        said = answers(copied(net).cpu().float(), image_shape)[:, :COLUMNS]
        if alike(said, expected):
            return
        how = f"by {float((said - expected).abs().max()):.3g} in a logit"
    except Exception as error:  # of code of one's own
        how = f"it fails: {first_line(error)}"
    raise RuntimeError(
        f"the net answers otherwise than when {where} was saved ({how}): the code of its backbone, or of a library "
        "that it uses, has changed since: put that back, or train again"
    )


def _note(said: Tensor, image_shape: Sequence[int]) -> str | None:
    if not said.isfinite().all():
        return None
    logits = [[float(f"{x:.6g}") for x in row] for row in said[:, :COLUMNS].tolist()]
    return json.dumps({"image": [*image_shape], "logits": logits})
