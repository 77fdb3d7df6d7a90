"""Prompt sets: tiny files in every published format, the published files themselves where they are, sampling."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from skipstone.errors import PromptError
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
@pytest.mark.parametrize("renamed", [False, True], ids=["named", "unnamed"])
def test_formats_are_known_by_what_they_hold(name: str, renamed: bool, tmp_path: Path) -> None:
    text, expected = FORMATS[name]
    prompts = load_prompts(written(tmp_path, "some.txt" if renamed else name, text))
    assert [(p.text, p.category) for p in prompts] == expected
    assert len({p.id for p in prompts}) == len(prompts)


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
    "torn": ("a.jsonl", b'{"prompt": "a"}\n{"prom', r"a\.jsonl, line 2 is not JSON"),
    "nameless": ("a.jsonl", b'{"text_of": "a"}\n{"text_of": "b"}', "expected a text under prompt or .* text_of"),
    "column": ("a.csv", b"words,kind\na,b\n", "expected a column prompt or .* got words, kind"),
    "ragged": ("a.tsv", b"prompt\tcategory\na cat\n", r"row 2: expected 2 cells \(prompt, category\), got 1"),
    "twice": ("a.jsonl", b'{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "got '1' for prompts 1 and 2"),
    "nothing": ("a.json", b"[]", "holds no prompts"),
    "header": ("a.tsv", b"prompt\tcategory\n", "holds no prompts"),
    "coco": ("a.json", b'{"annotations": [{"caption": "a"}]}', "annotation 1: expected image_id"),
    "number": ("a.json", b"[1]", "item 1: expected a text"),
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
    for name in prompt_sets():
        prompts = load_prompts(name)
        assert len({p.id for p in prompts}) == len(prompts) > 100
        scenes = {p: parse_prompt(p.text) for p in prompts}
        assert all(scene is not None and withheld().contains(scene) for scene in scenes.values())
        combined[name] = {
            frozenset(s.objects if s.relation else (*s.objects, str(s.background))) for s in scenes.values() if s
        }
        assert Counter(p.category for p in load_prompts(name, limit=40)) == {"single": 20, "pair": 20}
    assert not combined["pebble"] & combined["pebble-tuning"]
    sizes = [len(load_prompts(name)) for name in prompt_sets()]
    assert sizes == [324, 144]  # figures are quoted with them: a change is a new set, and needs a new name


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
