"""The layout of steps in which sequences have ended, and the loop over it."""

import torch

from captioning.ops.time_loop import StepLayout, run_time_loop
from captioning.tensors import StepOutput

B, K, X = 2, 3, 5
SIZES = (3, 2, 2, 1)


def test_packing_and_stacking_keep_what_is_read_and_zero_the_rest():
    x = torch.randn(B, K, len(SIZES), X, generator=torch.Generator().manual_seed(0))
    layout = StepLayout.of(x[..., 0], SIZES)
    packed = layout.pack(x)
    assert packed.shape == (B * sum(SIZES), X)
    restored = layout.stack(layout.split(packed))
    read = torch.arange(K)[:, None] < torch.tensor(SIZES)
    assert torch.equal(restored, x * read[..., None])
    everything = StepLayout.of(x[..., 0], None)
    assert torch.equal(everything.stack(everything.split(everything.pack(x))), x)


def test_the_loop_sums_the_inputs_of_the_sequences_that_go_on():
    x = torch.randn(B, K, len(SIZES), X, generator=torch.Generator().manual_seed(1))
    layout = StepLayout.of(x[..., 0], SIZES)

    def step(inputs, state):
        assert inputs.shape == state[0].shape
        total = state[0] + inputs
        return StepOutput(hidden=total, attention=None), (total, state[1])

    start = (torch.zeros(B, K, X), torch.ones(B, K, 1))
    output = run_time_loop(layout, layout.pack(x), start, step)
    assert output.attention is None
    for t, size in enumerate(SIZES):
        torch.testing.assert_close(output.hidden[:, :size, t], x[:, :size, : t + 1].sum(2))
        assert not output.hidden[:, size:, t].any()
