"""The page of a report: one HTML file that needs nothing beside it, light or dark, for a phone or a wide screen."""

from __future__ import annotations

from collections.abc import Sequence

from eggroll.runs.report.charts import POPULATION, Chart
from eggroll.runs.report.curves import DARK, LIGHT, svg
from eggroll.runs.report.groups import Group, seeds, shortened
from eggroll.runs.report.history import Run, Sample
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.tables import final_table, runs_table, settings_section, swatch
from eggroll.runs.report.wording import compact

SAMPLES_OF_ALL = 64
"""Samples on a page; with many runs each shows fewer of its earlier ones."""


def make_page(
    title: str,
    runs: Sequence[Run],
    groups: Sequence[Group],
    charts: Sequence[Chart],
    extra: Sequence[tuple[str, Markup]] = (),
) -> str:
    """The whole document; `extra` are titles and contents of sections that come before all others."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing of the page loads anything; should markup ever slip through, it cannot either.
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("title", title),
        element("style", Markup(_style())),
    )
    body = element(
        "body",
        element("h1", title),
        *(_section(name, content) for name, content in extra),
        _section("Runs", runs_table(groups), _notes(runs)),
        _section("Results", final_table(groups, runs)),
        _section("Curves", _legend(groups), _charts(charts, groups, runs)),
        _section("Samples", _samples(runs)) if any(run.samples for run in runs) else None,
        _section("Settings", settings_section(runs)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _section(title: str, *parts: Markup | None) -> Markup:
    return element("section", element("h2", title), *parts)


def _notes(runs: Sequence[Run]) -> Markup | None:
    rows = [element("li", shortened(run.name), ": ", "; ".join(run.notes)) for run in runs if run.notes]
    return element("ul", *rows, class_="note") if rows else None


def _legend(groups: Sequence[Group]) -> Markup:
    rows = [
        element(
            "li", swatch(index), " ", element("b", group.letter), " ", group.label, " ", element("small", seeds(group))
        )
        for index, group in enumerate(groups)
    ]
    several = any(len(group.runs) > 1 for group in groups)
    told = "Several seeds: their mean, a band of ±1 standard error, and each seed as a faint line."
    return join(element("ul", *rows, class_="legend"), note(told) if several else None)


def _charts(charts: Sequence[Chart], groups: Sequence[Group], runs: Sequence[Run]) -> Markup:
    if not charts:
        return element("p", "There are no metrics to draw yet.")
    figures = [_figure(index, chart, groups) for index, chart in enumerate(charts)]
    drawn = {chart.name for chart in charts}.union(POPULATION)
    undrawn = len({name for run in runs for name in run.series} - drawn)
    thinned = max(series.width for run in runs for series in run.series.values())
    told = (
        f"Long runs are thinned: a point stands for up to {thinned:,} generations, thin lines for the extremes in it."
    )
    return join(
        note(told) if thinned > 1 else None,
        element("div", *figures, class_="charts"),
        note(f"{undrawn:,} more metrics are not drawn.") if undrawn else None,
    )


def _figure(index: int, chart: Chart, groups: Sequence[Group]) -> Markup:
    """A chart with its caption, and its ends in words for those who do not see it."""
    name = shortened(chart.name)
    caption = element("figcaption", element("b", name), " ", chart.note)
    lines = [(groups[one.group].letter, one.mean.value) for one in chart.curves if one.mean is not None]
    ends = "; ".join(f"{letter} from {compact(value[0])} to {compact(value[-1])}" for letter, value in lines[:20])
    return element("figure", caption, svg(chart, f"c{index}", f"{name} over generations: {ends}"))


def _samples(runs: Sequence[Run]) -> Markup:
    parts = []
    earlier_each = max(1, SAMPLES_OF_ALL // len(runs)) - 1
    for run in runs:
        if not run.samples:
            continue
        *earlier, last = run.samples
        step = max(1, -(-len(earlier) // max(1, earlier_each)))
        shown = earlier[::step][:earlier_each]
        fold = element("summary", f"{len(shown)} earlier")
        older = element("details", fold, *(_sample(one) for one in reversed(shown))) if shown else None
        parts.append(element("div", element("h3", shortened(run.name)), _sample(last), older))
    return element("div", *parts, class_="samples")


def _sample(sample: Sample) -> Markup:
    caption = element("figcaption", f"generation {sample.generation:,}")
    return element("figure", caption, element("pre", sample.text, dir="auto"), class_="sample")


def _style() -> str:
    light = "".join(f"--series-{index}:{value};" for index, value in enumerate(LIGHT))
    dark = "".join(f"--series-{index}:{value};" for index, value in enumerate(DARK))
    return (
        f":root{{color-scheme:light dark;"
        f"--ink:#1d2125;--soft:#59626b;--grid:#dfe3e7;--paper:#fff;--raised:#f5f7f8;{light}}}"
        "@media(prefers-color-scheme:dark){"
        f":root{{--ink:#e4e7ea;--soft:#a3adb7;--grid:#353b42;--paper:#14171a;--raised:#1d2125;{dark}}}}}{_RULES}"
    )


_RULES = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem clamp(.7rem,2.5vw,2.5rem) 3rem;max-width:106rem;
background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem;padding-top:.7rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:1.4rem 0 .3rem;overflow-wrap:anywhere}
small,.note,figcaption{font-size:.8125rem;line-height:1.35;color:var(--soft)}
figcaption b{font-size:.9375rem;color:var(--ink);overflow-wrap:anywhere}
.note{margin:.5rem 0;max-width:75ch;overflow-wrap:anywhere}ul.note{padding-left:1.2rem}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--series-0);outline-offset:2px}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem 1.1rem .3rem 0;text-align:left;vertical-align:baseline;white-space:nowrap;
border-bottom:1px solid var(--grid);unicode-bidi:isolate}
th{font-weight:400}thead th{font-size:.8125rem;color:var(--soft)}
tr.group th,tr.group td{font-weight:600}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.8125rem;unicode-bidi:isolate}
.legend{list-style:none;padding:0;margin:.3rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1.8rem}
.legend li{overflow-wrap:anywhere}
.swatch{width:34px;height:10px;fill:none;stroke-width:2.2}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21.5rem,100%),1fr));
gap:1.4rem 1.6rem;margin-top:1rem}
.charts figure{display:grid;grid-row:span 2;grid-template-rows:subgrid;gap:.2rem;align-items:start}
figure{margin:0;min-width:0}
figure svg{display:block;width:100%;height:auto;max-width:34rem;overflow:hidden;
stroke-linejoin:round;stroke-linecap:butt}
figure svg text{font-family:inherit}
.sample{margin:.6rem 0}
pre{margin:.2rem 0;padding:.7rem .9rem;background:var(--raised);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere;
max-height:24rem;overflow-y:auto}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(32rem,100%),1fr));gap:0 1.6rem}
.samples>div{min-width:0}
summary{cursor:pointer;color:var(--soft);font-size:.875rem;margin:.5rem 0}
"""
