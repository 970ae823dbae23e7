"""The report: what it gathers equals what is counted by hand, and the page works in a real headless Chromium."""

import base64
import io
import itertools
import json
import math
import re
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import auxnet
from auxnet import examining, page_frame, report, report_page, rundir, train
from auxnet.cli import main
from auxnet.data import Split, load_data
from auxnet.files import write_json
from auxnet.recipe import Recipe, read_run_recipe, write_recipe
from auxnet.scores import Predictions
from auxnet.words import command
from browser import DARK, check_themes, chromium, opened, theme_of

EVIL = "<script>alert(1)</script>"
NO_FIGURES = """const Plotly = {  // which itself takes seconds to be read and to draw
  react: async (place, data, layout) => { Object.assign(place, { data, layout, drawn: place.clientHeight }); },
  purge(place) { delete place.data; },
};"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run on digits, and what the module's tests read of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train.fit(Recipe(depth=8, outputs=3, epochs=2, batch_size=256, threads=1), folder)
    return folder


@pytest.fixture(scope="module")
def gathered(run):
    return report.facts_of_run(run, "tiny")


@pytest.fixture
def going_on(run, tmp_path):
    """The run as it would be after 2 of 5 epochs, while the lines of the third are being written."""
    folder = tmp_path / "going on"
    shutil.copytree(run, folder)
    for name in ("summary.json", "config.json", "model.safetensors", "report.html"):
        (folder / name).unlink(missing_ok=True)
    write_recipe(replace(read_run_recipe(folder), epochs=5), folder / "recipe.yaml")
    *_, last = rundir.read_metrics(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**last, "epoch": 3, "split": "train", "output": 1}) + '\n{"epoch": 3, "spl')
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens runs as a page and fails the test if the console or the network hears of anything."""
    path = tmp_path / "page.html"
    with ExitStack() as pages:

        def open_it(runs, width=1280, scheme="light", figures=True):
            with pytest.MonkeyPatch.context() as patched:
                if not figures:
                    patched.setattr("plotly.offline.get_plotlyjs", lambda: NO_FIGURES)
                path.write_text(report_page.page(runs, 0.5), encoding="utf-8")
            return pages.enter_context(opened(browser, path, width, scheme))

        yield open_it


def move(page, slider, position):
    page.locator(f"#{slider}").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})); }", position
    )


def shown_limits(page):
    """The limits as the page has them, None for none; and the output that it chose."""
    limits = {}
    for name in ("within", "max-params", "max-macs", "max-latency"):
        value = page.locator(f"#{name}-value").get_attribute("data-value")
        limits[name] = None if value == "Infinity" else float(value)
    return limits, page.locator("#answer").get_attribute("data-output")


def chosen_by_hand(outputs, limits):
    """Every output that no budget forbids, the best of them, and the one of fewest MACs near enough to it."""
    allowed = []
    for row in outputs:
        costs = (("max-params", "params"), ("max-macs", "macs"), ("max-latency", "latency"))
        if not any(limits[flag] is not None and row[key] > limits[flag] for flag, key in costs):
            allowed.append((row["macs"], row["val"]["error"], row["output"]))
    if not allowed:
        return "none"
    best = min(error for _, error, _ in allowed)
    return str(min(a for a in allowed if a[1] <= best + limits["within"] / 100 + 1e-9)[2])


# ---- what is gathered ------------------------------------------------------------------------------------------


def test_errors_and_confusion_are_those_counted_image_by_image(run, gathered):
    recipe = Recipe(depth=8, outputs=3)
    dataset = load_data(recipe)
    net = auxnet.load(run)
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    images = ((dataset.test.images.float() - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        answers = [logits.argmax(1).tolist() for logits in net(images)]
    labels = dataset.test.labels.tolist()
    for k, answer in enumerate(answers):
        wrong = sum(a != b for a, b in zip(answer, labels, strict=True))
        assert gathered["outputs"][k]["test"]["error"] == pytest.approx(wrong / len(labels))
        counts = gathered["confusion"][k]["counts"]
        assert counts == [
            [sum(t == i and a == j for t, a in zip(labels, answer, strict=True)) for j in range(10)] for i in range(10)
        ]
        pairs = {(i, j): counts[i][j] for i in range(10) for j in range(10) if i != j and counts[i][j]}
        worst = gathered["confusion"][k]["pairs"]
        assert all(pairs[i, j] == count for i, j, count in worst)
        assert [count for *_, count in worst] == sorted(pairs.values(), reverse=True)[: len(worst)]
        assert len(worst) == min(len(pairs), examining.MOST_PAIRS)
        assert sum(b["count"] for b in gathered["calibration"][k]["bins"]) == len(labels)
    deeper = {
        n
        for n, label in enumerate(labels)
        if any(answers[k][n] != label and all(deep[n] == label for deep in answers[k + 1 :]) for k in range(2))
    }
    assert gathered["gallery_of"] == len(deeper)
    assert {item["index"] for item in gathered["gallery"]} <= deeper


def test_the_gallery_holds_only_images_that_deeper_outputs_alone_get_right():
    right, wrong = [5.0, 0.0], [0.0, 5.0]  # label 0 throughout; a row per output, a column per image
    logits = torch.tensor([[wrong, right, wrong, wrong], [right, wrong, wrong, right], [right, right, wrong, wrong]])
    test = Predictions(logits, torch.zeros(4, dtype=torch.int64))
    assert examining.only_deeper(test) == [(0, 2), (1, 3)]
    split = Split(torch.zeros(4, 5, 6, 3, dtype=torch.uint8), test.labels)
    items = examining.gallery(test, split, examining.only_deeper(test))
    assert [(item["index"], item["from"], [a for a, _ in item["answers"]]) for item in items] == [
        (0, 2, [1, 0, 0]),
        (1, 3, [0, 1, 0]),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_embedded_unchanged(channels):
    from PIL import Image

    image = torch.randint(256, (7, 9, channels), dtype=torch.uint8)
    kind, _, content = examining.png(image).partition(",")
    back = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/png;base64"
    assert torch.frombuffer(bytearray(back.tobytes()), dtype=torch.uint8).view(7, 9, channels).equal(image)


def test_the_choice_never_looks_at_the_test_set(run, gathered, monkeypatch):
    def absurd(recipe, *seen):
        dataset = load_data(recipe, *seen)
        dataset.test.labels.copy_(dataset.test.labels.roll(1))
        return dataset

    monkeypatch.setattr("auxnet.run_data.load_data", absurd)
    again = report.facts_of_run(run, "tiny")
    assert again["outputs"][2]["test"]["error"] != gathered["outputs"][2]["test"]["error"]
    assert (again["chosen"], again["reason"]) == (gathered["chosen"], gathered["reason"])


@pytest.mark.long
def test_a_run_whose_images_are_gone_is_still_shown(run, tmp_path, open_page, gathered):
    lost = tmp_path / "lost"
    shutil.copytree(run, lost)
    write_recipe(replace(read_run_recipe(lost), data=f"{tmp_path}/gone"), lost / "recipe.yaml")
    made = report.write_report([lost])
    assert made.missing
    assert "no such folder" in made.missing[0]
    facts = report.facts_of_run(lost, "lost")
    assert [r["val"]["error"] for r in facts["outputs"]] == [r["val"]["error"] for r in gathered["outputs"]]
    assert facts["chosen"] == gathered["chosen"]
    page = open_page([facts], figures=False)
    assert "no such folder" in page.locator(".note").inner_text()
    assert "Not shown" in page.locator("#confusion-plot").inner_text()
    assert page.locator("#max-latency").is_disabled()
    assert page.evaluate("byId('front-plot').data.length") > 3


@pytest.mark.long
def test_python_writes_the_report_of_a_run_or_of_several_by_path_or_as_fit_gives_them(run, tmp_path):
    one = auxnet.write_report(str(run), str(tmp_path / "one.html"))
    finished = train.Run(shutil.copytree(run, tmp_path / "other"), auxnet.load(run), {})
    several = auxnet.write_report(iter([finished, run]), tmp_path / "several.html")
    assert (len(one.headlines), len(several.headlines)) == (1, 2)
    assert one.path.read_text().lower().startswith("<!doctype html>")
    with pytest.raises(TypeError, match="a run is the path of its directory, or what fit returned, got Module"):
        auxnet.write_report([torch.nn.Module(), run], tmp_path / "no.html")


def test_a_report_with_images_is_not_replaced_by_one_without(run, tmp_path, capsys):
    lost = tmp_path / "lost"
    shutil.copytree(run, lost)
    assert main(["report", str(lost)]) == 0
    before = (lost / "report.html").read_bytes()
    write_recipe(replace(read_run_recipe(lost), data=f"{tmp_path}/gone"), lost / "recipe.yaml")
    assert main(["report", str(lost)]) == 2
    assert "shows images, which a new one would lack, and is left alone" in capsys.readouterr().err
    assert (lost / "report.html").read_bytes() == before
    (lost / "report.html").unlink()
    for _ in range(2):  # one without images is replaced
        assert main(["report", str(lost)]) == 0


def test_the_headline_calls_nothing_good_enough_that_is_no_better_than_guessing(run, gathered, tmp_path):
    assert gathered["no_better"] is None
    assert "good enough" in report_page.headline({**gathered, "alike": None})
    lucky = tmp_path / "lucky"  # its images are gone: what is known is what it saved
    shutil.copytree(run, lucky)
    write_recipe(replace(read_run_recipe(lucky), data=f"{tmp_path}/gone"), lucky / "recipe.yaml")
    summary = json.loads((lucky / "summary.json").read_text())
    for row in summary["last"]:
        row["val_error"] = 0.88
    summary["data"]["guessing"] = 0.9
    write_json(lucky / "summary.json", summary)
    said = report_page.headline(report.facts_of_run(lucky, "lucky"))
    assert said.startswith("Output 1 has 88.00 % validation error")
    told = (
        r"that is not shown on \d+ images to be better than always predicting the most frequent class \(90.00 % error\)"
    )
    assert re.search(told, said)


def test_the_gallery_takes_turns_over_classes(monkeypatch):
    labels = torch.tensor([0] * 40 + [1] * 3 + [2] * 40)
    logits = torch.zeros(2, 83, 3)
    logits[0, torch.arange(83), (labels + 1) % 3] = 1.0  # wrong
    logits[1, torch.arange(83), labels] = 1.0
    test, split = Predictions(logits, labels), Split(torch.zeros(83, 4, 4, 1, dtype=torch.uint8), labels)
    shown = [each["label"] for each in examining.gallery(test, split, examining.only_deeper(test))]
    assert [shown.count(c) for c in range(3)] == [11, 3, 10]


@pytest.mark.parametrize(("outputs", "classes"), [(5, 10), (5, 100)])
def test_the_gallery_takes_turns_over_outputs_before_classes(outputs, classes):
    """Two images of each class for each output from which on the answer is right."""
    kinds = [(k, c) for k in range(2, outputs + 1) for c in range(classes) for _ in range(2)]
    labels = torch.tensor([c for _, c in kinds])
    logits = torch.zeros(outputs, len(kinds), classes)
    for n, (right_from, c) in enumerate(kinds):
        for k in range(1, outputs + 1):
            logits[k - 1, n, c if k >= right_from else (c + 1) % classes] = 1.0
    test, split = Predictions(logits, labels), Split(torch.zeros(len(kinds), 4, 4, 1, dtype=torch.uint8), labels)
    shown = examining.gallery(test, split, examining.only_deeper(test))
    assert [[each["from"] for each in shown].count(k) for k in range(2, outputs + 1)] == [6] * 4
    for k in range(2, outputs + 1):
        assert len({each["label"] for each in shown if each["from"] == k}) == 6


def test_only_where_the_step_size_falls_to_half_or_less_is_marked():
    def drops(*sizes):
        rows = [{"epoch": e, "split": "val", "output": 1, "depth": 8, "lr": lr} for e, lr in enumerate(sizes, start=1)]
        return report.curves(rows)["drops"]

    assert drops(0.1, 0.1, 0.01, 0.01, 0.005) == [3, 5]
    assert drops(0.02, 0.05, 0.1, 0.1) == []  # a warm-up rises
    cosine = [0.1 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(30)]
    assert len(drops(*cosine)) <= 2  # its last steps


def test_early_exit_is_drawn_on_validation_and_what_exits_json_does_to_test_images_beside_it(
    run, gathered, tmp_path, open_page
):
    solved = tmp_path / "solved"
    shutil.copytree(run, solved)
    auxnet.solve_exits(solved, max_error_increase=0.2, points=2)
    facts = report.facts_of_run(solved, "solved")
    assert gathered["exits"]["solved"] is None
    assert facts["exits"]["points"] == gathered["exits"]["points"]
    content = json.loads((solved / "exits.json").read_text())
    assert facts["exits"]["solved"]["val"]["error"] == content["val"]["error"]
    assert facts["exits"]["solved"]["macs"] == content["val"]["mean_cost"]
    (solved / "exits.json").write_text("{}")
    damaged = report.facts_of_run(solved, "solved")["exits"]
    assert damaged["solved"] is None
    assert f"is not shown: {solved}/exits.json is damaged or of another" in damaged["words"]
    assert f"; `auxnet exits {solved}` makes it again" in damaged["words"]
    page = open_page([facts | {"exits": damaged}], figures=False)
    assert page.locator("#exits-note code").all_inner_texts() == ["auxnet exits", f"auxnet exits {solved}"]
    assert "`" not in page.locator("#exits-note").inner_text()
    for runs, curves in (([facts], 1), ([facts, gathered], 2)):
        page = open_page(runs, figures=False)
        drawn = page.locator("#exits-plot").evaluate(
            "(plot) => plot.data.map((t) => ({"
            "name: t.name, mode: t.mode, x: [...t.x], y: [...t.y], bar: t.error_y, hover: [t.text].flat().join()}))"
        )
        lines = [trace for trace in drawn if trace["mode"] == "lines+markers"]
        assert len(lines) == curves
        for trace in lines:
            assert trace["y"] == pytest.approx([100 * point["val"]["error"] for point in facts["exits"]["points"]])
            assert "(test " in trace["hover"]
        (ring,) = [trace for trace in drawn if trace["name"].endswith("exits.json")]
        assert ring["y"] == pytest.approx([100 * content["val"]["error"]])
        alone = [trace["y"][0] for trace in drawn if trace["name"].endswith("one output alone")][:3]
        assert alone == pytest.approx([100 * row["val"]["error"] for row in facts["outputs"]])
        test, seen = content["test"], page.locator("#exits-note").text_content()
        (mark,) = [trace for trace in drawn if trace["name"].endswith("exits.json on test")]
        assert (mark["x"], mark["y"]) == ([test["mean_cost"]], pytest.approx([100 * test["error"]]))
        low, high = test["error_interval"]
        bar = [mark["y"][0] - mark["bar"]["arrayminus"][0], mark["y"][0] + mark["bar"]["array"][0]]
        assert bar == pytest.approx([100 * low, 100 * high])
        assert f"{100 * test['error']:.2f} % ({100 * low:.1f} .. {100 * high:.1f}) on test" in seen
        assert content["notes"]
        assert all(note.replace("`", "")[1:] in seen for note in content["notes"])


def test_the_headline_does_not_call_an_output_the_only_one_by_luck(gathered):
    *_, (before, last) = zip(gathered["outputs"], gathered["outputs"][1:], strict=False)
    facts = {**gathered, "chosen": last["output"], "alike": before["output"]}
    share = round(100 * before["macs"] / last["macs"])
    n = last["val"]["images"]
    said = report_page.headline(facts)
    assert f"{n} validation images cannot tell it from output 2, with {share} % of the work" in said
    assert "only" not in said.lower()
    assert "Only output 3, the deepest, is good enough" in report_page.headline({**facts, "alike": None})


def tied(gathered):
    """A report's facts in which the first of three outputs is chosen, with the error of the deepest."""
    outputs = [json.loads(json.dumps(row)) for row in gathered["outputs"]]
    for row, error in zip(outputs, (0.1, 0.3, 0.1), strict=True):
        row["val"]["error"] = error
    return {**gathered, "outputs": outputs, "chosen": 1, "alike": None}


def test_an_output_that_ties_with_another_is_not_called_the_lowest_of_all(gathered):
    facts = tied(gathered)
    assert "the lowest, tied with output 3, with" in report_page.headline(facts)
    page = report_page.page([facts, {**facts, "name": "other"}], 0.5)
    told = "outputs 1 and 3 of other; outputs 1 and 3 of tiny."
    assert f"2 runs: the lowest validation error is 10.00 %, {told}" in page.replace("&nbsp;", " ")


@pytest.mark.long
def test_the_panel_names_what_ties_and_a_phone_shows_the_errors_of_every_output(gathered, open_page):
    page = open_page([tied(gathered)], width=390, figures=False)
    told = page.locator("#reason").inner_text()
    assert told.startswith("It has the lowest validation error of all, tied with output 3.")  # there is no smaller one
    for cell in page.locator("#outputs tr[data-output] td:nth-child(-n+4)").all():  # the others are scrolled to
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 390 - 20


def test_data_are_the_same_in_a_folder_with_a_slash_behind_its_name_and_in_one_whose_test_images_are(gathered):
    def of(name, tested):
        return {**gathered, "data": {**gathered["data"], "name": name, "test_sha256": tested}}

    def said(*names, tested=("", "")):
        runs = [of(*each) for each in zip(names, tested, strict=True)]
        return "different data sets" in " ".join(report_page.notes(runs))

    assert not said("pictures", "pictures/")
    assert not said("pictures", "copied", tested=("a", "a"))
    for tested in (("", ""), ("a", ""), ("a", "b"), (None, None)):  # which of runs that are not finished is not known
        assert said("pictures", "others", tested=tested)


def test_runs_of_several_data_sets_are_judged_each_on_its_own(gathered):
    other = json.loads(json.dumps(gathered)) | {"name": "second", "missing": "its images are gone"}
    other["data"] |= {"name": "others", "test_sha256": "of others"}
    other["epochs"]["last"] = 1
    for row in other["outputs"]:
        row["val"]["images"] = 7
    html = report_page.page([gathered, other], 0.5)
    assert "<h1>2 runs of 2 different data sets: each is judged on its own.</h1>" in html
    assert "lowest validation error is" not in html.split("</h1>")[0]
    assert report_page.notes([gathered, other])[0].startswith("These runs are of 2 different data sets")
    assert "second: n = 7 validation" in html
    assert "1 epochs" not in html


def test_fields_of_another_method_are_no_part_of_a_recipe_and_no_difference(gathered):
    def shown(*recipes):
        runs = [{**gathered, "recipe": {**gathered["recipe"], **recipe}} for recipe in recipes]
        page = report_page._recipes(runs)
        return {key: f">{key}<" in page for key in ("mode", "method")}

    pairwise, fused = {"method": "pairwise", "mode": "live"}, {"method": "multiway", "mode": "fused"}
    assert shown({**pairwise, "seed": 1}, {**pairwise, "mode": "fused"}) == {"mode": False, "method": True}
    assert shown(pairwise) == {"mode": False, "method": True}
    assert shown(fused) == shown(fused, pairwise) == {"mode": True, "method": True}
    row = next(
        row
        for row in report_page._recipes(
            [{**gathered, "recipe": {**gathered["recipe"], **each}} for each in (fused, pairwise)]
        ).split("<tr")
        if ">mode<" in row
    )
    assert row.endswith("<td>fused</td><td></td></tr>")
    assert "differs" not in row


def test_runs_that_were_tested_on_different_images_are_not_compared(gathered):
    def said(*tested):
        runs = [{**gathered, "data": {**gathered["data"], **each}} for each in tested]
        return "tested on different images" in " ".join(report_page.notes(runs))

    one, other = ({"test_sha256": name, "resize": [8, 8]} for name in "ab")
    assert said(one, other)
    assert not said(one, one)
    assert not said({**one, "test_sha256": ""}, other)  # not known
    assert not said(one, {**other, "resize": [9, 9]})  # the same images, perhaps
    assert not said(one, {**other, "fit": "pad"})
    assert said(one, {**other, "fit": "crop"})  # as all were before there was a choice


def test_runs_that_were_validated_on_different_images_are_said_so_and_no_others(gathered):
    def said(*validated, seeds=(0, 1)):
        runs = [
            {**gathered, "seed": seed, "data": {**gathered["data"], **each}}
            for each, seed in zip(validated, seeds, strict=True)
        ]
        return "validated on different images" in " ".join(report_page.notes(runs))

    one, other = ({"val_sha256": name, "resize": [8, 8]} for name in "ab")
    assert not said(one, one)  # a val/ of their own, whatever the seed
    assert not said(one, {**other, "resize": [9, 9]})  # the same pictures
    assert said(one, other)
    assert said(one, other, seeds=(0, 0))
    assert not said(one, {**other, "fit": "pad"}, seeds=(0, 0))  # not known to be others
    gathered = {**gathered, "val_pictures": None}
    unknown = {"val_sha256": None}  # of runs that are not finished: by what draws the images
    assert said(unknown, one)
    assert not said(unknown, one, seeds=(0, 0))


def test_beside_the_lowest_error_of_several_runs_it_is_said_whether_their_images_tell_it_from_the_others(gathered):
    def of(name, *mistakes, **data):
        """A run whose last output errs on the first images, as many as are given, and whose others err on all."""
        n, K = gathered["outputs"][0]["val"]["images"], len(gathered["outputs"])
        wrong = [[True] * n] * (K - 1) + [[i in mistakes for i in range(n)]]
        errors = [sum(each) / n for each in wrong]
        outputs = [{**o, "val": {**o["val"], "error": e}} for o, e in zip(gathered["outputs"], errors, strict=True)]
        data = {**gathered["data"], **data}
        return {**gathered, "name": name, "outputs": outputs, "val_wrong": wrong, "data": data}

    best, near, far = of("best", 0, 1), of("near", 0, 2, 3, 4, 5), of("far", *range(1, 30))
    # Images on which one alone errs: 1 and 4 of near, 1 and 28 of far; 2 x the two-sided binomial tail for far.
    p = [2 * sum(math.comb(n, k) for k in (0, 1)) / 2**n for n in (5, 29)]
    page = report_page.page([far, near, best], 0.5)
    assert (
        "On these 145 validation images output 3 of best cannot be told apart from output 3 of near "
        f"(3.45&nbsp;%, p = {p[0]:.2g}) and errs less beyond chance than output 3 of far (20.00&nbsp;%, "
        f"p = {3 * p[1]:.2g}), by McNemar&#x27;s test (Holm)."  # of three pairs
    ) in page
    assert '"val_wrong":null' in page
    said = report_page.told_apart
    assert said([best, near]).startswith("On these 145 validation images output 3 of best cannot be told apart")
    smaller = of("smaller", 0, 2, val_sha256="0", resize=[4, 4])  # the same pictures
    assert said([best, smaller]).startswith("On these 145 validation images output 3 of best cannot be told apart")
    others = [{**smaller, "val_pictures": "0"}, {**near, "val_wrong": None}]
    assert [said([best, each]) for each in others] == [said([best]), ""] == ["", ""]


def test_latency_is_measured_as_select_measures_it(run, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    shutil.copytree(run, folder)
    write_recipe(replace(read_run_recipe(folder), threads=None, device="cpu"), folder / "recipe.yaml")
    places = []

    def noted(net, shape, batch_sizes, **more):
        places.append((next(net.parameters()).device, torch.get_num_threads(), shape, batch_sizes, more.get("threads")))
        return auxnet.latency.latencies(net, shape, batch_sizes, seconds=0.01)

    monkeypatch.setattr("auxnet.machine.cores", lambda: 3)
    for module in ("examining", "selection"):
        monkeypatch.setattr(f"auxnet.{module}.latencies", noted)
    torch.set_num_threads(3)
    facts = report.facts_of_run(folder, "a")
    choice = auxnet.select(folder, max_latency=1000)
    ours, theirs = places
    assert ours == theirs
    assert ours[1] == 3
    assert facts["measured"] == choice.measured_on == "cpu, 3 threads"


def test_a_recipes_device_is_not_exchanged_for_another(run, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(run, folder)
    write_recipe(replace(read_run_recipe(folder), device="cuda:7"), folder / "recipe.yaml")
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used here"):
        report.facts_of_run(folder, "a")
    there = report.facts_of_run(folder, "a", device="cpu", threads=1)
    assert there["select"] == f"auxnet select {folder} --device cpu --threads 1"


def test_a_latency_is_shown_with_its_quartiles(gathered, open_page):
    times = {"latency": 1.64, "latency_low": 1.6, "latency_high": 123.4}
    page = open_page([{**gathered, "outputs": [{**row, **times} for row in gathered["outputs"]]}], figures=False)
    assert "quartiles 1.60 \u2013 123" in page.locator(".tiles").inner_text()
    assert "1.64 ms [1.60 \u2013 123]" in page.locator("#outputs tr[data-output]").first.inner_text()
    assert page.locator("#costs dd").last.inner_text().startswith("1.64 ms [1.60 \u2013 123]")


@pytest.mark.long
def test_how_latency_was_measured_is_said_once(gathered, open_page):
    def of(name, measured):
        return {**gathered, "name": name, "measured": measured}

    here, there = "cpu, 1 thread", "cpu, 2 threads"
    runs = [of("a", here), of("b", here), of("c", there)]
    assert report_page.latency_words([]) == report_page.latency_words([of("a", None)]) == ""
    said = report_page.latency_words(runs[:2])
    how = "Latency: median and quartiles of the model alone on one image, measured for this page"
    assert said == f"{how} on {here}."
    both = f"{how}. a and b: {here}; c: {there}."
    page = open_page(runs)
    page.locator("#axis input[value=latency]").check()
    for place in ("#outputs", "#front-note"):
        text = page.locator(place).inner_text()
        assert both in text
        assert text.count("Latency:") == 1


# ---- of a run that is not finished -----------------------------------------------------------------------------


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is(going_on, open_page, capsys):
    rows = [row for row in rundir.read_metrics(going_on) if row["epoch"] == 2 and row["split"] == "val"]
    best = min(rows, key=lambda row: row["error"])
    said = f"after epoch 2 of 5 the lowest validation error is {100 * best['error']:.2f} %, output {best['output']}."
    assert main(["report", str(going_on)]) == 0
    out = capsys.readouterr().out
    assert f"Not finished: {said}" in out
    assert f"`auxnet train --out '{going_on}' --resume` goes on with it" in out
    facts = report.facts_of_run(going_on, "going on")
    assert facts["curves"]["epochs"] == [1, 2]
    page = open_page([facts], width=390)
    assert said in page.locator("h1").inner_text().replace("\xa0", " ")
    assert "it is not finished (2 of 5 epochs are done)" in page.locator(".note").inner_text()
    assert page.locator(".note code").inner_text() == f"auxnet train --out '{going_on}' --resume"
    drawn = page.locator("#learning-plot").evaluate("(plot) => plot.data.map((t) => ({x: [...t.x], y: [...t.y]}))")
    assert [trace["x"] for trace in drawn] == [[1, 2]] * 3
    assert [trace["y"][-1] for trace in drawn] == pytest.approx([100 * row["error"] for row in rows])
    sections = page.locator("main section").evaluate_all("all => all.map((s) => s.id)")
    assert sections == ["headline", "learning", "recipe"]
    assert page.locator("nav a").count() == 2
    assert f"{rows[0]['loss']:.4f}" in page.locator("#learning table").inner_text()
    assert f"auxnet train --config '{going_on}/recipe.yaml'" in page.locator("#recipe code").inner_text()
    page.locator("#curve input[value=train_loss]").check()
    assert page.locator("#learning-plot .ytitle").text_content() == "training loss (nats)"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.long
def test_finished_and_unfinished_runs_are_shown_together(going_on, gathered, open_page):
    facts = report.facts_of_run(going_on, "going on")
    page = open_page([facts, gathered, {**gathered, "name": "third"}])
    assert page.locator("h1").inner_text().startswith("3 runs, 2 of them finished: the lowest validation error is ")
    assert "going on: Not finished: after epoch 2 of 5" in page.locator(".headlines").inner_text()
    assert page.locator("#learning-plot .legend .traces").count() == 3
    assert page.locator("#run option").all_inner_texts() == ["tiny", "third"]
    page.locator("#run").select_option("2")
    limits, chosen = shown_limits(page)
    assert chosen == chosen_by_hand(gathered["outputs"], limits)
    assert page.locator("#outputs tr.chosen").get_attribute("data-run") == "2"
    assert "Not finished: going on (2 of 5 epochs)." in page.locator("#learning-note").inner_text()
    page = open_page([facts, {**facts, "name": "other"}])
    assert page.locator("h1").inner_text() == "2 runs, none of them finished."
    assert page.locator("#learning-plot .legend .traces").count() == 2
    assert page.locator("#learning tbody tr.run").count() == 2


def test_a_run_without_a_whole_epoch_is_refused(going_on, capsys):
    first = (going_on / "metrics.jsonl").read_text().splitlines()[:5]  # of 6: the last output is not there yet
    (going_on / "metrics.jsonl").write_text("\n".join(first))
    assert main(["report", str(going_on)]) == 2
    assert "is not finished: `auxnet train" in capsys.readouterr().err


# ---- where it is written ---------------------------------------------------------------------------------------


def test_the_command_writes_the_report_and_says_what_it_found(run, capsys):
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "good enough" in said
    assert "95 % interval" in said
    assert page_frame.is_ours(run / "report.html", "auxnet report")
    assert main(["report", str(run), "--out", str(run / "report.html")]) == 0


def test_what_is_not_a_report_is_never_overwritten(run, tmp_path, capsys):
    own, recipes = tmp_path / "own", tmp_path / "recipes"
    shutil.copytree(run, own)
    recipes.mkdir()
    (recipes / "recipe.yaml").write_text("depth: 8\n")  # written by hand, for train --config
    texts = ("my thesis", "<p>my notes on auxnet report</p>", '<meta name="generator" content="auxnet reporter">')
    for mine in (tmp_path / "mine.html", recipes / "report.html", own / "report.html"):
        for text in texts:
            mine.write_text(text)
            asked = [["report", str(run), "--out", str(mine)]]
            asked += [["report", str(own)]] if mine.parent == own else []
            for words in asked:
                assert main(words) == 2
                said = f"{mine} was not written by auxnet report, and is left alone"
                assert said in capsys.readouterr().err
                assert mine.read_text() == text


@pytest.mark.parametrize("by", ["auxnet report", "auxnet report 0.0.1"])
def test_a_report_of_an_earlier_version_is_replaced(going_on, by):
    page = going_on / "report.html"
    page.write_text(f'<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="{by}">\n')
    page.rename(going_on.parent / "public.html")
    page.symlink_to(going_on.parent / "public.html")
    assert main(["report", str(going_on)]) == 0
    assert "Learning curves" in page.read_text()
    assert page.is_symlink()


def test_all_runs_are_looked_at_before_the_first_is_evaluated(run, tmp_path, monkeypatch):
    monkeypatch.setattr("auxnet.report.facts_of_run", lambda *given: pytest.fail("evaluated first"))
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        auxnet.write_report([run, tmp_path / "nowhere"], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "RUN"], "a run is named twice"),
        (["RUN", "other"], "a report of several runs needs a place: give --out FILE.html"),
        (["RUN", "--out", "no/such/page.html"], "there is no folder no/such"),
        (["RUN", "--out", "."], "is a folder"),
        (["RUN", "--out", "rep.pdf"], "a report is HTML, and rep.pdf ends in .pdf: give --out FILE.html"),
        (["RUN", "--device", "cuda:7", "--out", "page.html"], "device 'cuda:7' cannot be used here"),
        (["RUN", "--threads", "0", "--out", "page.html"], "threads must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_a_line(run, words, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(run) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_damaged_summary_is_said_in_a_line(run, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "summary.json").write_text("{}")
    assert main(["report", str(damaged)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_data_cannot_end_the_element_it_lies_in():
    content = {"name": "</script><script>alert(1)</script>", "also": "<!-- & \u2028"}
    text = page_frame.json_inside_html(content)
    assert not {"<", ">", "&"} & set(text)
    assert json.loads(text) == content


# ---- in the browser --------------------------------------------------------------------------------------------


def test_the_choice_follows_the_limits_as_a_computation_by_hand_does(gathered, open_page):
    page = open_page([gathered], figures=False)
    limits, chosen = shown_limits(page)
    assert limits == {"within": 0.5, "max-params": None, "max-macs": None, "max-latency": None}
    assert chosen == str(gathered["chosen"]) == chosen_by_hand(gathered["outputs"], limits)
    seen = set()
    positions = [
        ("within", "3"),
        ("within", "0"),
        *((f"max-{c}", p) for c in ("params", "macs", "latency") for p in (0, 60, 120, 170, 200)),
    ]
    for slider, position in positions:
        move(page, slider, position)
        limits, chosen = shown_limits(page)
        assert chosen == chosen_by_hand(gathered["outputs"], limits), limits
        if chosen == "none":
            assert page.locator("#choice").inner_text() == "No output meets these limits"
            assert page.locator("#outputs tr.chosen").count() == 0
        else:
            row = gathered["outputs"][int(chosen) - 1]
            assert f"{100 * row['test']['error']:.2f} %" in page.locator("#costs").inner_text()
            assert page.locator("#outputs tr.chosen").get_attribute("data-output") == chosen
        seen.add(chosen)
    assert len(seen) >= 3
    move(page, "max-params", 0)
    page.locator("#reset").click()
    assert shown_limits(page)[0]["max-params"] is None


def test_the_command_makes_select_choose_what_the_page_shows(run, gathered, tmp_path, open_page, capsys):
    folder = tmp_path / "my runs" / "a"
    shutil.copytree(run, folder)
    page = open_page([{**gathered, "select": command("select", folder)}], figures=False)
    positions = [("within", 0), ("max-params", 120), ("max-macs", 170), ("within", 100), ("max-macs", 0)]
    tested = 0
    for slider, position in positions:
        move(page, slider, position)
        chosen = page.locator("#answer").get_attribute("data-output")
        program, *words = shlex.split(page.locator("#command").inner_text())
        assert program == "auxnet"
        assert words[:2] == ["select", str(folder)]
        assert words[2:4] == ["--within", page.locator("#within-value").get_attribute("data-value")]
        main([*words, "--json"])
        said = json.loads(capsys.readouterr().out)
        assert str(said["output"] or "none") == chosen, words
        told = page.locator("#reason").text_content().replace(" It ", " it ").removesuffix(".")
        clauses = [clause for clause in said["reason"].split("; ") if "McNemar" in clause]
        assert clauses == re.findall(r"it \w+ [^;]* \(Holm\)", told)
        tested += len(clauses)
    assert tested > 0


@pytest.mark.long
def test_the_cheapest_in_multiply_adds_is_chosen_whatever_the_order_of_outputs(gathered, open_page):
    odd = json.loads(json.dumps(gathered))
    for row, macs in zip(odd["outputs"], (3000, 1000, 2000), strict=True):
        row["macs"], row["val"]["error"] = macs, 0.25
    page = open_page([odd], figures=False)
    limits, chosen = shown_limits(page)
    assert chosen == chosen_by_hand(odd["outputs"], limits) == "2"


def test_of_outputs_that_cost_the_same_the_better_one_is_chosen(gathered, open_page):
    odd = json.loads(json.dumps(gathered))
    for row, macs, error in zip(odd["outputs"], (1000, 1000, 2000), (0.204, 0.202, 0.2), strict=True):
        row["macs"], row["val"]["error"] = macs, error
    page = open_page([odd], figures=False)
    assert shown_limits(page)[1] == "2"


@pytest.mark.long
def test_controls_work_from_the_keyboard(gathered, open_page):
    page = open_page([gathered])
    title = "#front-plot .xtitle"
    assert page.locator(title).text_content() == "multiply-adds for one image"
    page.locator("#axis input[value=macs]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(title).text_content() == "latency of one image (ms)"
    page.locator("#axis input[value=params]").check()
    assert page.locator(title).text_content() == "parameters"
    before = shown_limits(page)[0]["within"]
    page.locator("#within").focus()
    page.keyboard.press("ArrowRight")
    assert shown_limits(page)[0]["within"] == pytest.approx(before + 0.1)
    page.locator("#confusion-output input[value='1']").check()
    assert "Output 1" in page.locator("#confusion-note").inner_text()
    assert "Output 1" in page.locator("#calibration-note").inner_text()
    page.locator("#curve input[value=train_loss]").check()
    page.locator("#scale input[value=log]").check()
    assert page.locator("#learning-plot .ytitle").text_content() == "training loss (nats)"


@pytest.mark.long
def test_the_theme_follows_the_system_and_can_be_changed(gathered, open_page):
    check_themes(open_page([gathered]), "#front-plot")
    assert theme_of(open_page([gathered], scheme="dark"), "#front-plot") == DARK


def test_every_figure_is_drawn_named_and_fits_a_narrow_screen(gathered, open_page):
    page = open_page([gathered], width=390)
    for name in ("front", "learning", "exits", "shares", "calibration", "confusion"):
        assert page.locator(f"#{name}-plot .main-svg").count() > 0, name
        assert len(page.locator(f"#{name}-plot").get_attribute("aria-label")) > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    images = page.locator("#images img")
    assert images.count() == len(gathered["gallery"]) > 0
    assert images.evaluate_all("all => all.every((i) => i.complete && i.naturalWidth > 0 && i.alt)")


@pytest.mark.long
def test_the_class_names_of_the_gallery_stay_on_their_lines(gathered, open_page):
    named = json.loads(json.dumps(gathered))
    for item in named["gallery"]:
        item["answers"] = [[answer, 1.0] for answer, _ in item["answers"]]
    for name, width, whole in (("triangle", 1100, True), ("triangle", 390, True), ("mountain ranges", 1100, False)):
        page = open_page([{**named, "classes": [name] * 10}], figures=False, width=width)
        said = page.locator("#images dd:not(.p)")
        assert max(said.evaluate_all("all => all.map((each) => each.clientHeight)")) < 30  # a line has 20
        assert said.evaluate_all("all => all.every((each) => each.scrollWidth <= each.clientWidth)") == whole
        assert {*said.evaluate_all("all => all.map((each) => each.title)")} == {name}


@pytest.mark.long
def test_an_axis_in_the_logarithm_has_some_ticks_and_not_too_many_wherever_it_begins(gathered, open_page):
    page = open_page([gathered], figures=False)
    for low, span in itertools.product((3, 5.1, 5.435, 5.73, 6.9), (0.0003, 0.04, 0.2, 0.3, 0.4, 0.7, 0.8, 2)):
        found = page.evaluate(f"decades([{low}, {low + span}])")
        shown = [value for value in found["tickvals"] if 10**low <= value <= 10 ** (low + span)]
        assert 2 <= len(shown) <= 8, (low, span)
        assert len(set(found["ticktext"])) == len(found["tickvals"])


@pytest.mark.long
def test_where_one_policy_is_the_best_at_every_cost_no_empty_figure_is_drawn_of_where_images_leave(gathered, open_page):
    easy = json.loads(json.dumps(gathered))
    for point in easy["exits"]["points"]:
        point |= {"macs": 304288, "shares": [0.25, 0.75, 0]}
    page = open_page([easy], figures=False)
    said = "The same whatever the mean may cost: 25 % at output 1, 75 % at output 2."
    assert page.locator("#shares-plot.absent").inner_text() == said


@pytest.mark.long
def test_the_lines_of_many_runs_can_be_told_apart(gathered, open_page):
    looks = open_page([gathered], figures=False).evaluate("[...Array(36).keys()].map((n) => shade(n) + dash(n))")
    assert len(set(looks)) == 36


@pytest.mark.parametrize(("runs", "outputs", "marked"), [(2, 3, False), (8, 13, True), (3, 1, False)])
@pytest.mark.enough(1)
def test_the_lines_of_all_outputs_of_several_runs_can_be_told_apart(runs, outputs, marked, gathered, open_page):
    curve = gathered["curves"]["outputs"][0]
    curves = {**gathered["curves"], "outputs": [{**curve, "output": k + 1} for k in range(outputs)]}
    page = open_page([{**gathered, "name": f"r{n}", "curves": curves} for n in range(runs)], figures=False)
    page.locator("#curve-output input[value='0']").check()
    traces, _ = drawn(page, "learning")
    looks = [
        (trace["line"]["color"], trace["line"]["dash"], trace["marker"]["symbol"] if "markers" in trace["mode"] else "")
        for trace in traces
    ]
    assert len({*looks}) == len(looks) == runs * outputs
    assert any(symbol for *_, symbol in looks) == marked
    assert len({dash for _, dash, _ in looks}) > 1  # colours alone tell nothing to some eyes
    colours = [color for color, *_ in looks]
    assert all(len({*colours[n : n + outputs]}) == 1 for n in range(0, len(looks), outputs))  # one for each run


@pytest.mark.long
def test_what_one_run_lacks_is_not_said_above_the_figures_of_another(gathered, open_page):
    gone = {
        **gathered,
        "name": "gone",
        "missing": "they are gone",
        **dict.fromkeys(("exits", "calibration", "confusion")),
    }
    page = open_page([gone, gathered], figures=False)
    for run, words in ((0, "Not shown: they are gone"), (1, ""), (0, "Not shown: they are gone")):
        page.locator("#run").select_option(str(run))
        for name in ("exits", "shares", "calibration", "confusion"):
            assert page.locator(f"#{name}-plot").inner_text() == words, name


def test_names_from_users_stay_text(gathered, open_page):
    evil = json.loads(json.dumps(gathered))
    evil["name"] = evil["folder"] = evil["data"]["name"] = evil["recipe"]["data"] = EVIL
    evil["classes"] = [f"{EVIL}{i}</script><img src=x onerror=alert(2)>" for i in range(10)]
    page = open_page([evil, {**gathered, "name": "</script><b>other $a$"}])
    page.locator("#confusion-output input[value='1']").check()
    page.locator("#confusion-plot").hover()
    assert EVIL in page.locator("#images .truth").first.inner_text()
    assert EVIL in page.locator("#run option").first.inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main b", has_text="other").count() == 0
    assert page.locator("#exits-plot .legendtext").last.text_content() == "</script><b>other $a$"


def test_the_eyebrow_tells_a_whole_net_from_one_of_its_outputs_alone(gathered):
    whole, *alone = ({**gathered, "recipe": {**gathered["recipe"], "alone": k}} for k in (None, 1, 2))
    for run in alone:
        run["outputs"] = gathered["outputs"][:1]
    net = "digits, preact ResNet-8 with"
    trained = "trained multiway, live for 2 epochs"
    assert report_page.eyebrow([whole]) == f"{net} 3 outputs, {trained}"
    assert report_page.eyebrow(alone) == f"{net} output 1 alone, {trained}; {net} output 2 alone, {trained}"


def test_runs_that_differ_in_their_seed_alone_are_summed_up(gathered):
    def run(seed, lr, error):
        made = json.loads(json.dumps(gathered))
        made["name"], made["seed"], made["recipe"]["seed"], made["recipe"]["lr"] = f"run-{seed}-{lr}", seed, seed, lr
        for row in made["outputs"]:
            row["test"]["error"] = error
        return made

    runs = [run(0, 0.1, 0.10), run(1, 0.1, 0.20), run(2, 0.1, 0.60), run(0, 0.05, 0.9)]
    table = report_page._over_seeds(runs)
    assert "run-0-0.1, run-1-0.1, run-2-0.1" in table
    assert "run-0-0.05" not in table
    assert table.count(f"<td>3</td><td>{100 * gathered['outputs'][0]['val']['error']:.2f}&nbsp;% ") >= 1
    assert table.count("<td>30.00&nbsp;% \u00b1 26.46</td>") == len(gathered["outputs"])
    assert report_page._over_seeds(runs[2:]) == ""
    assert "Left out" not in table
    again = report_page._over_seeds([*runs[:3], {**runs[0], "name": "once-more"}])
    assert again.replace(" Left out, as another run has their recipe and their seed: once-more.", "") == table
    runs[1]["data"]["test_sha256"] = "of other images"
    assert report_page._over_seeds(runs) == ""


def test_a_name_that_is_no_text_is_shown_all_the_same(gathered):
    page = report_page.page([{**gathered, "name": "r\udce9n", "classes": ["caf\udce9", *gathered["classes"][1:]]}], 0.5)
    page = page.encode(errors="backslashreplace").decode()  # as it is written
    [data] = re.findall(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["runs"][0]["classes"][0] == "caf\udce9"


def test_the_command_that_trains_the_same_again_can_be_typed_and_what_is_left_open_is_none(gathered):
    recipe = {**gathered["recipe"], "milestones": [0.4, 0.60001]}
    page = report_page.page([{**gathered, "folder": "my runs/a & b", "recipe": recipe}], 0.5)
    assert "<code>auxnet train --config &#x27;my runs/a &amp; b/recipe.yaml&#x27;</code>" in page
    assert "<dt>milestones</dt><dd>0.4 0.60001</dd>" in page
    assert "<dt>clip</dt><dd>none</dd>" in page


def test_several_runs_are_laid_over_each_other_and_compared(gathered, open_page):
    other = json.loads(json.dumps(gathered))
    other["name"], other["recipe"]["lr"], other["recipe"]["loss"] = "second", 0.05, "square_hinge"
    for row in other["outputs"]:
        row["val"]["error"] /= 2
    other["epochs"]["last"] = 40
    page = open_page([gathered, other])
    assert page.evaluate("byId('learning-plot').layout.xaxis.dtick") == 4  # by the longest run, whichever is shown
    assert page.locator("#outputs tbody tr.run").count() == 2
    differs = page.locator("#recipe tr.differs").all_inner_texts()
    assert [row.split()[0] for row in differs] == ["loss", "lr"]
    assert page.locator("#learning-plot .legend .traces").count() == 2
    page.locator("#run").select_option("1")
    limits, chosen = shown_limits(page)
    assert chosen == chosen_by_hand(other["outputs"], limits)
    assert page.locator("#outputs tr.chosen").get_attribute("data-run") == "1"
    assert "lowest validation error of second" in page.locator("#reason").inner_text()
    assert "The figures of second are of the last epoch" in page.locator("#learning-note").inner_text()
    assert "good enough under the limits above, of second." in page.locator("#front-note").inner_text()
    page.locator("#curve input[value=train_loss]").check()
    assert page.locator("#learning-plot .ytitle").text_content() == "training loss"


# ---- what is drawn ---------------------------------------------------------------------------------------------


def drawn(page, name):
    """What Plotly was given for a figure: (its traces, its layout)."""
    return page.locator(f"#{name}-plot").evaluate("(plot) => [plot.data, plot.layout]")


def legend_of(traces):
    return [trace["name"] for trace in traces if trace.get("showlegend", True)]


@pytest.mark.long
def test_in_the_logarithm_a_curve_has_a_gap_where_it_is_0_and_the_axis_reads_upwards(gathered, open_page):
    facts = json.loads(json.dumps(gathered))
    facts["curves"]["epochs"] = [1, 2, 3, 4]
    curves = {"alone": [0.1, 0, 0.09, 0], "joined": [0.0, 0.2, 0.15, 0.0], "whole": [0.3, 0.3, 0.2, 0.2]}
    for output, errors in zip(facts["curves"]["outputs"], curves.values(), strict=True):
        output |= {"val_error": errors, "val_loss": [2.30261, 2.3026, 2.30259, 2.30258]}
    page = open_page([facts], figures=False)
    assert "no place" not in page.locator("#learning-note").inner_text()
    page.locator("#scale input[value=log]").check()
    traces, layout = drawn(page, "learning")
    assert [trace["y"] for trace in traces] == [
        [pytest.approx(100 * error) if error else None for error in errors] for errors in curves.values()
    ]
    assert [trace["mode"] for trace in traces] == ["lines+markers", "lines", "lines"]
    assert page.locator("#learning-note").inner_text().endswith("0 has no place on this scale.")
    page.locator("#curve input[value=val_loss]").check()
    assert "no place" not in page.locator("#learning-note").inner_text()
    for axis in (layout["yaxis"], drawn(page, "learning")[1]["yaxis"]):  # of half a decade, and of next to nothing
        assert axis["tickvals"] == sorted(axis["tickvals"])
        assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


@pytest.mark.long
def test_figures_have_the_place_on_paper_that_they_were_drawn_for(gathered, open_page):
    page = open_page([gathered], figures=False)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4
    heights = page.locator(".plot").evaluate_all("all => all.map((plot) => [plot.clientHeight, plot.drawn])")
    assert len(heights) == 6
    assert all(place == figure for place, figure in heights)
    columns = "all => all.map((each) => getComputedStyle(each).gridTemplateColumns)"
    assert all(" " not in each for each in page.locator(".chooser, .pair, .confused").evaluate_all(columns))


@pytest.mark.long
def test_figures_of_several_runs_say_which_is_shown_and_name_each_once_where_names_are_long(gathered, open_page):
    names = ["a", "b $5$", "x" * 150, *(f"cifar10_resnet110_multiway_fused_seed{n}" for n in range(3))]
    runs = [
        {**gathered, "name": name, "seed": n, "recipe": {**gathered["recipe"], "seed": n}}
        for n, name in enumerate(names)
    ]
    page = open_page(runs, width=400, figures=False)
    page.locator("#run").select_option("4")
    for name in ("calibration", "confusion"):
        begins = f"{names[4]}, output {gathered['chosen']}"
        assert page.locator(f"#{name}-note").inner_text().startswith(begins)
        assert begins in page.locator(f"#{name}-plot").get_attribute("aria-label")
    assert page.locator("#gallery-note").inner_text().startswith(f"{names[4]}: ")
    for name in ("front", "learning", "exits"):
        traces, layout = drawn(page, name)
        legend = [text.removesuffix(", output 3") for text in legend_of(traces) if text != "chosen"]
        assert len({*legend}) == len(legend) == 6
        assert legend[:2] == ["a", "b &#36;5&#36;"]  # else Plotly takes it for TeX
        assert max(map(len, legend[2:])) == 28
        assert layout["height"] >= 320 + 3 * 16
        assert layout["margin"]["r"] >= 18  # the last tick of an axis that ends with it has its place
    page.locator("#curve-output input[value='0']").check()  # a line for each output of each
    assert drawn(page, "learning")[1]["height"] >= 320 + 15 * 16
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    widths = page.locator("#recipe td, #recipe thead th").evaluate_all("all => all.map((cell) => cell.offsetWidth)")
    assert min(widths) >= 80
    gap = page.locator("#outputs .under + .scroll").evaluate("(table) => getComputedStyle(table).marginTop")
    assert float(gap.removesuffix("px")) > 15


@pytest.mark.long
def test_the_number_of_the_first_output_has_a_place_beside_the_axis_of_a_phone(gathered, open_page):
    macs = [row["macs"] for row in gathered["outputs"]]
    page, pads = open_page([gathered], figures=False), []
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.locator("#reset").click()
        _, layout = drawn(page, "front")
        pads.append((min(macs) - layout["xaxis"]["range"][0]) / (max(macs) - min(macs)))
    assert pads == pytest.approx([0.16, 0.08])


@pytest.mark.long
def test_one_output_after_one_epoch_is_drawn_on_axes_about_it_and_compared_with_none(gathered, open_page):
    facts = json.loads(json.dumps(gathered)) | {"chosen": 1, "p_values": [[None]], "exits": None}
    facts["outputs"] = [{**facts["outputs"][-1], "output": 1}]
    facts["curves"]["epochs"], facts["epochs"]["last"] = [1], 1
    facts["curves"]["outputs"] = [{**facts["curves"]["outputs"][-1], "output": 1, "val_error": [0.2]}]
    page = open_page([facts], figures=False)
    assert page.locator("#reason").inner_text() == "It has the lowest validation error of all."
    for key in ("depth", "params", "macs", "latency"):
        page.locator(f"#axis input[value={key}]").check()
        axis, value = drawn(page, "front")[1]["xaxis"], facts["outputs"][0][key]
        low, high = (10**end if axis["type"] == "log" else end for end in axis["range"])
        assert 0.9 * value < low < 0.99 * value < 1.01 * value < high < 1.1 * value
    assert axis["tickformat"] == ""
    [trace], layout = drawn(page, "learning")
    assert layout["xaxis"]["range"] == [0.5, 1.5]
    assert trace["marker"]["size"] == 9


@pytest.mark.long
def test_many_classes_are_told_apart_by_what_their_names_do_not_share(gathered, open_page):
    animals = [chr(0x1F400 + n) for n in range(30)]  # which share half of their UTF-16
    facts = {**gathered, "classes": [f"a photograph of thing {n}" for n in range(30)]}
    counts = torch.eye(30, dtype=torch.int64).tolist()
    facts["confusion"] = [{"counts": counts, "pairs": []} for _ in gathered["outputs"]]
    page = open_page([facts, {**facts, "classes": animals}], figures=False)
    assert drawn(page, "confusion")[1]["xaxis"]["ticktext"] == [str(n) for n in range(0, 30, 2)]
    assert "a photograph of thing 29 taken for" in drawn(page, "confusion")[0][0]["text"][29][0]
    page.locator("#run").select_option("1")
    assert drawn(page, "confusion")[1]["xaxis"]["ticktext"] == animals[::2]
    shortened = page.evaluate("(name) => short(name, 6)", "".join(animals))
    assert [*shortened] == [*animals[:3], "\u2026", *animals[-2:]]


def test_a_headline_names_a_few_of_many_that_tie_and_breaks_within_no_interval(gathered):
    page = report_page.page([{**tied(gathered), "name": f"r{n}"} for n in range(9)], 0.5).replace("&nbsp;", " ")
    assert "10.00 %, outputs 1 and 3 of r0; outputs 1 and 3 of r1; outputs 1 and 3 of r2; ....</h1>" in page
    assert (
        page_frame.unbroken("(95 % 3.2 \u2013 7.6), now \u2013 or")
        == "(95&nbsp;% 3.2&nbsp;\u2013&nbsp;7.6), now \u2013 or"
    )


def test_the_whole_net_is_not_named_beside_itself(gathered):
    first, last = gathered["outputs"][0]["macs"], gathered["outputs"][-1]["macs"]
    assert "whole net" not in report_page._tiles({**gathered, "chosen": 3})
    assert f"{first:,}</dd><dd class=small>whole net: {last:,}</dd>" in report_page._tiles({**gathered, "chosen": 1})


def test_what_select_notes_of_classes_of_unlike_size_is_among_the_notes(run, gathered, monkeypatch):
    assert gathered["balanced"] is None
    assert not [note for note in report_page.notes([gathered]) if "balanced" in note]
    lost = {**gathered, "lost": "output 2 recognises no validation image of cat (9 images)"}
    assert "output 2 recognises no validation image of cat (9 images)." in " ".join(report_page.notes([lost]))
    said = "classes differ in size: by balanced error"
    monkeypatch.setattr("auxnet.selection.Choice.by_balanced_error", said)
    monkeypatch.setattr(
        "auxnet.examining.latencies", lambda net, *given, **more: auxnet.latency.latencies(net, *given, seconds=0.01)
    )
    facts = report.facts_of_run(run, "tiny")
    assert f"tiny: {said}." in report_page.notes([facts])
