"""Settings of a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from skipstone.errors import SpecError
from skipstone.numerics.sizes import Size, parse_sizes
from skipstone.settings import Ranges, check_settings

Method: TypeAlias = Literal["progressive", "consistency"]


@dataclass(frozen=True)
class DistillSettings:
    """How a student is trained.

    Args:
        method: "progressive" halves the steps stage by stage; "consistency" lets every point of a segment of the way
            agree on the segment's end.
        steps: Of the student, in 1..64. Of a consistency student also the number of segments.
        first_steps: Of the student of the first stage of "progressive", in 0..1024, steps times a power of two; 0 is
            four times `steps`. Each stage has half the steps of the one before.
        fine_steps: Teacher steps of "consistency", in 2..1000, a multiple of `steps`; 0 is the multiple next to 50.
        guidance: Weight of classifier-free guidance that is distilled into one branch, in [0, 100].
        guidance_range: Least and greatest weight, in [1, 100], of a student that takes the weight as an input; the
            drawings are made with `guidance` then, in the range. () distils the one weight `guidance`.
        rank: Of the LoRA, in 0..1024; 0 trains all weights.
        batch: Samples of a training step, in 1..4096.
        accumulate: Parts that a batch is computed in, in 1..1024; each is batch / accumulate samples.
        rate: Peak learning rate, in [0, 1]; 0 is 1e-3 with a LoRA and 1e-4 without.
        train_steps: Training steps of all stages together, in 1..10,000,000. `minutes` sets it where given.
        minutes: Time of all stages together, in [0, 100,000]; 0 leaves it to `train_steps`. What is drawn before
            counts.
        loss: "l2", or "huber" (pseudo-Huber with c = 0.001), on what `weight` says; "" is the method's usual: l2 of
            progressive, huber of consistency.
        weight: "v": the error of the velocity, SNR + 1 times that of the clean sample; "snr": max(SNR, 1) times it;
            "x0": the error of the clean sample itself.
        ema: Factor of the moving average of the weights that is the result, in [0, 1).
        target_ema: That of the target network of "consistency", in [0, 1); 0 takes the weights as they are.
        pictures: Clean samples that the teacher draws, in 1..10,000,000.
        picture_steps: Steps of these drawings, in 1..1000.
        precision: "bf16", "fp16" or "no" (float32) for the matrix products.
        checkpointing: Gradient checkpointing: less memory, a third more time.
        max_memory: GiB that the training may take, in [0, 100,000], measured on two samples before it starts, at every
            size; 0 allows any.
        sizes: Of the pictures in pixels, "768x512" (width x height) or "512"; a training step has samples of one of
            them. () is the model's own size. `pictures` are divided among them.
        grow: Share of the steps, in [0, 0.9], after which the largest of the sizes joins: the smallest begins, those
            between join at equal distances. Of "progressive" in the first stage. 0 trains all from the first step.
        shift: Train more at high noise at sizes above the model's own, and less below: by the signal-to-noise ratio
            that the area calls for. It changes which levels are trained how often; the scheduler stays as it is.
        seed: Of everything random, in 0..2^31.

    Raises:
        SpecError: a setting out of range, step counts that do not fit each other, or sizes that are none.

    References: Salimans & Ho 2022, arXiv 2202.00512; Meng et al. 2023, arXiv 2210.03142; Luo et al. 2023,
        arXiv 2310.04378; Heek et al. 2024, arXiv 2403.06807; of `shift` Esser et al. 2024, arXiv 2403.03206, section
        5.3.2, and Hoogeboom et al. 2023, arXiv 2301.11093.
    """

    method: Method = "consistency"
    steps: int = 4
    first_steps: int = 0
    fine_steps: int = 0
    guidance: float = 7.5
    guidance_range: tuple[float, ...] = ()
    rank: int = 32
    batch: int = 64
    accumulate: int = 1
    rate: float = 0.0
    train_steps: int = 1000
    minutes: float = 0.0
    loss: Literal["", "l2", "huber"] = ""
    weight: Literal["v", "snr", "x0"] = "v"
    ema: float = 0.99
    target_ema: float = 0.95
    pictures: int = 2048
    picture_steps: int = 16
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    checkpointing: bool = False
    max_memory: float = 0.0
    seed: int = 0
    sizes: tuple[str, ...] = ()
    grow: float = 0.0
    shift: bool = False
    name: ClassVar[str] = "distill"
    ranges: ClassVar[Ranges] = {
        "steps": (1, 64),
        "first_steps": (0, 1024),
        "fine_steps": (0, 1000),
        "guidance": (0, 100),
        "guidance_range": (1, 100),
        "rank": (0, 1024),
        "batch": (1, 4096),
        "accumulate": (1, 1024),
        "rate": (0, 1),
        "train_steps": (1, 10_000_000),
        "minutes": (0, 100_000),
        "ema": (0, 0.999999),
        "target_ema": (0, 0.999999),
        "pictures": (1, 10_000_000),
        "picture_steps": (1, 1000),
        "max_memory": (0, 100_000),
        "seed": (0, 2**31),
        "grow": (0, 0.9),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        _ = self.stages
        self._check_sizes()
        self._check_guidance_range()
        if self.batch % self.accumulate:
            raise SpecError(
                f"distill: expected batch as a multiple of accumulate, got {self.batch}, {self.accumulate}."
            )
        if self.fine_steps % self.steps:
            raise SpecError(
                f"distill: expected fine_steps as a multiple of steps ({self.steps}), got {self.fine_steps}; try "
                f"fine_steps={self.steps * max(1, round(self.fine_steps / self.steps))}."
            )

    def _check_sizes(self) -> None:
        sizes = self.parsed_sizes
        if self.pictures < len(sizes):
            raise SpecError(f"distill: expected at least one of pictures for each size, got {self.pictures}.")
        if self.shift and not sizes:
            raise SpecError("distill: expected sizes with shift, which is about them, got none; try sizes=('512',).")
        if not self.grow:
            return
        if len(sizes) < 2:
            raise SpecError(f"distill: expected at least two sizes with grow, got {len(sizes)}; try grow=0.")
        if self.minutes:
            raise SpecError(
                "distill: expected train_steps with grow, which is a share of them, got minutes; try minutes=0."
            )

    @property
    def parsed_sizes(self) -> tuple[Size, ...]:
        """The sizes; () is the model's own."""
        return parse_sizes(self.sizes)

    def _check_guidance_range(self) -> None:
        if not self.guidance_range:
            return
        if len(self.guidance_range) != 2 or not self.guidance_range[0] < self.guidance_range[1]:
            raise SpecError(
                f"distill: expected guidance_range as two numbers, the smaller first, got {self.guidance_range}; try "
                f"guidance_range=(1.0, 8.0)."
            )
        low, high = self.guidance_range
        if not low <= self.guidance <= high:
            raise SpecError(
                f"distill: expected guidance, with which the teacher draws, in guidance_range [{low:g}, {high:g}], got "
                f"{self.guidance:g}; try guidance={min(max(self.guidance, low), high):g}."
            )

    @property
    def stages(self) -> tuple[int, ...]:
        """Steps of the student of each stage."""
        if self.method == "consistency":
            return (self.steps,)
        found = [self.first_steps or 4 * self.steps]
        while found[-1] > self.steps and found[-1] % 2 == 0:
            found.append(found[-1] // 2)
        if found[-1] != self.steps:
            raise SpecError(
                f"distill: expected first_steps as steps ({self.steps}) times a power of two, got {self.first_steps}; "
                f"try first_steps={4 * self.steps}."
            )
        return tuple(found)

    @property
    def fine(self) -> int:
        """Teacher steps of consistency distillation."""
        return self.fine_steps or self.steps * max(2, round(50 / self.steps))

    @property
    def peak_rate(self) -> float:
        """The peak learning rate."""
        return self.rate or (1e-3 if self.rank else 1e-4)

    @property
    def loss_kind(self) -> str:
        """ "l2" or "huber"."""
        return self.loss or ("l2" if self.method == "progressive" else "huber")
