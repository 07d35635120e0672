"""Random systems with a known share of correct captions, small studies, and the numbers of a length study."""

from pathlib import Path

import numpy as np
import yaml

from captioning.comparison.results import System, SystemRun, compare, score_systems
from captioning.comparison.study import merge
from captioning.records import ImageRecord

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "a",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "on",
    "the",
    "grass",
    "red",
    "ball",
    "jumps",
    "over",
    "two",
    "men",
]
LENGTHS = (4, 7, 11)

LSTM = {"kind": "soft_attention_lstm", "embedding": 13, "hidden": 32, "attention_size": 17, "dropout": 0.0}
TRANSFORMER = {
    "kind": "transformer",
    "hidden": 40,
    "feed_forward": 60,
    "heads": 2,
    "layers": 2,
    "max_length": 32,
}
TINY = {
    "dataset": {"train": 23, "val": 5, "test": 7, "unseen": 1},
    "encoder": {"channels": [5, 7], "frequencies": 2},
    "preprocessing": {"size": 20},
    "search": {"kind": "greedy", "max_length": 9},
    "training": {"epochs": 2, "validate_every": 1, "batch_size": 5, "schedule": {"warmup": 1}, "workers": 0},
    "tracking": {"mode": "disabled"},
}


def make_records(count, seed=0):
    """Images with 5 references of 4, 7 or 11 random words."""
    rng = np.random.default_rng(seed)
    return [
        ImageRecord(
            number,
            f"/nowhere/{number}.jpg",
            tuple(" ".join(rng.choice(WORDS, LENGTHS[number % 3])) for _ in range(5)),
            "val",
        )
        for number in range(count)
    ]


def make_system(name, records, *, right, seeds, begin=0):
    """A system whose captions are a reference for a share `right` of the images, and random words for the rest."""
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng((begin, seed))
        captions = {
            record.image_id: record.captions[seed % 5]
            if rng.random() < right
            else " ".join(rng.choice(WORDS, 5))
            for record in records
        }
        runs.append(SystemRun(f"{name}-seed{seed}", seed, captions))
    return System(name, name.title(), runs)


def make_comparison(records, *systems, resamples=400):
    """The comparison as a report takes it, the scored systems and their images."""
    scored, common_records, remarks = score_systems(systems, records, split="val")
    comparison = compare(scored, common_records, resamples=resamples)
    comparison |= {"split": "val", "metric": "CIDEr-D", "chosen_on": "val", "remarks": remarks}
    return comparison, scored, common_records


def write_study(folder, **changes):
    """The YAML file of a study of an LSTM and a Transformer that trains in seconds."""
    values = {
        "name": "tiny",
        "base": str(ROOT / "configs" / "shapes.yaml"),
        "runs": str(folder / "runs"),
        "decoders": {"lstm": {"decoder": LSTM}, "transformer": {"decoder": TRANSFORMER}},
        "seeds": [0, 1],
        "match": {"target": "lstm", "tolerance": 0.05},
        "overrides": merge(TINY, {"dataset": {"root": str(folder / "data")}}),
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def length_numbers(*, lstm, rnn, transformer, slow=1.0, decode=1.0):
    """A length study at 10 and 200 words.

    Args:
        lstm, rnn, transformer: recall, quality and agreement at both lengths.
        slow: training time of the LSTM, 1 for the others.
        decode: decoding time of the Transformer, 1 for the others.
    """
    lengths = [10, 200]
    recall = {"lstm": lstm, "rnn": rnn, "transformer": transformer}
    by_length = {
        name: {
            words: [value - 0.01, value, value + 0.01] for words, value in zip(lengths, values, strict=True)
        }
        for name, values in recall.items()
    }
    times = {"lstm": (slow, 1.0), "rnn": (1.0, 1.0), "transformer": (1.0, decode)}
    costs = {
        name: [
            {
                "words": words,
                "train_us_per_token": training,
                "train_kb_per_token": 1.0,
                "decode_ms_per_word": decoding,
            }
            for words in lengths
        ]
        for name, (training, decoding) in times.items()
    }
    return {
        "quality": by_length,
        "recall": by_length,
        "agreement": by_length,
        "costs": costs,
        "metric": "CIDEr-D",
        "lengths": lengths,
        "labels": {name: name.upper() for name in recall},
    }
