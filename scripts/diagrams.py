"""Draw the diagrams of docs/how-it-works.md: `python scripts/diagrams.py` writes docs/diagrams/*.svg.

As files they follow the reader's preference for light or dark; put into a page of the site they take its colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs/diagrams"
STYLE = """\
.eg{--eg-ink:#212121;--eg-dim:#616161;font-family:inherit,system-ui,sans-serif}
@media (prefers-color-scheme:dark){.eg{--eg-ink:#e0e0e0;--eg-dim:#a0a0a0}}
.eg text{fill:var(--md-default-fg-color,var(--eg-ink));font-size:13px}
.eg .small{fill:var(--md-default-fg-color--light,var(--eg-dim));font-size:11.5px}
.eg .bold{font-weight:600}
.eg .line{fill:none;stroke:var(--md-default-fg-color,var(--eg-ink));stroke-width:1.3}
.eg .head{fill:var(--md-default-fg-color,var(--eg-ink));stroke:none}
.eg .plain{fill:none;stroke:var(--md-default-fg-color--light,var(--eg-dim));stroke-width:1}
.eg .dashed{fill:none;stroke:var(--md-default-fg-color--light,var(--eg-dim));stroke-width:1;stroke-dasharray:4 4}
.eg .shared{fill:#00968830;stroke:#009688;stroke-width:1.3}
.eg .own{fill:#ef6c0030;stroke:#ef6c00;stroke-width:1.3}
.eg .disk{fill:#3f7fd030;stroke:#3f7fd0;stroke-width:1.3}"""


class Drawing:
    """Boxes, arrows and words at places in pixels; y goes down."""

    def __init__(self, width: int, height: int) -> None:
        self._size, self._parts = (width, height), list[str]()

    def box(self, x: float, y: float, width: float, height: float, kind: str, lines: Sequence[str] = ()) -> None:
        """A box with lines of words in its middle, the first one bold where there are several.

        Args:
          kind: "shared" (the mean, and what everybody has), "own" (a member's or a pair's), "disk", "plain", "dashed".
        """
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>')
        top = y + height / 2 + 4.5 - 8.5 * (len(lines) - 1)
        for row, line in enumerate(lines):
            style = "" if len(lines) == 1 else "bold" if row == 0 else "small"
            self.words(x + width / 2, top + 17 * row, line, style)

    def words(self, x: float, y: float, line: str, style: str = "", anchor: str = "middle") -> None:
        """A line of words; its baseline at y.

        Args:
          style: "bold", "small" or "".
          anchor: "start", "middle" or "end".
        """
        look = f' class="{style}"' if style else ""
        self._parts.append(f'<text{look} x="{x}" y="{y}" text-anchor="{anchor}">{escape(line)}</text>')

    def arrow(self, *points: tuple[float, float], head: bool = True) -> None:
        """A line through points, horizontal or vertical at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self._parts.append(f'<polyline class="line" points="{path}"/>')
        if head:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            corners = [(x, y), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)]
            self._parts.append(f'<polygon class="head" points="{" ".join(f"{a},{b}" for a, b in corners)}"/>')

    def text(self, title: str) -> str:
        """The drawing as SVG."""
        width, height = self._size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" class="eg" viewBox="0 0 {width} {height}" role="img"'
        body = "\n".join(self._parts)
        return f'{head} aria-label="{escape(title)}">\n<style>\n{STYLE}\n</style>\n{body}\n</svg>\n'


def product() -> str:
    """The perturbed product."""
    d = Drawing(760, 330)
    d.words(20, 24, "For one matrix M (m × n), in every member", "bold", "start")
    d.box(20, 120, 30, 100, "plain")
    d.words(35, 112, "x")
    d.words(35, 238, "n", "small")
    d.arrow((50, 150), (90, 150), (90, 105), (150, 105))
    d.arrow((50, 190), (90, 190), (90, 246), (150, 246))
    d.box(150, 50, 170, 110, "shared", ["M", "m × n, one copy,", "one large product", "for all members"])
    d.arrow((320, 105), (585, 105), (585, 155))
    d.words(452, 97, "x·Mᵀ")
    d.box(150, 196, 34, 100, "own", ["B"])
    d.words(167, 312, "n × r", "small")
    d.arrow((184, 246), (262, 246))
    d.words(223, 238, "x·B")
    d.words(223, 262, "r numbers", "small")
    d.box(262, 229, 110, 34, "own", ["Aᵀ"])
    d.words(317, 279, "r × m", "small")
    d.arrow((372, 246), (440, 246))
    d.box(440, 225, 92, 42, "own", ["× ± σ/√r"])
    d.arrow((532, 246), (585, 246), (585, 185))
    d.words(486, 286, "+ for member 2p, − for its twin 2p + 1", "small")
    d.box(570, 155, 30, 30, "plain", ["+"])
    d.arrow((600, 170), (690, 170))
    d.words(640, 162, "y")
    d.box(690, 110, 30, 120, "plain")
    d.words(705, 248, "m", "small")
    d.words(735, 60, "y = x·Mᵀ ± σ/√r · (x·B)·Aᵀ", "bold", "end")
    d.words(452, 128, "shared by the population", "small")
    d.words(390, 208, "a pair's own: drawn, never stored", "small")
    return d.text("One large product with the shared matrix, and a thin one with each pair's own factors A and B")


def noise() -> str:
    """What noise is made of, and who draws which."""
    d = Drawing(760, 420)
    d.words(20, 24, "A number of the noise is a function of its counters", "bold", "start")
    d.box(20, 44, 190, 60, "plain", ["a stream", "seed, leaf, factor (A or B),", "generation, pair"])
    d.arrow((210, 74), (250, 74))
    d.box(250, 44, 160, 60, "shared", ["two key words", "Threefry-2x32, 13 rounds,", "once for each stream"])
    d.arrow((410, 74), (450, 74))
    d.box(450, 44, 130, 60, "shared", ["32 bits", "a hash of element", "and both words"])
    d.arrow((580, 74), (620, 74))
    d.box(620, 44, 120, 60, "own", ["A or B", "through the law:", "popcount, …"])
    d.box(450, 130, 130, 34, "plain", ["element"])
    d.arrow((515, 130), (515, 104))
    d.words(20, 150, "The same integers in NumPy, JAX and PyTorch.", "small", "start")

    d.words(20, 204, "Who draws which part, and when", "bold", "start")
    d.words(180, 232, "evaluating", "bold", "start")
    d.words(410, 232, "updating", "bold", "start")
    rows = [
        ("one device", "its chunk's pairs, A and B whole", "all pairs, chunk after chunk"),
        ("a device of a mesh", "its own pairs", "“redraw”: all · “reduce”: own · “rows”: its rows"),
        ("a worker of a fleet", "the ranges that it is handed", "all pairs, with the weights of the frame"),
        ("a vLLM engine's rank", "the rows or columns that it holds", "the same, for all pairs"),
        ("a replay", "nothing", "all pairs of every generation, by the journal"),
    ]
    for row, (who, first, then) in enumerate(rows):
        y = 242 + 34 * row
        d.box(20, y, 720, 30, "plain")
        d.words(30, y + 19.5, who, "", "start")
        d.words(180, y + 19.5, first, "small", "start")
        d.words(410, y + 19.5, then, "small", "start")
    return d.text(
        "Noise is a function of seed, leaf, factor, generation, pair and element; whoever needs a part draws it"
    )


def exchange() -> str:
    """What the coordinator and the workers of a fleet send each other."""
    d = Drawing(760, 376)
    d.words(20, 24, "A generation on a fleet", "bold", "start")
    d.box(20, 60, 150, 120, "shared", ["coordinator", "mean, optimiser,", "run folder;", "shapes fitness"])
    d.box(20, 222, 150, 40, "disk", ["journal.egg"])
    d.arrow((95, 180), (95, 222))
    d.words(107, 206, "fsync, then send", "small", "start")
    for y, name in ((44, "worker 1"), (114, "worker 2"), (204, "worker W")):
        d.box(570, y, 170, 58, "shared", [name, "mean, optimiser"])
    d.words(655, 194, "⋮")
    for y, line in (
        (85, "1 · ranges of pairs: two integers each"),
        (128, "2 · one base-3 digit for each pair, and a tally"),
        (171, "3 · the generation's frame, as in the journal"),
    ):
        ends = [(170, y), (560, y)]
        d.arrow(*(reversed(ends) if line.startswith("2") else ends))
        d.words(365, y - 8, line)
    d.words(365, 188, "N/10 + 46 bytes for N members of sign fitness", "small")
    d.box(20, 284, 720, 80, "dashed")
    d.words(380, 306, "Not sent: weights, gradients, noise. Each redraws it and makes its own update.")
    d.words(
        380,
        328,
        "Who joins, or has drifted, is sent the state once: the newest snapshot and the frames since.",
        "small",
    )
    d.words(380, 347, "Scores that are no signs go up as float32, and one float16 a pair comes down.", "small")
    return d.text("Coordinator and workers exchange ranges, one digit a pair, and the journal's frame")


def generation() -> str:
    """The life of a generation, and what is on the disk when."""
    d = Drawing(760, 370)
    d.words(20, 24, "In memory", "bold", "start")
    steps = [
        ("own", ["1 · evaluate", "draw noise,", "all members"]),
        ("own", ["2 · shape", "fitness to one", "weight a pair"]),
        ("disk", ["3 · write", "append to the", "journal, fsync"]),
        ("shared", ["4 · update", "by the weights", "as written"]),
        ("disk", ["5 · note", "a line of", "metrics"]),
        ("disk", ["6 · keep", "every K:", "a snapshot"]),
    ]
    for column, (kind, lines) in enumerate(steps):
        d.box(20 + 123 * column, 40, 105, 74, kind, lines)
        if column:
            d.arrow((2 + 123 * column, 77), (20 + 123 * column, 77))
    d.arrow((687, 40), (687, 30), (110, 30), (110, 40))
    d.words(20, 150, "On the disk", "bold", "start")
    d.box(20, 164, 105, 44, "disk", ["config.json", "before all"])
    for column, name, what in (
        (2, "journal.egg", "+ a frame"),
        (4, "metrics.jsonl", "+ a line"),
        (5, "snapshots/", "+ one, whole"),
    ):
        d.arrow((72 + 123 * column, 114), (72 + 123 * column, 164))
        d.box(20 + 123 * column, 164, 105, 44, "disk", [name, what])
    d.words(20, 244, "Killed at any instant, --resume starts from the newest whole snapshot", "bold", "start")
    ends = [
        (
            "before 3 is done",
            "The journal has no whole frame of it: a torn one",
            "is cut, and the generation is evaluated again.",
        ),
        (
            "after 3",
            "The frame's weights make the update; where members",
            "keep state, evaluating again must give the same ones.",
        ),
    ]
    for column, lines in enumerate(ends):
        d.box(20 + 370 * column, 258, 350, 66, "dashed", lines)
    d.words(
        20,
        350,
        "Either way the run ends in the bits of one that was never killed. Last of all: summary.json.",
        "small",
        "start",
    )
    return d.text("Evaluate, shape, append to the journal and fsync, update, metrics, snapshot; and what a kill leaves")


DRAWINGS: dict[str, Callable[[], str]] = {
    "product": product,
    "noise": noise,
    "exchange": exchange,
    "generation": generation,
}


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
