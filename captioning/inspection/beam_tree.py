"""A record of a beam search for JSON: the tree of hypotheses, and what each discarded one lost to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.captioner.predict import to_predictions
from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, constraint_ids, search
from captioning.generation.base import shared_options
from captioning.generation.beam import BeamStep, beam_search
from captioning.generation.prefill import prefill
from captioning.generation.scores import IMPOSSIBLE, Candidates
from captioning.inspection.rescoring import WordDetail, judge, word_details
from captioning.records import ImageId, Prediction
from captioning.text.vocabulary import Vocabulary

Ids = tuple[int, ...]


@torch.inference_mode()
def explain_search(
    captioner: Captioner | EnsembleCaptioner,
    images: Any,
    image_id: ImageId,
    config: SearchConfig,
    *,
    references: Sequence[str] = (),
) -> dict[str, Any]:
    """The beam search of one image.

    Args:
        captioner: in eval mode, on the device of `images`.
        images: the one image, as `captioner.encode_memory` takes it.
        references: captions of the image, raw text; none: no verdict.

    Returns:
        `search`: the options. `captions`: best first, with the numbers of each word and what all but the first
        lost to. `steps`: see `search_steps`. `greedy`: see `compare_greedy`. `verdict`: see
        `rescoring.Verdict`. Log-probabilities in nats.

    Raises:
        UserError: the search is not a beam search.
    """
    config = require_beam_search(config)
    vocabulary = captioner.vocabulary
    memory = captioner.encode_memory(images)
    constraints = constraint_ids(config, vocabulary)
    options: dict[str, Any] = {"special": vocabulary.special_tokens, "constraints": constraints}
    beam_steps: list[BeamStep] = []
    hypotheses = beam_search(
        prefill(captioner.decoder, memory, config, **options), config, on_step=beam_steps.append
    )
    (prediction,) = to_predictions(hypotheses, [image_id], vocabulary)
    greedy_config = GreedyConfig(**shared_options(config, GreedyConfig))
    hypotheses = search(captioner.decoder, memory, greedy_config, **options)
    (greedy,) = to_predictions(hypotheses, [image_id], vocabulary)
    captions = (prediction, *prediction.alternatives)
    all_captions = replace(prediction, alternatives=(*prediction.alternatives, greedy))
    *details, greedy_words = word_details(captioner, memory, [all_captions], config)[0]
    steps = search_steps(beam_steps, constraints.prefix, config, vocabulary)
    verdicts = judge(captioner, memory, [prediction], [references], config) if references else [None]
    return {
        "image_id": image_id,
        "search": asdict(config),
        "captions": [
            {
                **_caption_numbers(caption),
                "words": [asdict(word) for word in words],
                "lost_to": None if caption is prediction else _compare(caption, prediction),
            }
            for caption, words in zip(captions, details, strict=True)
        ],
        "steps": steps,
        "greedy": compare_greedy(greedy, greedy_words, steps, config),
        "verdict": verdicts[0] and asdict(verdicts[0]),
    }


def require_beam_search(config: SearchConfig) -> BeamConfig:
    """`config` itself. Raises UserError where it is not a beam search."""
    if not isinstance(config, BeamConfig):
        raise UserError(f"only a beam search can be explained, not {config.kind}; give --search beam")
    return config


class _Hypothesis(NamedTuple):
    parent: int  # index among the hypotheses of the last step
    ids: Ids
    word_logprob: float
    logprob: float


def search_steps(
    beam_steps: Sequence[BeamStep], prefix: Ids, config: BeamConfig, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """What happened to the hypotheses of the first image at each step.

    Returns:
        For each step its `length` (from 1) and
        active: the new active hypotheses, best first: `parent` is the index of the hypothesis of the last step
            that was continued, `word` the new word;
        finished: hypotheses that ended here, with their scores;
        pruned: hypotheses of the last step that were not continued, with their most likely continuation if
            it was among the search's candidates (`next`), and the hypothesis in the last place (`lost_to`);
        stopped: whether the search of the image ends here.
    """
    before = [_Hypothesis(0, prefix, 0.0, 0.0)]
    steps: list[dict[str, Any]] = []
    for beam_step in beam_steps:
        active = _continue(before, beam_step.chosen)
        candidates = _continue(before, beam_step.candidates)
        # candidates are in the order of the search, impossible ones last
        finished = [item for item in candidates[: config.width] if item.ids[-1] == vocabulary.end]
        step = _describe_step(beam_step, active, finished, config, vocabulary)
        # the prefix has no alternatives, so nothing is pruned in the first step
        continued = {item.parent for item in (*active, *finished)} if steps else range(len(before))
        step["pruned"] = [
            _describe_pruned(rank, hypothesis, candidates, active, vocabulary)
            for rank, hypothesis in enumerate(before)
            if rank not in continued
        ]
        steps.append(step)
        before = active
    return steps


def _describe_step(
    beam_step: BeamStep,
    active: Sequence[_Hypothesis],
    finished: Sequence[_Hypothesis],
    config: BeamConfig,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    length = beam_step.beams.active.ids.shape[-1]
    no_active = bool((beam_step.beams.active.logprob[0] == IMPOSSIBLE).all())
    return {
        "length": length,
        "active": [
            {
                "rank": rank,
                "parent": hypothesis.parent,
                "word": vocabulary.words[hypothesis.ids[-1]],
                "word_logprob": hypothesis.word_logprob,
                "logprob": hypothesis.logprob,
                "caption": _text(hypothesis.ids, vocabulary),
            }
            for rank, hypothesis in enumerate(active)
        ],
        "finished": [
            {
                "parent": hypothesis.parent,
                "logprob": hypothesis.logprob,
                "score": _score(hypothesis.logprob, length, config),
                "caption": _text(hypothesis.ids, vocabulary),
            }
            for hypothesis in finished
        ],
        "stopped": length == config.max_length or no_active,
    }


def _describe_pruned(
    rank: int,
    hypothesis: _Hypothesis,
    candidates: Sequence[_Hypothesis],
    active: Sequence[_Hypothesis],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    following = next((candidate for candidate in candidates if candidate.parent == rank), None)
    worst = active[-1] if active else None
    return {
        "rank": rank,
        "caption": _text(hypothesis.ids, vocabulary),
        "logprob": hypothesis.logprob,
        "next": following and {"word": vocabulary.words[following.ids[-1]], "logprob": following.logprob},
        "lost_to": worst and {"caption": _text(worst.ids, vocabulary), "logprob": worst.logprob},
    }


def _continue(before: Sequence[_Hypothesis], candidates: Candidates) -> list[_Hypothesis]:
    """The possible candidates of the first image."""
    rows = zip(*(field[0].tolist() for field in candidates), strict=True)
    return [
        _Hypothesis(parent, (*before[parent].ids, token), word_logprob, logprob)
        for parent, token, word_logprob, logprob in rows
        if logprob != IMPOSSIBLE
    ]


def compare_greedy(
    greedy: Prediction, words: Sequence[WordDetail], steps: Sequence[dict[str, Any]], config: BeamConfig
) -> dict[str, Any]:
    """The greedy caption, its score by the beam's length rule, and where the beam dropped it.

    Args:
        words: of `greedy`.
        steps: from `search_steps`.

    Returns:
        The caption's numbers, and `diverges_at`: the first length (from 1) at which no hypothesis of the beam,
        active or finished, equals the greedy one; null if there is none while the beam searched.
        `greedy_logprob` is the log-probability of the greedy hypothesis there, `worst_active_logprob` that of
        the beam's last active one.
    """
    numbers = {**_caption_numbers(greedy), "score": _score(greedy.logprob, len(words), config)}
    by_length: dict[int, dict[str, Any]] = {step["length"]: step for step in steps}
    for length in range(min(by_length), min(max(by_length), len(words)) + 1):
        ends = length == len(words) and greedy.finished
        text = " ".join(word.word for word in words[: length - ends])
        step = by_length[length]
        if text not in {hypothesis["caption"] for hypothesis in step["finished" if ends else "active"]}:
            return {
                **numbers,
                "diverges_at": length,
                "greedy_logprob": sum(word.logprob for word in words[:length]),
                "worst_active_logprob": step["active"][-1]["logprob"] if step["active"] else None,
            }
    return {**numbers, "diverges_at": None, "greedy_logprob": None, "worst_active_logprob": None}


def _caption_numbers(prediction: Prediction) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in ("caption", "logprob", "score", "finished")}


def _compare(prediction: Prediction, best: Prediction) -> dict[str, Any]:
    """The caption that another one lost to, the difference in score, and the first token (from 1) that differs."""
    pairs = zip_longest(prediction.ids, best.ids)
    differs_at = next((place for place, (one, other) in enumerate(pairs, 1) if one != other), None)
    return {"caption": best.caption, "by": best.score - prediction.score, "differs_at": differs_at}


def _score(logprob: float, length: int, config: BeamConfig) -> float:
    return float(config.score(torch.tensor(logprob), length))


def _text(ids: Ids, vocabulary: Vocabulary) -> str:
    return vocabulary.text(ids)
