"""Early exit solved for a net or a run: thresholds from validation images, and what they do on images not seen.

Test images decide nothing: all policies are solved on validation images alone, and then reported on both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from auxnet.batches import Batches
from auxnet.descent import Costs
from auxnet.errors import check_choice
from auxnet.evaluation import image_shape_of
from auxnet.exit_notes import notes_on
from auxnet.exits import exit_latencies, exit_macs, exits_file
from auxnet.files import try_write_json
from auxnet.latency import Timing, measured_on
from auxnet.loading import weights_sha256
from auxnet.network import AuxNet, check_net
from auxnet.opening import opened
from auxnet.policy import Policy, never
from auxnet.precision import usual_defaults
from auxnet.provenance import provenance
from auxnet.recipe import RunDir
from auxnet.scores import predictions
from auxnet.sections import Confidence, Cost, Which
from auxnet.solved import Point, Solved, Unit, cost_text
from auxnet.thresholds import Solver, anytime, budgeted, check_target, fit_temperatures, outcome
from auxnet.words import command, which_flags

INCREASE = 0.005  # the target, if none is given
MOST_POINTS = 100  # of a curve: each but the anytime one's is solved anew


@usual_defaults()
def solve_exits(
    run: RunDir,
    *,
    max_error_increase: float | None = None,
    max_mean_macs: float | None = None,
    max_mean_latency: float | None = None,
    cost: Cost = "macs",
    confidence: Confidence = "entropy",
    common: bool = False,
    temperature: bool = True,
    points: int = 8,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
) -> Solved:
    """Solve when an image may leave a run at a shallow output, on validation; `early_exit` and `export` take it up.

    One target:

    - `max_error_increase`: the least mean `cost` ("macs" or "latency") with an error of at most that much above the
      final output's, as a fraction of the images (0.005, the default, is half a percentage point). It is kept in the
      mean over images that the thresholds were not solved on (`Solver.cross_fitted`: no promise for one set of them),
      by the final output alone if nothing else is shown to keep it.
    - `max_mean_macs`: the least error with at most that many multiply-adds for an image in the mean.
    - `max_mean_latency`: the same in milliseconds, one image at a time, measured here.

    `confidence` is how sure an output is: "entropy" (BranchyNet, Teerapittayanon et al. 2016), "top" (the largest
    probability: MSDNet, Huang et al. 2018) or "margin" (over the second); with `common` one threshold serves all
    outputs (BranchyNet). With `temperature`, one is fitted to each output first (Guo et al. 2017). Each of the curves
    has that many `points`; the anytime and the budgeted one are MSDNet's settings. Data, device and CPU threads are
    those of the training where they are not given. `which` says for which weights of the run, "last" or "best": those
    that are shipped, for no others can be used with them.

    Writes RUN/exits.json (exits-best.json for the best weights) where thresholds meet the target, and warns
    (UserWarning) if that fails; where none do (a mean cost below that of output 1), the policy is None, the reason is
    there, and nothing is written. Raises ValueError for what cannot be asked for (two targets, a run with one output),
    TypeError for a net (`solve_exits_on` takes one), and FileNotFoundError or RuntimeError as `opened` does.
    """
    target, unit = _target(max_error_increase, max_mean_macs, max_mean_latency, cost)
    asked = _Asked(target, unit, confidence, common, temperature, points)
    with opened(run, data_dir=data_dir, device=device, threads=threads, which=which) as it:
        if it.net.outputs < 2:
            raise ValueError(f"{run} has one output: there is nothing to leave early at")
        select = f"`{command('select', Path(run), *which_flags(which))}`"
        found = _solved(it.net, it.batches("val"), it.batches("test"), asked, select)
        made_of = {"weights": which, "weights_sha256": weights_sha256(Path(run), which), "common": common}
        source = {**made_of, **provenance(it.device)}
    return found if found.answer is None else _written(replace(found, source=source), exits_file(run, which))


@usual_defaults()
def solve_exits_on(
    net: AuxNet,
    batches: Batches,
    test: Batches | None = None,
    *,
    max_error_increase: float | None = None,
    max_mean_macs: float | None = None,
    max_mean_latency: float | None = None,
    cost: Cost = "macs",
    confidence: Confidence = "entropy",
    common: bool = False,
    temperature: bool = True,
    points: int = 8,
) -> Solved:
    """Solve when an image may leave a net at a shallow output, on batches of *validation* images: as `solve_exits`.

    Batches are of (images [N, C, H, W], labels [N]), as the net takes them; of `test` images, if they are given, it is
    reported what the policies do to them. `EarlyExit.from_policy(net, found.policy)` is the net that stops early;
    nothing is written. Raises ValueError and TypeError for what cannot be asked for.
    """
    target, unit = _target(max_error_increase, max_mean_macs, max_mean_latency, cost)
    asked = _Asked(target, unit, confidence, common, temperature, points)
    check_net(net)
    if isinstance(test, str | Path):
        raise TypeError(f"test must be batches of (images, labels), got {test!r}")
    if net.outputs < 2:
        raise ValueError("the net has one output: there is nothing to leave early at")
    return _solved(net, batches, test, asked, "auxnet.select_on")


@dataclass(frozen=True)
class _Asked:
    """The arguments of `solve_exits` that say what to solve. Raises ValueError for those out of range."""

    target: dict[str, float]
    unit: Unit
    confidence: Confidence
    common: bool
    temperature: bool
    points: int

    def __post_init__(self) -> None:
        check_choice("confidence", self.confidence, Confidence)
        if self.points not in range(2, MOST_POINTS + 1):
            raise ValueError(f"points of a curve must be a whole number in 2..{MOST_POINTS}, got {self.points!r}")


def _target(
    increase: float | None, macs: float | None, latency: float | None, cost: Cost
) -> tuple[dict[str, float], Unit]:
    """The target as `Solver.solve` takes it, and the unit of cost. Raises ValueError for two, or one out of range."""
    check_choice("cost", cost, Cost)
    asked = {"max_error_increase": increase, "max_mean_macs": macs, "max_mean_latency": latency}
    given = {name: value for name, value in asked.items() if value is not None} or {"max_error_increase": INCREASE}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are {len(given)} targets: give one")
    ((name, value),) = given.items()
    if name == "max_mean_macs" and cost == "latency":
        raise ValueError("cost latency goes with max_error_increase, but max_mean_macs is given")
    key = "max_error_increase" if name == "max_error_increase" else "max_mean_cost"
    check_target(**{key: value})
    return {key: float(value)}, "ms" if name == "max_mean_latency" or cost == "latency" else "MACs"


def _solved(net: AuxNet, batches: Batches, test_batches: Batches | None, asked: _Asked, select: str) -> Solved:
    """The answer for a net of several outputs; `select` names the command that compares outputs, for the notes."""
    image_shape, batches = image_shape_of(batches)
    val = predictions(net, batches)
    timed, device = asked.unit == "ms", next(net.parameters()).device
    stop, passing, alone, timing = (
        exit_latencies(net, image_shape, asked.confidence) if timed else exit_macs(net, image_shape)
    )
    unsolved = Solved(
        costs=tuple(stop),
        alone=tuple(alone),
        unit=asked.unit,
        target=asked.target,
        measured_on=measured_on(device, torch.get_num_threads()) if timed else None,
    )

    temperatures = fit_temperatures(val) if asked.temperature else None
    rule = never(net.outputs, asked.confidence, temperatures)
    solver = Solver(val, rule, stop, passing, asked.common)
    policy: Policy | None
    cross_fitted = None
    if "max_error_increase" in asked.target:
        policy, cross_fitted = solver.cross_fitted(**asked.target)
    else:
        policy = solver.solve(**asked.target)
    if policy is None:
        return replace(unsolved, reason=_unmet(unsolved, val.errors[0], timing))
    points = int(asked.points)
    policies = {
        "solved": solver.cost_curve(points),
        "anytime": anytime(rule),
        "budgeted": budgeted(val, rule, points=points),
    }
    test = None if test_batches is None else predictions(net, test_batches)  # after the choice, only to report it

    def point(policy: Policy) -> Point:
        val_outcome = outcome(val, policy, stop, passing)
        return Point(policy, val_outcome, None if test is None else outcome(test, policy, stop, passing))

    answer = point(policy)
    found = replace(
        unsolved,
        answer=answer,
        curves={name: tuple(map(point, several)) for name, several in policies.items()},
        cross_fitted=cross_fitted,
        costs=tuple(Costs.of(stop, passing).under(policy.thresholds).tolist()),
    )
    return replace(found, notes=tuple(notes_on(found, answer, select)))


def _unmet(unsolved: Solved, first_error: float, timing: Timing | None) -> str:
    """Why no thresholds keep the mean cost below a bound: output 1 alone costs more."""
    first, unit = unsolved.costs[0], unsolved.unit
    bound = f"a mean of at most {cost_text(unsolved.target['max_mean_cost'])} {unit}"
    cheapest = f"every image that leaves at output 1 costs {cost_text(first)} {unit}"
    reason = f"no thresholds meet {bound}: {cheapest} ({100 * first_error:.2f} % error)"
    if timing is None:
        return reason
    spread = f"its quartiles {cost_text(timing.low_ms)} .. {cost_text(timing.high_ms)}"
    return f"{reason}, the median measured on {unsolved.measured_on}, {spread}; times vary: ask again, or for more"


def _written(found: Solved, file: Path) -> Solved:
    """The answer, written into the run; if the disk refuses it, the answer is returned all the same."""
    return replace(found, written=file) if try_write_json(file, found.content) else found
