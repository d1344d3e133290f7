"""The pages in a real browser: no scrolling sideways, the finding on the first screen, dark mode, keyboard, accessibility."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.site.browser import Browser
from tests.site.conftest import RESULTS

PAGES = ["index.html", "claims.html", "provenance.html", "deviations.html", "glossary.html",
         *sorted(p.with_suffix(".html").name for p in RESULTS.glob("0*.ipynb"))]
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("TWINS_AXE", "")) / "axe.min.js"  # of the npm package axe-core
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here: pages are not tried in a browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(PROGRAM) as found:
        yield found


@pytest.mark.parametrize("page", PAGES)
def test_fits(browser: Browser, site: Path, page: str) -> None:
    """At the width of a phone and of a desk no page scrolls sideways, none writes to the console, and none asks for anything but
    files beside it."""
    browser.said.clear()
    browser.asked.clear()
    for width, height in ((375, 812), (1440, 900)):
        browser.show(site / page, width, height)
        widths = browser.value("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1] == width
    assert not browser.said
    assert browser.asked and all(url.startswith((site.as_uri(), "data:,")) for url in browser.asked)


@pytest.mark.parametrize(("width", "height"), [(375, 812), (1440, 900)])
def test_first_screen(browser: Browser, site: Path, width: int, height: int) -> None:
    """What was found stands on the first screen: the sentence, the count of each verdict, the first paper's first verdict."""
    browser.show(site / "index.html", width, height)
    for selector in (".lead", ".legend", ".card .verdict"):
        assert browser.value(f"document.querySelector('{selector}').getBoundingClientRect().bottom") < height


def test_dark_and_light(browser: Browser, site: Path) -> None:
    """The scheme that the reader prefers, dark on light or light on dark; each colour of text has a contrast of at least 4.5."""
    for scheme, darker in (("light", "ink"), ("dark", "paper")):
        browser.show(site / "index.html", 375, 812, scheme)
        picture = Image.open(io.BytesIO(browser.picture()))
        assert picture.size == (375, 812)
        light = {name: luminance(browser.value(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"))
                 for name in ("paper", "panel", "ink", "soft", "link", "good", "partly", "unclear", "bad", "untested")}
        assert (light["paper"] < light["ink"]) == (darker == "paper")
        assert abs(luminance("#{:02x}{:02x}{:02x}".format(*picture.convert("RGB").getpixel((2, 400)))) - light["paper"]) < 0.01
        for name in light.keys() - {"paper", "panel"}:
            for ground in ("paper", "panel"):
                low, high = sorted((light[name], light[ground]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, name, ground)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_keyboard(browser: Browser, site: Path) -> None:
    """The first stop of the tabulator is a visible link to the content; tables that are too wide can be reached and scrolled."""
    browser.show(site / "01_robustness_transfer.html", 375, 812)
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    focused = browser.value("(e => [e.className, e.hash, e.getBoundingClientRect().left >= 0])(document.activeElement)")
    assert focused == ["skip", "#content", True]
    assert browser.value("""[...document.querySelectorAll('main *')]
        .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
        .filter(e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).every(e => e.tabIndex === 0)""")


def test_without_scripts(browser: Browser, site: Path) -> None:
    """All is there where scripts are switched off: the picture of the screen is the same."""
    pictures = []
    for scripts in (True, False):
        browser.show(site / "index.html", 1440, 900, scripts=scripts)
        pictures.append(browser.picture())
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert pictures[0] == pictures[1]


@pytest.mark.skipif(not AXE.is_file(), reason="no axe.min.js in $TWINS_AXE: accessibility is checked by tags alone")
@pytest.mark.parametrize("page", PAGES)
def test_accessibility(browser: Browser, site: Path, page: str) -> None:
    """axe-core finds nothing, at both widths."""
    for width, scheme in ((375, "dark"), (1440, "light")):
        browser.show(site / page, width, 900, scheme)
        browser.value(AXE.read_text() + ";0")
        found = browser.value("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))")
        assert not found, found
