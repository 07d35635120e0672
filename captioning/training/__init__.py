"""Training: the loop, one update, objectives, schedules, checkpoints, validation and tracking."""

from captioning.training.config import TrainingConfig
from captioning.training.epoch_batches import Data
from captioning.training.loop import train
from captioning.training.run import Run

__all__ = ["Data", "Run", "TrainingConfig", "train"]
