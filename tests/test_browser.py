"""What needs a real browser, headless Chromium: the explorer. ``make test-browser``."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from threading import Thread

import pytest
from support import ROOT

webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-component-update", "--disable-background-networking", "--disable-sync",
    "--window-size=1400,1300",
]  # fmt: skip
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
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"),
            *("--expose-app-in-browser", "--IdentityProvider.token=test"),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        env=os.environ
        | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
        | {"PYTHONPATH": str(ROOT / "notebooks")},
    )  # fmt: skip
    address, said = None, []
    while not address and server.poll() is None:
        said.append(server.stdout.readline())
        address = re.search(r"http://127\.0\.0\.1:\d+/", said[-1])
    Thread(target=server.stdout.read).start()  # what it goes on to say must not hold it up
    try:
        assert address, "".join(said)
        yield address[0]
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


def until(browser, condition):
    """Wait for what only a broken page does not do: ten minutes are for a busy machine."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 600, poll_frequency=0.02).until(lambda _: condition())


def digests(browser):
    """SHA-256 of the explorer's pictures as they are shown."""
    shown = browser.find_elements("css selector", PICTURES)
    urls = [browser.execute_async_script(BYTES, picture) for picture in shown]
    return [hashlib.sha256(base64.b64decode(url.split(",")[1])).hexdigest() for url in urls]


@pytest.mark.browser
def test_a_moved_slider_changes_its_picture_alone(lab, browser, folder):
    copy = folder / "06_latent_space.ipynb"
    copy.write_bytes((ROOT / "notebooks" / "06_latent_space.ipynb").read_bytes())
    browser.get(f"{lab}lab/tree/{copy.relative_to(ROOT)}?token=test&reset")
    status = (
        "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    )
    until(browser, lambda: browser.execute_script(status) == "idle")
    browser.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    until(browser, lambda: len(browser.find_elements("css selector", PICTURES)) == 3)
    sliders = browser.find_elements("css selector", ".widget-slider .noUi-handle")
    assert len(sliders) == 4 + 1 + 3 + 4  # temperatures, draw; sources, split; the latent's place
    # Of a temperature, of the level that parts two sources, of a latent's colour.
    for which, slider, key in ((0, 3, "ARROW_LEFT"), (1, 7, "ARROW_LEFT"), (2, 9, "ARROW_RIGHT")):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", sliders[slider])
        before, start = digests(browser), time.perf_counter()
        sliders[slider].send_keys(getattr(webdriver.Keys, key))
        until(browser, lambda: digests(browser)[which] != before[which])  # noqa: B023
        print(f"panel {which}: {time.perf_counter() - start:.2f} s until its picture has changed")
        after = digests(browser)
        assert [k for k in range(3) if before[k] != after[k]] == [which]
