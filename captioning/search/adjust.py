"""A model's search settings with some of them changed from a command line. Knows no models."""

from __future__ import annotations

from dataclasses import replace

from captioning.errors import UserError
from captioning.search.beam import BeamConfig
from captioning.search.greedy import GreedyConfig
from captioning.search.scores import LengthRule


def adjusted(
    config: GreedyConfig | BeamConfig,
    *,
    width: int | None = None,
    n_best: int | None = None,
    max_length: int | None = None,
    length_rule: LengthRule | None = None,
    longest: int | None = None,
) -> GreedyConfig | BeamConfig:
    """`config` with what is given; None keeps its own value.

    A greedy config becomes a beam of width 1 where only a beam has what is asked for. Without `width` the
    beam grows to `n_best`; with it, `n_best` of the config is lowered to it.

    Args:
        longest: most words (`<end>` counted) that the decoder can read; None: any number.

    Raises:
        UserError: more captions than the beam is wide, or a length that is not to be had.
    """
    if max_length is not None:
        if longest is not None and max_length > longest:
            raise UserError(
                f"--max-length {max_length}: this model's decoder reads no more than {longest} words"
            )
        if max_length < config.min_length:
            raise UserError(f"--max-length {max_length}: the model's min_length is {config.min_length}")
        config = replace(config, max_length=max_length)
    if (width, n_best, length_rule) == (None, None, None):
        return config
    if isinstance(config, GreedyConfig):
        config = BeamConfig(width=1, max_length=config.max_length, min_length=config.min_length)
    if n_best is None:
        n_best = config.n_best if width is None else min(config.n_best, width)
    if width is None:
        width = max(config.width, n_best)
    if n_best > width:
        raise UserError(f"--top {n_best}: a beam of {width} finds no more than {width}; give --beam {n_best}")
    return replace(config, width=width, n_best=n_best, length_rule=length_rule or config.length_rule)
