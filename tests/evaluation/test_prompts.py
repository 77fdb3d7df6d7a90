"""Prompt sets: tiny files in every published format, the published files themselves where they are, sampling."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skipstone.errors import PromptError
from skipstone.evaluation import prompt_records
from skipstone.evaluation.prompts import Prompt, describe_prompts, load_prompts, prompt_sets
from skipstone_pebble.scenes import parse_prompt, withheld

DATA = Path(os.environ.get("SKIPSTONE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

PARTI = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tn\n"HI" in paint, red\tArts\tWriting\tn\n'
MLPERF = 'id\timage_id\tcaption\theight\n70\t2\tA city.\t640\n71\t3\t"A sign, ""Cheese"", on it."\t480\n'
BRENCH = '\ufeffPrompt,Category\nA red car.,Colors\n"Two cats, one dog.",Counting\n'
GENEVAL = '{"tag": "colors", "prompt": "a red cup"}\n{"tag": "counting", "prompt": "two \u2028 cups"}\n'
VBENCH = [{"prompt_en": "a stop sign", "dimension": ["flicker", "b"]}, {"prompt_en": "a cow", "dimension": ["color"]}]
TIFA = [{"id": "coco_3", "caption": "A man."}, {"id": "drawbench_0", "caption": "A car."}]
COCO = [(9, 1, "late"), (4, 1, "A dog. "), (5, 2, "A cat.")]
FORMATS = {
    "parti.tsv": (PARTI, [("bond", "Abstract"), ('"HI" in paint, red', "Arts")]),
    "mlperf.tsv": (MLPERF, [("A city.", ""), ('A sign, "Cheese", on it.', "")]),
    "draw.csv": (BRENCH, [("A red car.", "Colors"), ("Two cats, one dog.", "Counting")]),
    "draw.txt": (
        'A car.\r\n\r\n"A cat, red."\r\n"Hi" he said\r\n',
        [("A car.", ""), ("A cat, red.", ""), ('"Hi" he said', "")],
    ),
    "geneval.jsonl": (GENEVAL, [("a red cup", "colors"), ("two \u2028 cups", "counting")]),
    "vbench.json": (json.dumps(VBENCH, indent=1), [("a stop sign", "flicker"), ("a cow", "color")]),
    "tifa.json": (json.dumps(TIFA), [("A man.", "coco"), ("A car.", "drawbench")]),
    "coco.json": (
        json.dumps({"annotations": [{"id": i, "image_id": image, "caption": c} for i, image, c in COCO]}),
        [("A dog.", ""), ("A cat.", "")],
    ),
    "list.json": ('["a cat", "a dog"]', [("a cat", ""), ("a dog", "")]),
}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("renamed", [False, True], ids=["named", "renamed"])
def test_a_format_is_what_the_name_says_or_the_argument(name: str, renamed: bool, tmp_path: Path) -> None:
    text, expected = FORMATS[name]
    form = name.rpartition(".")[2]
    if renamed:
        prompts = load_prompts(written(tmp_path, "some.txt", text), prompt_format=form)
    else:
        prompts = load_prompts(written(tmp_path, name.upper(), text))
    assert [(p.text, p.category) for p in prompts] == expected
    assert len({p.id for p in prompts}) == len(prompts)


@pytest.mark.parametrize(
    "lines",
    [
        ("solo, text, white background", "a bus, rain, night"),
        ("prompt", "a bus"),
        ("Prompt\tCategory", "a bus\tbuses"),
        ('{"prompt": "a bus"}', "a cat"),
        ('["a bus", "a cat"]',),
        ("[",),
        ("id,caption", "1,2,3"),
        ('a "bus, red', 'night", a cat'),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is read as one prompt a line")
def test_a_text_is_one_prompt_a_line_whatever_its_lines_say(lines: tuple[str, ...], tmp_path: Path) -> None:
    assert [p.text for p in load_prompts(written(tmp_path, "prompts.txt", "\n".join(lines) + "\n"))] == list(lines)


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters='\0\r\n"'), min_size=1), min_size=1)
)
@example(["solo, text, white background", "a bus, rain, night"])
@pytest.mark.filterwarnings("ignore:.*is read as one prompt a line")
def test_every_text_comes_back_line_by_line(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    expected = [line.strip() for line in lines if line.strip()]
    if expected:
        assert [p.text for p in load_prompts(path)] == expected
    else:
        with pytest.raises(PromptError, match="is empty"):
            load_prompts(path)


def test_a_text_that_begins_like_a_table_says_how_to_read_it_as_one(tmp_path: Path) -> None:
    for text, form in ((PARTI, "tsv"), (BRENCH, "csv"), (GENEVAL, "jsonl")):
        with pytest.warns(UserWarning, match=f"is read as one prompt a line.*--format {form} "):
            load_prompts(written(tmp_path, "prompts.txt", text))


def test_a_name_that_says_no_format_is_refused(tmp_path: Path) -> None:
    for name in ("prompts", "prompts.md", "prompts.txt.bak"):
        path = written(tmp_path, name, "a cat\n")
        with pytest.raises(PromptError, match=r"expected a name that ends with \.txt.*--format txt"):
            load_prompts(path)
        assert [p.text for p in load_prompts(path, prompt_format="txt")] == ["a cat"]
    with pytest.raises(PromptError, match=r"out of txt, csv, tsv, json, jsonl, got 'xlsx'"):
        load_prompts(path, prompt_format="xlsx")


def test_line_ends_are_equal(tmp_path: Path) -> None:
    for text in (PARTI, GENEVAL, BRENCH):
        name = {PARTI: "a.tsv", GENEVAL: "a.jsonl", BRENCH: "a.csv"}[text]
        read = [load_prompts(written(tmp_path, name, text.replace("\n", end))) for end in ("\n", "\r\n", "\r")]
        assert read[0] == read[1] == read[2]


def test_many_prompts_are_read_and_too_many_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("a.txt", "\n".join(f"prompt {k}" for k in range(20_000))),
        ("a.csv", "prompt,category\n" + "\n".join(f'"prompt, {k}",a' for k in range(20_000))),
        ("a.jsonl", "\n".join(f'{{"prompt": "prompt {k}"}}' for k in range(20_000))),
    ):
        assert len(load_prompts(written(tmp_path, name, text))) == 20_000
    monkeypatch.setattr(prompt_records, "MAX_RECORDS", 19_999)
    with pytest.raises(PromptError, match="expected at most 19,999 prompts"):
        load_prompts(tmp_path / "a.txt")
    monkeypatch.setattr(prompt_records, "MAX_BYTES", 1000)
    with pytest.raises(PromptError, match="expected at most 1,000 bytes"):
        load_prompts(tmp_path / "a.csv")
    monkeypatch.setattr(prompt_records, "MAX_JSON_MARKS", 2)
    with pytest.raises(PromptError, match="expected at most 2 quotes and brackets"):
        load_prompts(written(tmp_path, "a.json", '["a"]'))


def test_ids_are_the_file_s_own_or_tell_an_edited_file(tmp_path: Path) -> None:
    assert [p.id for p in load_prompts(written(tmp_path, "m.tsv", MLPERF))] == ["70", "71"]
    assert [p.id for p in load_prompts(written(tmp_path, "c.json", FORMATS["coco.json"][0]))] == ["1", "2"]
    before = load_prompts(written(tmp_path, "a.txt", "a cat\na cat\na dog\n"))
    after = load_prompts(written(tmp_path, "a.txt", "a cat\na fox\na dog\n"))
    assert [x.id == y.id for x, y in zip(before, after, strict=True)] == [True, False, True]
    assert describe_prompts("a", before)["sha256"] != describe_prompts("a", after)["sha256"]


def test_folders_give_a_category_or_a_prompt_for_each_file(tmp_path: Path) -> None:
    lists, single = tmp_path / "compbench", tmp_path / "dpg"
    for folder, files in {
        lists: {"color_val.txt": "a\nb\n", "color.txt": "a\nb\nc\n", "shape_val.txt": "d\n", "LICENSE.txt": "MIT\nx\n"},
        single: {"10.txt": "a long prompt\n", "2.txt": "another"},
    }.items():
        folder.mkdir()
        for name, text in files.items():
            written(folder, name, text)
    assert [(p.text, p.category) for p in load_prompts(lists)] == [("a", "color"), ("b", "color"), ("d", "shape")]
    assert {(p.id, p.text) for p in load_prompts(single)} == {("10", "a long prompt"), ("2", "another")}
    written(single, "more.jsonl", GENEVAL)
    with pytest.raises(PromptError, match=r"Name one: 10\.txt, 2\.txt, more\.jsonl"):
        load_prompts(single)


BAD = {
    "empty": ("a.txt", b" \n\n", "is empty"),
    "picture": ("a.txt", b"\x89PNG\r\n\x1a\n\x00", "not text: expected UTF-8, got byte 0x89 at 0"),
    "zeros": ("a.txt", b"a cat\x00", "zero byte at 5"),
    "torn": ("a.jsonl", b'{"prompt": "a"}\n{"prom', r"a\.jsonl, line 2: expected JSON"),
    "nameless": ("a.jsonl", b'{"text_of": "a"}\n{"text_of": "b"}', "expected a text under prompt or .* text_of"),
    "column": ("a.csv", b"words,kind\na,b\n", "expected a column prompt or .* got words, kind"),
    "ragged": ("a.tsv", b"prompt\tcategory\na cat\n", r"row 2: expected 2 cells \(prompt, category\), got 1"),
    "twice": ("a.jsonl", b'{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "got '1' for prompts 1 and 2"),
    "nothing": ("a.json", b"[]", "holds no prompts"),
    "header": ("a.tsv", b"prompt\tcategory\n", "holds no prompts"),
    "coco": ("a.json", b'{"annotations": [{"caption": "a"}]}', "annotation 1: expected image_id"),
    "number": ("a.json", b"[1]", "item 1: expected a text"),
    "tabs": ("a.csv", b"prompt\tcategory\na\tb\n", "is not csv.*--format tsv"),
    "commas": ("a.tsv", b"prompt,category\na,b\n", "is not tsv.*--format csv"),
    "lines in csv": ("a.csv", b'{"prompt": "a"}\n', "is not csv.*--format jsonl"),
    "columns": ("a.csv", b"prompt,Prompt\na,b\n", "columns of different names"),
    "no prompt": ("a.csv", b"prompt,category\n,b\n", "row 2: expected a text under prompt"),
    "long cell": ("a.csv", b"prompt\n" + b"a" * 140_000, r"row 2 \(line 2\) is not CSV: field larger than"),
    "long line": ("a.txt", b"a\n" + b"a" * 140_000, "line 2: expected at most 131,072 characters, got 140,000"),
    "long tab": ("a.tsv", b"prompt\n" + b"a" * 140_000, "row 2: expected at most 131,072 characters"),
    "open quote": ("a.csv", b'prompt\n"a\n' + b"b\n" * 70_000, r"row 2 .* is not CSV: field larger than"),
    "zero in csv": ("a.csv", b"prompt\na\x00b\n", "zero byte at 8"),
    "utf-16": ("a.csv", "prompt\na cat\n".encode("utf-16"), "is in UTF-16: save it in UTF-8"),
    "utf-16 unmarked": ("a.txt", "a cat\n".encode("utf-16-le"), "zero byte at 1"),
    "latin-1": ("a.txt", "caf\u00e9\n".encode("latin-1"), "byte 0xe9 at 3"),
    "deep": ("a.json", b"[" * 100_000, "at most 50 lists and objects"),
    "deep line": ("a.jsonl", b'{"prompt": "a"}\n' + b'{"a":' * 100_000, "line 2: expected at most 50 lists"),
    "two documents": ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "expected JSON, .*--format jsonl"),
    "one object": ("a.json", b'{"prompt": "a"}', "expected a JSON list.*--format jsonl"),
    "list in lines": ("a.jsonl", b'[\n"a",\n"b"]', "line 1: expected JSON, .*--format json"),
    "name twice": (
        "a.jsonl",
        b'{"prompt": "a", "prompt": "b"}',
        'line 1: expected each name once in an object, got "prompt" twice',
    ),
    "case": ("a.jsonl", b'{"prompt": "a", "Prompt": "b"}', "fields of different names"),
    "empty text": ("a.json", b'["a", " "]', "item 2: expected a prompt, got an empty text"),
    "half": ("a.json", b'["\\ud800"]', "half of a surrogate"),
    "zero in json": ("a.json", b'["a\\u0000"]', "got one with a zero byte"),
    "truth": ("a.jsonl", b'{"prompt": true}', "expected a text under prompt"),
    "digits": (
        "a.jsonl",
        b'{"prompt": "a", "id": ' + b"1" * 9000 + b"}",
        "line 1: expected whole numbers of at most 300 digits",
    ),
    "label": ("a.jsonl", b'{"prompt": "a", "category": {"b": 1}}', "expected category to be a text"),
    "coco image": ("a.json", b'{"annotations": [{"id": 1, "image_id": [1], "caption": "a"}]}', "as whole numbers"),
    "coco caption": ("a.json", b'{"annotations": [{"id": 1, "image_id": 1, "caption": null}]}', "and a caption"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_say_what_is_wrong(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        load_prompts(path)


def test_wrong_names_limits_and_categories_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "p.tsv", PARTI)
    with pytest.raises(PromptError, match=r"Did you mean 'pebble'\?.*'pebble-tuning'"):
        load_prompts("peble")
    with pytest.raises(PromptError, match=r"not shipped with Skipstone\. Get PartiPrompts\.tsv"):
        load_prompts("PartiPrompts")
    with pytest.raises(PromptError, match=r"no category 'Art'\. Did you mean 'Arts'\? It has: Abstract, Arts"):
        load_prompts(path, categories=["Art"])
    with pytest.raises(PromptError, match="at least 1 prompt"):
        load_prompts(path, limit=0)
    assert [p.category for p in load_prompts(path, categories=["Arts"])] == ["Arts"]


def test_samples_are_balanced_nested_and_blind_to_order(tmp_path: Path) -> None:
    rows = [f"prompt {i}\t{'ABC'[min(i // 4, 2)]}" for i in range(30)]  # 4 of A, 4 of B, 22 of C
    path = written(tmp_path, "a.tsv", "\n".join(["prompt\tcategory", *rows]))
    nine = load_prompts(path, limit=9)
    assert Counter(p.category for p in nine) == {"A": 3, "B": 3, "C": 3}
    for limit in (1, 4, 20, 30, 99):
        more = load_prompts(path, limit=limit)
        assert more[:9] == nine[:limit]
        assert len(more) == len(set(more)) == min(limit, 30)
    assert load_prompts(path, limit=9, seed=1) != nine
    written(tmp_path, "a.tsv", "\n".join(["prompt\tcategory", *reversed(rows)]))
    assert [p.text for p in load_prompts(path, limit=9)] == [p.text for p in nine]


def test_pebble_s_sets_were_never_trained_on_and_share_no_combination() -> None:
    combined: dict[str, set[frozenset[str]]] = {}
    for name in ("pebble", "pebble-tuning"):
        prompts = load_prompts(name)
        assert len({p.id for p in prompts}) == len(prompts) > 100
        scenes = {p: parse_prompt(p.text) for p in prompts}
        assert all(scene is not None and withheld().contains(scene) for scene in scenes.values())
        combined[name] = {
            frozenset(s.objects if s.relation else (*s.objects, str(s.background))) for s in scenes.values() if s
        }
        assert Counter(p.category for p in load_prompts(name, limit=40)) == {"single": 20, "pair": 20}
    assert not combined["pebble"] & combined["pebble-tuning"]
    sizes = {name: len(load_prompts(name)) for name in prompt_sets()}
    # Figures are quoted with them: a change is a new set, and needs a new name.
    assert sizes == {"pebble": 324, "pebble-tuning": 144, "pebble-training": 2048}


def test_pebble_s_training_set_has_nothing_that_is_withheld() -> None:
    prompts = load_prompts("pebble-training")
    scenes = [parse_prompt(p.text) for p in prompts]
    assert all(scene is not None and not withheld().contains(scene) for scene in scenes)
    assert len({p.id for p in prompts}) == len(prompts)
    assert Counter(p.category for p in prompts) == {"single": 792, "pair": 1256}


PUBLISHED = {  # prompts, categories
    "parti/PartiPrompts.tsv": (1632, 12),
    "drawbench/drawbench_with_categories.csv": (200, 11),
    "drawbench/DrawBench200.txt": (200, 1),
    "geneval/evaluation_metadata.jsonl": (553, 6),
    "geneval/generation_prompts.txt": (553, 1),
    "t2i_compbench": (2400, 8),
    "dpg_bench": (1065, 1),
    "vbench/VBench_full_info.json": (946, 11),
    "vbench/VBench2_full_text.txt": (1013, 1),
    "vbench/prompts_per_category": (800, 8),
    "vbench/prompts_per_dimension": (946, 11),
    "coco/coco2014val_captions_30k.txt": (30000, 1),
    "coco/mlperf_coco2014_captions_source.tsv": (5000, 1),
    "tifa/tifa_v1.0_text_inputs.json": (4081, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_whole(name: str) -> None:
    path = DATA / f"prompts_{name}"
    if not path.exists():
        pytest.skip(f"{name} is not ours to ship: set SKIPSTONE_DATA to a folder with prompts_{name}")
    prompts = load_prompts(path)
    assert (len(prompts), len({p.category for p in prompts})) == PUBLISHED[name]
    assert all(isinstance(p, Prompt) and p.text == p.text.strip() and "\t" not in p.text for p in prompts)


def test_the_two_published_copies_of_drawbench_agree() -> None:
    paths = [DATA / "prompts_drawbench" / name for name in ("DrawBench200.txt", "drawbench_with_categories.csv")]
    if not all(path.exists() for path in paths):
        pytest.skip("DrawBench is not ours to ship: set SKIPSTONE_DATA to a folder with prompts_drawbench")
    plain, table = ([p.text for p in load_prompts(path)] for path in paths)
    assert plain == table
