"""Take the pictures of the live page: `python docs/screenshot.py http://127.0.0.1:8080` against a running server.

Writes docs/live.png and docs/live-dark.png (or into `--into`) with headless Chromium; `chromium` and `chromedriver`
are taken from PATH (scripts/browser installs them). Exit status 1, with a sentence, where the page has errors or does
not come.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WAIT_S = 15.0
FLAGS = ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage")


class NoPicture(Exception):
    """Why there is no picture, in a sentence."""


@contextmanager
def browser(width: int = 1360, height: int = 900, dark: bool = False, scale: float = 1.0) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a viewport of `width` x `height` CSS pixels. Raises NoPicture where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise NoPicture(
            "Chromium or its driver is missing: run scripts/browser, or install chromium and chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    page = webdriver.Chrome(options=options, service=Service(driver))
    try:
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        resize(page, width, height, scale)
        yield page
    finally:
        page.quit()


def resize(page: webdriver.Chrome, width: int, height: int, scale: float = 1.0) -> None:
    """Give the viewport `width` x `height` CSS pixels, drawn at `scale` device pixels each."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def open_live(page: webdriver.Chrome, url: str) -> None:
    """Open the page and wait until its event stream is on. Raises NoPicture."""
    try:
        page.get(url)
        WebDriverWait(page, WAIT_S).until(
            lambda p: p.find_element(By.ID, "status").get_attribute("data-state") == "live"
        )
    except WebDriverException as error:
        why = (error.msg or "its event stream did not begin").splitlines()[0]
        raise NoPicture(f"{url} did not come alive within {WAIT_S:.0f} s: {why}") from error


def complaints(page: webdriver.Chrome) -> list[str]:
    """The errors in the browser's console since the last look."""
    entries: list[dict[str, str]] = page.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def picture(url: str, path: Path, dark: bool, width: int = 1360, height: int = 0) -> None:
    """Write a picture of the page, `height` CSS pixels of it (0: all). Raises NoPicture where it shows errors."""
    with browser(width, height or 900, dark) as page:
        open_live(page, url)
        if not height:
            resize(page, width, int(page.execute_script("return document.documentElement.scrollHeight")))
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(path))
        errors = complaints(page)
    if errors:
        raise NoPicture(f"the page at {url} has errors: {'; '.join(errors)}")


def main() -> int:
    """Take both pictures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the page of a running server, http://127.0.0.1:8080")
    parser.add_argument(
        "--into", type=Path, default=Path(__file__).parent, help="folder of the pictures (default: docs)"
    )
    parser.add_argument("--width", type=int, default=1360, help="CSS pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=0, help="CSS pixels; 0 takes the whole page (default)")
    args = parser.parse_args()
    try:
        for name, dark in (("live.png", False), ("live-dark.png", True)):
            picture(args.url, args.into / name, dark, args.width, args.height)
            print(args.into / name)
    except NoPicture as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
