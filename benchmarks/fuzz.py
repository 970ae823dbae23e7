"""Every file that the program reads, damaged over and over: executions and findings, target by target.

A finding is anything but a file that is read, or refused with ValueError, RuntimeError or OSError in one line that
names it: another exception, a crash, more than 10 seconds. Each target has a process of its own, with a limit on
memory. Guided by coverage of the program's Python where atheris is installed (pip install atheris), else by chance.

    nice python benchmarks/fuzz.py [--seconds 60] [--targets parquet PNG ...] [--seed 0] [--gb 4] [--out FILE]

The content that led to each finding is kept in `--findings` (default: ./fuzz-findings).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stderr
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
GUIDED = find_spec("atheris") is not None
if GUIDED:
    import atheris

with redirect_stderr(io.StringIO()), atheris.instrument_imports(["auxnet", "yaml", "PIL"]) if GUIDED else nullcontext():
    import torch
    import yaml  # noqa: F401
    from PIL import Image

    from auxnet.provenance import provenance

    Image.init()
    from targets import NAMES, Target, damaged, targets


def attack(target: Target, seconds: float, seed: int, gb: float, log: Path) -> None:
    """Read damaged content until the time is over; a line of JSON for each new finding, and at the end the count."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gb * 2**30),) * 2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what libraries and atheris say of themselves
    os.dup2(silence, 2)
    before, start, executions, seen = _peak(), time.monotonic(), 0, set()

    def try_(content: bytes) -> None:
        nonlocal executions
        executions += 1
        complaint = target.complaint(content)
        with log.open("a") as file:
            if complaint and (kind := complaint[:60]) not in seen:
                seen.add(kind)
                kept = log.with_name(f"{log.stem}-{hashlib.sha256(content).hexdigest()[:12]}")
                kept.write_bytes(content)
                print(json.dumps({"finding": complaint, "content": kept.name}), file=file)
            if executions % 100 == 0 or time.monotonic() - start > seconds:
                print(json.dumps({"executions": executions, "grown_mb": _peak() - before}), file=file)
        if time.monotonic() - start > seconds:
            os._exit(0)

    if not GUIDED:
        numbers = random.Random(seed)
        while True:
            try_(target.damaged(numbers))

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        numbers = random.Random(seed)
        if numbers.random() < 0.3:
            return atheris.Mutate(content, most)
        try:
            return damaged(content, numbers, target.file.suffix)[:most]
        except Exception:  # no JSON or YAML any more
            return damaged(content, numbers, "")[:most]

    corpus = log.with_suffix("")
    corpus.mkdir()
    (corpus / "valid").write_bytes(target.content)
    options = [f"-seed={seed + 1}", f"-max_len={2 * len(target.content) + 4096}", "-rss_limit_mb=0", "-timeout=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], try_, custom_mutator=mutate, internal_libfuzzer=True)
    atheris.Fuzz()


def _peak() -> int:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def attacked(target: Target, options: argparse.Namespace, home: Path) -> dict[str, object]:
    """What came of one target."""
    log = home / f"{target.name.replace(' ', '-').replace('.', '-').replace(',', '')}.jsonl"
    log.touch()
    words = (target, options.seconds, options.seed, options.gb, log)
    process = multiprocessing.get_context("fork").Process(target=attack, args=words)
    start = time.monotonic()
    process.start()
    process.join(options.seconds + 60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    counts = [line for line in lines if "executions" in line]
    findings = [line for line in lines if "finding" in line]
    if process.exitcode != 0:
        if process.is_alive():
            process.kill()
            process.join()
        kept = log.with_name(f"{log.stem}-died")
        kept.write_bytes(target.file.read_bytes())  # as it was written for the reader that died of it
        findings.append({"finding": f"the process ended with {process.exitcode}", "content": kept.name})
    for each in findings:
        options.findings.mkdir(exist_ok=True)
        (options.findings / str(each["content"])).write_bytes((home / str(each["content"])).read_bytes())
    last = counts[-1] if counts else {"executions": 0, "grown_mb": 0}
    return {**last, "seconds": round(time.monotonic() - start, 1), "findings": findings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--targets", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gb", type=float, default=4, help="memory that a target may come to hold")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = f"atheris {metadata.version('atheris')}" if GUIDED else "chance"
    rows = {}
    print(f"{'target':28} {'executions':>10} {'MB grown':>9}  findings ({engine})")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["AUXNET_CACHE"] = str(home / "cache")
        for target in targets(home / "files"):
            if target.name in options.targets:
                rows[target.name] = row = attacked(target, options, home)
                print(
                    f"{target.name:28} {row['executions']:10,} {row['grown_mb']:9,}  {len(row['findings'])}", flush=True
                )
                for each in row["findings"]:
                    print(f"{'':8}{each['finding'][:200]} [{each['content']}]", flush=True)
    if options.out:
        libraries = ("pillow", "pyarrow", "onnxruntime", "safetensors", "torch", "PyYAML", "numpy")
        made = provenance(torch.device("cpu"))
        made["versions"] |= {name: metadata.version(name) for name in libraries}
        settings = {"engine": engine, "seconds": options.seconds, "seed": options.seed, "limit_gb": options.gb}
        options.out.write_text(json.dumps({"targets": rows, **settings, **made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
