"""The report as a reader has it: opened from a file in a headless Chromium (Debian's package)."""

import io
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from osora_bench.common import paths
from osora_bench.planning.cell import cell_of
from osora_bench.records import record
from osora_bench.reporting.html.report import Progress, read_ledgers, report
from tests.reporting.html import made

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: .ci/run installs it"),
    pytest.mark.long,
]
SIZES = {"phone": (360, 740), "tablet": (820, 1100), "screen": (1280, 900)}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A report with hostile names, of more records than a table shows at once."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        part = made.part_of(folder, patch, paths, hostile=True)
        text = report([part], read_ledgers([folder / "ledger"]))
    (folder / "report.html").write_text(text)
    return folder / "report.html"


@pytest.fixture
def opened(browser, file):
    """Opens the page; at the end nothing was complained of, and nothing asked of a network."""
    complaints, pages = [], []

    def open_page(width=1280, height=900, scheme="light", place=file):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("alert"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith("file://") or complaints.append(request.url),
        )
        page.goto(place.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def drawn(page):
    """The page with every chart drawn that is seen."""
    seen = page.locator(".plot:not([hidden]) .chart")
    page.wait_for_function(
        "count => document.querySelectorAll('.chart[data-drawn]').length >= count",
        arg=seen.count(),
    )
    return page


def column(table, number):
    return table.locator(f"tbody tr td:nth-child({number})").all_inner_texts()


def test_it_opens_from_a_file_and_draws_every_chart(opened):
    page = drawn(opened())
    assert page.locator("figure svg").count() == 4
    assert made.HOSTILE in page.locator("h1").inner_text()
    titles = page.locator("figcaption").all_inner_texts()
    for wanted in ("Accuracy by rank r", "Trainable parameters", "against cost", "Training loss"):
        assert any(wanted in title for title in titles), (wanted, titles)


AVERAGE = 3
"""The average's column: behind the names, before all other numbers."""


def test_tables_are_sorted_by_a_heading_up_down_and_back(opened):
    page = opened()
    table = page.locator("table.grid").first
    heading = table.locator("th", has_text="Avg.")
    assert heading.evaluate("e => e.cellIndex") + 1 == AVERAGE
    first = column(table, AVERAGE)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(table, AVERAGE) if text.strip()]
    assert values == sorted(values, reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(t.split()[0]) for t in column(table, AVERAGE) if t.strip()] == sorted(values)
    heading.locator("button").click()
    assert column(table, AVERAGE) == first


def test_dates_and_run_ids_are_sorted_as_what_they_are(opened):
    page = opened()
    table = page.locator("#all-records")
    for name in ("Finished", "Run", "Rank", "Method"):
        heading = table.locator("th", has_text=re.compile(f"^{name}$"))
        place = heading.evaluate("e => e.cellIndex") + 1
        heading.locator("button").click()
        values = [value for value in column(table, place) if value]
        if name == "Rank":
            values = [int(value) for value in values]
        assert len(set(values)) > 2, name
        assert values == sorted(values, reverse=name == "Rank"), name
        heading.locator("button").click()
        again = [value for value in column(table, place) if value]
        assert again == [str(value) for value in values[::-1]], name


def test_a_choice_that_leaves_nothing_says_so(opened):
    page = opened()
    page.locator("form.filters").first.get_by_label("Contains").fill("no such text")
    assert (
        page.locator("table.grid").first.inner_text().endswith("No line has what is chosen above.")
    )


def test_tables_are_filtered_by_method_and_rank_and_text(opened):
    page = opened()
    form, table = page.locator("form.filters").first, page.locator("table.grid").first
    assert table.locator("tbody tr").count() == 7
    method = form.get_by_label("Method")
    lora = next(t for t in method.locator("option").all_inner_texts() if t.startswith("LoRA"))
    method.select_option(lora)
    assert table.locator("tbody tr").count() == 3
    by_rank = page.locator("table.grid").nth(1)  # a column a method: the others are hidden
    assert by_rank.locator("th:visible").count() == 2
    form.get_by_label("Rank").select_option("4")
    assert table.locator("tbody tr").count() == 1
    form.get_by_role("button", name="Show all").click()
    page.wait_for_timeout(50)
    assert table.locator("tbody tr").count() == 7
    form.get_by_label("Contains").fill("osora")
    assert table.locator("tbody tr").count() == 3


def test_a_pointer_on_a_chart_is_told_run_seed_and_commit(opened):
    page = opened()
    figure = page.locator("figure", has_text="Accuracy by rank r")
    figure.scroll_into_view_if_needed()
    figure.locator("svg").wait_for()
    points = figure.locator("svg .mark-symbol path")
    points.nth(1).hover(force=True)
    tip = page.locator("#tip")
    tip.wait_for()
    said = tip.inner_text()
    assert re.search(r"[0-9a-f]{12} \(seed 0, commit 0123456\)", said), said
    assert "Average" in said
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    top = page.evaluate("scrollY")
    points.nth(1).click(force=True)
    page.locator("dialog[open]").wait_for()
    assert "2 records" in page.locator("#record-title").inner_text()
    page.keyboard.press("Escape")
    chart = figure.locator(".chart")
    assert chart.evaluate("e => e === document.activeElement")  # back where it was opened
    assert page.evaluate("scrollY") == top


def test_a_curve_without_points_is_told_too(opened):
    page = opened()
    figure = page.locator("figure", has_text="Training loss")
    figure.scroll_into_view_if_needed()
    figure.locator("svg .mark-symbol path").nth(3).hover(force=True)
    said = page.locator("#tip").inner_text()
    assert re.search(r"[0-9a-f]{12} \(seed 0, commit 0123456\)", said), said
    assert "Step" in said
    figure.locator("svg .mark-symbol path").nth(3).click(force=True)
    page.locator("dialog[open]").wait_for()


def test_a_chart_keeps_its_description_and_lists_its_values(opened):
    page = drawn(opened())
    for chart in page.locator(".plot:not([hidden]) .chart").all():
        assert chart.get_attribute("role") == "img"
        said = chart.get_attribute("aria-label")
        assert not said.startswith("Vega")
        assert said.count("OSoRA") >= 1
        assert said.count("LoRA") >= 1
        assert chart.locator(".drawing").get_attribute("aria-hidden") == "true"
    figure = page.locator("figure", has_text="Accuracy by rank r")
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    lines = figure.locator(".points tbody tr")
    assert lines.count() == 6
    figure.locator(".points a").first.focus()
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert page.locator("#record-title").inner_text() == "2 records"


def test_a_method_has_one_colour_in_every_chart(opened):
    page = drawn(opened())
    found = page.evaluate("""() => [...document.querySelectorAll('svg .mark-text text')]
        .map((e) => [e.textContent, e.getAttribute('fill')])""")
    for method in ("LoRA", "OSoRA"):
        named = re.compile(rf"{method}</script>{re.escape(made.HOSTILE)}( r=\d)?$")
        colours = {colour for text, colour in found if named.match(text)}
        assert len(colours - {"#1b1f24"}) == 1, (method, found)  # beside ink, where they are named


def test_a_number_leads_to_its_record(opened):
    page = opened()
    page.locator("table.grid").first.locator("td a").last.click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    said = dialog.inner_text()
    for wanted in ("0123456789abcdef", "torch", "2.13.0", "learning_rate", "memory_mb", "cpu"):
        assert wanted in said, wanted
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.tagName") == "A"  # back where it was opened


def unreached(page):
    """The controls that are seen and that no number of tabs leads to."""
    wanted = page.evaluate("""() => {
        window.wanted = [...document.querySelectorAll(
            'a[href], button:not(:disabled), select, input, summary, [role=region], .chart')]
            .filter((e) => e.checkVisibility() && !e.closest('dialog'));
        window.reached = new Set();
        return wanted.length; }""")
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        page.evaluate("() => { reached.add(document.activeElement); }")
    return page.evaluate(
        "wanted.filter((e) => !reached.has(e)).map((e) => e.outerHTML.slice(0, 80))"
    )


def test_every_control_is_reached_by_keyboard(opened):
    assert unreached(drawn(opened())) == []


def test_a_control_that_no_keyboard_reaches_is_found(opened):
    page = opened()
    page.evaluate("document.querySelector('th button').tabIndex = -1")
    assert len(unreached(page)) == 1


def test_controls_are_used_by_keyboard(opened):
    page = opened()
    heading = page.locator("table.grid").first.locator("th button").first
    heading.focus()
    page.keyboard.press("Enter")
    heads = page.locator("table.grid").first.locator("th")
    assert heads.first.get_attribute("aria-sort") == "ascending"
    page.locator("table.grid").first.locator("td a").first.focus()
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    page.locator("dialog .close").focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 0


def test_tables_are_copied_with_tabs_between_their_cells(opened):
    page = opened()
    page.evaluate("""() => document.addEventListener('copy', (e) =>
        { window.copied = e.clipboardData.getData('text/plain'); })""")
    page.locator("button.copy").nth(1).click()
    lines = [line.split("\t") for line in page.evaluate("copied").split("\n")]
    method = f"</script>{made.HOSTILE}"
    heads = [head for name in ("LoRA", "OSoRA")
             for head in (name + method, f"{name}{method}: 95 % interval; paper")]  # fmt: skip
    assert lines[0] == ["r", *heads]
    assert len(lines) == 4
    for line in lines[1:-1]:
        assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d( ≈)?", line[1])
        assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d", line[2])
    page.evaluate("""() => { const body = document.querySelectorAll('table.grid')[1].tBodies[0];
        getSelection().selectAllChildren(body); document.execCommand('copy'); }""")
    selected = [line.split("\t") for line in page.evaluate("copied").split("\n")]
    assert selected == [[line[0], line[1], line[3]] for line in lines[1:]]


OUTSIDE = """() => [...document.querySelectorAll('.plot:not([hidden]) svg')].flatMap((svg) => {
    const around = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter((text) => {
        const own = text.getBoundingClientRect();
        return own.width && (own.left < around.left - 1 || own.right > around.right + 1 ||
            own.top < around.top - 1 || own.bottom > around.bottom + 1);
    }).map((text) => text.textContent); })"""
"""Texts of charts that their edge cuts."""
SCROLLED = """() => [...document.querySelectorAll('.plot:not([hidden]) .chart')]
    .filter((chart) => chart.scrollWidth > chart.clientWidth)
    .map((chart) => chart.getAttribute('aria-label').split(',')[0])
    .filter((title) => !title.startsWith('Accuracy against '))"""
"""Charts that are seen in part only, but those of costs, whose names are placed for one
width and on a phone are scrolled to."""
COVERED = """() => [...document.querySelectorAll('.plot:not([hidden]) svg')].flatMap((svg) => {
    const texts = [...svg.querySelectorAll('.mark-text text')]
        .filter((text) => !text.getAttribute('stroke') && text.getAttribute('opacity') !== '0');
    const boxes = texts.map((text) => text.getBoundingClientRect());
    return boxes.flatMap((a, i) => boxes.slice(i + 1)
        .filter((b) => a.left < b.right - 1 && b.left < a.right - 1 &&
            a.top < b.bottom - 3 && b.top < a.bottom - 3)
        .map(() => texts[i].textContent)); })"""
"""Names in charts that another covers."""


def colours(picture):
    """How many pixels a picture has of each colour."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    return {colour: count for count, colour in image.getcolors(maxcolors=1 << 20)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_show_what_is_there(opened, size, scheme):
    page = drawn(opened(*SIZES[size], scheme))
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size][0]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(COVERED) == []
    for chart in page.locator(".plot:not([hidden]) .chart").all():
        found = colours(chart.screenshot())
        paper = max(found, key=found.get)
        assert (sum(paper) < 384) == (scheme == "dark")
        drawn_on = 1 - found[paper] / sum(found.values())
        assert 0.01 < drawn_on < 0.6, drawn_on
        assert len(found) > 30
    found = colours(page.screenshot())
    assert (sum(max(found, key=found.get)) < 384) == (scheme == "dark")


@pytest.mark.parametrize("size", SIZES)
def test_a_method_is_seen_beside_its_last_number(opened, size):
    page = opened(*SIZES[size])
    scroll = page.locator(".scroll").first
    scroll.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    box, name, last = (
        one.bounding_box()
        for one in (
            scroll,
            scroll.locator("td.name").first,
            scroll.locator("tr td:last-child").first,
        )
    )
    assert name["x"] >= box["x"] - 1
    assert name["x"] + name["width"] <= last["x"] + 1  # it hides no last number
    assert last["x"] + last["width"] <= box["x"] + box["width"] + 1
    assert name["width"] < 0.45 * SIZES[size][0] or size != "phone"


def test_a_wide_screen_is_used(opened):
    page = opened(2000, 900)
    assert page.locator(".scroll").first.bounding_box()["width"] > 1900


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("dialog", [False, True])
def test_axe_finds_nothing_serious(opened, scheme, dialog):
    page = drawn(opened(scheme=scheme))
    if dialog:
        page.locator("table.grid").first.locator("td a").first.click()
        page.locator("dialog[open]").wait_for()
    assert serious(page) == []


def test_it_is_drawn_anew_when_the_colours_change(opened):
    page = drawn(opened())
    text = page.locator("figure svg text").first
    before = text.evaluate("e => getComputedStyle(e).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => getComputedStyle(document.querySelector('figure svg text')).fill !== old",
        arg=before,
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The page of what still runs, read again every second; it lists more records than one page."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        part = made.part_of(folder, patch, paths)
        for seed in range(2, 60):
            cell = cell_of(replace(part.cells[1].config, seed=seed), part.cells[1].overrides)
            record.write_record(made.whole(cell, (seed, seed)), folder / "ledger")
        progress = Progress({"done": 12, "missing": 1}, "Left: 1 missing.")
        text = report(
            [replace(part, progress=progress)], read_ledgers([folder / "ledger"]), refresh=1
        )
    (folder / "watched.html").write_text(text)
    return folder / "watched.html"


def pressed(page):
    """Pauses the page or goes on, without moving what is seen or in focus."""
    page.evaluate("document.querySelector('.watch button').click()")


def read_again(page):
    """Waits until the page was read again."""
    page.evaluate("() => { window.before = true; }")
    page.wait_for_function("() => !window.before && document.querySelector('#all-records td')")


STATE = """() => [document.querySelector('form.filters select').value,
    document.querySelector('#records .pager output').textContent,
    document.querySelector('#all-records').rows[1].cells[0].textContent,
    document.querySelector('#all-records th').getAttribute('aria-sort')]"""


def test_a_watched_page_is_read_again_as_it_was_left(opened, watched):
    page = opened(place=watched)
    pressed(page)
    page.locator("form.filters").first.locator("select").first.select_option("OSoRA")
    listed = page.locator("#records")
    listed.locator("th button").first.click()
    listed.get_by_role("button", name="Next").click()
    listed.locator("th button").nth(1).focus()
    page.locator("#all-records").evaluate("e => e.scrollIntoView()")
    drawn(page)
    state, top = page.evaluate(STATE), page.locator("#all-records").bounding_box()["y"]
    assert page.evaluate("scrollY") > 1000
    assert state[0] == "OSoRA"
    assert state[1] == "51 to 70 of 70"
    assert state[3] == "ascending"
    page.evaluate("() => { window.before = true; }")
    pressed(page)
    read_again(page)
    pressed(page)
    assert page.evaluate(STATE) == state
    assert abs(page.locator("#all-records").bounding_box()["y"] - top) < 5
    assert page.evaluate("document.activeElement.textContent") == "Model"


def test_a_watched_page_can_be_paused_and_waits_for_its_reader(opened, watched):
    page = opened(place=watched)
    pressed(page)
    assert page.locator("meta[http-equiv=refresh]").count() == 0
    page.locator("table.grid td a").first.click()
    pressed(page)
    page.evaluate("() => { window.before = true; }")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.before")  # a record is being read
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Pause").click()
    page.evaluate("() => { window.before = true; }")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.before")
    assert page.locator(".watch").inner_text().endswith("This page stays as it is.")
    page.reload()
    assert page.get_by_role("button", name="Go on").count() == 1  # paused still
    page.get_by_role("button", name="Go on").click()
    read_again(page)


def serious(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [(f["id"], [n["html"] for n in f["nodes"]][:3]) for f in found
            if f["impact"] in ("serious", "critical")]  # fmt: skip


def test_axe_finds_nothing_serious_in_a_watched_page(opened, watched):
    page = opened(place=watched)
    page.get_by_role("button", name="Pause").click()
    assert serious(drawn(page)) == []


@pytest.mark.parametrize("size", ["phone", "screen"])
def test_axe_finds_nothing_serious_in_the_committed_page(opened, size):
    page = drawn(opened(*SIZES[size], place=paths.RESULTS / "report.html"))
    for points in page.locator(".plot:not([hidden]) .points summary").all()[:3]:
        points.click()
    assert serious(page) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(COVERED) == []
    assert page.evaluate(SCROLLED) == []


def test_a_page_is_printed_with_all_its_charts(opened):
    page = opened(height=300)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen = page.locator(".plot:not([hidden]) .chart").count()
    page.wait_for_function(
        "count => document.querySelectorAll('.drawing svg').length === count", arg=seen
    )
    page.emulate_media(media="print")
    assert page.locator("form.filters:visible, .points:visible").count() == 0
