"""The report: what was asked first, long tables folded, nothing fetched or run, and readable on a phone in Chromium."""

import shutil

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.findings import Finding
from experiments.report import Report, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(tmp_path):
    figure = Figure(figsize=(9, 4))
    figure.add_subplot().plot([0, 1], [1, 0])
    report = Report(
        title="penchant trial",
        subtitle="a model with a_very_long_name_that_has_no_place_to_break_" + 12 * "and_goes_on_",
        findings=[
            Finding("Finding <one>", "It is so.", "line"),
            Finding("Finding two", "It is not."),
            Finding("Three", "It is too.", "line"),
        ],
        figures={"line": figure},
        example_prompt="<|im_start|>user\n</pre><script>window.hacked = 1</script>",
        example_answer="A 60.0 %",
        n_questions=12345,
        methods="It was done.",
        command="penchant trial --config runs/trial/config.yaml",
        models={"trial": "abc", "other": "def"},
        tables=[
            Table("Short", "Note.", pd.DataFrame({"a": [1.0], "b": ["x"]})),
            Table("Long", "Note.", pd.DataFrame({f"column_{k}": range(40) for k in range(12)})),
        ],
    )
    path = tmp_path / "report.html"
    path.write_text(report.render(), encoding="utf-8")
    return path


def test_what_was_asked_comes_first_and_nothing_is_fetched_or_run(page):
    text = page.read_text(encoding="utf-8")
    assert "Model trial (abc). Model other (def)." in text
    places = [text.index(each) for each in ("One of 12,345 questions", "It is so.", "<h2>Short", "It was done.", "--config")]
    assert places == sorted(places)
    assert "<script" not in text and "http-equiv" in text and "default-src 'none'" in text
    assert text.count("<svg") == 1 and 'In the figure of <a href="#finding-1">Finding &lt;one&gt;</a>' in text
    assert text.count("<details>") == 1 and "40 rows" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (the Debian package)")
def test_a_phone_shows_it_without_scrolling_sideways_and_print_unfolds_what_is_folded(page):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        messages: list[str] = []
        view = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        view.on("console", lambda message: messages.append(message.text))
        view.goto(page.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") == 390
        assert view.evaluate("window.hacked") is None and not messages
        assert view.locator("figure svg").bounding_box()["width"] > 500  # scrolled inside its frame, and readable
        row = view.locator("#table-2 tbody tr").last
        assert not row.is_visible()
        view.emulate_media(media="print")
        assert row.is_visible()
        browser.close()
