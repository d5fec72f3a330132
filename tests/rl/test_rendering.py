"""Episodes as files: counted, sized and timed as promised, and refused before a byte is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Discrete, Environment, Html
from eggroll.rl.rendering import save_episode

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def pictured(width: int = 60) -> Environment:
    """Its states are numbers; each makes a picture of its own."""

    def render(states: Sequence[Any]) -> list[np.ndarray]:
        frames = [np.zeros((30, width, 3), np.uint8) for _ in states]
        for state, frame in zip(states, frames, strict=True):
            frame[state // width % 30, state % width] = 255
        return frames

    return environment(render)


def environment(render: Any, is_page: bool = False) -> Environment:
    def never(*_: Any) -> Any:
        pytest.fail("played")

    return Environment("Fake", never, never, 1, Discrete(2), 10, render=render, seconds_per_step=0.04, is_page=is_page)


def test_a_gif_has_a_picture_a_state(tmp_path: Path) -> None:
    path = save_episode(pictured(), list(range(7)), tmp_path / "a.gif")
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (7, (60, 30), 40, 0)
    assert list(tmp_path.iterdir()) == [path]


def test_long_episodes_are_thinned_and_wide_pictures_made_smaller(tmp_path: Path) -> None:
    with Image.open(save_episode(pictured(), list(range(450)), tmp_path / "long.gif")) as gif:
        assert gif.n_frames == 200
        gif.seek(199)
        assert np.asarray(gif.convert("L"))[449 // 60, 449 % 60] > 128
    with Image.open(save_episode(pictured(960), [0], tmp_path / "wide.gif")) as gif:
        assert gif.size == (480, 15)


def test_a_page_holds_the_pictures(tmp_path: Path) -> None:
    text = save_episode(pictured(), [1, 2], tmp_path / "a.html").read_text()
    assert "data:image/gif;base64,R0lGOD" in text


def test_a_page_of_the_environment_is_written_as_it_is(tmp_path: Path) -> None:
    pages = environment(lambda states: Html(f"<p>{len(states)} steps</p>"), is_page=True)
    assert save_episode(pages, list(range(300)), tmp_path / "a.html").read_text() == "<p>300 steps</p>"
    with pytest.raises(UsageError, match=r"ending in \.html, as Fake gives"):
        save_episode(pages, [1], tmp_path / "a.gif")


@pytest.mark.parametrize(("name", "states"), [("a.png", [1]), ("a.gif", [])])
def test_what_cannot_be_written_is_not_drawn(tmp_path: Path, name: str, states: list[int]) -> None:
    with pytest.raises(UsageError, match="expected"):
        save_episode(environment(lambda states: pytest.fail("drawn")), states, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_renderer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can be drawn, got Fake"):
        save_episode(environment(None), [1], tmp_path / "a.gif")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        save_episode(pictured(), [1], tmp_path / "none" / "a.gif")
