"""What a folder for a study's tables holds already, and what of it is never replaced."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from auxnet.studies.ledger import lost, stranger
from auxnet.studies.spec import Study
from auxnet.words import plural

MARK = "<!-- made by auxnet study -->"
FILES = ("study.md", "study.html", "ledger.jsonl", "outputs.csv", "diagnosis.json", "diagnosis.html")


def check_folder(folder: Path, study: Study, kept: Collection[str]) -> None:
    """Refuse a folder in which something that is not this study's, or a training, would be lost.

    `kept` are the names of the trainings that the new ledger has, or will have. Raises FileExistsError. What was
    written of the study with other claims, fewer seeds or fewer variants may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the study's tables")
    page, ledger = folder / "study.md", folder / "ledger.jsonl"
    ours = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    for name in FILES:
        if (folder / name).exists() and not ours:
            raise FileExistsError(f"{folder / name} is not a study's, and is left alone: give another --report")
    if ours and (other := _of_another(page, study)):
        raise FileExistsError(f"{folder} holds another study: {other}; give another --report, or remove it")
    if seeds := lost(ledger, kept) if ledger.is_file() else []:
        which = sorted({*seeds})
        more = f"--seeds {1 + which[-1]}, " if which[-1] >= study.seeds else ""
        raise FileExistsError(
            f"{folder} holds {plural(len(seeds), 'training')} that would be lost, of seed{'s' * (len(which) > 1)} "
            f"{', '.join(map(str, which))}: give {more}the --out that holds the runs, or another --report"
        )


def _of_another(page: Path, study: Study) -> str:
    """What shows that a study.md, and the ledger beside it, are another study's; nothing if they are this one's."""
    lines = page.read_text(encoding="utf-8", errors="replace").splitlines()
    heading = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "without a heading")
    if not heading.endswith(f": {study.question}"):
        return f"it is {heading!r}"
    ledger = page.with_name("ledger.jsonl")
    try:
        variant = stranger(study, ledger) if ledger.is_file() else None
    except RuntimeError:
        return f"its {ledger.name} cannot be read"
    return f"its variant {variant} is not this one's" if variant else ""
