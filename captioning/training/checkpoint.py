"""Checkpoints of a run: weights, EMA, optimizer and progress, as safetensors and JSON without pickle.

No random number state is stored: every draw is a function of the seed and the position in the run.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from captioning.captioner.captioner import Captioner, load_weights, read_tensors, save_weights
from captioning.errors import UserError
from captioning.training.config import TrainingConfig
from captioning.training.ema import EMA
from captioning.training.identity import Identity
from captioning.utils.files import (
    check_manifest,
    fsync_folder,
    new_folder,
    read_json,
    write_json,
    write_manifest,
)
from captioning.utils.validation import check_shape, validate

FORMAT = 3
START_ANEW = "start the run anew"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "progress.json")


@dataclass
class Progress:
    """The position of a run. It decides how training continues, except `seconds` and `epoch_sums` (for the log)."""

    phase: int = 0
    epoch: int = 0  # finished epochs of the phase
    epochs_before: int = 0  # epochs of earlier phases
    epoch_step: int = 0  # updates of the epoch
    step: int = 0  # updates of the run
    phase_step: int = 0  # updates of the phase
    nonfinite_steps: int = 0  # latest updates in a row that had no finite gradient
    sums: dict[str, float] = field(default_factory=dict)  # loss terms since they were last logged
    epoch_sums: dict[str, float] = field(default_factory=dict)  # loss terms of the epoch
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0  # validations since the best one
    scores: list[float] = field(default_factory=list)  # validation metric in this phase
    seconds: float = 0.0
    done: bool = False  # whether the phase has ended
    history: list[dict[str, Any]] = field(default_factory=list)

    def begin_phase(self) -> None:
        self.phase, self.epochs_before = self.phase + 1, self.epochs_before + self.epoch
        self.epoch = self.phase_step = self.nonfinite_steps = self.stale = 0
        self.scores, self.sums, self.done = [], {}, False

    def end_epoch(self, epochs: int) -> None:
        """Count an epoch of the phase's `epochs`."""
        self.epoch, self.epoch_step, self.epoch_sums = self.epoch + 1, 0, {}
        self.done = self.done or self.epoch >= epochs

    def count_update(self) -> None:
        self.step, self.phase_step, self.epoch_step = self.step + 1, self.phase_step + 1, self.epoch_step + 1

    def add(self, terms: dict[str, float]) -> None:
        """Add the loss terms of an update; the entry `of` is the number of items they sum over."""
        for sums in (self.sums, self.epoch_sums):
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value

    def mean_losses(self) -> dict[str, float]:
        """Mean of each loss term since the last log entry."""
        return _means(self.sums)

    @property
    def epoch_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return _means(self.epoch_sums).get("loss", float("nan"))


def _means(sums: dict[str, float]) -> dict[str, float]:
    count = sums.get("of", 0.0)
    return {name: value / count for name, value in sums.items() if name != "of"} if count else {}


class StoredIdentity(TypedDict):
    """`Identity.as_json()`; the data's values are number and hash."""

    settings: dict[str, Any]
    data: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]


class Stored(TypedDict):
    """The part of `progress.json` that is not a `Progress`."""

    identity: StoredIdentity
    scaler: dict[str, Any]


class TrainState(NamedTuple):
    """Everything that training changes, besides its progress."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    scaler: torch.amp.GradScaler
    learning_rates: list[float]  # of the parameter groups, before the schedule

    @classmethod
    def create(cls, captioner: Captioner, config: TrainingConfig, device: torch.device) -> TrainState:
        """The state before the first update of a phase."""
        groups = [
            {"params": list(captioner.decoder.parameters())},
            *captioner.encoder.parameter_groups(config.learning_rate),
        ]
        optimizer = (torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam)(
            groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        return cls(
            module=captioner,
            optimizer=optimizer,
            ema=EMA(captioner, config.ema_decay),
            scaler=torch.amp.GradScaler(
                device.type, enabled=config.precision == "fp16" and device.type != "cpu"
            ),
            learning_rates=[group["lr"] for group in optimizer.param_groups],
        )


def save(run: Path, state: TrainState, progress: Progress, *, identity: Identity, keep: int) -> None:
    """Write `run/checkpoints/last` atomically; the `keep` - 1 checkpoints before it become before-1, before-2 ...

    Raises:
        OSError: the disk is full; earlier checkpoints are intact and no partial one is left.
    """
    folder = run / "checkpoints"
    moments = {
        f"{number}.{key}": value
        for number, entry in state.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    with new_folder(folder / ".part") as part:
        save_weights(state.module.state_dict(), part / "model.safetensors")
        save_weights(state.ema.state_dict(), part / "ema.safetensors")
        save_weights(moments, part / "optimizer.safetensors")
        write_json(
            part / "progress.json",
            {
                "format": FORMAT,
                **asdict(progress),
                "identity": identity.as_json(),
                "scaler": state.scaler.state_dict(),
            },
        )
        write_manifest(part)
    # at any moment one of these names is a complete checkpoint
    names = [folder / "last", *(folder / f"before-{age}" for age in range(1, keep))]
    oldest = folder / ".gone"
    shutil.rmtree(oldest, ignore_errors=True)
    if names[-1].exists():
        names[-1].rename(oldest)
    for newer, older in reversed(list(itertools.pairwise(names))):
        if newer.exists():
            newer.rename(older)
    (folder / ".part").rename(folder / "last")
    fsync_folder(folder)
    shutil.rmtree(oldest, ignore_errors=True)


def read_progress(folder: Path) -> Progress:
    """The progress stored in the checkpoint `folder`. Raises UserError if it has another format version."""
    return _read_progress(folder)[0]


def read_identity(folder: Path) -> Identity:
    """What the checkpoint `folder` was made from. Raises UserError if it has another format version."""
    return Identity.from_json(_read_progress(folder)[1]["identity"])


def _read_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    path = folder / "progress.json"
    values = check_shape(read_json(path), dict[str, Any], where=path, advice=START_ANEW)
    version = values.pop("format", 1)
    if version != FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {version}, but this version reads format {FORMAT}; train the run anew"
        )
    stored = check_shape(
        {name: values.pop(name, None) for name in Stored.__annotations__},
        Stored,
        where=path,
        advice=START_ANEW,
    )
    return validate(Progress, values, where=str(path)), stored


def load(folder: Path, state: TrainState) -> None:
    """Fill `state` from the checkpoint `folder`. Raises UserError if it does not fit."""
    try:
        _load(folder, state)
    except (
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # of the parts' own checks
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder}: does not fit the model and its settings ({reason}); {START_ANEW}"
        ) from error


def _load(folder: Path, state: TrainState) -> None:
    _, rest = _read_progress(folder)
    load_weights(state.module, folder / "model.safetensors")
    state.ema.load_state_dict(read_tensors(folder / "ema.safetensors", like=state.ema.state_dict()))
    groups = state.optimizer.state_dict()[
        "param_groups"
    ]  # their settings are the config's, not the checkpoint's
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    like = {
        f"{number}.{key}": torch.zeros(()) if key == "step" else parameter
        for number, parameter in enumerate(parameters)
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / "optimizer.safetensors", like=like, partial=True).items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = tensor
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.scaler.load_state_dict(rest["scaler"])


def latest(run: Path, *, log: Callable[[str], None] = lambda _: None) -> Path:
    """The newest undamaged checkpoint of a run; damaged newer ones are logged.

    Raises:
        UserError: there is none.
    """
    folder = run / "checkpoints"
    problems = []
    # `.part` is complete if it has a manifest: the process died before the rename
    names = [".part", "last", *sorted(path.name for path in folder.glob("before-*")), ".gone"]
    for name in names:
        if not (folder / name / "manifest.json").is_file():
            continue
        try:
            check_manifest(folder / name, needed=FILES)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log(f"{problem}; going on from {folder / name}")
        return folder / name
    if problems:
        raise UserError(f"{problems[0]}; no earlier checkpoint is whole either, start anew")
    raise UserError(f"{folder / 'last'}: no checkpoint to resume from; start without --resume")


def has_checkpoint(run: Path) -> bool:
    """Whether a run has written a checkpoint, damaged or not."""
    return any((run / "checkpoints").glob("*/manifest.json"))


def read_step(folder: Path) -> int:
    """The number of updates at the checkpoint `folder`."""
    return _read_progress(folder)[0].step
