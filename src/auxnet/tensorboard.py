"""Learning curves for TensorBoard while a run goes on: the rows of metrics.jsonl, each output a line in every chart.

TensorBoard draws one line per folder of event files, hence tensorboard/output-1, tensorboard/output-2, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

History = Sequence[dict[str, Any]]


def event_files(run: Path) -> Iterator[Path]:
    """What was written here for TensorBoard."""
    ours = re.compile(r"output-\d+/events\.out\.tfevents\.\d+\..+\.\d+\.\d+")
    for path in run.glob("tensorboard/output-*/events.out.tfevents.*"):
        if ours.fullmatch(str(path.relative_to(run / "tensorboard"))):
            yield path


def installed() -> bool:
    """Whether the package tensorboard is there."""
    return find_spec("tensorboard") is not None


@contextmanager
def event_writer(run: Path) -> Iterator[Callable[[History], None]]:
    """A function that takes the rows of metrics.jsonl so far, once per epoch, and writes those that are new.

    The first time all are new, and what an earlier process wrote is removed: after a resume no epoch is there twice,
    and none is missing. Before any row, a file of output 1 tells a resume that curves were asked for. Raises
    RuntimeError if the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise RuntimeError("curves for TensorBoard need its package: pip install tensorboard") from None
    writers: dict[int, SummaryWriter] = {}
    written = 0

    with ExitStack() as opened:

        def write(history: History) -> None:
            nonlocal written
            if not writers:
                for path in [*event_files(run)]:
                    path.unlink()
            for k in {1, *(row["output"] for row in history)} - writers.keys():
                # a TensorBoard that is watching drops what it read before
                writers[k] = SummaryWriter(str(run / "tensorboard" / f"output-{k}"), purge_step=0)
                opened.callback(writers[k].close)
            for row in history[written:]:
                of_output, epoch = writers[row["output"]], row["epoch"]
                of_output.add_scalar(f"loss/{row['split']}", row["loss"], epoch)
                if row["error"] is not None:
                    of_output.add_scalar(f"error/{row['split']}", row["error"], epoch)
                    of_output.add_scalar("lr", row["lr"], epoch)
            written = len(history)
            for of_output in writers.values():
                of_output.flush()

        yield write
