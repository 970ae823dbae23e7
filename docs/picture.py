"""Take the README's picture, of the report of its example: docs/picture.py RUN/report.html docs/report.png."""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

LIMIT = """() => {
  const limit = document.getElementById("max-params"), said = document.getElementById("max-params-value");
  for (let at = Number(limit.max); at > 0 && !(Number(said.dataset.value) <= 50000); at--) {
    limit.value = at;
    limit.dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""

page_file, out = Path(sys.argv[1]).resolve(), sys.argv[2]
with sync_playwright() as p:
    browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1200, "height": 1440}, color_scheme="light")
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready]")
    page.evaluate(LIMIT)
    page.wait_for_timeout(500)
    page.locator("#choose").screenshot(path=out)
    browser.close()
Image.open(out).convert("RGB").save(out, optimize=True)
