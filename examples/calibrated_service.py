"""A service that keeps a promised quality: python examples/calibrated_service.py --prompts prompts.txt

At its first start it calibrates, and keeps the policy with its certificate in a folder. Then it answers
http://127.0.0.1:8000/?prompt=a+red+apple with a picture; the header X-Network-Calls says what it cost.
"""

import argparse
import io
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import torch
from diffusers import DiffusionPipeline

import skipstone


class Handler(BaseHTTPRequestHandler):
    """One request after the other: a pipeline draws one batch at a time."""

    pipe: DiffusionPipeline
    policy: skipstone.Policy
    steps: int

    def do_GET(self) -> None:
        prompt = parse_qs(urlparse(self.path).query).get("prompt", [""])[0]
        if not prompt:
            self.send_error(400, "Expected a prompt: /?prompt=a+red+apple")
            return
        # uncovered="error" refuses what the certificate does not cover, in place of a warning.
        with skipstone.adapt(self.pipe, self.policy, uncovered="error") as adapted:
            image = self.pipe(
                prompt, num_inference_steps=self.steps, generator=torch.Generator().manual_seed(0)
            ).images[0]
        picture = io.BytesIO()
        image.save(picture, "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("X-Network-Calls", f"{adapted.last.calls:g}")
        self.end_headers()
        self.wfile.write(picture.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="stabilityai/stable-diffusion-xl-base-1.0")
    parser.add_argument("--prompts", required=True, help="a file with prompts of your users, a line each")
    parser.add_argument("--target", default="psnr >= 30 @ 90%")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", default="promised", help="where policy and certificate are kept")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    asked = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(asked.model)
    pipe.set_progress_bar_config(disable=True)
    if not Path(asked.folder).exists():
        prompts = Path(asked.prompts).read_text(encoding="utf-8").splitlines()
        options = skipstone.CalibrationOptions(steps=asked.steps)
        skipstone.calibrate(pipe, prompts, asked.target, options=options).save_pretrained(asked.folder)
    Handler.pipe, Handler.steps = pipe, asked.steps
    Handler.policy = skipstone.load_policy(asked.folder, pipe)  # refused where it was made for another model
    server = HTTPServer(("127.0.0.1", asked.port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
