"""Learned metrics: the arithmetic against other implementations, and what is said of missing files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from skipstone.errors import MetricError, SpecError
from skipstone.metrics import FID, FVD, KID, LPIPS, ClipScore, Sample, metrics_available
from skipstone.metrics.lpips import BACKBONES, build_backbone, find_heads
from skipstone.metrics.sets import frechet_distance, kernel_distance, uint8_batches
from skipstone.metrics.weights import Weights

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")
DATA = Path(os.environ.get("SKIPSTONE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
RNG = np.random.default_rng(5)
PICTURE = RNG.random((64, 64, 3))
NOISE = RNG.standard_normal(PICTURE.shape)
# Of the heads v0.1 in the authors' repository, github.com/richzhang/PerceptualSimilarity.
HEADS = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
# Of torchvision's networks without their classifiers: 61,100,840 - 58,631,144 and so on.
PARAMETERS = {"alex": 2_469_696, "squeeze": 722_496, "vgg": 14_714_688}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody has put any weights."""
    monkeypatch.delenv("SKIPSTONE_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def random_backbone(net: str, path: Path) -> Path:
    torch.manual_seed(3)
    torch.save({f"features.{key}": v for key, v in build_backbone(net).state_dict().items()}, path)
    return path


def noisy(amount: float) -> np.ndarray:
    return np.clip(PICTURE + amount * NOISE, 0, 1)


# -- LPIPS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_is_that_of_torchmetrics(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    path = random_backbone(net, tmp_path / "backbone.pth")

    def backbone(*_: object, **__: object) -> object:
        layers = build_backbone(net)
        layers.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(path, weights_only=True).items()})
        return layers

    monkeypatch.setattr(theirs, "_get_tv_model_features", backbone)  # theirs would import torchvision and download
    ours, reference = (torch.from_numpy(a).float().permute(2, 0, 1)[None] for a in (noisy(0.2), PICTURE))
    expected = float(theirs._LPIPS(net=net)(ours, reference, normalize=True))
    metric = LPIPS(net, weights=str(path))
    assert metric.measure(Sample(noisy(0.2), reference=PICTURE)) == pytest.approx(expected, rel=1e-4)
    assert metric.measure(Sample(PICTURE, reference=noisy(0.2))) == pytest.approx(expected, rel=1e-4)
    assert metric.measure(Sample(PICTURE, reference=PICTURE)) == 0.0
    grown = [metric.measure(Sample(noisy(a), reference=PICTURE)) for a in (0.02, 0.1, 0.4)]
    assert 0 < grown[0] < grown[1] < grown[2]
    video = Sample(np.stack([noisy(0.02), noisy(0.4)]), reference=np.stack([PICTURE, PICTURE]))
    assert metric.measure(video) == pytest.approx((grown[0] + grown[2]) / 2, rel=1e-4)


@pytest.mark.parametrize("net", HEADS)
def test_the_networks_have_the_published_sizes_and_the_published_heads(net: str) -> None:
    assert hashlib.sha256(find_heads(net).read_bytes()).hexdigest() == HEADS[net]
    assert sum(p.numel() for p in build_backbone(net).parameters()) == PARAMETERS[net]


def test_fire_computes_what_a_trained_squeezenet_does() -> None:
    """Real weights, of version 1.0: its blocks are those of 1.1, and its features were recorded elsewhere."""
    folder = DATA / "weights_squeezenet10"
    if not folder.exists():
        pytest.skip("not ours to ship: set SKIPSTONE_DATA to a folder with weights_squeezenet10")
    from skipstone.metrics.squeezenet import Fire

    arrays = np.load(folder / "squeezenet10_decoded_fp32.npz")
    recorded = np.load(folder / "reference_io.npz")
    sizes = [(96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192)]
    sizes += [(384, 64, 256), (512, 64, 256)]
    weights = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    names = {"squeeze": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"}
    pool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
    x = torch.from_numpy(recorded["input_bgr"].astype(np.float32))
    x = pool(torch.nn.functional.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], stride=2).relu())
    for number, size in enumerate(sizes, 2):
        fire = Fire(*size)
        parts = {key: key.split(".") for key in fire.state_dict()}
        fire.load_state_dict({key: weights[f"fire{number}/{names[a]}.{b}"] for key, (a, b) in parts.items()})
        with torch.no_grad():
            x = pool(fire(x)) if number in (4, 8) else fire(x)
    pooled = x.mean((2, 3)).numpy()
    assert np.abs(pooled - recorded["pooled_fire9"]).max() < 1e-2 * np.abs(pooled).max()  # its input is in halves


# -- what is missing -----------------------------------------------------------------------------


def test_missing_weights_say_which_file_and_where() -> None:
    sample = Sample(PICTURE, reference=PICTURE)
    with pytest.raises(MetricError, match=r"alexnet-owt-7be5be79\.pth in \$SKIPSTONE_WEIGHTS \(not set\).*https://"):
        LPIPS().measure(sample)
    with pytest.raises(MetricError, match=r"in /nowhere, found none.*lpips\(weights='path/to/squeezenet1_1"):
        LPIPS("squeeze", weights="/nowhere").measure(sample)
    with pytest.raises(MetricError, match=r"fid: .*weights-inception-2015-12-05-6726825d\.pth"):
        FID().measure([PICTURE] * 2, ["", ""], [PICTURE] * 2)
    with pytest.raises(MetricError, match="clip_score: expected the folder clip-vit-base-patch16"):
        ClipScore().measure([PICTURE], ["a cat"], [])
    with pytest.raises(MetricError, match=r"fvd: expected the file i3d_torchscript\.pt"):
        FVD().measure([PICTURE[None]] * 2, ["", ""], [PICTURE[None]] * 2)
    with pytest.raises(SpecError, match="net among alex, squeeze, vgg"):
        LPIPS("resnet")


def test_files_that_are_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(PICTURE, reference=PICTURE)
    random_backbone("squeeze", tmp_path / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("SKIPSTONE_WEIGHTS", str(tmp_path))
    with pytest.raises(MetricError, match="SHA-256 does not begin with b8a52dc0"):
        LPIPS("squeeze").measure(sample)
    with pytest.raises(MetricError, match="not torchvision's weights of the net 'alex'"):
        LPIPS("alex", weights=str(random_backbone("squeeze", tmp_path / "other.pth"))).measure(sample)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(MetricError, match="not torchvision's weights"):
        LPIPS(weights=str(tmp_path / "text.pth")).measure(sample)
    with pytest.raises(MetricError, match="cannot be loaded"):
        FVD(str(tmp_path / "text.pth")).measure([PICTURE[None]] * 2, ["", ""], [PICTURE[None]] * 2)


def test_a_bench_is_told_what_can_be_measured_and_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, video = metrics_available(judge=True), metrics_available(latents=False, is_video=True)
    assert [m.name for m in plain.metrics] == ["cost", "judge", "latent_error", "psnr", "ssim"]
    assert not plain.sets
    assert [name for name, why in plain.absent if "expected the f" in why] == ["clip_score", "fid", "kid", "lpips"]
    assert {"frame_psnr", "frame_psnr_worst", "frame_ssim", "frame_ssim_worst"} <= {m.name for m in video.metrics}
    absent = dict(video.absent)
    assert set(absent) == {"fvd", "judge", "latent_error", "lpips"}
    assert "no judge" in absent["judge"]
    monkeypatch.setitem(BACKBONES, "squeeze", Weights(("mine.pth",), "nowhere"))
    random_backbone("squeeze", tmp_path / "mine.pth")
    monkeypatch.setenv("SKIPSTONE_WEIGHTS", str(tmp_path))
    assert LPIPS("squeeze") in metrics_available().metrics  # the first net whose file is there


# -- sets ----------------------------------------------------------------------------------------


class Means(torch.nn.Module):
    """A feature network of five numbers, all of which differ between pictures."""

    def forward(self, images: object) -> object:
        x = images.double() / 255  # type: ignore[attr-defined]
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat[:, :2].square().mean(2)], 1)


def two_sets(*shape: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    eight = RNG.integers(0, 256, (30, *shape, 3)) / 255
    return list(eight[:14]), list(eight[14:] ** 2)


def closed_form(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians, by another root of the product than torchmetrics takes."""
    from scipy.linalg import sqrtm

    first, second = np.cov(a.T), np.cov(b.T)
    root = sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def seen(network: object, pictures: list[np.ndarray]) -> np.ndarray:
    batch = torch.from_numpy(np.rint(np.stack(pictures) * 255).astype(np.uint8)).movedim(-1, 1)
    return np.asarray(network(batch))  # type: ignore[operator]


def test_frechet_and_kernel_distances_are_their_formulas() -> None:
    network, (ours, theirs) = Means(), two_sets(6, 6)
    a, b = seen(network, ours), seen(network, theirs)
    assert frechet_distance(network, ours, theirs) == pytest.approx(closed_form(a, b), rel=1e-6)
    assert frechet_distance(network, ours, ours) == pytest.approx(0, abs=1e-9)

    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        k = (x @ y.T / x.shape[1] + 1) ** 3
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)) if same else k.mean())

    theirs = theirs[: len(ours)]
    b = b[: len(ours)]
    assert kernel_distance(network, ours, theirs) == pytest.approx(
        mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    )
    assert kernel_distance(network, ours, theirs) == kernel_distance(network, ours[::-1], theirs)


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(MetricError, match="two or more on both sides, got 1, 2"):
        KID().measure([PICTURE], [""], [PICTURE] * 2)
    with pytest.raises(MetricError, match=r"fid: expected pictures .* got \(1, 64, 64, 3\)"):
        FID().measure([PICTURE[None]] * 2, ["", ""], [PICTURE] * 2)
    with pytest.raises(MetricError, match="one prompt a picture, got 1 for 2"):
        ClipScore().measure([PICTURE] * 2, [""], [])


class TinyI3D(torch.nn.Module):
    """What FVD calls the published network with, and features that see brightness, contrast and motion."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        if x.shape[2] < 4:
            raise RuntimeError("kernel size is greater than the number of frames")
        x = x / 255
        motion = (x[:, :, 1:] - x[:, :, :-1]).flatten(1).square().mean(1)
        return torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1), motion], 1)


def test_fvd_is_the_frechet_distance_of_a_users_network(tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(TinyI3D()).save(str(path))
    ours, theirs = two_sets(6, 5, 5)
    metric, prompts = FVD(str(path)), [""] * len(ours)

    def network(batch: torch.Tensor) -> torch.Tensor:
        return TinyI3D()(batch.float(), True, True, True)

    expected = closed_form(seen(network, ours), seen(network, theirs))
    assert metric.measure(ours, prompts, theirs) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(MetricError, match=r"cannot read videos of \(3, 5, 5, 3\).*number of frames"):
        metric.measure([v[:3] for v in ours], prompts, theirs)
    with pytest.raises(MetricError, match="expected videos"):
        metric.measure([v[0] for v in ours], prompts, theirs)


def test_clip_score_is_a_hundred_cosines(tmp_path: Path) -> None:
    import json

    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    torch.manual_seed(1)
    net = CLIPModel(
        CLIPConfig(
            text_config={**size, **ends}, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=8
        )
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    prompts = ["a cat", "a red dog", "e " * 100]  # the last is cut to 77 tokens, the last of them the end
    pictures = [RNG.random((40, 40, 3)) ** (k + 1) for k in range(3)]
    eight = [torch.from_numpy(np.rint(p * 255).astype(np.uint8)).permute(2, 0, 1) for p in pictures]
    cut = {"truncation": True, "max_length": 77, "padding": True, "return_tensors": "pt"}
    inputs = CLIPProcessor(images, tokenizer)(text=prompts, images=eight, **cut)
    with torch.no_grad():
        out = net(**inputs)
        cosines = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        net.text_projection.weight *= cosines.mean().sign()  # a negative mean would be reported as 0
    net.save_pretrained(tmp_path)
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path)
    expected = 100 * abs(float(cosines.mean()))
    assert expected > 1
    assert ClipScore(str(tmp_path)).measure(pictures, prompts, []) == pytest.approx(expected, rel=1e-3)


def test_pictures_of_8_bits_are_taken_as_such() -> None:
    bits = np.rint(PICTURE * 255).astype(np.uint8)
    [[floats], [as_they_are]] = (list(uint8_batches([one, one], 2)) for one in (PICTURE, bits))
    assert torch.equal(floats, as_they_are)
