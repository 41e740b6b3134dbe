"""The explorer in a real browser: JupyterLab in headless Chromium. Run by ``make test-browser``."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver")

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--window-size=1400,1300",
)
PICTURES = ".jp-OutputArea-output img.widget-image"
# A picture's bytes, whatever its address.
BYTES = """
const done = arguments[1];
fetch(arguments[0].src).then(r => r.blob()).then(blob => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(blob);
});
"""


@pytest.fixture(scope="module")
def folder():
    """Where the notebook's copy, its results and the screenshots go: git ignores it."""
    folder = ROOT / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab on the repository, started for this test."""
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True, exist_ok=True)
    # Outputs out of sight exist too.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    log = folder / "jupyterlab.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"),
                *("--expose-app-in-browser", "--IdentityProvider.token=test"),
            ],
            cwd=ROOT, stdout=file, stderr=file,
            env=os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")},
        )  # fmt: skip
    try:
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
            if found or server.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        yield found[0]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory, folder):
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    # Named, so that Selenium does not ask the network for one.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.save_screenshot(str(folder / "last.png"))
    driver.quit()


def until(browser, condition, seconds):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.02).until(lambda _: condition())


def pictures(browser):
    """SHA-256 of the explorer's pictures as they are shown."""
    shown = browser.find_elements("css selector", PICTURES)
    return [
        hashlib.sha256(base64.b64decode(browser.execute_async_script(BYTES, one).split(",")[1]))
        for one in shown
    ]


@pytest.mark.browser
def test_a_moved_slider_changes_the_picture(lab, browser, folder):
    copy = folder / "06_latent_space.ipynb"
    copy.write_bytes((ROOT / "notebooks" / "06_latent_space.ipynb").read_bytes())
    browser.get(f"{lab}lab/tree/{copy.relative_to(ROOT)}?token=test&reset")
    status = (
        "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    )
    until(browser, lambda: browser.execute_script(status) == "idle", 120)
    browser.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    until(browser, lambda: len(browser.find_elements("css selector", PICTURES)) == 3, 600)

    def digests():
        return [picture.hexdigest() for picture in pictures(browser)]

    def change(which, element, act, name):
        """Act on a control; only the picture ``which`` may change."""
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        before = digests()
        browser.save_screenshot(str(folder / f"{name}_before.png"))
        start = time.perf_counter()
        act()
        until(browser, lambda: digests()[which] != before[which], 30)
        print(f"{name}: {time.perf_counter() - start:.2f} s until the picture has changed")
        after = digests()
        assert [k for k in range(3) if before[k] != after[k]] == [which]
        browser.save_screenshot(str(folder / f"{name}_after.png"))

    sliders = browser.find_elements("css selector", ".widget-slider .noUi-handle")
    assert len(sliders) == 4 + 1 + 3 + 2  # temperatures, draw; sources, split; level, latent
    for which, slider, key, name in (
        (0, sliders[3], "ARROW_LEFT", "temperature"),
        (1, sliders[7], "ARROW_LEFT", "split"),
        (2, sliders[9], "ARROW_RIGHT", "latent"),
    ):
        change(which, slider, partial(slider.send_keys, getattr(webdriver.Keys, key)), name)
    place = browser.find_elements("css selector", ".widget-gridbox button")[50]
    change(2, place, place.click, "click")
