"""What a judge is asked, and what counts as an answer.

Each pair of pictures is shown twice, with either on the left. The answer is one JSON object; anything else is
*unparsed*, asked again a stated number of times, and never guessed at.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from skipstone.errors import SpecError

LEFT, RIGHT, TIE = "left", "right", "tie"
WINNERS = (LEFT, RIGHT, TIE)
LAYOUTS = ("joined", "two")
TEMPLATE = """\
You compare two pictures that two programs drew from the same text. {where}
The text, between the lines:
-----
{prompt}
-----
Judge how well each picture shows what the text says, then flaws (broken shapes, smears, noise, missing or extra \
things), then the picture as a whole. Which program is on which side is drawn by lot and means nothing.
Answer with one JSON object and nothing else, no code fence, in this form:
{{"winner": "left", "reason": "at most twenty words"}}
"winner" is "left", "right" or "tie"; it is "tie" where you see no difference that matters."""
WHERE = {
    "joined": "They are the left and the right half of one image, with a white bar between them.",
    "two": "The first image is called left and the second one right.",
}
NO_PROMPT = "(no text: the programs drew freely)"
FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


class Answer(NamedTuple):
    """The answer of a judge: `winner` is one of WINNERS."""

    winner: str
    reason: str


@dataclass(frozen=True)
class JudgingProtocol:
    """How judges are asked. Another protocol asks other questions: its answers are not mixed with these.

    Args:
        layout: joined: one image with the pictures left and right, which judges that take one image can see, too; two:
            two images, each as large as `side` allows.
        side: Longest side of a picture as it is sent, in pixels, >= 64; larger ones are made smaller.
        seed: Sent to the endpoint; attempt k has seed + k.
        attempts: Times that a question is asked until its answer can be parsed, >= 1.
        tokens: Most that an answer may have, >= 16.
        settings: What else the body of a request holds; None takes a field out, e.g. {"temperature": None}.

    Raises:
        SpecError: a setting out of range.
    """

    layout: str = "joined"
    side: int = 1024
    seed: int = 0
    attempts: int = 3
    tokens: int = 300
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise SpecError(f"Expected a layout out of {', '.join(LAYOUTS)}, got {self.layout!r}.")
        for name, least in (("side", 64), ("attempts", 1), ("tokens", 16)):
            if getattr(self, name) < least:
                raise SpecError(f"Expected {name} of at least {least}, got {getattr(self, name)}.")
        if own := {"model", "messages", "stream", "n"} & self.settings.keys():
            raise SpecError(f"{sorted(own)[0]} is the protocol's own and cannot be set.")

    @property
    def template(self) -> str:
        """The question with {prompt} where the prompt goes."""
        return TEMPLATE.replace("{where}", WHERE[self.layout]).replace("{{", "{").replace("}}", "}")

    @property
    def sha256(self) -> str:
        """Of the template: two results with the same hash asked in the same words."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def question(self, prompt: str) -> str:
        """The question about one prompt, in words."""
        return TEMPLATE.format(where=WHERE[self.layout], prompt=prompt.strip() or NO_PROMPT)

    def body(self, model: str, prompt: str, images: Sequence[str], attempt: int) -> dict[str, Any]:
        """The request of one attempt; `images` are data URIs, one of `joined` and two of `two`."""
        words = [self.question(prompt)] if self.layout == "joined" else [self.question(prompt), "The right image:"]
        content: list[dict[str, Any]] = []
        for k, uri in enumerate(images):
            text = words[k] if k or self.layout == "joined" else f"{words[0]}\nThe left image:"
            content += [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri}}]
        payload = {**self.fields(model, attempt), "messages": [{"role": "user", "content": content}]}
        return {name: value for name, value in payload.items() if value is not None}

    def fields(self, model: str, attempt: int) -> dict[str, Any]:
        """The request of one attempt but for its messages."""
        plain = {"model": model, "temperature": 0, "seed": self.seed + attempt, "max_tokens": self.tokens}
        return {**plain, **self.settings}

    @property
    def longest(self) -> int:
        """Most tokens that an answer may have, whatever the endpoint calls the limit."""
        payload = [self.settings.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max([self.tokens, *(t for t in payload if isinstance(t, int))])

    def key(self, url: str, model: str, prompt: str, pixels: Sequence[str]) -> str:
        """The question's own name: a hash of the endpoint, the request's text, and the pixels from left to right.

        Of pixels, not of files, for another release of a library packs the same picture in other bytes.
        """
        payload = [url, self.fields(model, 0), self.layout, self.side, self.question(prompt), *pixels]
        return hashlib.sha256(json.dumps(payload, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def parse_answer(text: str | None) -> Answer | None:
    """The answer in a text that is one JSON object {"winner": left|right|tie, "reason": ...}; None of all else.

    White space around it is passed over, and one code fence that holds nothing else, for neither leaves anything to
    guess. Words before or after it, another spelling of a winner, a name that is there twice, missing or unknown make
    the whole unparsed.
    """
    if not isinstance(text, str):
        return None
    fenced = FENCE.match(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {"winner", "reason"}:
        return None
    winner, reason = found["winner"], found["reason"]
    if not isinstance(winner, str) or winner not in WINNERS or not isinstance(reason, str):
        return None
    return Answer(winner, reason)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are there once: JSON would take the last of two winners without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found
