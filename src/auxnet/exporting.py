"""Export one output of a model, or the early exit of a run, into a form that runs elsewhere; check that it is equal.

Before an export gets its name, it runs in its own runtime, on validation images if they are here.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from auxnet import __version__
from auxnet.backbones.named import is_own_code
from auxnet.errors import check_choice, whole_number
from auxnet.exits import read_policy
from auxnet.export_graphs import EarlyExitGraph, OneOutput, need, write_onnx, write_torch
from auxnet.fetching import FILES
from auxnet.files import to_write, written_whole
from auxnet.hub import PretrainedAuxNet, load, position_of, take_out
from auxnet.policy import Policy
from auxnet.precision import usual_defaults
from auxnet.proving import check_equal, evenly_spread, images_for_every_exit, random_images, validation_images
from auxnet.reading.arrays import Pixels, is_name
from auxnet.recipe import RunDir, has_recipe, read_run_recipe, run_path
from auxnet.runtimes import Answers, open_model, open_onnx
from auxnet.sections import Format, Which

SUFFIX: dict[Format, str] = {"safetensors": "", "onnx": ".onnx", "torch": ".pt2", "onnx-early-exit": ".onnx"}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its answers are from those of its source."""

    path: Path
    format: Format
    output: int
    """its number in the run; of an early exit, the deepest one"""
    bytes: int
    images: int
    """how many it was compared on: validation images, or `random` ones"""
    difference: float
    """the largest difference of a logit"""
    takes: tuple[int, ...]
    """(H, W, C) of the images that it takes"""
    exits: tuple[int, ...] | None = None
    """early exit: how many of the images left at each output"""
    unreached: tuple[int, ...] = ()
    """early exit: the outputs asked for that no image can reach, which are left out"""
    uncompared: tuple[int, ...] = ()
    """early exit: the outputs at which none of the images left, so that what they answer was not compared"""
    cut: bool = False
    """early exit: whether exits.json lets images continue to outputs deeper than those asked for; then neither its
    target nor its notes describe what was written"""
    random: bool = False
    """whether the images were random ones: the run's data are not here or have changed, or the model is no run"""


@usual_defaults()
def export(
    model: RunDir,
    output: int | None = None,
    format: Format = "onnx",
    out: Path | str | None = None,
    *,
    which: Which = "last",
    policy: Policy | None = None,
    data_dir: str | None = None,
    images: int = 64,
    overwrite: bool = False,
) -> Exported:
    """Write one output of a model (default: the deepest) to `out`, and check that it is equal to the model's net.

    The model is a run, a folder that this function or `save_pretrained` wrote, or `hf:owner/name`; `output` is numbered
    as in the run. "safetensors" is a folder for `auxnet.load` and the hub. "onnx" and "torch" (torch.export) take uint8
    images [N, H, W, C] and give logits and probabilities. "onnx-early-exit", for a run only, takes one image and gives
    its exit too, by `policy` (default: RUN/exits.json) over outputs 1..`output`, or up to the first output at which all
    images leave (a threshold of 0). Its probabilities are tempered: softmax of the logits divided by the policy's
    temperature for the output that the image left at. The default `out` is named after the model, in this folder.

    The export is compared on `images` validation images; an early exit on more, until one has left at each output that
    can be left at. They are looked for where they were in training, or in `data_dir` alone. Without `data_dir`, random
    images are used if the run's data are not here or have changed, or if the model is no run.

    Raises ValueError, FileNotFoundError or FileExistsError for an impossible request, RuntimeError if the export
    differs from its source: then there is nothing at `out`.
    """
    check_choice("format", format, Format)
    images = whole_number("images", images, 2)
    net = load(model, which)
    recipe = read_run_recipe(model) if has_recipe(run_path(model)) else None
    asked = net.numbers[-1 if output is None else position_of(net, output) - 1]
    backbone = net.config["network"].get("backbone")
    if format == "safetensors" and backbone is not None and is_own_code(backbone):
        raise ValueError(f"the code of {backbone} cannot go into a folder of weights: export as onnx or torch")
    if format.startswith("onnx"):
        need("onnx", "onnxscript", "onnxruntime")
    if recipe is None and format == "onnx-early-exit":
        raise ValueError(f"an early exit is that of a run, and {model} is none: name the run, or export it as onnx")
    if recipe is None and data_dir is not None:
        raise ValueError(f"validation images are those of a run, and {model} is none: leave --data-dir out")
    cut = False
    if format == "onnx-early-exit":
        policy, cut = _policy_of(model, net, asked, which, policy)
    elif policy is not None:
        raise ValueError(f"confidence and thresholds are for onnx-early-exit, not for {format}: leave them out")
    last = asked if policy is None else policy.deepest
    path = to_write(out) if out is not None else Path(_name(Path(model), last, format))
    _check_free(path, format, overwrite)
    for name in (path.name, str(net.source.get("run"))):  # they become text in the export, or a path for its runtime
        if not is_name(name):
            raise ValueError(f"{name} is not UTF-8, and cannot be the name of an export or of its run: rename it")
    found = None if recipe is None else validation_images(model, recipe, data_dir)
    pixels = random_images(net, images) if found is None else evenly_spread(found, images)
    uncompared: tuple[int, ...] = ()
    if policy is not None:
        pixels, uncompared = images_for_every_exit(net, policy, pixels, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "safetensors":
        return replace(_folder(net, last, path, pixels), random=found is None)
    compared_on = f"{len(pixels)} {'random' if found is None else 'validation'} images"
    facts = _facts(net, last, policy) | {"compared_on": compared_on}
    if policy is not None:
        facts["uncompared"] = list(uncompared)
    with written_whole(path.resolve()) as partial:  # if it is a link, where that leads
        answers = _write(net, last, format, partial, pixels, policy, facts)
        difference, exits = check_equal(net, last, policy, pixels, answers)
        size = partial.stat().st_size
    done = Exported(path, format, last, size, len(pixels), difference, pixels.shape[1:], exits, random=found is None)
    return replace(done, unreached=tuple(range(last + 1, asked + 1)), uncompared=uncompared, cut=cut)


def _policy_of(
    run: RunDir, net: PretrainedAuxNet, output: int, which: Which, given: Policy | None
) -> tuple[Policy, bool]:
    """The policy of an early exit over outputs 1..`output`: the one given, or RUN/exits.json; as deep as images get.

    The second result tells whether outputs that images reach by RUN/exits.json are cut off.

    Raises ValueError if nothing could leave early, FileNotFoundError if there is no policy.
    """
    if output < 2:
        raise ValueError("an early exit over one output has nothing to leave early at: export it as onnx")
    if not isinstance(given, Policy | None):
        raise TypeError(f"policy must be an auxnet.policy.Policy, got {given!r}")
    whole = given or read_policy(run, net.outputs, which)
    policy = given or whole.up_to(output)
    policy.check(output)
    if policy.deepest == 1:
        raise ValueError("all images leave at output 1, where the threshold is 0: export it as onnx (--output 1)")
    return policy.up_to(policy.deepest), policy.deepest < whole.deepest


def _write(
    net: PretrainedAuxNet,
    output: int,
    format: Format,
    path: Path,
    pixels: Pixels,
    policy: Policy | None,
    facts: dict[str, Any],
) -> Answers:
    """Write the file, and return its answers in its own runtime."""
    example, mean, std = torch.from_numpy(pixels), net.preprocessing.mean, net.preprocessing.std
    two = example[:2].expand(2, -1, -1, -1).contiguous()  # exported with one image, N would be fixed at 1
    if policy is not None:
        write_onnx(EarlyExitGraph(net.up_to(output).eval(), policy, mean, std), example[:1], path, facts)
        return open_onnx(path).ask(pixels)
    graph = OneOutput(net.truncate(position_of(net, output)), mean, std)
    if format == "onnx":
        write_onnx(graph, two, path, facts)
        return open_onnx(path).ask(pixels)
    write_torch(graph, two, path, facts)
    with torch.inference_mode():
        program = torch.export.load(io.BytesIO(path.read_bytes())).module()
        logits, probabilities = program(example)
    return Answers(logits.numpy(), probabilities.numpy(), np.full(len(pixels), output))


def _folder(net: PretrainedAuxNet, output: int, out: Path, pixels: Pixels) -> Exported:
    path = out.resolve()  # if it is a link to a folder, that folder
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as made:
        partial = Path(made) / path.name  # made with the usual permissions, which a temporary folder does not have
        alone = take_out(net, output)
        alone.card = alone.own_card()
        alone.save_pretrained(partial)
        answers = open_model(partial).ask(pixels)
        difference, _ = check_equal(net, output, None, pixels, answers)
        size = sum(file.stat().st_size for file in partial.iterdir())
        if path.is_dir():
            path.rename(Path(made) / "replaced")
        partial.rename(path)
    return Exported(out, "safetensors", output, size, len(pixels), difference, pixels.shape[1:])


def _facts(net: PretrainedAuxNet, output: int, policy: Policy | None) -> dict[str, Any]:
    facts = {
        "auxnet_version": __version__,
        "kind": "output" if policy is None else "early-exit",
        "output": output,
        "depth": net.depths[position_of(net, output) - 1],
        "classes": list(net.classes),
        **net.preprocessing.content(),
        "input": f"uint8 [{'N' if policy is None else 1}, H, W, C], 0..255, not normalised",
        "preparation": net.preprocessing.preparation,
        "run": net.source.get("run"),
        "weights": net.source.get("weights"),
    }
    if policy is not None:
        facts |= asdict(policy)
    return facts


def _name(model: Path, output: int, format: Format) -> str:
    name = model.resolve().name.removesuffix(f"-output-{output}")  # of a folder that was named here
    what = "early-exit" if format == "onnx-early-exit" else "output"
    return f"{name}-{what}-{output}{SUFFIX[format]}"


def _check_free(path: Path, format: Format, overwrite: bool) -> None:
    """Raise ValueError for a path that does not suit the format, FileExistsError for one that must not be replaced."""
    suffix = SUFFIX[format]
    if suffix and path.suffix != suffix:
        other = next((f"; --format {name} writes {path.suffix}" for name, s in SUFFIX.items() if s == path.suffix), "")
        raise ValueError(f"out must end in {suffix} for {format}, got {path}{other if path.suffix else ''}")
    if path.name in ("", ".."):
        raise ValueError(f"out must name a folder of its own, got {path}")
    if not path.exists():
        return
    if path.is_dir() != (format == "safetensors"):
        raise FileExistsError(f"{path} is a {'folder' if path.is_dir() else 'file'}: name another with --out")
    if path.is_dir() and (foreign := sorted({file.name for file in path.iterdir()} - set(FILES))):
        raise FileExistsError(f"{path} holds other files ({foreign[0]}): name another folder with --out")
    if not overwrite:
        raise FileExistsError(f"{path} exists: name another with --out, or replace it with --overwrite")
