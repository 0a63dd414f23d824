"""What fixes a training run, as one dataclass that is written into every checkpoint."""

from __future__ import annotations

import dataclasses
import math

from ..errors import OptionError
from ..reference.losses import WEIGHTS
from ..reference.schedule import Schedule
from ..reference.unet import UNetConfig

LOSSES = (*WEIGHTS, "hybrid")
PRECISIONS = ("auto", "fp32", "bf16")
MAY_CHANGE = ("steps", "save_every", "sample_every")  # in a run that goes on; anything else would be another run


@dataclasses.dataclass
class TrainConfig:
    """One run. Written as JSON into every checkpoint; a field that an older checkpoint lacks takes its default.

    batch counts the images of one process's forward pass; an optimizer step sees batch x accumulate x processes.
    crop is the margin in pixels of the random crop; images is the size of the data set, 0 where it is not known.
    """

    data: str = "mnist5k"
    model: dict = dataclasses.field(default_factory=dict)  # UNetConfig's fields
    schedule: dict = dataclasses.field(default_factory=lambda: {"name": "linear", "T": 1000})
    loss: str = "simple"
    steps: int = 20000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    seed: int = 0
    save_every: int = 250
    class_names: tuple[str, ...] = ()
    accumulate: int = 1
    crop: int = 0
    flip: bool = False
    sample_every: int = 1000
    precision: str = "auto"
    images: int = 0

    def __post_init__(self) -> None:
        self.class_names = tuple(self.class_names)

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """From a checkpoint's JSON: what this version does not know is ignored, what it misses takes its default."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})

    def unet(self) -> UNetConfig:
        """OptionError where the model's fields do not make a network."""
        try:
            return UNetConfig(**self.model)
        except (TypeError, ValueError) as e:
            raise OptionError(f"model: {e}") from e

    def make_schedule(self) -> Schedule:
        try:
            return Schedule.make(**self.schedule)
        except (TypeError, ValueError) as e:
            raise OptionError(f"schedule: {e}") from e

    def validate(self) -> None:
        """OptionError naming the first field that is out of its range."""

        def number(name: str, low: float, high: float = math.inf, kind: type = int) -> None:
            v = getattr(self, name)
            right = isinstance(v, (int, float) if kind is float else int) and not isinstance(v, bool)
            if not (right and math.isfinite(v) and low <= v <= high):
                top = "" if high == math.inf else f" and at most {high}"
                what = "a whole number" if kind is int else "a number"
                raise OptionError(f"{name}: expected {what} of at least {low}{top}, got {v!r}")

        for name in ("steps", "batch", "accumulate", "save_every"):
            number(name, 1)
        for name in ("warmup", "crop", "sample_every", "images"):
            number(name, 0)
        number("seed", 0, 2**64 - 1)
        for name in ("lr", "clip"):
            number(name, 1e-12, kind=float)
        number("weight_decay", 0, kind=float)
        number("ema", 0, 1, float)
        number("label_dropout", 0, 1, float)
        for name, allowed in (("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not isinstance(self.flip, bool):
            raise OptionError(f"flip: expected true or false, got {self.flip!r}")
        for name in ("model", "schedule"):
            if not isinstance(getattr(self, name), dict):
                raise OptionError(f"{name}: expected an object of fields, got {getattr(self, name)!r}")
        schedule = self.make_schedule()
        if self.loss == "hybrid" and len(schedule) < 2:
            raise OptionError("loss: hybrid needs a schedule of at least 2 timesteps, got 1")
        learned = self.unet().learned_variance
        if learned != (self.loss == "hybrid"):
            raise OptionError(f"loss: learned_variance is trained by hybrid and by nothing else, got {self.loss!r}")


# The shipped digits: 1.2 million parameters, about two hours on two CPU cores.
PRESETS: dict[str, dict] = {
    "digits": {
        "data": "mnist5k",
        "model": {
            "image_size": [28, 28],
            "in_channels": 1,
            "channels": 40,
            "channel_mult": [1, 2],
            "res_blocks": 1,
            "attention": [1],
            "heads": 4,
            "groups": 8,
            "num_classes": 10,
            "patch": 2,
        },
        "loss": "min_snr",
        "steps": 10000,
        "batch": 64,
        "lr": 2e-3,
        "ema": 0.999,
    }
}
