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
supervision in the shallowest layer (of the output where it is largest) is greater on the better side.

A side of a claim is a variant's final output, or with `:2` its second, with `:mean` the mean over its outputs. A scale
may bring variants, claims and published values of its own, and `datasets`, each of which is studied in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from json import dumps
from pathlib import Path
from typing import Any

from auxnet.documents import read_yaml
from auxnet.recipe import WHERE, Recipe, folder_name, nearest, recipe_from

SCALES = ("smoke", "small", "full")
OF_STUDIES = ("question", "note", "measures", "variants", "claims", "published", "scales")
OF_SCALES = ("seeds", "base", "over", "datasets", "variants", "claims", "published", "note")


@dataclass(frozen=True)
class Side:
    """One side of a claim: an output of a variant, by its number, "final", or "mean" over all."""

    variant: str
    output: str = "final"

    def __str__(self) -> str:
        return self.variant if self.output == "final" else f"{self.variant}:{self.output}"


@dataclass(frozen=True)
class Claim:
    """That one side errs less than the other; or, `of` "share", that more supervision reaches its shallowest layer."""

    says: str
    better: Side
    worse: Side
    of: str = "error"


@dataclass(frozen=True)
class Trial:
    """One training of a study."""

    variant: str
    seed: int
    recipe: Recipe

    @cached_property
    def name(self) -> str:
        """Its folder: the same recipe has the same name in every study, and is trained once."""
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
    """"supervision", where the trainings are to be diagnosed"""

    def recipe(self, variant: str, data: str, seed: int = 0, where: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of a variant: what it says, over the base. A null leaves a key of the base out."""
        merged = {**self.base, **self.variants[variant], "data": data, "seed": seed, **(where or {})}
        return recipe_from({key: value for key, value in merged.items() if value is not None})

    def trials(self, where: Mapping[str, Any] | None = None) -> Iterator[Trial]:
        """All trainings, one seed after the other, so that what is done early can be compared early."""
        for data in self.datasets:
            for seed in range(self.seeds):
                for variant in self.variants:
                    yield Trial(variant, seed, self.recipe(variant, data, seed, where))


def names() -> list[str]:
    """The studies that come with the program."""
    files = {path.name for path in _home().iterdir() if path.name.endswith(".yaml")} - {"scales.yaml"}
    return sorted(file.removesuffix(".yaml") for file in files)


def read_study(name: str, scale: str, seeds: int | None = None) -> Study:
    """A study that comes with the program, by its name, or one of the user's own, by its file.

    Raises FileNotFoundError if there is none, ValueError for a file that describes none.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in names():
        raise ValueError(
            f"there is no study {name!r}{nearest(name, names())}; there are {', '.join(names())}, or FILE.yaml"
        )
    path = Path(name) if own else Path(str(_home() / f"{name}.yaml"))
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no study file {name}") from None
    except ValueError as error:
        raise ValueError(f"{name} is not a YAML study: {error}") from None
    try:
        return _study(path.stem, content, scale, seeds)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"study {name}: {said}") from None


def _study(name: str, content: Any, scale: str, seeds: int | None) -> Study:
    _check_keys(content, OF_STUDIES, "a study")
    there = _scale(_pairs(content.get("scales") or {}, "scales"), scale)
    variants = {str(key): dict(value or {}) for key, value in (there.get("variants") or content["variants"]).items()}
    claims = tuple(_claim(each, variants) for each in there.get("claims", content.get("claims", ())))
    published = there.get("published", content.get("published", {}))
    seeds = there["seeds"] if seeds is None else seeds
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds!r}")
    base = {**there["base"], **there.get("over", {})}
    datasets = tuple(there.get("datasets") or [base.get("data", "digits")])
    note = " ".join(filter(None, (content.get("note"), there.get("note"))))
    measures = content.get("measures")
    if measures not in (None, "supervision"):
        raise ValueError(f"measures must be supervision, or left out, got {measures!r}")
    made = Study(name, scale, content["question"], note, seeds, datasets, base, variants, claims, published, measures)
    for variant in variants:
        try:
            made.recipe(variant, datasets[0])
        except ValueError as error:
            raise ValueError(f"variant {variant}: {error}") from None
    return made


def _scale(own: Mapping[str, Any], scale: str) -> Any:
    """A scale as the study has it, over the usual one of that name unless it has a base of its own."""
    usual = read_yaml(Path(str(_home() / "scales.yaml")))
    if scale not in {**usual, **own}:
        raise ValueError(f"it has no scale {scale!r}, but {', '.join({**usual, **own})}")
    there = own.get(scale) or {}
    _check_keys(there, OF_SCALES, f"scale {scale}")
    if "base" in there or scale not in usual:
        return there
    over, merged = _pairs(there.get("over", {}), f"over of scale {scale}"), {**usual[scale], **there}
    if over and "note" not in there:
        merged["note"] += f" Here {', '.join(f'{key} {value}' for key, value in over.items())}."
    if "data" in over and "datasets" not in there:
        merged.pop("datasets", None)
    return merged


def _claim(content: Mapping[str, Any], variants: Mapping[str, Any]) -> Claim:
    _check_keys(content, ("says", "better", "worse", "of"), "a claim")
    if content.get("of", "error") not in ("error", "share"):
        raise ValueError(f"a claim is of: error or share, got {content['of']!r}")
    better, worse = (Side(*str(content[side]).split(":", 1)) for side in ("better", "worse"))
    for side in (better, worse):
        if side.variant not in variants:
            raise ValueError(f"a claim names {side.variant!r}{nearest(side.variant, list(variants))}, no variant")
        if side.output not in ("final", "mean") and not side.output.isdecimal():
            raise ValueError(
                f"a claim's side is VARIANT, VARIANT:mean or VARIANT:NUMBER, got {side.variant}:{side.output}"
            )
    return Claim(content["says"], better, worse, content.get("of", "error"))


def _check_keys(content: Any, known: tuple[str, ...], where: str) -> None:
    for key in _pairs(content, where):
        if key in known:
            continue
        if known is OF_STUDIES and key in OF_SCALES:
            raise ValueError(f"{key} belongs to a scale, as in scales: {{small: {{{key}: ...}}}}")
        hint = nearest(str(key), list(known)) or f": it may have {', '.join(known)}"
        raise ValueError(f"{where} has no key {key!r}{hint}")


def _pairs(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold 'key: value' pairs, got {content!r}")
    return content


def _home() -> Any:
    return files("auxnet.studies")


def differing(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says other than the default one, and where it runs left out."""
    usual = asdict(Recipe())
    return {key: value for key, value in asdict(recipe).items() if key not in WHERE and value != usual[key]}
