"""Domains of prompts: told apart by whole words, unknown where they should be, the same after loading."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from domain_prompts import OTHERS, STRANGE, TRAINING, TRAPS

from skipstone.errors import ModelError, PromptError, SpecError
from skipstone.evaluation.prompt import Prompt
from skipstone.policies.domains.classifier import CLASSIFIER_FILE, DomainClassifier, DomainGuess, Limits, softmax
from skipstone.policies.domains.features import StateFeatures
from skipstone.tuning.domains import fit
from skipstone.tuning.domains.fit import FitReport, HeldOut, Inputs, fit_classifier
from skipstone.tuning.domains.labelled import LEAST, check_labelled, read_labelled


@pytest.fixture(scope="module")
def words() -> tuple[DomainClassifier, FitReport]:
    return fit_classifier(Inputs(TRAINING))


def states_of(prompts: list[Prompt], width: int = 12) -> np.ndarray:
    """Clusters, one for each domain, as a text encoder might make them."""
    names = sorted({prompt.category for prompt in prompts})
    centres = np.random.default_rng(0).standard_normal((len(names), width))
    noise = np.random.default_rng(len(prompts)).standard_normal((len(prompts), width))
    return centres[[names.index(prompt.category) for prompt in prompts]] + 0.3 * noise


@pytest.fixture(scope="module")
def states() -> tuple[DomainClassifier, FitReport]:
    return fit_classifier(Inputs(TRAINING, states_of(TRAINING), "states"))


def test_prompts_with_other_things_are_of_their_domain(words: tuple[DomainClassifier, FitReport]) -> None:
    guesses = [words[0].classify(prompt.text) for prompt in OTHERS]
    assert np.mean([g.best == p.category for g, p in zip(guesses, OTHERS, strict=True)]) >= 0.9
    believed = [(g, p) for g, p in zip(guesses, OTHERS, strict=True) if g.domain]
    assert len(believed) >= 0.7 * len(OTHERS)
    assert np.mean([g.domain == p.category for g, p in believed]) >= 0.95


@pytest.mark.parametrize("text", TRAPS)
def test_a_word_inside_a_word_does_not_count(text: str, words: tuple[DomainClassifier, FitReport]) -> None:
    right, trap = TRAPS[text]
    assert any(trap == prompt.category for prompt in TRAINING)
    assert words[0].classify(text).best == right


@pytest.mark.parametrize("text", STRANGE)
def test_what_is_far_from_everything_is_of_no_domain(text: str, words: tuple[DomainClassifier, FitReport]) -> None:
    guess = words[0].classify(text)
    assert guess.domain == ""
    assert guess.best


def test_states_far_from_everything_are_of_no_domain(states: tuple[DomainClassifier, FitReport]) -> None:
    classifier, report = states
    assert report.accuracy > 0.95
    far = np.random.default_rng(5).standard_normal((50, 12)) * 20
    assert np.mean([classifier.classify("", tuple(one)).domain == "" for one in far]) > 0.8
    near = states_of(OTHERS)
    right = [classifier.classify("", tuple(s)).domain == p.category for s, p in zip(near, OTHERS, strict=True)]
    assert np.mean(right) > 0.85


def test_a_prompt_that_is_not_known_is_of_no_domain(
    words: tuple[DomainClassifier, FitReport], states: tuple[DomainClassifier, FitReport]
) -> None:
    for classifier, _ in (words, states):
        assert classifier.classify() == DomainGuess("")
    assert words[0].classify("  ") == DomainGuess("")
    assert states[0].classify("a cart full of pears") == DomainGuess("")  # it reads states alone


def test_states_of_another_model_are_refused(states: tuple[DomainClassifier, FitReport]) -> None:
    with pytest.raises(SpecError, match="width 12, and this model has some of width 3"):
        states[0].classify("", (1.0, 2.0, 3.0))


def test_predictions_are_the_same_after_loading(
    words: tuple[DomainClassifier, FitReport], states: tuple[DomainClassifier, FitReport], tmp_path: Path
) -> None:
    for kind, (classifier, _) in {"words": words, "states": states}.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / CLASSIFIER_FILE).write_bytes(classifier.to_bytes())
        loaded = DomainClassifier.load(folder)
        for prompt, state in zip(OTHERS, states_of(OTHERS), strict=True):
            mine, theirs = (one.classify(prompt.text, tuple(state)) for one in (classifier, loaded))
            assert mine == theirs
        assert loaded.to_bytes() == classifier.to_bytes()
        assert loaded.notes == classifier.notes


def test_a_binary_choice_keeps_both_rows() -> None:
    two = [prompt for prompt in TRAINING if prompt.category in ("art", "food")]
    classifier, report = fit_classifier(Inputs(two))
    assert classifier.weights.shape[0] == 2
    assert report.accuracy > 0.95
    assert classifier.classify("a bowl of signature soup beside pears").best == "food"
    assert classifier.classify("an oil painting of pears").best == "art"


def damaged(content: bytes) -> list[bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    said = json.loads(header["__metadata__"]["domains"])

    def again(**changes: object) -> bytes:
        head = {**header, "__metadata__": {"domains": json.dumps({**said, **changes})}}
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return [
        b"",
        content[:5],
        content[: len(content) // 2],
        content[:-1],
        b"\x80\x04" + content,
        again(format=2),
        again(kind="pickle"),
        again(domains=["a"]),
        again(domains=said["domains"][:-1]),
        again(domains=[""] * len(said["domains"])),
        again(temperature=0),
        again(temperature="1"),
        again(limits={"confidence": 2, "distance": 0}),
        again(limits={"confidence": 0.5}),
        again(features={}),
        again(features={"characters": ["a"], "words": []}),
    ]


@pytest.mark.parametrize("k", range(16))
def test_a_damaged_file_is_refused_in_a_sentence(
    k: int, words: tuple[DomainClassifier, FitReport], tmp_path: Path
) -> None:
    (tmp_path / CLASSIFIER_FILE).write_bytes(damaged(words[0].to_bytes())[k])
    with pytest.raises(SpecError, match=r"skipstone tune --domains"):
        DomainClassifier.load(tmp_path)


def test_no_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"found no .*domains\.safetensors"):
        DomainClassifier.load(tmp_path / "nowhere")


def test_arrays_that_do_not_fit_are_refused() -> None:
    features = StateFeatures(np.zeros(3), np.ones(3))
    with pytest.raises(SpecError, match="Expected arrays for 2 domains and 3 features"):
        DomainClassifier(("a", "b"), features, np.zeros((2, 4)), np.zeros(2), np.ones((1, 3)), 1.0, Limits(0, 1))


# -- Calibration -----------------------------------------------------------------------------------


def test_the_temperature_is_the_one_by_which_logits_were_sharpened() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((20_000, 4))
    labels = np.array([random.choice(4, p=p) for p in softmax(logits)])
    for sharpened in (0.5, 1.0, 4.0):
        assert fit.fit_temperature(sharpened * logits, labels) == pytest.approx(sharpened, rel=0.05)
    assert fit.calibration_error(softmax(logits), labels) < 0.02
    assert fit.calibration_error(softmax(4 * logits), labels) > 0.15


def test_the_calibration_error_of_one_who_is_always_sure_is_how_often_he_is_wrong() -> None:
    probabilities = np.tile([1.0, 0.0], (100, 1))
    labels = np.array([0] * 70 + [1] * 30)
    assert fit.calibration_error(probabilities, labels) == pytest.approx(0.3, abs=0.16)  # bins of equal count
    assert fit.calibration_error(probabilities, np.zeros(100, int)) == 0.0


def test_limits_keep_what_is_right_and_near() -> None:
    """The ten surest are right, the next ten wrong: a limit between them keeps no more than 5 % of wrong ones."""
    logits = np.array([[5.0 - 0.1 * k, 0.0] for k in range(10)] + [[1.0 - 0.05 * k, 0.0] for k in range(10)])
    labels = np.array([0] * 10 + [1] * 10)
    limits = fit.choose_limits(HeldOut(logits, np.linspace(0, 1, 20), labels), 1.0)
    assert limits.confidence == pytest.approx(float(softmax(logits[9:10]).max()))
    assert limits.distance == pytest.approx(0.95)
    never = fit.choose_limits(HeldOut(logits, np.zeros(20), 1 - labels), 1.0)
    assert never.confidence == 1.0


def test_the_report_counts_every_prompt(words: tuple[DomainClassifier, FitReport]) -> None:
    report = words[1]
    assert report.confusion.sum() == report.prompts == len(TRAINING) == len(report.guesses)
    assert report.accuracy == pytest.approx(np.trace(report.confusion) / report.prompts)
    assert json.loads(json.dumps(report.as_dict()))["domains"] == sorted({p.category for p in TRAINING})
    assert f"{report.accuracy:.1%}" in report.words


# -- CLIP ------------------------------------------------------------------------------------------


def test_features_of_a_clip_are_cut_and_remembered(tmp_path: Path) -> None:
    """A tiny CLIP with random weights: nothing to be right about, but all of its way is gone."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=len(tokens), projection_dim=8, max_position_embeddings=16, bos_token_id=0,
                       eos_token_id=1, pad_token_id=1, **sizes)
    )  # fmt: skip
    net.save_pretrained(tmp_path / "clip")
    CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[]).save_pretrained(tmp_path / "clip")
    some = [prompt for prompt in TRAINING if prompt.category in ("art", "space")][::4]
    classifier, _ = fit_classifier(Inputs(some, None, "clip", str(tmp_path / "clip")))
    (tmp_path / CLASSIFIER_FILE).write_bytes(classifier.to_bytes())
    loaded = DomainClassifier.load(tmp_path)
    for text in ("art of pears in oil on canvas", "z" * 500):
        assert loaded.classify(text) == classifier.classify(text)
        assert loaded.classify(text).best in ("art", "space")
    with pytest.raises(ModelError, match="Expected the folder of a CLIP"):
        fit_classifier(Inputs(some, None, "clip", str(tmp_path / "nothing")))


# -- Labelled prompts ------------------------------------------------------------------------------


def write(path: Path, rows: list[Prompt], column: str) -> Path:
    path.write_text("\n".join(json.dumps({"prompt": p.text, column: p.category}) for p in rows))
    return path


@pytest.mark.parametrize("column", ["domain", "label", "category"])
def test_a_file_with_a_column_and_a_folder_of_files_are_the_same(column: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", TRAINING, column)
    for domain in {p.category for p in TRAINING}:
        lines = [p.text for p in TRAINING if p.category == domain]
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{domain}.txt").write_text("\n".join(lines))
    of_file, of_folder = read_labelled(file), read_labelled(tmp_path / "folder")
    assert of_file.domains == of_folder.domains
    assert {(p.text, p.category) for p in of_file.prompts} == {(p.text, p.category) for p in of_folder.prompts}
    assert len(read_labelled(file, most=LEAST).prompts) == LEAST * len(of_file.domains)


def test_a_prompt_of_two_domains_is_of_none() -> None:
    twice = [*TRAINING, Prompt("x", TRAINING[0].text.upper(), "space"), Prompt("y", TRAINING[1].text, "photo")]
    found = check_labelled(twice, "here")
    assert found.dropped == 1
    assert len(found.prompts) == len(TRAINING) - 1


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([Prompt("a", "a cat")], "expected a domain for each prompt, got none for 'a cat'"),
        ([Prompt(str(k), f"a cat {k}", "cats") for k in range(30)], "expected 2 to 64 domains, got 1: cats"),
        ([Prompt(str(k), f"a cat {k}", "cats" if k else "dogs") for k in range(30)], "got 1 of 'dogs'"),
    ],
)
def test_too_little_to_learn_from_is_a_sentence(prompts: list[Prompt], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        check_labelled(prompts, "here")
