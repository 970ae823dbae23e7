"""Take the README picture of a report (Chromium): .venv/bin/python docs/picture.py RUN/report.html docs/report.png."""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

page_file, out = Path(sys.argv[1]).resolve(), sys.argv[2]
with sync_playwright() as p:
    browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1200, "height": 1440}, color_scheme="light")
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready]")
    page.wait_for_timeout(500)
    page.screenshot(path=out)
    browser.close()
Image.open(out).convert("RGB").save(out, optimize=True)
