"""Models on the Hugging Face hub, `hf:owner/name[@revision]`, fetched into the hub's own cache."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from auxnet.errors import first_line
from auxnet.files import expanduser, whole_path

FILES = ("config.json", "model.safetensors", "README.md")


def on_hub(name: object) -> bool:
    """Whether this names a model on the hub, and not a path."""
    return str(name).startswith("hf:")


def fetched(name: str, **options: Any) -> Path:
    """The folder of a model on the hub: as the hub has it now, or else as the hub's own cache has it.

    `options` go to `snapshot_download`. Raises ValueError for a name that cannot be, FileNotFoundError
    if neither has the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repo, _, revision = name.removeprefix("hf:").partition("@")
    options |= {"revision": revision} if revision else {}
    misnamed = ValueError(f"a model on the hub is given as hf:owner/name[@revision], got {name!r}")
    if repo.count("/") != 1 or "@" in revision:
        raise misnamed
    only_cached, reason = bool(options.pop("local_files_only", False)), ""
    for cached in dict.fromkeys((only_cached, True)):  # snapshot_download itself tries its cache after some errors only
        try:
            found = snapshot_download(
                repo, allow_patterns=list(FILES), etag_timeout=5, local_files_only=cached, **options
            )
            return Path(str(found))
        except HFValidationError:
            raise misnamed from None
        except Exception as error:  # whatever the network throws
            reason = reason or first_line(error)
    lack = "is" if only_cached else "could not be fetched, and is"
    raise FileNotFoundError(f"{name} {lack} not in the hub's cache: {reason}")


_fetched_once = cache(fetched)


def local_or_fetched(path: Path | str) -> Path:
    """Where weights are: a path, ~ expanded; the folder of a model on the hub, which is fetched once."""
    return _fetched_once(str(path)) if on_hub(path) else expanduser(path)


def absolute_name(path: str) -> str:
    """The name by which weights are found from any folder: the absolute path; a name on the hub is one already."""
    return path if on_hub(path) else str(whole_path(local_or_fetched(path)))


def pinned(path: str) -> str:
    """The name by which the weights that are on the hub now are found later too, with their commit; a path as it is."""
    return f"{path.partition('@')[0]}@{local_or_fetched(path).name}" if on_hub(path) else path


def may_be_pin_of(pinned_name: str | None, asked: str | None) -> bool:
    """Whether `pinned_name` (hf:owner/name@commit) may be what `asked` was pinned to.

    `asked` names the same model without a commit.
    """
    if not (pinned_name and asked and may_move(asked)):
        return False
    return pinned_name.partition("@")[0] == asked.partition("@")[0]


def may_move(name: str) -> bool:
    """Whether this names a model on the hub without a commit, so that the hub may have other weights later."""
    return on_hub(name) and not re.fullmatch("[0-9a-f]{40}", name.partition("@")[2])
