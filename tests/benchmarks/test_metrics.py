"""The benchmark of metrics on a few images: it agrees with pycocoevalcap before it compares times, and says how."""

import json

import numpy as np
import pytest

from captioning.benchmarks import metrics
from captioning.errors import UserError
from captioning.text.tokenizer import tokenize
from tests.helpers.running import tool


@pytest.fixture
def small(monkeypatch):
    """The benchmark on 31 images, without Java, and with few resamples."""
    pytest.importorskip("pycocoevalcap")
    made = metrics.synthetic(seed=3, images=31)
    monkeypatch.setattr(metrics, "synthetic", lambda *, seed: made)
    monkeypatch.setattr(metrics, "RESAMPLES", 23)
    monkeypatch.setenv("PATH", "")
    return made


def test_figures_without_java(small):
    found = json.loads(json.dumps(metrics.benchmark_metrics(repeats=2)))
    assert (found["images"], found["references"], found["repeats"], found["resamples"]) == (31, 155, 2, 23)
    assert found["java"] is None and "no Java" in found["java_why"]
    assert list(found["pycocoevalcap_seconds"]) == ["Bleu", "Rouge", "Cider"]
    assert found["largest_difference"] < 1e-12
    assert found["ours_per_s"] == pytest.approx(31 / found["seconds"])
    assert found["ratio"] > 0 and found["bootstrap_seconds"] > 0
    assert found["peak_share"] is None and "no matrix product" in found["peak_share_why"]
    text = "\n".join(metrics.lines(found))
    assert (
        f"{found['ratio']:.2f} times" in text
        and "without pycocoevalcap's tokenizer: there is no Java" in text
    )


def test_two_ways_that_disagree_are_not_timed(small, monkeypatch):
    references, system = metrics._tokens(small.references, small.systems[1])
    monkeypatch.setattr(metrics, "_tokens", lambda *_: (references, system))
    with pytest.raises(RuntimeError, match="the two disagree by 0"):
        metrics.benchmark_metrics(repeats=1)


def test_made_up_captions_are_like_captions():
    made = metrics.synthetic(seed=5, images=211)
    texts = [text for own in made.references for text in own]
    lengths = [len(tokenize(text)) for text in texts]
    assert len(made.references) == 211 and {len(own) for own in made.references} == {5}
    assert 9.5 < np.mean(lengths) < 11.5 and min(lengths) >= 7 and max(lengths) <= 20
    assert 1000 < len({word for text in texts for word in tokenize(text)}) < 5000
    assert made.systems[0] != made.systems[1] and len(made.systems[0]) == 211


def test_captions_of_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"file_name": f"{n}.png", "caption": [f"a dog number {n} runs"] * 7} for n in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = metrics.real(str(path), seed=1)
    assert [len(own) for own in found.references] == [5] * 11
    assert found.references[3][0] == "a dog number 3 runs"
    assert all(len(text.split()) == 5 for system in found.systems for text in system)
    with pytest.raises(UserError, match="no such file"):
        metrics.real(str(tmp_path / "no.json"), seed=1)


def test_captions_are_for_metrics():
    done = tool("benchmark", "train", "--captions", "x.json")
    assert (done.code, done.out) == (2, "") and "--captions is for metrics" in done.err
