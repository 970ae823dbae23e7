"""A study as its YAML file has it: a question, variants of one recipe at several scales, and claims about them.

    question: which of the three ways to propagate gradients gives the best outputs?
    variants:
      joint: {method: joint}                       # what differs from the base of the scale
      live: {method: multiway}
    claims:
      - {says: multi-way beats joint at the final output, better: live, worse: joint}
    published:
      live: {error: 5.1, source: "the paper, table 1"}     # in per cent
    scales:
      small: {over: {depth: 32}}                   # what differs from the scale as scales.yaml has it
      full: {seeds: 3, base: {data: cifar10, depth: 20, outputs: 3, epochs: 100}}       # or one of its own

With `measures: supervision` the trainings are diagnosed too, and a claim can be `of: share`: that the share of
supervision in the shallowest layer is greater on the better side than on the worse, which may be a number.

A side of a claim is a variant's final output, or with `:2` its second, with `:mean` the mean over its outputs. In a
claim of a share it is the output whose share is largest, or with `:2` the second, with `:final` the final one. A scale
may have variants, claims and published values of its own, and `datasets`, each of which is studied in turn. `form`
says which keys may be where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from json import dumps
from math import inf
from pathlib import Path
from typing import Any

from auxnet.documents import read_yaml
from auxnet.errors import error_prefix, one_line
from auxnet.recipe import WHERE, Recipe, folder_name, recipe_from
from auxnet.studies.form import (
    SCALE_KEYS,
    STUDY_KEYS,
    count,
    given,
    items,
    needed,
    pairs,
    percentage,
    recipe_fields,
    text,
)
from auxnet.words import nearest

HOME = Path(__file__).parent  # of the studies that come with the program
BOTH = ("better", "worse")  # sides of a claim


@dataclass(frozen=True)
class Side:
    """One side of a claim: an output of a variant, by its number, "final", or "mean" over all.

    "" is the final output, and in a claim of a share the output whose share is largest.
    """

    variant: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.variant}:{self.output}" if self.output else self.variant


@dataclass(frozen=True)
class Claim:
    """A claim: one side errs less than the other; or, `of` "share", more supervision reaches its shallowest layer."""

    says: str
    better: Side
    worse: Side | float
    """a number only in a claim of a share, which is to be greater than it"""
    of: str = "error"
    added: str = ""
    """when it was added, if later than other claims: "after a look at small"; said with the verdict"""

    @property
    def variants(self) -> list[Side]:
        """The sides that are variants and not a number."""
        return [side for side in (self.better, self.worse) if isinstance(side, Side)]

    @property
    def sides(self) -> str:
        """The claim in signs: one side's error is smaller, or its share of supervision larger."""
        return f"{self.better} < {self.worse}" if self.of == "error" else f"share: {self.better} > {self.worse}"


@dataclass(frozen=True)
class Training:
    """One training of a study."""

    variant: str
    seed: int
    recipe: Recipe

    @cached_property
    def name(self) -> str:
        """The name of its folder: the same recipe has the same name in every study, and is trained once."""
        recipe = self.recipe
        digest = sha256(dumps(differing(recipe), sort_keys=True).encode()).hexdigest()[:10]
        return f"{folder_name(recipe)}-seed{recipe.seed}-{digest}"


@dataclass(frozen=True)
class Study:
    """A study at one scale."""

    name: str
    scale: str
    question: str
    note: str
    seeds: int
    datasets: tuple[str, ...]
    base: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    claims: tuple[Claim, ...]
    published: Mapping[str, Mapping[str, Any]]
    measures: str | None = None
    """"supervision" if the trainings are to be diagnosed"""

    def recipe(self, variant: str, data: str, seed: int = 0, where: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of a variant: what it says, over the base. A null leaves a key of the base out."""
        merged = {**self.base, **self.variants[variant], "data": data, "seed": seed, **(where or {})}
        return recipe_from({key: value for key, value in merged.items() if value is not None})

    def trainings(self, where: Mapping[str, Any] | None = None) -> Iterator[Training]:
        """All trainings, one seed after the other, so that variants can be compared early."""
        for data in self.datasets:
            for seed in range(self.seeds):
                for variant in self.variants:
                    yield Training(variant, seed, self.recipe(variant, data, seed, where))


def names() -> list[str]:
    """The studies that come with the program."""
    return sorted({path.stem for path in HOME.glob("*.yaml")} - {"scales"})


def read_study(name: str, scale: str | None = None, seeds: int | None = None) -> Study:
    """A study that comes with the program, by its name, or one of the user's own, by its file.

    The scale is "small" if none is given, or the file's only scale if that has none of the usual names. Raises
    FileNotFoundError if there is no such file, ValueError if there is no such study or the file does not describe one.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in names():
        raise ValueError(
            f"there is no study {name!r}{nearest(name, names())}; there are {', '.join(names())}, or FILE.yaml"
        )
    path = Path(name) if own else HOME / f"{name}.yaml"
    content = read_yaml(path, "study")
    with error_prefix(f"study {name}"):
        return _study(path.stem, content, scale, seeds)


def _study(name: str, content: Any, scale: str | None, seeds: int | None) -> Study:
    content = given(content, STUDY_KEYS, "a study")
    own = pairs(content.get("scales", {}), "scales")
    if scale is None:
        scale = next(iter(own)) if len(own) == 1 and not own.keys() & _usual() else "small"
    of_scale = _scale(own, scale)
    whole = {**content, **of_scale}  # a scale may have variants, claims and published values of its own
    variants, datasets = _variants(needed(whole, "variants", "the study")), _datasets(of_scale, scale)
    measures = content.get("measures")
    if measures not in (None, "supervision"):
        raise ValueError(f"measures must be supervision, or left out, got {measures!r}")
    made = Study(
        name,
        scale,
        question=one_line(text(needed(content, "question", "the study"), "question")),
        note=" ".join(text(each["note"], "note") for each in (content, of_scale) if "note" in each),
        seeds=count(needed(of_scale, "seeds", f"scale {scale}") if seeds is None else seeds, "seeds"),
        datasets=datasets,
        base=of_scale["base"],
        variants=variants,
        claims=tuple(_claim(each, variants, measures) for each in items(whole.get("claims", []), "claims")),
        published=_published(whole.get("published", {}), _all_variants(content)),
        measures=measures,
    )
    for variant in variants:
        with error_prefix(f"variant {variant}"):
            made.recipe(variant, datasets[0])
    return made


def _scale(own: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """A scale of a study: its keys over those of the usual scale of that name, unless it has a base of its own.

    Its `over` is merged into its base.
    """
    usual, where = _usual(), f"scale {scale}"
    if scale not in {**usual, **own}:
        raise ValueError(f"it has no scale {scale!r}, but {', '.join({**usual, **own})}")
    own_one = given({} if own.get(scale) is None else own[scale], SCALE_KEYS, where)
    over = recipe_fields(own_one.pop("over", {}), f"over of {where}", with_data=True)
    base = recipe_fields(own_one.get("base", {}), f"base of {where}", with_data=True)
    if "datasets" in own_one and "data" in {**base, **over}:
        raise ValueError(f"{where} has datasets, and data in its base: leave one of them out")
    if "base" not in own_one and scale in usual:
        usual_one = {key: value for key, value in usual[scale].items() if key != "datasets" or "data" not in over}
        if over:
            usual_one["note"] += f" Here {', '.join(f'{key} {value}' for key, value in over.items())}."
        own_one = {**usual_one, **own_one}
    return {**own_one, "base": {**needed(own_one, "base", where), **over}}


def _datasets(of_scale: Mapping[str, Any], scale: str) -> tuple[str, ...]:
    """The data sets of a scale: its `datasets`, or the `data` of its base."""
    if "datasets" not in of_scale:
        return (text(of_scale["base"].get("data") or "digits", f"data of scale {scale}"),)
    named = [text(each, "each of datasets") for each in items(of_scale["datasets"], "datasets")]
    if not named:
        raise ValueError("datasets must name one or more, got none")
    if twice := [each for each in named if named.count(each) > 1]:
        raise ValueError(f"datasets names {twice[0]!r} twice")  # a training would count as two seeds
    return tuple(named)


def _variants(content: Any) -> dict[str, dict[str, Any]]:
    named = pairs(content, "variants")
    if not named:
        raise ValueError("variants must hold one or more, got none")
    return {name: recipe_fields({} if each is None else each, f"variant {name}") for name, each in named.items()}


def _claim(content: Any, variants: Mapping[str, Any], measures: str | None) -> Claim:
    content = given(content, ("says", "better", "worse", "of", "added"), "a claim")
    says, of = one_line(text(needed(content, "says", "a claim"), "says of a claim")), content.get("of", "error")
    if of not in ("error", "share"):
        raise ValueError(f"a claim is of: error or share, got {of!r}")
    if of == "share" and measures is None:
        raise ValueError(f"the claim {says!r} is of: share, and no share is measured: add measures: supervision")
    better, worse = (_side(needed(content, side, f"the claim {says!r}"), variants, of) for side in BOTH)
    if not isinstance(better, Side):
        raise ValueError(f"the better side of the claim {says!r} must be a variant, got {better}")
    return Claim(
        says, better, worse, of, one_line(text(content["added"], "added of a claim")) if "added" in content else ""
    )


def _side(value: Any, variants: Mapping[str, Any], of: str) -> Side | float:
    if of == "share" and type(value) in (int, float) and str(value) not in variants:
        if not 0 < value < inf:
            raise ValueError(f"a share is compared with a number above 0, got {value}")
        return float(value)
    variant, _, output = str(value).partition(":")
    side = Side(variant, str(int(output)) if output.isdecimal() else output)
    if side.variant not in variants:
        raise ValueError(f"a claim names {side.variant!r}, no variant{nearest(side.variant, list(variants))}")
    if of == "share" and side.output == "mean":
        raise ValueError(f"a claim of: share knows no mean, got {side}: name {side.variant} or one of its outputs")
    if ":" in str(value) and side.output not in ("final", "mean") and not side.output.isdecimal():
        raise ValueError(f"a claim's side is VARIANT, VARIANT:final, VARIANT:mean or VARIANT:NUMBER, got {value}")
    return side


def _published(content: Any, variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{variant: {error, in per cent; source; data}}."""
    published = {}
    for variant, value in pairs(content, "published").items():
        where = f"published of {variant}"
        if variant not in variants:
            raise ValueError(f"published names {variant!r}, no variant{nearest(variant, [*variants])}")
        each = given(value, ("error", "source", "data"), where)
        published[variant] = {
            "error": percentage(needed(each, "error", where), f"error in {where}"),
            "source": one_line(text(needed(each, "source", where), f"source in {where}")),
            "data": text(each.get("data", "cifar10"), f"data in {where}"),
        }
    return published


def _all_variants(content: Mapping[str, Any]) -> list[str]:
    """The variants of all scales: a published value is given once for all scales, and some may lack its variant."""
    scales = [each for each in content.get("scales", {}).values() if isinstance(each, dict)]
    each_has = [place.get("variants") for place in (content, *scales)]
    return list(dict.fromkeys(str(name) for variants in each_has if isinstance(variants, dict) for name in variants))


def _usual() -> dict[str, Any]:
    """The scales that every study has."""
    scales: dict[str, Any] = read_yaml(HOME / "scales.yaml", "study")
    return scales


def differing(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that differ from the default, without those that say where it runs."""
    usual = asdict(Recipe())
    return {key: value for key, value in asdict(recipe).items() if key not in WHERE and value != usual[key]}
