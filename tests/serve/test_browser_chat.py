"""The chat page in Chromium: answers as they are written, pictures, boxes, errors, edits, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browser_fixture import opened, picture, send, until
from diptych.data.conversations.turns import images_in, turns_of

pytestmark = pytest.mark.browser


def last(page: Any) -> Any:
    return page.locator(".turn").last


def test_an_answer_arrives_word_by_word(visit: Any) -> None:
    page = opened(visit)
    send(page, "Please write a long answer", wait=False)
    until(page, "document.querySelector('.says.busy')?.textContent.includes('word5')")
    assert "word399" not in last(page).inner_text() and page.locator("#stop").is_visible() and page.locator("#send").is_hidden()
    page.keyboard.press("Escape")  # stops it
    until(page, "!document.body.hasAttribute('data-busy')")
    text = last(page).inner_text()
    assert "word5" in text and "word399" not in text and "stopped" in text and "tokens/s" in text
    assert page.locator("#send").is_visible() and page.evaluate("document.activeElement.id") == "text"
    body = send(page, "And now?")
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"] and "word5" in body["messages"][1]["content"]
    text = last(page).inner_text()
    assert "You asked: And now?" in text and "tokens/s" in text and "stopped" not in text
    until(page, "document.querySelector('#live').textContent.startsWith('Answer: You asked')")  # said a moment later


def test_the_stop_button_closes_the_connection(visit: Any) -> None:
    page = opened(visit)
    with page.expect_event("requestfailed") as failed:
        send(page, "long", wait=False)
        until(page, "document.querySelector('.says.busy')?.textContent.includes('word3')")
        page.click("#stop")
    assert failed.value.url.endswith("/v1/chat/completions")
    until(page, "document.querySelector('.turn:last-child .foot')?.textContent.includes('stopped')")


def test_boxes_are_drawn_on_the_picture(visit: Any) -> None:
    page = opened(visit)
    page.set_input_files("#file", [picture(("red", "circle")), picture(("blue", "square"))])
    page.wait_for_selector("#held li >> nth=1")
    page.get_by_role("button", name="Remove mine.png").first.click()
    body = send(page, "Draw a box around it")
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"] and content[0]["image_url"]["url"].startswith(
        "data:image/png;base64,"
    )
    drawn = page.eval_on_selector_all(
        ".boxed rect.over", "nodes => nodes.map((n) => ['x', 'y', 'width', 'height'].map((name) => Number(n.getAttribute(name))))"
    )
    assert drawn == [pytest.approx([0.1, 0.2, 0.5, 0.6]), pytest.approx([0.5, 0.1, 0.4, 0.3])]
    text = last(page).locator(".says").inner_text()
    assert "box>" not in text and "[" not in text and text.replace(" ", "").startswith("Ashape1andanotheroneat2")
    assert "1, shape: left 10 %, top 20 %, right 60 %, bottom 80 %" in page.locator(".boxed img").get_attribute("alt")
    rect, image = (page.locator(s).first.bounding_box() for s in (".boxed rect.over", ".boxed img"))
    assert (rect["x"] - image["x"]) / image["width"] == pytest.approx(0.1, abs=0.03)


def test_errors_stand_in_the_conversation(visit: Any) -> None:
    page = opened(visit, refused=(400,))
    send(page, "make an error")
    assert "90,000,000 pixels" in last(page).inner_text() and page.locator("#send").is_visible()
    assert "error" in (last(page).get_attribute("class") or "")
    with page.expect_request("**/v1/chat/completions") as found:
        page.get_by_role("button", name="Try again").click()
    until(page, "!document.body.hasAttribute('data-busy')")
    assert [m["role"] for m in json.loads(found.value.post_data)["messages"]] == ["user"] and page.locator(".turn").count() == 2
    body = send(page, "something else")  # what failed is not sent again
    assert [m["role"] for m in body["messages"]] == ["user"]
    assert [part["text"] for part in body["messages"][0]["content"]] == ["make an error", "something else"]


def test_a_message_can_be_edited_and_asked_again(visit: Any) -> None:
    page = opened(visit)
    send(page, "first")
    send(page, "second")
    page.press("#text", "ArrowUp")
    page.wait_for_selector(".redo textarea")
    assert page.input_value(".redo textarea") == "second"
    page.keyboard.press("Escape")
    assert page.locator(".redo").count() == 0 and page.locator(".turn").count() == 4
    page.get_by_role("button", name="Edit").first.click()
    page.fill(".redo textarea", "first, but better")
    page.press(".redo textarea", "Enter")
    until(page, "document.querySelectorAll('.turn').length === 2 && !document.body.hasAttribute('data-busy')")
    assert "You asked: first, but better" in last(page).inner_text()
    with page.expect_request("**/v1/chat/completions"):
        page.get_by_role("button", name="Again", exact=True).click()
    until(page, "!document.body.hasAttribute('data-busy')")
    assert page.locator(".turn").count() == 2
    page.reload()  # the conversation stays with the tab
    page.wait_for_selector(".turn >> nth=1")
    page.get_by_role("button", name="New").click()
    assert page.locator(".turn").count() == 0 and page.locator("#blank").is_visible()


def test_settings_go_along(visit: Any) -> None:
    page = opened(visit)
    assert page.locator("#settings").is_hidden()
    page.click("#settings-button")
    for name, value in {"temperature": "0.7", "top_p": "0.9", "max_tokens": "40", "seed": "3", "system": "Be brief."}.items():
        page.fill(f"#{name}", value)
    body = send(page, "Hello")
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"], body["seed"]) == (0.7, 0.9, 40, 3)
    assert (
        body["messages"][0] == {"role": "system", "content": "Be brief."} and body["stream"] is True and body["model"] == "talker"
    )


def test_the_exported_conversation_is_data(visit: Any, tmp_path: Path) -> None:
    page = opened(visit)
    page.set_input_files("#file", picture(("red", "circle")))
    page.wait_for_selector("#held li")
    send(page, "What is it?")
    send(page, "And the colour?")
    with page.expect_download() as found:
        page.click("#export")
    found.value.save_as(tmp_path / "conversation.json")
    messages = json.loads((tmp_path / "conversation.json").read_text(encoding="utf-8"))["messages"]
    turns = turns_of(messages)  # as the data source reads it
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"] and "What is it?" in turns[0].text
    assert len(images_in(messages)) == 1 and images_in(messages)[0].startswith("data:image/png")


def test_pictures_come_along_from_the_search(visit: Any) -> None:
    page = visit("/#q=a+blue+circle")
    page.wait_for_selector(".tile")
    page.locator(".tile .open").first.click()
    page.locator("#detail [data-act=chat]").click()
    page.wait_for_selector("#held img")
    assert page.url.endswith("/chat") and page.locator("#held li").count() == 1
    body = send(page, "What is it?")
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")
    assert page.locator("#held li").count() == 0 and page.locator(".turn.user img").count() == 1
    page.reload()  # not once more
    page.wait_for_selector(".turn.user img")
    assert page.locator("#held li").count() == 0


def test_what_is_written_stays_text(visit: Any) -> None:
    page = opened(visit)
    send(page, "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script> [0.5, 0.1, 7, 2] [1, 2]")
    text = last(page).locator(".says").inner_text()
    assert "<img src=x" in text and "[0.5, 0.1, 7, 2]" in text and page.evaluate("window.hacked === undefined")
    assert page.locator(".boxed").count() == 0


def test_boxes_in_texts(visit: Any) -> None:
    page = opened(visit)
    find = 'async (text) => (await import("/static/boxes.js")).partsOf(text)'
    for text, boxes in {
        "<box>0.1,0.2,0.3,0.4</box>": [[0.1, 0.2, 0.3, 0.4]],
        "at [0, 0, 1, 1].": [[0, 0, 1, 1]],
        "<box>(.1, .2), (.3, .4)</box>": [[0.1, 0.2, 0.3, 0.4]],
        "<ref>a dog</ref><box>0.1,0.2,0.3,0.4</box> and [0.5,0.5,0.6,0.6]": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6]],
        "[0.3, 0.2, 0.1, 0.4] [1, 2, 3, 4] [-0.1, 0, 1, 1] [0.1, 0.2, 0.3] <box>1</box>": [],
    }.items():
        parts = page.evaluate(find, text)
        assert [part["box"] for part in parts if not isinstance(part, str)] == boxes, text
    assert page.evaluate(find, "<ref>a dog</ref><box>0.1,0.2,0.3,0.4</box>")[0]["label"] == "a dog"
    # While an answer arrives, no half of a box is seen.
    whole = "A <ref>red dog</ref><box>0.1,0.2,0.3,0.4</box> is < 3 m away"
    shown = page.evaluate(
        """async (text) => { const { settled, partsOf } = await import("/static/boxes.js");
          return [...Array(text.length + 1).keys()].map((n) => partsOf(settled(text.slice(0, n))).filter((part) => typeof part === "string").join("")); }""",
        whole,
    )
    assert all("box" not in text and "ref" not in text and "0.1" not in text for text in shown) and shown[-1] == "A  is < 3 m away"


def test_where_a_model_sees_a_text_is_drawn_under_an_enlarged_picture(visit: Any) -> None:
    page = opened(visit, refused=(400,))
    page.set_input_files("#file", picture(("red", "circle")))
    page.wait_for_selector("#held li")
    page.locator("#held .shot").click()
    page.fill("#where", "a red circle")
    page.press("#where", "Enter")
    until(page, "document.querySelector('.where .error')?.textContent.includes('say where things are')")
    answer = {"model": "finds", "by": "cross", "box": None, "score": 1.0, "faithful": False, "verdict": "not faithful: <b>but</b>"}
    small = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    page.route("**/v1/locate", lambda route: route.fulfill(json={**answer, "image": small}))
    with page.expect_request("**/v1/locate") as asked:
        page.press("#where", "Enter")
    body = json.loads(asked.value.post_data)
    assert body["text"] == "a red circle" and body["image_url"]["url"].startswith("data:image/png;base64,")
    until(page, "document.querySelector('.where strong')?.textContent === 'a red circle: not faithful'")
    assert "not faithful: <b>but</b>" in page.locator(".where p").inner_text() and page.locator(".where img").get_attribute("alt")
