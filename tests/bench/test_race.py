"""Rows raced on a tiny pipeline: counted cost, closeness, peers, refusals, and going on after a cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import nn

from skipstone import registry
from skipstone.cli.options import ModelOptions
from skipstone.errors import GuestError
from skipstone.evaluation.checkpoints import Checkpoint
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.cost import count_macs
from skipstone.evaluation.files import safe_file_name
from skipstone.evaluation.peers import Peer
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample, References
from skipstone.evaluation.subject import SampleRequest
from skipstone.integrations.torch import CallCounter
from skipstone.metrics import PSNR, SSIM, Metric, Sample
from skipstone.metrics.latents import LatentError
from skipstone_bench.baselines import interval_calls, make_policy_row
from skipstone_bench.benchmark import Benchmark, BenchSettings, PromptSettings, ReferenceSettings, RowSettings
from skipstone_bench.findings import Answers
from skipstone_bench.report.verdicts import make_verdicts
from skipstone_bench.runner import BenchRow, BenchRunner, time_rows
from skipstone_bench.store import SAMPLES, Header, Record, Store
from skipstone_bench.summary import metric_direction, summarise
from skipstone_bench.tuner import Tuner, find_greedy_masks, improve_mask, samplers_for_calls

STEPS = 6
SHOTS = [EvaluationSample(Prompt(text, text, ""), seed) for seed, text in enumerate(("a", "b", "c"))]
CLOSE = {"psnr": PSNR(), "ssim": SSIM(), "latent": LatentError()}


@dataclass(frozen=True)
class EveryOther(Peer):
    """Runs the network at every second call, and says what it said before at the others."""

    refuses: bool = False
    name: ClassVar[str] = "every_other"

    def refusal_reason(self, pipe: Any) -> str | None:
        return "not applicable: it was told to refuse" if self.refuses else None

    @contextmanager
    def apply(self, pipe: Any) -> Iterator[None]:
        bare, said, calls = pipe.unet.forward, [], [0]

        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] % 2:
                said[:] = [bare(*args, **kwargs)]
            return said[0]

        pipe.unet.forward = forward
        try:
            yield
        finally:
            del pipe.unet.forward


@pytest.fixture(scope="module")
def guest(tiny_model: Path) -> PipelineSubject:
    return PipelineSubject(Checkpoint.find(str(tiny_model)), device="cpu")


def column(spec: str) -> Column:
    return parse_column(spec, None, None, STEPS)


def peer(refuses: bool = False) -> BenchRow:
    made = make_policy_row(replace(column("fixed"), policy=EveryOther(refuses)))
    assert made.info.group == "peer"
    assert made.info.family == "every_other"
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    full = column("fixed").spec
    converged = (column("fixed @ dpmpp / trailing / 12").spec, column("fixed @ unipc / trailing / 8").spec)
    return Store.create(tmp_path, Header("0", "tiny", {}, 7.5, {}, full, converged, "", "", "", {}))


def race(guest: PipelineSubject, store: Store, batch: int = 2) -> BenchRunner:
    header = store.header
    references = References(store.folder, column(header.reference), tuple(map(column, header.converged)))
    return BenchRunner(guest, references, CLOSE, {}, batch)


def by_row(store: Store) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for r in store.records:
        found.setdefault(r.row, []).append(r)
    return found


def test_a_race_counts_what_each_row_costs_and_how_close_it_comes(guest: PipelineSubject, store: Store) -> None:
    specs = ["fixed", "interval(every=2, warmup=2)", "guidance_gate(below=0.6)", "fixed @ own / 3"]
    rows = [*(make_policy_row(column(spec)) for spec in specs), peer()]
    bare = guest.draw([SHOTS[0].request], column("fixed"))[0][0].x
    store = race(guest, store).measure_agreement(race(guest, store).run(store, SHOTS, rows), SHOTS)
    full, mask, gate, short, other = (by_row(store)[row.info.spec] for row in rows)
    assert [r.sample for r in full] == ["a:0", "b:1", "c:2"]
    assert all(r.identical and r.values["psnr_full"] == 99.0 and r.values["latent_full"] == 0.0 for r in full)
    assert [(r.calls, r.cond, r.uncond, r.decisions) for r in mask] == [(4, 4, 4, "CC.C.C")] * 3
    assert [(r.calls, r.cond, r.uncond, r.decisions) for r in gate] == [(4.5, 6, 3, "CCCccc")] * 3
    assert [r.calls for r in short] == [3.0] * 3
    assert all(r.macs_calls == pytest.approx(r.calls) for r in (*full, *mask, *gate, *short))
    # The peer puts every row into the network, which only works on half of them.
    assert [(r.calls, r.decisions) for r in other] == [(6, "")] * 3
    assert all(r.macs_calls == pytest.approx(3) and not r.identical for r in other)
    assert all(r.values["latent_full"] > 0 and r.values["psnr_full"] < 99 for r in (*mask, *gate, *short, *other))
    assert all(r.values["psnr_converged"] < 99 and (store.folder / r.picture).is_file() for r in store.records)
    assert store.header.agreement["samples"] == 3
    assert store.header.agreement["worst"] > 20
    assert (guest.draw([SHOTS[0].request], column("fixed"))[0][0].x == bare).all(), "a peer left something behind"


def test_a_preset_whose_takeover_is_refused_is_measured_by_its_fallback(guest: PipelineSubject, store: Store) -> None:
    rows = [make_policy_row(column(spec)) for spec in ("fixed", "fast", "adaptive_grid")]
    own = guest.pipe.scheduler
    guest.pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(own.config)
    try:
        store = race(guest, store).run(store, SHOTS[:1], rows)
        time_rows(guest, store, SHOTS[:1], rows, rows[0].column, repeats=1)
        again = race(guest, store).run(Store.load(store.folder), SHOTS[:1], rows)  # as --resume does
    finally:
        guest.pipe.scheduler = own
    assert {t.row for t in store.timings} == {r.row for r in store.records} == {row.info.spec for row in rows[:2]}
    for _, fast, other in (store.header.rows, again.header.rows):
        assert (fast.label, fast.family) == ("fast (error_control(tol=0.01))", "error_control")
        assert fast.refusal.startswith("its scheduler adds noise")
        assert other.note.startswith("not applicable: The pipeline cannot be taken over")
    told = [v.title for v in make_verdicts(summarise(store), Answers((), (), ()))]
    assert "fast (error_control(tol=0.01)) could not take the loop over:" in told


def test_latents_are_those_of_the_loop() -> None:
    fast = parse_column("fixed @ ddim / trailing / 2", None, None, 2)
    item = SampleRequest("a red apple on a blue background", 3)
    [[engine], _], [[guest], _] = (ModelOptions(as_guest=way).subject().draw([item], fast) for way in (False, True))
    assert engine.latent.shape == guest.latent.shape
    assert abs(engine.latent - guest.latent).max() < 1e-3


def test_rows_that_the_model_cannot_run_are_named(guest: PipelineSubject, store: Store) -> None:
    rows = [
        make_policy_row(column("fixed")),
        make_policy_row(column("pid")),
        peer(refuses=True),
        make_policy_row(column("fixed @ dpm_adaptive")),
    ]
    store = race(guest, store).run(store, SHOTS[:1], rows)
    notes = {row.spec: row.note for row in store.header.rows}
    assert notes[rows[0].info.spec] == ""
    assert "adaptive solver" in notes[rows[1].info.spec]
    assert notes[rows[2].info.spec] == "not applicable: it was told to refuse"
    assert all(notes[row.info.spec].startswith("not applicable: ") for row in rows[1:3])
    assert rows[0].info.spec in by_row(store)


def test_a_race_that_was_cut_off_goes_on_with_what_is_missing(guest: PipelineSubject, store: Store) -> None:
    rows = [make_policy_row(column("fixed")), make_policy_row(column("interval(every=2, warmup=2)"))]
    racing = race(guest, store, batch=1)
    store = racing.run(store, SHOTS, rows)
    whole, path = store.records, store.folder / SAMPLES
    path.write_bytes(path.read_bytes()[:-25])  # in the last record: the mask's third sample
    store = Store.open(store.folder, store.header)
    with CallCounter(guest.pipe.unet) as counter:
        racing.run(store, SHOTS, rows)
    assert counter.rows == 2 * 4 + 2 * 4, "the probe of 4 steps and a run of 4 calls, of two branches"
    assert store.records == whole


def test_seconds_are_taken_beside_the_full_run(guest: PipelineSubject, store: Store) -> None:
    rows = [make_policy_row(column("fixed @ own / 3")), peer(), peer(refuses=True)]
    store = race(guest, store).run(store, SHOTS[:1], rows)
    time_rows(guest, store, SHOTS[:1], rows, column("fixed"), 2)
    time_rows(guest, store, SHOTS[:1], rows, column("fixed"), 2)  # nothing is left to do
    found = store.timings
    assert [(t.row, t.repeat) for t in found] == [(r.info.spec, k) for k in (0, 1) for r in rows[:2]]
    assert all(t.seconds > 0 and t.baseline_seconds > 0 and t.peak_bytes is None for t in found)


def test_multiply_accumulates_are_those_of_the_formula() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.convolution = nn.Linear(8, 8), nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)  # (2, 1, 7, 8)
            self.convolution(picture)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    net = Net()
    with torch.inference_mode(), count_macs([net]) as meter:
        for _ in range(3):
            net(torch.randn(2, 1, 7, 8), picture=torch.randn(2, 3, 4, 4))
        net.linear(torch.randn(50, 8))  # not a call of the network
    linear, attention, convolution = 2 * 7 * 8 * 8, 2 * 2 * 7 * 7 * 8, 2 * 16 * 5 * 27
    assert meter.macs == 3 * (linear + attention + convolution)
    assert meter.rows == 6


def test_a_peer_that_breaks_is_an_error_of_its_own_name(guest: PipelineSubject) -> None:
    class Broken(EveryOther):
        @contextmanager
        def apply(self, pipe: Any) -> Iterator[None]:
            raise RuntimeError("no such block\nmore")
            yield

    own = guest.pipe.scheduler
    with pytest.raises(GuestError, match=r"every_other failed to accelerate .*: no such block\."):
        guest.draw([SampleRequest("a", 0)], replace(column("fixed"), policy=Broken()))
    assert guest.pipe.scheduler is own


def test_blind_masks_are_counted_as_they_run(guest: PipelineSubject) -> None:
    for every, warmup in ((2, 2), (3, 2), (4, 3)):
        spec = f"interval(every={every}, warmup={warmup}) @ own / 12"
        made, _ = guest.draw([SHOTS[0].request], column(spec))
        assert sum(interval_calls(12, every, warmup)) == made[0].calls


def test_candidates_are_measured_once_and_kept(guest: PipelineSubject, store: Store) -> None:
    racing = race(guest, store)
    tuner = Tuner(guest, racing.references, store, SHOTS[:2])
    candidates = [*samplers_for_calls(guest, 4), column("pid @ own / 4"), column("fixed @ dpmpp / trailing / 12")]
    assert {"ddim / trailing", "heun / leading"} <= {c.spec.split("@ ")[1].rpartition(" / ")[0] for c in candidates}
    best = tuner.best(candidates, 4, "samplers")
    assert best is not None
    calls = {c.spec: s.calls for c in candidates if (s := tuner.score(c)) is not None}
    assert max(calls.values()) == 12, "the reference itself, which is over the budget"
    scores = {c: s.median for c in candidates if (s := tuner.score(c)) is not None and s.calls <= 4.5}
    assert scores[best] == max(scores.values())
    assert column("pid @ own / 4") not in scores
    again = Tuner(guest, racing.references, Store.load(store.folder), SHOTS[:2])
    with CallCounter(guest.pipe.unet) as counter:
        assert again.best([c for c in candidates if c.spec in calls], 4, "samplers") == best
    assert counter.rows == 0


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_torn_reference_is_made_again(guest: PipelineSubject, store: Store, left: int) -> None:
    references = race(guest, store).references
    [whole] = references.load_or_draw(guest, SHOTS[:1], references.full)
    [path] = store.folder.rglob(f"{safe_file_name(references.full.spec)}/{safe_file_name(SHOTS[0].id)}.npz")
    path.write_bytes(path.read_bytes()[:left])
    [again] = references.load_or_draw(guest, SHOTS[:1], references.full)
    assert (again.pixels == whole.pixels).all()
    with CallCounter(guest.pipe.unet) as counter:
        references.load_or_draw(guest, SHOTS[:1], references.full)
    assert counter.rows == 0


def test_the_greedy_search_finds_the_steps_that_cost_least() -> None:
    worth = {i: float((7 * i) % 12) for i in range(12)}  # all different: the best set is the cheapest steps
    found = find_greedy_masks(lambda skips: -sum(worth[i] for i in skips), 12, [10, 6], warmup=2, tail=1, take=0.01)
    free = sorted(range(2, 11), key=worth.__getitem__)
    assert found == {10: frozenset(free[:2]), 6: frozenset(free[:6])}
    coarse = find_greedy_masks(lambda skips: -sum(worth[i] for i in skips), 12, [6], warmup=2, tail=1, take=0.5)
    assert len(coarse[6]) == 6
    assert coarse[6] <= frozenset(range(2, 11))


def test_a_search_is_never_worse_than_its_starts() -> None:
    target = frozenset((3, 5, 8))

    def score(skips: frozenset[int]) -> float:
        return -sum(min(abs(i - t) for t in target) for i in skips)

    starts = [frozenset((4, 6, 8)), frozenset((7, 9, 10))]
    assert improve_mask(score, starts, 12) == target
    assert improve_mask(score, [target], 12) == target


def test_prompts_of_the_tuning_are_not_in_the_test(guest: PipelineSubject, tmp_path: Path) -> None:
    many, few = tmp_path / "many.txt", tmp_path / "few.txt"
    many.write_text("".join(f"{c} {d}\n" for c in "abcde" for d in "fghij"))
    few.write_text("a\n")
    quick = PromptSettings(str(many), limit=6, tuned=3, seeds=2)

    def plan(prompts: PromptSettings) -> Benchmark:
        settings = BenchSettings(prompts, RowSettings(budgets=(2,), peers=("none",)), ReferenceSettings(steps=STEPS))
        return Benchmark.from_settings(guest, settings)

    planned = plan(quick)
    assert (len(planned.eval_samples), len(planned.tuning)) == (12, 3)
    assert not {s.prompt.text for s in planned.eval_samples} & {s.prompt.text for s in planned.tuning}
    for text, limit, kept in (("a\nb\nc\n", 32, 2), ("a\nb\nc\n", 1, 1), ("a\nb\nc\n", None, 2), ("a\na\n", 32, 1)):
        few.write_text(text)
        some = plan(replace(quick, prompts=str(few), limit=limit, tuned=8, seeds=1))
        assert len(some.eval_samples) == kept, "tuning takes no more than half of few prompts"
        assert ("other seeds" in some.about["tuning"]) == (text == "a\na\n"), "the same words are the same prompt"
    few.write_text("a\n")
    alone = plan(replace(quick, prompts=str(few)))
    assert "other seeds" in alone.about["tuning"]
    assert not {s.seed for s in alone.eval_samples} & {s.seed for s in alone.tuning}


def test_a_registered_metric_is_measured(
    guest: PipelineSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that compares becomes two numbers of a record, one that does not becomes one."""
    known = dict(registry._KINDS["metric"]) if registry.names("metric") else {}
    monkeypatch.setitem(registry._KINDS, "metric", known)

    @dataclass(frozen=True)
    class Redness(Metric):
        """Mean of the red channel."""

        name: ClassVar[str] = "redness"
        better: ClassVar[Literal["higher", "lower"]] = "lower"
        compares: ClassVar[bool] = False

        def measure(self, sample: Sample) -> float:
            return float(sample.pixels[..., 0].mean())

    @dataclass(frozen=True)
    class Shift(Redness):
        """How far the red channel is from that of the reference."""

        name: ClassVar[str] = "shift"
        compares: ClassVar[bool] = True

        def measure(self, sample: Sample) -> float:
            return abs(super().measure(sample) - float(sample.reference[..., 0].mean()))

    registry.register("metric")(Redness)
    registry.register("metric")(Shift)
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    settings = BenchSettings(
        PromptSettings(str(tmp_path / "prompts.txt"), tuned=1),
        RowSettings(budgets=(2,), peers=("none",)),
        ReferenceSettings(steps=STEPS),
    )
    planned = Benchmark.from_settings(guest, settings)
    assert {"psnr", "ssim", "latent", "shift"} <= planned.reference_metrics.keys()
    assert set(planned.picture_metrics) == {"redness"}
    assert metric_direction("shift_full") == metric_direction("redness") == metric_direction("latent_full") == "lower"
    assert metric_direction("of_an_absent_plug_in") == "higher"
