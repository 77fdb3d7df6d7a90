"""Hostile files: prompts, configurations, folders of policies and of benchmarks: read, or refused in a sentence.

The memory is bounded by `conftest.py`; whatever hangs is stopped by whoever runs the tests.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from mutations import mutated_bytes, mutated_json, mutated_yaml

from skipstone import registry
from skipstone.errors import BenchError, CertificateError, OutputError, PromptError, SkipstoneError, SpecError
from skipstone.evaluation.prompt_files import read_prompts
from skipstone.evaluation.prompt_records import FORMATS
from skipstone.policies.certified import Certified
from skipstone.policies.storage import FILE, read_policy
from skipstone_bench.store import HEADER, SAMPLES, TIMINGS, Store
from skipstone_bench.vlm.material import load_material
from skipstone_train.agents.config import load_config

TABLE = 'Prompt,Category,id\n"a cat, red",animals,1\na bus,cars,2\n'
SETS = {  # the end of a name -> files of that kind
    "txt": [b"a cat\na dog\n", b'"a cat, red"\r\n\r\na dog'],
    "csv": [TABLE.encode(), b"\xef\xbb\xbfcaption\na cat\n"],
    "tsv": [TABLE.replace(",", "\t").encode(), b'id\tcaption\n1\t"A sign, ""Cheese""."\n'],
    "jsonl": [b'{"tag": "colors", "prompt": "a red cup"}\n{"tag": "counting", "prompt": "two cups", "id": 3}\n'],
}
DOCUMENTS: list[Any] = [
    [{"prompt_en": "a stop sign", "dimension": ["flicker", "b"]}, {"prompt_en": "a cow", "dimension": ["color"]}],
    [{"id": "coco_3", "caption": "A man."}, {"id": "drawbench_0", "caption": "A car."}],
    {"annotations": [{"id": 9, "image_id": 1, "caption": "late"}, {"id": 4, "image_id": 1, "caption": "A dog."}]},
    ["a cat", "a dog"],
]
CONFIGURATIONS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("agent_*.yaml"))
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


NAMES = [*FORMATS, "TXT", "md", ""]


@st.composite
def prompt_files(draw: st.DrawFn, like: str) -> bytes:
    """A file of one of the formats, changed; sometimes anything."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=40))
    if like == "json":
        return draw(mutated_json(draw(st.sampled_from(DOCUMENTS))))
    form = "json" if like == "jsonl" else "text"
    return draw(mutated_bytes(draw(st.sampled_from(SETS[like])), form))


def read_or_refused(read: Callable[[], Any], *errors: type[SkipstoneError]) -> Any:
    """What is read, None where it is refused with a sentence; any other exception fails."""
    said = ""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = read()
        event("read")
        return found
    except errors as e:
        said = str(e)
    event("refused")
    assert 10 < len(said) < 2000
    assert "Traceback" not in said
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples, each of which writes over the last."""
    return tmp_path_factory.mktemp("fuzz")


def check_prompts(prompts: Any) -> None:
    """What is read can be drawn, and written again."""
    assert prompts
    assert len({p.id for p in prompts}) == len(prompts)
    assert all(p.text.strip() == p.text and p.text and "\0" not in p.text for p in prompts)
    "".join(p.id + p.text + p.category for p in prompts).encode()


@pytest.mark.parametrize("like", FORMATS)
@given(data=st.data())
def test_files_of_prompts(like: str, folder: Path, data: st.DataObject) -> None:
    suffix, prompt_format = data.draw(st.sampled_from([like, like, like, *NAMES])), None
    if suffix != like:
        prompt_format = data.draw(st.sampled_from([None, like, *FORMATS]))
    path = folder / f"prompts.{suffix}".rstrip(".")
    path.write_bytes(data.draw(prompt_files(like)))
    prompts = read_or_refused(lambda: read_prompts(path, prompt_format), PromptError)
    if prompts is not None:
        check_prompts(prompts)


@given(data=st.data(), names=st.lists(st.sampled_from(["a", "a_val", "B", "LICENSE"]), min_size=1, max_size=3))
def test_folders_of_prompts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    for name in names:
        like = data.draw(st.sampled_from(["txt", "txt", *FORMATS]))
        (folder / f"{name}.{like}").write_bytes(data.draw(prompt_files(like)))
    prompts = read_or_refused(lambda: read_prompts(folder), PromptError)
    if prompts is not None:
        check_prompts(prompts)


@pytest.mark.parametrize("like", FORMATS)
@given(data=st.data())
def test_names_of_pictures_and_their_prompts(like: str, folder: Path, data: st.DataObject) -> None:
    for name in ("ours", "theirs"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "1.png").write_bytes(b"")
    path = folder / f"named.{like}"
    path.write_bytes(data.draw(prompt_files(like)).replace(b"id", b"name"))
    read_or_refused(lambda: load_material([folder / "ours", folder / "theirs"], (), path), PromptError)


@pytest.mark.parametrize("base", [*CONFIGURATIONS, None], ids=lambda path: path.stem if path else "toy")
@given(data=st.data())
def test_configurations(base: Path | None, folder: Path, data: st.DataObject) -> None:
    path = folder / "agent.yaml"
    path.write_bytes(data.draw(mutated_yaml(base.read_bytes() if base else TOY)))
    said = data.draw(st.lists(changes, max_size=1))
    read_or_refused(lambda: load_config(path, said), SpecError)


TOY = b"environment: {name: toy, prices: [1, 2.5]}\nlearner: {name: search, candidates: 4}\nslots: 8\nseeds: [1]\n"
changes = st.builds(
    "{}={}".format,
    st.sampled_from(
        ["environment", "environment.prices", "learner.name", "learner.hidden", "slots", "seeds", "x.y", ""]
    ),
    st.sampled_from(["1", "-1", "[1, 2]", "{a: b}", "null", ".nan", ".inf", "toy", "1e400", "'", "9" * 30, "[" * 500])
    | st.text(max_size=8),
)


def policies() -> list[Any]:
    """Documents of folders of policies: bare ones, and those with a certificate."""
    found: list[Any] = [{"policy": "third_order(tol=0.05)", "skipstone": "0.2.0", "notes": {}}]
    return found + [json.loads(path.read_text()) for path in sorted(FIXTURES.rglob(FILE))]


@pytest.mark.parametrize("document", policies(), ids=lambda document: document["policy"][:20])
@given(data=st.data())
def test_folders_of_policies(document: Any, folder: Path, data: st.DataObject) -> None:
    (folder / FILE).write_bytes(data.draw(mutated_json(document)))
    allow_sampler = data.draw(st.booleans())
    policy = read_or_refused(lambda: read_policy(folder, allow_sampler=allow_sampler), SkipstoneError)
    if policy is not None:
        assert registry.spell(policy)
    if isinstance(policy, Certified):  # of no model that there is, unless it changes nothing
        read_or_refused(lambda: policy.check({"pipeline": "another"}, "another pipeline"), CertificateError)


HEADERS: dict[str, Any] = {
    "version": "0.2.0", "model": "m", "fingerprint": {"weights": "abc"}, "guidance": 7.5, "settings": {"height": 64},
    "reference": "fixed @ own / 50", "converged": ["fixed @ dpmpp / own / 500", "fixed @ unipc / own / 250"],
    "machine": "a", "date": "2026-01-01", "command": "skipstone bench",
    "prompts": {"set": "a", "count": 1, "seeds": [0]},
    "rows": [{"spec": "a", "label": "a", "group": "ours", "family": "a", "values": {"fid": 3.5}}],
    "agreement": {"median": 60.0}, "options": {"limit": 2, "budget": [3]},
}  # fmt: skip
RECORD: dict[str, Any] = {
    "row": "a", "sample": "x:0", "prompt": "a cat", "prompt_id": "x", "category": "", "seed": 0, "calls": 4.0,
    "cond": 4.0, "uncond": 4.0, "macs": None, "macs_calls": 1.5, "values": {"psnr_full": 40.0}, "decisions": "CCSS",
    "status": "done", "picture": "", "identical": False, "backward": 0.0,
}  # fmt: skip
TIMING: dict[str, Any] = {
    "row": "a", "repeat": 0, "batch": 1, "seconds": 1.5, "baseline_seconds": 3.0, "peak_bytes": None
}  # fmt: skip


@pytest.mark.parametrize("damaged", [HEADER, SAMPLES, TIMINGS])
@given(data=st.data())
def test_folders_of_benchmarks(damaged: str, folder: Path, data: st.DataObject) -> None:
    for name, base in ((HEADER, HEADERS), (SAMPLES, RECORD), (TIMINGS, TIMING)):
        content = data.draw(mutated_json(base)) if name == damaged else json.dumps(base).encode()
        (folder / name).write_bytes(content if name == HEADER else content.replace(b"\n", b"") + b"\n" + b"{}\n")

    def read() -> Any:
        store = Store.load(folder)
        return store.header.identity, store.records, store.timings

    read_or_refused(read, BenchError, OutputError)
