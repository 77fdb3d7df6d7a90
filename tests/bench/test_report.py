"""The report of a benchmark that was made up: every row is there, nothing is fetched, and a browser can read it."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from skipstone.bench.store import Header, Record, RowInfo, Store, Timing

FULL, SOLUTION = "fixed @ dpmpp / trailing / 50", "fixed @ dpmpp / trailing / 400"
MISSING = RowInfo("fbcache @ dpmpp", "fbcache", "peer", "first-block cache", note="not applicable: <a UNet> has no blocks")


def dot(seed: int, blur: float) -> bytes:
    """A picture of 32 pixels: a coloured disc that an error softens."""
    rng = np.random.default_rng(seed)
    (cx, cy), colour = rng.uniform(8, 24, 2), rng.uniform(0, 1, 3)
    y, x = np.mgrid[:32, :32]
    inside = 1 / (1 + np.exp((np.hypot(x - cx, y - cy) - 6) / (0.4 + blur)))[..., None]
    pixels = 0.9 * (1 - inside) + inside * colour
    buffer = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def lineup() -> dict[RowInfo, tuple[float, float, float]]:
    """Row -> calls, dB above what a fixed sampler reaches with as many, cost of a call."""
    rows = {RowInfo(FULL, "full run", "full", "full run", steps=50): (50.0, 0.0, 1.0)}
    for n in (10, 15, 20, 25):
        fixed = RowInfo(f"fixed @ unipc / trailing / {n}", f"unipc, {n} steps", "fixed", "best fixed sampler", f"{n}", n)
        blind = RowInfo(f"interval(every={50 // n}, warmup={n // 5}) @ dpmpp", f"every {50 // n}", "mask", "blind mask", f"{n}", 50)
        ours = RowInfo(f"error_control(tol={n}) @ dpmpp", f"tol={n}", "ours", "error_control", f"tol={n}", 50)
        cache = RowInfo(f"deepcache(interval={60 // n}) @ dpmpp", "deepcache", "peer", "deepcache", f"{60 // n}", 50)
        rows |= {fixed: (n, 0.0, 1.0), blind: (n, 1.0, 1.0), ours: (n - 0.5, 3.0, 1.0), cache: (50.0, -8.0, 0.4 + n / 50)}
    rows[RowInfo("third_order_released @ ddim", "AdaptiveDiffusion", "mask", "AdaptiveDiffusion")] = (23.0, -6.0, 1.0)
    return rows


def make(folder: Path, prompts: int = 12) -> Store:
    """A folder of results: `ours` is 3 dB above the fixed samplers by construction, and spends more on crowded prompts."""
    rows, rng = lineup(), np.random.default_rng(0)
    header = Header(
        "0.1", "made-up", {"weights": "0"}, 4.0, {}, FULL, (SOLUTION, "fixed @ unipc / trailing / 400"), "a test", "2026-01-01",
        "skipstone bench", {"set": "dots", "count": prompts, "seeds": 1}, (*rows, MISSING),
        {"median": 80.0, "worst": 61.0}, {"budget": [10, 15, 20, 25]},
    )  # fmt: skip
    store = Store.create(folder, header)
    luck, lines = rng.normal(0, 3, prompts), []
    for row, (calls, gain, cost) in rows.items():
        for i in range(prompts):
            crowded = i % 2
            spent = calls + (0.5 if crowded else -0.5) * (row.group == "ours")
            psnr = 25 + 12 * np.log2(calls * cost / 8) / 1.3 + gain + luck[i] * (0.5 if row.group == "ours" else 1.0)
            psnr += rng.normal(0, 0.3)
            whole = row.group == "full"
            picture = f"pictures/{zlib.crc32(row.spec.encode())}/{i}.png"
            store.write(picture, dot(i, 10 ** (-psnr / 20) * 20))
            values = {
                "psnr_full": 99.0 if whole else psnr + 1, "psnr_converged": psnr, "ssim_full": 1 - 10 ** (-psnr / 12),
                "ssim_converged": 1 - 10 ** (-psnr / 13), "latent_converged": 10 ** (-psnr / 20),
                "judge": 0.9 + 0.02 * rng.normal(),
            }  # fmt: skip
            prompt = "a red disc beside a blue disc" if crowded else "a red disc"
            letters = "".join("C" if k % max(1, round(50 / calls)) == 0 else "." for k in range(50))
            lines.append(
                Record(
                    row.spec, f"p{i}:0", prompt, f"p{i}", "pair" if crowded else "single", 0, spent, spent, spent,
                    spent * cost * 1e9, spent * cost, values, "" if row.group == "peer" else letters, "done", picture, whole,
                )  # fmt: skip
            )
        store.append(*(Timing(row.spec, k, 1, calls * cost * (1 + k / 100), 50.0, 2**30) for k in range(3)))
    order = rng.permutation(len(lines))  # a report joins by id, whatever the order of the file
    store.append(*(lines[k] for k in order))
    for i in range(prompts):
        store.write(f"pictures/converged/{i}.png", dot(i, 0.0))
    return store
