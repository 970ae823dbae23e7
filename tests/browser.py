"""Pages in a real headless Chromium, and whatever its console and the network hear of them."""

from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
QUIET = ("background-networking", "component-update", "sync", "gpu")


@contextmanager
def chromium():
    """The browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        args = ["--no-sandbox", "--no-first-run", *(f"--disable-{each}" for each in QUIET)]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1280, scheme="light"):
    """A page whose figures are drawn; nothing is heard of it: no message, no error, no dialog, no request."""
    heard = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda r: r.url.startswith(("data:", "blob:", path.as_uri())) or heard.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()
    assert heard == []


def ticks_between(page, plot, low, high):
    """What an axis of errors says where it is drawn from `low` to `high`."""
    page.evaluate("([plot, range]) => Plotly.relayout(plot, {'yaxis.range': range})", [plot, [low, high]])
    return page.locator(f"#{plot} .ytick text").all_text_contents()


LIGHT, DARK = ("light", "Dark", "rgb(27, 31, 36)"), ("dark", "Light", "rgb(232, 235, 239)")


def theme_of(page, plot):
    """The theme, what its button offers, and the colour in which a figure's axis is named."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    ink = page.locator(f"{plot} .xtitle").first.evaluate("(title) => getComputedStyle(title).fill")
    return page.evaluate("document.documentElement.dataset.theme"), page.locator("#theme").inner_text(), ink


def check_themes(page, plot):
    """That a page opened where light is preferred follows the system until its button is pressed, and paper."""
    assert theme_of(page, plot) == LIGHT
    for scheme, expected in (("dark", DARK), ("light", LIGHT)):
        page.emulate_media(color_scheme=scheme)
        assert theme_of(page, plot) == expected
    page.locator("#theme").click()
    assert theme_of(page, plot) == DARK
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert theme_of(page, plot) == DARK
    for event, expected in (("beforeprint", LIGHT), ("afterprint", DARK)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert theme_of(page, plot) == expected
