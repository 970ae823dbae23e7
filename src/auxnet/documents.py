"""The small text files that a program is given, YAML and JSON, as plain values: bounded in size and in depth.

Such files come from anywhere. A few bytes of YAML can stand for more values than fit in memory (aliases), and a
few thousand brackets exhaust the stack; both are refused before anything is built of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from auxnet.errors import one_line
from auxnet.words import command

MOST_JSON = 2**24  # bytes; the largest that a run writes, evaluation.json of 50 outputs and 100 classes, has 4 MB
MOST_YAML = 2**16  # bytes; a recipe has 1 kB
DEEPEST = 32


@contextmanager
def parsing(complaint: str) -> Iterator[None]:
    """Turn the errors of reading a file's content, inside the block, into one RuntimeError.

    It says the complaint, which names the file, and in brackets why.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RuntimeError(f"{complaint} ({one_line(error)})") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises FileNotFoundError, or RuntimeError if it is damaged, too large or too deep."""
    try:
        return json_value(_text(path, MOST_JSON))
    except FileNotFoundError:
        mend = made_again(path) or ": is it a finished run?"
        raise FileNotFoundError(f"{path.parent} holds no {path.name}{mend}") from None
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged: {error}{made_again(path)}") from None


def made_again(path: Path) -> str:
    """The end of an error: the command that makes a file of a finished run again; "" if there is none.

    (Training makes its files again only if there is a checkpoint.)
    """
    if path.name in ("exits.json", "exits-best.json"):
        which = ("--which", "best") if path.name == "exits-best.json" else ()
        return f"; `{command('exits', path.parent, *which)}` makes it again"
    of_a_run = path.name in ("config.json", "summary.json", "model.safetensors")
    if not (of_a_run and any((path.parent / "checkpoints").glob("*.ckpt"))):
        return ""
    return f"; `{command('train', '--out', path.parent, '--resume')}` makes it again"


def json_value(text: str) -> Any:
    """What JSON text says. Raises ValueError for text that is no JSON, or nests deeper than 32."""
    try:
        value = json.loads(text)
        deep = _depth(value) > DEEPEST
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"its values are nested deeper than {DEEPEST}")
    return value


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds: plain values, no aliases. `what` it is ("recipe", "study") is for the errors.

    Raises FileNotFoundError, or ValueError for anything else.
    """
    try:
        return yaml_value(_text(path, MOST_YAML))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name a {what} file in it") from None
    except OSError:
        raise
    except Exception as error:  # PyYAML raises IndexError, KeyError and others for a tag that its value does not fit
        mend = ": give spaces in its place" if "found character '\\t'" in str(error) else ""
        raise ValueError(f"{path} is not a YAML {what}: {one_line(error)}{mend}") from None


def yaml_value(text: str) -> Any:
    """The value that a text is in YAML.

    Raises ValueError for a key that is given twice, a number of another base, an alias, and values nested too deep.
    """
    return _once_each()(text).get_single_data()


@cache
def _once_each() -> Any:
    """PyYAML's safe loader, which refuses what that takes silently: a key twice, 010 as 8, 1:30 as 90, any nesting."""
    import yaml

    class OnceEach(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"an alias (*{event.anchor}): write the value out")
            self.depth += isinstance(event, yaml.CollectionStartEvent)
            if self.depth > DEEPEST:
                raise ValueError(f"its values are nested deeper than {DEEPEST}")
            node = super().compose_node(parent, index)
            self.depth -= isinstance(event, yaml.CollectionStartEvent)
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise ValueError(f"{twice[0]} is given twice")
            return super().construct_mapping(node, deep)

        def number(self, node: Any) -> Any:
            if re.match(r"[-+]?0[0-7_]+$|.*:", node.value):
                why = "is a number of another base in YAML"
                raise ValueError(f"{node.value} {why}: write it plainly, as 10 or 0.5, or in quotes if it is text")
            is_int = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)

    for kind in ("int", "float"):
        OnceEach.add_constructor(f"tag:yaml.org,2002:{kind}", OnceEach.number)
    return OnceEach


def _text(path: Path, most: int) -> str:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data.decode()


def _depth(value: Any) -> int:
    """How deep lists and dictionaries nest in a value: 0 for a number or string."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
