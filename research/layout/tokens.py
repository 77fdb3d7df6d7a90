"""NAME tokens of a Python file with their positions, those inside the braces of f-strings too."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

SKIPPED = (tokenize.NL, tokenize.COMMENT)


class Token(NamedTuple):
    """A token: its kind, its text, and where it begins and ends as offsets into the file."""

    kind: int
    text: str
    start: int
    end: int


def tokens_of(source: str) -> list[Token]:
    """All tokens; an f-string is an empty string token followed by those of its expressions."""
    return list(_tokens(source, 0))


def _tokens(source: str, base: int) -> Iterator[Token]:
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for kind, text, (row, column), (end_row, end_column), _ in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind in SKIPPED:
            continue
        start, end = lines[row - 1] + column, lines[end_row - 1] + end_column
        if kind == tokenize.STRING and "f" in prefix(text).lower():
            yield Token(kind, '""', base + start, base + end)
            for first, last in expressions(text):
                inner = _tokens(f"({text[first:last]}\n)", base + start + first - 1)
                for token in inner:
                    if base + start + first <= token.start and token.end <= base + start + last:
                        yield token
        else:
            yield Token(kind, text, base + start, base + end)


def prefix(literal: str) -> str:
    """The letters before the quotes."""
    found = re.match(r"[A-Za-z]*", literal)
    return found.group() if found else ""


def expressions(literal: str) -> Iterator[tuple[int, int]]:
    """(first, last) of every expression between the braces of an f-string, those of nested formats too."""
    begin = len(prefix(literal))
    quotes = 3 if literal[begin : begin + 3] in ('"""', "'''") else 1
    i, end = begin + quotes, len(literal) - quotes
    depth = 0  # of formats: `{x:{width}}`
    while i < end:
        if literal[i] == "{" and literal[i + 1] == "{" and not depth:
            i += 2
        elif literal[i] == "{":
            last = _end(literal, i + 1, end)
            yield i + 1, last
            while literal[last] not in ":}":  # a conversion
                last += 1
            depth += literal[last] == ":"
            i = last + 1
        else:
            depth -= literal[i] == "}" and depth > 0
            i += 1


def _end(literal: str, i: int, end: int) -> int:
    """Where an expression ends: at a conversion, a format or the closing brace."""
    depth, quote = 0, ""
    while i < end:
        c = literal[i]
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]" or (c == "}" and depth):
            depth -= 1
        elif depth == 0 and (c in ":}" or (c == "!" and literal[i + 1] != "=")):
            return i
        i += 1
    return i
