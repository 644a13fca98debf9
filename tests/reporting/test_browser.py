"""The report in a browser: it draws, nothing is wider than the screen, and names stay text."""

import os
import re
import shutil
import subprocess

import pytest

from raysearch.reporting import render_report
from tests.support.run_records import make_report_records

BROWSER = os.environ.get("RAYSEARCH_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
BAD = "<img src=x onerror=document.title='broken'>" + "long_" * 40
WIDTHS = (390, 800, 1400)
LOOK = """
<script>
const words = (frame) => {
  const page = frame.contentDocument;
  const root = page.documentElement;
  page.getElementById("lane-search").value = "3.linear";
  page.getElementById("lane-search").oninput();
  page.querySelectorAll("#lanes thead button")[5].click();
  const painted = [...page.querySelectorAll("canvas")].filter((canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some((value) => value);
  });
  return [root.scrollWidth <= frame.clientWidth, painted.length, root.dataset.drawn,
    page.getElementById("lane-count").textContent, page.title.includes("broken")].join(",");
};
onload = () => { document.title = [...document.querySelectorAll("iframe")].map(words).join(";"); };
</script>
"""


@pytest.mark.process
@pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome, nor RAYSEARCH_BROWSER"
)
def test_the_report_in_a_browser(tmp_path):
    (tmp_path / "report.html").write_text(render_report(make_report_records(4, BAD + "{}.linear")))
    frames = "".join(
        f"<iframe src='report.html' style='width:{width}px;height:900px'></iframe>" for width in WIDTHS
    )
    (tmp_path / "frames.html").write_text(LOOK + frames)
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        str(tmp_path / "frames.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
    assert title.split(";") == ["true,6,5,2 of 8,false"] * len(WIDTHS)
