"""Arguments of a Trainer that takes the device it is given, and no other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import TrainingArguments


@dataclass
class OnOneDevice(TrainingArguments):
    """TrainingArguments of one process on one device.

    Without a launcher, transformers takes the first GPU and copies the model to all others it sees.

    Attributes:
        place: the device, such as `cuda:1`.
    """

    place: str = "cpu"

    def __post_init__(self) -> None:
        """Check the arguments; transformers makes the first GPU the current one, so ours is made it again."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def device(self) -> torch.device:
        """The device that inputs and model go to."""
        _ = super().device  # sets up the processes of a launcher
        device = torch.device(self.place)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return device

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one, or none on a CPU."""
        _ = super().n_gpu
        return int(self.device.type == "cuda")
