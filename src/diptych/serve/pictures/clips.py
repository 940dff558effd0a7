"""Clips in requests: data URLs of video files, as servers of OpenAI's API take them (``video_url``), or of JPEG frames.

A file is decoded in a process of its own, with limits on its pixels, its length, its time and its memory (``clip_process``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diptych.core.capabilities import Image, Model
from diptych.core.sample import Turn
from diptych.data.clips import Frames
from diptych.inference.foreign.frames import expanded
from diptych.serve.conversation import Shown
from diptych.serve.errors import ApiError
from diptych.serve.pictures.images import bytes_of, pictures_of, pixels
from diptych.serve.settings import Settings
from diptych.serve.state import takes_clips

JPEGS = "data:video/jpeg;base64,"  # frames one after the other, with commas between them, as vLLM takes them
PICTURES = 8  # frames of a clip that a model of pictures is shown
SIZE = 448  # the shorter side of frames, in pixels


def check_clips(shown: Sequence[Shown], model: Model, settings: Settings) -> None:
    """ApiError 400 for clips that a model cannot be shown, and for more than one request may have."""
    clips = [each for each in shown if each.clip]
    if clips and not takes_clips(model):
        raise ApiError(400, f"model '{model.name}' reads one picture, and this is a clip: send a frame of it", clips[0].where)
    if len(clips) > settings.max_clips:
        raise ApiError(400, f"{len(clips)} clips; at most {settings.max_clips}", clips[settings.max_clips].where)


def seen_of(shown: Sequence[Shown], settings: Settings) -> list[Image]:
    """What a conversation shows, in order: pictures [height, width, 3] and clips [frames, height, width, 3]."""
    pictures = iter(pictures_of([(each.url, each.where) for each in shown if not each.clip], settings))
    return [clip_of(each.url, settings, each.where) if each.clip else next(pictures) for each in shown]


def clip_of(url: str, settings: Settings, param: str = "video_url") -> Image:
    """The clip of a data URL, uint8 [frames, height, width, 3]. ApiError 400 for one that is not used."""
    if url[:5].lower() != "data:":
        raise ApiError(400, "expected a clip as a data: URL, such as data:video/mp4;base64,…; clips are not fetched", param)
    if url[: len(JPEGS)].lower() == JPEGS:
        return _frames(url[len(JPEGS) :].split(","), settings, param)
    data = bytes_of(url, param)
    limits = {
        "frames": settings.max_frames,
        "size": SIZE,
        "pixels": settings.max_pixels,
        "seconds": settings.clip_seconds,
        "cpu": max(1, round(settings.clip_timeout)),
    }
    command = [sys.executable, "-m", "diptych.serve.pictures.clip_process", json.dumps(limits)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=settings.clip_timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ApiError(400, f"the clip could not be decoded within {settings.clip_timeout:g} s", param) from None
    head, _, frames = done.stdout.partition(b"\n")
    says: dict[str, Any] = json.loads(head) if head else {"problem": "its decoder ended: too large, too slow or damaged"}
    if "problem" in says:
        raise ApiError(400, f"the clip cannot be used: {says['problem']}"[:300], param)
    clip = np.frombuffer(frames, dtype=np.uint8).reshape(says["shape"]).view(Frames)
    clip.seconds = says["seconds"]
    return clip


def _frames(parts: Sequence[str], settings: Settings, param: str) -> Image:
    """A clip from its frames as JPEG in base64."""
    if len(parts) > settings.max_frames:
        raise ApiError(400, f"{len(parts)} frames; at most {settings.max_frames}", param)
    one = replace(settings, max_pixels=max(1, settings.max_pixels // len(parts)))
    frames = [pixels(bytes_of(f"data:image/jpeg;base64,{part}", param), one, param) for part in parts]
    if len({frame.shape for frame in frames}) > 1:
        raise ApiError(400, "the frames of the clip differ in size", param)
    clip = np.stack(frames).view(Frames)
    clip.seconds = [float(i) for i in range(len(frames))]
    return clip


def for_model(model: Model, turns: Sequence[Turn], seen: Sequence[Image], settings: Settings) -> tuple[list[Turn], list[Image]]:
    """The conversation as a model is shown it: to a model of pictures a clip is its frames, with a mark for each. ApiError 400 for
    more pictures than a conversation may have.
    """
    if getattr(model, "shows", "image") == "video" or all(image.ndim == 3 for image in seen):
        return list(turns), list(seen)
    result, images = expanded(turns, seen, PICTURES)
    if len(images) > settings.max_images:
        raise ApiError(400, f"{len(images)} pictures with the frames of clips; at most {settings.max_images}", "messages")
    return result, images
