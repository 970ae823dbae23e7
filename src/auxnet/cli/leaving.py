"""`auxnet exits`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from auxnet.cli import screen
from auxnet.cli.arguments import parse
from auxnet.cli.choosing import above_zero, number, points, points_between

if TYPE_CHECKING:
    from auxnet.policy import Policy
    from auxnet.scores import Predictions
    from auxnet.thresholds import Outcome

Row = tuple["Policy", "Outcome", "Outcome"]  # a policy, what it does on validation, and on test

CURVES = {
    "solved": "solved on validation for bounds on the mean cost",
    "anytime": "anytime: every image stops at the same output",
    "budgeted": "budgeted batch: shares proportional to q^k (MSDNet)",
}


@dataclass(frozen=True)
class Exits:
    """Solve on validation when an image may leave at a shallow output; written to RUN/exits.json too.

    Exit status 1 if no thresholds meet the target.
    """

    run: Positional[Path]
    """the run directory"""
    max_error_increase: float | None = None
    """target: least mean cost, with an error of at most so many points above the final output's; none: 0.5"""
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
    """auto, cpu, cuda, ...; none: as in training"""
    threads: int | None = None
    """CPU threads; none: as in training"""


@dataclass(frozen=True)
class Solved:
    """The answer, the curves around it, and what they were made of."""

    answer: Row
    curves: dict[str, list[Row]]
    val: Predictions
    test: Predictions
    costs: Sequence[float]
    unit: str


def exits(words: list[str]) -> int:
    """`auxnet exits`."""
    o = parse(Exits, words)
    target, unit = _target(o)
    with screen.working("solving"):
        found = _solve(o, target, unit)
    if isinstance(found, str):
        print(found)
        return 1
    from auxnet.checkpoint import write_json
    from auxnet.exits import policy_content

    policy = found.answer[0]
    about = {
        "target": {name: value for name, value in target.items() if value is not None},
        "common": o.common,
        "unit": unit,
        "costs": list(found.costs),
        **_facts(found.answer),
        "curves": {
            name: [{"thresholds": row[0].thresholds, **_facts(row)} for row in rows]
            for name, rows in found.curves.items()
        },
    }
    content = policy_content(o.run, policy, about)
    written = f"written to {o.run / 'exits.json'}"
    try:
        write_json(o.run / "exits.json", content)
    except OSError as error:
        written = ""
        print(f"warning: exits.json is not written: {error}", file=sys.stderr)
    if o.json:
        print(json.dumps(content, indent=2))
        return 0
    _show(found)
    console = screen.console()
    for note in _notes(found, target):
        screen.print_line(console, f"note: {note}")
    screen.print_line(console, written)
    return 0


def _solve(o: Exits, target: dict[str, float | None], unit: str) -> Solved | str:
    """Thresholds and curves from validation images, their outcomes on test; words if no thresholds meet the target."""
    from auxnet.opening import opened

    with opened(o.run, data_dir=o.data_dir, device=o.device, threads=o.threads) as run:
        from auxnet.exits import exit_latencies, exit_macs
        from auxnet.scores import predictions
        from auxnet.thresholds import anytime, budgeted, outcome, solve, sweep, temperatures

        if run.net.outputs < 2:
            raise ValueError(f"{o.run} has one output: there is nothing to leave early at")
        val, test = predictions(run.net, run.batches("val")), predictions(run.net, run.batches("test"))
        costs: Sequence[float] = (
            exit_latencies(run.net, run.image_shape, o.confidence)
            if unit == "ms"
            else exit_macs(run.net, run.image_shape)
        )
        scale = temperatures(val) if o.temperature else (1.0,) * len(costs)
        policy = solve(val, costs, kind=o.confidence, scale=scale, common=o.common, **target)
        if policy is None:
            return _no_policy(val, costs, target["max_mean_cost"], unit)

        def seen(policies: Iterable[Policy]) -> list[Row]:
            return [(p, outcome(val, p, costs), outcome(test, p, costs)) for p in policies]

        settings: dict[str, Any] = {"points": o.curve, "kind": o.confidence, "scale": scale}
        curves = {
            "solved": seen(sweep(val, costs, common=o.common, **settings)),
            "anytime": seen(anytime(len(costs), o.confidence, scale)),
            "budgeted": seen(budgeted(val, **settings)),
        }
        return Solved(seen([policy])[0], curves, val, test, costs, unit)


def _target(o: Exits) -> tuple[dict[str, float | None], str]:
    """The target as `solve` takes it, and the unit of cost. Raises ValueError for two, or one that cannot be."""
    given = {
        "--max-error-increase": o.max_error_increase,
        "--max-mean-macs": number("--max-mean-macs", o.max_mean_macs),
        "--max-mean-latency": above_zero("--max-mean-latency", o.max_mean_latency),
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
    if o.cost == "latency" and name == "--max-mean-macs":
        raise ValueError("--cost latency goes with --max-error-increase, but --max-mean-macs is given")
    return {"max_mean_cost": bound}, "ms" if name == "--max-mean-latency" else "MACs"


def _no_policy(val: Predictions, costs: Sequence[float], bound: float | None, unit: str) -> str:
    first = f"every image that leaves at output 1 costs {_cost(costs[0])} {unit} ({100 * val.errors[0]:.2f} % error)"
    return f"no thresholds meet a mean of at most {_cost(bound or 0.0)} {unit}: {first}"


def _notes(found: Solved, target: dict[str, float | None]) -> Iterator[str]:
    """What a reader must know before trusting the thresholds."""
    from auxnet.selection import too_few

    if few := too_few(found.answer[1].images):
        yield few
    alone = [k for k, error in enumerate(found.val.errors) if error <= found.answer[1].error]
    if alone and (k := min(alone, key=lambda each: found.costs[each])) < len(found.costs) - 1:
        cost = f"{_cost(found.costs[k])} {found.unit} at most"
        yield (
            f"output {k + 1} alone errs no more on validation ({screen.per_cent(found.val.errors[k])}), and by "
            f"{screen.per_cent(found.test.errors[k])} on test, at {cost}"
        )
    increase, on_test = target.get("max_error_increase"), found.answer[2].against_final
    if increase is not None and on_test.difference > increase:
        how = "beyond chance" if on_test.low > increase else "which may be chance"
        yield f"on test images the error rises by more than the target of {100 * increase:g} points, {how}"


def _facts(row: Row) -> dict[str, Any]:
    return {"val": asdict(row[1]), "test": asdict(row[2])}


def _show(found: Solved) -> None:
    console = screen.console()
    policy, on_val, on_test = found.answer
    title = (
        f"an image leaves at the first output whose confidence ({policy.confidence}) reaches the threshold; "
        "what it costs counts the heads that it passes"
    )
    columns = ("output", "threshold", "temperature", f"{found.unit} when leaving")
    made = screen.table(title, *columns, "share, val.", "share, test (95 % interval)")
    for k, cost in enumerate(found.costs):
        final = k == len(policy.thresholds)
        words = "takes the rest" if final else _threshold(policy.thresholds[k])
        low, high = on_test.share_intervals[k]
        share = f"{100 * on_test.shares[k]:.1f} % ({100 * low:.1f} .. {100 * high:.1f})"
        temperature = "" if final else f"{policy.temperatures[k]:.3f}"
        made.add_row(str(k + 1), words, temperature, _cost(cost), f"{100 * on_val.shares[k]:.1f} %", share)
    screen.print_table(console, made)
    for name, seen, said in (("validation", on_val, found.val), ("test", on_test, found.test)):
        least, most = (_cost(bound) for bound in seen.cost_interval)
        what = "time" if found.unit == "ms" else found.unit
        saved = 100 * (1 - seen.mean_cost / found.costs[-1])
        screen.print_line(
            console,
            f"on {seen.images:,} {name} images: error {_error(seen)}, mean {_cost(seen.mean_cost)} {found.unit} "
            f"({least} .. {most}); the final output alone: {screen.per_cent(said.errors[-1])}, "
            f"{_cost(found.costs[-1])} {found.unit}; early exit saves {saved:.1f} % of the {what}, "
            f"{points_between(seen.against_final)} between the two",
        )
    for name, rows in found.curves.items():
        made = screen.table(CURVES[name], f"mean {found.unit}, test", "error, val.", "error, test", "shares, test")
        for cells in dict.fromkeys(_point(val, test) for _, val, test in rows):  # many targets, the same thresholds
            made.add_row(*cells)
        screen.print_table(console, made)


def _point(val: Outcome, test: Outcome) -> tuple[str, ...]:
    """A line of a curve."""
    shares = " / ".join(f"{100 * share:.0f}" for share in test.shares)
    return _cost(test.mean_cost), screen.per_cent(val.error), _error(test), f"{shares} %"


def _threshold(value: float) -> str:
    return "never" if value > 1 else f"{value:.4f}"


def _error(seen: Outcome) -> str:
    low, high = seen.error_interval
    return f"{screen.per_cent(seen.error)} ({100 * low:.1f} .. {100 * high:.1f})"


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
