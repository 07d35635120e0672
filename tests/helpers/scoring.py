"""A small data set in every format of references, captions of it, and their scores by pycocoevalcap."""

import csv
import json
from pathlib import Path

import pytest

from captioning.text.tokenizer import tokenize

IMAGES = {  # name: split, references
    "a 1.png": ("val", ["A dog runs on the grass.", "the dog, on grass"]),
    "b.png": ("val", ["A red cat!", "the café cat", "two cats"]),
    "c.png": ("val", ["grass on a dog", "the red runs"]),
    "d.png": ("test", ["The dog", "A dog and a cat sleep"]),
    "e.png": ("test", ["a cat", "Cats on grass", 'a "cat", red']),
    "f.png": ("odd", ["one, two"]),
}


CAPTIONS = {"a 1.png": "A dog runs on grass", "b.png": "the red cat.", "c.png": "a grass cat runs on a dog"}


METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr-D")  # in JSON


PRINTED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D")


VAL = {name: texts for name, (split, texts) in IMAGES.items() if split == "val"}


def results(path: Path, captions: dict) -> Path:
    path.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in captions.items()]))
    return path


def write_coco(folder: Path, images: dict = VAL, first: int = 101) -> Path:
    ids = {name: first + 2 * number for number, name in enumerate(images)}
    content = {
        "images": [{"id": ids[name], "file_name": name} for name in images],
        "annotations": [
            {"id": 1000 * ids[name] + number, "image_id": ids[name], "caption": text}
            for name, texts in images.items()
            for number, text in enumerate(texts)
        ],
    }
    path = folder / "captions_mine.json"
    path.write_text(json.dumps(content))
    return path


def write_karpathy(folder: Path) -> Path:
    path = folder / "dataset_mine.json"
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, (split, texts) in IMAGES.items()
    ]
    path.write_text(json.dumps({"images": images, "dataset": "mine"}))
    return path


def write_lists(folder: Path) -> None:
    for split, name in (("train", "odd"), ("dev", "val"), ("test", "test")):
        names = [image for image, (its, _) in IMAGES.items() if its == name]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))


def write_tokens(folder: Path, images: dict | None = None) -> Path:
    path = folder / "Flickr8k.token.txt"
    images = images or {name: texts for name, (_, texts) in IMAGES.items()}
    rows = [f"{name}#{n}\t{text}\n" for name, texts in images.items() for n, text in enumerate(texts)]
    path.write_text("".join(rows))
    return path


def write_pairs(folder: Path) -> Path:
    path = folder / "captions.txt"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "caption"), *((name, text) for name, (_, texts) in IMAGES.items() for text in texts)]
        )
    return path


def write_folder_csv(folder: Path) -> Path:
    path = folder / "mine.csv"
    rows = [(text, split, name) for name, (split, texts) in IMAGES.items() for text in texts]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("caption", "split", "file_name"), *rows])
    return path


def write_jsonl(folder: Path) -> Path:
    path = folder / "mine.jsonl"
    rows = [{"file_name": name, "caption": texts, "split": split} for name, (split, texts) in IMAGES.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_piped(folder: Path) -> Path:
    path = folder / "results.csv"
    rows = [f"{name}| {n}| {text}" for name, texts in VAL.items() for n, text in enumerate(texts)]
    path.write_text("\n".join(["image_name| comment_number| comment", *rows]))
    return path


def pycocoevalcap(references: dict, captions: dict) -> dict[str, float]:
    return {name: whole for name, (whole, _) in _pycocoevalcap(references, captions).items()}


def pycocoevalcap_of_each(references: dict, captions: dict) -> list[dict[str, float]]:
    found = _pycocoevalcap(references, captions)
    return [{name: float(each[row]) for name, (_, each) in found.items()} for row in range(len(captions))]


def _pycocoevalcap(references: dict, captions: dict) -> dict[str, tuple]:
    """Each metric's corpus score and those of the images."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {key: [" ".join(tokenize(text)) for text in texts] for key, texts in references.items()}
    res = {key: [" ".join(tokenize(text))] for key, text in captions.items()}
    four = bleu.Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"Bleu_{n}": pair for n, pair in enumerate(zip(*four, strict=True), 1)}
    return {**scores, "ROUGE_L": Rouge().compute_score(gts, res), "CIDEr-D": Cider().compute_score(gts, res)}
