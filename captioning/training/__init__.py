"""The training loop and what it is made of: settings, schedules, checkpoints, validation."""

from captioning.training.config import TrainingConfig
from captioning.training.loop import Data, Run, train

__all__ = ["Data", "Run", "TrainingConfig", "train"]
