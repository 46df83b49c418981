"""The page of an audit: its pictures by hand, and what a browser makes of it."""

import csv
import json
import re
import shutil
import time

import cv2
import numpy as np
import pytest
from skimage.measure import find_contours

from utils.audit.judging import Judged
from utils.audit.marks import Audit, read_marks
from utils.audit.page import Entry, audit_page
from utils.audit.pictures import LARGEST, outline, picture
from utils.masks.geometry import crop_around

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
IDENTITY = "0123456789abcdef"
NAMES = ('first, "quoted"', "second case", "third")
SCORES = (0.5, 0.75, None)


def square(shape, rows, columns):
    mask = np.zeros(shape, np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


def entry(rank, name, score):
    given, estimated = square((60, 80), (20, 30), (40, 50)), square((60, 80), (20, 32), (40, 50))
    image = np.full((60, 80, 3), 90, np.uint8)
    row = Judged(name, score, 20, 20 / 4800, 20, 0, -float(rank), None, score)
    return Entry(rank, row, picture(image, given, estimated, 2))


def page(identity=IDENTITY):
    entries = [entry(rank, *pair) for rank, pair in enumerate(zip(NAMES, SCORES, strict=True), start=1)]
    return audit_page("Audit", ["a note"], entries, identity)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def corners(path):
    return [tuple(map(float, point.split(","))) for point in re.findall(r"[\d.]+,[\d.]+", path)]


def area(points):
    x, y = np.array(points).T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


@pytest.mark.parametrize(("rows", "columns"), [((2, 6), (3, 8)), ((0, 6), (0, 8)), ((4, 5), (7, 8))])
def test_outline_is_the_edge_of_the_pixels(rows, columns):
    """With its corners cut off by half a pixel: eight points, or a diamond around a single pixel."""
    path = outline(square((6, 8), rows, columns) == 1)
    points = corners(path)
    x, y = zip(*points, strict=True)
    assert (min(y), max(y), min(x), max(x)) == (*rows, *columns)
    size = (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert area(points) == pytest.approx(size - 0.5) and len(points) == (4 if size == 1 else 8)
    assert path.startswith("M") and path.endswith("Z")


@pytest.mark.parametrize("seed", range(4))
def test_outline_has_the_points_where_it_turns_and_its_first(seed):
    mask = cv2.GaussianBlur(np.random.default_rng(seed).random((40, 50)), (0, 0), 2) > 0.5
    expected = []
    for line in find_contours(np.pad(mask, 1).astype(float), 0.5):
        steps = np.sign(np.diff(line, axis=0))  # along an axis, or a diagonal
        corners = [p for i, p in enumerate(line[:-1]) if i == 0 or (steps[i] != steps[i - 1]).any()]
        expected.append([[x - 0.5, y - 0.5] for y, x in corners])
    paths = outline(mask).split("Z")[:-1]
    assert [[list(map(float, point.split(","))) for point in path[1:].split("L")] for path in paths] == expected


def test_outline_of_a_ring_and_of_nothing():
    """A hole is a second part of the path, which the fill rule of the page leaves out."""
    ring = square((9, 9), (1, 8), (1, 8))
    ring[3:6, 3:6] = 0
    assert outline(ring == 1).count("Z") == 2 and outline(ring == 2) == ""


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "expected"),
    [
        ((200, 300), (100, 120), (100, 140), (74, 146, 84, 156)),  # 1.8 x 40 = 72 around (110, 120)
        ((200, 300), (0, 20), (280, 300), (0, 36, 264, 300)),  # in a corner: moved inside
        ((200, 300), (50, 52), (60, 61), (35, 67, 44, 76)),  # 32 at least; the middle column is 60.5
        ((50, 300), (0, 50), (100, 140), (0, 50, 75, 165)),  # 90, as far as the image goes
        ((40, 30), (0, 0), (0, 0), (0, 40, 0, 30)),  # nothing to show: all of it
    ],
)
def test_crop(shape, rows, columns, expected):
    down, across = crop_around(square(shape, rows, columns) == 1)
    assert (down.start, down.stop, across.start, across.stop) == expected


def test_picture_by_hand():
    """Grey or colour, in the order red, green, blue; what is suspected is where the masks differ."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 200
    made = picture(image, square((60, 80), (20, 30), (40, 50)), square((60, 80), (20, 32), (40, 50)), 2)
    shown = cv2.imdecode(np.frombuffer(made.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (32, 32, 3) and np.abs(shown.mean((0, 1)) - [0, 0, 200]).max() < 3
    assert (made.width, made.height, made.crop) == (32, 32, "32 x 32 of 80 x 60 pixels")
    # The union, rows 20 to 32, columns 40 to 50, has its middle at (26, 45): the crop begins at (10, 29).
    (given,), (estimated,) = made.given, made.estimated
    assert area(corners(given)) == 10 * 10 - 0.5 and area(corners(estimated)) == 12 * 10 - 0.5
    x, y = zip(*corners(made.suspected), strict=True)
    assert (min(y), max(y), min(x), max(x)) == (20, 22, 11, 21)
    grey = picture(image[..., :1], *[square((60, 80), (20, 30), (40, 50))] * 2, 3)
    assert cv2.imdecode(np.frombuffer(grey.jpeg, np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2
    assert grey.suspected == "" and grey.given[1] == ""


def test_large_pictures_are_made_smaller():
    mask = square((1200, 2400), (100, 1100), (200, 2200))
    made = picture(np.zeros((1200, 2400, 3), np.uint8), mask, mask, 2)
    assert (made.width, made.height) == (LARGEST, LARGEST // 2)
    assert made.crop == "2400 x 1200 of 2400 x 1200 pixels"


def test_the_page_loads_nothing():
    text = page()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(|\ssrc=", re.sub(r"base64,[^\"]*", "", text))
    # Each image is there once, and drawn twice.
    assert text.count("data:image/jpeg;base64,") == text.count("<use ") == 3


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium (requirements-dev.txt)")
    if not BROWSER or not DRIVER:
        pytest.skip("no Chromium with its chromedriver on this machine")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = folder / "downloads"
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """The page in the browser, with no marks; its errors are the test's."""
    path = tmp_path / "audit.html"
    path.write_text(page(), encoding="utf-8")
    browser.set_window_size(1400, 900)
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    browser.get_log("browser")
    yield browser
    assert browser.get_log("browser") == []


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    (found,) = all_of(browser, selector)
    return found


def shown(browser):
    """Names of the rows that are shown, from the top."""
    return [row.get_attribute("data-image") for row in all_of(browser, "tbody tr") if row.is_displayed()]


def marks(browser):
    """The mark of each row, in the order of `NAMES`, by the button that is pressed."""
    pressed = {}
    for row in all_of(browser, "tbody tr"):
        buttons = row.find_elements("css selector", ".marks [aria-pressed=true]")
        pressed[row.get_attribute("data-image")] = [button.get_attribute("data-mark") for button in buttons]
    return [pressed[name] for name in NAMES]


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def key(name):
    from selenium.webdriver.common.keys import Keys

    return getattr(Keys, name)


def test_columns_sort(opened):
    heads = all_of(opened, "th button")
    for clicks, order in (((2,), (0, 1, 2)), ((2,), (1, 0, 2)), ((1,), (0, 1, 2)), ((4,), (2, 1, 0))):
        for column in clicks:
            heads[column].click()
        assert shown(opened) == [NAMES[index] for index in order]


@pytest.mark.parametrize(("width", "height"), [(1700, 900), (1270, 900), (800, 900), (500, 900)])
def test_pictures_are_300_pixels_wide_and_fit_the_window(opened, width, height):
    opened.set_window_size(width, height)
    pictures = all_of(opened, "tbody svg")
    assert len(pictures) == 6 and min(picture.rect["width"] for picture in pictures) >= 300
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for part in ("image", "use"):  # the second picture draws the first one's image, at the same size
        assert min(drawn.rect["width"] for drawn in all_of(opened, f"tbody svg {part}")) >= 300


def test_marks_by_mouse_are_kept(opened):
    accept, _, again = all_of(opened, "tbody tr:nth-child(2) .marks button")
    accept.click()
    assert marks(opened) == [[], ["accept"], []]
    again.click()
    assert marks(opened) == [[], ["look again"], []]
    opened.refresh()
    assert marks(opened) == [[], ["look again"], []]
    all_of(opened, "tbody tr:nth-child(2) .marks button")[2].click()  # once more takes it away
    assert marks(opened) == [[], [], []]
    opened.refresh()
    assert marks(opened) == [[], [], []]


def test_marks_by_keyboard_go_on_to_the_next(opened):
    press(opened, "a", "r", "l", "l")
    assert marks(opened) == [["accept"], ["reject"], ["look again"]]
    assert "1 accepted, 1 rejected, 1 to look at again, 0 without a mark" in one(opened, "#counts").text
    press(opened, key("ARROW_UP"), key("ARROW_UP"), "u")
    assert marks(opened) == [[], ["reject"], ["look again"]]
    press(opened, "/", "a")  # in the search field a letter is a letter
    assert marks(opened) == [[], ["reject"], ["look again"]] and one(opened, "#search").get_attribute("value") == "a"


def test_enter_is_for_the_chosen_row_not_for_the_button_pressed_before(opened):
    all_of(opened, "tbody tr:nth-child(1) .marks button")[0].click()
    press(opened, key("ARROW_DOWN"), key("ENTER"))
    assert marks(opened) == [["accept"], [], []] and one(opened, "#large-name").text == NAMES[1]
    press(opened, key("ESCAPE"))


def test_marks_of_another_audit_are_not_shown(opened, tmp_path):
    press(opened, "a")
    (tmp_path / "other.html").write_text(page("f" * 16), encoding="utf-8")
    opened.get((tmp_path / "other.html").as_uri())
    assert marks(opened) == [[], [], []]
    opened.back()
    assert marks(opened) == [["accept"], [], []]


def test_two_windows_of_one_audit_share_the_marks(opened):
    first, url = opened.current_window_handle, opened.current_url
    opened.switch_to.new_window("tab")
    opened.get(url)
    press(opened, "a", "r")
    opened.close()
    opened.switch_to.window(first)
    assert marks(opened) == [["accept"], ["reject"], []]


def test_a_browser_that_keeps_nothing_says_so(opened):
    assert not one(opened, "#unkept").is_displayed()
    opened.execute_script("Storage.prototype.setItem = () => { throw new Error('full'); }")
    press(opened, "a")
    assert one(opened, "#unkept").is_displayed() and marks(opened) == [["accept"], [], []]
    opened.execute_script("document.querySelectorAll('[data-mark]').forEach(row => { row.dataset.mark = ''; })")


def test_search_and_filters(opened):
    one(opened, "#search").send_keys("SECOND")
    assert shown(opened) == [NAMES[1]] and one(opened, "#counts").text.startswith("1 of 3 shown")
    one(opened, "#search").send_keys(*[key("BACKSPACE")] * 6)
    one(opened, "#most").send_keys("0.6")  # without a score there is none below it
    assert shown(opened) == [NAMES[0]]
    one(opened, "#most").send_keys(*[key("BACKSPACE")] * 3)
    all_of(opened, "tbody tr:nth-child(2) .marks button")[1].click()
    choose = {option.text: option for option in all_of(opened, "#filter option")}
    choose["reject"].click()
    assert shown(opened) == [NAMES[1]]
    choose["no mark"].click()
    assert shown(opened) == [NAMES[0], NAMES[2]]
    all_of(opened, "tbody tr .marks [data-mark=accept]")[0].click()  # a row that is marked leaves
    assert shown(opened) == [NAMES[2]]
    choose["all"].click()
    assert shown(opened) == list(NAMES)


def test_a_click_enlarges(opened):
    small = all_of(opened, "tbody tr:nth-child(1) svg")[0]
    before = small.rect["width"]
    small.click()
    large = all_of(opened, "dialog[open] svg")
    assert len(large) == 2 and min(picture.rect["width"] for picture in large) > 1.3 * before
    assert one(opened, "#large-name").text == NAMES[0] and "0.500" in one(opened, "#large-facts").text
    press(opened, "r")  # marks, and shows the next
    assert one(opened, "#large-name").text == NAMES[1] and marks(opened) == [["reject"], [], []]
    one(opened, "#large-marks [data-mark=accept]").click()
    assert one(opened, "#large-marks [aria-pressed=true]").get_attribute("data-mark") == "accept"
    assert one(opened, "#large-name").text == NAMES[1] and marks(opened) == [["reject"], ["accept"], []]
    press(opened, key("ESCAPE"))
    assert not all_of(opened, "dialog[open]")


def test_outlines_can_be_hidden(opened):
    outlines = all_of(opened, "tbody .outline, tbody .suspected")
    assert len(outlines) == 9 and all(path.is_displayed() for path in outlines)
    press(opened, "o")
    assert not any(path.is_displayed() for path in outlines)


def test_export_is_read_by_apply(opened):
    press(opened, "a", key("ARROW_DOWN"), "l")
    shutil.rmtree(opened.downloads, ignore_errors=True)
    one(opened, "#export").click()
    target = opened.downloads / "audit_marks.csv"
    end = time.monotonic() + 20
    while not target.exists() and time.monotonic() < end:
        time.sleep(0.05)
    with open(target, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == list(NAMES)
    assert [row["mark"] for row in table] == ["accept", "", "look again"]
    assert [row["score"] for row in table] == ["0.500000", "0.750000", ""]
    found = read_marks(target, Audit(IDENTITY, {}, list(NAMES)))
    assert found == {NAMES[0]: "accept", NAMES[2]: "look again"}


def test_no_request_leaves_the_page(opened):
    opened.get_log("performance")
    opened.refresh()
    press(opened, "a", key("ENTER"), key("ESCAPE"))
    messages = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and any("audit.html" in url for url in asked)
