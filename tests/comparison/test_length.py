"""Agreement of a caption's first and last name, and the cost per word by caption length."""

from captioning.comparison import length
from captioning.comparison.length import name_agreement
from captioning.models.decoders import SoftAttentionLSTMConfig, TransformerConfig


def test_agreement_of_first_and_last_name():
    captions = [
        "anna looks at this picture . so says anna .",
        "anna looks at this picture . so says boris .",
        "the picture shows a star",
        "anna looks at this picture",
    ]
    assert name_agreement(captions) == 0.25


def test_costs_are_measured_for_every_decoder_and_length(monkeypatch):
    monkeypatch.setattr(length, "IMAGES", 2)
    monkeypatch.setattr(length, "CAPTIONS", 3)
    decoders = {
        "lstm": SoftAttentionLSTMConfig(embedding=5, hidden=7, attention_size=3),
        "transformer": TransformerConfig(hidden=6, feed_forward=5, heads=2, layers=1, max_length=13),
    }
    rows = length.cost_by_length(decoders, [5, 11], channels=7, regions=3, vocabulary_size=17, repeats=1)
    assert rows.keys() == decoders.keys()
    for by_length in rows.values():
        assert [row["words"] for row in by_length] == [5, 11]
        assert all(row["train_us_per_token"] > 0 and row["decode_ms_per_word"] > 0 for row in by_length)
