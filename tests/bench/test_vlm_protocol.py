"""What is asked and what counts as an answer; pictures as they are shown; pictures joined by name."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_judges import folders, picture, verdict_json
from PIL import Image

from skipstone.errors import BenchError, PromptError, SpecError
from skipstone_bench.store import HEADER, Header, Record, RowInfo, Store
from skipstone_bench.vlm.images import encode_images, prepare_image
from skipstone_bench.vlm.material import load_material
from skipstone_bench.vlm.protocol import WINNERS, Answer, JudgingProtocol, parse_answer


@pytest.mark.parametrize("winner", WINNERS)
@pytest.mark.parametrize("form", ["{}", " \n{}\n", "```json\n{}\n```", "```\n{}\n```"])
def test_answers(winner: str, form: str) -> None:
    assert parse_answer(form.format(verdict_json(winner, "why"))) == Answer(winner, "why")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "left",
        "Answer: B",
        "ANSWER: left",
        "Image A is better",
        verdict_json("Left"),
        verdict_json("A"),
        verdict_json("left or right"),
        verdict_json("left") + " I am sure.",
        "Sure! " + verdict_json("left"),
        f"Sure!\n```json\n{verdict_json('left')}\n```",
        f"```json\n{verdict_json('left')}\n```\nor\n```json\n{verdict_json('right')}\n```",
        verdict_json("left") + verdict_json("left"),
        f"[{verdict_json('left')}]",
        verdict_json("left")[:-1],
        '{"winner": "left"}',
        '{"reason": "because"}',
        '{"winner": ["left"], "reason": ""}',
        '{"winner": "left", "reason": null}',
        '{"winner": "left", "reason": "", "score": 9}',
        '{"winner": "left", "winner": "right", "reason": ""}',
        '{"Winner": "left", "reason": ""}',
        "[" * 100_000,
    ],
)
def test_everything_else_is_unparsed(text: str | None) -> None:
    assert parse_answer(text) is None


@given(st.text())
def test_no_text_is_taken_for_an_answer_by_chance(text: str) -> None:
    assert parse_answer(text) is None


def test_the_question_holds_the_prompt_and_its_form_as_written() -> None:
    asked = JudgingProtocol().question('a {cat} "left"')
    assert '\na {cat} "left"\n' in asked
    assert '{"winner": "left", "reason": ' in asked
    assert "{where}" not in JudgingProtocol().template
    assert JudgingProtocol().template.replace("{prompt}", "a cat") == JudgingProtocol().question("a cat")
    assert "drew freely" in JudgingProtocol().question("  ")


def test_another_protocol_is_another_question() -> None:
    plain = JudgingProtocol()
    keys = {
        plain.key("http://a/v1", "m", "p", ["x", "y"]),
        plain.key("http://b/v1", "m", "p", ["x", "y"]),
        plain.key("http://a/v1", "n", "p", ["x", "y"]),
        plain.key("http://a/v1", "m", "q", ["x", "y"]),
        plain.key("http://a/v1", "m", "p", ["y", "x"]),
        *(
            p.key("http://a/v1", "m", "p", ["x", "y"])
            for p in (
                JudgingProtocol(layout="two"),
                JudgingProtocol(seed=1),
                JudgingProtocol(side=512),
                JudgingProtocol(tokens=99),
                JudgingProtocol(settings={"temperature": None}),
            )
        ),
    }
    assert len(keys) == 10
    assert JudgingProtocol(attempts=9).key("http://a/v1", "m", "p", ["x", "y"]) in keys  # asks the same, more often
    assert plain.sha256 != JudgingProtocol(layout="two").sha256


def test_the_body_of_a_request() -> None:
    body = JudgingProtocol(seed=7, settings={"temperature": None, "top_p": 1}).body("m", "a cat", ["data:,"], 2)
    assert body.keys() == {"model", "seed", "max_tokens", "top_p", "messages"}
    assert body["seed"] == 9
    thinks = JudgingProtocol(settings={"max_tokens": None, "max_completion_tokens": 2000})
    assert (JudgingProtocol().longest, thinks.longest) == (300, 2000)  # what a cap on money reckons with
    two = JudgingProtocol(layout="two").body("m", "a cat", ["data:l", "data:r"], 0)
    kinds = [part.get("text", "")[-16:] or part["image_url"]["url"] for part in two["messages"][0]["content"]]
    assert kinds == ["\nThe left image:", "data:l", "The right image:"[-16:], "data:r"]
    assert two["temperature"] == 0


@pytest.mark.parametrize(
    "wrong", [{"layout": "three"}, {"side": 1}, {"attempts": 0}, {"tokens": 1}, {"settings": {"n": 2}}]
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        JudgingProtocol(**wrong)  # type: ignore[arg-type]


# -- Pictures ---------------------------------------------------------------------------------------


def opened(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_left_is_left_and_pictures_are_not_stretched(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    Image.new("RGB", (2000, 1000), "blue").save(tmp_path / "b.png")
    (joined,) = map(opened, encode_images(tmp_path / "a.png", tmp_path / "b.png", 1024, "joined"))
    assert joined.size == (500 + 32 + 1024, 512)  # 20 x 25 is the largest whole multiple below 512
    assert [joined.getpixel(at) for at in ((0, 0), (499, 249), (516, 0), (532, 0))] == [
        (255, 0, 0), (255, 0, 0), (255, 255, 255), (0, 0, 255),
    ]  # fmt: skip
    left, right = map(opened, encode_images(tmp_path / "b.png", tmp_path / "a.png", 64, "two"))
    assert (left.size, right.size) == ((64, 32), (60, 30))
    assert left.getpixel((0, 0)) == (0, 0, 255)


def test_glass_is_shown_on_white_and_videos_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (600, 600), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert prepare_image(tmp_path / "glass.png", 1024).getpixel((5, 5)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(BenchError, match="video"):
        prepare_image(tmp_path / "film.webp", 1024)
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(BenchError, match="can be read"):
        prepare_image(tmp_path / "no.png", 1024)


def test_pictures_are_joined_by_name(tmp_path: Path) -> None:
    both, prompts = folders(tmp_path, {"a": 10, "b": 20}, 12)
    lines = prompts.read_text().splitlines()
    prompts.write_text("\n".join([lines[0], *reversed(lines[1:])]))  # the order of the file says nothing
    (tmp_path / "b" / "003.png").unlink()
    found = load_material(both, (), prompts)
    assert found.missing == 1
    assert found.rows == ("a", "b")
    assert len(found.samples) == 11
    for s in found.samples:
        assert s.prompt == f"thing {int(s.id[:3])}, please"
        assert {p.name for p in s.pictures.values()} == {s.id}
        assert {p.parent.name for p in s.pictures.values()} == {"a", "b"}


def test_samples_are_drawn_by_category_and_seed(tmp_path: Path) -> None:
    both, prompts = folders(tmp_path, {"a": 10, "b": 20}, 12)
    found = load_material(both, (), prompts)
    few = found.subsample(4, 0)
    assert sorted(s.category for s in few.samples) == ["a", "a", "b", "b"]
    assert few.samples == found.subsample(12, 0).samples[:4]
    assert few.samples == found.subsample(4, 0).samples
    assert few.samples != found.subsample(4, 1).samples
    assert sorted(s.id for s in found.subsample(None, 3).samples) == [s.id for s in found.samples]
    with pytest.raises(BenchError, match="at least 1 sample"):
        found.subsample(0, 0)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("name,prompt\n000,a", "says no prompt for the picture 001.png"),
        ("prompt\na\nb", "expected name and prompt"),
        ("name,prompt\n000,a\n000,b", "each name once"),
        ('{"name": "000", "prompt": "a"}\nno', "is not csv: .*--format jsonl"),
        ('name,prompt\n000,"' + "a" * 200_000 + '"\n', r"row 2 \(line 2\) is not CSV: field larger"),
    ],
)
def test_prompts_are_never_found_by_their_order(tmp_path: Path, text: str, wrong: str) -> None:
    both, prompts = folders(tmp_path, {"a": 10, "b": 20}, 2)
    prompts.write_text(text)
    with pytest.raises(PromptError, match=wrong):
        load_material(both, (), prompts)


def test_json_lines_and_tabs(tmp_path: Path) -> None:
    both, prompts = folders(tmp_path, {"a": 10, "b": 20}, 1)
    for form, text in (
        ("jsonl", '{"file": "000.png", "caption": "a, cat"}\n'),
        ("json", '[{"file": "000.png", "caption": "a, cat"}]'),
        ("tsv", "name\tprompt\n000\ta, cat\n"),
    ):
        prompts.write_text(text)
        assert load_material(both, (), prompts, form).samples[0].prompt == "a, cat"
        with pytest.raises(PromptError, match=f"is not csv: .*--format {'json' if form == 'json' else form}"):
            load_material(both, (), prompts)
    with pytest.raises(PromptError, match="has no names: say --format csv"):
        load_material(both, (), prompts, "txt")


# -- A benchmark's folder ---------------------------------------------------------------------------

ROWS = ("fixed @ own / 50", "x @ own / 50", "y @ own / 50")


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    infos = tuple(RowInfo(spec, label, "ours", "f") for spec, label in zip(ROWS, ("full run", "x", "x"), strict=True))
    header = Header("1", "m", {}, None, {}, ROWS[0], (), "here", "today", "cmd", {}, infos)
    store = Store.create(tmp_path / "bench", header)
    for k, spec in enumerate(ROWS):
        for p, seed in (("cat", 0), ("cat", 1), ("dog", 0)):
            name = f"pictures/{k}-{p}-{seed}.png"
            picture(store.folder / name, 60 * k, seed)
            record = Record(spec, f"{p}:{seed}", f"a {p}", p, "animal", seed, 1.0, 1.0, 1.0, None, None, {})
            store.append(replace(record, picture=name) if (k, p) != (2, "dog") else record)  # one is not kept
    return store.folder


def test_rows_of_a_benchmark_by_label_or_spec(bench: Path) -> None:
    found = load_material([bench], ["full run", ROWS[1]])
    assert found.rows == ("full run", ROWS[1])  # two rows are called x, so that neither is
    assert [(s.id, s.prompt, s.category) for s in found.samples] == [
        ("cat:0", "a cat", "animal"), ("cat:1", "a cat", "animal"), ("dog:0", "a dog", "animal"),
    ]  # fmt: skip
    assert found.samples[2].pictures[ROWS[1]].name == "1-dog-0.png"
    every = load_material([bench])
    assert (every.rows, len(every.samples), every.missing) == (("full run", *ROWS[1:]), 2, 1)


def test_what_a_folder_does_not_hold(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"No pictures of a row 'full rum'. Did you mean .full run"):
        load_material([bench], ["full rum", ROWS[1]])
    with pytest.raises(BenchError, match="at least two rows"):
        load_material([bench], ["full run"])
    with pytest.raises(BenchError, match="expected the --out of skipstone bench, or two folders"):
        load_material([tmp_path])
    with pytest.raises(BenchError, match="need --prompts"):
        load_material([tmp_path, tmp_path / "other"])
    for file in (bench / "pictures").iterdir():
        file.unlink()
    with pytest.raises(BenchError, match="keeps no pictures"):
        load_material([bench])
    assert (bench / HEADER).is_file()
