"""How long a person waits before anything happens: fresh processes, in turns.

    python benchmarks/startup.py [--rounds 15] [--json FILE]

The limit is half a second for `auxnet --help`; it and `import auxnet` must not wait for torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from measured import in_turns, options, ratio, save, shown

COMMANDS = {
    "python": ["-c", ""],
    "import auxnet": ["-c", "import auxnet"],
    "auxnet --help": ["-m", "auxnet", "--help"],
    "auxnet train --help": ["-m", "auxnet", "train", "--help"],
    "import torch": ["-c", "import torch"],
    "auxnet.resnet": ["-c", "import auxnet; auxnet.resnet"],
}


def main() -> None:
    asked = options(__doc__, rounds=15).parse_args()

    def run(words: list[str]) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    times = in_turns({name: lambda words=words: run(words) for name, words in COMMANDS.items()}, asked.rounds)
    ratios = {name: ratio(took, times["import torch"]) for name, took in times.items()}
    table = Table("a fresh process", "in units of `import torch`", "seconds")
    for name, took in times.items():
        low, median, high = statistics.quantiles(took)
        table.add_row(name, shown(ratios[name]), shown((low, median, high)))
    Console(width=120).print(table)
    save(asked, ratios=ratios, seconds=times)


if __name__ == "__main__":
    main()
