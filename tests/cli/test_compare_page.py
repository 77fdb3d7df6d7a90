"""`skipstone compare --html`, `--prompts` and `--json`: one page that fetches nothing and that a browser can use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import read_in_browser
from outcome import Outcome, Shell, list_files

PROMPTS = ("a red cat", "a <b>dog</b> & a bus")
ROWS = ("-p", "interval(every=3)", "-p", "fast", "-p", "fewer")


@pytest.fixture
def done(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> Outcome:
    (tmp_path / "two.txt").write_text("\n".join(PROMPTS))
    few = ("--model", str(tiny_pebble), "--steps", "6", "--repeats", "1")
    found = shell("compare", "--prompts", "two.txt", *ROWS, *few, "--html", "boss.html", "--json")
    assert found.code == 0, found.err
    return found


def test_json_is_what_the_file_holds(done: Outcome, tmp_path: Path) -> None:
    assert done.out == (tmp_path / "comparison" / "samples.jsonl").read_text()
    records = [json.loads(line) for line in done.out.splitlines()]
    assert len(records) == 2 * 4
    assert [record["prompt"] for record in records[:2]] == list(PROMPTS)  # in the order of the file
    assert {record["column"] for record in records} == {"fixed", "interval(every=3)", "fast", "fewer"}


def test_the_page_is_one_file_with_every_picture(done: Outcome, tmp_path: Path) -> None:
    page = (tmp_path / "boss.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count('src="data:image/webp;base64,') == 2 * 4
    assert "a &lt;b&gt;dog&lt;/b&gt; &amp; a bus" in page
    assert "<b>dog" not in page
    for record in map(json.loads, done.out.splitlines()):
        if record["column"] == "fast" and record["prompt"] == PROMPTS[0]:
            assert f"{record['calls']:.4g} calls, {record['psnr']:.1f} dB to the full run" in page
    assert "fast stands for adaptive_grid(calls=10)." in page


def test_a_browser_moves_the_line_and_changes_the_column(done: Outcome, tmp_path: Path) -> None:
    page = (tmp_path / "boss.html").read_text()
    script = """
    document.querySelectorAll("button.choice")[1].click();
    const range = document.querySelector(".pair input"); range.value = 20;
    range.dispatchEvent(new Event("input"));
    """
    seen = read_in_browser(page, script, tmp_path, until='data-pictures="8/8"')
    assert not re.search("<html[^>]* data-error", seen)
    assert 'data-pictures="8/8"' in seen
    assert seen.count('class="other on" data-column="2"') == 2
    assert seen.count('<span data-column="2" class="on">') == 2
    assert '<em class="right">fast</em>' in seen
    assert "--at: 20%" in seen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a cat", "--prompts", "two.txt", "-p", "fast"), "Leave out one of them"),
        (("a cat", "-p", "fast", "--html", "boss.txt"), "boss.html"),
        (("a cat", "-p", "fixed", "--html", "boss.html"), "add -p fewer"),
    ],
)
def test_what_cannot_be_a_page(shell: Shell, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    found = shell("compare", *arguments)
    assert found.code == 2
    assert said in found.err
    assert list_files(tmp_path) == []


def test_a_page_that_is_there_is_not_overwritten(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "boss.html").write_text("mine")
    found = shell("compare", "a cat", "-p", "fast", "--html", "boss.html")
    assert found.code == 2
    assert "boss.html exists already" in found.err
    assert (tmp_path / "boss.html").read_text() == "mine"
