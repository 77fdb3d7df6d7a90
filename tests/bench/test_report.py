"""The report of a benchmark that was made up: every row is there, nothing is fetched, and a browser can read it."""

from __future__ import annotations

import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import read_in_browser
from PIL import Image

from skipstone.errors import BenchError
from skipstone.evaluation.files import REFERENCES, safe_file_name
from skipstone_bench.findings import CostRatio, _cost_at, compare_at_equal_ssim, compute_answers
from skipstone_bench.report import write_report
from skipstone_bench.report.gallery import Album, build_galleries
from skipstone_bench.report.plots import MAX_LINES, chief_families
from skipstone_bench.report.verdicts import ratio_tone
from skipstone_bench.store import Header, Record, RowInfo, Store, Timing
from skipstone_bench.summary import pareto_front, summarise

FULL, SOLUTION = "fixed @ dpmpp / trailing / 50", "fixed @ dpmpp / trailing / 400"
MISSING = RowInfo(
    "fbcache @ dpmpp", "fbcache", "peer", "first-block cache", note="not applicable: <a UNet> has no blocks"
)


def dot(seed: int, blur: float) -> bytes:
    """A picture of 32 pixels: a coloured disc that an error softens."""
    rng = np.random.default_rng(seed)
    (cx, cy), colour = rng.uniform(8, 24, 2), rng.uniform(0, 1, 3)
    y, x = np.mgrid[:32, :32]
    inside = 1 / (1 + np.exp((np.hypot(x - cx, y - cy) - 6) / (0.4 + blur)))[..., None]
    pixels = 0.9 * (1 - inside) + inside * colour
    buffer = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def lineup() -> list[tuple[RowInfo, float, float, float]]:
    """Rows with their calls, dB above what a fixed sampler reaches with as many, and cost of a call."""
    rows = [(RowInfo(FULL, "full run", "full", "full run", steps=50), 50.0, 0.0, 1.0)]
    for n in (10, 15, 20, 25):
        k, name = 50 // n, f"deepcache(interval={60 // n})"
        fixed = RowInfo(f"fixed @ unipc / trailing / {n}", f"unipc, {n} steps", "fixed", "best fixed sampler")
        blind = RowInfo(f"interval(every={k}, warmup={n // 5}) @ dpmpp", f"every {k}", "mask", "blind mask")
        ours = RowInfo(f"error_control(tol={n}) @ dpmpp", f"tol={n}", "ours", "error_control", f"tol={n}")
        cache = RowInfo(f"{name} @ dpmpp", name, "peer", "deepcache")
        rows += [(fixed, n, 0.0, 1.0), (blind, n, 1.0, 1.0), (ours, n - 0.5, 3.0, 1.0), (cache, 50, -8.0, 0.4 + n / 50)]
    released = RowInfo("third_order_released @ ddim", "AdaptiveDiffusion", "ours", "AdaptiveDiffusion")
    return [*rows, (released, 23.0, -6.0, 1.0)]


def make(folder: Path, prompts: int = 12) -> Store:
    """A folder of results: `ours` is 3 dB above the fixed samplers, and spends a call more on crowded prompts."""
    rows, rng = lineup(), np.random.default_rng(0)
    header = Header(
        version="0.1",
        model="made-up",
        fingerprint={"weights": "0"},
        guidance=4.0,
        settings={},
        reference=FULL,
        converged=(SOLUTION, "fixed @ unipc / trailing / 400"),
        machine="a test",
        date="2026-01-01",
        command="skipstone bench",
        prompts={"source": "dots", "count": prompts, "seeds": 1},
        rows=(*(row for row, *_ in rows), MISSING),
        agreement={"median": 80.0, "worst": 61.0},
        options={"budgets": [10, 15, 20, 25]},
    )
    store = Store.create(folder, header)
    luck, lines = rng.normal(0, 3, prompts), []
    for row, calls, gain, cost in rows:
        for i in range(prompts):
            crowded = i % 2
            spent = calls + (0.5 if crowded else -0.5) * (row.family == "error_control")
            psnr = (
                25
                + 12 * np.log2(calls * cost / 8) / 1.3
                + gain
                + luck[i] * (0.5 if row.family == "error_control" else 1.0)
            )
            psnr += rng.normal(0, 0.3)
            whole = row.group == "full"
            picture = f"pictures/{zlib.crc32(row.spec.encode())}/{i}.png"
            store.write(picture, dot(i, 10 ** (-psnr / 20) * 20))
            values = {
                "psnr_full": 99.0 if whole else psnr + 1, "psnr_converged": psnr, "ssim_full": 1 - 10 ** (-psnr / 12),
                "ssim_converged": 1 - 10 ** (-psnr / 13), "latent_converged": 10 ** (-psnr / 20),
                "judge": 0.9 + 0.02 * rng.normal(),
            }  # fmt: skip
            prompt = "a red disc beside a blue disc" if crowded else "a red disc"
            wait, first = max(1, round(50 / calls)), crowded * (i % 5) * (row.family == "error_control")
            letters = "".join("C" if k < first or k % wait == 0 else "." for k in range(50))
            told = {"prompt": prompt, "prompt_id": f"p{i}", "category": "pair" if crowded else "single", "seed": 0}
            cost_of = {"calls": spent, "cond": spent, "uncond": spent, "macs": spent * cost, "macs_calls": spent * cost}
            letters = "" if row.group == "peer" else letters
            rest = {"values": values, "decisions": letters, "picture": picture, "identical": whole}
            lines.append(Record(row=row.spec, sample=f"p{i}:0", **told, **cost_of, **rest))
        store.append(*(Timing(row.spec, k, 1, calls * cost * (1 + k / 100), 50.0, 2**30) for k in range(3)))
    order = rng.permutation(len(lines))  # a report joins by id, whatever the order of the file
    store.append(*(lines[k] for k in order))
    for i in range(prompts):
        pixels = np.asarray(Image.open(io.BytesIO(dot(i, 0.0)))) / 255.0
        buffer = io.BytesIO()
        np.savez(buffer, pixels=pixels.astype(np.float32))
        store.write(f"{REFERENCES}/{safe_file_name(SOLUTION)}/{safe_file_name(f'p{i}:0')}.npz", buffer.getvalue())
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(tmp_path_factory.mktemp("bench") / "out")


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    made = write_report(store.folder)
    assert [p.name for p in made] == [
        "report.html", "pareto.png", "timeline.png", "worst.png", "table.md", "summary.json",
    ]  # fmt: skip
    return made[0].read_text(encoding="utf-8")


# -- What is concluded ---------------------------------------------------------------------------


def test_rows_are_summarised_by_sample_whatever_the_order_of_the_file(store: Store) -> None:
    summary = summarise(store)
    spec = "error_control(tol=15) @ dpmpp"
    row, own = summary.row(spec), [r for r in store.records if r.row == spec]
    values = [r.values["psnr_converged"] for r in own]
    figure = row.figures["psnr_converged"]
    assert row.n == len(own) == 12
    assert figure.median.value == pytest.approx(np.median(values))
    assert figure.tail.value == pytest.approx(np.quantile(values, 0.1))
    assert figure.worst == min(values)
    assert min(own, key=lambda r: r.values["psnr_converged"]).sample == figure.worst_sample
    latent = [r.values["latent_converged"] for r in own]
    assert row.figures["latent_converged"].tail.value == pytest.approx(np.quantile(latent, 0.9))  # lower is better
    assert (row.least, row.most) == (14.0, 15.0)
    assert row.calls is not None
    assert row.calls.value == pytest.approx(14.5)
    assert row.speed is not None
    assert row.speed.value == pytest.approx(50 / 14.5 / 1.01)
    assert not summary.row(MISSING.spec).ran


def test_a_rival_that_tuning_has_granted_half_a_call_may_answer(tmp_path: Path) -> None:
    store = make(tmp_path / "out", prompts=6)
    gate = RowInfo("interval | guidance_gate", "mask and gate", "gate", "best blind mask and gate", "calls=10")
    mask = [r for r in store.records if r.row.startswith("interval") and r.calls == 10]
    better = {**mask[0].values, "psnr_converged": 60.0}
    store = store.with_rows([gate])
    store.append(*(replace(r, row=gate.spec, calls=10.5, values=better) for r in mask))
    blind = [d for d in compute_answers(summarise(store)).duels if "blind" in d.against and d.family == "error_control"]
    assert {d.budget: d.median.rival for d in blind}[10] == gate.spec


def test_answers_find_what_was_put_in(store: Store) -> None:
    answers = compute_answers(summarise(store))
    fixed = [d for d in answers.duels if "fixed" in d.against]
    assert [d.budget for d in fixed] == [10, 15, 20, 25]
    for duel in fixed:  # 3 dB at equal calls, half a call fewer costs up to 0.7
        assert 1.5 < duel.median.gap.value < 4
        assert duel.median.gap.low > 0
        assert duel.tail.gap.value > duel.median.gap.value  # ours varies half as much
        assert duel.p <= duel.p_holm < 0.05
    behind = next(d for d in answers.duels if "released" in d.against and d.budget == 10)
    assert behind.median.gap.high < 0  # 9.5 calls against 23: told as it is
    for spread in answers.spreads:
        assert spread.groups is not None
        assert spread.groups.difference.value == pytest.approx(1.0)  # crowded minus simple, by construction
        assert spread.p_holm < 0.01


def test_costs_at_equal_ssim_are_read_off_the_curve(store: Store) -> None:
    """A peer with the closeness of one of our own rows is matched by that row's very cost."""
    summary = summarise(store)
    equal = {e.peer: e for e in compare_at_equal_ssim(summary) if e.peer_family == "deepcache"}
    ours = pareto_front([r for r in summary.ran if r.info.group == "ours"], "ssim_converged")
    for spec, found in equal.items():
        peer = summary.row(spec)
        cheaper = [r for r in ours if r.median("ssim_converged") <= found.ssim]
        dearer = [r for r in ours if r.median("ssim_converged") >= found.ssim]
        assert found.macs is not None
        cost = peer.cost / found.macs.value
        assert cheaper[-1].cost <= cost <= dearer[0].cost
        assert not found.macs.bound
        assert found.judge is not None
        assert abs(found.judge.mean) < 0.05


def test_what_is_only_a_bound_says_so() -> None:
    """Even our cheapest row may be closer than a peer's: then the peer spends at least so many times more."""
    curve = [(10.0, 20.0), (20.0, 30.0)]
    assert _cost_at(curve, 25.0) == (15.0, False)
    assert _cost_at(curve, 20.0) == (10.0, False)
    assert _cost_at(curve, 12.0) == (10.0, True)
    assert _cost_at(curve, 31.0) == (None, False)
    assert [ratio_tone(CostRatio(*r)) for r in ((1.2, True), (0.9, True), (0.9, False))] == ["ahead", "even", "behind"]


def test_a_front_keeps_only_what_nothing_else_beats(store: Store) -> None:
    rows = pareto_front(summarise(store).ran, "psnr_converged")
    costs, values = [r.cost for r in rows], [r.median("psnr_converged") for r in rows]
    assert costs == sorted(costs)
    assert values == sorted(values)
    assert {r.info.group for r in rows} == {"ours", "full"}  # by construction


def test_half_a_benchmark_is_reported_too(tmp_path: Path) -> None:
    """No timings, no pictures, no peers, one prompt: what cannot be said is left out."""
    row = RowInfo(FULL, "full run", "full", "full run", steps=50)
    header = Header("0.1", "m", {}, None, {}, FULL, (), "here", "today", "skipstone bench", {}, (row,))
    store = Store.create(tmp_path / "out", header)
    with pytest.raises(BenchError, match="no samples yet"):
        write_report(store.folder)
    store.append(Record(FULL, "a:0", "a", "a", "", 0, 50, 50, 50, None, None, {"psnr_full": 99.0}))
    assert {p.name for p in write_report(store.folder)} == {"report.html", "table.md", "summary.json"}


def test_galleries_begin_with_the_worst_and_keep_each_picture_once(store: Store) -> None:
    summary, album = summarise(store), Album(store.folder)
    shown = build_galleries(summary, album)
    assert FULL not in shown
    for spec, samples in shown.items():
        closeness = [s.record.values["psnr_converged"] for s in samples]
        assert len(samples) == 10
        assert closeness == sorted(closeness)
        assert samples[0].record.sample == summary.row(spec).figures["psnr_converged"].worst_sample
        assert None not in {number for s in samples for number in (s.picture, s.full, s.converged)}
    seen = {s.record.sample for samples in shown.values() for s in samples}
    assert len(album.uris) == len(shown) * 10 + 2 * len(seen)  # each row's own, and two references of every sample


# -- The files -----------------------------------------------------------------------------------


class Outside(HTMLParser):
    """Every address that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data") and value and not value.startswith(("#", "data:")):
                self.found.append(value)


def test_nothing_leaves_the_page(page: str) -> None:
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    assert "default-src 'none'" in page  # and a browser is told to refuse


def test_what_did_not_run_says_why_in_every_table(store: Store, page: str) -> None:
    assert "not applicable: &lt;a UNet&gt; has no blocks" in page
    table = (store.folder / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(lines) == len(store.header.rows)
    assert sum("not applicable: <a UNet>" in line for line in lines) == 1
    assert "error_control against the released AdaptiveDiffusion" in table
    assert "behind at 10 calls" in table


def test_figures_and_json_are_whole(store: Store, page: str) -> None:
    for name in ("pareto.png", "timeline.png", "worst.png"):
        with Image.open(store.folder / name) as picture:
            picture.load()
            assert min(picture.size) > 100
            assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20  # something is drawn
    found = json.loads((store.folder / "summary.json").read_text())
    assert len(found["rows"]) == len(store.header.rows)
    assert found["headroom_db"] == pytest.approx(summarise(store).headroom)
    assert {d["against"] for d in found["answers"]["duels"]} >= {"the best fixed sampler", "the best blind mask"}


class Table(HTMLParser):
    """Attributes of <html>, rows of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.root: dict[str, str | None] = {}
        self.rows: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "html":
            self.root = told
        if tag == "tr" and told.get("data-spec"):
            self.rows.append(told["data-spec"] or "")


def test_the_first_plot_has_five_lines_at_most_and_the_strongest_of_each_side(store: Store, page: str) -> None:
    summary = summarise(store)
    names = chief_families(summary, "psnr_converged")
    assert len(names) <= MAX_LINES
    assert set(names) == {"error_control", "best fixed sampler", "blind mask", "full run"}
    first = page.index('id="plot-chief-wide"')
    assert first < page.index('id="all"') < page.index('class="cards"')  # others, and the cards, come below it
    assert 'id="plot-chief-narrow"' in page  # whole on a phone
    assert 'id="plot-psnr-converged-narrow"' in page[page.index('id="all"') :]
    keys = re.findall(r'<span class="key[^>]*><i></i>([^<]*)</span>', page)
    assert sorted(keys) == sorted(names)


def test_three_answers_are_shown_and_the_others_are_behind_a_link(page: str) -> None:
    shown, _, behind = page[page.index('id="answers"') :].partition("more answers")
    assert shown.count('<li class="card') == 3
    assert '<li class="card' in behind


def test_a_browser_reads_it(store: Store, page: str, tmp_path: Path) -> None:
    """Scripts run without an error, every picture loads, the table has every row and sorts by a click."""
    clicks = """const heads = [...document.querySelectorAll("#rows thead button")];
    heads.find(b => b.textContent === "PSNR").click();
    for (const c of document.querySelectorAll(".chip, .thumb, #more")) c.click();"""
    table = Table()
    table.feed(read_in_browser(page, clicks, tmp_path))
    assert "data-error" not in table.root, table.root["data-error"]
    assert "data-ready" in table.root
    shown, there = (int(n) for n in (table.root["data-pictures"] or "").split("/"))
    assert shown == there >= 3 * 10
    assert sorted(table.rows) == sorted(row.spec for row in store.header.rows)
    summary = summarise(store)
    ran = [summary.row(spec).median("psnr_converged") for spec in table.rows[:-1]]
    assert ran == sorted(ran, reverse=True)  # by PSNR; what did not run stays at the end
    assert table.rows[-1] == MISSING.spec
