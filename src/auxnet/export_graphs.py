"""The graphs that are exported to other runtimes: preprocessing, one output or an early exit, probabilities.

Shapes: N images, H x W pixels, C channels; images come as uint8 [N, H, W, C], as they are decoded.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from auxnet.network import AuxNet
from auxnet.policy import Policy


class Preprocessed(nn.Module):
    """(pixels - mean) / std, per channel: uint8 [N, H, W, C] -> float32 [N, C, H, W]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.std = nn.Buffer(torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images."""
        # Channels first: a broadcast over the last dimension alone (C = 3 numbers) is slow in every runtime.
        return (images.permute(0, 3, 1, 2).contiguous().float() - self.mean) / self.std


class OneOutput(nn.Module):
    """uint8 [N, H, W, C] -> logits and probabilities, each [N, classes], of one output."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.preprocess, self.model = Preprocessed(mean, std), model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, probabilities."""
        logits = self.model(self.preprocess(images))
        return logits, logits.softmax(1)


class EarlyExitGraph(nn.Module):
    """uint8 [1, H, W, C] -> logits and probabilities [1, classes], and the output [1] that gave them, from 1.

    Probabilities are tempered: softmax of the logits divided by the policy's temperature for that output.
    Every output at which an image can leave is a `torch.cond`, so that the segments after the exit are not computed.
    If no image can leave at an output (a threshold above 1), its head is left out. One image at a time.
    """

    def __init__(self, net: AuxNet, policy: Policy, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        policy.check(net.outputs)
        self.preprocess, self.net, self.policy = Preprocessed(mean, std), net, policy

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, probabilities, exit."""
        return self._from(1, self.preprocess(images))

    def _from(self, k: int, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.net.segments[k - 1](features)
        if k < self.net.outputs and not self.policy.decides(k):
            return self._from(k + 1, features)
        logits = self.net.heads[k - 1](features)

        def leave(_: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            probabilities = (logits / self.policy.temperatures[k - 1]).softmax(1)
            return logits.clone(), probabilities, torch.full((1,), k, dtype=torch.int64)

        def go_on(features: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self._from(k + 1, features)

        if k == self.net.outputs:
            return leave(features, logits)
        sure = self.policy.exits_here(logits, k).squeeze(0)
        return cast(tuple[Tensor, Tensor, Tensor], torch.cond(sure, leave, go_on, (features, logits)))


def write_onnx(graph: nn.Module, example: Tensor, path: Path, facts: Mapping[str, Any]) -> None:
    """Write one ONNX file, with `facts` (as JSON) in its metadata; dynamic in N unless the example is a single image.

    Input `images`; outputs `logits`, `probabilities`, and for an early exit `exit`. Raises RuntimeError (a line that
    says what to install) without the export extra.
    """
    need("onnx", "onnxscript", "onnxruntime")
    dynamic = None if len(example) == 1 else ({0: torch.export.Dim("N")},)
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits", "probabilities", "exit"][: 3 if isinstance(graph, EarlyExitGraph) else 2],
            dynamic_shapes=dynamic,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    model.producer_name = "auxnet"
    _strip(model.graph)
    _sink(model.graph)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    path.write_bytes(model.SerializeToString())


def _strip(graph: Any) -> None:
    """Drop the exporter's notes, which are longer than the graph and hold paths of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


def _sink(graph: Any) -> None:
    """Move the weights that one branch alone uses into that branch: only there does onnxruntime optimise them.

    Weights that nothing uses are dropped: onnxruntime warns of each.
    """
    everywhere = _used(graph)
    for weight in [each for each in graph.initializer if each.name not in everywhere]:
        graph.initializer.remove(weight)
    branches = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    here = {name for node in graph.node for name in node.input}
    users = [_used(branch) for branch in branches]
    for weight in list(graph.initializer):
        homes = [branch for branch, used in zip(branches, users, strict=True) if weight.name in used]
        if weight.name not in here and len(homes) == 1:
            homes[0].initializer.append(weight)
            graph.initializer.remove(weight)
    for branch in branches:
        _sink(branch)


def _used(graph: Any) -> set[str]:
    """The names that the nodes of a graph, and of the branches in it, take in."""
    names = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    inner = [_used(a.g) for node in graph.node for a in node.attribute if a.HasField("g")]
    return names.union(*inner)


def write_torch(graph: nn.Module, example: Tensor, path: Path, facts: Mapping[str, Any]) -> None:
    """Write one file for `torch.export.load`, with `facts` in its extra file auxnet.json; dynamic in N."""
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        program = torch.export.export(graph.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
        torch.export.save(program, buffer, extra_files={"auxnet.json": json.dumps(facts, ensure_ascii=False)})
    path.write_bytes(buffer.getvalue())


def need(*modules: str) -> None:
    """Raise RuntimeError, saying what to install, unless these modules of the export extra are installed."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise RuntimeError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' logging, warnings and printing for the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
