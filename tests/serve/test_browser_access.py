"""The pages for everybody: axe, the keyboard alone, 320 pixels, dark, contrast, motion, the token."""

from __future__ import annotations

from typing import Any

import pytest

from browser_fixture import Talker, answered, opened, picture, send, started, until
from serve_fixture import running

pytestmark = pytest.mark.browser
TOKEN = "a-token-of-some-length"


def violations(page: Any) -> list[str]:
    """What axe has against the page as it is: rule, how many, where first."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{each['id']} ({len(each['nodes'])}): {each['nodes'][0]['html'][:160]}" for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_against_the_search_page(visit: Any, scheme: str) -> None:
    page = started(visit(color_scheme=scheme))
    assert violations(page) == []
    page.click("#filter-button")
    answered(page, lambda: (page.fill("#text", "a red circle -triangle"), page.press("#text", "Enter")))
    page.locator(".tile a").first.focus()
    page.keyboard.press("Space")
    assert violations(page) == []
    page.locator(".tile a").first.press("Enter")
    page.locator("#detail dd").first.wait_for()
    assert violations(page) == []
    page.locator("#detail [data-act=crop]").click()
    page.wait_for_selector(".part:focus")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.click("#export")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click("#help-button")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click("#as-map")
    page.locator(".names button").first.click()
    page.wait_for_selector(".near img")
    assert violations(page) == []
    page.click("#as-grid")
    answered(page, lambda: (page.fill("#text", "a zeppelin"), page.press("#text", "Enter")))
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_against_the_chat_page(visit: Any, scheme: str) -> None:
    page = opened(visit, color_scheme=scheme, refused=(400,))
    assert violations(page) == []
    page.set_input_files("#file", picture(("red", "circle")))
    page.wait_for_selector("#held li")
    page.click("#settings-button")
    assert violations(page) == []
    send(page, "Draw a box")
    send(page, "make an error")
    page.get_by_role("button", name="Edit").first.click()
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_opens_the_pages(visit: Any, scheme: str) -> None:
    from diptych.serve.app import create_app
    from diptych.serve.settings import Settings

    with running(create_app(None, {"talker": Talker()}, Settings(token=TOKEN))) as url:
        page = visit("/chat", base=url, color_scheme=scheme)
        assert page.url == f"{url}/login" and violations(page) == []
        page.fill("#token", "something else, of some length")
        page.keyboard.press("Enter")
        page.wait_for_selector("#wrong:not([hidden])")
        assert page.inner_text("#wrong") == "That is not the token." and page.evaluate("document.activeElement.id") == "token"
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#composer")
        page.wait_for_selector("#model option", state="attached")
        assert TOKEN not in page.url and TOKEN not in page.content()
        cookies = page.context.cookies()
        assert all(each["httpOnly"] and each["sameSite"] == "Strict" and TOKEN not in each["value"] for each in cookies) and cookies
        assert not page.locator("#to-search").is_visible()  # no index, no search


def focus_is_visible(page: Any) -> bool:
    """Whether what has the focus, or the frame around it, shows it."""
    return bool(
        page.evaluate("""() => {
          for (let node = document.activeElement; node && node !== document.body; node = node.parentElement) {
            const style = getComputedStyle(node);
            if (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) return true;
          }
          return false;
        }""")
    )


def test_the_search_works_with_the_keyboard_alone(visit: Any) -> None:
    page = started(visit())
    page.evaluate("document.body.tabIndex = -1, document.body.focus()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip" and focus_is_visible(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text" and focus_is_visible(page)
    page.keyboard.type("a red circle -square")
    answered(page, lambda: page.keyboard.press("Enter"))
    seen = []
    for _ in range(14):  # every stop of Tab down to the first picture
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
        assert focus_is_visible(page), seen
        if seen[-1] == "open":
            break
    assert seen[-1] == "open" and {"add-picture", "not", "filter-button", "as-map"} <= set(seen)
    at = "[...document.querySelectorAll('.tile')].indexOf(document.activeElement.closest('.tile'))"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(at) == 2
    page.keyboard.press("ArrowDown")
    below = page.evaluate(at)
    page.keyboard.press("ArrowUp")
    assert below > 2 and page.evaluate(at) <= 3
    page.keyboard.press("End")
    assert page.evaluate(at) == page.locator(".tile").count() - 1
    page.keyboard.press("Home")
    for name in ("Select", "More like this", "Less like this"):
        page.keyboard.press("Tab")
        assert name in page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
    page.locator(".tile a").first.focus()
    body = answered(page, lambda: page.keyboard.press("m"))
    assert len(body["like"]) == 1
    page.locator(".tile a").first.focus()
    page.keyboard.press("Enter")
    page.locator("#detail dd").first.wait_for()
    assert page.evaluate("document.querySelector('#detail').contains(document.activeElement)")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog[open]')")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.get_by_label("Single keys").uncheck()
    page.keyboard.press("Escape")
    page.locator(".tile a").first.focus()
    for key in ("?", "m", "/"):
        page.keyboard.press(key)
    assert page.locator("#help").is_hidden() and page.evaluate("document.activeElement.matches('.tile a')")


@pytest.mark.parametrize("width", [320, 2200])
def test_no_width_needs_scrolling_sideways(visit: Any, width: int) -> None:
    page = started(visit(viewport={"width": width, "height": 640}, has_touch=width < 500))

    def fits(what: str) -> None:
        over = page.evaluate("""() => { const seen = document.documentElement.clientWidth, dialog = document.querySelector("dialog[open]");
          if (document.documentElement.scrollWidth > seen || (dialog && dialog.scrollWidth > dialog.clientWidth)) return "scrolls " + [...document.querySelectorAll("*")].filter((n) => n.getBoundingClientRect().right > seen + 1).map((n) => n.outerHTML.slice(0, 60)).slice(0, 5).join(" | ");
          const nodes = (dialog || document.body).querySelectorAll("button, input, a, select, textarea, h1, h2, p, img, canvas");
          return [...nodes].filter((n) => { const b = n.getBoundingClientRect(); return b.width > 1 && b.height > 1 && (b.right > seen + 1 || b.left < -1) && !n.matches(".skip") && getComputedStyle(n).clipPath === "none" && !n.closest("[hidden], .cut, .side"); }).map((n) => n.outerHTML.slice(0, 100)).join() }""")
        assert over == "", f"{what}: {over}"

    fits("start")
    page.click("#filter-button")
    answered(page, lambda: (page.fill("#text", "a red circle -triangle"), page.press("#text", "Enter")))
    page.locator(".tile a").first.press("Space")
    fits("results, filters and selection")
    page.locator(".tile a").first.press("Enter")
    page.locator("#detail dd").first.wait_for()
    fits("detail")
    page.locator("#detail [data-act=crop]").click()
    page.wait_for_selector(".part:focus")
    fits("crop")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.click("#help-button")
    fits("help")
    page.keyboard.press("Escape")
    page.click("#as-map")
    page.wait_for_selector("#map canvas")
    fits("map")
    page.goto(page.url.split("#")[0] + "chat")
    until(page, "document.querySelector('#model').options.length > 0")
    page.click("#settings-button")
    page.set_input_files("#file", picture(("red", "circle")))
    page.wait_for_selector("#held li")
    send(page, "Draw a box around averyveryveryveryveryveryveryveryveryveryveryveryverylongword")
    fits("chat")


def test_dark_by_the_system_and_by_the_button(visit: Any) -> None:
    def lightness(page: Any) -> float:
        rgb = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)")
        return float(sum(rgb)) / 3

    page = started(visit(color_scheme="dark"))
    assert lightness(page) < 40
    page = started(visit(color_scheme="light"))
    assert lightness(page) > 230
    for _ in range(2):  # auto, light, dark
        page.click("#theme")
    assert lightness(page) < 40 and page.get_attribute("#theme", "title") == "Theme: dark"
    page.goto(page.url.split("#")[0] + "chat")
    page.wait_for_selector("#composer")
    assert lightness(page) < 40


def test_motion_contrast_and_paper(visit: Any) -> None:
    page = started(visit(reduced_motion="reduce"))
    page.locator(".tile a").first.press("Enter")
    page.locator("#detail dd").first.wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate(
        "[...document.querySelectorAll('button, .tile, .over')].every((node) => getComputedStyle(node).transitionDuration === '0s')"
    )
    page.emulate_media(media="print")
    assert page.locator("#detail .stage img").is_visible() and page.locator("#detail dl").is_visible()
    assert page.locator("#detail .do").is_hidden() and page.locator("main").is_hidden()
    page.emulate_media(media="screen", forced_colors="active")
    page.keyboard.press("Escape")
    assert page.evaluate("getComputedStyle(document.querySelector('#filter-button')).borderTopStyle") == "solid"
