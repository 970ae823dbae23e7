"""The page of a report: sentences on runs, and tables; page/report.js draws the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from auxnet import unfinished
from auxnet.page_frame import columns_of, filled, framed, heading_of, line_of, section_of, table_of, tiles_of, unbroken
from auxnet.recipe import METHOD_OF, WHERE, Recipe, words_of
from auxnet.run_data import tested_alike, validated_alike
from auxnet.scores import adjusted_p_values, too_few
from auxnet.unfinished import RunFacts
from auxnet.words import command, first_few, listed, of_each, p_text, per_cent, plural, sentence

COMMAND = "auxnet report"
LINKS = {
    "choose": "Choose",
    "outputs": "Outputs",
    "learning": "Learning",
    "exits": "Early exit",
    "calibration": "Calibration",
    "confusion": "Confusion",
    "gallery": "Gallery",
    "recipe": "Recipe",
}
DOUBTS: tuple[Literal["changed", "seen", "lost", "balanced"], ...] = ("changed", "seen", "lost", "balanced")
"""keys of a run's facts that hold a doubt in words"""


def page(runs: Sequence[RunFacts], within: float) -> str:
    """The whole page; `within` (points above the lowest validation error) is what counts as good enough."""
    several, finished = len(runs) > 1, [run for run in runs if run["finished"]]
    names = " and ".join(dict.fromkeys(run["data"]["name"] for run in runs))
    title = f"{len(runs)} runs on {names}" if several else f"{runs[0]['name']} on {names}"
    learning = filled("learning.html", {"so_far": unfinished.table([run for run in runs if not run["finished"]])})
    recipe = section_of("recipe", "Recipe and provenance", _recipes(runs) + _provenance(runs))
    latency = latency_words(finished)
    parts = {
        "outputs_title": "The runs, output by output" if several else "The outputs",
        "ladder": _ladder(runs, latency) + _over_seeds(finished),
        "learning": learning,
    }
    return framed(
        command=COMMAND,
        title=f"auxnet: {title}",
        eyebrow=eyebrow(runs),
        opening=_headlines(runs, within) + ("" if several else _tiles(runs[0])),
        notes=notes(runs),
        links={name: words for name, words in LINKS.items() if finished or name in ("learning", "recipe")},
        sections=(filled("report.html", parts) if finished else learning) + recipe,
        program="report.js",
        data={"within": within, "latency_words": latency, "runs": [{**run, "val_wrong": None} for run in runs]},
    )


# ---- words -----------------------------------------------------------------------------------------------------


def eyebrow(runs: Sequence[RunFacts]) -> str:
    """What the page is about, in a line."""
    kinds = dict.fromkeys(_kind(run) for run in runs)
    return "; ".join(kinds) if len(kinds) < 3 else f"{len(runs)} runs"


def _kind(run: RunFacts) -> str:
    K = len(run["outputs"] if run["finished"] else run["curves"]["outputs"])
    alone = run["recipe"]["alone"]
    outputs = plural(K, "output") if alone is None else f"output {alone} alone"
    net = f"{run['data']['name']}, {run['network']} with {outputs}"
    return f"{net}, trained {run['method']} for {unfinished.epochs_of(run)}"


def headline(run: RunFacts) -> str:
    """Which output is the smallest that is good enough, in numbers; of an unfinished run, how far it has come."""
    if not run["finished"]:
        return unfinished.headline(run)
    outputs = run["outputs"]
    chosen, deepest = outputs[run["chosen"] - 1], outputs[-1]
    error = f"{per_cent(chosen['val']['error'])} validation error (95 % interval {_interval(chosen['val'])})"
    if run["no_better"] is not None:
        return f"Output {chosen['output']} has {error}; {run['no_better']}."
    if len(outputs) == 1:
        return f"The one output has {error}."
    if run["reason"] is None:  # the errors alone are known
        return (
            f"Output {chosen['output']} of {len(outputs)} is chosen by the errors that the run saved: {error}. "
            "Whether the images can tell it from a smaller one is not known without them."
        )
    doubt = ""
    if run["alike"] is not None:
        smaller, n = outputs[run["alike"] - 1], chosen["val"]["images"]
        share = round(100 * smaller["macs"] / chosen["macs"])
        doubt = f"{n:,} validation images cannot tell it from output {smaller['output']}, with {share} % of the work"
    if chosen is not deepest:
        shares = [f"{round(100 * chosen[key] / deepest[key])} % of the {word}" for key, word in _COSTS]
        return (
            f"Output {chosen['output']} of {len(outputs)} is good enough: {error}, {_above_lowest(chosen, outputs)}, "
            f"with {shares[0]} and {shares[1]} of the whole net." + (f" {doubt}." if doubt else "")
        )
    if doubt:
        return f"Output {chosen['output']}, the deepest, errs least: {error}. But {doubt}."
    nearest = min(row["val"]["error"] for row in outputs[:-1]) - chosen["val"]["error"]
    return (
        f"Only output {chosen['output']}, the deepest, is good enough: {error}, and every smaller one is at least "
        f"{100 * nearest:.1f} points worse."
    )


def _above_lowest(chosen: dict[str, Any], outputs: Sequence[dict[str, Any]]) -> str:
    """How far the error of an output is above the lowest of all."""
    lowest = min(row["val"]["error"] for row in outputs)
    if chosen["val"]["error"] > lowest:
        return f"{100 * (chosen['val']['error'] - lowest):.2f} points above the lowest"
    equal = [f"output {row['output']}" for row in outputs if row is not chosen and row["val"]["error"] == lowest]
    return f"the lowest, tied with {' and '.join(equal)}" if equal else "the lowest of all"


_COSTS = (("params", "parameters"), ("macs", "multiply-adds"))


def notes(runs: Sequence[RunFacts]) -> list[str]:
    """What a reader must know before trusting the figures."""
    apart = _apart(runs)
    notes = [f"These runs are of {apart}: their errors cannot be compared."] if apart else []
    notes += [f"{run['name']}: some figures are missing, as {run['missing']}." for run in runs if run["missing"]]
    notes += [f"{run['name']}: {run[doubt]}." for doubt in DOUBTS for run in runs if run[doubt]]
    notes += [f"{run['name']}: {few}." for run in runs if run["finished"] and (few := too_few(run["data"]["val"]))]
    if not apart and not _validated_alike(runs):
        notes.append("These runs were validated on different images, and tested on the same.")
    return notes


def _apart(runs: Sequence[RunFacts]) -> str | None:
    """What differs in the data of runs, so that their errors cannot be compared; None if they can."""
    tested = {run["data"].get("test_sha256") for run in runs}
    if len(tested) == 1 and all(tested):  # whatever their folders are called
        return None
    if (n := len({Path(run["data"]["name"]) for run in runs})) > 1:  # a folder is the same with a slash behind it
        return f"{n} different data sets"
    alike = tested_alike(run["data"] for run in runs)
    return None if alike else "data that changed in between, tested on different images"


def _validated_alike(runs: Sequence[RunFacts]) -> bool:
    """Whether runs have the same validation images; if the images are not known, whether seed and share are the same.

    (`seed` and `val_fraction` draw the images, unless the data bring validation images of their own.)
    """
    alike = validated_alike({**run["data"], "val_pictures": run["val_pictures"]} for run in runs)
    return len({(run["seed"], run["recipe"]["val_fraction"]) for run in runs}) == 1 if alike is None else alike


def _headlines(runs: Sequence[RunFacts], within: float) -> str:
    finished = [run for run in runs if run["finished"]]
    near = f"within {plural(within, 'point')} of the lowest validation error"
    good = f"Good enough: {near}. Test errors decide nothing here."
    if len(runs) == 1:
        if not finished:
            return f"<h1>{unbroken(headline(runs[0]))}</h1>"
        reason = runs[0]["reason"]
        why = f"{sentence(reason)} " if reason else ""
        return f'<h1>{unbroken(headline(runs[0]))}</h1><p class="sub">{escape(why + good)}</p>'
    lines = "".join(f"<li><strong>{escape(r['name'])}:</strong> {unbroken(headline(r))}</li>" for r in runs)
    first, below = f"{len(runs)} runs, none of them finished.", ""
    if finished:
        below = f'<p class="sub">{escape(good)}</p>'
        errors = [(row["val"]["error"], run["name"], row["output"]) for run in finished for row in run["outputs"]]
        best = min(errors)[0]
        equal: dict[str, list[str]] = {}
        for error, name, k in sorted(errors):
            if error == best:
                equal.setdefault(name, []).append(str(k))
        best_of_each = [f"output{'s' if len(ks) > 1 else ''} {listed(ks)} of {name}" for name, ks in equal.items()]
        of = "" if len(finished) == len(runs) else f", {len(finished)} of them finished"
        first = f"{len(runs)} runs{of}: the lowest validation error is {per_cent(best)}, {first_few(best_of_each)}."
        if several := _apart(finished):
            first = f"{len(runs)} runs of {several}{of}: each is judged on its own."
    apart = f'<p class="sub">{unbroken(said)}</p>' if (said := told_apart(finished)) else ""
    return f'<h1>{unbroken(first)}</h1>{apart}<ul class="headlines">{lines}</ul>{below}'


def told_apart(runs: Sequence[RunFacts]) -> str:
    """Whether validation images tell the best output of all finished runs from the best one of each other run.

    By McNemar's test, adjusted (Holm) for all pairs of runs. Nothing if the runs do not share these images, or the
    images of one are gone.
    """
    if len(runs) < 2 or _apart(runs) or any(run["val_wrong"] is None for run in runs) or not _validated_alike(runs):
        return ""
    of_runs = [(min(run["outputs"], key=lambda row: (row["val"]["error"], row["macs"])), run) for run in runs]
    (best, run_of_best), *others = ranked = sorted(of_runs, key=lambda each: each[0]["val"]["error"])
    wrong = [torch.tensor(run["val_wrong"][row["output"] - 1]) for row, run in ranked]
    adjusted = adjusted_p_values(wrong)
    alike: list[str] = []
    worse: list[str] = []
    for n, (row, run) in enumerate(others, start=1):
        p = adjusted[0, n]
        error = per_cent(row["val"]["error"])
        (worse if p < 0.05 else alike).append(f"output {row['output']} of {run['name']} ({error}, p = {p_text(p)})")
    verdicts = {"cannot be told apart from": alike, "errs less beyond chance than": worse}
    said = " and ".join(f"{verdict} {first_few(rows)}" for verdict, rows in verdicts.items() if rows)
    images = f"On these {best['val']['images']:,} validation images"
    return f"{images} output {best['output']} of {run_of_best['name']} {said}, by McNemar's test (Holm)."


def _tiles(run: RunFacts) -> str:
    if not run["finished"]:
        return unfinished.tiles(run)
    chosen, deepest = run["outputs"][run["chosen"] - 1], run["outputs"][-1]
    tiles = []
    for split, name in (("val", "Validation error"), ("test", "Test error (report only)")):
        worth = chosen[split]
        tiles.append((name, per_cent(worth["error"]), f"95 %: {_interval(worth)}; n = {worth['images']:,}"))
    part = chosen is not deepest
    for key, name in (("params", "Parameters"), ("macs", "Multiply-adds an image")):
        tiles.append((name, f"{chosen[key]:,}", f"whole net: {deepest[key]:,}" if part else ""))
    if chosen["latency"] is not None:
        whole = f"; whole net: {_ms(deepest['latency'])} ms" if part else ""
        tiles.append(("Latency, one image", f"{_ms(chosen['latency'])} ms", f"quartiles {_quartiles(chosen)}{whole}"))
    return tiles_of(tiles, f"Output {chosen['output']}")


def latency_words(runs: Sequence[RunFacts]) -> str:
    """What latency is, and where it was measured; runs that were measured alike share a mention."""
    measured = {run["name"]: run["measured"] for run in runs if run["measured"]}
    joint = " on " if len(set(measured.values())) == 1 else ". "
    how = "Latency: median and quartiles of the model alone on one image, measured for this page"
    return f"{how}{joint}{of_each(measured)}." if measured else ""


# ---- tables ----------------------------------------------------------------------------------------------------


def _ladder(runs: Sequence[RunFacts], latency: str) -> str:
    heads = ("output", "depth", "validation error", "test error", "parameters", "MACs", "latency")
    lines = []
    finished = {r: run for r, run in enumerate(runs) if run["finished"]}
    for r, run in finished.items():
        if len(runs) > 1:
            title = f"{run['name']}: {run['method']}, seed {run['seed']}, {unfinished.epochs_of(run)}"
            lines.append(heading_of(title, len(heads)))
        for row in run["outputs"]:
            time = "-"
            if row["latency"] is not None:
                time = f"{_ms(row['latency'])} ms <small>[{_quartiles(row)}]</small>"
            worth = [f"{per_cent(row[s]['error'])} <small>[{_interval(row[s])}]</small>" for s in ("val", "test")]
            cells = [row["output"], row["depth"], *worth, f"{row['params']:,}", f"{row['macs']:,}", time]
            body = "".join(f"<td>{cell}</td>" for cell in cells)
            mark = ' class="chosen"' if row["output"] == run["chosen"] else ""
            lines.append(f'<tr data-run="{r}" data-output="{row["output"]}"{mark}>{body}</tr>')
    sizes = {
        run["name"]: "n = {val[images]:,} validation and {test[images]:,} test images".format_map(run["outputs"][0])
        for run in finished.values()
    }
    words = f"In brackets beside errors: 95 % Wilson intervals; {of_each(sizes)}. Each output as a model of its own."
    return table_of(heads, lines, "Table of outputs") + f'<p class="under">{escape(f"{words} {latency}".rstrip())}</p>'


def _over_seeds(runs: Sequence[RunFacts]) -> str:
    """Mean and spread of the runs that differ in their seed alone, and were tested alike; nothing if there are none."""
    alike: dict[str, dict[int, RunFacts]] = {}
    twice: list[str] = []
    for run in runs:
        recipe = {key: value for key, value in run["recipe"].items() if key not in ("seed", *WHERE)}
        of_seed = alike.setdefault(repr(recipe), {})
        if run is not of_seed.setdefault(run["seed"], run):
            twice.append(run["name"])
    heads, lines = ("output", "depth", "seeds", "validation error", "test error"), []
    groups = [list(seeds.values()) for seeds in alike.values() if len(seeds) > 1]
    for group in (group for group in groups if not _apart(group)):
        title = f"{group[0]['method']}: {', '.join(run['name'] for run in group)}"
        lines.append(heading_of(title, len(heads)))
        for k, row in enumerate(group[0]["outputs"]):
            cells = [row["output"], row["depth"], len(group)]
            for split in ("val", "test"):
                errors = [run["outputs"][k][split]["error"] for run in group]
                cells.append(f"{per_cent(mean(errors))} \u00b1 {100 * stdev(errors):.2f}")
            lines.append(line_of(cells))
    if not lines:
        return ""
    words = "Runs of one recipe with several seeds: mean and standard deviation of their errors."
    if twice:
        words += f" Left out, as another run has their recipe and their seed: {', '.join(twice)}."
    return table_of(heads, lines, "Over seeds") + f'<p class="under">{escape(words)}</p>'


def _recipes(runs: Sequence[RunFacts]) -> str:
    """The recipe, what departs from the defaults marked; of several runs a table, what differs marked."""
    default = asdict(Recipe())
    if len(runs) == 1:
        fields = {key: said for key in runs[0]["recipe"] if (said := _value(runs[0], key))}
        departs = [key for key, value in fields.items() if value != words_of(default[key])]
        again = escape(command("train", "--config", Path(runs[0]["folder"]) / "recipe.yaml"))
        return (
            f'<p class="sub">Marked: what departs from the defaults. The same again: <code>{again}</code></p>'
            f"{columns_of(fields, departs)}"
        )
    lines = []
    for key in default:
        values = [_value(run, key) for run in runs]
        told = {value for value in values if value}
        mark = ' class="differs"' if len(told) > 1 else ""
        if told - {words_of(default[key])}:
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
            lines.append(f'<tr{mark}><th scope="row">{escape(key)}</th>{cells}</tr>')
    return (
        '<p class="sub">Marked: what differs between the runs. Left out: defaults that all runs share.</p>'
        + table_of(["key", *(run["name"] for run in runs)], lines, "Recipes", of_words=True)
    )


def _value(run: RunFacts, key: str) -> str:
    """A value of a run's recipe in words; nothing for a field of another method, such as `mode` in pair-wise."""
    recipe = run["recipe"]
    return words_of(recipe[key]) if METHOD_OF.get(key, recipe["method"]) == recipe["method"] else ""


def _provenance(runs: Sequence[RunFacts]) -> str:
    parts = []
    for run in runs:
        items = {"run": run["folder"], "seed": str(run["seed"])}
        items["time"] = f"{run['wall_seconds']:,.0f} s, {unfinished.epochs_of(run)}"
        items |= _made_on(run) if run["finished"] else {}
        title = "Provenance" if len(runs) == 1 else f"Provenance of {run['name']}"
        parts.append(f"<h3>{escape(title)}</h3>{columns_of(items)}")
    return "".join(parts)


def _made_on(run: RunFacts) -> dict[str, str]:
    """Data, device and programs of a finished run."""
    device, images = run["device"], run["data"]
    return {
        "images": f"{images['train']:,} training, {images['val']:,} validation, {images['test']:,} test",
        "device": f"{device['name']} ({device['type']}), {device['threads']} of {device['cores']} threads",
        "commit": run["commit"] or "not known (not run from git)",
        **run["versions"],
    }


def _interval(worth: dict[str, Any]) -> str:
    return f"{100 * worth['low']:.1f} \u2013 {100 * worth['high']:.1f}"


def _quartiles(row: dict[str, Any]) -> str:
    return f"{_ms(row['latency_low'])} \u2013 {_ms(row['latency_high'])}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.2f}"
