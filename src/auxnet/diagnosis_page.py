"""The page of a diagnosis: its sentences and its tables; page/diagnosis.js draws the figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from auxnet.page_frame import figure_of, framed, line_of, section_of, table_of, unbroken
from auxnet.words import sentence

COMMAND = "auxnet diagnose"
SHOWN = ("name", "method", "ends", "shares", "probes", "epochs")
"""keys of a diagnosis that the figures are drawn from"""

LINKS = {"shares": "Supervision", "epochs": "Over the epochs", "probes": "Probes", "gradients": "Gradients"}
SHARES = (
    "shares",
    "How much of the gradient is supervision that arrives unchanged",
    "At each layer: the norm of the loss's gradient at the output above, divided by the norm of the gradient that "
    "arrives here (joint: of all outputs above, weighted; else a line per output, from its own layer down). 1: the "
    "gradient arrives unchanged; towards 0: what the layers in between add to it drowns the supervision.",
    '<div class="switches"><fieldset id="scale" class="switch"><legend>Scale</legend></fieldset></div>',
)
EPOCHS = (
    "epochs",
    "How the share moved in training",
    "The share of supervision at the shallowest layer after each epoch (auxnet train --diagnose).",
)
PROBES = (
    "probes",
    "What a linear classifier reads off each layer",
    "Accuracy, on validation images, of logistic regression on the feature after each layer, averaged over its "
    "positions; bars are 95 % intervals. Open markers: layers with an output.",
)
GRADIENTS = (
    "gradients",
    "The outputs' gradients in the parameters of each segment",
    "Of each output's own loss, not weighted; a mean over the batches. Cosine 1: two outputs pull the same way; 0: they"
    " have nothing to do with each other; below 0: they work against each other.",
)

RunDiagnosis = dict[str, Any]
"""of a run, as `diagnosing.diagnosis_of_run` returns it"""


def page(runs: Sequence[RunDiagnosis], headline: str) -> str:
    """The whole page, under a headline."""
    shown = {"shares": True, "gradients": True} | {key: any(run[key] for run in runs) for key in ("epochs", "probes")}
    name, title, words = GRADIENTS
    tables = "".join(_gradients(run, len(runs) > 1) for run in runs)
    figures = "".join(figure_of(*figure) for figure in (SHARES, EPOCHS, PROBES) if shown[figure[0]])
    return framed(
        command=COMMAND,
        title=f"auxnet diagnosis: {f'{len(runs)} runs' if len(runs) > 1 else runs[0]['name']}",
        eyebrow="; ".join(dict.fromkeys(f"{run['name']}: {run['data']}, {run['method']}" for run in runs)),
        opening=f"<h1>{unbroken(sentence(headline))}</h1>" + "".join(_sentences(run, headline) for run in runs),
        links={name: words for name, words in LINKS.items() if shown[name]},
        sections=figures + section_of(name, title, f'<p class="sub">{escape(words)}</p>{tables}'),
        program="diagnosis.js",
        data=[{key: run[key] for key in SHOWN} for run in runs],
        measured=" ".join(dict.fromkeys(_measured(run) for run in runs)),
    )


def _sentences(run: RunDiagnosis, headline: str) -> str:
    """The sentences of a run, under its name unless the headline is its own."""
    more = "".join(f"<li>{unbroken(sentence(said))}</li>" for said in run["said"] if said != headline)
    name = "" if headline in run["said"] else f"<h3>{escape(run['name'])}</h3>"
    return f'{name}<ul class="headlines">{more}</ul>'


def _gradients(run: RunDiagnosis, named: bool) -> str:
    """Tables of a run's gradients: norms by output and segment, cosines by pair of outputs and segment."""
    K = len(run["depths"])
    segments = range(1, K + 1)
    norm = {(row["output"], row["segment"]): row["norm"] for row in run["norms"]}
    cosine = {(row["output"], row["other"], row["segment"]): row["cosine"] for row in run["agreements"]}
    norms = [
        [f"{k} (layer {run['ends'][k - 1]})", *(_number(norm.get((k, j)), "4g") for j in segments)] for k in segments
    ]
    cosines = [
        [f"{a} and {b}", *(_number(cosine.get((a, b, j)), "3f") for j in (*segments, None))]
        for a in segments
        for b in range(a + 1, K + 1)
    ]
    title = f"<h3>{escape(run['name'])}: {escape(run['method'])}</h3>" if named else ""
    heads = [f"segment {j}" for j in segments]
    return title + "".join(
        table_of((first, *heads, *more), [line_of(row) for row in rows], first)
        for first, more, rows in (
            ("norm of the gradient of output", (), norms),
            ("cosine between outputs", ("all they share",), cosines),
        )
        if rows
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:.{form}}"


def _measured(run: RunDiagnosis) -> str:
    device = run["device"]
    probed = run["probes"][0] if run["probes"] else None
    probes = (
        f"; probes on {probed['trained_on']:,} training and {probed['images']:,} validation images" if probed else ""
    )
    return (
        f"{run['name']}: gradients on {run['images']:,} training images of the last epoch, in batches of "
        f"{run['batch_size']}{probes}; {device['name']}, torch {run['versions']['torch']}; weights "
        f"{run['weights_sha256'][:12]}."
    )
