from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixlab.errors import UserError
from mixlab.report import render, write_report
from mixlab.report.figures import plain
from tests.report.synthetic import comparison

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes, the table's text and the figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def figures(self) -> list[str]:
        return [str(attrs["data-figure"]) for _, attrs in self.tags if "data-figure" in attrs]


@pytest.fixture(scope="module")
def html() -> str:
    return render(comparison())


def payload(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_every_figure_and_every_model(html):
    page = Page(html)
    assert page.figures() == [
        "loss-tokens", "loss-seconds", "loss-flops", "components-flops", "components-parameters", "position",
    ]  # fmt: skip
    assert set(payload(html)["figures"]) == set(page.figures())
    for words in (
        "transformer",
        "window-64",
        "the loss became NaN at step 57",
        "1.50 MiB",
        "41.",
        "What the budget",
    ):
        assert words in page.text
    assert "nan" not in page.text.lower().replace("became nan", "")


def test_plotly_is_inlined_once_and_nothing_else_is_loaded(html):
    assert html.count("plotly.js v") == 1
    page = Page(html)
    assert not [attrs for tag, attrs in page.tags if tag in ("script", "img", "iframe") and "src" in attrs]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"url\(|@import", re.search(r"<style>(.*?)</style>", html, re.S)[1])
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-inline'" not in policy.split("style-src")[0]


def test_sampled_text_and_names_are_escaped():
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    data = comparison()
    for result in data["results"]:
        result["sample"] = {"prompt": hostile, "text": hostile}
        result["model"] += hostile
        result["reason"] = hostile
    data["title"] = data["command"] = hostile
    data["corpus"] = {hostile: hostile}
    data["environment"] = {hostile: [hostile]}
    data["budget"]["unequal"] = [hostile]
    html = render(data)
    assert "alert(1)</script>" not in html and "<img src=x" not in html
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert plain("<a&b>") == "&lt;a&amp;b&gt;"


def test_tables_and_figures_are_accessible(html):
    page = Page(html)
    tags = page.tags
    assert ("html", {"lang": "en"}) in tags
    assert sum(tag == "h1" for tag, _ in tags) == 1
    heads = [attrs for tag, attrs in tags if tag == "th"]
    assert heads and all(attrs.get("scope") in ("row", "col", "rowgroup") for attrs in heads)
    labels = [attrs["aria-label"] for _, attrs in tags if "data-figure" in attrs]
    assert all(len(str(label)) > 60 for label in labels)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_model_keeps_its_colour_in_every_figure(html):
    colours: dict[str, set[str]] = {}
    for views in payload(html)["figures"].values():
        for view in views.values():
            for trace in view["data"]:
                if "meta" in trace and "color" in trace.get("line", {}):
                    colours.setdefault(trace["meta"]["model"], set()).add(trace["line"]["color"])
            for note in view["layout"]["annotations"]:
                if "name" in note:
                    colours.setdefault(note["name"], set()).add(note["font"]["color"])
    assert len(colours) == 6 and all(len(used) == 1 for used in colours.values())
    assert len(set.union(*colours.values())) == 6


def test_a_counted_model_is_a_horizontal_line_in_the_loss_figures(html):
    data = comparison()
    level = next(r["bits_per_byte"] for r in data["results"] if r["model"] == "ngram")
    for key in ("loss-tokens", "loss-seconds", "loss-flops"):
        views = payload(html)["figures"][key]
        assert "ngram" not in {trace["meta"]["model"] for trace in views["valid"]["data"]}
        assert sum(note.get("name") == "ngram" for note in views["valid"]["layout"]["annotations"]) == 1
        (line,) = views["valid"]["layout"]["shapes"]
        assert line["y0"] == line["y1"] == pytest.approx(level)
        (line,) = views["train"]["layout"]["shapes"]
        assert line["y0"] == pytest.approx(level * math.log(2))  # bytes are the tokens: nats per token


def test_stored_counts_do_not_dwarf_the_weights(html):
    bars = payload(html)["figures"]["components-parameters"]["all"]["data"]
    assert {len(bar["x"]) for bar in bars} == {5}
    assert sum(max(bar["x"]) for bar in bars) < 2e6
    assert "the 6.41M stored numbers of ngram are not drawn" in html
    counted = [r for r in comparison()["results"] if r["model"] == "ngram"]
    assert "components-parameters" in payload(render({"results": counted}))["figures"]


def test_the_table_has_the_means_and_marks_the_best(html):
    data = comparison()
    scores = [r["bits_per_byte"] for r in data["results"] if r["model"] == "gru"]
    assert f">{sum(scores) / 2:.3f} <small>±" in html
    best = best_cells(html)
    assert "window" in best and "ngram" not in best  # the fastest of the neural models, not of all


def best_cells(html: str) -> dict[str, list[float]]:
    """Model -> the values that are marked as the best of their columns."""
    found = {}
    for row in re.findall(r'<th scope="row" data-value=.*?</tr>', html, re.S):
        cells = re.findall(r'<td class="number best" data-value="([^"]+)">', row)
        if cells:
            found[re.search('data-value="([^"]+)"', row)[1]] = [float(cell) for cell in cells]
    return found


def test_a_loss_is_marked_as_best_only_where_the_seeds_settle_it():
    def losses(*seeds: float) -> list[float]:
        data = comparison(seeds=len(seeds))
        data["results"] = [r for r in data["results"] if r["model"] in ("transformer", "window", "ngram")]
        for result in data["results"]:
            if result["model"] == "transformer":
                result["bits_per_byte"] = 2.0 + seeds[result["seed"]]
            elif result["model"] == "window":
                result["bits_per_byte"] = 2.5 + seeds[result["seed"]]
        return [value for value in best_cells(render(data)).get("transformer", []) if 1.9 < value < 2.6]

    assert losses(0.0) == []
    assert losses(0.0, 0.1) == [pytest.approx(2.05)]


ODD = {
    "nothing": {},
    "nulls": {"title": None, "corpus": None, "environment": None, "budget": None, "results": None},
    "no results": {"results": []},
    "bare result": {"results": [{}]},
    "all failed": {
        "results": [{"model": "a", "status": "failed"}, {"model": "b", "status": "failed", "reason": "x"}]
    },
    "only a counted model": {"results": [{"model": "ngram", "bits_per_byte": 2.0, "flops_per_token": 0}]},
    "not finite": {
        "results": [
            {
                "model": "a",
                "bits_per_byte": math.nan,
                "curve": [
                    {"step": 1, "tokens": 1, "loss": math.inf},
                    {"step": 2, "tokens": 2, "loss": math.nan},
                ],
                "evals": [{"step": 1, "tokens": 1, "bits_per_byte": math.nan}],
                "loss_by_position": [math.nan, None],
                "components": {"head": {"flops": math.nan}},
            }
        ]
    },
    "training loss only": {"results": [{"model": "a", "curve": [{"step": 1, "tokens": 5, "loss": 2.0}] * 3}]},
    "wrong types": {
        "budget": {"params": "1M", "unequal": None, "context": "x"},
        "results": [
            {"model": 3, "curve": "x", "evals": {}, "components": [], "sample": "s", "seconds": "fast"},
            7,
        ],
    },
    "zeros": {
        "results": [
            {
                "model": m,
                "bits_per_byte": 0.0,
                "seconds": 0,
                "evals": [
                    {"step": s, "tokens": 0, "seconds": 0, "flops": 0, "bits_per_byte": 0.0} for s in (0, 0)
                ],
                "components": {"head": {"flops": 0, "parameters": 0}},
                "loss_by_position": [0.0, 0.0],
            }
            for m in "ab"
        ]
    },
}


@pytest.mark.parametrize("name", ODD)
def test_a_page_comes_of_any_comparison(name):
    html = render(ODD[name])
    Page(html)
    payload(html)


def test_many_models_get_distinct_lines():
    results = [
        {
            "model": f"m{i}",
            "bits_per_byte": 2 + i / 10,
            "evals": [{"tokens": t, "bits_per_byte": 3 - t} for t in (0, 1)],
        }
        for i in range(20)
    ]
    views = payload(render({"results": results}))["figures"]["loss-tokens"]["valid"]
    styles = {(trace["line"]["color"], trace["line"]["dash"]) for trace in views["data"]}
    assert len(styles) == 20


def test_a_half_failed_model_keeps_its_numbers_and_says_so():
    data = comparison()
    data["results"].append({"model": "gru", "seed": 2, "status": "failed", "reason": "out of memory"})
    page = Page(render(data))
    assert "1 of 3 seeds failed: out of memory" in page.text


def test_render_refuses_what_is_no_comparison():
    with pytest.raises(UserError, match="not list"):
        render([])  # type: ignore[arg-type]


def test_write_makes_folders_and_replaces_whole(tmp_path: Path):
    target = tmp_path / "new" / "report.html"
    assert write_report({}, target) == target
    first = target.read_text(encoding="utf-8")
    write_report({"title": "Second"}, target)
    assert "Second" in target.read_text(encoding="utf-8") != first
    assert list(target.parent.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(UserError, match="cannot write the report to"):
            write_report({}, target)
    assert (tmp_path / "file").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "report.html"
    old = write_report({}, target).read_text()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report({}, target)
    assert target.read_text() == old and len(list(tmp_path.iterdir())) == 1


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("the only copy")
    with pytest.raises(UserError, match=r"my\.txt exists and is not a report"):
        write_report(comparison(), text)
    assert text.read_text() == "the only copy"
    page = tmp_path / "report.html"
    write_report(comparison(), page)
    assert write_report(comparison(), page).read_bytes() == page.read_bytes()
