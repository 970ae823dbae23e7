"""The ledger of studies: every study's tables and pictures out of its trainings, and a page that says what was found.

    python benchmarks/ledger.py results/studies --out OUT [--scale small] [--data-dir DIR]
    python benchmarks/ledger.py results/studies [--scale small]      # all but the ledgers, from what lies there

OUT is what `auxnet study --out` was given. Of each study as many seeds are shown as all its variants have; a study
without any is said to be missing. Pictures are taken where Chromium is; the HTML pages, 5 MB each, are not kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

from auxnet import diagnosing
from auxnet.cli import main as auxnet
from auxnet.documents import read_json
from auxnet.studies.ledger import Findings, found_in, write_rows
from auxnet.studies.running import left_of
from auxnet.studies.spec import Study, names, read_study
from auxnet.studies.study_page import headline, markdown, markdown_row, page
from auxnet.studies.verdicts import Verdict, in_words, judge_all

FIRST = ("methods", "compact", "intermediate", "vanishing")  # the paper's claims
LOOKED_AT = 3  # seeds of every study: those beyond were trained after a look at these
PICTURES = {"study.html": (1200, 2300), "diagnosis.html": (1200, 1750)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--data-dir")
    asked = parser.parse_args()
    for name in names():
        if asked.out:
            _tables(name, asked)
        elif (folder := asked.results / f"{name}-{asked.scale}").is_dir():
            _pages(findings_in(folder), folder)
    (asked.results / "README.md").write_text(page_of(asked.results, asked.scale), encoding="utf-8")


def page_of(results: Path, scale: str) -> str:
    """What all studies found, as Markdown, out of their ledgers: `results`/NAME-`scale`/ledger.jsonl."""
    parts = [
        f"# The studies at their {scale} scale",
        "What is said here is said of this scale alone, which each `study.md` describes; the paper's is 400 epochs. "
        "Each folder: `study.md`, `ledger.jsonl` (a row per training: recipe, seed, commit, versions, device, time, "
        "last and best-on-validation errors), `outputs.csv`, pictures. No seed that was trained for all variants is "
        f"left out. Made by `auxnet study NAME --scale {scale} --seeds N --data-dir DIR`, N being the number of seeds "
        "that each claim gives, and `benchmarks/ledger.py`.",
        "Intervals are of each claim alone; a verdict stands among all the claims of its study, by Holm's method.",
        "**Claims were added after a look** at some of these trainings, as is said with each of them. They count among "
        "the claims of their study.",
        f"**Seeds were added after a look.** The first {LOOKED_AT} of each study had been looked at before the others "
        "were trained. To look and go on makes an interval less certain than it says, so wherever the first "
        f"{LOOKED_AT} alone give another verdict, that one stands beside it.",
        "**Vanishing was trained twice**: anew, on an Intel Xeon, when claims on the final output were added. The "
        "first time ([an AMD EPYC, earlier commits](../amd/vanishing-small/ledger.jsonl), whose methods compute the "
        "same) its claims on errors came out as +0.20 (-0.21 .. +0.61), +1.53 (+0.57 .. +2.49) and +1.33 (+0.39 .. "
        "+2.27) points. At the final output the mean error of the joint nets differs by 1.0 between the two, that of "
        "the others by 0.3 at most: an interval over five seeds can be too narrow.",
    ]
    for name in sorted(names(), key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else name)):
        ledger = results / f"{name}-{scale}" / "ledger.jsonl"
        parts.append(
            _found(findings_in(ledger.parent), ledger.parent) if ledger.is_file() else f"## {name}\n\nNot run."
        )
    return "\n\n".join(parts) + "\n"


def _tables(name: str, asked: argparse.Namespace) -> None:
    """Write a study's folder out of its trainings, if there are any."""
    study = _whole(name, asked.scale, asked.out)
    if study is None:
        return
    folder = asked.results / f"{name}-{asked.scale}"
    where = ["--data-dir", asked.data_dir] if asked.data_dir else []
    words = [name, "--scale", asked.scale, "--seeds", str(study.seeds), "--out", str(asked.out), "--show", *where]
    if auxnet(["study", *words, "--report", str(folder)]):
        raise SystemExit(f"study {name} went wrong")
    _take_pictures(folder)


def findings_in(folder: Path) -> Findings:
    """What the ledger in a study's folder, NAME-SCALE, says."""
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    name, scale = folder.name.rsplit("-", 1)
    return found_in(read_study(name, scale, 1 + max(row["seed"] for row in rows)), rows)


def diagnosis_in(folder: Path) -> list[dict[str, Any]]:
    """The runs of diagnosis.json in a study's folder, and what is said of them now; [] where there is none."""
    path = folder / "diagnosis.json"
    runs = read_json(path)["runs"] if path.is_file() else []
    return [{**run, "said": list(diagnosing.sentences(run))} for run in runs]


def _pages(found: Findings, folder: Path) -> None:
    """Write anew what can be made from the ledger and the diagnosis: tables, sentences, pictures."""
    (folder / "study.md").write_text(markdown(found), encoding="utf-8")
    (folder / "study.html").write_text(page(found), encoding="utf-8")
    write_rows(found.rows, folder)
    if runs := diagnosis_in(folder):
        diagnosing.write(runs, folder)
    _take_pictures(folder)


def _whole(name: str, scale: str, out: Path) -> Study | None:
    """The study with as many seeds as are trained for all its variants."""
    largest = None
    for seeds in count(1):
        study = read_study(name, scale, seeds)
        if left_of(out, list(study.trainings())):
            return largest
        largest = study
    return None


def _take_pictures(folder: Path) -> None:
    for name, (width, height) in PICTURES.items():
        path = folder / name
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


def _found(found: Findings, folder: Path) -> str:
    study = found.study
    first = judge_all(study.claims, study.datasets, [row for row in found.rows if row["seed"] < LOOKED_AT])
    both = zip(found.verdicts, first, strict=True)
    lines = [markdown_row((v.claim.says, in_words(v) + _before(v, before))) for v, before in both]
    parts = [
        f"## [{study.name}]({folder.name}/study.md): {study.question}",
        headline(found),
        "\n".join(["| claim | found |", "|---|---|", *lines]),
    ]
    if study.measures:
        parts.append(f"![Share of supervision by layer, first seed]({folder.name}/diagnosis.png)")
    return "\n\n".join(parts)


def _before(verdict: Verdict, first: Verdict) -> str:
    """What the seeds that the scale asks for said by themselves, where that was something else."""
    if first.word == verdict.word:
        return ""
    low, high = 100 * first.low, 100 * first.high
    said = f"{first.word}, {100 * first.mean:+.2f} ({low:+.2f} .. {high:+.2f})"
    return f"; the first {len(first.differences)} seeds alone: {said}"


if __name__ == "__main__":
    main()
