"""Files as damage and hands change them: pieces of bytes put in, taken out and repeated; values of a JSON document
replaced by others, removed, renamed and put somewhere else."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

PIECES = [b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\", b"\\ud800", b",", b"\t", b"\r", b"\n", b"{",
          b"[", b"}", b"]", b":", b"- ", b"&a ", b"*a", b"!!int ", b"? ", b"NaN", b"1e999", b"9" * 400, b"'", b"|", b"<<"]  # fmt: skip
TIMES = [0, 1, 1, 1, 2, 50, 3000]
NASTY = [
    None, True, False, 0, -1, 3, 1e308, -1e308, 5e-324, 10**18, 10**299, "", " ", "0", "NaN", "1e400", "\0", "\ud800",
    "x" * 5000, "../..", "third_order(tol=0.05)", "fixed @ ddim / own / 50", [], {}, [[]], [None], {"": None},
    {"prompt": "a"}, [1, "a"], "nan", "-" * 200, "([" * 60,
]  # fmt: skip
nasty_values: st.SearchStrategy[Any] = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=6), inside, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated_bytes(draw: st.DrawFn, base: bytes) -> bytes:
    """Bytes with up to three pieces changed."""
    for _ in range(draw(st.integers(1, 3))):
        i, j = sorted((draw(st.integers(0, len(base))), draw(st.integers(0, len(base)))))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4)) * draw(st.sampled_from(TIMES))
        base = base[:i] + piece + base[draw(st.sampled_from([i, i, j])) :]
    return base


@st.composite
def mutated_document(draw: st.DrawFn, base: Any) -> Any:
    """A JSON document with one to three values changed, removed, renamed or doubled."""
    document = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(nasty_values)
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "move"]))
        if how == "replace":
            holder[key] = draw(nasty_values)
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
        return draw(mutated_bytes(json.dumps(base, indent=1).encode()))
    return json.dumps(draw(mutated_document(base))).encode()


def _places(document: Any) -> Any:
    """(container, key) of every value in a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])
