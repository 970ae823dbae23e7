"""What a sweep is: what varies, what stays fixed, what is minimised and how; the same for all its workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from auxnet.errors import check_choice
from auxnet.fetching import absolute_name, may_be_pin_of
from auxnet.reading.sources import absolute_source
from auxnet.recipe import WHERE, Recipe, recipe_from, words_of
from auxnet.sweeps.space import Space, count_of, domain_of, in_words, values_of, written

Sampler = Literal["tpe", "random", "grid"]
LARGEST_GRID = 10_000
SEARCH_KEYS = ("objective", "sampler", "prune")
COMPARABLE = ("data", "data_dir", "image_size", "fit", "val_fraction", "seed")
"""fields that say which images a trial is validated on"""


@dataclass(frozen=True)
class Settings:
    """What a sweep is. Two workers with the same settings work on the same sweep."""

    recipe: Recipe
    """what stays fixed"""
    space: Space
    """what varies"""
    objective: str = "mean"
    """the validation error to minimise: mean (over the outputs that train to the end), final, or an output's number"""
    sampler: Sampler = "tpe"
    prune: bool = True

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("there is nothing to vary: name a field with --vary lr=0.01..0.5:log")
        check_choice("sampler", self.sampler, Sampler)
        if self.objective not in ("mean", "final") and not (self.objective.isdecimal() and int(self.objective) >= 1):
            raise ValueError(f"objective must be mean, final or the number of an output, got {self.objective!r}")
        if self.sampler == "grid":
            for field, domain in self.space.items():
                if count_of(domain) is None:
                    raise ValueError(f"a grid needs steps: give {field} as {written(domain)}:step, or as choices")
            if self.grid_size > LARGEST_GRID:
                raise ValueError(f"a grid of {self.grid_size:,} trials is too large; {LARGEST_GRID:,} are the most")

    @property
    def grid_size(self) -> int:
        """How many combinations of values there are; 0 if there are infinitely many."""
        return math.prod(count_of(domain) or 0 for domain in self.space.values())

    @property
    def fewest_epochs(self) -> int:
        """The least number of epochs that a trial may have."""
        return int(min(values_of(self.space["epochs"]))) if "epochs" in self.space else self.recipe.epochs


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / "study.txt").is_file()


def content_of(settings: Settings) -> dict[str, Any]:
    """Settings as values that JSON holds."""
    return {
        **{key: getattr(settings, key) for key in SEARCH_KEYS},
        "recipe": asdict(settings.recipe),
        "space": {field: written(domain) for field, domain in settings.space.items()},
    }


def settings_from(content: dict[str, Any]) -> Settings:
    """The settings that `content_of` turned into values."""
    return Settings(
        recipe_from(content["recipe"]),
        {field: domain_of(field, given) for field, given in content["space"].items()},
        **{key: content[key] for key in SEARCH_KEYS},
    )


def pretrained_of(settings: Settings) -> list[str | None]:
    """The names of initial weights: the recipe's `pretrained`, then the choices if `pretrained` varies."""
    varied = settings.space.get("pretrained")
    return [settings.recipe.pretrained, *(values_of(varied) if varied else ())]


def with_weights(settings: Settings, names: Sequence[str | None]) -> Settings:
    """The settings with these names in place of `pretrained_of`. Raises ValueError if two that vary are the same."""
    first, *varied = names
    space = {**settings.space, "pretrained": domain_of("pretrained", varied)} if varied else settings.space
    return replace(settings, recipe=replace(settings.recipe, pretrained=first), space=space)


def found_anywhere(settings: Settings) -> Settings:
    """The settings with weights, and data that are a path from here, named so that they are found from any folder.

    Data in a `data_dir` keep their name: another worker may have them in another one.
    """
    data, data_dir = absolute_source(settings.recipe.data, settings.recipe.data_dir)
    if data_dir is None:
        settings = replace(settings, recipe=replace(settings.recipe, data=data))
    return with_weights(settings, [name and absolute_name(name) for name in pretrained_of(settings)])


def check_same(begun: Settings, given: Settings, folder: Path) -> None:
    """Raise ValueError for settings other than those that a sweep was begun with, naming the first difference."""
    begun, given = found_anywhere(begun), found_anywhere(given)
    if Path(begun.recipe.data).name == Path(given.recipe.data).name:  # moved, or another worker's: images are compared
        given = replace(given, recipe=replace(given.recipe, data=begun.recipe.data))
    weights, asked = pretrained_of(begun), pretrained_of(given)
    if len(weights) == len(asked):
        pinned_to = [was if may_be_pin_of(was, now) else now for was, now in zip(weights, asked, strict=True)]
        given = with_weights(given, pinned_to)
    free = {*WHERE, *begun.space, *given.space}
    pairs: list[tuple[str, Any, Any]] = [(key, getattr(begun, key), getattr(given, key)) for key in SEARCH_KEYS]
    for field in {**begun.space, **given.space}:
        was, now = (in_words(of.space[field]) if field in of.space else "not varied" for of in (begun, given))
        pairs.append((f"--vary {field}", was, now))
    pairs += [(k, v, getattr(given.recipe, k)) for k, v in asdict(begun.recipe).items() if k not in free]
    for what, was, now in pairs:
        if was != now:
            mend = "give the same, or another --out"
            raise ValueError(
                f"{folder} was begun with {what}: {words_of(was)}, and cannot go on with {words_of(now)}; {mend}"
            )
