"""What the page must reach, measured: prints it. By hand, on a machine that has nothing else to do:

python -m pytest -m long -s tests/web/test_measures.py
"""

import os
import statistics
import time
from pathlib import Path

import chromium
import pytest
import webpage

from mrfomm import bundled

pytestmark = pytest.mark.long

MODELS = {64: (bundled.MODEL, 15), 128: (webpage.ROOT / "weights" / "heads-128-base", 6)}  # frames a second to reach
FIRST = 3  # seconds to the first picture
FRAMES = 5000
GROWTH = 40  # megabytes by which memory may grow, from one half of FRAMES to the other
WINDOW = 2000  # milliseconds that frames are counted for


@pytest.fixture(scope="module")
def browser():
    with chromium.open_browser() as running:
        yield running


@pytest.fixture(scope="module", params=MODELS)
def site(request, tmp_path_factory):
    """The size of a model, what it must reach, and the page's address."""
    model, rate = MODELS[request.param]
    with webpage.served(webpage.build(tmp_path_factory.mktemp("try") / str(request.param), model)) as address:
        yield request.param, rate, address


def load():
    return f"load {os.getloadavg()[0]:.1f}"


def visit(browser, address):
    """A new visitor's page, and the seconds until its first picture."""
    context = browser.new_context()
    context.add_init_script(webpage.COUNTING)
    page, start = context.new_page(), time.time()
    page.goto(address)
    webpage.wait(page, "window.drawn", "the first picture")
    return page, page.evaluate("window.firstFrame") / 1000 - start


def test_first_picture_and_rate(browser, site):
    size, rate, address = site
    firsts, rates = [], []
    for _ in range(5):
        page, first = visit(browser, address)
        firsts.append(first)
        assert page.inner_text("#threads").endswith("threads: 2")
        for _ in range(6):
            start, before = time.perf_counter(), page.evaluate("window.drawn")
            page.wait_for_timeout(WINDOW)
            rates.append((page.evaluate("window.drawn") - before) / (time.perf_counter() - start))
        page.context.close()
    print(f"\n{size} pixels, 3 pictures, two threads; {load()}")
    print(f"first picture after {min(firsts):.2f} s (median of {len(firsts)}: {statistics.median(firsts):.2f})")
    print(f"{max(rates):.1f} frames a second (median of {len(rates)}: {statistics.median(rates):.1f})")
    assert min(firsts) < FIRST
    assert max(rates) >= rate


def memory(browser):
    """What the browser's processes that draw hold, in megabytes."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    pages = [Path(f"/proc/{each['id']}/statm") for each in processes if each["type"] == "renderer"]
    return sum(int(page.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for page in pages) / 1e6


def test_memory_is_flat(browser, site):
    """With the clip, which is read, fitted and looked at for each picture. One reference: it is over sooner."""
    size, _, address = site
    if size > 64:
        pytest.skip("the same code as with 64 pixels")
    page, _ = visit(browser, address)
    for _ in range(2):
        page.locator("#pictures .remove").last.click()
    page.click("label:has(#clip)")
    held = []
    for _ in range(10):
        drawn = page.evaluate("window.drawn")
        while page.evaluate("window.drawn") < drawn + FRAMES / 10:
            page.wait_for_timeout(200)
        page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
        held.append(memory(browser))
        print(
            f"after {page.evaluate('window.drawn')} frames: {held[-1]:.0f} MB, {page.inner_text('#rate')}", flush=True
        )
    assert statistics.mean(held[5:]) - statistics.mean(held[:5]) < GROWTH  # one is up to 30 MB from the next
