"""The folder of a benchmark: what is written is read, what is torn is made again, what differs is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skipstone.errors import BenchError
from skipstone_bench.store import SAMPLES, Header, Record, RowInfo, Store, Timing

HEADER = Header(
    version="1",
    model="m",
    fingerprint={"weights": "abc", "prompts": "def"},
    guidance=3.0,
    settings={"height": 512},
    reference="fixed @ own / 50",
    converged=("fixed @ dpmpp / own / 500", "fixed @ unipc / own / 250"),
    machine="here",
    date="today",
    command="skipstone bench",
    prompts={"count": 2},
    rows=(RowInfo("fixed @ own / 50", "full run", "full", "full run", "", 50),),
    options={"limit": 2},
)


def record(row: str, sample: str, calls: float = 1.0) -> Record:
    return Record(row, sample, "ein Fuß", sample, "", 0, calls, 1.0, 1.0, 2.0, 1.0, {"psnr_full": 99.0}, "C")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "bench", HEADER)
    made.append(record("a", "x:0"), record("a", "y:0"), Timing("a", 0, 1, 0.5, 1.0))
    made.append_tuning([{"spec": "s", "sample": "x:0", "calls": 2.0, "psnr_converged": 30.0}])
    return made


def test_what_is_written_is_read(store: Store) -> None:
    read = Store.load(store.folder)
    assert read.header == HEADER
    assert read.records == [record("a", "x:0"), record("a", "y:0")]
    assert read.timings == [Timing("a", 0, 1, 0.5, 1.0)]
    assert read.tuning[0]["psnr_converged"] == 30.0


def test_a_torn_last_line_is_passed_over_and_made_again(store: Store) -> None:
    path = store.folder / SAMPLES
    whole = path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1])):  # without its end, in the middle, nearly nothing
        path.write_bytes(whole[:-cut])
        assert [r.sample for r in Store.load(store.folder).records] == ["x:0"]
        resumed = Store.open(store.folder, HEADER)
        resumed.append(record("a", "y:0", calls=7.0))
        assert [(r.sample, r.calls) for r in Store.load(store.folder).records] == [("x:0", 1.0), ("y:0", 7.0)]


def test_a_run_that_goes_on_is_told_with_what_it_was_told(store: Store) -> None:
    again = Store.open(store.folder, replace(HEADER, options={"limit": 2, "budget": [15]}))
    assert again.header.options == Store.load(store.folder).header.options == {"limit": 2, "budget": [15]}


def test_a_damaged_line_elsewhere_is_said_and_repaired(store: Store) -> None:
    path = store.folder / SAMPLES
    _, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\x00" * 20 + b"\n" + second)
    with pytest.raises(BenchError, match=r"Line 1 of .*samples\.jsonl is damaged.*--resume"):
        _ = Store.load(store.folder).records
    assert [r.sample for r in Store.open(store.folder, HEADER).records] == ["y:0"]


@pytest.mark.parametrize(
    "change", [{"row": ["a"]}, {"calls": "4"}, {"seed": True}, {"values": [1]}, {"macs": "many"}, {"identical": 1}]
)
def test_a_line_with_other_types_is_refused(store: Store, change: dict[str, Any]) -> None:
    lines = (store.folder / SAMPLES).read_text().splitlines()
    (store.folder / SAMPLES).write_text(json.dumps(json.loads(lines[0]) | change) + "\n" + lines[1] + "\n")
    with pytest.raises(BenchError, match=f"has .* as {next(iter(change))}: "):
        _ = Store.load(store.folder).records


def test_a_deeply_nested_line_is_a_damaged_one(store: Store) -> None:
    path = store.folder / SAMPLES
    path.write_bytes(b"[" * 100_000 + b"\n" + path.read_bytes())
    with pytest.raises(BenchError, match=r"Line 1 of .*samples\.jsonl is damaged"):
        _ = Store.load(store.folder).records


def test_of_a_sample_made_twice_the_last_counts(store: Store) -> None:
    store.append(record("a", "x:0", calls=5.0))
    assert [(r.sample, r.calls) for r in store.records] == [("x:0", 5.0), ("y:0", 1.0)]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"guidance": 4.0},
        {"settings": {}},
        {"reference": "fixed @ own / 40"},
        {"converged": ("fixed @ dpmpp / own / 400",)},
        {"fingerprint": {"weights": "abd", "prompts": "def"}},
        {"fingerprint": {"weights": "abc", "prompts": "def", "torch": "2"}},
    ],
    ids=lambda other: "-".join(other),
)
def test_results_of_something_else_are_not_merged(store: Store, other: dict[str, Any]) -> None:
    before = {p: p.read_bytes() for p in store.folder.iterdir()}
    with pytest.raises(BenchError, match=r"were made with .* this run has .*--out"):
        Store.open(store.folder, replace(HEADER, **other))
    assert {p: p.read_bytes() for p in store.folder.iterdir()} == before


def test_a_run_from_elsewhere_goes_on_and_its_rows_are_added(store: Store) -> None:
    more = RowInfo("b", "b", "ours", "b")
    resumed = Store.open(store.folder, replace(HEADER, date="tomorrow", machine="there", rows=(more,)))
    assert resumed.header.rows == (*HEADER.rows, more)
    noted = resumed.with_rows([replace(more, note="not applicable: no")])
    assert (
        Store.load(store.folder).header.rows
        == noted.header.rows
        == (*HEADER.rows, replace(more, note=noted.header.rows[1].note))
    )


def test_a_folder_is_neither_overwritten_nor_invented(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--resume"):
        Store.create(store.folder, HEADER)
    with pytest.raises(BenchError, match=r"holds no bench\.json"):
        Store.open(tmp_path / "nowhere", HEADER)
    (store.folder / "bench.json").write_text('{"rows": 3')
    with pytest.raises(BenchError, match="damaged"):
        Store.load(store.folder)
