"""How the page of a browser export agrees with the classifier it was made of, how fast it is and what it weighs.

Every picture is given to the real page as a file; the classifier predicts the same file. Needs the package playwright
and a chromium (the one on PATH, else playwright's own).
"""

from __future__ import annotations

import gzip
import json
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from measure import make_parser, report, round_figure, work_folder
from playwright.sync_api import expect, sync_playwright

import headstart
from headstart.dataset import list_images
from headstart.exporting.browser import export_browser
from headstart.exporting.browser_runtime import ONNXRUNTIME_WEB, get_runtime

_CHUNK = 40


class _Handler(SimpleHTTPRequestHandler):
    is_isolated = False

    def end_headers(self) -> None:
        if self.is_isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("model", help="classifier file")
    parser.add_argument("pictures", help="folder with pictures in it")
    parser.add_argument("--limit", type=int, help="only so many of them")
    parser.add_argument("--isolated", action="store_true", help="send the headers that allow threads")
    parser.add_argument("--runtime", help="folder of an unpacked onnxruntime-web")
    options = parser.parse_args()
    _Handler.is_isolated = options.isolated
    classifier = headstart.load(options.model)
    paths = list_images([options.pictures])[0][: options.limit]
    started = time.perf_counter()
    expected = {path: outcome for path, outcome in zip(paths, classifier.predict_each(paths, 1), strict=True)}
    native_ms = (time.perf_counter() - started) / len(paths) * 1e3
    runtime = get_runtime(options.runtime)  # before the cache is another
    with work_folder() as scratch:
        for (name, _), data in zip(ONNXRUNTIME_WEB.files, runtime, strict=True):
            (scratch / Path(name).name).write_bytes(data)
        export = export_browser(classifier, scratch / "page", runtime=scratch)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(export.folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found, page_facts = _classify_in_browser(f"http://127.0.0.1:{server.server_port}/", paths, _CHUNK)
        server.shutdown()
        sizes = {
            name: {"bytes": size, "gzip": len(gzip.compress((export.folder / name).read_bytes(), 6))}
            for name, size in export.sizes_bytes.items()
        }
    both = [p for p in paths if isinstance(expected[p], headstart.Prediction) and found[p] is not None]
    differences = [float(np.abs(expected[p].probs - found[p]["probabilities"]).max()) for p in both]
    others = [p for p in both if expected[p].probs.argmax() != np.argmax(found[p]["probabilities"])]
    durations = [found[p]["duration_ms"] for p in both]
    report(
        {
            "pictures": len(paths),
            "refused_by_headstart": sum(isinstance(expected[p], headstart.ImageError) for p in paths),
            "refused_by_the_page": sum(found[p] is None for p in paths),
            "compared": len(both),
            "same_class": len(both) - len(others),
            "same_class_frac": 1 - len(others) / len(both),
            "another_class": [Path(p).name for p in others],
            "largest_difference_of_a_probability": round_figure(max(differences)),
            "largest_difference_of_familiarity": round_figure(
                max((abs((expected[p].familiarity or 0) - (found[p]["familiarity"] or 0)) for p in both), default=0)
            ),
            "ms_a_picture_pixels_and_network": round_figure(float(np.median(durations))),
            "ms_a_picture_p95": round_figure(float(np.quantile(durations, 0.95))),
            "ms_a_picture_in_all": round_figure(page_facts.pop("ms_all")),
            "ms_a_picture_headstart_one_thread": round_figure(native_ms),
            **page_facts,
            "bytes": sum(each["bytes"] for each in sizes.values()),
            "bytes_gzip": sum(each["gzip"] for each in sizes.values()),
            "files": sizes,
        }
    )


def _classify_in_browser(url: str, paths: list[str], chunk: int) -> tuple[dict, dict]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        foreign: list[str] = []
        page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(url) else None)
        started = time.perf_counter()
        page.goto(url)
        expect(page.locator("#status")).to_have_text(
            "Ready.", timeout=120_000
        )  # its functions need eval, which is shut
        load_s = time.perf_counter() - started
        found, spent_s = {}, 0.0
        for first in range(0, len(paths), chunk):
            part = paths[first : first + chunk]
            started = time.perf_counter()
            page.set_input_files("#files", part)
            expect(page.locator("#results > li")).to_have_count(len(part), timeout=300_000)
            spent_s += time.perf_counter() - started
            items = page.eval_on_selector_all("#results > li", "all => all.map(each => each.dataset.outcome || null)")
            # The newest stands first.
            found.update(zip(part, [each and json.loads(each) for each in reversed(items)], strict=True))
            page.click("#clear")
        facts = {
            "ms_all": spent_s / len(paths) * 1e3,
            "load_s": round_figure(load_s),
            "threads": int(page.get_attribute("html", "data-threads")),
            "requests_elsewhere": [address for address in foreign if not address.startswith(("blob:", "data:"))],
            "chromium": browser.version,
        }
        browser.close()
    return found, facts


if __name__ == "__main__":
    main()
