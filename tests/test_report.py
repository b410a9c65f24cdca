"""The report: one page, self-contained, with every score, picture, curve and ancestor; and pictures that are what they show."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.errors import UserError
from components.evaluation.pictures import GAP_PIXELS, grid, png
from components.report.figures import LOOKS, SHADES, Curve, chart_svg, curve_svg, histogram_svg
from components.report.findings import MAX_SERIES, Chart, Findings, Histogram, Picture, ScalarField, Score, Series, Table
from components.report.numbers import duration, figure, number
from components.report.page import Exhibit, render

SCORES = (
    Score(name="Error <b>", value=0.00612, better="lower", target=0.0075, beside={"PCA": 0.0105}),
    Score(name="Accuracy", value=0.6, better="higher", target=0.7, unit="%"),
    Score(name="Distance", value=31.0, better="lower", beside={"noise": 400.0, "real": 1.0}),
)
TABLE = Table(
    title="Methods",
    columns=("method", "EER", "pairs", "note"),
    units={"EER": "%"},
    rows=(("pixels <i>", 0.155, 14000, None), ("ours", 0.0305, None, "best")),
    ours=1,
)
CHART = Chart(
    title="ROC & more",
    caption="Unseen people.",
    x_label="false accept rate",
    y_label="true accept rate",
    series=(Series(name="ours", x=(1e-4, 1e-2, 1.0), y=(0.5, 0.9, 1.0)), Series(name="trials", x=(1e-3,), y=(0.2,), joined=False)),
    log_x=True,
)
CONFIG = {"family": "vqvae", "train": {"steps": 40}}


def exhibit(folder: Path, stage: str, inputs: dict[str, str], files: list[str], **more: Any) -> Exhibit:
    manifest = {
        "stage": stage,
        "fingerprint": (stage.encode().hex() * 8)[:16],
        "version": 1,
        "config": {},
        "inputs": inputs,
        "sources": {},
        "files": {file: {"bytes": (folder / file).stat().st_size, "sha256": ""} for file in files},
        "seconds": 3.5,
        "made_at": "2026-11-21T10:20:30.123+00:00",
    }
    return Exhibit(str(folder), manifest | more)


@pytest.fixture
def page(tmp_path: Path) -> str:
    data, model, scores = (tmp_path / name for name in ("images", "tokenizer", "scores"))
    (model / "metrics").mkdir(parents=True)
    rows = [{"step": s, "loss.autoencoder": 1 / s, "mse": 2 / s, "lr.autoencoder": 1e-3, "samples_per_second": 100.0 * s} for s in (20, 40)]
    rows[1] |= {"held_out.mse": 0.07, "data_wait_seconds": 0.25}
    (model / "metrics" / "00000040.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (model / "run.json").write_text(json.dumps({"workers": 2, "device": "cpu", "parameters": 12345}))
    data.mkdir()
    scores.mkdir()
    (scores / "pictures.png").write_bytes(png(grid([np.zeros((3, 1, 4, 4), np.uint8)])))
    picture = Picture(file="pictures.png", title="Samples", caption="Not chosen.", row_names=("bag",))
    histogram = Histogram(title="Use", shares=(0.75, 0.25))
    Findings(scores=SCORES, pictures=(picture,), histograms=(histogram,), tables=(TABLE,), charts=(CHART, CHART)).write(str(scores))
    first = exhibit(data, "images", {"data": "00ff00ff00ff00ff"}, [], sources={"data": "/from/here"})
    second = exhibit(model, "tokenizer", {"images": first.manifest["fingerprint"]}, ["metrics/00000040.jsonl", "run.json"], config=CONFIG)
    third = exhibit(scores, "scores", {"tokenizer": second.manifest["fingerprint"]}, ["findings.json", "pictures.png"], seconds=70.0)
    return render("tokens", "All of it.", [first, second, third], "raymill run tokens 'a=b c'")


class Outside(HTMLParser):
    """Collects whatever a browser would fetch, and unbalanced tags."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag in ("script", "link", "iframe")
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_fetches_nothing_and_is_well_formed(page: str) -> None:
    outside = Outside()
    outside.feed(page)
    assert outside.scripts == 0
    assert [url for url in outside.fetched if not url.startswith(("data:image/png;base64,", "#"))] == []
    assert outside.open == []
    assert not re.search(r"@import|url\((?!#)", page)


def test_inner_links_have_their_target(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_scores_stand_beside_target_and_baselines(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "0.00612" in text
    assert re.search(r"✓ target: at most 0\.0075", text)
    assert re.search(r"60\.0 % ✗ target: at least 70\.0 %", text)
    assert re.search(r"this run 31 real 1 noise 400", text)  # the better first
    assert "Error &lt;b&gt;" in page
    assert "Error <b>" not in page


def test_tables_hold_their_cells_and_one_row_stands_out(page: str) -> None:
    rows = re.findall(r"<tr([^>]*)>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for _, row in rows]
    assert [[text for _, text in row] for row in cells] == [
        ["method", "EER, %", "pairs", "note"],
        ["pixels &lt;i&gt;", "15.5", "14,000", "–"],
        ["ours", "3.0", "–", "best"],
    ]
    assert [["numeric" in attributes for attributes, _ in row] for row in cells] == [[False, True, True, False]] * 3
    assert ["ours" in attributes for attributes, _ in rows] == [False, False, True]


def test_charts_have_names_labels_and_a_caption(page: str) -> None:
    for text in ('<h3>ROC &amp; more <span class="note">', "Unseen people."):
        assert page.count(text) == 2
    for label in ("false accept rate", "true accept rate", "ours", "trials"):
        assert len(re.findall(rf"<text[^>]*>{label}</text>", page)) == 2, label


def test_a_field_is_shaded_below_the_marks() -> None:
    """Twelve shades of the page's own colour, each over those of lower values, and both axes with one scale."""
    x, y = (0.0, 1.0, 2.0), (0.0, 1.0)
    field = ScalarField(x=x, y=y, values=((0.0, 1.0, 2.0), (1.0, 2.0, 3.0)))
    svg = chart_svg(CHART.model_copy(update={"log_x": False, "field": field}), "plane")
    shades = [svg.index(found) for found in re.findall(r"<path[^>]*fill: var\(--muted\); fill-opacity: 0.06[^>]*>", svg)]
    assert len(shades) == SHADES
    assert max(shades) < svg.index("var(--series)")


@pytest.mark.parametrize(("x", "values"), [((0.0, 1.0), ((1.0, 2.0),)), ((0.0, 1.0), ((1.0,), (2.0,))), ((0.0,), ((1.0,), (2.0,)))])
def test_a_field_that_is_no_grid_is_refused(x: tuple[float, ...], values: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(UserError, match=f"a field over {len(x)} x and 2 y"):
        ScalarField.parse({"x": x, "y": (0.0, 1.0), "values": values}, "test")


def test_curves_timings_lineage_and_config_are_there(page: str) -> None:
    for label in (
        "loss.autoencoder",
        "mse",
        "workers",
        "12,345",
        "3.5 s",
        "1 min 10 s",
        "held-out rows",
        "/from/here",
        "raymill run tokens &#39;a=b c&#39;",
    ):
        assert label in page, label
    assert ">lr.autoencoder<" not in page
    config = re.search(r"--config</code></summary>\s*<pre>(.*?)</pre>", page, re.DOTALL)
    assert config is not None
    assert yaml.safe_load(config[1]) == {"data": "/from/here", "tokenizer": CONFIG}


def test_pictures_are_inside_the_page(page: str) -> None:
    data = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (3 * (4 + GAP_PIXELS), 4 + GAP_PIXELS)


def test_figures_take_their_colours_from_the_page_and_are_the_same_each_time() -> None:
    curve = Curve("loss", [1, 2, 3], [1.0, 0.1, 0.001], [2], [0.2])
    for svg in (curve_svg(curve, "a"), histogram_svg([0.5, 0.5], "a")):
        assert svg.startswith("<svg viewBox=")
        assert "var(--series)" in svg
        assert "var(--second)" in svg
        assert not re.search(r"#0{5}\d|<style|xlink|metadata", svg)
    assert curve_svg(curve, "a") == curve_svg(curve, "a")


def drawn(chart: Chart, place: int) -> np.ndarray:
    """Points of the line drawn as the series `place`, in the figure's units."""
    path = re.findall(
        r'<g id="c-line2d_\d+">\s*<path d="([^"]+)" clip-path[^>]*style="fill: none; stroke(?!: var\(--muted\))', chart_svg(chart, "c")
    )[place]
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path), float)


def test_a_logarithmic_axis_spaces_decades_evenly() -> None:
    line = Series(name="a", x=(1e-4, 1e-3, 1e-2, 1.0), y=(0.0, 0.25, 0.5, 1.0))
    for log_x, expected in ((True, [0, 0.25, 0.5, 1]), (False, [0, 0.0009, 0.0099, 1])):
        x, y = drawn(CHART.model_copy(update={"series": (line,), "log_x": log_x}), 0).T
        np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), expected, atol=1e-4)
        np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), [0, 0.25, 0.5, 1], atol=1e-4)


def test_series_differ_by_more_than_colour_and_take_it_from_the_page() -> None:
    assert len({mark for _, mark, _ in LOOKS}) == len({dashes for _, _, dashes in LOOKS}) == len({c for c, _, _ in LOOKS}) == MAX_SERIES
    every = tuple(Series(name=f"series {place}", x=(1.0, 2.0), y=(place, place)) for place in range(MAX_SERIES))
    svg = chart_svg(CHART.model_copy(update={"series": every}), "c")
    assert svg == chart_svg(CHART.model_copy(update={"series": every}), "c")
    for colour in ("series", "second", "third", "fourth", "ink", "muted"):
        assert f"stroke: var(--{colour})" in svg
    assert not re.search(r"#0{5}\d|<style|xlink|metadata", svg)
    assert len(set(re.findall(r"stroke-dasharray: ([^;]+)", svg))) == MAX_SERIES - 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Series, {"name": "a", "x": (1, 2), "y": (1,)}, "series 'a' has 2 x and 1 y"),
        (Series, {"name": "a", "x": (), "y": ()}, "series 'a' has 0 x and 0 y"),
        (Series, {"name": "a", "x": (1,), "y": (float("nan"),)}, "finite"),
        (Chart, {**dict(CHART), "series": (Series(name="a", x=(0, 1), y=(1, 1)),)}, "has log_x and a value of 0; leave out"),
        (Chart, {**dict(CHART), "log_y": True, "series": (Series(name="a", x=(1, 1), y=(1, -1)),)}, "has log_y and a value of -1"),
        (Chart, {**dict(CHART), "series": CHART.series * 4}, "at most 6"),
        (Table, {**dict(TABLE), "rows": (("a", 1.0),)}, "has 4 columns and a row of 2"),
        (Table, {**dict(TABLE), "ours": 2}, "has 2 rows and ours=2"),
        (Table, {**dict(TABLE), "units": {"eer": "%"}}, r"has units for \['eer'\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(kind: type[Series | Chart | Table], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind.parse(changes, "here")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.006123, "0.00612"),
        (0.5, "0.5"),
        (4.921, "4.92"),
        (31.26, "31.3"),
        (1234.5, "1,234"),
        (2.0e-9, "2e-09"),
        (-0.25, "-0.25"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text
    assert figure(value, "bits") == text


def test_shares_are_told_in_percent() -> None:
    assert [figure(value, "%") for value in (1.0, 0.9492, 0.0)] == ["100.0", "94.9", "0.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")],
)
def test_durations_for_people(value: float, text: str) -> None:
    assert duration(value) == text


def test_findings_come_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    findings = Findings(scores=SCORES, tables=(TABLE,), charts=(CHART,))
    findings.write(str(tmp_path))
    assert Findings.read(str(tmp_path)) == findings
    (tmp_path / "findings.json").write_text('{"score": []}')
    with pytest.raises(UserError, match=r"findings\.json: unknown key 'score'; did you mean 'scores'"):
        Findings.read(str(tmp_path))
    assert Findings.read(str(tmp_path / "nothing")) == Findings()


@pytest.mark.parametrize(("channels", "scale"), [(1, 1), (1, 3), (3, 2)])
def test_a_grid_shows_each_picture_in_its_place(channels: int, scale: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (2, 4, channels, 5, 6), dtype=np.uint8)
    pixels = np.asarray(Image.open(io.BytesIO(png(grid(list(rows), scale)))))
    height, width, half = 5 * scale + GAP_PIXELS, 6 * scale + GAP_PIXELS, GAP_PIXELS // 2
    assert pixels.shape == (2 * height, 4 * width, 4)
    for row in range(2):
        for column in range(4):
            cell = pixels[row * height + half :, column * width + half :][: 5 * scale : scale, : 6 * scale : scale]
            expected = np.broadcast_to(rows[row, column].transpose(1, 2, 0), (5, 6, 3))
            np.testing.assert_array_equal(cell[..., :3], expected)
            assert (cell[..., 3] == 255).all()
    assert (pixels[:half, :, 3] == 0).all()
