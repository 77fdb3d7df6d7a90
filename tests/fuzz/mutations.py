"""Files as damage and hands change them: pieces of bytes put in, taken out and repeated; values of a JSON document
replaced by others, removed, renamed and put somewhere else."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

ANY = [b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b",", b"\t", b"\r", b"\n", b"1", b"a"]
PIECES = {  # what is put in, by what the file is
    "text": [*ANY, b'""', b"'", b"\n\n", b"prompt", b" "],
    "json": [*ANY, b"[", b"{", b'{"a":', b"]", b"}", b":", b"\\", b'"\\ud800"', b"NaN", b"1e999", b"9" * 400],
    "yaml": [*ANY, b"[", b"{", b"{a: ", b"- ", b": ", b"&a ", b"*a", b"!!int ''", b"!!timestamp x ", b"? ", b"<<: ",
             b"|", b"'", b".nan", b".inf", b"0x" + b"f" * 400, b"a: 1\n", b"%YAML 9\n", b"\n---\n"],
}  # fmt: skip
TIMES = [0, 1, 1, 1, 2, 3000]
nasty_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 3, 1e308, -1e308, 5e-324, 10**18, 10**299, 0.5, float("nan")]),
    st.sampled_from(["", " ", "0", "NaN", "1e400", "\0", "\ud800", "x" * 5000, "../..", "third_order(tol=0.05)", "a",
                     "fixed @ ddim / own / 50", "-" * 200, "([" * 60]),
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"prompt": "a"}, [1, "a"], [{}], {"name": []}]),
)  # fmt: skip


@st.composite
def mutated_bytes(draw: st.DrawFn, base: bytes, form: str) -> bytes:
    """Bytes with up to three pieces changed."""
    for _ in range(draw(st.integers(1, 3))):
        i, j = sorted((draw(st.integers(0, len(base))), draw(st.integers(0, len(base)))))
        piece = draw(st.sampled_from(PIECES[form])) * draw(st.sampled_from(TIMES))
        base = base[:i] + piece + base[draw(st.sampled_from([i, i, j])) :]
    return base


@st.composite
def mutated_document(draw: st.DrawFn, base: Any) -> Any:
    """A JSON document with one to three values changed, removed, renamed or doubled."""
    document = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return copy.deepcopy(draw(nasty_values))
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "move"]))
        if how == "replace":
            holder[key] = copy.deepcopy(draw(nasty_values))  # which later changes may change
        elif how == "remove":
            del holder[key]
        elif how == "move":
            other, there = draw(st.sampled_from(places))
            if there in (other if isinstance(other, dict) else range(len(other))):
                holder[key] = copy.deepcopy(other[there])
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = holder.pop(key)
    return document


@st.composite
def mutated_json(draw: st.DrawFn, base: Any) -> bytes:
    """A JSON document as a file, its values or its bytes changed."""
    if draw(st.booleans()):
        return draw(mutated_bytes(json.dumps(base, indent=1).encode(), "json"))
    return json.dumps(draw(mutated_document(base))).encode()


@st.composite
def mutated_yaml(draw: st.DrawFn, base: bytes) -> bytes:
    """A YAML text, its values or its bytes changed."""
    if draw(st.booleans()):
        return draw(mutated_bytes(base, "yaml"))
    document = draw(mutated_document(yaml.safe_load(base)))
    return str(yaml.safe_dump(document, allow_unicode=False)).encode()


def _places(document: Any) -> Any:
    """(container, key) of every value in a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])
