"""The report: what runs did and how they compare, on a page that nothing in a run folder can break or escape from."""

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunError
from eggroll.runs.report import ReportConfig, report
from eggroll.runs.report.charts import make_charts
from eggroll.runs.report.curves import DARK, LIGHT
from eggroll.runs.report.groups import grouped
from eggroll.runs.report.history import LONGEST_SAMPLE, MOST_METRICS, MOST_SAMPLES, read_run
from eggroll.runs.report.series import thinned
from eggroll.runs.report.wording import compact, duration, measured, size, tick_labels

SETTINGS = {"job": "toy", "width": 16, "model": {"rank": 1}, "run_dir": "x", "generations": 12}
EVIL = '"><x-evil onload="alert(1)">&lt;</style></title></svg><!--'


def line(generation, shift=0.0, **more):
    mean = -8 + 0.1 * generation + shift
    spread = {"fitness_mean": mean, "fitness_max": mean + 2, "fitness_min": mean - 3, "fitness_std": 0.5}
    times = {"bytes_per_second": 1e6 - 1e3 * generation, "seconds": 4.0 if generation == 0 else 0.05}
    return {"generation": generation, **spread, "alpha": 1 / (1 + generation), **times, **more}


def make_run(path, *, lines=12, seed=0, shift=0.0, summary=True, finished=True, samples=(), **config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(SETTINGS | {"seed": seed, "run_dir": str(path)} | config))
    validated = lambda g: {"loss": 5.0 - 0.1 * g + shift} if g % 4 == 3 else {}
    rows = [json.dumps(line(g, shift, **validated(g))) for g in range(lines)]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n" if rows else "")
    if samples:
        (path / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    if summary:
        told = {"job": "toy", "finished": finished, "generations": lines, "seconds": 75.2, "start_loss": 6.0 + shift}
        place = {"device": "cpu cpu", "processor": "Abacus 9", "jax": "0.10.2", "peak_memory_bytes": 3 * 2**20}
        (path / "summary.json").write_text(json.dumps(told | place | {"loss": 4.0 + shift}))
    return path


class Page(HTMLParser):
    """A page taken apart; complains about what a well-formed page that loads nothing cannot have."""

    TAGS = (
        "html head meta title style body h1 h2 h3 section div table thead tbody tr th td details summary p ul li b "
        "small code pre figure figcaption svg g defs path use text tspan clippath rect"
    )

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.ids, self.texts, self.tags = [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == [] and len(self.ids) == len(set(self.ids))
        assert not re.search(r"https?:|@import|src\s*=", self.source)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.TAGS.split(), tag
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("src", "srcset", "srcdoc", "action"), name
            assert "href" not in name or value.startswith("#"), value
            assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", value or "")), value
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(text for text in self.texts if text)


def page_of(tmp_path, *paths, **options):
    out = tmp_path / "out" / "report.html"
    answer = report(ReportConfig(tuple(paths), out, **options))
    assert answer["bytes"] == out.stat().st_size and [file.suffix for file in out.parent.iterdir()] == [".html"]
    return Page(out)


def test_one_run(tmp_path):
    told = ((4, "first words"), (11, "torn words"), (11, "last words"))
    samples = [{"generation": generation, "text": text} for generation, text in told]
    page = page_of(tmp_path, make_run(tmp_path / "heron", samples=samples))
    for word in ("heron", "toy", "finished", "12 of 12", "Abacus 9 (cpu)", "jax 0.10.2", "1 min 15 s", "3 MiB"):
        assert word in page.text, word
    names = re.findall(r"<figcaption><b>([^<]*)", page.source)
    assert names == ["loss", "fitness", "alpha", "bytes_per_second", "seconds"]
    assert page.text.index("last words") < page.text.index("1 earlier") < page.text.index("first words")
    assert "torn words" not in page.text
    assert (
        "model.rank" in page.text and "All of summary.json" in page.text and "Settings that differ" not in page.source
    )
    assert "1 point outside the frame, up to 4" in page.text


def test_several_runs_and_where_they_differ(tmp_path):
    paths = [make_run(tmp_path / f"w{width}", width=width, model={"rank": 2, "b": width}) for width in (16, 64)]
    page = page_of(tmp_path, *paths, tmp_path / "w16" / ".." / "w16")
    assert "2 runs of 2 settings" in page.text and "A width 16, model.b 16 n = 1, seed 0" in page.text
    assert 'aria-label="loss over generations: A from 6 to 3.9; B from 6 to 3.9"' in page.source
    table = page.source.split("Settings that differ")[1].split("<details>")[0]
    assert re.findall(r"<code>([^<]*)", table) == ["width", "16", "64", "model.b", "16", "64"]
    assert "4 settings that are common to all runs" in page.text
    assert page.source.count('role="img"') == 5 and 'stroke-dasharray="' in page.source


def seeds_of(tmp_path, shifts, **options):
    return [make_run(tmp_path / f"s{seed}", seed=seed, shift=shift, **options) for seed, shift in enumerate(shifts)]


def test_seeds_are_a_mean_with_its_standard_error(tmp_path):
    shifts = (0.0, 0.5, -0.2)
    paths = seeds_of(tmp_path, shifts)
    runs = [read_run(path, bins=256) for path in [*paths, make_run(tmp_path / "other", width=64)]]
    groups = grouped(runs)
    assert [[run.name for run in group.runs] for group in groups] == [["s0", "s1", "s2"], ["other"]]
    charts = {chart.name: chart for chart in make_charts(groups, runs)}
    three, alone = charts["loss"].curves
    values = np.array([[6.0, 4.7, 4.3, 3.9]]) + np.array(shifts)[:, None]
    error = values.std(0, ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(three.mean.at, [0, 3, 7, 11])
    np.testing.assert_allclose(three.mean.value, values.mean(0))
    np.testing.assert_allclose(three.band.low, values.mean(0) - error)
    np.testing.assert_allclose(three.band.high, values.mean(0) + error)
    assert len(three.runs) == 3 and alone.band is None and alone.runs == ()
    spread = charts["fitness"].curves[0]
    np.testing.assert_allclose(spread.extremes.low, -8 + 0.1 * np.arange(12) - 3 - 0.2)
    np.testing.assert_allclose(spread.extremes.high, -8 + 0.1 * np.arange(12) + 2 + 0.5)
    np.testing.assert_allclose(spread.band.high - spread.mean.value, 0.5)
    assert "mean ± SE, n = 3 4.10 ± 0.21 6.10 ± 0.21" in page_of(tmp_path, *paths).text


def test_a_seed_that_ended_early_does_not_bend_the_mean(tmp_path):
    paths = [*seeds_of(tmp_path, (0.0, 1.0)), make_run(tmp_path / "s9", seed=9, lines=5, summary=False)]
    runs = [read_run(path, bins=256) for path in paths]
    (group,) = grouped(runs)
    fitness = next(chart for chart in make_charts([group], runs) if chart.name == "fitness_mean").curves[0]
    assert len(fitness.mean.value) == 5 and [len(run.value) for run in fitness.runs] == [12, 12, 5]
    assert "mean ± SE, n = 2 4.50 ± 0.50" in page_of(tmp_path, *paths).text


def test_a_repetition_is_no_seed(tmp_path):
    paths = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    groups = grouped([read_run(path, bins=256) for path in paths])
    assert [[run.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert [group.label for group in groups] == ["a and 1 more", "b"]


@pytest.mark.parametrize("lines", [1, 255, 256, 257, 5000])
def test_thinning_keeps_mean_and_extremes(lines):
    draws = np.random.default_rng(0)
    value, order = draws.normal(size=lines), draws.permutation(lines)
    series = thinned(order.astype(np.int64), value[order], limit=256)
    assert len(series.start) <= 256 and (series.width == 1) == (lines <= 256)
    assert series.count.sum() == lines and series.last == value[-1]
    for start, mean, low, high in zip(series.start, series.mean, series.low, series.high, strict=True):
        held = value[start : start + series.width]
        assert (low, high) == (held.min(), held.max()) and mean == pytest.approx(held.mean())
    wider = series.rebinned(4 * series.width)
    assert wider.low.min() == value.min() and (wider.mean @ wider.count) / lines == pytest.approx(value.mean())


def test_a_long_run_is_a_small_page(tmp_path):
    path = make_run(tmp_path / "long", lines=6000)
    page = page_of(tmp_path, path)
    assert "a point stands for up to 32 generations" in page.text and len(page.source) < 200_000


def test_a_generation_gone_through_again_counts_once(tmp_path):
    path = make_run(tmp_path / "again", lines=4, finished=False)
    replayed = {"generation": 2, "alpha": 7.0, "seconds": 1e-6, "replayed": True}
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in (replayed, line(3, alpha=9.0), line(5)))
    run = read_run(path, bins=256)
    np.testing.assert_allclose(run.series["alpha"].mean, [1, 1 / 2, 7, 9, 1 / 6])
    np.testing.assert_allclose(run.series["seconds"].mean, [4, 0.05, 0.05, 0.05, 0.05])
    assert run.state.startswith("went on after an interruption") and "1 generation" in run.notes[0]


@pytest.mark.parametrize("absent", ["metrics.jsonl", "summary.json", "both"])
def test_what_is_missing_is_said(tmp_path, absent):
    path = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json") if absent == "both" else (absent,):
        (path / name).unlink()
    text = page_of(tmp_path, path).text
    assert ("no metrics yet" in text) == ("There are no metrics to draw" in text) == (absent != "summary.json")
    assert ("no summary: still running, or killed" in text) == (absent != "metrics.jsonl")


def test_torn_and_damaged_lines(tmp_path):
    path = make_run(tmp_path / "run", lines=3, samples=[{"generation": 1, "text": "ok"}])
    damaged = b'{"generation": 3, "alpha": NaN, "big": 1e400, "text": "9", "yes": true, "far": %s}\n' % (b"9" * 400)
    damaged += b'\xff\n[1]\n{"generation": "4"}\n{"generation": 1e3, "alpha": 5}\n' + b"[" * 99_999 + b"\n\n"
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(damaged + b'{"generation": 4, "alp')
    with (path / "samples.jsonl").open("ab") as file:
        file.write(b'{"generation": 2, "text": 5}\n{"text": "none"}\nnothing\n{"generation": 3, "text": "torn')
    run = read_run(path, bins=256)
    assert run.generations == 4 and not {"big", "text", "yes", "far"} & set(run.series)
    assert run.notes == ("3 damaged lines of metrics.jsonl left out", "1 damaged line of samples.jsonl left out")
    assert len(run.series["alpha"].mean) == 3 and [sample.text for sample in run.samples] == ["ok"]


def test_many_samples_and_metrics_are_bounded(tmp_path):
    samples = [{"generation": g, "text": f"{g} " * 9999} for g in range(200)]
    path = make_run(tmp_path / "run", lines=0, samples=samples)
    (path / "metrics.jsonl").write_text(json.dumps({"generation": 0} | {f"m{i}": i for i in range(500)}) + "\n")
    run = read_run(path, bins=256)
    assert run.samples[-1].generation == 199 and len(run.samples) <= 2 * MOST_SAMPLES
    assert max(len(sample.text) for sample in run.samples) <= LONGEST_SAMPLE
    assert "40 more metrics are not drawn" in page_of(tmp_path, path).text
    assert len(run.series) == MOST_METRICS and f"only the first {MOST_METRICS} metrics are shown" in run.notes


def complaint(call, *arguments, kind=RunError):
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"a": "\xff"}', b'{"a":' + b"[" * 99_999, b" " * 2**21])
def test_what_is_no_run_is_refused(tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    assert "config.json" in complaint(report, ReportConfig((folder,), tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_flags_are_checked(tmp_path):
    path = make_run(tmp_path / "run")
    assert "folder of a run" in complaint(ReportConfig, (), kind=UsageError)
    assert "--out" in complaint(ReportConfig, (path,), path / "config.json", kind=UsageError)
    assert "--png" in complaint(ReportConfig, (path,), Path("a.html"), Path("a.svg"), kind=UsageError)
    (tmp_path / "taken.html").mkdir()
    assert "taken.html" in complaint(report, ReportConfig((path,), tmp_path / "taken.html"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "taken.html"]


def test_pipes_and_folders_in_place_of_files(tmp_path):
    path = make_run(tmp_path / "run", summary=False, lines=0)
    (path / "metrics.jsonl").unlink()
    os.mkfifo(path / "metrics.jsonl")
    (path / "samples.jsonl").mkdir()
    (path / "summary.json").mkdir()
    assert "summary.json cannot be read; no metrics yet" in page_of(tmp_path, path).text


def test_markup_stays_text(tmp_path):
    samples = [{"generation": 0, "text": EVIL + "\x00\ud800\x1b"}]
    path = make_run(tmp_path / EVIL.replace("/", "%"), samples=samples, **{EVIL: EVIL, "width": EVIL})
    row = line(12, **{EVIL: 1.0, f"{EVIL}_per_second": 2.0, "a\ud800$x$": 1})
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    told = dict.fromkeys(("job", "device", "processor", "eggroll", "jax", f"start_{EVIL}", "main_metric"), EVIL)
    (path / "summary.json").write_text(json.dumps(told | {f"start_{EVIL}": 2.0, EVIL: 1.0}))
    png = tmp_path / "report.png"
    page = page_of(tmp_path, path, make_run(tmp_path / os.fsdecode(b"b\xff")), png=png)
    assert "x-evil" not in page.tags and page.text.count("<x-evil") >= 8 and "\ufffd\ufffd\ufffd" in page.text
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


HOSTILE = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([10**400, -1e308, 5e-324, 1e60, 2**53, True, None, EVIL, "9", [1], {"a": {"b": 1}}]),
)
NAMES = st.sampled_from(["fitness_mean", "fitness_std", "fitness_max", "loss", "seconds", "x_per_second", EVIL, "$\\"])
LINES = st.lists(
    st.builds(lambda row, g: {"generation": g} | row, st.dictionaries(NAMES, HOSTILE), st.integers(-1, 400) | HOSTILE)
)
WORDS = st.dictionaries(st.sampled_from(["seed", "start_loss", "loss", "finished", "device", "devices", EVIL]), HOSTILE)


def written(tmp_path_factory, files, *, picture=True):
    path = tmp_path_factory.mktemp("run")
    for name, content in files.items():
        (path / name).write_bytes(content)
    out = path / "report.html"
    try:
        report(ReportConfig((path,), out, path / "report.png" if picture else None))
    except RunError:
        assert not out.exists()
    else:
        Page(out)


QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=20)
@given(st.binary(), st.binary(), st.binary(), st.binary())
def test_any_bytes_give_a_page_or_a_complaint(tmp_path_factory, config, metrics, summary, samples):
    files = {"metrics.jsonl": metrics, "summary.json": summary, "samples.jsonl": samples}
    written(tmp_path_factory, files | {"config.json": config})
    written(tmp_path_factory, files | {"config.json": b"{}"})


@settings(QUIET, max_examples=6)
@given(WORDS, LINES, WORDS, st.booleans())
@example({}, [{"generation": 2**53 - 1, "loss": 1e60}, {"generation": 0, "loss": -1e60}], {"devices": 1e60}, True)
@example({}, [{"generation": g, "loss": 5e-324 * g, "seconds": 5e-324 * g} for g in range(3)], {"loss": 5e-324}, True)
def test_any_values_give_a_page(tmp_path_factory, config, lines, summary, picture):
    metrics = "".join(json.dumps(row) + "\n" for row in lines)
    samples = "".join(json.dumps(row | {"text": EVIL}) + "\n" for row in lines)
    files = {"config.json": json.dumps(config), "metrics.jsonl": metrics, "samples.jsonl": samples}
    files["summary.json"] = json.dumps(summary)
    written(tmp_path_factory, {name: content.encode() for name, content in files.items()}, picture=picture)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25"),
        (-8.4, "−8.4"),
        (340_000, "340k"),
        (1.66e6, "1.66M"),
        (999_999, "1000k"),
        (7500, "7500"),
        (0, "0"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(float(value)) == text


def test_ticks_are_told_apart():
    assert tick_labels(np.array([8.5481, 8.5482, 8.5483])) == ["8.5481", "8.5482", "8.5483"]
    assert tick_labels(np.array([0.0, 2500.0, 5000.0])) == ["0", "2500", "5000"]
    assert tick_labels(np.array([-1e-17, 0.2, 0.4])) == ["0", "0.2", "0.4"]


def test_wording():
    assert measured(5.8123, 0.0974) == "5.812 ± 0.097" and measured(None) == "—" and measured(1.0, 0.0) == "1 ± 0"
    assert measured(880_000.4, 44_683.2) == "880,000 ± 44,683"
    assert [duration(s) for s in (8.271, 250.0, 3780.0, None)] == ["8.27 s", "4 min 10 s", "1 h 3 min", "—"]
    assert [size(b) for b in (5.0, 2.0**20, 3 * 2.0**42, None)] == ["5 bytes", "1 MiB", "12.0 TiB", "—"]


def luminance(colour):
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#14171a")])
def test_series_stand_out_from_the_page(colours, paper):
    for colour in colours:
        dark, light = sorted((luminance(colour), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_reading_the_module_draws_nothing():
    # The other tests of this process have loaded matplotlib; a fresh one tells.
    import subprocess
    import sys

    code = "import sys, eggroll.runs.report; sys.exit('matplotlib' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_in_a_browser(tmp_path, browser):
    samples = [{"generation": g, "text": "word " * 200 + EVIL + "w" * 500} for g in range(3)]
    paths = [
        make_run(tmp_path / f"{'long-name-' * 9}{width}-{seed}", seed=seed, width=width, samples=samples)
        for width in (16, 64)
        for seed in (0, 1)
    ]
    out = tmp_path / "report.html"
    report(ReportConfig(tuple(paths), out))
    backgrounds = set()
    for width, dark in ((400, False), (400, True), (1600, False)):
        said, requests = browser.open(out.as_uri(), width=width, dark=dark)
        assert said == [] and requests == [out.as_uri()]
        assert browser.evaluate("window.innerWidth") == width
        browser.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.querySelectorAll('x-evil, script, img')].length") == 0
        drawn = browser.evaluate("document.querySelector('figure svg').getBoundingClientRect().width")
        assert 340 <= drawn <= 560
        smallest = (
            "Math.min(...[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height))"
        )
        assert browser.evaluate(smallest) >= 10
        backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        ink = browser.evaluate("getComputedStyle(document.querySelector('figure text')).fill")
        assert ink == browser.evaluate("getComputedStyle(document.body).color")
    assert len(backgrounds) == 2
