"""Chromium without a window, driven by Selenium: what a browser test does and looks at."""

from __future__ import annotations

import shutil
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
PATIENCE = 60.0
"""Seconds, on a machine that does something else besides."""


class Chrome:
    """One Chromium with a profile of its own, at one site.

    ``folder`` takes its profile, its downloads and its pictures.
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
        self.driver.set_page_load_timeout(PATIENCE)

    def quit(self) -> None:
        """End the browser."""
        self.driver.quit()

    # -- going about

    def open(self, path: str) -> None:
        """Open a page of the site."""
        self.driver.get(f"{self.site}{path}")

    def visit_as(self, user: str, language: str, password: str) -> None:
        """Begin anew: nobody is known, then a user logs in whose pages are in a language."""
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.look("light")
        self.open("/admin/login/")
        self.driver.add_cookie({"name": "django_language", "value": language, "path": "/"})
        self.open("/admin/login/")
        self.one("#id_username").send_keys(user)
        self.one("#id_password").send_keys(password)
        self.press("input[type=submit]")
        assert self.driver.get_cookie("sessionid"), self.text
        self.console()  # what was said before is not this test's

    def press(self, selector: str) -> None:
        """Press what leads to another page, and wait until that is there."""
        self.follow(self.one(selector))

    def follow(self, element: WebElement) -> None:
        """Click what leads to another page, and wait until that is there."""
        script = "window.isLeft = true; arguments[0].scrollIntoView({block: 'center'})"
        self.driver.execute_script(script, element)
        element.click()
        arrived = "return !window.isLeft && document.readyState === 'complete'"
        # Between two pages there is no document to ask, which the driver has several words for.
        WebDriverWait(self.driver, PATIENCE, ignored_exceptions=[WebDriverException]).until(
            lambda driver: driver.execute_script(arrived)
        )

    # -- looking

    def one(self, selector: str) -> WebElement:
        """Return the only element that a CSS selector is for, once it is there."""
        where = f"one {selector} at {self.driver.current_url}"
        wait_until(lambda: self.all(selector), timeout=PATIENCE, what=where)
        found = self.all(selector)
        assert len(found) == 1, f"{len(found)} instead of {where}"
        return found[0]

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that a CSS selector is for."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """What can be read on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def console(self) -> list[str]:
        """Return, once, what the browser has complained about."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def look(self, theme: Literal["light", "dark"], size: tuple[int, int] | None = None) -> None:
        """Prefer a theme, and have a window of a size; by default that of a desk."""
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
        """Return by how many pixels the page is wider than the window."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return max(0, int(self.driver.execute_script(script)))

    def picture(self, name: str) -> None:
        """Take a picture of the page in the light, in the dark and on a phone, if any is wanted."""
        if self.pictures is None:
            return
        for look, theme, size in (
            ("light", "light", None),
            ("dark", "dark", None),
            ("phone", "light", PHONE),
        ):
            self.look(theme, size)  # type: ignore[arg-type]
            height = self.driver.execute_script("return document.documentElement.scrollHeight")
            width = size[0] if size else 1280
            metrics = {"width": width, "height": min(int(height), 4000), "deviceScaleFactor": 1}
            self.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": size is not None}
            )
            self.driver.save_screenshot(str(self.pictures / f"{name}-{look}.png"))
        self.look("light")

    def downloaded(self, name: str) -> bytes:
        """Wait for a download, and return what is in it."""
        file = self.downloads / name
        there = [entry.name for entry in self.downloads.iterdir()]
        wait_until(
            file.exists, timeout=PATIENCE, what=f"{name} to be downloaded; there are {there}"
        )
        return file.read_bytes()
