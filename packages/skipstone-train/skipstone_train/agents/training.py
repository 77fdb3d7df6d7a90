"""One training from a configuration to an agent's file: rank, learn, choose, compare, write."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipstone import __version__
from skipstone.errors import OutputError, SpecError
from skipstone.evaluation.folder_lock import lock_folder
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.yaml_settings import settings_name, to_plain, to_yaml

from .config import AgentConfig, environments, learners, load_config
from .curves import curve_to_csv, curve_to_png
from .held_out import HeldOutEpisodes, PairedDifference, constant_scorer, paired_difference
from .learners.base import BEST_SCORER_FILE, CHECKPOINT_FILE, CURVE_FILE, FitResult, RoundCallback, write_file
from .learners.scaling import one_thread
from .tracking import make_tracker
from .transitions import evaluate

AGENT_FILE, CONFIG_FILE, CURVE_TABLE_FILE, CURVE_PLOT_FILE, RESULT_FILE, LOG_FILE = (
    "agent.safetensors", "config.yaml", "curve.csv", "curve.png", "training.json", "log.txt",
)  # fmt: skip
LEARNER_FOLDER = "learner"  # folder of checkpoints
RESUME_KEYS = ("environment", "slots", "learner", "curriculum", "held_out")  # keys that a training goes on with
TRAINING_SEED = 1_000  # added to a training's seed, for its episodes

LineCallback = Callable[[str], None]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Args:
        folder: Of its files.
        agent: The agent's file.
        over_random, over_fixed: Its lead on the half of the held-out episodes that it was not selected on.
        lead_on_network: Its lead over the base schedules on the network itself; None where it was trained there.
        beats_fixed: Whether it beats the best fixed schedule; if not, the file holds that schedule.
        interrupted: Whether it was stopped before its time.
    """

    folder: Path
    agent: Path
    over_random: PairedDifference
    over_fixed: PairedDifference
    lead_on_network: PairedDifference | None
    beats_fixed: bool
    interrupted: bool

    @property
    def summary(self) -> list[str]:
        """What to say in the end."""
        random = "beats" if self.over_random.is_significant else "does not surely beat"
        fixed = "beats" if self.over_fixed.is_significant else "does not surely beat"
        lines = [
            f"On held-out episodes it {random} random actions: {self.over_random}.",
            f"On held-out episodes it {fixed} the best fixed schedule of its price that its actions make: "
            f"{self.over_fixed}.",
        ]
        if self.lead_on_network is not None:
            fixed = "beats" if self.lead_on_network.is_significant else "does not surely beat"
            lines.append(
                f"On the network itself it {fixed} the fixed schedule that it starts from: {self.lead_on_network}."
            )
        if not self.beats_fixed:
            lines.append("So the agent's file plays the best fixed schedule, and says so.")
        return lines


@dataclass(frozen=True)
class Training:
    """One training. `run` makes it, or goes on with it.

    Args:
        config: All settings.
        out: Its folder.
        minutes: Of learning, > 0.
        seed: Of the learner and its episodes; held-out episodes are the same for all seeds.
        steps: Decisions to play at most, so that the result does not depend on the machine; None is no limit.
    """

    config: AgentConfig
    out: Path
    minutes: float
    seed: int
    steps: int | None = None

    @property
    def files(self) -> list[Path]:
        """What it writes."""
        return [
            self.out / name
            for name in (AGENT_FILE, CONFIG_FILE, CURVE_TABLE_FILE, CURVE_PLOT_FILE, RESULT_FILE, LOG_FILE)
        ]

    def run(
        self,
        resume: bool = False,
        print_line: LineCallback = lambda line: None,
        callback: RoundCallback = lambda share, row: None,
    ) -> TrainingResult:
        """Train.

        Args:
            resume: Go on with the checkpoint that is there, if one is; otherwise it is deleted.
            print_line: Called with each line that a reader of the terminal should see.
            callback: Called with (share done, figures) after each round.

        Raises:
            SpecError: a reward that ranks constant policies wrongly, a checkpoint of other settings, a missing package.
            OutputError: what cannot be written, or another command writes to the folder.
        """
        with lock_folder(self.out):
            return self._run(resume, print_line, callback)

    def _run(self, resume: bool, print_line: LineCallback, callback: RoundCallback) -> TrainingResult:
        environment = self.config.environment
        held = HeldOutEpisodes(environment.build("validation", self.config.held_out or None, 0))
        log = self._log(resume)
        print_line = _tee(print_line, log)
        self._prepare(resume)
        with one_thread():
            self._rank(held, print_line)
            for name, value in held.curve_baselines.items():
                print_line(f"{name}: utility {value:.3f} dB on held-out episodes")
            began = time.monotonic()
            fitted, interrupted = self._fit(held, print_line, callback)
            done = self._compare_and_write(held, fitted, interrupted, print_line)
        print_line(f"{fitted.steps} decisions in {time.monotonic() - began:.0f} s.")
        for line in done.summary:
            log(line)
        return done

    def begin(self, resume: bool = False) -> None:
        """Make the folder with its configuration, as `run` does first. Raises SpecError, OutputError."""
        with lock_folder(self.out):
            self._prepare(resume)

    @property
    def learner(self) -> str:
        """Name of the learner."""
        return settings_name(learners(), self.config.learner)

    def _rank(self, held: HeldOutEpisodes, print_line: LineCallback) -> None:
        """Constant policies, before anything is learnt: a reward that pays the wrong ones is refused."""
        ranking = held.ranking
        print_line("Constant policies, ranked before training:")
        for line in ranking.summary.splitlines():
            print_line(f"  {line}")
        ranking.check()
        print_line("  The reward ranks them as the utility does.")

    def _prepare(self, resume: bool) -> None:
        """The folder, without what another training has left where this one does not go on with it."""
        folder = self.out / LEARNER_FOLDER
        if not resume and folder.is_dir():
            for name in (CHECKPOINT_FILE, BEST_SCORER_FILE, CURVE_FILE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / "tensorboard", ignore_errors=True)
        elif (self.out / CONFIG_FILE).is_file() and (folder / CHECKPOINT_FILE).is_file():
            self._check_same_training()
        # What was said on the command line, too, so that going on needs no more than the folder.
        saved = replace(self.config, minutes=float(self.minutes), seeds=(self.seed,), out=str(self.out))
        write_file(self.out / CONFIG_FILE, to_yaml(saved).encode())

    def _check_same_training(self) -> None:
        """A checkpoint means nothing to another environment or learner."""
        before, now = to_plain(load_config(self.out / CONFIG_FILE, ["tracking=none"])), to_plain(self.config)
        for name in RESUME_KEYS:
            if before[name] != now[name]:
                raise SpecError(
                    f"--resume: {self.out} holds a training with {name} {before[name]}, this one has {now[name]}. "
                    f"Leave --config and changes out, or choose another --out."
                )

    def _fit(self, held: HeldOutEpisodes, print_line: LineCallback, callback: RoundCallback) -> tuple[FitResult, bool]:
        config, folder = self.config, self.out / LEARNER_FOLDER
        env = config.environment.build("train", config.slots, TRAINING_SEED + self.seed)
        tracker = make_tracker(config.tracking, self.out, f"{self.learner}, seed {self.seed}", to_plain(config))
        tenths = _TenthsPrinter(print_line)

        def on_round(share: float, row: Mapping[str, float]) -> None:
            callback(share, row)
            tenths(share, row)
            tracker.log(int(row["steps"]), row)

        try:
            fitted: FitResult = config.learner.fit(
                env, held, steps=self.steps, seconds=60 * self.minutes, seed=self.seed, folder=folder,
                callback=on_round, curriculum=config.curriculum,
            )  # fmt: skip
            return fitted, False
        except KeyboardInterrupt:
            if not (folder / CHECKPOINT_FILE).is_file():
                raise
            print_line("Stopped. The best so far is kept; --resume goes on.")
            return _load_interrupted(folder), True
        finally:
            tracker.close()

    def _compare_and_write(
        self, held: HeldOutEpisodes, fitted: FitResult, interrupted: bool, print_line: LineCallback
    ) -> TrainingResult:
        """Compare the best action scorer, and write everything."""
        score = held.evaluate(fitted.action_scorer)
        over_random = held.compare(score.utilities, held.random.utilities)
        over_fixed = held.compare(score.utilities, held.fixed_utilities)
        proven = self._compare_on_network(fitted.action_scorer, print_line)
        notes = {
            "learner": self.learner,
            "seed": self.seed,
            "version": __version__,
            "steps": fitted.steps,
            "seconds": round(fitted.seconds, 1),
            "interrupted": interrupted,
            "utility": score.utility,
            "quality": score.quality,
            "calls": score.calls,
            "over_random": vars(over_random),
            "over_fixed": vars(over_fixed),
            "proven": vars(proven) if proven else None,
            "best_fixed": {f"{price:g}": name for price, name in held.best_fixed.items()},
            **_shorten_names(held.curve_baselines),
        }
        learnt = (proven or over_fixed).is_significant
        agent = self._save(held, fitted.action_scorer, learnt, notes)
        result = {
            **notes, "first": fitted.curve[0]["score"], "best": fitted.score, "learnt": learnt,
            "actions": held.actions(fitted.action_scorer),
            "environment": settings_name(environments(), self.config.environment),
        }  # fmt: skip
        write_file(self.out / RESULT_FILE, json.dumps(result, indent=1).encode())
        write_file(self.out / CURVE_TABLE_FILE, curve_to_csv(fitted.curve).encode())
        write_file(self.out / CURVE_PLOT_FILE, curve_to_png(fitted.curve, held.curve_baselines))
        return TrainingResult(self.out, agent, over_random, over_fixed, proven, learnt, interrupted)

    def _compare_on_network(self, scorer: ActionScorer, print_line: LineCallback) -> PairedDifference | None:
        """Its lead over the base schedules on the network itself, on samples that it was not selected on."""
        proof = getattr(self.config.environment, "build_live_validation", None)
        env = proof() if proof is not None else None
        if env is None:
            return None
        print_line(
            f"On the network itself: {env.num_envs} episodes of the agent, and as many of its base schedules ..."
        )
        own, base = (evaluate(env, chooser, env.num_envs, 0) for chooser in (scorer, "continue"))
        return paired_difference(own.utilities - base.utilities, own.sample)

    def _save(self, held: HeldOutEpisodes, scorer: ActionScorer, learnt: bool, notes: Mapping[str, Any]) -> Path:
        """Write the agent's file: the environment's checkpoint, or the action scorer alone."""
        target = self.out / AGENT_FILE
        agent = getattr(self.config.environment, "agent", None)
        if agent is not None:
            saved: Path = agent(scorer, learnt, dict(notes)).save(target)
            return saved
        if not learnt:  # an environment that is no denoising: its best constant action, if one is among the best
            names = [name.removeprefix("always ") for name in held.best_fixed.values()]
            action = next((name for name in names if name in held.env.actions), "continue")
            scorer = constant_scorer(tuple(held.env.actions), action, scorer.inputs)
        about = {
            "actions": list(held.env.actions),
            "names": list(held.env.names),
            "learned": learnt,
            "notes": dict(notes),
        }
        return ActionScorer(scorer.centre, scorer.spread, scorer.layers, scorer.activation, about).save(target)

    def _log(self, resume: bool) -> LineCallback:
        """Writes a line into the log."""
        log = self.out / LOG_FILE
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not resume:
                log.write_text("")
        except OSError as e:
            raise OutputError(f"Cannot write to {self.out}: {e.strerror}. Choose another --out.") from None

        def write_line(line: str) -> None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

        return write_line


def _tee(first: LineCallback, second: LineCallback) -> LineCallback:
    def print_line(line: str) -> None:
        first(line)
        second(line)

    return print_line


class _TenthsPrinter:
    """A line for each tenth of the training, where there is no progress bar."""

    def __init__(self, print_line: LineCallback) -> None:
        self._say, self._next = print_line, 0.1

    def __call__(self, share: float, row: Mapping[str, float]) -> None:
        if share + 1e-9 >= self._next:
            self._next = int(share * 10 + 1e-6) / 10 + 0.1
            self._say(f"{share:4.0%}  {row['steps']:.0f} decisions, utility {row['score']:.3f} dB")


def _load_interrupted(folder: Path) -> FitResult:
    """What an interrupted training has left. Raises SpecError where it is damaged."""
    try:
        curve: Sequence[Mapping[str, float]] = json.loads((folder / CURVE_FILE).read_text(encoding="utf-8"))
        last = curve[-1]
        top = max(row["score"] for row in curve)
        return FitResult(
            ActionScorer.load(folder / BEST_SCORER_FILE), top, tuple(curve), int(last["steps"]), float(last["seconds"])
        )
    except (OSError, ValueError, KeyError, IndexError):
        raise SpecError(f"{folder} is damaged: delete it and train again.") from None


def _shorten_names(lines: Mapping[str, float]) -> dict[str, float]:
    return {name.split()[-2] if " " in name else name: value for name, value in lines.items()}
