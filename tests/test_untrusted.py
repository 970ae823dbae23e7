"""Laws of files from anywhere: read, or refused in one line that names them; nothing runs, hangs or swells."""

import ast
import io
import json
import multiprocessing
import os
import pickle
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bombs
from auxnet import checkpoint
from auxnet.reading import cache
from auxnet.reading.arrays import Arrays
from auxnet.recipe import read_recipe
from targets import NAMES, Target, damaged, reseal, targets
from writers import tiny

ROOT = Path(__file__).parents[1]
FEW = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
SLOW = ("metrics.jsonl", "summary.json", "config.json", "diagnosis.jsonl")  # each is read for a whole page
SLOW += ("summary.json of a study", "supervision.json", "study.txt of a sweep", "journal of a sweep")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("untrusted")


@pytest.fixture(scope="module")
def files(home: Path, onnx_tables: None) -> dict[str, Target]:
    torch.set_num_threads(1)
    pytest.importorskip("optuna")
    return {target.name: target for target in targets(home)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.25, pytest.param(1, marks=pytest.mark.long)])
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(
    files: dict[str, Target], name: str, share: float
) -> None:
    target = files[name]
    target.read()

    @settings(max_examples=round(share * (15 if name in SLOW else 60)), **FEW)
    @given(st.randoms(use_true_random=False))
    def law(random: Random) -> None:
        assert target.complaint(target.damaged(random)) is None

    law()


def test_every_file_that_is_read_is_tried(files: dict[str, Target]) -> None:
    assert tuple(files) == NAMES


def test_what_is_tried_is_counted_as_the_docs_say() -> None:
    told = " ".join((ROOT / "docs" / "reliability.md").read_text().split())
    assert f"damages {len(NAMES)} kinds of files and sets off {bombs.COUNT} bombs" in told


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUXNET_CACHE", str(tmp_path / "cache"))
    arrays = Arrays(*tiny(4, 2, size=8), ("a", "b"))
    source = tmp_path / "source"
    source.touch()
    cache.cached([source], "key", lambda: arrays)
    (file,) = (tmp_path / "cache").rglob("*.npz")
    kept = file.read_bytes()

    @settings(max_examples=60, **FEW)
    @given(st.randoms(use_true_random=False))
    def law(random: Random) -> None:
        content = damaged(kept, random, file.suffix)
        if random.random() < 0.2:
            content = kept.replace(b"(4, 8, 8, 3)", b"(999999999,)")
        file.write_bytes(content)
        found = cache.cached([source], "key", lambda: arrays)
        assert np.array_equal(found.images, arrays.images)
        assert np.array_equal(found.labels, arrays.labels)
        assert found.classes == arrays.classes

    law()


# ---- small files that would become large, slow or code ---------------------------------------------------------------


@pytest.mark.long
def test_no_bomb_goes_off(home: Path, files: dict[str, Target]) -> None:
    bombs.write(home / "bombs", home / "made" / "run")
    said = home / "bombs.jsonl"

    def read() -> None:
        with said.open("w") as file, redirect_stdout(file):
            bombs.main(home / "bombs")

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert process.exitcode == 0, lines[-1:]
    assert len(lines) == 2 * bombs.COUNT
    for bomb, found in zip(lines[::2], lines[1::2], strict=True):
        kind, words = found["outcome"]
        assert kind in ("ValueError", "RuntimeError", "DamagedError"), f"{bomb['path']}: {kind}, {words}"
        assert bomb["path"] in words
        assert "\n" not in words
        assert found["seconds"] < 20, bomb["path"]
        assert found["grown_mb"] < 700, bomb["path"]


class Payload:
    """Unpickled freely, this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_no_file_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    recipe, state = tmp_path / "recipe.yaml", tmp_path / "00001-0000000.ckpt"
    for tag in (
        "python/object/apply:os.mkdir",
        "python/object/new:os.mkdir",
        "python/name:os.mkdir",
        "python/module:os",
    ):
        recipe.write_text(f"data: !!{tag} [{mark}]")
        with pytest.raises(ValueError, match="could not determine a constructor"):
            read_recipe(recipe)
    checkpoint.save_state(state, {"epoch": 1})
    payload = io.BytesIO()
    torch.save({"epoch": Payload(mark)}, payload)
    for content in (payload.getvalue(), pickle.dumps(Payload(mark), 2)):
        state.write_bytes(reseal(state.read_bytes(), content))
        with pytest.raises(RuntimeError, match="is not a checkpoint of this program"):
            checkpoint.load_state(state)
    assert not mark.exists()


def test_nothing_is_unpickled_freely() -> None:
    """Whatever can run the code of others is not called, or called with what forbids it."""
    forbidding = {("torch", "load"): ("weights_only", True), ("np", "load"): ("allow_pickle", False)}
    refused = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("yaml", "load"), ("yaml", "load_all")}
    refused |= {("yaml", "full_load"), ("yaml", "unsafe_load"), ("marshal", "loads"), ("shelve", "open")}
    refused |= {("joblib", "load"), ("torch", "jit", "load"), ("eval",), ("exec",)}
    calls = 0
    for path in (ROOT / "src" / "auxnet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, where = tuple(ast.unparse(node.func).split(".")), f"{path}:{node.lineno}"
                assert called not in refused, where
                assert called[-1] != "extractall", where
                if called in forbidding:
                    calls += 1
                    key, value = forbidding[called]
                    given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                    assert given.get(key) is value, where
    assert calls >= 2  # the law has something to look at
