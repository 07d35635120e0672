"""The training loop and what it is made of: settings, schedules, checkpoints, validation."""

from captioning.training.config import TrainingConfig
from captioning.training.loop import Data, train

__all__ = ["Data", "TrainingConfig", "train"]
