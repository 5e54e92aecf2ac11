"""A headless browser for tests: the only place that knows Chromium and how it is driven."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from tests.processes import until
from tests.services import missing

#: one answer of a page, at a machine's worst
PAGE_S = 40.0


class Browser:
    """One window, whose pictures are kept in a folder for people to look at."""

    def __init__(self, driver: Any, home: str, pictures: Path) -> None:
        self._driver = driver
        self.home = home
        self._pictures = pictures
        pictures.mkdir(parents=True, exist_ok=True)

    def go(self, path: str) -> str:
        """Open a page and return its words."""
        self._driver.get("about:blank")  # else another #part of the same page is no new page
        self._driver.get(self.home + path)
        return self.words()

    def words(self, css: str = "body") -> str:
        """Return what a reader sees of the first such element; nothing while it is not there."""
        try:
            found = self._driver.find_elements(By.CSS_SELECTOR, css)
            return str(found[0].text) if found else ""
        except StaleElementReferenceException:
            return ""

    def rows(self, css: str) -> list[list[str]]:
        """Return the cells of the rows of a table, as they are at one moment."""
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )
        rows: list[list[str]] = self._driver.execute_script(script, css)
        return rows

    def press(self, element_id: str) -> None:
        """Press a button when it is there and can be pressed."""

        def pressed() -> bool:
            found = self._driver.find_elements(By.ID, element_id)
            if not found or not (found[0].is_displayed() and found[0].is_enabled()):
                return False
            found[0].click()
            return True

        until(pressed, PAGE_S, f"{element_id} can be pressed")

    def fill(self, css: str, text: str) -> None:
        """Write into a field."""
        field = self._driver.find_element(By.CSS_SELECTOR, css)
        field.clear()
        field.send_keys(text)

    def told(self, css: str, *, picture: str | None = None) -> str:
        """Return what a message that pops up says, and put it away; it goes by itself in 5 s."""
        said = until(lambda: self.words(css), PAGE_S, "the page says something")
        if picture is not None:
            self.picture(picture)
        self._driver.execute_script(
            "document.querySelectorAll(arguments[0]).forEach(one => one.remove())", css
        )
        return said

    def picture(self, name: str) -> None:
        """Keep what is to be seen now."""
        self._driver.save_screenshot(str(self._pictures / f"{name}.png"))

    def complaints(self) -> list[str]:
        """Return the errors that scripts of the pages threw since asked last."""
        return [
            entry["message"]
            for entry in self._driver.get_log("browser")
            if entry["source"] == "javascript"
        ]


@contextmanager
def browsing(home: str, *, pictures: Path) -> Iterator[Browser]:
    """Open Chromium at a site."""
    program, steered_by = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or steered_by is None:
        missing("Chromium is not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (
        "--headless=new",
        "--no-sandbox",  # root, in a container; the pages are our own
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-extensions",
        "--disable-background-networking",
        "--no-first-run",
        "--no-proxy-server",
        "--window-size=1280,900",
        "--force-device-scale-factor=1",
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(steered_by))
    browser = Browser(driver, home, pictures)
    try:
        yield browser
    finally:
        browser.picture("last")
        driver.quit()
