"""How a beam search came to its captions, as plain values for JSON: the tree, and what each hypothesis lost to.

Watches the search itself, and knows words; it ranks and scores nothing anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any

import torch

from captioning.captioner.captioner import Captioner
from captioning.captioner.ensemble import EnsembleCaptioner
from captioning.captioner.predict import predictions
from captioning.errors import UserError
from captioning.generation import BeamConfig, GreedyConfig, SearchConfig, constraint_ids, search
from captioning.generation.base import shared_options
from captioning.generation.beam import BeamStep, beam_search
from captioning.generation.prefill import prefill
from captioning.generation.scores import IMPOSSIBLE, length_score
from captioning.inspection.rescoring import WordDetail, judge, word_details
from captioning.records import ImageId, Prediction
from captioning.text.vocabulary import Vocabulary

Ids = tuple[int, ...]


@torch.inference_mode()
def explain(
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
        images: of the one image, as `captioner.encode_memory` takes them.
        references: captions of the image, raw text; none: no verdict.

    Returns:
        `search`, the settings; `found`, the captions best first, with the numbers of each word and what all
        but the first lost to; `steps`, see `steps_of`; `greedy`, see `greedy_path`; `verdict`, see
        `reading.Verdict`. Log-probabilities in nats.

    Raises:
        UserError: the search is no beam search.
    """
    config = explainable(config)
    vocabulary = captioner.vocabulary
    memory = captioner.encode_memory(images)
    constraints = constraint_ids(config, vocabulary)
    options: dict[str, Any] = {"special": vocabulary.special_tokens, "constraints": constraints}
    turns: list[BeamStep] = []
    hypotheses = beam_search(
        prefill(captioner.decoder, memory, config, **options), config, on_step=turns.append
    )
    found = predictions(hypotheses, [image_id], vocabulary)
    greedy = GreedyConfig(**shared_options(config, GreedyConfig))
    likeliest = predictions(search(captioner.decoder, memory, greedy, **options), [image_id], vocabulary)[0]
    ranked = (found[0], *found[0].alternatives)
    together = replace(found[0], alternatives=(*found[0].alternatives, likeliest))
    *details, greedy_words = word_details(captioner, memory, [together], config)[0]
    steps = steps_of(turns, constraints.prefix, config, vocabulary)
    return {
        "image_id": image_id,
        "search": asdict(config),
        "found": [
            {**_told(each), "words": [asdict(word) for word in words], **_lost(each, ranked[0])}
            for each, words in zip(ranked, details, strict=True)
        ],
        "steps": steps,
        "greedy": greedy_path(likeliest, greedy_words, steps, config),
        "verdict": asdict(judge(captioner, memory, found, [references], config)[0]) if references else None,
    }


def explainable(config: SearchConfig) -> BeamConfig:
    """`config` itself. Raises UserError where it is no beam search."""
    if not isinstance(config, BeamConfig):
        raise UserError(f"only a beam search can be explained, not {config.kind}; give --search beam")
    return config


def steps_of(
    turns: Sequence[BeamStep], prefix: Ids, config: BeamConfig, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """What became of the live hypotheses of the first image at each word.

    Returns:
        For each word its number `length` (from 1) and
        live: the hypotheses that went on, best first: `parent` is the place of what they came from among the
            last step's, `word` the new word;
        ended: those that ended here, with their score;
        pruned: hypotheses of the last step from which nothing went on, with their likeliest continuation
            where it was among the search's candidates (`next`), and what took the last place (`lost_to`);
        stopped: the search of the image ends here.
    """
    before: list[tuple[Ids, float]] = [(prefix, 0.0)]
    steps: list[dict[str, Any]] = []
    for turn in turns:
        length = turn.beams.active.ids.shape[-1]
        words, parents, ways = (
            [*map(int, part)] for part in (turn.chosen.ids[0], turn.chosen.parents[0], turn.candidates.ids[0])
        )
        logprob, word_logprobs = turn.chosen.logprob[0].tolist(), turn.chosen.word_logprobs[0].tolist()
        live = [rank for rank in range(len(words)) if logprob[rank] != IMPOSSIBLE]
        after = [((*before[parents[rank]][0], words[rank]), logprob[rank]) for rank in live]
        ways_parents, ways_logp = turn.candidates.parents[0].tolist(), turn.candidates.logprob[0].tolist()
        ended = [
            way
            for way in range(min(config.width, len(ways)))
            if ways[way] == vocabulary.end and ways_logp[way] != IMPOSSIBLE
        ]
        went_on = {parents[rank] for rank in live} | {ways_parents[way] for way in ended}
        pruned = []
        for rank, (said, total) in enumerate(before):
            if rank in went_on or not steps:
                continue
            tried = [
                way for way in range(len(ways)) if ways_parents[way] == rank and ways_logp[way] != IMPOSSIBLE
            ]
            pruned.append(
                {
                    "rank": rank,
                    "caption": _text(said, vocabulary),
                    "logprob": total,
                    "next": {"word": vocabulary.words[ways[tried[0]]], "logprob": ways_logp[tried[0]]}
                    if tried
                    else None,
                    "lost_to": {"caption": _text(after[-1][0], vocabulary), "logprob": after[-1][1]}
                    if after
                    else None,
                }
            )
        steps.append(
            {
                "length": length,
                "live": [
                    {
                        "rank": place,
                        "parent": parents[rank],
                        "word": vocabulary.words[words[rank]],
                        "word_logprobs": word_logprobs[rank],
                        "logprob": logprob[rank],
                        "caption": _text(after[place][0], vocabulary),
                    }
                    for place, rank in enumerate(live)
                ],
                "ended": [
                    {
                        "parent": ways_parents[way],
                        "logprob": ways_logp[way],
                        "score": _score(ways_logp[way], length, config),
                        "caption": _text(before[ways_parents[way]][0], vocabulary),
                    }
                    for way in ended
                ],
                "pruned": pruned,
                "stopped": length == config.max_length
                or bool((turn.beams.active.logprob[0] == IMPOSSIBLE).all()),
            }
        )
        before = after
    return steps


def greedy_path(
    likeliest: Prediction, words: Sequence[WordDetail], steps: Sequence[dict[str, Any]], config: BeamConfig
) -> dict[str, Any]:
    """The greedy caption, its score by the beam's rule, and where the beam left its path.

    Args:
        words: of `likeliest`.
        steps: from `steps_of`.

    Returns:
        The caption's numbers, and `left_at`: the number of the first word (from 1) with which no hypothesis of
        the beam, live or ended, has said what greedy search had; null where there is none as long as the beam
        searched. `logp_there` is then greedy's so far, `weakest` that of the beam's last live hypothesis.
    """
    told = {**_told(likeliest), "score": _score(likeliest.logprob, len(words), config)}
    at: dict[int, dict[str, Any]] = {step["length"]: step for step in steps}
    for length in range(min(at), min(max(at), len(words)) + 1):
        ends = length == len(words) and likeliest.finished
        said = " ".join(each.word for each in words[: length - ends])
        if said not in {each["caption"] for each in at[length]["ended" if ends else "live"]}:
            live = at[length]["live"]
            return {
                **told,
                "left_at": length,
                "logp_there": sum(each.logprob for each in words[:length]),
                "weakest": live[-1]["logprob"] if live else None,
            }
    return {**told, "left_at": None, "logp_there": None, "weakest": None}


def _told(prediction: Prediction) -> dict[str, Any]:
    return {
        "caption": prediction.caption,
        "logprob": prediction.logprob,
        "score": prediction.score,
        "finished": prediction.finished,
    }


def _lost(prediction: Prediction, best: Prediction) -> dict[str, Any]:
    """What a caption that was found lost to, by how much score, and the first word (from 1) that differs."""
    if prediction is best:
        return {"lost_to": None}
    pairs = zip_longest(prediction.caption.split(" "), best.caption.split(" "))
    parts = next((place for place, (one, other) in enumerate(pairs, 1) if one != other), None)
    return {
        "lost_to": {"caption": best.caption, "by": best.score - prediction.score, "differs_at": parts},
    }


def _score(logprob: float, length: int, config: BeamConfig) -> float:
    return float(length_score(torch.tensor(logprob), length, config.length_rule, config.alpha))


def _text(words: Ids, vocabulary: Vocabulary) -> str:
    return " ".join(vocabulary.decode(words))
