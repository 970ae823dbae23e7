"""The AuxNet that plain options describe (`described`), filled with the weights of a run or of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from auxnet.backbones.described import net_from
from auxnet.backbones.weights import config_of, is_weights_of_run, load_pretrained, run_of
from auxnet.errors import warn
from auxnet.modules import leaves
from auxnet.network import AuxNet
from auxnet.precision import usual_defaults
from auxnet.recipe import words_of
from auxnet.residual import resnet
from auxnet.sections import NetworkFields
from auxnet.words import as_flag

OF_OUTPUTS = ("outputs", "at", "cuts", "head", "alone", "num_classes", "image_size")  # not of the trunk
RESNET_DEFAULTS = {name: words_of(each.default) for name, each in signature(resnet).parameters.items()}
FIELD_DEFAULTS = {each.name: words_of(each.default) for each in fields(NetworkFields)}


@usual_defaults()
def pretrained_net(options: Mapping[str, Any], pretrained: str, classes: Sequence[str] | None = None) -> AuxNet:
    """The net of these options, with the weights that `pretrained` holds: a run's, or a backbone's.

    The run's outputs may sit elsewhere, or be fewer, as those of a plain net: the net then takes the run's trunk, and
    the heads of the outputs that both have. Heads that the run lacks stay random, with a warning; so do all last layers
    if the run's class names, in order, are not `classes`.

    Raises ValueError if the run's net differs in more than its outputs, and what `net_from` and `load_pretrained`
    raise.
    """
    if "backbone" in options and not is_weights_of_run(pretrained):
        return net_from(options, pretrained)
    net = net_from(options)
    _fill(net, options, pretrained, classes)
    return net


def _fill(net: AuxNet, options: Mapping[str, Any], pretrained: str, classes: Sequence[str] | None) -> None:
    """Fill the net of these options with the weights of a run."""
    run = run_of(pretrained)
    config = config_of(run)
    theirs, output = config.get("network"), config.get("output")
    initial = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    same_outputs, differing = True, list[str]()
    if isinstance(theirs, dict):
        # Keys and shapes alone do not tell: a net of other options, or with outputs elsewhere, may have the same ones.
        differing = _differing(options, theirs)
        if differing not in ([], ["backbone"]):
            raise ValueError(_misfit(differing, options, theirs, run))
        alone = theirs.get("alone") if output is None else output
        same_outputs = (theirs.get("cuts"), alone) == (options.get("cuts"), options.get("alone"))
    else:  # weights alone, as of a net of one's own
        theirs = {key: value for key, value in options.items() if key != "alone"}
    if same_outputs and _filled_whole(net, pretrained):
        if differing:
            asked = f"{options['backbone']} is asked for"
            warn(f"the backbone of {run} is {theirs['backbone']}, and {asked}: its weights fit, and are taken")
    elif differing:
        raise ValueError(_misfit(differing, options, theirs, run))
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
        warn(f"{names}: the last layers of all outputs are not loaded")


def _filled_whole(net: AuxNet, pretrained: str) -> bool:
    """Fill the whole net from a file of weights if they fit; return whether they do."""
    try:
        load_pretrained(net, pretrained)
        return True
    except ValueError:
        return False


def _last_layers(
    tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any], num_classes: int
) -> dict[str, torch.Tensor]:
    """The tensors of a net whose shape depends on the number of classes: a net of one class more tells which."""
    more = net_from({**options, "num_classes": num_classes + 1}).state_dict()
    return {name: tensor for name, tensor in tensors.items() if tensor.shape != more[name].shape}


def _take_over(net: AuxNet, options: Mapping[str, Any], theirs: Mapping[str, Any], pretrained: str) -> None:
    """Fill the trunk of a net, and the heads that the run has too, from a run whose outputs are elsewhere.

    Raises ValueError if the run's trunk ends before the net's, as it may if the run trained one output alone.
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
    untrained = []
    for k, (place, head) in enumerate(zip(_places(options, net), net.heads, strict=True), start=1):
        found = heads[place].state_dict() if place in heads else {}
        if _shapes(found) == _shapes(head.state_dict()):
            head.load_state_dict(found)
        else:
            untrained.append(f"{k}")
    if untrained:
        outputs = f"output{'s' * (len(untrained) > 1)} {', '.join(untrained)}"
        warn(f"{pretrained} has no head for {outputs}: to be trained from the beginning")


def _trunk(net: AuxNet) -> dict[str, Tensor]:
    """The tensors of the segments, by names that do not depend on where the trunk is cut.

    Tensors of blocks are named by the block's place in the trunk. Those of a traced backbone, whose segments are
    leaves, keep their names.
    """
    return {
        name if isinstance(part, GraphModule) else f"{n}.{name}": tensor
        for n, part in enumerate(leaves(nn.Sequential(*net.segments)))
        for name, tensor in part.state_dict().items()
    }


def _places(options: Mapping[str, Any], net: AuxNet) -> Sequence[Any]:
    """Where the outputs of a net are: after which layers, or modules of a backbone (None: the final output)."""
    if "backbone" not in options:
        return net.depths
    places = (*options["cuts"], None)
    return places if options.get("alone") is None else places[options["alone"] - 1 :][:1]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _differing(options: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The options, those of outputs aside, in which two nets differ."""
    ours, others = map(_in_full, (options, theirs))
    return [name for name in {**others, **ours} if name not in OF_OUTPUTS and others.get(name) != ours.get(name)]


def _in_full(options: Mapping[str, Any]) -> dict[str, str]:
    """The options in words, with the defaults of a built-in ResNet for those that are left out."""
    said = {key: words_of(value) for key, value in options.items()}
    return said if "backbone" in said else {**RESNET_DEFAULTS, **said}


def _misfit(differing: Sequence[str], options: Mapping[str, Any], theirs: Mapping[str, Any], run: Path) -> str:
    """The message for a run whose net differs in some options from the net asked for: which, and what flags to give."""
    names = ["backbone"] if "backbone" in differing else differing  # on the backbone depends which others there are
    their, our = (FIELD_DEFAULTS | _in_full(each) for each in (theirs, options))
    has = ", ".join(f"{name}={their[name]}" for name in names)
    here = ", ".join(
        f"{name}={our[name]}{' (the default)' * (our[name] == FIELD_DEFAULTS.get(name))}" for name in names
    )
    if "backbone" in names:
        needed = {"backbone", *theirs} - {*OF_OUTPUTS} | {"cuts"}
    else:
        needed = {*names}
        try:
            net_from({**options, **{name: theirs[name] for name in names if name in theirs}})
        except ValueError:  # the run's depth has no place for these outputs
            needed |= {"outputs", "at"}
    flags = [f"{as_flag(name)} {their[name]}" for name in FIELD_DEFAULTS if name in needed and their[name] != our[name]]
    mend = f"give {' '.join(flags)}, or " if FIELD_DEFAULTS.keys() >= {*names} else ""  # the data decide all others
    return f"the net of {run} has {has}, and this one has {here}: its weights do not fit; {mend}leave --pretrained out"
