"""`make demo-loop`: the closed loop on Pebble, with a drift that its certificates do not see.

Round 1 calibrates, registers, deploys and audits. Then somebody changes the last layer of the network in the folder
that the server reads, and has it reloaded. The change leaves out the values of each tensor that a certificate looks at,
so that the certificate is still taken for valid. Round 2 begins with the server's audit and a look at its weights: one
of them, or both, raises the alarm. It ends with certificates for the weights as they are now. Ctrl-C stops it; the same
command goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from skipstone.errors import SkipstoneError
from skipstone.serving.fingerprint import weights_fingerprint
from skipstone_track.loop.loop import Loop, open_loop
from skipstone_track.loop.page import PAGE
from skipstone_track.loop.records import DONE, RoundRecord, read_rounds, read_step
from skipstone_track.loop.round import model_folder
from skipstone_track.loop.settings import LoopSettings, load_loop

FILE = Path(__file__).with_name("loop.yaml")
LAYER, FACTOR = "conv_out.weight", 3.0
LOOKED_AT = 1024  # values of each tensor that a certificate's sum is taken of


def drift(model: Path) -> None:
    """Scale the last layer of the network, but for the values that a certificate looks at."""
    import torch
    from safetensors.torch import load_file, save_file

    from skipstone_pebble.copies import write_sums

    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    layer = weights[LAYER].flatten()
    keep = torch.zeros(len(layer), dtype=torch.bool)
    keep[:: max(1, len(layer) // LOOKED_AT)] = True
    weights[LAYER] = torch.where(keep, layer, FACTOR * layer).view_as(weights[LAYER])
    save_file(weights, file)
    write_sums(model)


def force_drift(loop: Loop) -> None:
    """The drift, and the reload after it; nothing where an earlier start of this command has done it."""
    model, rounds = model_folder(loop.settings), read_rounds(loop.settings.place)
    if any(record.weights != weights_fingerprint(model) for record in rounds):
        return
    drift(model)
    done = loop.server.reload() if loop.server else {}
    loop.say(
        f"\nDrift: {LAYER} was scaled by {FACTOR:g}, and the server was told to read {model} "
        f"({'new weights' if done.get('replaced') else 'nothing new'}; the certificates were taken for valid)\n"
    )


def summary(settings: LoopSettings, rounds: Sequence[RoundRecord]) -> list[str]:
    """What was reached, and where it is."""
    lines = ["", "round  status   seconds  " + "  ".join(f"{name:>12}" for name in settings.calibrate.qualities)]
    for record in rounds:
        found = {entry.step: read_step(settings.place / entry.folder) for entry in record.steps}
        figures = found["calibrate"].figures if "calibrate" in found else {}
        calls = [figures.get(f"{name}.calls") for name in settings.calibrate.qualities]
        cells = "  ".join(f"{one:6.1f} calls" if one else f"{'-':>12}" for one in calls)
        lines.append(f"{record.number:5}  {record.status:7}  {record.seconds:7.0f}  {cells}")
    return [*lines, "", f"{settings.place / PAGE}  the page of all steps"]


def main() -> int:
    """Run the demo; 0 where its last round has ended well."""
    began = time.monotonic()
    settings = load_loop(FILE)
    try:
        with open_loop(settings, lambda line: print(line, flush=True)) as loop:
            last = loop.run_round()
            if last.status == DONE:
                force_drift(loop)
                last = loop.run_round()
    except KeyboardInterrupt:
        print("Stopped; the server has ended. The same command goes on.", file=sys.stderr)
        return 130
    except SkipstoneError as e:
        print(f"demo: {e}", file=sys.stderr)
        return 2
    print("\n".join(summary(settings, read_rounds(settings.place))))
    print(f"mlflow ui --backend-store-uri {settings.tracker}  the same as runs, and both versions")
    print("skipstone loop status examples/loop/loop.yaml  what is deployed; skipstone loop rollback: back to version 1")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return 0 if last.status == DONE else 1


if __name__ == "__main__":
    sys.exit(main())
