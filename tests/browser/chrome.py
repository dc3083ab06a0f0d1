"""Headless Chromium, driven by Selenium: what browser tests do and look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from devservers.process import wait_until

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--window-size=1280,900",
)
PHONE = (390, 844)
TIMEOUT = 60.0
"""In seconds; generous, because the machine may be busy."""


class Chrome:
    """One Chromium with its own profile, for one site.

    ``folder`` holds its profile and its downloads; ``pictures`` is where screenshots go, if any.
    """

    def __init__(self, folder: Path, site: str, pictures: Path | None) -> None:
        self.site = site.rstrip("/")
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.pictures = pictures
        options = webdriver.ChromeOptions()
        for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(self.downloads)}
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if binary is None or driver is None:
            raise RuntimeError("Install chromium and chromedriver (Debian: chromium-driver).")
        options.binary_location = binary
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(TIMEOUT)

    def quit(self) -> None:
        """Close the browser."""
        self.driver.quit()

    # -- navigation

    def open(self, path: str) -> None:
        """Open a page of the site."""
        self.driver.get(f"{self.site}{path}")

    def visit_as(self, user: str, language: str, password: str) -> None:
        """Clear the session, and log in a user whose pages are in a language."""
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.look("light")
        self.open("/admin/login/")
        self.driver.add_cookie({"name": "django_language", "value": language, "path": "/"})
        self.open("/admin/login/")
        self.one("#id_username").send_keys(user)
        self.one("#id_password").send_keys(password)
        self.press("input[type=submit]")
        assert self.driver.get_cookie("sessionid"), self.text
        self.console()  # drops what earlier tests caused

    def press(self, selector: str) -> None:
        """Click an element that leads to another page, and wait for the page to load."""
        self.follow(self.one(selector))

    def follow(self, element: WebElement) -> None:
        """Click a link or button that leads to another page, and wait for the page to load."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        with self.another_page():
            element.click()

    @contextmanager
    def another_page(self) -> Iterator[None]:
        """Wait for the page to load to which something in the block leads."""
        self.driver.execute_script("window.isLeft = true")
        yield
        arrived = "return !window.isLeft && document.readyState === 'complete'"
        # Between two pages there is no document, which the driver reports as various errors.
        WebDriverWait(self.driver, TIMEOUT, ignored_exceptions=[WebDriverException]).until(
            lambda driver: driver.execute_script(arrived)
        )

    # -- inspection

    def one(self, selector: str) -> WebElement:
        """Wait for the only element that matches a CSS selector, and return it."""
        where = f"one {selector} at {self.driver.current_url}"
        wait_until(lambda: self.all(selector), timeout=TIMEOUT, what=where)
        found = self.all(selector)
        assert len(found) == 1, f"{len(found)} instead of {where}"
        return found[0]

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that match a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def console(self) -> list[str]:
        """Return the errors in the browser's console since the last call."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def look(self, theme: Literal["light", "dark"], size: tuple[int, int] | None = None) -> None:
        """Prefer a theme, and emulate a window size; the default is the desktop."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": theme}]},
        )
        if size is None:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        else:
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
            self.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": True}
            )

    def overflow(self) -> int:
        """Return how many pixels wider than the window the page is."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return max(0, int(self.driver.execute_script(script)))

    def keep(self, name: str) -> None:
        """Save a screenshot of the whole page as it looks now, if ``pictures`` is set."""
        if self.pictures is None:
            return
        run = self.driver.execute_script
        width, height = run("return [window.innerWidth, document.documentElement.scrollHeight]")
        metrics = {"width": width, "height": min(height, 4000), "deviceScaleFactor": 1}
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": width < 1000}
        )
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))

    def picture(self, name: str) -> None:
        """Save screenshots of the page, light, dark and on a phone, if ``pictures`` is set."""
        if self.pictures is None:
            return
        looks: tuple[tuple[str, Literal["light", "dark"], tuple[int, int] | None], ...] = (
            ("light", "light", None),
            ("dark", "dark", None),
            ("phone", "light", PHONE),
        )
        for look, theme, size in looks:
            self.look(theme, size)
            self.keep(f"{name}-{look}")
        self.look("light")

    def downloaded(self, name: str) -> bytes:
        """Wait for a download, and return its bytes."""
        file = self.downloads / name
        there = [entry.name for entry in self.downloads.iterdir()]
        wait_until(file.exists, timeout=TIMEOUT, what=f"{name} to be downloaded; there are {there}")
        return file.read_bytes()
