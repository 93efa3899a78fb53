"""The page in a real browser: it draws, it is quiet, it asks nobody for anything, and it fits."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixlab.report import from_run, write_report
from mixlab.report.joined import merge
from tests.report.synthetic import comparison
from tests.report.test_from_run import CONFIG, run
from tests.report.test_meters import lines as metered_lines

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--disable-extensions",
]
LOCAL = ("file:", "data:", "blob:", "about:")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium with the report open; it records its console and every request."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the dev extra)")
    folder = tmp_path_factory.mktemp("report")
    page = write_report(comparison(), folder / "report.html")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        session.set_script_timeout(20)
        session.get(page.as_uri())
        yield session
    finally:
        session.quit()


@pytest.fixture
def media(browser: Any) -> Iterator[Callable[..., None]]:
    """media(width=, scheme=): look at the page that wide and in that colour scheme; undone afterwards."""

    def look(width: int = 1280, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        settle(browser)

    look()
    yield look
    look()


def settle(browser: Any) -> None:
    """Wait until every figure has the width that its place has now, and two frames more."""
    browser.execute_async_script(
        """
        const done = arguments[0], start = performance.now();
        const fits = () => document.documentElement.dataset.ready === "true" &&
          [...document.querySelectorAll(".plot")].every((div) => {
            const svg = div.querySelector("svg.main-svg");
            return svg && Math.abs(svg.getBoundingClientRect().width - div.clientWidth) < 2;
          });
        const wait = () => fits() || performance.now() - start > 8000
          ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(wait, 30);
        wait();
        """
    )


def figures(browser: Any) -> dict[str, dict[str, Any]]:
    """Of every figure: how many traces it drew, and the boxes of its svg and of the element that holds it."""
    return browser.execute_script(
        """
        const page = JSON.parse(document.getElementById("payload").textContent);
        const heights = Object.fromEntries(Object.entries(page.figures).map(
          ([name, views]) => [name, Object.values(views)[0].layout.height]));
        const box = (item) => { const r = item.getBoundingClientRect(); return [r.width, r.height]; };
        return Object.fromEntries([...document.querySelectorAll(".plot")].map((div) => [div.dataset.figure, {
          traces: div.querySelectorAll("svg .trace, svg .bars > .points > .point").length,
          lines: div.querySelectorAll("svg .scatterlayer .trace path.js-line").length,
          svg: box(div.querySelector("svg.main-svg")), div: box(div), height: heights[div.dataset.figure],
          title: [...div.querySelectorAll(".xtitle, .ytitle")].map((t) => t.textContent),
          ink: getComputedStyle(div.querySelector(".xtitle")).fill,
          colours: [...div.querySelectorAll("path.js-line")].map((path) => getComputedStyle(path).stroke),
        }]));
        """
    )


def texts_outside(browser: Any) -> list[str]:
    """The texts of figures that stand over their figure's edge."""
    found: list[str] = browser.execute_script(
        """
        return [...document.querySelectorAll(".plot")].flatMap((div) => {
          const frame = div.getBoundingClientRect();
          return [...div.querySelectorAll("text")].filter((text) => {
            const r = text.getBoundingClientRect();
            const beside = r.left < frame.left - 1 || r.right > frame.right + 1;
            return r.width && (beside || r.bottom > frame.bottom + 1);
          }).map((text) => div.dataset.figure + ": " + text.textContent);
        });
        """
    )
    return found


def test_every_figure_draws(browser: Any, media: Callable[..., None]) -> None:
    drawn = figures(browser)
    assert len(drawn) == 6
    for name, figure in drawn.items():
        assert figure["traces"] > 0, name
        assert figure["svg"][0] > 300 and figure["svg"][1] > 150, name
        assert figure["title"] and all(figure["title"]), name
    assert drawn["loss-tokens"]["lines"] >= 5


@pytest.mark.parametrize("width", [375, 768, 1280])
def test_nothing_scrolls_sideways_and_figures_fit(
    browser: Any, media: Callable[..., None], width: int
) -> None:
    media(width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for name, figure in figures(browser).items():
        assert figure["svg"][0] <= width, name
        assert figure["svg"][1] == figure["div"][1] == figure["height"], name
    wider = browser.execute_script(
        "const s = document.querySelector('.scroll'); return s.scrollWidth > s.clientWidth"
    )
    assert wider == (width < 1000)  # the table scrolls in its own box, and only where it must


def test_labels_stay_inside_their_figure(browser: Any, media: Callable[..., None]) -> None:
    for width in (375, 1280):
        media(width=width)
        assert texts_outside(browser) == [], width


def test_figures_follow_the_colour_scheme(browser: Any, media: Callable[..., None]) -> None:
    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    def paper() -> str:
        return browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")

    media(scheme="light")
    light, light_paper = figures(browser), paper()
    media(scheme="dark")
    dark, dark_paper = figures(browser), paper()
    assert brightness(light_paper) > 240 and brightness(dark_paper) < 40
    for name in light:
        assert brightness(light[name]["ink"]) < 120 < brightness(dark[name]["ink"]), name
    assert light["loss-tokens"]["colours"] != dark["loss-tokens"]["colours"]
    media(scheme="light")
    assert figures(browser)["loss-tokens"]["colours"] == light["loss-tokens"]["colours"]


def test_the_toggle_and_the_chips_redraw_the_loss_figures(browser: Any, media: Callable[..., None]) -> None:
    def click(selector: str) -> None:
        browser.execute_script("document.querySelector(arguments[0]).click()", selector)
        settle(browser)

    before = figures(browser)
    click('[data-view="train"]')
    after = figures(browser)
    for name in ("loss-tokens", "loss-seconds", "loss-flops"):
        assert "validation loss (bits per byte)" in before[name]["title"]
        assert "training loss (nats per token)" in after[name]["title"] and after[name]["traces"] > 0
    assert after["position"] == before["position"]
    click('[data-view="valid"]')
    click('[data-model="gru"]')
    hidden = figures(browser)
    assert hidden["loss-tokens"]["lines"] < before["loss-tokens"]["lines"]
    assert hidden["position"]["lines"] == before["position"]["lines"] - 1
    click('[data-model="gru"]')
    assert figures(browser)["loss-tokens"] == before["loss-tokens"]


def test_a_column_sorts_by_number_and_failures_stay_last(browser: Any) -> None:
    def names() -> list[str]:
        script = "return [...document.querySelectorAll('th[data-value]')].map((th) => th.dataset.value)"
        return browser.execute_script(script)

    def click(column: int) -> str:
        script = """const th = document.querySelectorAll('thead th')[arguments[0]];
            th.querySelector('button').click(); return th.getAttribute('aria-sort')"""
        return browser.execute_script(script, column)

    assert names() == ["transformer", "gru", "lstm", "rnn", "window", "window-64", "ngram"]
    assert click(4) == "ascending"  # time: 18 s ... 1 min; the baseline stays apart
    assert names() == ["window", "rnn", "transformer", "gru", "lstm", "window-64", "ngram"]
    assert click(4) == "descending"
    assert names() == ["lstm", "gru", "transformer", "rnn", "window", "window-64", "ngram"]
    assert click(0) == "ascending"
    assert names()[:2] == ["gru", "lstm"]
    assert click(1) == "ascending"
    assert names()[0] == "transformer"


def test_it_prints_light_and_unclipped(browser: Any, media: Callable[..., None]) -> None:
    media(scheme="dark")
    browser.execute_script(
        """
        window.printed = null;
        window.addEventListener("beforeprint", () => {
          window.printed = [...document.querySelectorAll(".plot")].map((div) => {
            const svg = div.querySelector("svg.main-svg");
            return [Number(svg.getAttribute("width")), getComputedStyle(div.querySelector(".xtitle")).fill];
          });
        }, { once: true });
        """
    )
    a4 = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", a4)["data"])
    assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
    printed = browser.execute_script("return window.printed")
    assert len(printed) == 6
    for width, ink in printed:
        assert width <= 680  # A4 less two margins of 15 mm
        assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 360  # dark on white, though the screen is dark
    settle(browser)
    assert figures(browser)["loss-tokens"]["svg"][0] > 680  # back to the screen's width


def test_no_request_left_the_page_and_the_console_is_quiet(browser: Any) -> None:
    """Runs last in the file, after everything above has been clicked and drawn."""
    requests = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            # The browser's own new tab lives at chrome: and frames chrome-untrusted:.
            if not str(parameters.get("documentURL")).startswith(("chrome:", "chrome-untrusted:")):
                requests.append(parameters.get("url") or parameters["request"]["url"])
    assert any(url.endswith("/report.html") for url in requests)  # the log is there
    assert [url for url in requests if not url.startswith(LOCAL)] == []
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [url for url in loaded if not url.startswith(LOCAL)] == []
    assert browser.get_log("browser") == []
    browser.execute_script("fetch('https://example.org/').catch(() => 0); console.error('heard')")
    said = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert (
        "Content Security Policy" in said and "heard" in said
    )  # a request would be refused, an error be seen


def test_a_page_of_one_run_draws_too(browser: Any, tmp_path: Path) -> None:
    data = comparison(seeds=1)
    data["results"] = [result for result in data["results"] if result["model"] == "gru"]
    browser.get(write_report(data, tmp_path / "one.html").as_uri())
    settle(browser)
    drawn = figures(browser)
    assert len(drawn) == 6 and all(figure["traces"] > 0 for figure in drawn.values())
    assert browser.get_log("browser") == []


def test_the_meters_of_runs_draw_and_fit(browser: Any, media: Callable[..., None], tmp_path: Path) -> None:
    folders = []
    for name in ("a-run-with-a-long-name", "two"):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        run(folders[-1], metered_lines(), CONFIG.replace("gru", name, 1))
    for page in ([folders[0]], folders):
        browser.get(write_report(merge([from_run(f) for f in page], page), tmp_path / "r.html").as_uri())
        for width in (375, 1280):
            media(width=width)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            drawn = {name: f for name, f in figures(browser).items() if name.startswith("meter-")}
            assert len(drawn) >= 9
            for name, figure in drawn.items():
                assert figure["lines"] > 0 and figure["svg"][1] == figure["height"], name
            assert texts_outside(browser) == [], width
        bands = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].filter((div) => "
            "div.querySelector('.shapelayer path, .layer-below path')).map((div) => div.dataset.figure)"
        )
        assert {f"meter-{name}" for name in ("attention_logit", "effective_rank", "dead_units")} <= set(bands)
    assert browser.get_log("browser") == []


def test_a_wide_table_shows_that_it_goes_on(browser: Any, media: Callable[..., None], tmp_path: Path) -> None:
    browser.get(write_report(comparison(), tmp_path / "wide.html").as_uri())

    def shown() -> tuple[str, bool]:
        return tuple(
            browser.execute_script(
                """
                const scroller = document.querySelector('.scroller');
                return [getComputedStyle(scroller, '::after').opacity,
                        getComputedStyle(scroller.nextElementSibling).display !== 'none'];
                """
            )
        )

    def at(place: str) -> None:
        browser.execute_async_script(
            f"const box = document.querySelector('.scroll'); box.scrollLeft = {place};"
            "setTimeout(arguments[0], 400);"  # the shadow fades
        )

    media(width=390)
    at("0")
    assert shown() == ("1", True)
    at("box.scrollWidth")
    assert shown() == ("0", True)
    media(width=1280)
    at("0")
    assert shown() == ("0", False)


def test_long_names_and_a_rotation_do_not_widen_the_page(
    browser: Any, media: Callable[..., None], tmp_path: Path
) -> None:
    data = comparison(seeds=1)
    for result in data["results"]:
        result["model"] += "[train.optimizer.weight_decay=0.0001,model.temporal.heads=16,depth=2]"
    media(width=800)
    browser.get(write_report(data, tmp_path / "long.html").as_uri())
    settle(browser)
    for mobile in (False, True):
        metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wide = "return Math.max(innerWidth, document.documentElement.scrollWidth)"
        assert browser.execute_script(wide) == 390, "before the figures are drawn again"
        settle(browser)
        assert browser.execute_script(wide) == 390
        media(width=800)


def test_download_links_that_wrap_stand_at_the_left_edge(
    browser: Any, media: Callable[..., None], tmp_path: Path
) -> None:
    browser.get(write_report(comparison(), tmp_path / "links.html").as_uri())
    media(width=390)
    edge, links = browser.execute_script(
        """
        const box = document.querySelector('.downloads');
        const place = (item) => { const r = item.getBoundingClientRect(); return [r.left, r.top]; };
        return [place(box)[0], [...box.querySelectorAll('button')].map(place)];
        """
    )
    first, last = links[0], links[-1]
    assert last[1] > first[1] and last[0] == edge


def test_the_numbers_can_be_downloaded(browser: Any, media: Callable[..., None], tmp_path: Path) -> None:
    browser.get(write_report(comparison(), tmp_path / "numbers.html").as_uri())
    settle(browser)
    found = browser.execute_async_script(
        """
        const done = arguments[0], kept = [], make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { kept.push(blob); return make(blob); };
        HTMLAnchorElement.prototype.click = function () { kept.push(this.download); };
        document.querySelectorAll('[data-download]').forEach((button) => button.click());
        Promise.all(kept.map((item) => item.text ? item.text() : item)).then(done);
        """
    )
    texts = dict(zip(found[1::2], found[::2], strict=True))
    assert len(texts) == 3
    everything = next(json.loads(text) for name, text in texts.items() if name.endswith(".json"))
    assert len(everything["results"]) == len(comparison()["results"])
    assert sum(text.startswith("model,seed,") for text in texts.values()) == 2
    assert browser.get_log("browser") == []
