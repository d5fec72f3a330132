"""Episodes to watch: pictures as an animated GIF, or a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Environment, Frames, Html
from eggroll.runs.folder import put_whole, writing

MOST_FRAMES = 200
"""Pictures of a longer episode are thinned evenly to this many."""

_WIDEST = 480
"""Pixels; wider pictures are scaled down."""

_BRIEFEST = 20
"""Milliseconds between pictures: browsers show faster GIFs far slower."""


def check_rendering(environment: Environment, path: Path) -> None:
    """Refuse what could not be written, before there is an episode.

    Raises:
      UsageError: no renderer, or another suffix than what can be written.
    """
    if environment.render is None:
        raise UsageError(f"expected an environment that can be drawn, got {environment.name}; leave the rendering out")
    if path.suffix.lower() not in (".gif", ".html"):
        raise UsageError(f"expected a path ending in .gif or .html, got {path}; rename it")
    if environment.is_page and path.suffix.lower() != ".html":
        raise UsageError(f"expected a path ending in .html, as {environment.name} gives pages, got {path}; rename it")


def save_episode(environment: Environment, states: Sequence[Any], path: Path) -> Path:
    """Write what the environment shows of an episode, whole or not at all.

    Args:
      environment: with a renderer.
      states: of one episode in order, one at least, NumPy leaves.
      path: ends in .gif (only where the environment gives pictures) or .html.
    Returns:
      The path.
    Raises:
      UsageError: no renderer, no states, or another suffix than what can be written; found before the episode is drawn.
    """
    check_rendering(environment, path)
    if not states:
        raise UsageError("expected one state or more of an episode, got none; give those of its steps")
    assert environment.render is not None
    shown = environment.render(states if environment.is_page else _thinned(states))
    with writing(path):
        put_whole(path, [_content(environment, shown, path.suffix.lower())])
    return path


def _thinned(states: Sequence[Any]) -> list[Any]:
    """At most `MOST_FRAMES` states, evenly spaced, the first and last among them."""
    count = min(len(states), MOST_FRAMES)
    return [states[round(place)] for place in np.linspace(0, len(states) - 1, count)]


def _content(environment: Environment, shown: Frames | Html, suffix: str) -> bytes:
    if isinstance(shown, Html):
        return shown.text.encode()
    gif = _gif(shown, environment.seconds_per_step)
    return gif if suffix == ".gif" else _page(environment.name, gif)


def _gif(frames: Frames, seconds: float) -> bytes:
    """An animated GIF that starts over at its end."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    if pictures[0].width > _WIDEST:
        size = _WIDEST, max(1, round(pictures[0].height * _WIDEST / pictures[0].width))
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    buffer = io.BytesIO()
    duration = max(_BRIEFEST, round(1000 * seconds))
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


def _page(title: str, gif: bytes) -> bytes:
    """A page that needs no other file."""
    data = base64.b64encode(gif).decode()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f'<body><img alt="An episode of {title}" src="data:image/gif;base64,{data}"></body></html>\n'
    ).encode()
