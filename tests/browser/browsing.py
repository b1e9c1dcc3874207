"""A browser's window with the incident console in it, and the server behind it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from waiting import until

from incident_messaging.brokers.ports import free_port

APP = Path(__file__).parents[2] / "docs" / "examples" / "console" / "app.py"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: How the console is started.
SERVERS = {
    "itself": [sys.executable, str(APP), "--port", "{port}"],
    "gunicorn": [
        sys.executable, "-m", "gunicorn", "--chdir", str(APP.parent), "--threads", "20", "--graceful-timeout", "2",
        "--bind", "127.0.0.1:{port}", "app:create_app()",
    ],
}  # fmt: skip
PATIENCE = 60.0


def installed(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise RuntimeError(f"no {names[0]} on PATH; get it by: apt-get install chromium chromium-driver")
    return found


class Window:
    """One browser of its own."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go there, as somebody who was never there before."""
        self.driver.get(url)
        self.driver.execute_script("removeEventListener('pagehide', keep); sessionStorage.clear()")
        self.driver.get(url)
        self.sees("live", lambda: self.status[0])

    def shape(self, width: int | None = None, height: int | None = None) -> None:
        """Show the page in so many pixels; without them, in as many as the window has."""
        if width is None:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            return
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    @property
    def status(self) -> tuple[str, str]:
        element = self.find("#status")
        return element.get_attribute("data-state") or "", element.text

    @property
    def shown(self) -> str:
        """What the list was last filled from: a snapshot, changes, or what was kept over a reload."""
        return self.driver.execute_script("return document.body.dataset.shown")

    def listed(self, name: str = "open") -> list[str]:
        """The titles of a list."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} h3`)].map((title) => title.textContent)", name
        )

    def card(self, title: str) -> WebElement:
        return self.driver.find_element(By.XPATH, f"//li[contains(@class, 'incident')][.//h3[text()='{title}']]")

    def facts(self, title: str) -> str:
        return self.card(title).find_element(By.CSS_SELECTOR, ".facts").text

    def click(self, title: str, button: str) -> None:
        """Press a button of an incident."""
        self.card(title).find_element(By.XPATH, f".//button[text()='{button}']").click()

    def report(self, title: str, severity: str = "high") -> None:
        """Open an incident."""
        self.find("#title").send_keys(title)
        Select(self.find("#severity")).select_by_visible_text(severity)
        self.find("#open-form button").click()

    def sees(self, expected: Any, look: Any) -> None:
        """Wait until the page shows it."""
        found = None

        def shows() -> bool:
            nonlocal found
            try:
                found = look()
            except StaleElementReferenceException:
                return False
            return expected(found) if callable(expected) else found == expected

        assert until(shows, PATIENCE), f"expected {expected!r}, the page shows {found!r}, status {self.status}"


@contextmanager
def window() -> Iterator[Window]:
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        options = ChromeOptions()
        options.binary_location = installed("chromium", "chromium-browser", "google-chrome")
        for flag in (*FLAGS, f"--user-data-dir={folder}", "--window-size=1200,800"):
            options.add_argument(flag)
        driver = Chrome(options, Service(installed("chromedriver"), log_output=subprocess.DEVNULL))
        try:
            yield Window(driver)
        finally:
            driver.quit()


class Server:
    """A server process of the console."""

    def __init__(self, environment: dict[str, str], by: str = "itself") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._environment = environment
        self._command = [word.format(port=self.port) for word in SERVERS[by]]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | self._environment
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert until(self._answers, PATIENCE), f"no console at {self.url}"

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server has ended"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(self.url, timeout=5.0) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def console(environment: dict[str, str], by: str = "itself") -> Iterator[Server]:
    server = Server(environment, by)
    try:
        server.start()
        yield server
    finally:
        server.stop()
