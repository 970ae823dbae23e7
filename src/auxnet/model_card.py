"""The model card of a net on the Hugging Face hub, README.md of its folder: what was measured, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from huggingface_hub import ModelCardData

from auxnet.lineage import in_doubt
from auxnet.preprocessing import Preprocessing
from auxnet.scores import interval_of
from auxnet.words import sentence, with_interval

_SIGNATURE = "\n<!-- by auxnet; SHA-256 of what stands above: "


def model_card(
    classes: Sequence[str], preprocessing: Preprocessing, numbers: Sequence[int], source: Mapping[str, Any]
) -> str:
    """README.md for the hub, in Markdown with the hub's header: what a net is, what it is worth, how to use it.

    `numbers` are the numbers of the net's outputs in its run, which `source` describes (`hub.source_of`).

    The card's last line, which is not displayed, tells it from a card that somebody else wrote (`is_own_card`).
    """
    tags = ["image-classification", "early-exit", "auxiliary-outputs", "model_hub_mixin", "pytorch_model_hub_mixin"]
    header = ModelCardData(library_name="auxnet", pipeline_tag="image-classification", tags=tags).to_yaml()
    outputs = f"output {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} outputs"
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    seen = preprocessing
    (H, W), (height, width) = seen.image_size, seen.resize
    lines = [
        f"---\n{header}\n---\n",
        f"# {source.get('run', 'auxnet model')}: {outputs} of a network trained with auxiliary outputs\n",
        f"Classes ({len(classes)}): {shown}. Images: {W} x {H} pixels, the middle of {width} x {height} "
        f"(image_size and resize), {seen.channels} channel(s), 0..255, less the mean {_numbers(seen.mean)}, divided by "
        f"{_numbers(seen.std)}. They are prepared so: {seen.preparation}.\n",
        '```python\nimport auxnet\n\nnet = auxnet.load(".")  # the folder of this file, or "hf:owner/name"\nlogits = '
        'net(net.prepare("picture.jpg"))  # one [N, classes] per output; what is given is prepared as said\n```\n',
    ]
    if source:
        lines += _worth(source, numbers)
    return _signed("\n".join(lines))


def is_own_card(text: str) -> bool:
    """Whether a card is exactly as `model_card` wrote it, for any net."""
    return text == _signed(text.rpartition(_SIGNATURE)[0])


def _signed(text: str) -> str:
    return f"{text}{_SIGNATURE}{sha256(text.encode(errors='backslashreplace')).hexdigest()} -->\n"


def _worth(source: Mapping[str, Any], numbers: Sequence[int]) -> list[str]:
    data, recipe = source["data"], source["recipe"]
    images = f"{data['train']:,} training, {data['val']:,} validation, {data['test']:,} test images"
    settings = ", ".join(f"{key} {value}" for key, value in recipe.items())
    versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
    return [
        *_measured(source, numbers),
        f"\nData: {data['name']} ({images}). Weights: {source['weights']}, of epoch {source['epoch']}; seed "
        f"{source['seed']}.\n\nMethod: {source['method']}. Recipe: {settings}.\n\nMade with {versions}, commit "
        f"{source['commit'] or 'unknown'}.\n",
    ]


def _measured(source: Mapping[str, Any], numbers: Sequence[int]) -> list[str]:
    data = source["data"]
    if "table" not in source:
        return ["These weights were changed after the run that the rest tells of, and were not measured."]
    doubt = in_doubt(data.get("may_be_seen_by", {}))
    rows = [
        f"| {row['output']} | {row['depth']} | {row['params']:,} | {row['macs']:,} "
        f"| {_error(row['val_error'], data['val'])} | {_error(row['test_error'], data['test'])} |"
        for row in source["table"]
        if row["output"] in numbers
    ]
    return [
        f"| output | depth | parameters | MACs | validation error, n = {data['val']:,} "
        f"| test error, n = {data['test']:,} |",
        "|---|---|---|---|---|---|",
        *rows,
        "\nIn brackets: 95 % Wilson intervals." + (f" {sentence(doubt)}" if doubt else ""),
    ]


def _error(error: float, images: int) -> str:
    return with_interval(error, *interval_of(error, images))


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
