"""The report as a reader has it: opened from a file in a headless Chromium (Debian's package)."""

import re
import shutil

import pytest

from osora_bench.common import paths
from osora_bench.reporting.html.report import read_ledgers, report
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
    """The page with every chart drawn."""
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for()
    page.evaluate("scrollTo(0, 0)")
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


def test_tables_are_sorted_by_a_heading_up_down_and_back(opened):
    page = opened()
    table = page.locator("table.grid").first
    heading = table.locator("th", has_text="Avg.")
    first = column(table, 6)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(table, 6) if text.strip()]
    assert values == sorted(values, reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(t.split()[0]) for t in column(table, 6) if t.strip()] == sorted(values)
    heading.locator("button").click()
    assert column(table, 6) == first


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
    points.nth(1).click(force=True)
    page.locator("dialog[open]").wait_for()
    assert "2 records" in page.locator("#record-title").inner_text()


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


def test_every_control_is_reached_and_used_by_keyboard(opened):
    page = opened()
    wanted = page.evaluate("""() => [...document.querySelectorAll(
        'a[href], button:not(:disabled), select, input, [tabindex="0"], summary')]
        .filter((e) => e.checkVisibility() && !e.closest('dialog')).length""")
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("""() => {
            const all = [...document.querySelectorAll('*')];
            return all.indexOf(document.activeElement); }""")
        )
    assert len(reached) >= wanted
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
    lines = page.evaluate("copied").split("\n")
    assert lines[0].startswith("r\tLoRA")
    assert len(lines) == 4
    assert {len(line.split("\t")) for line in lines} == {3}
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d( ≈)?", lines[1].split("\t")[1])
    page.evaluate("""() => { const body = document.querySelectorAll('table.grid')[1].tBodies[0];
        getSelection().selectAllChildren(body); document.execCommand('copy'); }""")
    assert page.evaluate("copied").split("\n") == lines[1:]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_page_and_texts_stand_out(opened, size, scheme):
    page = drawn(opened(*SIZES[size], scheme))
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size][0]
    picture = page.screenshot()
    assert picture.startswith(b"\x89PNG")
    found = page.evaluate("""() => { const s = getComputedStyle(document.body);
        return [s.color, s.backgroundColor]; }""")
    ink, paper = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in found)
    assert (sum(paper) < sum(ink)) == (scheme == "dark")
    fill = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert (sum(int(n) for n in re.findall(r"\d+", fill)[:3]) > 384) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("dialog", [False, True])
def test_axe_finds_nothing_serious(opened, scheme, dialog):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = drawn(opened(scheme=scheme))
    if dialog:
        page.locator("table.grid").first.locator("td a").first.click()
        page.locator("dialog[open]").wait_for()
    found = axe.Axe().run(page).response["violations"]
    serious = [f for f in found if f["impact"] in ("serious", "critical")]
    assert serious == [], [(f["id"], [n["html"] for n in f["nodes"]][:3]) for f in serious]


def test_it_is_drawn_anew_when_the_colours_change(opened):
    page = drawn(opened())
    text = page.locator("figure svg text").first
    before = text.evaluate("e => getComputedStyle(e).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => getComputedStyle(document.querySelector('figure svg text')).fill !== old",
        arg=before,
    )
