"""`auxnet exits`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional

from auxnet.cli import screen
from auxnet.cli.arguments import parse
from auxnet.cli.choosing import number, opened, points, table

if TYPE_CHECKING:
    from auxnet.scores import Predictions
    from auxnet.thresholds import Outcome, Policy

Rows = list[tuple[str, "Policy", "Outcome", "Outcome"]]  # what it is, the policy, on validation, on test


@dataclass(frozen=True)
class Exits:
    """Solve on validation when an image may leave at a shallow output; written to RUN/exits.json too.

    Exit status 1 if no thresholds meet the target.
    """

    run: Positional[Path]
    """the run directory"""
    max_error_increase: float | None = None
    """target: least mean cost, with an error of at most so many points above the final output's (default: 0.5)"""
    max_mean_macs: str | None = None
    """target: least error, with at most so many multiply-adds for an image on average: 30M"""
    max_mean_latency: float | None = None
    """target: least error, with at most so many milliseconds for an image on average, one at a time, measured here"""
    cost: Literal["macs", "latency"] = "macs"
    """what --max-error-increase makes least"""
    confidence: Literal["entropy", "top", "margin"] = "entropy"
    """how sure an output is: entropy (BranchyNet), top probability (MSDNet), margin over the second"""
    common: FlagCreatePairsOff[bool] = False
    """one threshold for all outputs (BranchyNet)"""
    temperature: bool = True
    """fit a temperature to each output first"""
    curve: int = 8
    """points of each curve"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of tables"""
    data_dir: str | None = None
    """where data sets lie, if not where they lay in training"""
    device: str | None = None
    """auto, cpu, cuda, ... (default: as in training)"""
    threads: int | None = None
    """CPU threads (default: as in training)"""


def exits(words: list[str]) -> int:
    """`auxnet exits`."""
    o = parse(Exits, words)
    target, unit = _target(o)
    with opened(o.run, o.data_dir, o.device, o.threads) as run:
        from auxnet.exits import exit_latencies, exit_macs
        from auxnet.scores import predictions
        from auxnet.thresholds import anytime, budgeted, outcome, solve, sweep, temperatures

        if run.net.outputs < 2:
            raise ValueError(f"{o.run} has one output: there is nothing to leave early at")
        val, test = predictions(run.net, run.batches("val")), predictions(run.net, run.batches("test"))
        shape = run.image_shape
        costs: Sequence[float] = (
            exit_latencies(run.net, shape, o.confidence) if unit == "ms" else exit_macs(run.net, shape)
        )
    scale = temperatures(val) if o.temperature else (1.0,) * len(costs)
    policy = solve(val, costs, kind=o.confidence, scale=scale, common=o.common, **target)
    if policy is None:
        print(_no_policy(val, costs, target["max_mean_cost"], unit))
        return 1

    def seen(name: str, policies: Iterable[Policy]) -> Rows:
        return [(name, p, outcome(val, p, costs), outcome(test, p, costs)) for p in policies]

    settings: dict[str, Any] = {"points": o.curve, "kind": o.confidence, "scale": scale}
    curves = {
        "solved": seen("solved", sweep(val, costs, common=o.common, **settings)),
        "anytime": seen("all stop at one output", anytime(len(costs), o.confidence, scale)),
        "budgeted": seen("geometric shares", budgeted(val, **settings)),
    }
    solution = seen("the answer", [policy])
    about = {
        "target": {name: value for name, value in target.items() if value is not None},
        "common": o.common,
        "unit": unit,
        "costs": list(costs),
        **_facts(solution[0]),
        "curves": {name: [{"thresholds": row[1].thresholds, **_facts(row)} for row in c] for name, c in curves.items()},
    }
    from auxnet.exits import policy_content, save_policy

    try:
        save_policy(o.run, policy, about)
        written = f"written to {o.run / 'exits.json'}"
    except OSError as error:
        written = ""
        print(f"warning: exits.json is not written: {error}", file=sys.stderr)
    if o.json:
        print(json.dumps(policy_content(o.run, policy, about), indent=2))
        return 0
    _show(policy, solution, curves, val, test, costs, unit)
    if written:
        screen.print_line(screen.console(), written)
    return 0


def _target(o: Exits) -> tuple[dict[str, float | None], str]:
    """The target as `solve` takes it, and the unit of cost. Raises ValueError for two, or one that cannot be."""
    given = {
        "--max-error-increase": o.max_error_increase,
        "--max-mean-macs": number("--max-mean-macs", o.max_mean_macs),
        "--max-mean-latency": o.max_mean_latency,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are two targets: give one")
    if o.curve < 2:
        raise ValueError(f"--curve must be 2 points or more, got {o.curve}")
    if not named or named == ["--max-error-increase"]:
        increase = points("--max-error-increase", 0.5 if o.max_error_increase is None else o.max_error_increase)
        return {"max_error_increase": increase}, "ms" if o.cost == "latency" else "MACs"
    name, bound = named[0], given[named[0]]
    if bound is None or not 0 < bound < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {bound}")
    if o.cost == "latency" and name == "--max-mean-macs":
        raise ValueError("--cost latency goes with --max-error-increase, but --max-mean-macs is given")
    return {"max_mean_cost": bound}, "ms" if name == "--max-mean-latency" else "MACs"


def _no_policy(val: Predictions, costs: Sequence[float], bound: float | None, unit: str) -> str:
    first = f"every image that leaves at output 1 costs {_cost(costs[0], unit)} ({100 * val.errors[0]:.2f} % error)"
    return f"no thresholds meet a mean of at most {_cost(bound or 0.0, unit)}: {first}"


def _facts(row: tuple[str, Policy, Outcome, Outcome]) -> dict[str, Any]:
    return {"val": asdict(row[2]), "test": asdict(row[3])}


def _show(
    policy: Policy,
    solution: Rows,
    curves: dict[str, Rows],
    val: Predictions,
    test: Predictions,
    costs: Sequence[float],
    unit: str,
) -> None:
    console = screen.console()
    made = table(f"an image leaves at the first output with a confidence ({policy.confidence}) of at least the "
                 "threshold", "output", "threshold", "temperature", f"{unit} when leaving", "share, val.",
                 "share, test (95 % interval)")  # fmt: skip
    for k, cost in enumerate(costs):
        threshold = policy.thresholds[k] if k < len(policy.thresholds) else None
        words = "takes the rest" if threshold is None else "never" if threshold > 1 else f"{threshold:.4f}"
        low, high = solution[0][3].share_intervals[k]
        share = f"{100 * solution[0][3].shares[k]:.1f} % ({100 * low:.1f} .. {100 * high:.1f})"
        temperature = f"{policy.temperatures[k]:.3f}" if threshold is not None else ""
        before = f"{100 * solution[0][2].shares[k]:.1f} %"
        made.add_row(str(k + 1), words, temperature, _cost(cost, ""), before, share)
    console.print(made)
    for name, found, final in (("validation", solution[0][2], val), ("test", solution[0][3], test)):
        low, high = found.error_interval
        error = f"error {screen.per_cent(found.error)} ({100 * low:.1f} .. {100 * high:.1f})"
        screen.print_line(
            console,
            f"on {found.images:,} {name} images: {error}, mean {_cost(found.mean_cost, unit)} "
            f"({_cost(found.cost_interval[0], '')} .. {_cost(found.cost_interval[1], '')}); the final output alone: "
            f"{screen.per_cent(final.errors[-1])}, {_cost(costs[-1], unit)}",
        )
    for rows in curves.values():
        console.print(_curve(rows, unit))


def _curve(rows: Rows, unit: str) -> Table:
    titles = {
        "solved": "solved on validation for bounds on the mean cost",
        "all stop at one output": "anytime: every image stops at the same output",
        "geometric shares": "budgeted batch: shares proportional to q^k (MSDNet)",
    }
    made = table(titles[rows[0][0]], f"mean {unit}, test", "error, val.", "error, test", "shares, test")
    for _, _, val, test in rows:
        low, high = test.error_interval
        error = f"{screen.per_cent(test.error)} ({100 * low:.1f} .. {100 * high:.1f})"
        shares = " / ".join(f"{100 * share:.0f}" for share in test.shares)
        made.add_row(_cost(test.mean_cost, ""), screen.per_cent(val.error), error, f"{shares} %")
    return made


def _cost(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
    return f"{text} {unit}" if unit else text
