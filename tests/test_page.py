"""The report's page as a person uses it: opened from disk in a headless Chromium."""

import json
import shutil

import numpy as np
import pytest
from test_report import LABELS, make_result, make_run

from fairmix_jax import report
from fairmix_jax.classwise import image_verdicts

webdriver = pytest.importorskip("selenium.webdriver")

WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver, as Debian packs them"
)
SECTIONS = [
    "tradeoff", "leaderboard", "classes", "radius", "confusion", "confidence", "training",
    "examples", "survivors", "provenance",
]  # fmt: skip
CHARTS = [name for name in SECTIONS if name not in ("leaderboard", "examples", "provenance")]


def complete_run(path, seed, mixing, correct, **changes):
    """A run that lacks nothing a report shows."""
    ensemble = make_result([count - 5 for count in correct]) | {
        "detail": {
            "broken_by": {"clean": [10, 20], "apgd-ce": [15, 45]},
            "confusion": [[75, 25], [65, 35]],
            "seconds_by_attack": {"clean": 0.1, "apgd-ce": 2.0},
            "gradient_passes_per_image": {"clean": 0, "apgd-ce": 50},
            "forward_passes_per_image": {"clean": 1, "apgd-ce": 50},
            "curve": [["clean", 0.1, 170], ["apgd-ce", 1.0, 130], ["apgd-ce", 2.0, 110]],
            "non_finite": 0, "notes": [],
        },
        "masking": {"verdict": "pass", "findings": [
            {"name": "zero_gradient", "verdict": "pass", "reason": "none", "per_class": [0, 0]}
        ]},
    }  # fmt: skip
    attacks = {
        "clean": make_result((90, 80)), "pgd20": make_result(correct), "autoattack": ensemble,
    }  # fmt: skip
    curve = {
        "attack": "pgd20", "epsilon": [0.0, 0.1, 0.2], "class_total": [100, 100],
        "class_correct": [[90, 80], [85, 60], list(correct)],
    }  # fmt: skip
    make_run(path, seed, mixing, correct, **{"attacks": attacks, "curve": curve} | changes)
    lines = [
        {"step": e, "epoch": e, "val_robust/average": e / 9, "val_robust/worst_class": e / 20}
        for e in range(1, 6)
    ]
    (path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    image = np.random.default_rng(seed).random((2, 8, 8, 3)).astype(np.float32)
    image_verdicts.save(
        path / "attacks" / "pgd20" / "examples.npz", image=image, row=np.arange(2),
        adversarial=np.clip(image + 0.1, 0, 1), label=LABELS[[0, -1]], prediction=LABELS[[0, 0]],
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for seed, (none, same) in enumerate([((80, 40), (78, 46)), ((82, 44), (80, 48))]):
        complete_run(folder / f"none{seed}", seed, "none", none)
        complete_run(folder / f"same{seed}", seed, "same_class", same)
    make_run(folder / "other", 0, "none", (50, 50), dataset="fashion")
    report.write(folder, [folder], show=False)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(page.as_uri())
    settle(browser)
    return browser


def settle(browser):
    browser.execute_async_script("window.ready.then(arguments[0])")


def choose(browser, control, text):
    """Picks an option by its text, as a person would, and waits for the charts."""
    browser.execute_async_script(
        """const [id, text, done] = arguments, select = document.getElementById(id);
        select.value = [...select.options].find((o) => o.textContent === text).value;
        select.dispatchEvent(new Event("change"));
        window.ready.then(done);""",
        control, text,
    )  # fmt: skip


def visible_rows(browser, table=0):
    """The texts of the rows shown in one of the visible tables."""
    return browser.execute_script(
        """const tables = [...document.querySelectorAll("#leaderboard table")]
          .filter((t) => t.offsetParent !== null);
        return [...tables[arguments[0]].tBodies[0].rows].filter((r) => !r.hidden)
          .map((r) => [...r.cells].map((c) => c.textContent));""",
        table,
    )


def test_opens_without_errors_and_asks_nobody_for_anything(opened, page):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in urls
    assert all(url == page.as_uri() or url.startswith("data:") for url in urls)
    assert page.stat().st_size < 5_000_000


def test_shows_every_section_with_a_chart_a_reader_can_hear(opened):
    for name in SECTIONS:
        assert opened.find_element("css selector", f"#{name} h2").is_displayed()
    for name in CHARTS:
        chart = opened.find_element("css selector", f"#{name} .chart svg")
        assert chart.size["width"] > 300 and chart.size["height"] > 100
        label = opened.execute_script(
            "return document.querySelector(`#${arguments[0]} .chart [aria-label]`)"
            ".getAttribute('aria-label')", name,
        )  # fmt: skip
        assert len(label) > 30
    choose(opened, "attack", "pgd20")
    images = opened.find_elements("css selector", "#examples img")
    assert len(images) == 6 and all(i.get_attribute("alt") for i in images)
    assert all(i.get_property("naturalWidth") == 8 for i in images)
    link = opened.find_element("css selector", "#leaderboard tbody a")
    opened.execute_script("arguments[0].click()", link)
    target = opened.find_element("css selector", link.get_attribute("hash"))
    WebDriverWait(opened, 5).until(lambda _: target.get_attribute("open"))
    assert "mixing=none" in target.text and "'--config=<x>'" in target.text
    assert "commit" in opened.find_element("id", "provenance").get_attribute("textContent")


def test_filters_by_data_set_attack_and_method(opened):
    assert len(visible_rows(opened)) == 6
    choose(opened, "attack", "autoattack")
    assert [row[:2] for row in visible_rows(opened)] == [
        ["autoattack", "mixing=none"], ["autoattack", "mixing=same_class"],
    ]  # fmt: skip
    assert "autoattack" in opened.find_element("css selector", "#classes .hint").text
    opened.find_element("css selector", "#methods input").click()
    settle(opened)
    assert [row[1] for row in visible_rows(opened)] == ["mixing=same_class"]
    choose(opened, "set", "fashion, linf radius 0.2, 200 test images")
    assert [row[0] for row in visible_rows(opened)] == ["clean", "pgd20"]
    assert "evaluate.radii" in opened.find_element("css selector", "#radius .missing").text
    assert opened.get_log("browser") == []


def test_sorts_by_a_column_with_the_keyboard(opened):
    headings = opened.find_elements("css selector", "#leaderboard table:first-of-type thead button")
    average = next(h for h in headings if h.text == "average")
    average.send_keys("\n")
    values = [float(row[3].split()[0]) for row in visible_rows(opened)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 2
    cell = average.find_element("xpath", "..")
    assert cell.get_attribute("aria-sort") == "descending"
    average.send_keys("\n")
    values = [float(row[3].split()[0]) for row in visible_rows(opened)]
    assert values == sorted(values) and cell.get_attribute("aria-sort") == "ascending"


def test_opens_with_the_outcome_and_its_chart(opened, page):
    first = opened.find_elements("css selector", ".outcome, #tradeoff svg, #controls, table")
    assert [e.tag_name for e in first if e.is_displayed()][:3] == ["p", "svg", "details"]
    (said,) = (e.text for e in opened.find_elements("css selector", ".outcome") if e.text)
    assert said.startswith("Under autoattack 'mixing=none' classifies ")
    choose(opened, "set", "fashion, linf radius 0.2, 200 test images")
    (said,) = (e.text for e in opened.find_elements("css selector", ".outcome") if e.text)
    assert said.startswith("Under pgd20 the model ") and said.endswith(
        "its worst class, a (1 other is as low)."
    )


def test_each_chart_explains_itself_and_keys_its_colours(opened):
    for name, words in (
        ("tradeoff", "Each mark is a method"), ("classes", "Pale bars are without an attack"),
        ("radius", "thick black line is the average"), ("confidence", "dashed diagonal"),
    ):  # fmt: skip
        assert words in opened.find_element("css selector", f"#{name} .hint").text
    for name in ("tradeoff", "classes", "confidence", "training", "survivors"):
        legend = opened.find_element("css selector", f"#{name} .role-legend").text
        assert "mixing=none" in legend and "mixing=same_class" in legend


def test_fits_a_phone(opened, page):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        opened.get(page.as_uri())
        settle(opened)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
        assert len(opened.find_elements("css selector", ".chart svg")) == len(CHARTS)
        assert not opened.find_element("id", "filters").is_displayed()
        right = opened.execute_script(
            """const row = document.querySelector("#leaderboard table").tBodies[0].rows[0];
            return [...row.cells].slice(0, 5).map((c) => c.getBoundingClientRect().right);"""
        )
        assert max(right) <= 390  # the average and the worst class
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_shows_its_tables_without_scripts(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert len(browser.find_elements("css selector", "#leaderboard tbody tr")) > 12
        assert browser.find_element("css selector", "#leaderboard table").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
