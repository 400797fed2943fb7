"""The page of explore in headless Chromium: what is pointed at, searched and filtered, and that nothing in a text ever runs."""

import shutil

import numpy as np
import pandas as pd
import pytest

from experiments import explore
from tests.experiments.made_runs import made_run, made_tasks

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install 'penchant[dev]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")

ATTACK = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> &lt;b&gt; &amp; \u2028 <!--<script>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def explored_page(tmp_path_factory):
    """A page of eighty tasks, one of which attacks it, with hand labels whose names and cells do too."""
    folder = tmp_path_factory.mktemp("page")
    tasks = made_tasks(80)
    tasks.loc[3, "text"] = ATTACK
    run = made_run(folder / "run", tasks=tasks)
    hand = pd.DataFrame({"task_id": tasks["id"], "mood": np.where(np.arange(80) % 3, "calm", "<b>wild</b>"), "code": "a; b"})
    hand.loc[0, "code"] = "a"
    hand.to_csv(folder / "hand.csv", index=False)
    (folder / "book.csv").write_text("code,description\na,asks & begs\nb,<i>bids</i>\n", encoding="utf-8")
    explore.run(
        explore.SETTINGS(
            runs=(run,),
            labels=(folder / "hand.csv", folder / "book.csv"),
            out=folder / "out",
            map="words",
            reduce="pca",
            permutations=19,
        )
    )
    return folder / "out" / "explore.html"


class Opened:
    """A page, with everything that it says and asks for."""

    def __init__(self, browser, path, state="", **context):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.resolve().as_uri() + state)
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")

    @property
    def count(self):
        return self.page.inner_text("#count")

    def rows(self):
        """First cells of the table of tasks."""
        return self.page.locator("#panel tbody tr td:first-child").all_inner_texts()

    def points(self):
        """Where the first tasks are drawn, as the page itself works it out."""
        return self.page.evaluate(
            """() => { const d = JSON.parse(document.getElementById('payload').textContent);
            const box = document.getElementById('stage'); const m = 34;
            const [l, r] = [Math.min(...d.x), Math.max(...d.x)], [b, t] = [Math.min(...d.y), Math.max(...d.y)];
            return d.id.map((id, i) => [id, m + (d.x[i]-l)/(r-l)*(box.clientWidth-2*m),
              box.clientHeight - m - (d.y[i]-b)/(t-b)*(box.clientHeight-2*m)]); }"""
        )


@pytest.fixture
def opened(browser, explored_page):
    pages = []

    def go(state="", path=explored_page, **context):
        pages.append(Opened(browser, path, state, **context))
        return pages[-1]

    yield go
    for each in pages:
        assert each.said == [], "the console says something"
        assert [url for url in each.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        each.context.close()


def test_pointing_at_a_task_says_which_it_is_and_clicking_keeps_it(opened):
    view = opened()
    points = view.points()
    places = np.array([[x, y] for _, x, y in points])
    apart = np.sort(np.hypot(*(places[:, None] - places).T), axis=0)[1]
    alone = int(apart.argmax())
    task, x, y = points[alone]
    view.page.hover("#canvas", position={"x": x + 2, "y": y + 1})
    tip = view.page.inner_text("#tip")
    assert tip.startswith(task) and "utility:" in tip and "[" in tip
    view.page.click("#canvas", position={"x": x, "y": y})
    assert view.page.inner_text("#detail h2") == task and f"task={task}" in view.page.url
    detail = view.page.inner_text("#detail")
    assert "self_report" in detail and "asks & begs" in detail and "order flips" in detail


def test_search_filters_the_map_the_table_and_the_count(opened):
    view = opened()
    assert view.count == "80 of 80 tasks"
    view.page.keyboard.press("/")
    view.page.keyboard.type("MATH_00007")
    view.page.wait_for_selector("#count:has-text('1 of')")
    assert view.rows() == ["math_00007"]
    view.page.click("#clear")
    assert view.count == "80 of 80 tasks"


def test_a_click_in_the_legend_and_a_range_filter_by_label(opened):
    view = opened("#colour=origin")
    view.page.click("#legend li button:has-text('law')")
    assert view.count == "20 of 80 tasks" and all(task.startswith("law") for task in view.rows())
    view.page.select_option("#filter-by", "utility")
    view.page.fill("#filter-box input >> nth=0", "-0.5")
    values = view.page.evaluate(
        "() => { const d = JSON.parse(document.getElementById('payload').textContent);"
        "const u = d.labels.find(l => l.name === 'utility').values;"
        "return d.id.filter((id, i) => id.startsWith('law') && u[i] >= -0.5).length }"
    )
    assert 0 < values < 20 and view.count == f"{values} of 80 tasks"


def test_the_address_restores_what_was_seen(opened):
    view = opened()
    view.page.select_option("#colour", "self_report")
    view.page.select_option("#view", "prefers yet refuses (refusal)")
    view.page.click("#tab-ends")
    seen = view.count, view.page.inner_text("#panel"), view.page.input_value("#colour")
    assert not seen[0].startswith("80")
    again = opened(view.page.url[view.page.url.index("#") :])
    assert (again.count, again.page.inner_text("#panel"), again.page.input_value("#colour")) == seen
    broken = opened("#colour=absent&view=absent&task=absent&from-to.utility=x..y&is.origin=absent&tab=toString&sort=%00")
    assert broken.count == "80 of 80 tasks"


def test_what_a_text_or_label_says_stays_text(opened):
    view = opened("#task=math_00003&colour=mood")
    assert (
        view.page.inner_text("#detail pre") == ATTACK.replace("\u2028", "\n")
        or view.page.evaluate("document.querySelector('#detail pre').textContent") == ATTACK
    )
    assert view.page.evaluate("window.hacked") is None and view.page.locator("img, b:has-text('wild')").count() == 0
    assert "<b>wild</b>" in view.page.inner_text("#legend") and "<i>bids</i>" in view.page.inner_text("#detail")
    for tab in ("tasks", "ends", "pairs", "crosses", "said", "near"):
        view.page.click(f"#tab-{tab}")
        assert view.page.inner_text("#panel")
    assert view.page.evaluate("window.hacked") is None


def test_no_script_of_elsewhere_would_run(opened):
    view = opened()
    view.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s) }"
    )
    assert view.page.evaluate("window.hacked") is None
    assert view.said and all("Content Security Policy" in each for each in view.said)
    view.said.clear()


def test_tables_sort_and_turn_pages(opened):
    view = opened()
    view.page.click("#panel th button:has-text('utility')")
    first = view.rows()
    assert len(first) == 25 and "sort=-utility" in view.page.url
    view.page.click("#panel .pager button >> nth=2")
    assert len(view.rows()) == 25 and not set(first) & set(view.rows())
    view.page.click("#panel th button:has-text('utility')")
    assert set(view.rows()).isdisjoint(first)


def test_counts_of_tasks_are_whole_numbers_and_paper_has_no_tabs(opened):
    view = opened("#tab=near")
    names = [text.split()[0] for text in view.page.locator("#panel th").all_inner_texts()]
    cells = view.page.locator(f"#panel tbody td:nth-child({names.index('n') + 1})").all_inner_texts()
    assert cells and set(cells) == {"80"}
    assert view.page.is_visible("#tabs")
    view.page.emulate_media(media="print")
    assert not view.page.is_visible("#tabs") and view.page.is_visible("#panel")


def test_corners_open_their_tasks_and_numbers_add_up(opened):
    view = opened("#tab=crosses")
    numbers = [int(text) for text in view.page.locator(".cross td button").all_inner_texts()]
    assert sum(numbers) == 80
    view.page.click(".cross td button >> nth=0")
    assert view.count == f"{numbers[0]} of 80 tasks"


def test_what_is_shown_can_be_saved_as_ids_that_include_reads(opened, tmp_path):
    from elicit import read_ids

    view = opened("#is.origin=art")
    with view.page.expect_download() as ids:
        view.page.click("#save-ids")
    with view.page.expect_download() as table:
        view.page.click("#save-csv")
    ids.value.save_as(tmp_path / "ids.txt")
    table.value.save_as(tmp_path / "tasks.csv")
    found = read_ids(tmp_path / "ids.txt")
    assert len(found) == 20 and all(task.startswith("art") for task in found)
    saved = pd.read_csv(tmp_path / "tasks.csv")
    assert saved["task_id"].tolist() == found and saved["utility low"].lt(saved["utility"]).all()


def test_keys_go_from_task_to_task(opened):
    view = opened()
    view.page.focus("#canvas")
    view.page.keyboard.press("ArrowRight")
    first = view.page.inner_text("#tip b")
    view.page.keyboard.press("ArrowDown")
    second = view.page.inner_text("#tip b")
    assert first != second
    view.page.keyboard.press("Enter")
    assert view.page.inner_text("#detail h2") in second
    view.page.keyboard.press("Escape")
    assert view.page.locator("#detail h2").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(opened, scheme):
    view = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 390
    view.page.tap("#canvas", position={"x": 100, "y": 100})
    background = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 30)") == (scheme == "dark")


def test_axes_may_be_labels(opened):
    view = opened("#across=utility&up=self_report")
    assert "Drawn by labels" in view.page.inner_text("#map-note")


@pytest.mark.slow
def test_ten_thousand_tasks_can_be_used(browser, tmp_path):
    run = made_run(tmp_path / "run", n=10_000)
    explore.run(explore.SETTINGS(runs=(run,), out=tmp_path / "out", map="words", reduce="pca", permutations=19))
    view = Opened(browser, tmp_path / "out" / "explore.html")
    try:
        assert view.count == "10,000 of 10,000 tasks" and len(view.rows()) == 25
        took = view.page.evaluate(
            """() => { const start = performance.now();
            const box = document.getElementById('search'); box.value = 'haiku'; box.dispatchEvent(new Event('input'));
            return new Promise(done => { const look = () => document.getElementById('count').textContent.startsWith('10,000')
              ? requestAnimationFrame(look) : done(performance.now() - start); look(); }); }"""
        )
        assert took < 5_000 and view.said == []
    finally:
        view.context.close()
