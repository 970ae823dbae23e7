"""`auxnet exits`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tyro.conf import FlagCreatePairsOff

from auxnet.cli import screen
from auxnet.cli.arguments import OfOneRun, above_zero, named_as_flags, number, parse, points
from auxnet.sections import Confidence, Cost
from auxnet.words import in_points, per_cent, with_interval

if TYPE_CHECKING:
    from auxnet.solved import Point, Solved
    from auxnet.thresholds import Outcome

CURVES = {
    "solved": "solved: the least error for bounds on the mean cost",
    "anytime": "anytime: every image stops at the same output",
    "budgeted": "budgeted batch: shares proportional to q^k (MSDNet)",
}


@dataclass(frozen=True)
class Exits(OfOneRun):
    """Solve on validation when an image may leave at a shallow output; written to RUN/exits.json too (of the
    best weights: exits-best.json).

    Exit status 1 (and nothing written) if no thresholds meet a bound on the mean cost. A target on the error is always
    met: by the final output alone, if nothing else is shown to keep it.
    """

    max_error_increase: float | None = None
    """target: keep the error within this many points of the final output's, at the least mean cost; holds on average
    over unseen images; none: 0.5"""
    max_mean_macs: str | None = None
    """target: least error, with at most this many multiply-adds for an image on average: 30M"""
    max_mean_latency: float | None = None
    """target: least error, with at most this many milliseconds for an image on average, one at a time, measured here,
    of the PyTorch model; an ONNX file of it is usually faster (docs/performance.md)"""
    cost: Cost = "macs"
    """the mean cost that --max-error-increase makes least: multiply-adds or latency"""
    confidence: Confidence = "entropy"
    """how sure an output is: entropy (BranchyNet), top probability (MSDNet), margin over the second"""
    common: FlagCreatePairsOff[bool] = False
    """one threshold for all outputs (BranchyNet)"""
    temperature: bool = True
    """fit a temperature to each output first, which calibrates its confidence (train's is of self-distillation)"""
    curve: int = 8
    """points of the curve of least errors for bounds on the mean cost, in 2..100"""
    baselines: FlagCreatePairsOff[bool] = False
    """show baselines of the solved curve, too: every image at one output, and MSDNet's budgeted batch"""
    json: FlagCreatePairsOff[bool] = False
    """print JSON instead of tables"""


def exits(words: list[str]) -> int:
    """`auxnet exits`."""
    o = parse(Exits, words)
    targets: dict[str, Any] = {
        "max_error_increase": points("--max-error-increase", o.max_error_increase),
        "max_mean_macs": number("--max-mean-macs", o.max_mean_macs),
        "max_mean_latency": above_zero("--max-mean-latency", o.max_mean_latency),
    }
    screen.load_torch()
    from auxnet.solving import solve_exits

    targeted = r"\bmax_error_increase\b|\bmax_mean_macs\b|\bmax_mean_latency\b|^cost\b"
    with screen.working("solving"), named_as_flags(targeted):
        found = solve_exits(
            o.run,
            **targets,
            cost=o.cost,
            confidence=o.confidence,
            common=o.common,
            temperature=o.temperature,
            points=o.curve,
            which=o.which,
            **o.where,
        )
    if found.answer is None:
        unmet: dict[str, object] = {"thresholds": None, "reason": found.reason, "target": found.target}
        unmet |= {"unit": found.unit, "costs": found.costs, "measured_on": found.measured_on}
        print(json.dumps(unmet, indent=2) if o.json else found.reason)
        return 1
    if o.json:
        print(json.dumps(found.content, indent=2))
        return 0
    console = screen.console()
    screen.print_which(console, o.run, o.which)
    _show_answer(console, found, found.answer)
    for name in CURVES if o.baselines else ("solved",):
        _show_curve(console, found, name)
    for note in found.notes:
        screen.print_line(console, f"note: {note}")
    if found.written is not None:
        screen.print_line(console, f"written to {found.written}")
    return 0


def _show_answer(console: Console, found: Solved, answer: Point) -> None:
    """The policy, and what it does to validation and to test images."""
    from auxnet.solved import cost_text

    policy, on_val, on_test, final_alone = answer.policy, answer.val, answer.test, found.curves["anytime"][-1]
    assert on_test is not None  # as every run has test images
    assert final_alone.test is not None
    title = (
        f"an image leaves at the first output whose confidence ({policy.confidence}) reaches the threshold; "
        "what it costs counts the heads that it passes"
    )
    title += f"; ms measured on {found.measured_on}" if found.measured_on else ""
    columns = ("output", "threshold", "temperature", f"{found.unit} when leaving")
    made = screen.table(title, *columns, "share, val.", "share, test (95 % interval)")
    for k, cost in enumerate(found.costs):
        words = "takes the rest" if k == len(policy.thresholds) else _threshold(policy.thresholds[k])
        words = "never reached" if k >= policy.deepest else words
        low, high = on_test.share_intervals[k]
        share = f"{100 * on_test.shares[k]:.1f} % ({100 * low:.1f} .. {100 * high:.1f})"
        temperature = f"{policy.temperatures[k]:.3f}"
        made.add_row(str(k + 1), words, temperature, cost_text(cost), f"{100 * on_val.shares[k]:.1f} %", share)
    screen.print_table(console, made)
    same = not any(map(policy.decides, range(1, len(found.costs))))
    for name, seen, final_one in (("validation", on_val, final_alone.val), ("test", on_test, final_alone.test)):
        least, most = (cost_text(bound) for bound in seen.cost_interval)
        spread = f" ({least} .. {most})" if least != most else ""
        what = "time" if found.unit == "ms" else found.unit
        saved = 100 * (1 - seen.mean_cost / found.alone[-1])
        worth = f"saves {saved:.1f} % of" if saved >= 0 else f"costs {-saved:.1f} % more of"
        apart = seen.against_final
        between = f", {in_points(apart.difference, apart.low, apart.high)} points between the two"
        screen.print_line(
            console,
            f"on {seen.images:,} {name} images: error {_error(seen)}, mean {cost_text(seen.mean_cost)} {found.unit}"
            f"{spread}; the final output alone: {'the same answers' if same else per_cent(final_one.error)}, "
            f"{cost_text(found.alone[-1])} {found.unit}; early exit {worth} the {what}"
            f"{'' if same else between}",
        )


def _show_curve(console: Console, found: Solved, name: str) -> None:
    """A curve on validation images alone: of test errors shown for every target, one would be chosen by them."""
    from auxnet.solved import cost_text

    columns = (f"mean {found.unit}, val.", "error, val. (95 % interval)", "shares, val.")
    made = screen.table(CURVES[name], *columns)
    rows = []
    for point in found.curves[name]:
        shares = " / ".join(f"{100 * share:.0f}" for share in point.val.shares)
        rows.append((cost_text(point.val.mean_cost), _error(point.val), f"{shares} %"))
    for cells in dict.fromkeys(rows):  # many targets, the same thresholds
        made.add_row(*cells)
    screen.print_table(console, made)


def _threshold(value: float) -> str:
    return "never" if value > 1 else "0: all that come so far leave" if value <= 0 else f"{value:.6f}"


def _error(seen: Outcome) -> str:
    return with_interval(seen.error, *seen.error_interval)
