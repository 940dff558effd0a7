"""The search page in Chromium: words, pictures, parts of pictures, filters, selection, map."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from browser_fixture import HEBREW, HOSTILE, answered, names, picture, search, started, until

pytestmark = pytest.mark.browser


def test_words_bring_the_pictures_that_fit(visit: Any) -> None:
    page = started(visit())
    assert page.inner_text("#welcome h2") == "Search 102 pictures"
    search(page, "a red circle")
    assert set(names(page)[:5]) == {f"red/circle-{k}.png" for k in range(5)} or all(
        "red/circle" in name for name in names(page)[:5]
    )
    assert page.inner_text("#status").startswith("The best of 102 pictures · ") and page.inner_text("#status").endswith(" ms")
    assert parse_qs(urlsplit(page.url).fragment) == {"q": ["a red circle"]}
    first = page.locator(".tile").first
    assert first.locator("img").get_attribute("alt") == "a red circle" and "%" in first.locator(".worth").inner_text()
    shown = page.evaluate(
        "async () => { const image = document.querySelector('.tile img'); await image.decode(); return image.naturalWidth; }"
    )
    assert shown > 50 and page.locator(".tile img[loading=lazy]").count() == page.locator(".tile img").count()
    page.reload()
    page.wait_for_selector(".tile")
    assert page.input_value("#text") == "a red circle" and "red/circle" in names(page)[0]


def test_words_after_a_minus_and_in_the_second_field_keep_pictures_away(visit: Any) -> None:
    page = started(visit())
    page.fill("#not", "circle, blue")
    body = answered(page, lambda: (page.fill("#text", "a red t-shirt -triangle"), page.press("#text", "Enter")))
    assert body["text"] == "a red t-shirt" and body["not"] == ["triangle", "circle", "blue"]
    assert all("red/square" in name for name in names(page)[:5])
    chips = page.locator("#chips .chip.without")
    assert chips.all_inner_texts() == ["without triangle", "without circle", "without blue"] or chips.count() == 3
    body = answered(page, lambda: page.get_by_role("button", name="Remove: without triangle").click())
    assert body["not"] == ["circle", "blue"] and page.evaluate("document.activeElement.closest('#chips') !== null")


def test_filters_hold_during_the_search_and_can_be_taken_off(visit: Any) -> None:
    page = started(visit())
    page.click("#filter-button")
    answered(page, lambda: page.locator("#filters [data-value='\"circle\"']").check())
    page.fill("#folder", "green")
    answered(page, lambda: page.get_by_role("button", name="Apply").click())
    assert len(names(page)) == 5 and all(name.startswith("green/circle") for name in names(page))
    assert page.inner_text("#status").startswith("7 pictures that pass the filters")
    search(page, "a red circle")
    assert all(name.startswith("green/circle") for name in names(page))
    page.reload()  # the address holds the filters, and the form shows them
    page.wait_for_selector(".tile")
    assert all(name.startswith("green/circle") for name in names(page)) and page.input_value("#folder") == "green"
    body = answered(page, lambda: page.get_by_role("button", name="Remove: in green").click())
    assert body["filters"] == {"columns": {"shape": "circle"}} and names(page)[0].startswith("red/circle")
    page.click("#filter-button")
    body = answered(page, lambda: (page.fill("#words", "no such words"), page.press("#words", "Enter")))
    assert page.inner_text("#status") == "No picture passes the filters." and page.locator(".tile").count() == 0


def test_more_and_less_like_a_picture(visit: Any) -> None:
    page = started(visit())
    search(page, "a blue circle")
    tile = page.locator('.tile:has([title^="blue/circle"])').first
    tile.hover()
    body = answered(page, lambda: tile.get_by_role("button", name="More like this").click())
    assert body["like"] == [int(tile.get_attribute("data-id") or body["like"][0])] or len(body["like"]) == 1
    assert all("blue/circle" in name for name in names(page)[:4])
    tile = page.locator('.tile:has([title^="blue/circle"])').first
    tile.hover()
    body = answered(page, lambda: tile.get_by_role("button", name="Less like this").click())
    assert len(body["not_like"]) == 1 and page.locator("#chips .chip").count() == 2
    page.go_back()
    until(page, "document.querySelectorAll('#chips .chip').length === 1")


def test_a_picture_and_a_part_of_it(visit: Any) -> None:
    page = started(visit())
    body = answered(page, lambda: page.set_input_files("#file", picture(("yellow", "circle"), ("blue", "square"))))
    assert body["image"].startswith("data:image/png;base64,") and "crop" not in body
    assert "image" not in page.url and "base64" not in page.url and "mine" not in page.url
    page.get_by_role("button", name="Choose a part of: mine.png").click()
    box = page.locator(".cut").bounding_box()
    until(page, "document.querySelector('.cut img').complete")
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    page.keyboard.press("Tab")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.49, box["y"] + box["height"] - 3, steps=4)
    page.mouse.up()
    body = answered(page, lambda: page.get_by_role("button", name="Search this part").click())
    assert body["crop"] == pytest.approx([0, 0, 0.49, 1], abs=0.03)
    assert all("yellow/circle" in name for name in names(page)[:5])
    # The same with keys: from the left half to the right one.
    page.get_by_role("button", name="Choose a part of").click()
    page.wait_for_selector(".part:focus")
    for _ in range(18):
        page.keyboard.press("ArrowRight")
    body = answered(page, lambda: (page.keyboard.press("Tab"), page.get_by_role("button", name="Search this part").press("Enter")))
    assert body["crop"] == pytest.approx([0.51, 0, 1, 1], abs=0.04)
    assert all("blue/square" in name for name in names(page)[:5])
    # Words are added to the picture; going back brings the part before.
    body = answered(page, lambda: (page.fill("#text", "red"), page.press("#text", "Enter")))
    assert body["text"] == "red" and body["image"].startswith("data:")
    page.go_back()
    until(page, "document.querySelector('#text').value === ''")
    assert "part of mine.png" in page.inner_text("#chips")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_pictures_can_be_dropped_and_pasted(visit: Any, how: str) -> None:
    page = started(visit())
    given = list(picture(("green", "triangle"))["buffer"])
    script = """([bytes, how]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "given.png", { type: "image/png" }));
      if (how === "drop") for (const kind of ["dragenter", "drop"]) document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
      else document.body.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: data }));
    }"""
    answered(page, lambda: page.evaluate(script, [given, how]))
    assert "given.png" in page.inner_text("#chips") and all("green/triangle" in name for name in names(page)[:5])
    assert page.locator("#drop").is_hidden()


def test_a_picture_large_with_its_facts(visit: Any, gallery: Any) -> None:
    page = started(visit())
    search(page, "a purple triangle")
    page.locator(".tile .open").first.click()
    detail = page.locator("#detail")
    detail.locator("dd").first.wait_for()
    id = int(parse_qs(urlsplit(page.url).fragment)["id"][0])
    facts = gallery.index.picture(id)
    text = detail.inner_text()
    assert facts.name in text and f"{facts.width} × {facts.height}" in text and "a purple triangle" in text and "shape" in text
    assert detail.get_by_role("link", name="Download").get_attribute("href") == f"/picture/{id}"
    until(page, "document.querySelector('#detail .stage img').naturalWidth > 0")
    page.keyboard.press("ArrowRight")
    until(page, f"!location.hash.includes('id={id}')")
    address = page.url
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('id=')")
    assert page.evaluate("document.activeElement.matches('.tile a')") and page.input_value("#text") == "a purple triangle"
    page.goto("about:blank")
    page.goto(address)  # the link alone brings search and picture
    detail.locator("dd").first.wait_for()
    assert page.input_value("#text") == "a purple triangle" and detail.is_visible()


def test_a_selection_becomes_a_data_set(visit: Any, gallery: Any) -> None:
    page = started(visit())
    search(page, "a green circle")
    tiles = page.locator(".tile")
    tiles.nth(0).locator("a").focus()
    page.keyboard.press("Space")
    tiles.nth(3).locator("a").click(modifiers=["Shift"])
    assert page.inner_text("#picked") == "4 selected"
    tiles.nth(3).locator("a").focus()
    page.keyboard.press("Shift+ArrowRight")
    assert page.inner_text("#picked") == "5 selected"
    page.keyboard.press("Space")
    assert page.inner_text("#picked") == "4 selected"
    wanted = [int(tiles.nth(k).get_attribute("data-id") or -1) for k in range(4)]
    page.reload()  # the selection stays with the tab
    page.wait_for_selector(".tile.picked")
    page.click("#export")
    page.fill("#save-name", "round things")
    page.keyboard.press("Enter")
    page.wait_for_selector("#address")
    assert "selection=round" in page.inner_text("#address") and page.inner_text("#command").startswith("diptych ")
    kept = gallery.index.selections()["round things"]
    assert sorted(kept) == sorted(wanted)
    page.get_by_role("button", name="Copy the address").click()
    until(page, "document.querySelector('#save').innerText.includes('Copied')")
    page.fill("#save-name", "../no")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#save-name').validity.patternMismatch")


def test_what_is_not_there_is_not_shown(visit: Any) -> None:
    page = started(visit())
    search(page, "a zeppelin over the sea")
    assert page.locator("#nothing").is_visible() and page.locator(".tile").count() == 0
    assert page.inner_text("#nothing-title") == "Nothing here looks like that"
    page.get_by_role("button", name="Show what is nearest").click()
    page.wait_for_selector(".far .tile")
    assert page.inner_text("#status").startswith("The nearest of 102 pictures") and page.evaluate(
        "document.activeElement.matches('.tile a')"
    )
    search(page, "a red square")
    assert page.locator("#nothing").is_hidden() and page.locator(".far").count() == 0


def test_more_pictures_and_folded_ones(visit: Any) -> None:
    page = started(visit())
    assert page.locator(".tile").count() == 60
    page.locator("#next").click()
    until(page, "document.querySelectorAll('.tile').length === 90")  # 102 without 12 copies
    assert page.locator("#next").is_hidden() and len(set(names(page))) == 90
    search(page, "a red circle")
    page.locator(".same").first.click()
    page.wait_for_selector(".tile.copy >> nth=1")
    assert page.locator(".tile.copy").count() == 2 and page.locator(".same").first.get_attribute("aria-expanded") == "true"
    page.locator(".same").first.click()
    assert page.locator(".tile.copy").count() == 0


def test_the_map_shows_groups_and_their_pictures(visit: Any) -> None:
    page = started(visit())
    page.click("#as-map")
    canvas = page.locator("#map canvas")
    canvas.wait_for()
    painted = "() => { const c = document.querySelector('#map canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }"
    until(page, f"({painted})() > 3000")
    groups = page.locator(".names button")
    assert groups.count() >= 2
    groups.first.click()
    page.wait_for_selector(".near img")
    assert groups.first.get_attribute("aria-pressed") == "true" and page.locator(".near img").count() > 1
    canvas.focus()
    page.keyboard.press("0")
    until(page, "document.querySelectorAll('.near img').length === 0")
    before = page.evaluate(painted)
    for key in ("+", "+", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    until(page, f"({painted})() !== {before}")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.wheel(0, -400)
    page.keyboard.press("0")
    groups.nth(1).click()
    page.wait_for_selector(".near a")
    page.locator(".near a").first.click()
    page.locator("#detail dd").first.wait_for()
    assert "view=map" in page.url


def test_captions_are_only_ever_text(visit: Any) -> None:
    page = started(visit())
    search(page, "red square")
    alts = page.eval_on_selector_all(".tile img", "nodes => nodes.map((node) => node.alt)")
    assert HOSTILE in alts and HEBREW in alts
    page.locator(f'.tile:has(img[alt="{HEBREW}"]) .open').click()
    caption = page.locator("#detail .caption")
    caption.wait_for()
    assert caption.inner_text() == HEBREW and caption.evaluate("node => getComputedStyle(node).direction") == "rtl"
    page.keyboard.press("Escape")
    tile = page.locator(".tile").nth(alts.index(HOSTILE))
    tile.locator(".open").click()
    until(page, "document.querySelector('#detail .caption')?.textContent.startsWith('<script>')")
    page.get_by_role("button", name="More like this").last.click()
    page.wait_for_selector("#chips .chip")
    assert HOSTILE in page.inner_text("#chips") and page.evaluate("window.hacked === undefined && document.scripts.length === 2")


def test_a_server_that_refuses_is_shown_as_it_says(visit: Any) -> None:
    page = started(visit(refused=(400,), quiet=("ERR_FAILED",)))
    page.goto(page.url.split("#")[0] + "#c.nonsense=3")
    page.wait_for_selector("#problem:not([hidden])")
    assert "nonsense" in page.inner_text("#problem") and page.locator(".tile").count() == 0
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#text", "red")
    page.press("#text", "Enter")
    until(page, "document.querySelector('#problem').textContent.includes('does not answer')")
    page.unroute("**/v1/search")


def test_the_address_holds_the_whole_query_and_no_more(visit: Any) -> None:
    """``hashOf`` and ``stateOf`` are inverse, what is malformed is left out, and a minus is one only before a word."""
    page = visit()
    states = [
        {"text": "a & b # c + d", "not": ["x, y", "−"], "like": [1, 2**40], "unlike": [3]},
        {"text": "", "like": [7], "crop": [0.125, 0.25, 0.5, 1], "view": "map", "open": 12},
        {"filters": {"folder": "a/ü b", "since": "2024-01-02", "min_width": 30, "words": "x y", "columns": {"a.b": "5", "n": 5, "t": True, "l": ["x", 2], "r": {"min": 0.5, "max": 3}}}},
    ]  # fmt: skip
    ways = page.evaluate(
        """async (states) => { const { empty, hashOf, stateOf } = await import("/static/state.js");
          return states.map((each) => [{ ...empty(), ...each }, stateOf(hashOf({ ...empty(), ...each }))]); }""",
        states,
    )
    for before, after in ways:
        assert after == before
    bad = page.evaluate("""async () => { const { stateOf } = await import("/static/state.js");
      return stateOf("#like=1,x,-2,9e9&id=../3&crop=0,0,1,1&min_width=x&min.n=no&view=other&picture=data:&%ff=%"); }""")
    assert bad["like"] == [1] and bad["open"] is None and bad["filters"] == {} and bad["view"] == "grid" and bad["picture"] is None
    texts = {
        "beach -people -\"two dogs\"": ("beach", ["people", "two dogs"]), "a t-shirt": ("a t-shirt", []), "-x": ("", ["x"]),
        "5 - 3": ("5 - 3", []), "a -- b": ("a -- b", []), "jack-o'-lantern -night": ("jack-o'-lantern", ["night"]),
    }  # fmt: skip
    for text, (rest, without) in texts.items():
        found = page.evaluate('async (text) => (await import("/static/state.js")).negatives(text)', text)
        assert (found["text"], found["not"]) == (rest, without), text
