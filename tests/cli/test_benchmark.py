"""`captioning benchmark`: refused arguments."""

from tests.helpers.running import tool


def test_an_unknown_decoder_is_one_sentence():
    done = tool("benchmark", "train", "--decoder", "lstm")
    assert done.code == 2 and done.err.count("\n") == 1 and "--decoder lstm: there are show_tell" in done.err
    done = tool("benchmark", "decode", "--decoder", "up_down")
    assert done.code == 2 and "--decoder of decode: one of soft_attention_lstm, transformer" in done.err


def test_captions_are_for_metrics():
    done = tool("benchmark", "train", "--captions", "x.json")
    assert (done.code, done.out) == (2, "") and "--captions is for metrics" in done.err
