"""A model of any form as one function of images: a run, an exported folder, a model on the hub, or an ONNX file.

Shapes: N images, H x W pixels, C channels; images are uint8 [N, H, W, C].
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from auxnet.batches import normalise
from auxnet.documents import json_value, parsing
from auxnet.errors import one_line
from auxnet.exits import EarlyExit, read_policy
from auxnet.export_graphs import need
from auxnet.fetching import on_hub
from auxnet.hub import PretrainedAuxNet, load, position_of
from auxnet.machine import cores, device_of, thread_count, threads_set, to_device
from auxnet.modules import copied
from auxnet.policy import Policy, never
from auxnet.precision import usual_in_thread
from auxnet.preprocessing import Preprocessing
from auxnet.reading.arrays import Pixels, is_name
from auxnet.recipe import Recipe, RunDir, has_recipe, nearest_run
from auxnet.sections import Which

Floats = NDArray[np.float32]


class Answers(NamedTuple):
    """Logits and probabilities, float32 [N, classes], and the output that each image left at, int64 [N]."""

    logits: Floats
    probabilities: Floats
    exits: NDArray[np.int64]


@dataclass(frozen=True)
class Runnable:
    """A model as a function that answers, with its classes and the preparation of its images."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    """the normalisation in it is done by `ask`"""
    ask: Callable[[Pixels], Answers]
    threads: int
    """CPU threads that it is run on"""


def open_model(
    source: RunDir,
    output: int | None = None,
    which: Which = "last",
    *,
    exits: bool = False,
    device: str | None = None,
    threads: int | None = None,
) -> Runnable:
    """Open a run directory, an exported folder, `hf:owner/name`, or an ONNX file of this program.

    `output` is its number in the run (default: the deepest output); an ONNX file has the one it was exported with, and
    runs on the CPU. With `exits` the model is a run's early exit, by its exits.json. `device` is the CPU by default.
    `threads` is by default PyTorch's own number, at most one per core; for an ONNX file, one per core.

    Raises FileNotFoundError, ValueError for a file or an output that cannot be used, TypeError for what is no model,
    RuntimeError for damage.
    """
    if not isinstance(source, str | os.PathLike):
        rule = "a model is a run, an exported folder, an ONNX file, hf:owner/name, or the net that auxnet.load gives"
        others = "other nets, and parts of it, know neither classes nor how images are prepared"
        raise TypeError(f"{rule} (whole; output=k asks output k), got {type(source).__name__}: {others}")
    path, from_hub = Path(source), on_hub(source)
    if not (from_hub or path.exists()):
        mend = f"give a run, an exported folder, an ONNX file, or hf:owner/name{nearest_run(path)}"
        raise FileNotFoundError(f"there is no model {source}: {mend}")
    if exits and not has_recipe(path):
        raise ValueError(f"exits are those of a run's exits.json, and {source} is no run: leave exits out")
    if exits and output is not None:
        raise ValueError(f"exits.json lets each image leave at its own output: leave output {output} out")
    if from_hub or path.is_dir():
        net = load(source, which)
        policy = read_policy(source, net.outputs, which) if exits else None
        return runnable(net, output, policy=policy, device=device, threads=threads)
    if which != "last":
        raise ValueError(f"{source} is a file with its own weights: leave which={which!r} out")
    if path.suffix != ".onnx":
        rule = "a model is a run, an exported folder, an .onnx file, or hf:owner/name"
        raise ValueError(f"{source} cannot be asked here: {rule} (a .pt2 is for torch.export.load)")
    if device not in (None, "auto", "cpu"):
        raise ValueError(f"{source} is run on the CPU, not on device {device!r}: leave that out, or give the run")
    return open_onnx(path, output, threads)


def runnable(
    net: PretrainedAuxNet,
    output: int | None = None,
    *,
    policy: Policy | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Runnable:
    """One output of a loaded net, by its number in the run (default: the deepest), as a function that answers.

    With a `policy` over all outputs, images leave early instead, and the policy tempers the probabilities, as in an
    ONNX early exit. `device` is by default the net's own; on another, a copy of the net runs. `threads` CPU threads (by
    default PyTorch's own number, at most one per core) are set during each call only. Raises ValueError if the net has
    no such output or the device cannot be used.
    """
    if policy is None:
        number = net.numbers[-1] if output is None else output
        part, policy, numbers = net.alone(position_of(net, number)), never(1), np.array([number])
    else:
        K = policy.deepest
        part, policy, numbers = net.up_to(K), policy.up_to(K), np.arange(1, K + 1)
    leaving = EarlyExit.from_policy(copied(part), policy)
    place = next(net.parameters()).device if device is None else device_of(Recipe(device=device).device)
    model = to_device(leaving.eval(), place)
    dtype = next(model.parameters()).dtype
    seen, number_of_threads = net.preprocessing, thread_count(threads)
    temperatures = torch.tensor(policy.temperatures, dtype=torch.float32, device="cpu")

    @torch.inference_mode()
    def ask(images: Pixels) -> Answers:
        with usual_in_thread(), threads_set(number_of_threads):
            logits, left = model(normalise(torch.from_numpy(images).to(place), seen.mean, seen.std).to(dtype))
            net.check_columns(logits.shape[1])
            logits, left = logits.float().cpu(), left.cpu() - 1
            probabilities = (logits / temperatures[left, None]).softmax(1)
            return Answers(logits.numpy(), probabilities.numpy(), numbers[left.numpy()])

    return Runnable(net.classes, seen, ask, number_of_threads)


def open_onnx(path: Path, output: int | None = None, threads: int | None = None) -> Runnable:
    """An ONNX file of this program in onnxruntime, on `threads` CPU threads (None: one per core).

    Raises ValueError if another program made it or it has another output, RuntimeError if it is damaged.
    """
    need("onnxruntime")
    import onnxruntime

    threads = cores() if threads is None else thread_count(threads)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, not written
    options.intra_op_num_threads = threads
    try:
        only = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # a fallback would be printed
        session = onnxruntime.InferenceSession(str(path), options, **only)
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime raises a different one for every kind of damage
        raise RuntimeError(f"{path} is no readable ONNX file: {one_line(error)[:200]}") from None
    facts = _facts(metadata, path)
    early = facts["kind"] == "early-exit"
    if output is not None and (early or output != facts["output"]):
        held = "decides for each image which output answers" if early else f"holds output {facts['output']} alone"
        raise ValueError(f"{path} {held}: output {output} cannot be asked of it")

    def ask(images: Pixels) -> Answers:
        try:
            if early:
                each = [session.run(None, {"images": images[i : i + 1]}) for i in range(len(images))]
                answers = Answers(*(np.concatenate(parts) for parts in zip(*each, strict=True)))
            else:
                logits, probabilities = session.run(None, {"images": images})
                answers = Answers(logits, probabilities, np.full(len(images), facts["output"]))
        except Exception as error:  # onnxruntime's, and those of a graph with other outputs
            raise RuntimeError(f"{path} cannot be run: {one_line(error)[:200]}") from None
        rows, classes = len(images), len(facts["classes"])
        if [part.shape for part in answers] != [(rows, classes), (rows, classes), (rows,)]:
            raise RuntimeError(f"{path} is damaged: it does not answer with {classes} probabilities for each image")
        return answers

    return Runnable(tuple(facts["classes"]), Preprocessing.read(facts), ask, threads)


def _facts(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """What `export_graphs.write_onnx` put into the metadata."""
    if "auxnet_version" not in metadata:
        raise ValueError(
            f"{path} was not exported by auxnet: its metadata has no auxnet_version, so its classes and "
            "preprocessing are unknown; export it with auxnet export"
        )
    with parsing(f"{path} is damaged: its metadata cannot be read"):
        ours = {key: value for key, value in metadata.items() if "." not in key}  # quantization adds onnx.infer
        facts = {key: json_value(value) for key, value in ours.items()}
        sound = Preprocessing.read(facts).channels in (1, 3)
        sound = sound and isinstance(facts["kind"], str) and facts["output"] >= 1
        sound = sound and all(map(is_name, facts["classes"]))
    if not sound:
        raise RuntimeError(f"{path} is damaged: its metadata describe no model")
    return facts
