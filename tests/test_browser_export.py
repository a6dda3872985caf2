"""The page that runs the classifier in the browser: its folder, and the page itself in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trained
from drawn_pictures import write_picture
from PIL import Image, ImageCms

import headstart
from headstart.errors import ConfigError, HeadstartError
from headstart.exporting import browser
from headstart.exporting.browser import export_browser, make_known_picture
from headstart.exporting.browser_runtime import ONNXRUNTIME_WEB, get_runtime

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(folder))
        try:
            get_runtime()
        except HeadstartError as error:
            if "cannot fetch" not in str(error):
                raise
            pytest.skip(f"npm cannot fetch onnxruntime-web: {error}")
    return folder / f"{ONNXRUNTIME_WEB.name}-{ONNXRUNTIME_WEB.version}"


@pytest.fixture
def pictures(trained: Trained) -> list[str]:
    return [str(path) for path in sorted(trained.shapes.rglob("*.png"))][::4]


@needs_node
def test_runs_as_the_original_does(
    classifier: headstart.Classifier, pictures: list[str], tmp_path: Path, runtime: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    export = export_browser(
        classifier, tmp_path / "page", pictures=[*pictures, tmp_path / "broken.png"], runtime=runtime
    )
    assert (export.num_checked, export.num_same_class) == (len(pictures), len(pictures))
    assert 0 <= export.worst_difference < 1e-3
    assert f"{len(pictures)} of {len(pictures)} pictures" in (tmp_path / "page" / "README.txt").read_text()


@needs_node
def test_another_graph_is_not_written(
    classifier: headstart.Classifier,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Path,
) -> None:
    turned = headstart.load(classifier.data)
    monkeypatch.setattr(turned, "run_all", lambda pixels: (classifier.run_all(pixels)[0][::-1], 0.5))
    with pytest.raises(HeadstartError, match="another class than the original.*Nothing was written"):
        export_browser(turned, tmp_path / "page", pictures=pictures, runtime=runtime)
    assert not (tmp_path / "page").exists()


@needs_node
def test_a_graph_that_does_not_run(
    classifier: headstart.Classifier,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Path,
) -> None:
    broken = headstart.load(classifier.data)
    monkeypatch.setattr(broken, "data", classifier.data[:5000])
    with pytest.raises(HeadstartError, match="cannot run this classifier: .*Error"):
        export_browser(broken, tmp_path / "page", pictures=pictures, runtime=runtime)


def test_files(classifier: headstart.Classifier, tmp_path: Path, runtime: Path) -> None:
    export = export_browser(classifier, tmp_path / "page", title='</title> "A" & <b>', runtime=runtime)
    found = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    assert {name: len(data) for name, data in found.items()} == export.sizes_bytes
    assert found["model.onnx"] == classifier.data
    assert b"</title> " not in found["index.html"], "labels and title are in the settings alone, shown as text"
    settings = json.loads(found["settings.json"])
    assert settings["labels"] == list(classifier.classes)
    assert settings["model_sha256"] == hashlib.sha256(classifier.data).hexdigest()
    assert export.num_checked == 0
    assert b"was not run by onnxruntime-web" in found["README.txt"]
    kept = re.findall(r'"([\w.-]+\.\w+)"', found["offline.js"].decode().split("FILES")[1].split("]")[0])
    assert {*kept, "index.html", "offline.js", "README.txt"} == {*found}, "all that the page needs is kept for offline"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', found["index.html"].decode())
    assert policy
    assert "'unsafe-inline'" not in policy[1]
    assert "http" not in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert not re.search(rb'(src|href)="(https?:)?//', found["index.html"])


def test_a_new_classifier_gives_a_new_version(classifier: headstart.Classifier, tmp_path: Path, runtime: Path) -> None:
    export_browser(classifier, tmp_path, runtime=runtime)
    before = (tmp_path / "offline.js").read_bytes()
    export_browser(classifier, tmp_path, runtime=runtime, overwrite=True)
    assert (tmp_path / "offline.js").read_bytes() == before
    export_browser(classifier, tmp_path, title="Other", runtime=runtime, overwrite=True)
    assert (tmp_path / "offline.js").read_bytes() != before
    (tmp_path / "CNAME").write_text("mine")
    with pytest.raises(ConfigError, match="holds CNAME"):
        export_browser(classifier, tmp_path, runtime=runtime, overwrite=True)
    assert (tmp_path / "CNAME").read_text() == "mine"


def test_other_files_are_left(classifier: headstart.Classifier, tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "index.html").write_text("theirs")
    with pytest.raises(ConfigError, match="exists, and is not replaced"):
        export_browser(classifier, tmp_path, runtime=runtime)
    with pytest.raises(ConfigError, match="is not a folder"):
        export_browser(classifier, tmp_path / "index.html", runtime=runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(ConfigError, match="unknown_below is 2"):
        export_browser(classifier, tmp_path / "page", unknown_below=2, runtime=runtime)


def test_the_known_picture_tells_classifiers_apart() -> None:
    picture = make_known_picture()
    assert (picture.shape, picture.dtype) == ((97, 131, 3), np.uint8)
    assert picture.ravel()[:5].tolist() == [0, 38, 138, 49, 22]
    assert len(np.unique(picture)) > 100


def test_eight_bits_may_differ_more(classifier: headstart.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert browser._compute_check(classifier)["tolerance"] == browser.TOLERANCE
    monkeypatch.setattr(classifier, "data", classifier.data + b"QuantizeLinear")
    assert browser._compute_check(classifier)["tolerance"] == browser.TOLERANCE_8_BITS


def test_a_foreign_file_is_never_reduced(
    classifier: headstart.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    monkeypatch.setattr(classifier, "metadata", replace(classifier.metadata, preprocess={}))
    export_browser(classifier, tmp_path / "page", runtime=runtime)
    assert json.loads((tmp_path / "page" / "settings.json").read_bytes())["min_side_px"] == 0


# The page in a browser


class Site:
    """A page that is served and open, and every request that it made."""

    def __init__(self, page: Any, server: ThreadingHTTPServer) -> None:
        self.page = page
        self.server = server
        self.address = f"http://127.0.0.1:{server.server_port}/"
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.context.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))

    def open(self) -> None:
        self.page.goto(self.address)
        self.wait("#status", "Ready.")

    def wait(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(timeout=60_000)

    def read_outcomes(self, count: int) -> dict[str, dict[str, Any] | None]:
        self.page.locator(f"#results > li:nth-child({count})").wait_for(timeout=60_000)
        items = self.page.eval_on_selector_all(
            "#results > li", "all => all.map(each => [each.dataset.name, each.dataset.outcome || null])"
        )
        return {name: outcome and json.loads(outcome) for name, outcome in items}


@pytest.fixture(scope="module")
def exported(trained: Trained, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    export_browser(headstart.load(trained.file), folder, title="<b>Shapes</b>", runtime=runtime)
    return folder


@pytest.fixture(scope="module")
def browser_process() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if chromium is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no chromium is installed")
        fakes = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        process = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *fakes])
        yield process
        process.close()


@pytest.fixture
def site(exported: Path, browser_process: Any) -> Iterator[Site]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a browser that leaves while a file is on its way
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(exported)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    context = browser_process.new_context(viewport={"width": 390, "height": 844})
    try:
        yield Site(context.new_page(), server)
    finally:
        context.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_says_what_headstart_says(
    site: Site, classifier: headstart.Classifier, trained: Trained, tmp_path: Path
) -> None:
    """Small and large, turned, transparent, in other formats, with a colour profile that nobody applies."""
    circle = Image.open(sorted(trained.shapes.rglob("*.png"))[0]).convert("RGB")
    paths = [
        tmp_path / name for name in ("plain.png", "turned.jpg", "clear.png", "large.jpg", "grey.webp", "colours.png")
    ]
    circle.save(paths[0])
    turned = Image.Exif()
    turned[274] = 6
    circle.rotate(90, expand=True).save(paths[1], exif=turned, quality=95)
    clear = circle.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(circle.size))
    clear.save(paths[2])
    noise = np.random.default_rng(0).normal(0, 20, (2011, 1801, 3))
    large = np.asarray(circle.resize((1801, 2011), Image.Resampling.BICUBIC)) + noise
    Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(paths[3], quality=92)
    circle.convert("L").save(paths[4], lossless=True)
    circle.save(paths[5], icc_profile=swap_red_and_blue())
    site.open()
    site.page.set_input_files("#files", paths)
    outcomes = site.read_outcomes(len(paths))
    for path, expected in zip(paths, classifier.predict(paths), strict=True):
        found = outcomes[path.name]
        assert found, path.name
        # A large JPEG is made smaller by averages here, by the JPEG decoder there.
        tolerance = 0.02 if path.name == "large.jpg" else 1e-3
        np.testing.assert_allclose(found["probabilities"], expected.probs, atol=tolerance, err_msg=path.name)
        assert found["familiarity"] == pytest.approx(expected.familiarity, abs=0.05), path.name
    heading = site.page.locator("#results > li[data-name='plain.png'] h2").inner_text()
    assert heading in (classifier.classes[np.argmax(outcomes["plain.png"]["probabilities"])], "None of these?")
    assert site.messages == []


def swap_red_and_blue() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    places = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, blue = (slice(places[tag] + 4, places[tag] + 12) for tag in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile)


def test_nothing_leaves_and_markup_stays_text(site: Site, tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title='caught'>.png"
    write_picture(tmp_path / name, "circles", 1)
    (tmp_path / "no picture.jpg").write_text("text")
    site.open()
    site.page.set_input_files("#files", [tmp_path / name, tmp_path / "no picture.jpg"])
    outcomes = site.read_outcomes(2)
    assert outcomes["no picture.jpg"] is None
    assert "cannot read it as a picture" in site.page.locator("#results > li").first.inner_text()
    assert outcomes[name] is not None
    assert name in site.page.locator("#results > li").nth(1).inner_text()
    assert site.page.locator("img[src=x]").count() == 0
    assert site.page.title() == "<b>Shapes</b>" == site.page.locator("h1").inner_text()
    assert "All 2 done." in site.page.locator("#status").inner_text()
    assert all(url.startswith((site.address, f"blob:{site.address}", "data:")) for url in site.requests), site.requests
    # The policy holds: neither a script in the markup nor another origin.
    blocked = site.page.evaluate("fetch('http://localhost:9/').then(() => 'sent', error => error.message)")
    assert "Failed to fetch" in blocked
    assert any("Content Security Policy" in message for message in site.messages)
    assert site.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_paste_drop_photograph_and_clear_by_keyboard(site: Site, tmp_path: Path) -> None:
    data = base64.b64encode(write_picture(tmp_path / "a.png", "circles", 1).read_bytes()).decode()
    site.open()
    give = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], kind + ".png", { type: "image/png" }));
        const init = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { ...init, clipboardData: transfer })
            : new DragEvent("drop", { ...init, dataTransfer: transfer }));
    }"""
    site.page.evaluate(give, ["paste", data])
    site.page.evaluate(give, ["drop", data])
    outcomes = site.read_outcomes(2)
    assert outcomes["paste.png"]["probabilities"] == outcomes["drop.png"]["probabilities"]
    site.page.locator("body").click(position={"x": 2, "y": 2})
    focused = []
    for _ in range(3):
        site.page.keyboard.press("Tab")
        focused.append(site.page.evaluate("document.activeElement.id"))
    assert focused == ["files", "photograph", "clear"]
    site.page.keyboard.press("Shift+Tab")
    site.page.keyboard.press("Enter")
    site.page.locator("#shoot:not([disabled])").wait_for()
    track = site.page.evaluate_handle("document.getElementById('viewfinder').srcObject.getTracks()[0]")
    site.page.locator("#shoot").press("Enter")
    assert any(name.startswith("photograph ") for name in site.read_outcomes(3))
    assert not site.page.locator("#camera").is_visible()
    site.page.locator("#camera").wait_for(state="hidden")
    assert site.page.evaluate("document.getElementById('viewfinder').srcObject") is None
    assert track.evaluate("track => track.readyState") == "ended", "the camera is off"
    site.page.locator("#clear").press("Enter")
    assert site.page.locator("#results > li").count() == 0
    assert site.page.evaluate("document.activeElement.id") == "files"


def test_opens_again_without_a_network(site: Site, tmp_path: Path) -> None:
    site.open()
    site.page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    site.page.context.set_offline(True)
    site.server.shutdown()
    site.server.server_close()
    site.page.goto(site.address)
    site.wait("#status", "Ready.")
    site.page.set_input_files("#files", write_picture(tmp_path / "a.png", "circles", 1))
    assert site.read_outcomes(1)["a.png"] is not None


def test_a_browser_that_computes_otherwise_is_told(site: Site, exported: Path) -> None:
    settings = json.loads((exported / "settings.json").read_bytes())
    settings["check"]["probabilities"] = [1 - value for value in settings["check"]["probabilities"]]
    site.page.route("**/settings.json", lambda route: route.fulfill(json=settings))
    site.page.goto(site.address)
    site.wait("#failure", "This browser computes other probabilities than it should")
    assert site.page.locator("#files").is_disabled()


def test_straight_from_the_disk_it_says_what_to_do(site: Site, exported: Path) -> None:
    site.page.goto((exported / "index.html").as_uri())
    site.wait("#failure", "python -m http.server")


def test_a_file_that_is_missing(site: Site) -> None:
    site.page.route("**/model.onnx", lambda route: route.fulfill(status=404))
    site.page.goto(site.address)
    site.wait("#failure", "model.onnx is not there (HTTP 404)")
