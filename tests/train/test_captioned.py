"""Students of captioned pictures: what is read, how it is encoded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations.guest.families import build
from PIL import Image

from skipstone.errors import PromptError, SkipstoneError, SpecError
from skipstone.policies.student import StudentCard
from skipstone_train.students import captioned
from skipstone_train.students.captioned import encode_pictures, picture_size, read_captions
from skipstone_train.students.distill import distill
from skipstone_train.students.settings import DistillSettings
from skipstone_train.students.teacher import Teacher

SMALL = DistillSettings(
    method="consistency", steps=2, fine_steps=4, guidance=3.0, rank=2, batch=4, train_steps=2, precision="no"
)


def paint(folder: Path, name: str, size: tuple[int, int] = (48, 40)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "c.webp"):
        paint(tmp_path / "pictures", name).with_suffix(".txt").write_text(f"a picture, {name}\n")
    return tmp_path / "pictures"


def test_captions_are_read_from_files_and_from_tables(pictures: Path) -> None:
    from_files = read_captions(pictures)
    assert [path.name for path, _ in from_files] == ["a.png", "b.png", "c.webp"]
    assert from_files[1][1] == "a picture, b.png"
    lines = [{"file_name": path.name, "text": caption} for path, caption in from_files]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [caption for _, caption in read_captions(pictures)] == [caption for _, caption in from_files]
    (pictures / "metadata.jsonl").unlink()
    (pictures / "metadata.csv").write_text('file_name,text\nb.png,"one, two"\n')
    assert [(path.name, caption) for path, caption in read_captions(pictures)] == [("b.png", "one, two")]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_decoding_gives_what_the_autoencoder_makes_of_the_picture(
    family: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioned, "LEAST_PSNR", -100.0)  # the weights of this autoencoder are random
    pipe = build(family)
    teacher = Teacher.of(pipe)
    found = encode_pictures(teacher, read_captions(pictures), tmp_path / "cache")
    height, width = picture_size(teacher)
    with torch.no_grad():
        image = Image.open(pictures / "a.png").convert("RGB")
        pixels = pipe.image_processor.preprocess(image, height, width, resize_mode="crop")
        expected = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample
        # as the pipeline decodes: StableDiffusion3Pipeline alone adds the shift
        shift = pipe.vae.config.shift_factor if family == "sd3" else 0.0
        decoded = pipe.vae.decode(found.latents[:1] / pipe.vae.config.scaling_factor + (shift or 0.0)).sample
    assert torch.allclose(decoded, expected, atol=1e-5)
    assert (len(found), found.rows) == (3, 0)
    monkeypatch.setattr(pipe.vae, "encode", None)  # it is not encoded again
    assert torch.equal(encode_pictures(teacher, read_captions(pictures), tmp_path / "cache").latents, found.latents)


def test_a_student_of_pictures(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioned, "LEAST_PSNR", -100.0)
    out = distill(build("sd15"), pictures, "consistency", 2, out=tmp_path / "mine", settings=SMALL)
    training: Any = StudentCard.read(out).training
    assert (training["drawings"], training["drawing_rows"], training["steps"]) == (3, 0, 2)
    assert len((out / "seen_prompts.txt").read_text().split()) == 3


def test_an_encoder_that_was_not_trained_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a\.png: the teacher's autoencoder.* dB from it; expected at least 15 dB"):
        encode_pictures(Teacher.of(build("sd15")), read_captions(pictures), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "a.txt").unlink(), PromptError, r"a\.png: expected its caption in a\.txt"),
        (lambda f: (f / "a.txt").write_text(" \n"), PromptError, r"a\.png: expected a caption, got an empty one"),
        (lambda f: (f / "metadata.csv").write_text("name\nx"), PromptError, "row 1: expected file_name and text"),
        (lambda f: (f / "metadata.jsonl").write_text("{"), PromptError, "row 1: expected JSON"),
        (
            lambda f: (f / "metadata.jsonl").write_text(json.dumps({"file_name": "../a.png", "text": "x"})),
            PromptError,
            "row 1: expected a picture in the folder",
        ),
        (lambda f: [p.unlink() for p in f.iterdir()], SpecError, "expected pictures"),
    ],
)
def test_folders_that_cannot_be_read(change: Any, error: type[SkipstoneError], message: str, pictures: Path) -> None:
    change(pictures)
    with pytest.raises(error, match=message):
        read_captions(pictures)


def test_a_file_that_is_no_picture(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").write_bytes(b"no picture")
    with pytest.raises(SpecError, match=r"a\.png: expected a picture"):
        encode_pictures(Teacher.of(build("sd15")), read_captions(pictures), tmp_path)
    with pytest.raises(SpecError, match="expected a folder"):
        read_captions(tmp_path / "none")
