"""Every file that the program reads, with a valid one of each, its reader, and what damage may do to it.

`tests/test_untrusted.py` tries a few damages of each in every run of the tests, `benchmarks/fuzz.py` as many as wished.
"""

import gzip
import json
import shutil
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from scipy.io import savemat

from auxnet import checkpoint, diagnosing, evaluation, exits, loading, report, resuming, rundir
from auxnet.backbones.weights import load_pretrained
from auxnet.exporting import export
from auxnet.files import write_json
from auxnet.latency import Latency
from auxnet.opening import opened
from auxnet.prediction import predict
from auxnet.reading import cifar, npz, parquet, pictures, svhn
from auxnet.recipe import Recipe, read_recipe
from auxnet.runtimes import open_onnx
from auxnet.studies import supervising
from auxnet.studies.checking import check_folder
from auxnet.studies.ledger import findings_of
from auxnet.studies.spec import read_study
from auxnet.studies.study_page import write_findings
from auxnet.sweeps.space import space_from
from shipped import picture, write_policy, write_run
from writers import cifar_files, tiny, write_cifar, write_parquet


@dataclass
class Target:
    """A file and what reads it; `whole` makes of damaged content what is written: a seal that holds, an archive."""

    name: str
    file: Path
    read: Callable[[], object]
    whole: Callable[[bytes], bytes] = bytes
    content: bytes = b""
    """the valid content, before `whole`"""

    def __post_init__(self) -> None:
        self.content = self.content or self.file.read_bytes()

    def damaged(self, random: Random) -> bytes:
        """Its content with some damage."""
        return damaged(self.content, random, self.file.suffix)

    def complaint(self, content: bytes, seconds: float = 10) -> str | None:
        """What is wrong with how this content is read; None where it is read, or refused as errors should."""
        self.file.write_bytes(self.whole(content))
        try:
            with warnings.catch_warnings(), _within(seconds):
                warnings.simplefilter("ignore")
                self.read()
        except (ValueError, OSError, RuntimeError) as error:
            words = str(error)
            if "\n" in words:
                return f"{type(error).__name__} of several lines: {words[:300]!r}"
            if str(self.file) not in words and str(self.file.parent) not in words:
                return f"{type(error).__name__} that does not name the file: {words[:300]!r}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]!r}"
        except _TooLong:
            return f"took more than {seconds} seconds"
        finally:
            self.file.write_bytes(self.whole(self.content))
        return None


class _TooLong(BaseException):
    """Not an Exception, so that no reader takes it for damage."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- damage ----------------------------------------------------------------------------------------------------

TOKENS = [b"\0", b"\xff", b"\n", b'"', b"[", b"]", b"{", b"}", b":", b",", b"-", b"*a", b"&a ", b"!!int ", b"<<: "]
TOKENS += [b"null", b"1e999", b"NaN", b"-1", b"9" * 30, b"9" * 5000, b"[" * 2000, b"\xed\xa0\x80", b"\\ud800", b"'"]
TOKENS += [struct.pack(f"<{kind}", value) for kind, value in (("I", 2**31), ("I", 2**32 - 1), ("Q", 2**63), ("q", -1))]
ODD = [None, True, False, -1, 0, 1, 2, 1e308, float("nan"), float("inf"), 2**70, 10**400, "", "x", "x" * 500]
ODD += ["\ud800", "a\nb", [], {}, [[]], [None], {"a": None}, [1, 2, 3], -0.5, 6 * 10**9 + 2]


def damaged(content: bytes, random: Random, suffix: str) -> bytes:
    """The content truncated, flipped, spliced, with something inserted; where JSON or YAML is, or with odd values."""
    if suffix in (".json", ".jsonl", ".log", ".yaml") and random.random() < 0.6:
        return _odd(content, random, suffix)
    for _ in range(random.randint(1, 3)):
        start, end = sorted(_place(len(content), random) for _ in range(2))
        token = random.choice(TOKENS)
        choice = random.randrange(6)
        if choice == 0:
            content = content[:start]
        elif choice == 1:
            some = bytearray(content)
            for _ in range(random.randint(1, 8)):
                if some:
                    some[_place(len(some) - 1, random)] = random.randrange(256)
            content = bytes(some)
        elif choice == 2:
            content = content[:start] + token + content[start:]
        elif choice == 3:
            content = content[:start] + token + content[start + len(token) :]
        elif choice == 4:
            content = content[:start] + content[end:]
        else:
            content = content[:end] + content[start : start + 4096] + content[end:]
    return content


def _place(length: int, random: Random) -> int:
    """Somewhere, most often near the beginning or the end, where files say what they are."""
    near = min(length, 500)
    return random.choice([random.randint(0, length), random.randint(0, near), length - random.randint(0, near)])


def _odd(content: bytes, random: Random, suffix: str) -> bytes:
    """Other values in a document that is well-formed otherwise."""
    lines = content.splitlines() if suffix in (".jsonl", ".log") else [content]
    where = random.randrange(len(lines))
    value = yaml.safe_load(lines[where]) if suffix == ".yaml" else json.loads(lines[where])
    for _ in range(random.randint(1, 2)):
        value = _replaced(value, random)
    text = yaml.safe_dump(value) if suffix == ".yaml" else json.dumps(value)
    lines[where] = text.encode(errors="surrogatepass")
    return b"\n".join(lines)


def _replaced(value: Any, random: Random) -> Any:
    """The value with one of its parts, at any depth, made odd, taken out or doubled."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.05:
        return deepcopy(random.choice(ODD))
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if random.random() < 0.1:
        del value[key]
    elif isinstance(value, list) and random.random() < 0.1:
        value.append(deepcopy(value[key]))
    else:
        value[key] = _replaced(value[key], random)
    return value


# ---- the files -------------------------------------------------------------------------------------------------


NAMES: tuple[str, ...] = ("recipe.yaml", "metrics.jsonl", "summary.json", "config.json", "model.safetensors")
NAMES += (
    "diagnosis.jsonl",
    "study file",
    "ledger.jsonl",
    "summary.json of a study",
    "supervision.json",
    "evaluation.json",
)
NAMES += ("exits.json", "study.txt of a sweep", "journal of a sweep")
NAMES += ("ONNX", "checkpoint", "checkpoint that is sealed", "weights.pt", "parquet", ".mat")
NAMES += (".mat, compressed", "CIFAR tar.gz", "CIFAR tar", "CIFAR pickle", "CIFAR names", "CIFAR binary", ".npz")
NAMES += ("PNG", "JPG", "GIF", "BMP", "WEBP", "TIF", "PPM")


def targets(home: Path) -> list[Target]:
    """One of each of NAMES, below `home`; the run directory that they come from is made/run."""
    run = write_run(home / "made")
    image = home / "image.png"
    picture(1).save(image)
    of_many = [_diagnosed(run, home), *_of_studies(run, home), *_of_sweeps(home)]
    found = [*of_many, *_of_runs(run, image, home), *_of_models(home), *_of_data(home), *_of_images(home)]
    return sorted(found, key=lambda target: NAMES.index(target.name))


def _of_runs(run: Path, image: Path, home: Path) -> list[Target]:
    policy = exits.Policy((0.5, 0.5), "entropy", (1.0, 1.0, 1.0))
    write_policy(run, policy)

    def copy(name: str) -> Path:
        return shutil.copytree(run, home / name)

    def shown(folder: Path) -> Callable[[], object]:
        return lambda: report.write_report([folder], folder / "report.html")

    def used(folder: Path) -> Callable[[], object]:
        return lambda: list(predict(folder, [image]))

    def both(folder: Path) -> Callable[[], object]:
        return lambda: (used(folder)(), shown(folder)())

    recipe, metrics, summary, config, weights, exit_rule = map(
        copy, ("recipe", "metrics", "summary", "config", "weights", "exits")
    )
    onnx_file = home / "model.onnx"
    export(run, 2, "onnx", onnx_file)
    with opened(run, threads=1) as it:
        measured = {"val": evaluation.measure(it.net, it.batches("val"))}
    latencies = copy("evaluation") / "evaluation.json"
    content = evaluation.evaluation_of(latencies.parent, measured, [Latency(1, "cpu", 1, (), ())] * 3)
    write_json(latencies, content)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    shutil.rmtree(home / "made" / "data")  # what follows shall not evaluate
    return [
        Target("recipe.yaml", recipe / "recipe.yaml", lambda: read_recipe(recipe / "recipe.yaml")),
        Target("metrics.jsonl", metrics / "metrics.jsonl", shown(metrics)),
        Target("summary.json", summary / "summary.json", both(summary)),
        Target("config.json", config / "config.json", both(config)),
        Target("model.safetensors", weights / "model.safetensors", used(weights)),
        Target("exits.json", exit_rule / "exits.json", lambda: exits.early_exit(exit_rule)),
        Target("evaluation.json", latencies, lambda: evaluation.evaluation_of(latencies.parent, measured, None)),
        Target("ONNX", onnx_file, lambda: open_onnx(onnx_file, threads=1).ask(images)),
    ]


def _facts(run: Path) -> dict[str, Any]:
    """What `auxnet diagnose` gathers of the run."""
    with opened(run, threads=1) as it:
        return diagnosing.diagnosis_of_run(run, "a", it, 24, None)


def _diagnosed(run: Path, home: Path) -> Target:
    """The log of a training with --diagnose, as it is resumed and shown."""
    folder = shutil.copytree(run, home / "diagnosis")
    file, net, facts = folder / "diagnosis.jsonl", loading.load_net(folder), _facts(run)
    rows = [{"epoch": epoch, "output": 1, "layer": 2, "share": 0.5} for epoch in (1, 2, 3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read() -> None:
        resuming.roll_back(folder, Recipe(epochs=3), resuming.TrainingState(epoch=2, best_epoch=1), net)
        diagnosing.write([{**facts, "epochs": rundir.read_rows(file)}], folder)

    return Target("diagnosis.jsonl", file, read)


STUDY = """
question: does it?
measures: supervision
variants: {a: {gamma: 1}, b: {method: joint}}
claims: [{says: a errs less, better: a, worse: "b:mean"}, {says: a gets more, better: a, worse: b, of: share}]
published: {a: {error: 5.5, source: somebody, data: digits}}
scales: {smoke: {seeds: 1, base: {data: digits, depth: 8, outputs: 3, epochs: 1}}}
"""


def _of_studies(run: Path, home: Path) -> Iterator[Target]:
    """A study of two variants that are trained and measured, as it is shown."""
    out, file = home / "study", home / "own.yaml"
    file.write_text(STUDY)
    study = read_study(str(file))
    trainings, facts = list(study.trainings()), _facts(run)
    for training in trainings:
        folder = out / "trials" / training.name
        folder.mkdir(parents=True)
        shutil.copy(run / "summary.json", folder)
        write_json(folder.with_name(f"{training.name}.supervision.json"), facts)

    def show() -> None:
        write_findings(findings_of(study, out), out / "shown")
        supervising.draw(out, trainings, out / "shown")

    show()
    ledger = out / "shown" / "ledger.jsonl"
    yield Target("study file", file, lambda: read_study(str(file)))
    kept = {training.name for training in trainings}
    yield Target("ledger.jsonl", ledger, lambda: check_folder(ledger.parent, study, kept))
    yield Target("summary.json of a study", folder / "summary.json", show)
    yield Target("supervision.json", folder.with_name(f"{trainings[-1].name}.supervision.json"), show)


def _of_sweeps(home: Path) -> Iterator[Target]:
    """A sweep of one trial that is complete and one that is not, as it is shown."""
    from auxnet.sweeps.settings import Settings
    from auxnet.sweeps.sweep_page import write_outcome
    from auxnet.sweeps.sweeping import read_sweep
    from auxnet.sweeps.trials import claim, join_sweep

    folder = home / "sweep"
    space = space_from({"lr": "0.01..0.3:log", "gamma": [0, 1, 2], "milestones": [[0.4, 0.6], [0.5]]})
    sweep = join_sweep(folder, Settings(Recipe(), space), 3, None, lambda: None)
    for value in (0.5, None):
        trial, lock = claim(sweep)
        trial.report(0.5, 1)
        if value is not None:
            sweep.study.tell(trial, value)
        lock.release()

    def show() -> None:
        write_outcome(read_sweep(folder))

    yield Target("study.txt of a sweep", folder / "study.txt", show)
    yield Target("journal of a sweep", folder / "journal.log", show)


def _of_models(home: Path) -> list[Target]:
    file, sealed = home / "00001-0000000.ckpt", home / "sealed" / "00001-0000000.ckpt"
    sealed.parent.mkdir()
    for each in (file, sealed):
        checkpoint.save_state(each, {"net": {"w": torch.zeros(3)}, "epoch": 1, "history": ({"loss": 1.5},)})
    whole = sealed.read_bytes()
    backbone, weights = torch.nn.Linear(2, 2), home / "weights.pt"
    torch.save(backbone.state_dict(), weights)
    return [
        Target("checkpoint", file, lambda: checkpoint.load_state(file)),
        Target(
            "checkpoint that is sealed",
            sealed,
            lambda: checkpoint.load_state(sealed),
            lambda payload: reseal(whole, payload),
            whole.partition(b"\n")[2],
        ),
        Target("weights.pt", weights, lambda: load_pretrained(backbone, weights)),
    ]


def reseal(checkpoint: bytes, payload: bytes) -> bytes:
    """A checkpoint with another payload, and the checksum of that."""
    line = checkpoint.partition(b"\n")[0]
    return line.rsplit(b" ", 1)[0] + b" " + sha256(payload).hexdigest().encode() + b"\n" + payload


def _of_data(home: Path) -> list[Target]:
    images, labels = tiny(20, 10)
    shards, mat = home / "parquet" / "train.parquet", home / "train_32x32.mat"
    compressed = home / "extra_32x32.mat"
    write_parquet(shards, images[:9, :8, :8], [f"class {n}" for n in labels[:9]])
    for file in (mat, compressed):
        content = {"X": images[:3].transpose(1, 2, 3, 0), "y": labels[:3, None] % 9 + 1}
        savemat(file, content, do_compression=file is compressed)
    archive = write_cifar(
        home / "a", "cifar-10-python.tar.gz", cifar_files("cifar-10-python", tiny(10, 10), tiny(2, 2))
    )
    tar = write_cifar(home / "b", "cifar-10-binary.tar.gz", cifar_files("cifar-10-binary", tiny(10, 10), tiny(2, 2)))
    pickles = write_cifar(home / "c", "cifar-100-python", cifar_files("cifar-100-python", tiny(2, 2), tiny(2, 2)))
    binary = write_cifar(home / "d", "cifar-10-batches-bin", cifar_files("cifar-10-binary", tiny(5, 5), tiny(2, 2)))
    arrays = home / "own.npz"
    np.savez_compressed(arrays, images=images[:9, :8, :8], labels=labels[:9])
    return [
        Target("parquet", shards, lambda: parquet.ShardsPart([shards]).read_uncached()),
        Target(".mat", mat, lambda: svhn.read(mat)),
        Target(".mat, compressed", compressed, lambda: svhn.read(compressed)),
        Target("CIFAR tar.gz", archive, lambda: cifar.read(archive, "cifar10", "train")),
        Target("CIFAR tar", tar, lambda: cifar.read(tar, "cifar10", "test"), _gzip, gzip.decompress(tar.read_bytes())),
        Target("CIFAR pickle", pickles / "test", lambda: cifar.read(pickles, "cifar100", "test")),
        Target("CIFAR names", pickles / "meta", lambda: cifar.read(pickles, "cifar100", "test")),
        Target("CIFAR binary", binary / "test_batch.bin", lambda: cifar.read(binary, "cifar10", "test")),
        Target(".npz", arrays, lambda: npz.read(arrays, npz.npz_splits(arrays)["train"])),
    ]


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _of_images(home: Path) -> list[Target]:
    found = []
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm"):
        file = home / f"picture.{suffix}"
        picture(3, (24, 20)).save(file, **({"exif": _turned(), "progressive": True} if suffix == "jpg" else {}))
        found.append(
            Target(suffix.upper(), file, lambda file=file: pictures.decode(file, str(file), pictures.Frame((8, 8))))
        )
    return found


def _turned() -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
