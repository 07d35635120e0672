"""The benchmark of metrics on a few images, against pycocoevalcap."""

import json

import numpy as np
import pytest

from captioning.benchmarks import metrics
from captioning.errors import UserError
from captioning.text.tokenizer import tokenize


@pytest.fixture
def small(monkeypatch):
    """The benchmark on 31 images, without Java, and with few resamples."""
    pytest.importorskip("pycocoevalcap")
    corpus = metrics.synthetic(seed=3, images=31)
    monkeypatch.setattr(metrics, "synthetic", lambda *, seed: corpus)
    monkeypatch.setattr(metrics, "RESAMPLES", 23)
    monkeypatch.setenv("PATH", "")
    return corpus


def test_results_without_java(small):
    result = json.loads(json.dumps(metrics.benchmark_metrics(repeats=2)))
    assert (result["images"], result["references"], result["repeats"], result["resamples"]) == (
        31,
        155,
        2,
        23,
    )
    assert result["java"] is None and "no Java" in result["java_why"]
    assert list(result["pycocoevalcap_seconds"]) == ["Bleu", "Rouge", "Cider"]
    assert result["largest_difference"] < 1e-12
    assert result["ours_per_s"] == pytest.approx(31 / result["seconds"])
    assert result["ratio"] > 0 and result["bootstrap_seconds"] > 0
    assert result["peak_share"] is None and "no matrix product" in result["peak_share_why"]
    text = "\n".join(metrics.lines(result))
    assert (
        f"{result['ratio']:.2f} times" in text
        and "without pycocoevalcap's tokenizer: there is no Java" in text
    )


def test_contenders_that_disagree_are_refused(small, monkeypatch):
    references, system = metrics._tokens(small.references, small.systems[1])
    monkeypatch.setattr(metrics, "_tokens", lambda *_: (references, system))
    with pytest.raises(RuntimeError, match="the contenders disagree by 0"):
        metrics.benchmark_metrics(repeats=1)


def test_synthetic_captions_have_realistic_lengths_and_words():
    corpus = metrics.synthetic(seed=5, images=211)
    texts = [text for captions in corpus.references for text in captions]
    lengths = [len(tokenize(text)) for text in texts]
    assert len(corpus.references) == 211 and {len(captions) for captions in corpus.references} == {5}
    assert 9.5 < np.mean(lengths) < 11.5 and min(lengths) >= 7 and max(lengths) <= 20
    assert 1000 < len({word for text in texts for word in tokenize(text)}) < 5000
    assert corpus.systems[0] != corpus.systems[1] and len(corpus.systems[0]) == 211


def test_real_captions_of_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"file_name": f"{n}.png", "caption": [f"a dog number {n} runs"] * 7} for n in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = metrics.real(str(path), seed=1)
    assert [len(captions) for captions in corpus.references] == [5] * 11
    assert corpus.references[3][0] == "a dog number 3 runs"
    assert all(len(text.split()) == 5 for system in corpus.systems for text in system)
    with pytest.raises(UserError, match="no such file"):
        metrics.real(str(tmp_path / "no.json"), seed=1)
