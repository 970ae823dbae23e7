"""What a sweep writes for people: trials.csv, best.yaml, and sweep.html, whose figures Optuna makes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from auxnet.build import depths_of
from auxnet.documents import parsing, read_json
from auxnet.files import write_csv, write_text, written_whole
from auxnet.lineage import in_doubt
from auxnet.page_frame import Figure, columns_of, page_of_figures, table_of, tiles_of, unbroken
from auxnet.recipe import Recipe, words_of, write_recipe
from auxnet.run_data import validated_alike
from auxnet.rundir import is_finished, summary_of
from auxnet.schedules import trained_outputs_only
from auxnet.scores import interval_of, too_few
from auxnet.sweeps.journal import optuna
from auxnet.sweeps.settings import COMPARABLE
from auxnet.sweeps.space import Domain, Range, count_of, in_words
from auxnet.sweeps.sweeping import OF_NETWORK, Sweep
from auxnet.sweeps.trials import Trial
from auxnet.words import command, listed, per_cent, plural, sentence

ENOUGH = 4  # complete trials: with fewer it is not said which field matters
COLOURS = 6  # of the lines on a page; a seventh line has the first colour again
LENGTHS = ("epochs", "milestones", "schedule", "warmup")  # fields that set how soon the step size has come down


def write_outcome(sweep: Sweep) -> list[Path]:
    """Write trials.csv, sweep.html and, once a trial is complete, best.yaml; return their paths."""
    paths = [sweep.folder / name for name in ("trials.csv", "sweep.html")]
    with parsing(f"{sweep.folder}: its trials are damaged"):
        write_csv(paths[0], rows_of(sweep))
        write_text(paths[1], page(sweep))
        if sweep.best_recipe is not None:
            paths.append(sweep.folder / "best.yaml")
            with written_whole(paths[-1]) as partial:
                write_recipe(sweep.best_recipe, partial)
    return paths


def rows_of(sweep: Sweep) -> Iterator[list[Any]]:
    """The lines of trials.csv, in the order of the trials' numbers; errors are fractions."""
    fields = list(sweep.settings.space)
    yield ["number", "state", "objective", "epochs", "seconds", *fields, "run", "error"]
    for trial in sweep.trials:
        drawn = [json.dumps(value) if isinstance(value, tuple) else value for value in map(trial.values.get, fields)]
        result = [trial.number, trial.state, trial.objective, trial.epochs, round(trial.seconds, 1)]
        yield [*result, *drawn, trial.folder.relative_to(sweep.folder), trial.error]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Trials, the complete ones first, by their objective; then the pruned, the unfinished, the failed."""
    order = ("complete", "pruned", "running", "interrupted", "failed")
    return sorted(trials, key=lambda t: (order.index(t.state), t.objective is None, t.objective or 0, t.number))


def error_of(trial: Trial) -> str:
    """The validation error of a trial, in words."""
    if trial.objective is None:
        return "-"
    return per_cent(trial.objective) + ("" if trial.ended else " so far")


def importance_of(sweep: Sweep) -> dict[str, float]:
    """How much of the objective's variance each field accounts for (fANOVA); {} with too few trials to say."""
    values = [trial.objective for trial in sweep.trials if trial.state == "complete"]
    if len(values) < ENOUGH or len(set(values)) < 2 or len(sweep.settings.space) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(sweep.study, evaluator=evaluator)


def notes_of(sweep: Sweep) -> Iterator[str]:
    """What a reader must know before trusting the comparison; each without a capital and a full stop."""
    space, different = sweep.settings.space, _different(sweep)
    paths = {trial.number: trial.folder / "summary.json" for trial in different}
    data = {number: read_json(path)["data"] for number, path in paths.items() if path.is_file()}
    alike = validated_alike(data.values())
    if (changed := [field for field in COMPARABLE if field in space]) and not alike:
        yield f"{', '.join(changed)} varied, so that the trials are validated on different images"
    elif alike is False:
        yield "the data changed while the sweep went on, so that the trials are validated on different images"
    yield from _in_doubt(data)
    if sweep.settings.objective == "mean" and len(set(_counted_outputs(sweep, different))) > 1:
        yield (
            "the outputs that train to the end varied, so that the means are over different outputs; --objective "
            "final, in another --out, compares one with one"
        )
    if sweep.settings.prune and (lengths := [field for field in LENGTHS if field in space]):
        yield (
            f"{', '.join(lengths)} varied, and trials were stopped by the median of the others at their epoch, which "
            "favours schedules that come down early; --no-prune does not"
        )
    if (images := _images(sweep)) is not None and (few := too_few(images)):
        yield f"{few}; a seed may weigh more than what varied"
    if len(different) > 1:
        yield (
            f"the least of {len(different)} validation errors is optimistic: chosen as the least on these same images; "
            "on others the same recipe is likely to err more"
        )
    if failed := [trial for trial in sweep.trials if trial.state == "failed"]:
        yield f"{len(failed)} of the trials failed; the first: trial {failed[0].number}, {failed[0].error}"
    if twins := [trial for trial in sweep.trials if trial.twin is not None]:
        yield f"{len(twins)} of the trials drew what another had drawn, and took its result"


def _in_doubt(data: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Notes on trials that may be judged by images their initial weights were trained on.

    `data` is the section "data" of the trials' summary.json, by the trial's number.
    """
    trials: dict[str | None, list[str]] = {}
    for number, about in data.items():
        seen = about.get("may_be_seen_by", {})
        trials.setdefault(in_doubt({"val": seen["val"]} if "val" in seen else {}), []).append(str(number))
    for doubt, numbers in trials.items():
        which = f"trial {numbers[0]}" if len(numbers) == 1 else f"each of trials {listed(numbers)}"
        if doubt:
            yield f"{'each trial' if len(numbers) == len(data) > 1 else which}: {doubt}"


def objective_in_words(sweep: Sweep) -> str:
    """The validation error that the sweep minimises, in words."""
    words = {"mean": "mean over the outputs", "final": "final output"}
    return words.get(sweep.settings.objective, f"output {sweep.settings.objective}")


def page(sweep: Sweep) -> str:
    """The whole page."""
    return page_of_figures(
        command="auxnet sweep",
        title=f"auxnet sweep: {sweep.folder.resolve().name}",
        eyebrow=f"{sweep.folder}: {_progress(sweep)}",
        headline=headline(sweep),
        sub=f"Judged by the validation error after the last epoch, {objective_in_words(sweep)}; the test set "
        "decides nothing, and is not shown.",
        tiles=_tiles(sweep),
        notes=[sentence(note) for note in notes_of(sweep)],
        figures=list(_figures(sweep)),
        sections={"trials": ("All trials, the best first", _trials(sweep)), "space": ("What varied", _space(sweep))},
    )


def _images(sweep: Sweep) -> int | None:
    """How many validation images the best trial has; None if that is not known."""
    if sweep.best is None or not is_finished(sweep.best.folder):
        return None
    with summary_of(sweep.best.folder, "it does not say on how many images") as summary:
        return int(summary["data"]["val"])


def _different(sweep: Sweep) -> list[Trial]:
    """The complete trials that were trained themselves, and did not take the result of another."""
    return [trial for trial in sweep.trials if trial.state == "complete" and trial.twin is None]


def _counted_outputs(sweep: Sweep, trials: Sequence[Trial]) -> Iterator[tuple[Any, ...]]:
    """For each trial, the outputs that its mean error is over: their numbers, and their places if these varied."""
    depths = lru_cache(depths_of)
    placed = [field for field in ("outputs", "at", "placement", "cuts") if field in sweep.settings.space]
    for trial in trials:
        recipe = replace(sweep.settings.recipe, **trial.values)
        of_net = depths(replace(Recipe(), **{field: getattr(recipe, field) for field in OF_NETWORK}))
        numbers = range(1, len(of_net) + 1) if recipe.alone is None else [recipe.alone]
        yield *(trial.values[field] for field in placed), *trained_outputs_only(recipe, of_net, numbers)


def _interval(error: float | None, images: int) -> tuple[float, float]:
    """Wilson's interval of an error on so many images. A mean over outputs varies less: for it this is rather wide."""
    return interval_of(error or 0.0, images)


def headline(sweep: Sweep) -> str:
    """Which trial is the best, how well that is known, and how many others may be as good."""
    best = sweep.best
    if best is None or best.objective is None:
        return "No trial is complete yet." if not sweep.trials else f"None of {len(sweep.trials)} trials is complete."
    drawn = ", ".join(f"{field} {words}" for field, words in best.in_words.items())
    others, images = [trial for trial in _different(sweep) if trial.number != best.number], _images(sweep)
    known = doubt = ""
    if images is not None:
        low, high = _interval(best.objective, images)
        known = f" (95 % {100 * low:.1f} \u2013 {100 * high:.1f}, Wilson, n = {images:,})"
        if alike := [trial for trial in others if _interval(trial.objective, images)[0] <= high]:
            counted = f"{len(alike)} of the other {len(others)} complete trials"
            doubt = f" The intervals of {counted} overlap with its; on the same images, some may still be surely worse."
    ties = [str(trial.number) for trial in others if trial.objective == best.objective]
    as_good = f" As good: {', '.join(ties)}." if ties else ""
    error = f"{per_cent(best.objective)} error{known}"
    return f"Trial {best.number} is the best on validation: {error}, with {drawn}.{as_good}{doubt}"


def counts_of(trials: Sequence[Trial]) -> str:
    """How many trials are in each state, in the order of `ranked`."""
    return ", ".join(f"{n} {state}" for state, n in Counter(trial.state for trial in ranked(trials)).items())


def _progress(sweep: Sweep) -> str:
    counts = counts_of(sweep.trials)
    begun = f"{len(sweep.trials)} of {sweep.total} trials begun{f' ({counts})' if counts else ''}"
    return f"{begun}, sampler {sweep.settings.sampler}"


def _tiles(sweep: Sweep) -> str:
    best = sweep.best
    if best is None:
        return ""
    seconds = sum(trial.seconds for trial in sweep.trials)
    tiles = [
        ("Validation error", per_cent(best.objective or 0), objective_in_words(sweep)),
        ("Trial", str(best.number), f"{plural(best.epochs, 'epoch')}, {best.seconds:,.1f} s"),
        ("Trained in all", f"{seconds:,.1f} s", f"{sum(trial.epochs for trial in sweep.trials):,} epochs"),
    ]
    again = escape(command("train", "--config", sweep.folder / "best.yaml"))
    return tiles_of(tiles, "The best trial") + f'<p class="under">The best again, as a run: <code>{again}</code></p>'


# ---- figures ---------------------------------------------------------------------------------------------------


def _figures(sweep: Sweep) -> Iterator[Figure]:
    """Each figure that there is something to show in."""
    from optuna import visualization as draw

    complete = [trial for trial in sweep.trials if trial.state == "complete"]
    error: dict[str, Any] = {"target": lambda trial: 100 * trial.value, "target_name": "validation error (%)"}
    in_per_cent = {"title": {"text": "validation error"}, "tickformat": ".2~%"}
    if complete:
        words = "Each complete trial in the order of their beginning, and the best so far."
        figure = _plain(draw.plot_optimization_history(sweep.study, target_name="validation error"))
        for trace in figure["data"]:
            trace["name"] = {"Best Value": "the best so far"}.get(trace["name"], "trial")
        figure["layout"] |= {"yaxis": in_per_cent, "xaxis": _counting("trial", len(sweep.trials))}
        yield Figure("history", "History", words, figure)
    if longest := max((trial.epochs for trial in sweep.trials), default=0):
        figure = _plain(draw.plot_intermediate_values(sweep.study))
        for trace in figure["data"]:
            trace["name"] = trace["name"].replace("Trial", "trial ")
        named = len(figure["data"]) <= COLOURS
        figure["layout"] |= {"yaxis": in_per_cent, "xaxis": _counting("epoch", longest), "showlegend": named}
        yield Figure("learning", "Learning", f"The error after each epoch{_ends(sweep)}.", figure)
    if complete:
        words = "Each field against the error; the colour tells the trial."
        yield Figure("slices", "Slices", words, _slices(_plain(draw.plot_slice(sweep.study, **error))))
    if len(complete) > 1:
        words = "A line per complete trial through what it drew, in the colour of its error."
        lines = _together(_plain(draw.plot_parallel_coordinate(sweep.study, **error)))
        yield Figure("together", "Together", words, lines)
    if importance := importance_of(sweep):
        words = (
            "Share of the variance between the complete trials that each field accounts for (fANOVA). With few trials "
            "it says little."
        )
        bars = {"type": "bar", "orientation": "h", "x": list(importance.values())[::-1], "y": list(importance)[::-1]}
        layout = {"xaxis": {"tickformat": ".0%", "title": {"text": "importance"}, "range": [0, 1]}, "yaxis": {}}
        yield Figure("importance", "Importance", words, {"data": [bars], "layout": layout})


def _ends(sweep: Sweep) -> str:
    """The end of a caption: why a line of the figure "Learning" may end before others."""
    states = {trial.state for trial in sweep.trials}
    reasons = {
        "was pruned": "pruned" in states,
        "is not finished": not states.isdisjoint(("running", "interrupted")),
        "had fewer epochs": "epochs" in sweep.settings.space,
    }
    why = " or ".join(reason for reason, given in reasons.items() if given)
    return f"; a line that ends early {why}" if why else ""


def _counting(what: str, most: int) -> dict[str, Any]:
    """An axis of whole numbers up to `most`."""
    return {"title": {"text": what}, "tick0": 0, "dtick": max(1, most // 10)}


def _slices(figure: dict[str, Any]) -> dict[str, Any]:
    """Optuna's scatter plots, with choices in words, not as Python writes them, and a place for those never drawn."""
    for marker in (trace["marker"] for trace in figure["data"]):
        marker["colorbar"] |= _counting("trial", max(marker["color"], default=0))
    axes = [axis for name, axis in figure["layout"].items() if name.startswith("xaxis") and "categoryarray" in axis]
    for axis in axes:
        axis["range"] = [-0.5, len(axis["categoryarray"]) - 0.5]
    for place, key in [*((trace, "x") for trace in figure["data"]), *((axis, "categoryarray") for axis in axes)]:
        place[key] = [re.sub(r"^(['\"])(.*)\1$", r"\2", x) if isinstance(x, str) else x for x in place[key]]
    return figure


def _together(figure: dict[str, Any]) -> dict[str, Any]:
    """Optuna's parallel coordinates, made for a white page, in the colours of ours: each line by its error.

    (The error is the first axis.)
    """
    for trace in figure["data"]:
        if trace["mode"] == "lines":
            trace |= {"line": {"color": 1 - trace["y"][0], "width": 1.6}, "opacity": 0.8}
    for note in figure["layout"]["annotations"]:
        note["font"] = {"color": "--muted", "size": 11}
    for shape in figure["layout"]["shapes"]:
        shape["line"] = {"color": "--line", "width": 1}
    return figure


def _plain(figure: Any) -> dict[str, Any]:
    """A Plotly figure as values that JSON can hold."""
    content: dict[str, Any] = json.loads(figure.to_json())
    return content


# ---- tables ----------------------------------------------------------------------------------------------------


def _trials(sweep: Sweep) -> str:
    fields = list(sweep.settings.space)
    head = ["trial", "state", "validation error", *fields, "epochs", "seconds"]
    wrong = any(trial.error for trial in sweep.trials)
    lines = []
    for trial in ranked(sweep.trials):
        drawn = [trial.in_words.get(field, "-") for field in fields]
        cells = [trial.number, trial.state, error_of(trial), *drawn, trial.epochs, f"{trial.seconds:,.1f}"]
        body = "".join(f"<td>{unbroken(str(cell))}</td>" for cell in cells)
        body += f'<td class="wide">{escape(trial.error or "")}</td>' if wrong else ""
        mark = ' class="chosen"' if sweep.best and trial.number == sweep.best.number else ""
        lines.append(f'<tr data-trial="{trial.number}"{mark}>{body}</tr>')
    head += ["why it failed"] if wrong else []
    return table_of(head, lines, "Table of trials", of_words=True)


def _space(sweep: Sweep) -> str:
    space, recipe = sweep.settings.space, asdict(sweep.settings.recipe)
    varied = {field: _counted(domain) for field, domain in space.items()}
    fixed = {field: words_of(value) for field, value in recipe.items() if field not in space}
    return f'<p class="sub">Marked: what varied.</p>{columns_of({**varied, **fixed}, [*varied])}'


def _counted(domain: Domain) -> str:
    count = count_of(domain) if isinstance(domain, Range) else None
    return in_words(domain) if count is None else f"{in_words(domain)} ({count} values)"
