"""A trained net with all that it takes to use it, in the layout of the Hugging Face hub: load, save, push.

A folder holds config.json (network, classes, preprocessing), model.safetensors and README.md, the model card.
huggingface_hub's own mixin reads and pushes it. A run directory is such a folder too, and so is one exported output,
whose net has that output alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor

from auxnet import __version__
from auxnet.answers import noted
from auxnet.backbones.dryrun import outputs as logits_of_outputs
from auxnet.backbones.named import is_own_code
from auxnet.batches import normalise
from auxnet.documents import parsing
from auxnet.errors import check_choice, one_line, whole_number
from auxnet.fetching import fetched, on_hub
from auxnet.loading import backbone_of, build_net, load_weights, read_config, unlike, weights_file
from auxnet.model_card import is_own_card, model_card
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.preprocessing import Preprocessing
from auxnet.reading.arrays import is_name
from auxnet.reading.pictures import Picture, pixels_for
from auxnet.recipe import RunDir, has_recipe, nearest_run, read_run_recipe, run_path
from auxnet.rundir import checkpoints, is_finished, summary_of
from auxnet.sections import Which
from auxnet.tensors import save_tensors, tensors_sha256


class PretrainedAuxNet(AuxNet, PyTorchModelHubMixin, library_name="auxnet", pipeline_tag="image-classification"):
    """An AuxNet that knows its classes and its preprocessing, with the hub's `save_pretrained` and `push_to_hub`.

    `classes` names the columns of the logits, `preprocessing` says what is done to images first. `numbers` holds the
    number that each output has in the run: 1..K, or the number of the one taken out.
    `source` says where the net comes from: run, epoch, data, table of outputs, versions. `card` is the model card of
    the folder that the net was loaded from. `described_sha256` is the SHA-256 of the weights that `source` and `card`
    describe. `net` is the net that `network` and `output` describe, if it is built already.
    """

    def __init__(
        self,
        network: dict[str, Any],
        classes: list[str],
        preprocessing: dict[str, Any],
        output: int | None = None,
        source: dict[str, Any] | None = None,
        model_type: str = "auxnet",
        auxnet_version: str = __version__,
        net: AuxNet | None = None,
    ) -> None:
        self._hub_mixin_config.pop("net", None)  # type: ignore[union-attr]
        net = net or build_net({"network": network, "output": output}, "config.json")
        super().__init__(net.segments, net.heads, net.depths, net.min_image_shape)
        self.frozen = net.frozen
        self.numbers = tuple(range(1, net.outputs + 1)) if output is None else (output,)
        self.classes = tuple(classes)
        if len(self.classes) != (wanted := network.get("num_classes", 10)):  # resnet's default
            raise ValueError(f"a network for {wanted} classes needs their {wanted} names, got {len(self.classes)}")
        self.preprocessing = Preprocessing.read(preprocessing)
        self.source = source or {}
        self.card: str | None = None
        self.described_sha256: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json for the net as it is now, its classes, preprocessing and source included."""
        now = {"classes": [*self.classes], "preprocessing": self.preprocessing.content(), "source": self.source}
        return {**cast(dict[str, Any], self._hub_mixin_config), **now}

    def prepare(self, *images: Picture | Sequence[Picture]) -> Tensor:
        """Images prepared for the net, as `predict` does it: [N, C, H, W], on its device and in its dtype.

        Give one, several, or a list of them: files, PIL's images, or uint8 pixels [H, W, C] (grey ones also [H, W]).
        Raises FileNotFoundError, RuntimeError for a file that is no readable image, TypeError as `check_image` does,
        ValueError for what `upright` refuses.
        """
        one_list = len(images) == 1 and isinstance(images[0], list | tuple)
        given = cast(Sequence[Picture], images[0] if one_list else images)
        if not given:
            raise ValueError("there are no images to prepare: name files, or give pixels")
        seen = torch.from_numpy(
            np.stack([self.preprocessing.seen(pixels_for(image, self.preprocessing.resize)) for image in given])
        )
        like = next(self.parameters())
        return normalise(seen.to(like.device), self.preprocessing.mean, self.preprocessing.std).to(like.dtype)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The loaded card if somebody else wrote it, or else one written for the net as it is."""
        return ModelCard(self.card if self.card and not is_own_card(self.card) else self.own_card())

    def own_card(self) -> str:
        """The card that this program writes for the net as it is. Raises if `source` cannot be read."""
        return model_card(self.classes, self.preprocessing, self.numbers, self.source)

    def save_pretrained(self, save_directory: Path | str, **how: Any) -> str | None:
        """Write config.json, model.safetensors and README.md, the model card; somebody else's card there is kept.

        Errors that a run measured are left out if the weights have changed since. Raises FileExistsError for the folder
        of a run, ValueError if the net does not give a logit for each class or is not what its config describes.
        """
        folder = Path(save_directory)
        if has_recipe(folder) or is_finished(folder) or checkpoints(folder):
            raise FileExistsError(f"{folder} is the folder of a run, whose weights stay as they were: name another")
        shape = self.preprocessing.image_shape
        for columns, _ in logits_of_outputs(self, shape):
            self.check_columns(columns)
        self._check_loadable(shape)
        card = folder / "README.md"
        earlier = (self.card, str(self.generate_model_card())) if card.is_file() else ()
        changed, found = self.leave_out_measured(), card.read_text("utf-8", "replace") if earlier else ""
        if is_own_card(found) or (changed and found in earlier):
            card.unlink()  # as the mixin would leave it
        self._hub_mixin_config = self.config
        written: str | None = super().save_pretrained(folder, **how)
        return written

    def _check_loadable(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless `load` gives this net again; not checked if its backbone is the user's own code."""
        config = self.config
        backbone = config["network"].get("backbone")
        if backbone is not None and is_own_code(backbone):
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # they were given when the net was built before
                other = unlike(self, _from_config(config, Path("config.json"), None), shape)
        except RuntimeError as error:
            raise ValueError(f"the net could not be loaded again: {one_line(error)}") from error
        if other is not None:
            mend = "torch.save(net.state_dict(), ...) keeps one that was changed"
            raise ValueError(f"the net is not the one that its config describes, it differs in {other}: {mend}")

    def check_columns(self, columns: int) -> None:
        """Raise ValueError unless logits with this many columns have a class for each."""
        if columns != len(self.classes):
            mend = "a net of attach or resnet takes any, and is saved by torch.save(net.state_dict(), ...)"
            raise ValueError(f"logits of {columns} columns do not fit this net's {len(self.classes)} classes: {mend}")

    def note_weights(self) -> Self:
        """Note that `source` and `card` describe the weights as they are now."""
        self.described_sha256 = tensors_sha256(self.state_dict())
        return self

    def leave_out_measured(self) -> bool:
        """Drop the measured errors and the loaded card if the weights have changed since; return whether they have."""
        if self.described_sha256 in (None, tensors_sha256(self.state_dict())):
            return False
        self.card, self.source = None, {key: value for key, value in self.source.items() if key != "table"}
        return True

    def _save_pretrained(self, save_directory: Path) -> None:
        built_in = self.config["network"].get("backbone") is None
        answers = None if built_in else noted(self, self.preprocessing.image_shape)
        save_tensors(save_directory / "model.safetensors", self.state_dict(), answers=answers)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **given: Any) -> PretrainedAuxNet:
        """Load as `load` does. `given` are the hub's options, and what the mixin has read in config.json.

        Raises TypeError for an option that is neither, ValueError for one that config.json decides.
        """
        known = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        of_hub = {key: given.pop(key) for key in known if key in given}
        given = {key: value for key, value in given.items() if value is not None}  # as options of older hubs
        if unknown := given.keys() - signature(cls.__init__).parameters.keys():
            raise TypeError(f"from_pretrained takes no {min(unknown)}: leave it out, and change the net that it gives")
        net = load(model_id) if Path(model_id).is_dir() else _load(fetched(f"hf:{model_id}", **of_hub), "last", None)
        for key, value in given.items():
            if value != (own := cast(dict[str, Any], net._hub_mixin_config).get(key)):  # as config.json has it
                raise ValueError(f"{key}={value!r} differs from the {own!r} of {model_id}, which decides: leave it out")
        return net


def load(source: RunDir, which: Which = "last") -> PretrainedAuxNet:
    """The net of a run directory, an exported folder or `hf:owner/name`, in evaluation mode.

    `which` chooses the weights of a run: of the last epoch, or the "best" one on validation.

    Raises FileNotFoundError if there is no such folder or model, ValueError for an impossible `which` or name,
    RuntimeError for files that are damaged or not of this program.
    """
    name, folder = str(source), run_path(source)
    check_choice("which", which, Which)
    from_hub = on_hub(name)
    if not from_hub and folder.is_file():
        raise ValueError(f"{folder} is a file, and not the folder of a net: auxnet.predict takes ONNX files")
    if not from_hub and not folder.is_dir():
        mend = f"give a run, an exported folder, or hf:owner/name{nearest_run(folder)}"
        raise FileNotFoundError(f"there is no folder {folder}: {mend}")
    if which == "best" and (from_hub or not has_recipe(folder)):
        raise ValueError(f"{source} is no run directory, so it holds no 'best' weights: leave which out")
    if from_hub:
        return _load(fetched(name), which, None)
    return _load(folder, which, backbone_of(folder))


def _load(folder: Path, which: Which, trusted: str | None) -> PretrainedAuxNet:
    """The net in a folder; its backbone, if it has one, must be a known library's or the `trusted` one."""
    where = folder / "config.json"
    net = _from_config(read_config(folder), where, trusted)
    load_weights(weights_file(folder, which), net)
    if is_finished(folder):
        net.source = source_of(folder, which)
    elif (folder / "README.md").is_file():
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            net.card = file.read(2**20)  # a stranger's; ours have 2 kB
    with parsing(f"{folder} is damaged: what it says of its training cannot be read"):
        net.own_card()
    return net.note_weights().eval()


def with_run(net: AuxNet, run: Path) -> PretrainedAuxNet:
    """A net that was just trained, with the facts of its run directory; the modules are shared."""
    made = PretrainedAuxNet(**read_config(run), source=source_of(run, "last"), net=net)
    return made.note_weights().eval()


def take_out(net: PretrainedAuxNet, output: int) -> PretrainedAuxNet:
    """The model of one output (its number in the run), with no parameter it does not use.

    Raises ValueError if there is no such output.
    """
    position = position_of(net, output)
    if net.outputs == 1:
        return net
    net.leave_out_measured()
    only = copied(net.alone(position))
    made = PretrainedAuxNet(**{**net.config, "output": net.numbers[position - 1]}, net=only)
    return made.note_weights().eval()


def position_of(net: PretrainedAuxNet, output: int) -> int:
    """The position in the net, from 1, of the output with this number. Raises ValueError if it is not there."""
    output = whole_number("output", output)
    if output not in net.numbers:
        held = f"1..{net.numbers[-1]} (shallow to deep)" if net.numbers[0] == 1 else f"{net.numbers[0]}, the only one"
        raise ValueError(f"output must be {held}, got {output}")
    return net.numbers.index(output) + 1


def source_of(run: Path, which: Which) -> dict[str, Any]:
    """The facts of summary.json and the recipe that a model takes along when it leaves its run."""
    recipe = read_run_recipe(run)
    network: dict[str, Any] = {key: getattr(recipe, key) for key in ("depth", "form", "block", "width")}
    if recipe.backbone is not None:
        network = {"backbone": recipe.backbone}
    if recipe.pretrained is not None:
        network["pretrained"] = recipe.pretrained if on_hub(recipe.pretrained) else Path(recipe.pretrained).name
    with summary_of(run, "it does not hold what a finished run writes") as summary:
        return {
            "run": run.resolve().name,
            "weights": which,
            "epoch": summary["epochs"][which],
            "table": summary[which],
            "method": summary["method"],
            "data": summary["data"],
            "seed": summary["seed"],
            "versions": summary["versions"],
            "commit": summary["commit"],
            "recipe": {**network, **{key: getattr(recipe, key) for key in ("epochs", "batch_size", "optimizer", "lr")}},
        }


def _from_config(config: Any, where: Path, trusted: str | None) -> PretrainedAuxNet:
    built = build_net(config, where, trusted)
    if config.get("model_type") != "auxnet":
        raise RuntimeError(f"{where} describes a model of type {config.get('model_type')!r}, not 'auxnet'")
    known = ("network", "classes", "preprocessing", "output", "source", "auxnet_version")
    with parsing(f"{where} is damaged: classes or preprocessing cannot be read"):
        net = PretrainedAuxNet(**{key: config[key] for key in known if key in config}, net=built)
        whole = (
            all(map(is_name, net.classes))
            and net.preprocessing.channels == config["network"].get("in_channels", 3)
            and isinstance(net.source, dict)
        )
    if not whole:
        raise RuntimeError(f"{where} is damaged: its classes or preprocessing do not fit its network")
    return net
