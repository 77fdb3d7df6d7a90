"""What the judge's readings mean, on made-up readings and a judge of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skipstone.errors import ModelError, PromptError
from skipstone_pebble.judge import Judge, JudgeNetwork, JudgeReading, check_facts, target_classes
from skipstone_pebble.recipe import judge_train
from skipstone_pebble.recipe.trainer import TrainingArguments
from skipstone_pebble.scenes import Scene

PAIR = JudgeReading(("cat", "rocket"), ("left", "right"), "yellow", "normal", 0.9)


def test_facts_of_two_objects() -> None:
    assert check_facts(PAIR, "a cat left of a rocket on a yellow background") == {
        "first": True,
        "second": True,
        "relation": True,
        "background": True,
    }
    assert all(check_facts(PAIR, "a rocket right of a cat on a yellow background").values())
    swapped = check_facts(PAIR, "a cat right of a rocket")
    assert swapped == {"first": True, "second": True, "relation": False}
    assert not check_facts(PAIR, "a cat above a rocket")["relation"]
    assert check_facts(PAIR, "a dog left of a rocket on a red background") == {
        "first": False,
        "second": True,
        "relation": False,
        "background": False,
    }


def test_facts_of_one_object() -> None:
    one = JudgeReading(("cat",), ("centre",), "blue", "large", 0.9)
    assert check_facts(one, "a large cat on a blue background") == {"object": True, "size": True, "background": True}
    assert check_facts(one, "a small cat") == {"object": True, "size": False}
    assert check_facts(one, "a cat") == {"object": True}, "no size word: any size will do"
    assert check_facts(PAIR, "a cat") == {"object": False}, "two objects are not one"


def test_a_prompt_outside_the_grammar_cannot_be_scored() -> None:
    with pytest.raises(PromptError, match="zebra"):
        check_facts(PAIR, "a zebra")


def test_answers_do_not_depend_on_which_object_is_told_first() -> None:
    for relation in ("left of", "right of", "above", "below"):
        scene = Scene(("cat", "dog"), relation, "red")
        assert target_classes(scene) == target_classes(scene.mirror())
    assert target_classes(Scene(("cat", "dog"), "left of", "red")) != target_classes(
        Scene(("dog", "cat"), "left of", "red")
    )


def test_reading_takes_arrays_of_either_kind_and_refuses_other_shapes() -> None:
    torch.manual_seed(0)
    judge = Judge(JudgeNetwork())
    bytes_ = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    assert judge.read(bytes_) == judge.read(bytes_.astype(np.float64) / 255)
    assert judge.read([]) == []
    with pytest.raises(ValueError, match="64 x 64"):
        judge.read(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="one prompt"):
        judge.score(bytes_, ["a cat"])


def test_score_is_the_fraction_of_facts_kept(monkeypatch) -> None:
    judge = Judge(JudgeNetwork())
    monkeypatch.setattr(judge, "read", lambda images: [PAIR] * len(images))
    images = np.zeros((2, 64, 64, 3), np.uint8)
    prompts = ["a cat left of a rocket on a yellow background", "a dog left of a rocket on a red background"]
    assert judge.score(images, prompts) == [1.0, 0.25]


def test_damaged_weights_are_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "judge.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="judge"):
        Judge.load(tmp_path / "judge.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="other"):
        Judge.load(tmp_path / "other.safetensors")


def test_training_and_test_layouts_do_not_meet(discs) -> None:
    rng = np.random.default_rng(0)
    scenes = [judge_train.draw_any_scene(rng) for _ in range(600)]
    train = {(scene.relation is None, judge_train.draw_layout(rng, scene, False)) for scene in scenes}
    test = {(scene.relation is None, judge_train.draw_layout(rng, scene, True)) for scene in scenes}
    assert len(test) > 50
    assert not train & test


def test_a_judge_learns_backgrounds_in_a_few_steps(discs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = JudgeNetwork()
    settings = judge_train.JudgeSettings(batch=32, coded=0.0)
    before = judge_train.evaluate_judge(Judge(reader), discs, 0, 100)["background"]
    trainer = judge_train.JudgeTrainer(
        reader, discs, settings, TrainingArguments(tmp_path, steps=40, decay=10, warmup=5), None
    )
    trainer.train()
    reader.eval()
    after = judge_train.evaluate_judge(Judge(reader), discs, 0, 100)["background"]
    assert after > max(0.6, before + 0.3)
