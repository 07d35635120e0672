"""Gradient probes of several decoders as JSON, as a table, and as an answer: does the gradient vanish?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioning.inspection.gradients import VANISHED, Probe, decay


def summarize(stage: Mapping[str, Sequence[Probe]]) -> dict[str, Any]:
    """Norms and decays of each decoder for JSON: over seeds the geometric mean, the lowest and the highest."""
    return {
        label: {
            "seeds": len(probes),
            "inputs": _summarize_curves([probe.inputs for probe in probes], probes[0].common),
            "states": {
                state: _summarize_curves([probe.states[state] for probe in probes], probes[0].common)
                for state in probes[0].states
            },
            "last_word": _range([probe.last_word for probe in probes]),
            "losses_at_distance": probes[0].counted.tolist(),
        }
        for label, probes in stage.items()
    }


def _summarize_curves(curves: Sequence[np.ndarray], common: int) -> dict[str, Any]:
    fits = [decay(curve, common) for curve in curves]
    rates = [fit.rate for fit in fits]
    fit_summary = {
        "rate": {"mean": float(np.exp(np.mean(np.log(rates)))), "low": min(rates), "high": max(rates)},
        "half_life": [fit.half_life if math.isfinite(fit.half_life) else None for fit in fits],
        "r2": [fit.r2 for fit in fits],
        "distances": [fits[0].first, min(fit.last for fit in fits)],
        "left": [fit.left for fit in fits],
        "reach": [fit.reach for fit in fits],
    }
    return {**_range(curves), "decay": fit_summary}


def _range(curves: Sequence[np.ndarray]) -> dict[str, list[float]]:
    stacked = np.stack(curves)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(stacked).mean(0))
    return {"mean": mean.tolist(), "low": stacked.min(0).tolist(), "high": stacked.max(0).tolist()}


def verdict(summary: Mapping[str, Any], common: int) -> dict[str, str] | None:
    """Whether the gradient vanishes in the RNN and not in the LSTM, from the reach of every seed.

    Args:
        summary: `summarize` of a stage.
        common: the largest distance measured.

    Returns:
        "answer": yes; partly, if it vanishes in both but in every LSTM later than in any RNN; or no;
        "sentence". None without an RNN or an LSTM.
    """
    if not {"RNN", "LSTM"} <= summary.keys():
        return None
    decays = {name: summary[name]["inputs"]["decay"] for name in ("RNN", "LSTM")}
    rnn, lstm = decays["RNN"]["reach"], decays["LSTM"]["reach"]
    if max(rnn) < min(lstm):
        answer = "yes" if min(lstm) >= common else "partly"
    else:
        answer = "no"
    first, second = (
        f"{_reach(fit['reach'], common)} in the {name} ({_half_life(fit['half_life'])})"
        for name, fit in decays.items()
    )
    sentence = f"The gradient of a word's loss stays above {VANISHED:g} of its norm at distance 1 {first} and {second}."
    if min(*rnn, *lstm) >= common:
        sentence += " It vanishes in neither at these distances; use longer captions."
    return {"answer": answer, "sentence": sentence}


def _half_life(seeds: Sequence[float | None]) -> str:
    """The range of half-lives over seeds; None is infinite."""
    values = sorted(math.inf if value is None else value for value in seeds)
    low, high = (f"{value:.1f}" if math.isfinite(value) else "never" for value in (values[0], values[-1]))
    if values[0] == math.inf:
        return "never halved"
    return f"halved in {low} words" if low == high else f"halved in {low} to {high} words"


def _reach(reach: Sequence[int], common: int) -> str:
    low, high = min(reach), max(reach)
    if low >= common:
        return f"over all {common} words measured"
    words = f"{low}" if low == high else f"{low} to {high}"
    return f"over {words} words" + (f" of {common}" if high < common else " (all that were measured)")


def table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The decays as text, a row for each decoder, stage and kind of gradient; ranges are over seeds.

    Columns: "kept a word", the factor of the fit per word, its mean and range; "left at the end", the norm at the
    last distance of the fit over that at distance 1; "reach", see `Decay`.
    """
    rows = [
        ["", "", "seeds", "kept a word", "range", "half-life", "left at the end", "reach", "fit over", "R2"]
    ]
    for stage, summary in stages.items():
        for label, numbers in summary.items():
            for name, curve in (("inputs", numbers["inputs"]), *numbers["states"].items()):
                rows.append(
                    [stage, f"{label}, by {name}", str(numbers["seeds"]), *_decay_cells(curve["decay"])]
                )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _decay_cells(decay: Mapping[str, Any]) -> list[str]:
    rate, left, reach = decay["rate"], decay["left"], decay["reach"]
    return [
        f"{rate['mean']:.3f}",
        f"{rate['low']:.3f}-{rate['high']:.3f}",
        _half_life(decay["half_life"]).removeprefix("halved in "),
        f"{np.exp(np.mean(np.log(left))):.1e}",
        f"{min(reach)}-{max(reach)}" if min(reach) < max(reach) else str(reach[0]),
        f"{decay['distances'][0]}-{decay['distances'][1]}",
        f"{np.mean(decay['r2']):.2f}",
    ]
