"""The AuxNet that plain options describe, as a recipe makes them and a config.json keeps them.

They are the arguments of `resnet`, or a backbone by its name: {"backbone", "cuts", "num_classes", "in_channels",
"image_size"}; with "alone", the net of that output by itself. The cuts are names: what a search found is written
down, and never searched for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from auxnet.backbones.attaching import attach
from auxnet.backbones.cuts import even_cuts
from auxnet.backbones.named import build_backbone
from auxnet.backbones.weights import config_of, is_weights_of_run, load_pretrained, run_of
from auxnet.errors import error_prefix, warn
from auxnet.machine import random_kept
from auxnet.modules import leaves
from auxnet.network import AuxNet
from auxnet.precision import usual_defaults
from auxnet.recipe import words_of
from auxnet.residual import resnet
from auxnet.sections import LARGEST, NetworkFields
from auxnet.words import as_flag

OF_OUTPUTS = ("outputs", "at", "cuts", "head", "alone", "num_classes", "image_size")  # not of the trunk
IN_WORDS = {name: words_of(each.default) for name, each in signature(resnet).parameters.items()}
USUAL = {each.name: words_of(each.default) for each in fields(NetworkFields)}


@usual_defaults()
def net_from(options: Mapping[str, Any], pretrained: str | None = None, classes: Sequence[str] | None = None) -> AuxNet:
    """The net of such options, its weights random but for those that `pretrained` holds: a run's, or a backbone's.

    A run's outputs may sit elsewhere, or be fewer, as those of a plain net: its trunk is taken then, and the heads of
    outputs that both have. Heads that the run lacks are initialised anew, with a warning; so are all last layers if its
    class names, in order, are not `classes`.
    Raises ValueError for options that describe none, and what `build_backbone` and `load_pretrained` raise.
    """
    if pretrained is not None and ("backbone" not in options or is_weights_of_run(pretrained)):
        return _filled(net_from(options), options, pretrained, classes)
    if options.get("alone") is not None:
        rest = {key: value for key, value in options.items() if key != "alone"}
        return net_from(rest, pretrained).alone(options["alone"])
    if "backbone" not in options:
        return resnet(**options)
    name, number, channels = options["backbone"], options["num_classes"], options["in_channels"]
    height, width = options["image_size"]
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
        raise ValueError(f"images must have 1..{LARGEST} pixels a side, got {height} x {width}")
    backbone = build_backbone(name, number, channels, pretrained)
    with error_prefix(f"backbone {name}"):
        return attach(backbone, tuple(options["cuts"]), number, example=torch.empty(1, channels, height, width))


def _filled(net: AuxNet, options: Mapping[str, Any], pretrained: str, classes: Sequence[str] | None) -> AuxNet:
    """The net of these options with the weights of a run."""
    run = run_of(pretrained)
    config = config_of(run)
    theirs, output = config.get("network"), config.get("output")
    initial = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    same_outputs, unlike = True, ""
    if isinstance(theirs, dict):
        # Keys and shapes may be those of another network, or of outputs elsewhere, too.
        unlike = _unlike(options, theirs, run)
        renamed = {**theirs, "backbone": options.get("backbone")}
        if unlike and ("backbone" not in theirs or _unlike(options, renamed, run)):  # not in the backbone's name alone
            raise ValueError(unlike)
        alone = theirs.get("alone") if output is None else output
        same_outputs = (theirs.get("cuts"), alone) == (options.get("cuts"), options.get("alone"))
    else:  # weights alone, as of a net of one's own
        theirs = {key: value for key, value in options.items() if key != "alone"}
    if same_outputs and _filled_whole(net, pretrained):
        if unlike:
            asked = f"{options['backbone']} is asked for"
            warn(f"the backbone of {run} is {theirs['backbone']}, and {asked}: its weights fit, and are taken")
    elif unlike:
        raise ValueError(unlike)
    elif output is not None:
        raise ValueError(f"{pretrained} is one output of a run: pretrained needs the run itself")
    elif "backbone" not in options and not is_weights_of_run(pretrained):
        mend = "name the backbone with --backbone"
        raise ValueError(f"{pretrained} holds no run's weights, but those of a backbone: {mend}")
    else:
        _take_over(net, options, theirs, pretrained)
    known = config.get("classes")
    if classes is not None and isinstance(known, list) and len(known) == len(classes) and known != list(classes):
        net.load_state_dict(_last_layers(initial, options, len(classes)), strict=False)
        first = next(n for n, (their, our) in enumerate(zip(known, classes, strict=True)) if their != our)
        names = f"class {first + 1} is {known[first]!r} in {pretrained}, and {classes[first]!r} in the data"
        warn(f"{names}: the last layers of all outputs begin anew")
    return net


def _filled_whole(net: AuxNet, pretrained: str) -> bool:
    """Fill all of a net from weights, where they fit; whether they do."""
    try:
        load_pretrained(net, pretrained)
        return True
    except ValueError:
        return False


def _last_layers(
    tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any], num_classes: int
) -> dict[str, torch.Tensor]:
    """Those tensors of a net whose shape depends on the number of classes: they differ in a net of one class more."""
    more = net_from({**options, "num_classes": num_classes + 1}).state_dict()
    return {name: tensor for name, tensor in tensors.items() if tensor.shape != more[name].shape}


def _take_over(net: AuxNet, options: Mapping[str, Any], theirs: Mapping[str, Any], pretrained: str) -> None:
    """Fill the trunk of a net, and its heads as far as they are there, from a run whose outputs sit elsewhere.

    Raises ValueError if that run's trunk ends before the net's, as that of one output trained alone may.
    """
    other = net_from({**theirs, **{key: options[key] for key in ("num_classes", "image_size") if key in options}})
    load_pretrained(other, pretrained)
    trunk, known = _trunk(net), _trunk(other)
    if not trunk.keys() <= known.keys():
        deepest = f"{pretrained} ends at layer {other.depths[-1]}, before the net asked for, at {net.depths[-1]}"
        raise ValueError(f"{deepest}: its weights do not fit; leave --pretrained out")
    for name, tensor in trunk.items():
        tensor.copy_(known[name])
    heads = dict(zip(_places(theirs, other), other.heads, strict=True))
    anew = []
    for k, (place, head) in enumerate(zip(_places(options, net), net.heads, strict=True), start=1):
        found = heads[place].state_dict() if place in heads else {}
        if _shapes(found) == _shapes(head.state_dict()):
            head.load_state_dict(found)
        else:
            anew.append(f"{k}")
    if anew:
        outputs = f"output{'s' * (len(anew) > 1)} {', '.join(anew)}"
        warn(f"{pretrained} has no head for {outputs}: to be trained from the beginning")


def _trunk(net: AuxNet) -> dict[str, Tensor]:
    """The tensors of the segments, by names that do not depend on where the trunk is cut.

    Those of blocks by their place in the trunk; of a traced backbone, whose segments are leaves, by their own names.
    """
    return {
        name if isinstance(part, GraphModule) else f"{n}.{name}": tensor
        for n, part in enumerate(leaves(nn.Sequential(*net.segments)))
        for name, tensor in part.state_dict().items()
    }


def _places(options: Mapping[str, Any], net: AuxNet) -> Sequence[Any]:
    """Where the outputs of a net sit: after which layers, or modules of a backbone."""
    if "backbone" not in options:
        return net.depths
    places = (*options["cuts"], None)
    return places if options.get("alone") is None else places[options["alone"] - 1 :][:1]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _unlike(options: Mapping[str, Any], theirs: Mapping[str, Any], run: Path) -> str:
    """In what a run's net differs from that of these options, other than in its outputs; "" where in nothing."""
    their, our = ({key: words_of(value) for key, value in each.items()} for each in (theirs, options))
    their, our = (each if "backbone" in each else {**IN_WORDS, **each} for each in (their, our))
    names = [name for name in {**their, **our} if name not in OF_OUTPUTS and their.get(name) != our.get(name)]
    if not names:
        return ""
    if "backbone" in names:  # on which depends what others there are
        names = ["backbone"]
    their, our = USUAL | their, USUAL | our
    has = ", ".join(f"{name}={their[name]}" for name in names)
    here = ", ".join(f"{name}={our[name]}{' (the default)' * (our[name] == USUAL.get(name))}" for name in names)
    needed = {*names, *theirs} - {*OF_OUTPUTS} | {"cuts"} if "backbone" in names else {*names}
    if "backbone" not in names:
        try:
            net_from({**options, **{name: theirs[name] for name in names if name in theirs}})
        except ValueError:  # a depth at which there is no place for these outputs
            needed |= {"outputs", "at"}
    flags = [f"{as_flag(name)} {their[name]}" for name in USUAL if name in needed and their[name] != our[name]]
    mend = f"give {' '.join(flags)}, or " if USUAL.keys() >= {*names} else ""  # not for what the data decide
    return f"the net of {run} has {has}, and this one has {here}: its weights do not fit; {mend}leave --pretrained out"


@cache
def cuts_of(
    backbone: str, cuts: int, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> tuple[str, ...]:
    """The names of the modules after which that many even cuts lie, for images of this size (H, W).

    Searched for once in a process: what is drawn for that is none of the caller's random numbers, or a second training
    would begin with other weights than the first. Raises ValueError if there are not as many places, and what
    `build_backbone` raises.
    """
    with random_kept(torch.device("cpu")):
        built = build_backbone(backbone, num_classes, in_channels)
        with error_prefix(f"backbone {backbone}, cuts={cuts}"):
            return even_cuts(built, cuts, (in_channels, *image_size))
