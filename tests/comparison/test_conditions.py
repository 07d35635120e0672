"""What differs between systems, what is the same, and what is unknown."""

from captioning.comparison.conditions import condition_sentences


def system(
    label, *, rate=0.001, dropout=0.1, smoothing=0.0, encoder="mobilenet_v2", updates=(90, 90), **facts
):
    config = {
        "name": label,
        "dataset": {"kind": "flickr8k", "root": "data"},
        "encoder": {"kind": "torchvision", "name": encoder},
        "decoder": {"kind": label.lower(), "hidden": 7 * len(label), "dropout": dropout},
        "training": {"learning_rate": rate, "label_smoothing": smoothing},
    }
    logged = [{"updates": count, "epochs": 5} for count in updates]
    return {"label": label, "config": config, "logged": logged, "parameters": 1234, **facts}


def test_everything_that_differs_is_listed_and_nothing_else():
    same = system("LSTM"), system("GRU")
    (sentence,) = condition_sentences(same)
    assert sentence.startswith("The same for all systems: ") and "data flickr8k" in sentence
    assert "parameters of the decoder 1,234" in sentence and "finished epochs 5" in sentence

    other = system(
        "GRU", rate=0.002, dropout=0.3, smoothing=0.1, encoder="resnet50", updates=(80, 100), parameters=2000
    )
    differ, same = condition_sentences([system("LSTM"), other])
    for text in (
        "parameters of the decoder (LSTM 1,234, GRU 2,000)",
        "updates (LSTM 90, GRU 80 to 100)",
        "learning rate (LSTM 0.001, GRU 0.002)",
        "encoder (LSTM torchvision mobilenet_v2, GRU torchvision resnet50)",
        "`training.label_smoothing` (LSTM 0.0, GRU 0.1)",
        "`decoder.dropout` (LSTM 0.1, GRU 0.3)",
    ):
        assert text in differ
    assert "hidden" not in differ and "epochs" not in differ and "data" not in differ
    assert "finished epochs 5" in same and "updates" not in same


def test_what_made_a_file_of_captions_is_unknown():
    files = [{"label": name, "logged": [{}]} for name in ("a", "b")]
    (sentence,) = condition_sentences(files)
    assert sentence.startswith("Unknown")
    assert sentence.endswith(
        ": parameters of the decoder; updates; finished epochs; learning rate; encoder; data."
    )
    sentences = condition_sentences([files[0], system("LSTM")])
    assert len(sentences) == 1 and "updates of a" in sentences[0]
