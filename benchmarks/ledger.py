"""The ledger of studies: every study's tables and pictures out of its trainings, and a page that says what was found.

    python benchmarks/ledger.py OUT results/studies [--scale small] [--data-dir DIR]

OUT is what `auxnet study --out` was given. Of each study as many seeds are shown as all its variants have; a study
without any is said to be missing. Pictures are taken where Chromium is; the HTML pages, 5 MB each, are not kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from itertools import count
from pathlib import Path

from auxnet.cli import main as auxnet
from auxnet.studies.ledger import findings_of
from auxnet.studies.running import left_of
from auxnet.studies.spec import Study, names, read_study
from auxnet.studies.study_page import headline
from auxnet.studies.verdicts import in_words

FIRST = ("methods", "compact", "intermediate", "vanishing")  # the paper's claims
PICTURES = {"study.html": (1200, 2300), "diagnosis.html": (1200, 1750)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--data-dir")
    asked = parser.parse_args()
    asked.results.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# The studies at their {asked.scale} scale",
        "What is said is said of this scale alone, which each `study.md` describes; the paper's is 400 epochs. Made by "
        "`auxnet study NAME` and `benchmarks/ledger.py`. Each folder: `study.md`, `ledger.jsonl` (a row per training: "
        "recipe, seed, commit, versions, device, time, last and best-on-validation errors), `outputs.csv`, pictures. "
        "No seed that was trained for all variants is left out.",
    ]
    for name in sorted(names(), key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else name)):
        study = _whole(name, asked.scale, asked.out)
        if study is None:
            parts.append(f"## {name}\n\nNot run.")
            continue
        folder = asked.results / f"{name}-{asked.scale}"
        where = ["--data-dir", asked.data_dir] if asked.data_dir else []
        words = [name, "--scale", asked.scale, "--seeds", str(study.seeds), "--out", str(asked.out), "--show", *where]
        if auxnet(["study", *words, "--report", str(folder)]):
            raise SystemExit(f"study {name} went wrong")
        _take_pictures(folder)
        parts.append(_found(study, asked.out, folder))
    (asked.results / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _whole(name: str, scale: str, out: Path) -> Study | None:
    """The study with as many seeds as are trained for all its variants."""
    largest = None
    for seeds in count(1):
        study = read_study(name, scale, seeds)
        if left_of(out, list(study.trials())):
            return largest
        largest = study
    return None


def _take_pictures(folder: Path) -> None:
    for page, (width, height) in PICTURES.items():
        path = folder / page
        if path.is_file() and (chromium := shutil.which("chromium")):
            quiet = (
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
            )
            size = (f"--window-size={width},{height}", "--virtual-time-budget=6000")
            into = f"--screenshot={path.with_suffix('.png').resolve()}"
            subprocess.run([chromium, *quiet, *size, into, path.resolve().as_uri()], check=True, capture_output=True)
        path.unlink(missing_ok=True)


def _found(study: Study, out: Path, folder: Path) -> str:
    found = findings_of(study, out)
    rows = [f"| {verdict.claim.says} | {in_words(verdict)} |" for verdict in found.verdicts]
    parts = [
        f"## [{study.name}]({folder.name}/study.md): {study.question}",
        headline(found),
        "\n".join(["| claim | found |", "|---|---|", *rows]),
    ]
    if study.measures:
        parts.append(f"![Share of supervision by layer, first seed]({folder.name}/diagnosis.png)")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
