"""The house: imports run one way, only `cli` talks, modules stay small, README's code runs."""

import ast
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import auxnet
from auxnet.cli import main
from auxnet.studies.study_page import markdown

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "auxnet"
MODULES = sorted(p for p in SOURCE.rglob("*.py"))


def picture():
    """The names in CONTRIBUTING.md's picture, in reading order: on each of its lines, what stands before a wide gap."""
    lines = re.findall(r"^ {4,}(\S.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return [name for line in lines for name in re.split(r" {3,}", line)[0].split()]


ORDER = [name for name in picture() if not name.endswith("/")]
PACKAGES = [name[:-1] for name in picture() if name.endswith("/")]


def name_of(path):
    return _last(path.relative_to(SOURCE).with_suffix("").parts)


def _last(parts):
    return parts[1] if parts[0] in PACKAGES and len(parts) > 1 else parts[0]


def imports_of(path):
    """Modules of this package that a file imports, also inside functions; type-only imports do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module in ("auxnet", *(f"auxnet.{each}" for each in PACKAGES)):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("auxnet."):
            yield _last(node.module.split(".")[1:])
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("auxnet."))


def test_the_picture_names_every_module_once_and_nothing_else():
    modules = {name_of(path) for path in MODULES} - {"__init__", "__main__", *PACKAGES}
    assert sorted(ORDER) == sorted(modules)
    assert all((SOURCE / folder).is_dir() for folder in PACKAGES)


def test_imports_run_one_way():
    for path in MODULES:
        name = name_of(path)
        for imported in imports_of(path):
            if name in ORDER and imported in ORDER and imported != name:
                assert ORDER.index(name) < ORDER.index(imported), f"{name} imports {imported}, which is above it"


def test_methods_import_what_they_are_made_of_only():
    own = {"network", "modules", "update", "features", "gradients", "steps", "fused", "wavefront", "method", "sections"}
    assert set(imports_of(SOURCE / "methods.py")) == own


def test_every_public_name_is_found_and_typed_where_it_is_defined():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    typed = {each.name: node.module for node in imports if node.module.startswith("auxnet.") for each in node.names}
    assert [*typed.keys() ^ {*auxnet.__all__} - {"__version__"}] == []
    for name, module in typed.items():
        found = getattr(auxnet, name)
        assert found is getattr(import_module(module), name)
        assert found.__module__ == module


OPENS = """
from contextlib import contextmanager
from auxnet.errors import warn
@contextmanager
def opens():
    warn("opened")
    yield
"""


def test_every_warning_names_the_line_that_called_into_the_program(tmp_path):
    assert [path.name for path in MODULES if "warnings.warn(" in path.read_text()] == ["errors.py"]
    ours = {"__name__": "auxnet.made_here"}
    exec(OPENS, ours)
    torch.save(auxnet.resnet(depth=8, outputs=2, num_classes=3).state_dict(), tmp_path / "three.pt")
    with pytest.warns(UserWarning, match="of 3 classes") as deep:
        auxnet.load_pretrained(auxnet.resnet(depth=8, outputs=2), tmp_path / "three.pt")
    with pytest.warns(UserWarning, match="opened") as by_a_context, ours["opens"]():
        lines = Path(__file__).read_text().splitlines()
    for (told,), line in ((deep, "auxnet.load_pretrained("), (by_a_context, "with pytest.warns(")):
        assert told.filename == __file__
        assert lines[told.lineno - 1].strip().startswith(line)


def test_nothing_outside_the_command_line_prints_or_parses():
    for path in MODULES:
        if name_of(path) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "input")
            assert not called, f"{path} prints in line {node.lineno}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                assert not {"argparse", "tyro", "rich"} & {n.split(".")[0] for n in names}, f"{path} parses or prints"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_says_what_it_is_for_and_stays_small(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"
    assert len(text.splitlines()) <= 400, f"{path} holds more than one idea"


@pytest.mark.parametrize("path", sorted((SOURCE / "page").glob("*.[jc]s*")), ids=lambda p: p.name)
def test_the_pages_programs_and_styles_keep_to_the_width_of_the_house(path):
    wide = [n for n, line in enumerate(path.read_text().splitlines(), start=1) if len(line) > 120]
    assert wide == [], f"{path.name} has lines of more than 120 characters"


def documented_code():
    for path in ("README.md", "docs/guide.md"):
        yield from re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [*documented_code()])
def test_the_documented_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smallest = re.sub(r"\b(epochs|threads)=\d+", r"\1=1", code)
    exec(compile(smallest, "the documents", "exec"), {})


def names_in(value):
    """The keys of all mappings in a value that JSON can hold."""
    if isinstance(value, dict):
        yield from value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from names_in(each)


def documented(title):
    """The names in the first column of the tables under a title of docs/reference.md."""
    under = re.split(r"^#+ (.*)\n", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    rows = re.findall(r"^\| (`.*?) \|", dict(zip(under[1::2], under[2::2], strict=True))[title], re.MULTILINE)
    return [name for row in rows for name in re.findall("`(.*?)`", row)]


def test_the_version_is_the_same_wherever_it_is_written():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == cited["version"] == auxnet.__version__
    assert f"\n## {auxnet.__version__.removesuffix('.0')} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_names_all_that_is_public():
    assert sorted(documented("Python")) == sorted(auxnet.__all__)


def test_the_reference_names_every_key_of_the_files_of_a_run(tmp_path, capsys):
    small = {"depth": 8, "outputs": 2, "epochs": 1, "batch_size": 100, "train_images": 100, "threads": 1}
    run = auxnet.fit(auxnet.Recipe(**small, device="cpu"), tmp_path / "a", diagnose=True).folder
    for words in (["evaluate"], ["exits", "--curve", "2"], ["diagnose", "--images", "100", "--probe-images", "100"]):
        assert main([words[0], str(run), *words[1:]]) == 0
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    Image.new("L", (8, 8)).save(pictures[0])
    Path(pictures[1]).write_text("no picture")
    said = {}
    for form in ("csv", "jsonl"):
        capsys.readouterr()
        assert main(["predict", str(run), *pictures, "--top", "1", "--format", form]) == 1
        said[form] = capsys.readouterr().out.splitlines()
    lines = [*map(json.loads, said["jsonl"]), dict.fromkeys(said["csv"][0].split(","))]
    assert {*documented("Predictions")} == {*names_in(lines)}
    metrics = [*map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert {*documented("metrics.jsonl")} == {*names_in(metrics)}
    after_others = {"earlier_runs", "may_be_seen_by", "pretrained_sha256"}
    sometimes = {"left_out", "max_mean_cost", "output", "source", "backbone", "cuts", *after_others}
    for name in ("summary.json", "evaluation.json", "exits.json", "diagnosis.json", "config.json"):
        written = {*names_in(json.loads((run / name).read_text()))}
        assert written ^ {*documented(name)} <= sometimes - written, name


def test_the_studies_pages_say_what_their_ledgers_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ledger import diagnosis_in, findings_in, page_of  # python benchmarks/ledger.py results/studies makes all anew

    home = ROOT / "results" / "studies"
    assert (home / "README.md").read_text() == page_of(home, "small")
    for page in home.glob("*/study.md"):
        assert page.read_text() == markdown(findings_in(page.parent))
    for file in home.glob("*/diagnosis.json"):
        assert json.loads(file.read_text())["runs"] == diagnosis_in(file.parent)


def test_results_without_a_commit_of_their_own_are_named():
    said = (ROOT / "docs" / "performance.md").read_text()
    for path in [*(ROOT / "results").glob("*.json"), *(ROOT / "results" / "amd").glob("*.json")]:
        commit = json.loads(path.read_text()).get("commit", "")
        assert (commit and not commit.endswith("-dirty")) or f"`{path.name}`" in said, f"{path.name}: {commit!r}"
