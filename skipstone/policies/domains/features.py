"""Numbers of a prompt that a domain classifier reads: a model's text states, CLIP's features, or n-grams of the text.

Each kind turns one prompt into one row of unit length. One prompt at a time, so that no sample depends on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from ...errors import ModelError, SpecError
from ...satellites import require_module

FeatureKind: TypeAlias = Literal["states", "clip", "words"]
FLOOR = 1e-6  # of a spread, and of a length
CHARACTERS, WORDS = ("char_wb", (2, 5)), ("word", (1, 3))  # analyzers of scikit-learn, and lengths of their n-grams
MOST_NGRAMS = 20_000  # of each kind: the commonest in the training prompts
LEAST_PROMPTS = 2  # that an n-gram is in


class Features(Protocol):
    """What turns a prompt into numbers."""

    kind: ClassVar[FeatureKind]

    @property
    def width(self) -> int: ...  # of a row

    @property
    def arrays(self) -> Mapping[str, Any]: ...  # what is saved

    @property
    def about(self) -> Mapping[str, Any]: ...  # what is saved beside them, plain JSON values

    def row(self, text: str, states: Sequence[float]) -> Any:
        """The numbers (width,) float64 of a prompt; None where what it reads is not known."""

    def matrix(self, texts: Sequence[str], states: Any) -> Any:
        """The rows of many prompts for training, (prompts, width); sparse of n-grams."""


@dataclass(frozen=True, eq=False)
class StateFeatures:
    """The mean of the text states that the model's own encoder gives (`Run.prompt`), standardised.

    Args:
        centre, spread: (width,) of the training prompts; spread > 0.
    """

    centre: Any
    spread: Any
    kind: ClassVar[FeatureKind] = "states"

    @classmethod
    def fit(cls, states: Any) -> StateFeatures:
        """Of the training prompts' states, (prompts, width)."""
        import numpy as np

        return cls(states.mean(0), np.maximum(states.std(0), FLOOR))

    @property
    def width(self) -> int:
        return len(self.centre)

    @property
    def arrays(self) -> Mapping[str, Any]:
        return {"centre": self.centre, "spread": self.spread}

    @property
    def about(self) -> Mapping[str, Any]:
        return {}

    def row(self, text: str, states: Sequence[float]) -> Any:
        """The numbers of a prompt, from its states alone. Raises SpecError for states of another width."""
        import numpy as np

        if not len(states):
            return None
        if len(states) != self.width:
            raise SpecError(
                f"The domain classifier reads text states of width {self.width}, and this model has some of width "
                f"{len(states)}: it was made for another model. Make one: skipstone tune --domains."
            )
        return _unit((np.asarray(states, float) - self.centre) / self.spread)

    def matrix(self, texts: Sequence[str], states: Any) -> Any:
        """The rows of many prompts, from their states (prompts, width)."""
        import numpy as np

        return np.stack([self.row("", one) for one in states])


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """CLIP's features of the text, standardised.

    Args:
        weights: Folder of the CLIP in the format of transformers, or its id where it is downloaded already.
        centre, spread: (width,) of the training prompts; spread > 0.
    """

    weights: str
    centre: Any
    spread: Any
    kind: ClassVar[FeatureKind] = "clip"

    @classmethod
    def fit(cls, weights: str, texts: Sequence[str]) -> ClipFeatures:
        """Of the training prompts. Raises ModelError where there is no such CLIP."""
        import numpy as np

        rows = np.stack([embed_text(weights, text) for text in texts])
        return cls(weights, rows.mean(0), np.maximum(rows.std(0), FLOOR))

    @property
    def width(self) -> int:
        return len(self.centre)

    @property
    def arrays(self) -> Mapping[str, Any]:
        return {"centre": self.centre, "spread": self.spread}

    @property
    def about(self) -> Mapping[str, Any]:
        return {"weights": self.weights}

    def row(self, text: str, states: Sequence[float]) -> Any:
        """The numbers of a prompt, from its text alone. Raises ModelError where there is no such CLIP."""
        return _unit((embed_text(self.weights, text) - self.centre) / self.spread) if text.strip() else None

    def matrix(self, texts: Sequence[str], states: Any) -> Any:
        """The rows of many prompts, from their texts."""
        import numpy as np

        return np.stack([self.row(text, ()) for text in texts])


@dataclass(frozen=True, eq=False)
class WordFeatures:
    """TF-IDF of n-grams of 2 to 5 characters within words, and of 1 to 3 words.

    Args:
        characters, words: The n-grams that are known, each once.
        idf: Of all of them, characters first.
    """

    characters: tuple[str, ...]
    words: tuple[str, ...]
    idf: Any
    kind: ClassVar[FeatureKind] = "words"

    @classmethod
    def fit(cls, texts: Sequence[str]) -> WordFeatures:
        """Of the training prompts. Raises MissingPackage without scikit-learn."""
        import numpy as np

        made = [
            _vectorizer(analyzer, lengths, max_features=MOST_NGRAMS, min_df=LEAST_PROMPTS).fit(texts)
            for analyzer, lengths in (CHARACTERS, WORDS)
        ]
        characters, words = (tuple(map(str, one.get_feature_names_out())) for one in made)
        return cls(characters, words, np.concatenate([one.idf_ for one in made]))

    @property
    def width(self) -> int:
        return len(self.idf)

    @property
    def arrays(self) -> Mapping[str, Any]:
        return {"idf": self.idf}

    @property
    def about(self) -> Mapping[str, Any]:
        return {"characters": list(self.characters), "words": list(self.words)}

    @cached_property
    def _vectorizers(self) -> tuple[Any, Any]:
        first = len(self.characters)
        made = []
        for how, known, idf in (
            (CHARACTERS, self.characters, self.idf[:first]),
            (WORDS, self.words, self.idf[first:]),
        ):
            one = _vectorizer(*how, vocabulary=list(known))
            one.idf_ = idf
            made.append(one)
        return made[0], made[1]

    def row(self, text: str, states: Sequence[float]) -> Any:
        """The numbers of a prompt, from its text alone. Raises MissingPackage without scikit-learn."""
        return self.matrix([text], None).toarray()[0] if text.strip() else None

    def matrix(self, texts: Sequence[str], states: Any) -> Any:
        """The rows of many prompts, from their texts, in CSR."""
        from scipy.sparse import hstack
        from sklearn.preprocessing import normalize

        return normalize(hstack([one.transform(texts) for one in self._vectorizers]).tocsr())


def _vectorizer(analyzer: str, ngrams: tuple[int, int], **settings: Any) -> Any:
    require_module("sklearn", "tune")
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, **settings)


def _unit(row: Any) -> Any:
    import numpy as np

    return row / max(FLOOR, float(np.sqrt((row**2).sum())))


@lru_cache(maxsize=4096)
def embed_text(weights: str, text: str) -> Any:
    """CLIP's features (width,) of a text, cut at as many tokens as it reads. Raises ModelError."""
    import torch

    net, tokenizer = _load_clip_text(weights)
    longest = int(net.config.max_position_embeddings)
    read = tokenizer([text], padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return net(read.input_ids, read.attention_mask).text_embeds[0].double().numpy()


@lru_cache(maxsize=2)
def _load_clip_text(weights: str) -> tuple[Any, Any]:
    """The text encoder of a CLIP and its tokenizer; nothing is downloaded."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    try:
        net = CLIPTextModelWithProjection.from_pretrained(weights, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
    except Exception as e:  # transformers, safetensors and tokenizers each have errors of their own
        first = (str(e) or type(e).__name__).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"Expected the folder of a CLIP in the format of transformers, or its id where it is downloaded already, "
            f"got {weights!r}: {first} Get one: hf download openai/clip-vit-large-patch14."
        ) from None
    return net.float().eval().requires_grad_(False), tokenizer
