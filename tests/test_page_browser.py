"""The page in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import draw_picture
from PIL import Image

import headstart
from headstart.stats import format_percent

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from serving import Served, serving  # noqa: E402

from headstart.serve.neighbours import open_neighbours  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

MARKUP = "<img src=x onerror=alert(1)>"
LONG = "Turbinicarpus schmiedickeanus subsp. klinkerianus var. schwarzii, grown from seed in the second glasshouse"
LIMIT_BYTES = 400_000
WIDTHS = (320, 390)


def encode(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


CHECKS, CIRCLES = encode(draw_picture("checks", 50)), encode(draw_picture("circles", 51))
NOISE = encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))  # none of the classes
LARGE = encode(np.random.default_rng(1).integers(0, 256, (500, 400, 3), np.uint8))  # over the server's limit
WIDE = encode(np.random.default_rng(2).integers(0, 256, (64, 256, 3), np.uint8))


@pytest.fixture(scope="module")
def served(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`shapes` with its training pictures, and `odd`, the same pictures under names of another kind."""
    folder = tmp_path_factory.mktemp("page")
    for name, shape in ((MARKUP, "checks"), (LONG, "circles"), ("قطة", "stripes")):
        shutil.copytree(trained.shapes / shape, folder / "odd" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(shutil.copytree(trained.cache, folder / "cache")))
        headstart.train(folder / "odd", layers="top", penalty=0.1).save(folder / "odd.onnx")
        near = open_neighbours(headstart.load(trained.file), trained.shapes)
    with serving(trained.file, folder / "odd.onnx", max_body_bytes=LIMIT_BYTES) as served:
        served.server.page.neighbours["shapes"] = near
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    fake = ["--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *fake])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab with the page open, and what it asked for and complained of."""

    page: Any
    url: str
    requests: list[str]
    complaints: list[str]

    def choose(self, *files: tuple[str, bytes]) -> None:
        self.page.set_input_files("#files", [{"name": name, "mimeType": "", "buffer": data} for name, data in files])
        self.wait()

    def wait(self, count: int = 1) -> None:
        """Until there are cards and none of them waits for anything."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.card').length >= count && !document.querySelector('[aria-busy=true]')",
            arg=count,
        )

    def send(self, kind: str, *files: tuple[str, bytes]) -> None:
        """A drop or paste event that carries files."""
        packed = [[name, base64.b64encode(data).decode()] for name, data in files]
        self.page.evaluate(
            """([kind, files]) => {
              const data = new DataTransfer();
              for (const [name, code] of files) {
                data.items.add(new File([Uint8Array.from(atob(code), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
              }
              const how = { bubbles: true, cancelable: true };
              document.body.dispatchEvent(kind === "paste"
                ? new ClipboardEvent("paste", { ...how, clipboardData: data }) : new DragEvent(kind, { ...how, dataTransfer: data }));
            }""",
            [kind, packed],
        )

    def text(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def button(self, name: str, place: int = 0) -> Any:
        return self.page.get_by_role("button", name=name).nth(place)

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.innerText")

    def check(self) -> None:
        """Nothing left this server, and nothing was complained of."""
        assert all(url.startswith((self.url, "blob:", "data:")) for url in self.requests), self.requests
        assert len(self.requests) >= 4
        assert self.complaints == []


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    with open_visit(browser, served.url) as visit:
        yield visit


class open_visit:
    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.url = url

    def __enter__(self) -> Visit:
        self.context.set_default_timeout(15_000)
        page = self.context.new_page()
        visit = Visit(page, self.url, [], [])
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda said: visit.complaints.append(said.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (visit.complaints.append("a dialog was opened"), dialog.dismiss()))
        page.goto(self.url)
        page.wait_for_selector("#classes > *")
        return visit

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_dropped_pictures_have_their_classes(visit: Visit, classifier: headstart.Classifier) -> None:
    visit.send("dragenter", ("a.png", CHECKS))
    assert "dropping" in visit.page.get_attribute("body", "class")
    visit.send("drop", ("checks.png", CHECKS), ("circles.png", CIRCLES), ("noise.png", NOISE))
    visit.wait(3)
    assert "dropping" not in visit.page.get_attribute("body", "class")
    assert visit.text("h3") == ["checks.png", "circles.png", "noise.png"]
    for place, picture in enumerate((CHECKS, CIRCLES, NOISE)):
        prediction = classifier.predict(picture)
        card = visit.page.locator(".card").nth(place)
        assert card.locator(".row bdi").all_text_contents() == [label for label, _ in prediction.get_top(3)]
        expected = [
            f"{format_percent(probability)} %" if probability > 1e-5 else "<0.001 %"
            for _, probability in prediction.get_top(3)
        ]
        assert card.locator(".percent").all_text_contents() == expected
        assert card.get_by_text("Probably none of these").count() == prediction.is_unknown()
        widths = card.locator(".bar span").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
        np.testing.assert_allclose(widths, [100 * probability for _, probability in prediction.get_top(3)], atol=1e-3)
    assert visit.page.locator(".none").count() == 1
    assert visit.page.locator("#said").inner_text() == "3 pictures done"
    visit.check()


def test_a_pasted_picture(visit: Visit) -> None:
    visit.send("paste")
    assert visit.text("#message") == ["There is no picture in the clipboard."]
    visit.send("paste", ("image.png", CHECKS))
    visit.wait()
    assert visit.text("h3")[0].startswith("Pasted ")
    assert visit.text(".row bdi")[0] == "checks"
    assert visit.text("#message") == [""]
    assert ": checks, " in visit.page.locator("#said").inner_text()
    visit.check()


def test_a_folder_is_dropped(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "holiday" / "deep").mkdir(parents=True)
    for name, data in (
        ("2.png", CHECKS),
        ("10.png", CIRCLES),
        ("deep/3.png", CHECKS),
        (".hidden.png", b""),
        ("x.txt", b"-"),
    ):
        (tmp_path / "holiday" / name).write_bytes(data)
    client = visit.page.context.new_cdp_session(visit.page)
    transfer = {"items": [], "files": [str(tmp_path / "holiday")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        client.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": transfer})
    visit.wait(3)
    assert visit.text("h3") == ["holiday/2.png", "holiday/10.png", "holiday/deep/3.png"]
    visit.check()


def test_the_heat_map_lies_over_the_picture(visit: Visit, classifier: headstart.Classifier) -> None:
    visit.choose(("wide.png", WIDE))
    label = visit.text(".row bdi")[0]
    row = visit.page.locator("button.row").first
    assert row.get_attribute("aria-pressed") == "false"
    row.click()
    heat = visit.page.wait_for_selector("canvas.heat")
    visit.page.wait_for_function("() => !document.querySelector('.heat').getAnimations().length")
    assert row.get_attribute("aria-pressed") == "true"
    assert "spoke for it" in visit.text(".legend")[0]
    # The network saw the square in the middle of the wide picture.
    seen, picture = heat.bounding_box(), visit.page.locator(".sized img").bounding_box()
    top, left, height, width = headstart.explain(classifier, WIDE, label).box
    assert abs(width * 4 - height) < 1e-6
    assert picture["width"] == pytest.approx(4 * picture["height"], rel=0.01)
    for side, expected in (
        ("x", picture["x"] + left * picture["width"]),
        ("y", picture["y"] + top * picture["height"]),
        ("width", width * picture["width"]),
        ("height", height * picture["height"]),
    ):
        assert seen[side] == pytest.approx(expected, abs=1)
    # Its colours are those of the grid: red where a value is above 0, blue below.
    values = headstart.explain(classifier, WIDE, label).smoothed
    painted = visit.page.evaluate(
        """(size) => {
          const canvas = document.querySelector(".heat"), context = new OffscreenCanvas(canvas.width, canvas.height)
            .getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          return Array.from({ length: size }, (_, y) => Array.from({ length: size }, (_, x) => {
            const at = (i) => Math.floor((i + 0.5) / size * canvas.width);
            const [red, , blue, alpha] = context.getImageData(at(x), at(y), 1, 1).data;
            return Math.sign(red - blue) * alpha;
          }));
        }""",
        len(values),
    )
    np.testing.assert_allclose(np.array(painted) / 190, values / np.abs(values).max(), atol=0.06)
    visit.page.locator("button.row").nth(1).click()
    visit.page.wait_for_function("() => document.querySelectorAll('.heat').length === 1")
    assert row.get_attribute("aria-pressed") == "false"
    visit.page.locator("button.row").nth(1).click()
    assert visit.page.locator(".heat").count() == 0
    assert not visit.page.locator(".legend").is_visible()
    visit.check()


def test_nearest_training_pictures(visit: Visit, trained: Trained) -> None:
    same = (trained.shapes / "stripes" / "00.png").read_bytes()
    visit.choose(("stripes.png", same))
    visit.button("Nearest training pictures").click()
    visit.page.wait_for_selector(".near img")
    assert visit.page.locator(".near").count() == 5
    assert visit.page.wait_for_function(
        "() => [...document.querySelectorAll('.near img')].every((each) => each.naturalWidth === 48)"
    )
    captions = visit.text(".near figcaption")
    assert captions[0].split()[0] == "stripes"
    assert "stripes" in visit.page.locator("#said").inner_text()
    visit.button("Nearest training pictures").click()
    assert not visit.page.locator(".nears").is_visible()
    visit.check()


def test_history_of_the_visit(visit: Visit, classifier: headstart.Classifier, tmp_path: Path) -> None:
    visit.choose(("checks.png", CHECKS), ("circles.png", CIRCLES))
    visit.choose(("text.png", b"no picture"), ('"quoted", name.png', CHECKS), ("noise.png", NOISE))
    assert visit.text("h3") == ["text.png", '"quoted", name.png', "noise.png", "checks.png", "circles.png"]
    assert visit.text("#visit-count") == ["5 pictures"]
    visit.page.select_option("#filter", label="checks (2)")
    assert visit.text("h3") == ['"quoted", name.png', "checks.png"]
    visit.page.select_option("#filter", label="problems (1)")
    assert visit.text("h3") == ["text.png"]
    visit.page.select_option("#filter", label="none of these (1)")
    assert visit.text("h3") == ["noise.png"]
    visit.page.select_option("#filter", "")
    visit.page.select_option("#order", "unsure")
    assert visit.text("h3")[0] == "noise.png"
    with visit.page.expect_download() as waiting:
        visit.button("Download CSV").click()
    waiting.value.save_as(tmp_path / "predictions.csv")
    assert waiting.value.suggested_filename == "predictions.csv"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "predictions.csv").read_text())))
    assert [row["name"] for row in rows] == ["checks.png", "circles.png", "text.png", '"quoted", name.png', "noise.png"]
    prediction = classifier.predict(CHECKS)
    assert rows[0]["predicted"] == rows[3]["predicted"] == "checks"
    read = [np.float32(rows[0][f"probability_{label}"]) for label in classifier.classes]
    np.testing.assert_array_equal(read, prediction.probs)
    assert float(rows[0]["familiarity"]) == pytest.approx(prediction.familiarity)
    assert [row["none_of_these"] for row in rows] == ["false", "false", "", "false", "true"]
    assert rows[2]["error"].startswith("not-an-image: ")
    assert rows[2]["predicted"] == ""
    assert rows[0]["model"] == "shapes"
    visit.page.select_option("#order", "newest")
    visit.button("Remove text.png").click()
    assert len(visit.text("h3")) == 4
    assert visit.focused() == 'Remove "quoted", name.png'
    kept = visit.page.evaluate(
        "async () => [localStorage.length, sessionStorage.length, document.cookie, (await indexedDB.databases()).length, "
        "(await caches.keys()).length]"
    )
    assert kept == [0, 0, "", 0, 0]
    visit.button("Clear").click()
    assert visit.page.locator(".card").count() == 0
    assert visit.focused() == "Choose pictures"
    assert not visit.page.locator("#visit-head").is_visible()
    visit.page.reload()
    visit.page.wait_for_selector("#classes > *")
    assert visit.page.locator(".card").count() == 0


def test_problems_are_said_in_plain_words(visit: Visit) -> None:
    visit.choose(
        ("empty.jpg", b""),
        ("page.html", b"<!doctype html><script>alert(1)</script>"),
        ("cut.jpg", encode(draw_picture("checks", 1).repeat(4, 0).repeat(4, 1), "JPEG")[:4000]),
        ("right.json", CHECKS),  # a picture whatever its name says
    )
    assert visit.text("h3") == ["empty.jpg", "page.html", "cut.jpg", "right.json"]
    assert visit.text(".refused b") == ["The file is empty", "This is not a picture", "The file is cut short"]
    assert visit.text(".refused code") == ["empty", "not-an-image", "truncated"]
    assert visit.text(".row bdi")[0] == "checks"
    assert visit.button("Try again").count() == 0
    # Chromium itself writes a line for each answer that is no 200; nothing else is said.
    assert all("the server responded with a status of 4" in said for said in visit.complaints), visit.complaints


def test_the_server_is_gone_and_comes_back(visit: Visit) -> None:
    visit.page.context.set_offline(True)
    visit.choose(("checks.png", CHECKS))
    assert visit.text(".refused b") == ["The server does not answer"]
    visit.page.context.set_offline(False)
    visit.button("Try again").click()
    visit.page.wait_for_selector(".row")
    assert visit.text(".row bdi")[0] == "checks"
    assert visit.page.locator(".refused").count() == 0


def test_a_busy_server_is_asked_again(visit: Visit) -> None:
    answers = []

    def refuse_once(route: Any) -> None:
        answers.append(route.request.url)
        if len(answers) > 1:
            route.continue_()
        else:
            body = json.dumps({"error": "overloaded: too many pictures are waiting", "code": "overloaded"})
            route.fulfill(status=503, headers={"retry-after": "0.2"}, content_type="application/json", body=body)

    visit.page.route("**/predict/**", refuse_once)
    visit.choose(("checks.png", CHECKS))
    assert visit.text(".row bdi")[0] == "checks"
    assert len(answers) == 2


def test_pictures_over_the_limit_are_made_smaller(visit: Visit) -> None:
    assert len(LARGE) > LIMIT_BYTES
    visit.choose(("large.png", LARGE), ("large.bin", bytes(LIMIT_BYTES + 1)))
    assert visit.text(".note") == [
        "0.6 MB is over the server's limit of 0.4 MB: sent as JPEG of 400 × 500 pixels instead of 400 × 500."
    ]
    assert visit.text(".refused code") == ["too-large"]
    visit.check()


def test_markup_in_names_is_text(visit: Visit, served: Served) -> None:
    visit.page.select_option("#model", "odd")
    visit.choose((f"{MARKUP}.png", CHECKS), ("a\u202egnp.exe.png", CIRCLES))
    assert visit.text("h3")[0] == f"{MARKUP}.png"
    assert visit.text("h3")[1] == "a\\u202egnp.exe.png"
    assert MARKUP in visit.text(".row bdi")
    visit.page.locator("button.row", has_text=MARKUP).first.click()
    visit.page.wait_for_selector(".heat")
    assert visit.page.locator('img[src="x"]').count() == 0
    assert visit.page.locator("#classes").inner_text().count(MARKUP) == 0  # the list is closed
    visit.page.locator("summary", has_text="3 classes").click()
    assert MARKUP in visit.text(".names li")
    assert visit.page.evaluate("document.querySelectorAll('script').length") == 1
    visit.check()


def test_several_classifiers(visit: Visit) -> None:
    assert visit.text("#model option") == ["shapes", "odd"]
    visit.choose(("checks.png", CHECKS))
    visit.page.select_option("#model", "odd")
    visit.button("Try odd").click()
    visit.wait(2)
    assert visit.text("h3") == ["checks.png", "checks.png"]
    assert visit.text(".by") == ["odd", "shapes"]
    assert visit.text(".card:first-child .row bdi")[0] == MARKUP
    assert visit.button("Nearest training pictures").count() == 1  # kept for the first one only
    visit.check()


def test_by_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(visit.focused())
    assert reached[:2] == ["Skip to the results", "Dark"]
    assert reached[3:] == ["Choose pictures", "Take a photo", "What the figures mean"]
    pictures = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": CHECKS} for i in range(2)]
    page.on("filechooser", lambda chooser: chooser.set_files(pictures))
    page.wait_for_timeout(100)  # until choosers are caught
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    assert visit.focused() == "Choose pictures"
    page.keyboard.press("Enter")
    visit.wait(2)
    names = []
    while not names or not names[-1].startswith("checks"):
        page.keyboard.press("Tab")
        names.append(visit.focused())
    assert names[:4] == ["Take a photo", "Download CSV", "Clear", "Remove 0.png"]
    page.keyboard.press("Space")
    page.wait_for_selector(".heat")
    assert visit.focused().startswith("checks")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.locator(".card").count() == 1
    assert visit.focused() == "Remove 1.png"
    visit.check()


def test_the_camera(visit: Visit) -> None:
    visit.page.context.grant_permissions(["camera"])
    visit.button("Take a photo").click()
    visit.page.wait_for_function("() => document.getElementById('video').videoWidth > 0")
    assert visit.focused() == "Take it"
    visit.button("Take it").click()
    visit.page.wait_for_function("() => document.getElementById('camera-count').textContent === '1 photo taken'")
    visit.button("Take it").click()
    visit.page.wait_for_function("() => document.getElementById('camera-count').textContent === '2 photos taken'")
    stream = visit.page.evaluate_handle("document.getElementById('video').srcObject")
    visit.page.keyboard.press("Escape")
    visit.wait(2)
    assert stream.evaluate("stream => stream.getTracks().map((track) => track.readyState)") == ["ended"]
    assert all(name.startswith("Photo ") for name in visit.text("h3"))
    assert visit.page.locator(".row").count() == 6
    assert visit.focused() == "Take a photo"
    visit.check()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("delete Navigator.prototype.mediaDevices", "only to pages from localhost or over https"),
        (
            "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }",
            "not allowed",
        ),
        (
            "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }",
            "No camera",
        ),
    ],
)
def test_where_there_is_no_camera(visit: Visit, broken: str, said: str) -> None:
    visit.page.evaluate(f"() => {{ {broken} }}")
    visit.button("Take a photo").click()
    visit.page.wait_for_function("() => document.getElementById('camera-problem').textContent !== ''")
    assert said in visit.page.locator("#camera-problem").inner_text()
    assert visit.focused() == "Close"
    visit.check()


def test_a_key_is_asked_for(browser: Any, trained: Trained) -> None:
    with (
        serving(trained.file, api_keys=("a-secret-key",)) as served,
        open_keyed(browser, served.url) as visit,
    ):
        visit.page.fill("#key", "a-wrong-key")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_function("() => document.getElementById('key-problem').textContent !== ''")
        visit.page.fill("#key", "a-secret-key")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#classes > *")
        assert not visit.page.locator("#key-form").is_visible()
        assert visit.text("h1") == ["shapes"]
        visit.choose(("checks.png", CHECKS))
        visit.page.locator("button.row").first.click()
        visit.page.wait_for_selector(".heat")


class open_keyed(open_visit):
    def __enter__(self) -> Visit:
        page = self.context.new_page()
        page.goto(self.url)
        page.wait_for_selector("#key-form:not([hidden])")
        return Visit(page, self.url, [], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(browser: Any, served: Served, width: int) -> None:
    with open_visit(browser, served.url, viewport={"width": width, "height": 740}) as visit:
        visit.page.select_option("#model", "odd")
        visit.choose(("checks.png", CHECKS), (f"{'long' * 50}.png", CIRCLES), ("x.txt", b"-"), ("noise.png", NOISE))
        visit.page.locator("button.row", has_text="Turbini").first.click()
        visit.page.wait_for_selector(".heat")
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        inside = visit.page.evaluate(
            "[...document.querySelectorAll('button, select, h3, .row bdi, img, .sized')].filter((each) => each.checkVisibility())"
            ".every((each) => each.getBoundingClientRect().right <= innerWidth + 0.5)"
        )
        assert inside
        sides = visit.page.evaluate(
            "[...document.querySelectorAll('button, select')].filter((each) => each.checkVisibility())"
            ".map((each) => Math.min(each.offsetWidth, each.offsetHeight))"
        )
        assert min(sides) >= 24  # WCAG 2.2, 2.5.8


def test_motion_is_reduced(browser: Any, served: Served) -> None:
    with open_visit(browser, served.url, reduced_motion="reduce") as visit:
        visit.choose(("checks.png", CHECKS))
        visit.page.locator("button.row").first.click()
        visit.page.wait_for_selector(".heat")
        assert visit.page.evaluate("document.getAnimations().length") == 0


def find_axe() -> str:
    """The rules of axe-core: the file that HEADSTART_TEST_AXE names, or the one in a package of Playwright's for it."""
    named = os.environ.get("HEADSTART_TEST_AXE")
    if named:
        return Path(named).read_text("utf-8")
    package = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    return next(Path(package.__file__).parent.rglob("axe.min.js")).read_text("utf-8")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(browser: Any, served: Served, scheme: str, width: int) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
    axe = find_axe()
    with open_visit(browser, served.url, **options) as visit:
        visit.page.evaluate(axe)
        visit.page.add_style_tag(
            content=".card { content-visibility: visible !important; }"
        )  # all, not what is in view

        def run(part: str) -> list[str]:
            found = visit.page.evaluate("async (part) => (await axe.run(part)).violations", part)
            return [f"{each['impact']} {each['id']}: {each['nodes'][0]['html']}" for each in found]

        assert run("html") == []
        visit.choose(("checks.png", CHECKS), ("x.txt", b"-"), ("noise.png", NOISE), ("circles.png", CIRCLES))
        visit.page.locator("button.row").first.click()
        visit.button("Nearest training pictures").click()
        visit.page.wait_for_selector(".near img")
        visit.page.wait_for_selector(".heat")
        visit.page.locator("summary").last.click()
        visit.page.select_option("#model", "odd")
        visit.page.locator("summary").first.click()
        assert run("html") == []
        visit.button("Take a photo").click()
        visit.page.wait_for_selector("#camera[open]")
        assert run("#camera") == []
