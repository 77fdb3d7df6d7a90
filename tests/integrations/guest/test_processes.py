"""Two processes compute one network: both decide alike, or both are refused by name, and neither waits for ever."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import skipstone
from skipstone.errors import GuestError
from skipstone.testing.guest import count_rows

from .families import FAMILIES, build
from .families.parts import import_since

WORLD, BATCH, STEPS = 2, 3, 12
# Each beside one that decides otherwise.
OTHERS = ("error_control(tol=0.03)", "stride(tol=0.02)")
SPECS = ("error_control(tol=0.05)", "stride(tol=0.05)")  # within the pipeline's steps, and by a takeover
PATIENCE = 60.0  # seconds until a process that waits for another gives up
Scenario = Callable[[int], Any]


def run(pipe: Any, seed: int = 0) -> torch.Tensor:
    inputs = FAMILIES["flux"].inputs(pipe, BATCH, STEPS)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(BATCH)]
    return pipe(**inputs | {"output_type": "latent", "generator": generators}).images


def adapted(pipe: Any, spec: str, seed: int = 0) -> tuple[list[str], torch.Tensor, int]:
    with skipstone.adapt(pipe, spec) as guest, count_rows(pipe) as counter:
        output = run(pipe, seed)
    return [sample.decisions for sample in guest.last], output, counter.rows


def refusal(pipe: Any, spec: str, seed: int = 0) -> str:
    """The message of a run that is refused; empty where it is not."""
    try:
        adapted(pipe, spec, seed)
    except GuestError as e:
        return str(e)
    return ""


def with_context_parallelism(rank: int) -> Any:
    """Runs of a FLUX whose tokens the processes share, and their differences to the FLUX of one process."""
    from diffusers import ContextParallelConfig

    pipe = build("flux")
    alone, alone_bare = [adapted(pipe, spec) for spec in SPECS], run(pipe)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by the number of accelerators
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=WORLD))
    bare = run(pipe)
    assert torch.equal(adapted(pipe, "fixed")[1], bare)
    together = [adapted(pipe, spec) for spec in SPECS]
    gaps = [float((a - b).norm() / b.norm()) for (_, a, _), (_, b, _) in zip(together, alone, strict=True)]
    gaps.append(float((bare - alone_bare).norm() / alone_bare.norm()))
    return {
        "decisions": [decisions for decisions, _, _ in together],
        "alone": [decisions for decisions, _, _ in alone],
        "outputs": [output.tolist() for _, output, _ in together],
        "rows": [rows for _, _, rows in together],
        "gaps": gaps,
        "refused": [refusal(pipe, spec) for spec in (SPECS, OTHERS)[rank]],
        "again": adapted(pipe, SPECS[0])[0],
    }


def with_sharded_weights(rank: int) -> Any:
    """Runs of a FLUX whose weights lie in all processes, each with samples of its own, and with the same ones."""
    from torch.distributed.fsdp import fully_shard

    pipe = build("flux")
    alone = adapted(pipe, SPECS[0])[0]
    fully_shard(pipe.transformer, mesh=distributed.init_device_mesh("cpu", (WORLD,)))
    return {"alone": alone, "same": adapted(pipe, SPECS[0])[0], "refused": refusal(pipe, SPECS[0], seed=100 * rank)}


def _process(scenario: Scenario, rank: int, folder: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        answers.put((rank, scenario(rank)))
    except Exception as e:  # to be raised in the test
        answers.put((rank, e))
    finally:
        distributed.destroy_process_group()


def in_processes(scenario: Scenario, folder: Path) -> list[Any]:
    """What a scenario returns in each of the processes, which have met."""
    context = multiprocessing.get_context("fork")  # which has imported everything
    answers = context.Queue()
    processes = [
        context.Process(target=_process, args=(scenario, rank, folder, answers), daemon=True) for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get(timeout=2 * PATIENCE) for _ in processes)
    finally:
        for process in processes:
            process.kill()
    for answer in found.values():
        if isinstance(answer, Exception):
            raise answer
    return [found[rank] for rank in range(WORLD)]


def test_context_parallelism(tmp_path: Path) -> None:
    import_since("ContextParallelConfig", "0.36")
    first, second = in_processes(with_context_parallelism, tmp_path)
    assert first["decisions"] == second["decisions"] == first["alone"]
    assert len(set(first["decisions"][0])) > 1  # samples part
    assert first["outputs"] == second["outputs"]
    assert first["rows"] == second["rows"]
    assert max(first["gaps"]) < 1e-5
    for process in (first, second):
        for message in process["refused"]:
            assert "2 processes compute FluxTransformer2DModel together and decided differently" in message
        assert process["again"] == first["decisions"][0]  # nothing is left of the refused runs


def test_sharded_weights(tmp_path: Path) -> None:
    found = in_processes(with_sharded_weights, tmp_path)
    for process in found:
        assert process["same"] == process["alone"]
        assert "decided differently" in process["refused"]
