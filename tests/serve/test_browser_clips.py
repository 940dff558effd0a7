"""Clips on the chat page in Chromium: chosen, shown as a still, sent as they are, played in the dialog."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from browser_fixture import opened, picture, send, until
from video_fixture import painted, write

pytestmark = pytest.mark.browser


def test_a_clip_is_sent_as_it_is_and_shown_as_a_still(visit: Any, tmp_path: Path) -> None:
    film = Path(write(tmp_path / "film.webm", n=8))
    page = opened(visit)
    assert page.get_attribute("#file", "accept") == "image/*,video/*", "of a model that takes clips"
    page.set_input_files(
        "#file", [{"name": "film.webm", "mimeType": "video/webm", "buffer": film.read_bytes()}, picture(("red", "circle"))]
    )
    page.wait_for_selector("#held li >> nth=1")
    body = send(page, "What happens?")
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["video_url", "image_url", "text"]
    sent = content[0]["video_url"]["url"]
    assert sent.startswith("data:video/webm;base64,") and base64.b64decode(sent.partition(",")[2]) == film.read_bytes()
    assert "There are 9 pictures" in page.locator(".turn").last.inner_text(), "eight frames and the picture"
    assert page.eval_on_selector(".shots img", "img => [img.naturalWidth, img.naturalHeight].join()") == "80,48", (
        "a still of the film"
    )
    page.locator(".shots button").first.click()
    until(page, "document.querySelector('#large video')?.readyState >= 2")
    assert page.eval_on_selector("#large video", "film => film.videoWidth") == 80
    page.keyboard.press("Escape")


def test_a_clip_that_is_too_large_or_no_clip_is_an_error_in_the_conversation(visit: Any, tmp_path: Path) -> None:
    page = opened(visit, refused=(400,))
    page.set_input_files("#file", [{"name": "noise.mp4", "mimeType": "video/mp4", "buffer": b"no film at all"}])
    page.wait_for_selector("#held li")
    send(page, "What happens?")
    assert "not MP4, MOV, WebM" in page.locator(".turn").last.inner_text()
    page.evaluate("""() => {
      const file = new File([new Uint8Array(20_000_001)], "huge.mp4", { type: "video/mp4" }), list = new DataTransfer();
      list.items.add(file);
      document.getElementById("file").files = list.files;
      document.getElementById("file").dispatchEvent(new Event("change"));
    }""")
    until(page, "document.body.innerText.includes('a clip may have 20 MB')")


def test_the_player_of_a_report_steps_through_the_frames(tmp_path: Path, browser: Any) -> None:
    """Of a report: what the button of a clip shows after it was pressed."""
    import numpy as np

    from diptych.data.clips import Frames
    from diptych.report.drawing.document import Page, Section, document
    from diptych.report.drawing.films import film, film_of

    clip = np.stack([painted(k) for k in range(8)]).view(Frames)
    clip.seconds = [0.2 * k for k in range(8)]
    body = film(film_of(clip), "a clip that counts")
    (tmp_path / "r.html").write_text(document("t", [], [Page("p", "P", [Section("s", "S", body)])]))
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    player = page.get_by_role("button", name="Play the clip")
    assert player.is_visible() and player.get_attribute("aria-pressed") == "false"
    place = "getComputedStyle(document.querySelector('.film')).backgroundPositionX"
    assert page.evaluate(place) == "0px" or page.evaluate(place) == "0%"
    player.click()
    seen = set()
    for _ in range(60):
        seen.add(page.evaluate(place))
        page.wait_for_timeout(30)
    known = {f"{100 * k / 7:.2f}" for k in range(8)}
    assert {f"{float(p.rstrip('%px')):.2f}" for p in seen} <= known and len(seen) >= 4, seen
    player.click()
    assert player.get_attribute("aria-pressed") == "false" and page.evaluate(place) in ("0px", "0%")
    page.close()
