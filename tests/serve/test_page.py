"""The page in a browser: it works offline, without a violation of its content policy, and with the keyboard alone."""

import hashlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Serving

from ltc_textgen.serve.app import STATIC

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium")
WAIT = 60_000


def test_vendored_files_are_what_they_were() -> None:
    for line in (STATIC / "vendor" / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == expected


def test_the_page_asks_for_nothing_else(server: Serving) -> None:
    status, text, headers = server.get("/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for path in STATIC.glob("*.js"):
        assert server.get(f"/static/{path.name}")[0] == 200
        assert "innerHTML" not in path.read_text()


class Page:
    """The page, and what went wrong on it."""

    def __init__(self, page: Any, url: str, fragment: str = "") -> None:
        self.page, self.foreign, self.problems = page, [], []
        page.on("console", lambda m: self.problems.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(url) else self.foreign.append(r.url))
        page.goto(f"{url}/{fragment}")
        self.said("Ready")

    def said(self, text: str) -> None:
        self.page.locator("#status", has_text=text).wait_for(timeout=WAIT)

    @property
    def text(self) -> str:
        content: str = self.page.text_content("#text")
        return content


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, server: Serving) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = Page(context.new_page(), server.url, "#seed=7&max_tokens=40&temperature=1")
    yield page
    context.close()
    assert page.problems == []
    assert page.foreign == []


@needs_browser
def test_a_text_is_written_with_the_keyboard_alone(opened: Page, server: Serving) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.focus("#text")
    page.keyboard.type("it was")
    page.keyboard.press("Control+Enter")
    opened.said("Done: 40 tokens")
    request = {"model": "chars", "prompt": "it was", "max_tokens": 40, "seed": 7, "temperature": 1.0}
    expected = server.post("/v1/completions", request)[1]["choices"][0]["text"]
    assert opened.text == "it was" + expected
    page.keyboard.press("ArrowLeft")
    assert "probability" in page.text_content("#token")
    page.click("#undo")
    assert opened.text == "it was"
    page.click("#redo")
    assert opened.text == "it was" + expected


@needs_browser
def test_an_alternative_is_a_new_branch(opened: Page) -> None:
    page = opened.page
    page.focus("#text")
    page.keyboard.type("it was")
    page.click("#go")
    opened.said("Done")
    before = opened.text
    page.hover("#text span:nth-of-type(10)")
    button = page.locator("#alternatives button:enabled").first
    button.click()
    page.locator("#versions button", has_text="with").first.wait_for(state="attached", timeout=WAIT)
    assert opened.text[:15] == before[:15]
    assert opened.text[15] != before[15]
    assert len(opened.text) == 16 + 40


@needs_browser
def test_a_trace_colours_the_text_and_fills_the_map(opened: Page) -> None:
    page = opened.page
    page.focus("#text")
    page.keyboard.type("it was a day at sea")
    page.click("#trace")
    opened.said("Traced 19 tokens")
    for view in ("surprise", "neuron", "state", "0", "1"):
        page.select_option("#colour", view)
        colours = page.evaluate("() => [...document.querySelectorAll('#text span')].map(s => s.style.background)")
        assert len(set(colours)) > 2, view
    assert page.evaluate("() => [document.getElementById('map').width, document.getElementById('map').height]") == [
        19,
        64,
    ]
    page.focus("#map")
    page.keyboard.press("End")
    page.keyboard.press("PageDown")
    assert "tau" in page.text_content("#cell")
    page.keyboard.press("Enter")
    assert page.input_value("#neuron") != ""


@needs_browser
def test_markup_in_a_text_is_shown_as_text(browser: Any, server: Serving) -> None:
    context = browser.new_context()
    evil = "<img src=x onerror=document.title='gone'><script>document.title='gone'</script>"
    page = Page(context.new_page(), server.url, f"#text={evil}&model=chars")
    assert opened_text(page) == evil
    assert page.page.title() == "ltc serve"
    assert page.page.evaluate("() => document.querySelectorAll('#text *').length") == 0
    context.close()
    assert page.problems == []


def opened_text(page: Page) -> str:
    return page.text


@needs_browser
def test_states_are_saved_and_written_from(opened: Page) -> None:
    page = opened.page
    page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.focus("#text")
    page.keyboard.type("it was")
    page.click("#save")
    opened.said("saved")
    page.click("#states button:has-text('Write from it')")
    assert "6 tokens" in page.text_content("#before")
    page.click("#clear")
    page.click("#go")
    opened.said("Done")
    assert len(opened.text) == 40
    page.fill("#clamp-number", "40")
    page.click("#compare")
    page.locator("#both pre").first.wait_for(timeout=WAIT)
    assert page.locator("#both pre").count() == 2


@needs_browser
@pytest.mark.slow
def test_a_long_text_keeps_few_elements(opened: Page, server: Serving) -> None:
    nodes = opened.page.evaluate(
        """async () => {
          const { Text, MOST_SPANS } = await import("/static/text.js");
          const text = new Text(document.getElementById("text"));
          for (let n = 0; n < 1000; n += 1) {
            text.append(Array.from({ length: 100 }, () => ({ text: "a", facts: {} })));
            await new Promise(requestAnimationFrame);
          }
          text.flush();
          return [document.querySelectorAll("#text *").length, MOST_SPANS, text.value.length];
        }"""
    )
    assert nodes[0] <= nodes[1]
    assert nodes[2] == 100_000
