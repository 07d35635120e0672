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


def test_encoders_that_cannot_be_compared_are_one_sentence():
    for encoder, message in (
        ("kind=small", "small has no plain counterpart"),
        ("kind=timm,name=test_resnet,layer=1", "only the last maps"),
        ("resnet5", "the closest are"),
    ):
        done = tool("benchmark", "encode", "--encoder", encoder)
        assert done.code == 2 and done.err.count("\n") == 1 and message in done.err
    done = tool("benchmark", "train", "--encoder", "resnet18")
    assert done.code == 2 and "--encoder is for encode" in done.err
