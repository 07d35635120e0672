"""Show, Attend and Tell (Xu et al. 2015) with hard attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState, expand_state, init_gates_orthogonal
from captioning.models.decoders.region_attention import mean_region, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.attention import additive_scores, attention_weights
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.noise import gumbel, mix
from captioning.ops.time_loop import Linear, StepLayout, decode_sequence, decode_step
from captioning.tensors import Features, SampledRegions, SequenceOutput, StepOutput

NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class HardAttentionLSTMConfig(RecurrentConfig):
    """Settings of the decoder.

    Attributes:
        features: project the regions to that many channels first; None: no projection.
        expected: share of the images for which training uses the expected region instead of sampled ones.
        reward: lambda_r, the weight of the REINFORCE term.
        entropy: lambda_e, the weight of the attention's entropy, in nats.

    These three are used by cross-entropy only.
    """

    kind: Literal["hard_attention_lstm"] = "hard_attention_lstm"
    attention_size: Size = 512
    features: Size | None = None
    expected: Annotated[float, Field(ge=0, le=1)] = 0.5
    reward: NotNegative = 1.0
    entropy: NotNegative = 0.002

    def build(self, *, channels: int, vocabulary_size: int) -> HardAttentionLSTM:
        return HardAttentionLSTM(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    regions: Tensor  # (B, N, D)
    keys: Tensor  # (B, N, A)
    mask: Tensor | None  # (B, N)
    state: CellState  # (B, 1, H) each, before the first token
    expected: Tensor | None  # (B, 1) bool: images that use the expected region; None when not training
    noise: Tensor | None  # (B, K) int64, from which regions are sampled; None: see `HardAttentionLSTM`


class LoopWeights(NamedTuple):
    hidden: Linear
    context: Linear


class HardAttentionLSTM(Decoder):
    """An LSTM that reads one region before each word (Xu et al. 2015, section 4.1).

    The network is that of `SoftAttentionLSTM` (eqs. 1-7) except for the context:
        s_t ~ Multinoulli(alpha_t);  z_t = sum_i s_ti a_i                                  (eqs. 8, 9)
    which is learned by REINFORCE (eqs. 11, 12), with log p(s) in place of the regions' gradient:
        d log p(y | s) + lambda_r (log p(y | s) - b) d log p(s) + lambda_e d H[s]
    where b is a moving average of log p(y | s) (`losses.hard_attention`). For a share `expected` of the images the
    expected region is used instead of sampled ones; the paper does so for half of them. Self-critical training samples
    every region, and their log-probability counts as that of words does (`with_noise`).
    In eval mode the region is the most probable one: the LSTM reads a single region as in training, and the same one
    every time, so that a search ranks the captions that it returns. `attention` is alpha_t in either mode.
    Differs: no beta_t (section 4.2.1 has it for soft attention); otherwise as `SoftAttentionLSTM`. The authors' code
    generates captions with the expected region, decides between it and sampled ones per batch, not per image, and
    begins with b = 0; here the first update has no REINFORCE term.
    """

    baseline: Tensor

    def __init__(self, config: HardAttentionLSTMConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size, region_size = config.hidden, config.features or channels
        self.cell = LSTM(size)
        self.gate_size = self.cell.num_gates * size
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.state_init = nn.ModuleList(nn.Linear(region_size, size) for _ in range(self.cell.num_states))
        self.key_proj = nn.Linear(region_size, config.attention_size)
        self.score_weight = nn.Parameter(torch.empty(config.attention_size))
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.input_proj = nn.Linear(config.embedding, self.gate_size)
        # one product of the hidden state for the gates and the query
        self.hidden_proj = skip_init(nn.Linear, size, self.gate_size + config.attention_size, bias=False)
        self.context_proj = skip_init(nn.Linear, region_size, self.gate_size, bias=False)
        self.deep_output = nn.Linear(size + region_size + config.embedding, config.embedding)
        self.vocab_projection = VocabProjection(config.embedding, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("baseline", torch.tensor(float("nan")))  # b; NaN before the first update
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.score_weight, std=len(self.score_weight) ** -0.5)
        init_gates_orthogonal(self.hidden_proj.weight.data[: self.gate_size], self.config.hidden)
        nn.init.xavier_uniform_(self.hidden_proj.weight.data[self.gate_size :])
        nn.init.xavier_uniform_(self.context_proj.weight)
        self.cell.init_bias(self.input_proj.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        mean = mean_region(features)
        expected = None
        if self.training:
            expected = torch.rand(len(mean), 1, device=mean.device) < self.config.expected
        return Memory(
            regions=features.regions,
            keys=self.key_proj(features.regions),
            mask=features.mask,
            state=tuple(torch.tanh(layer(mean[:, None])) for layer in self.state_init),
            expected=expected,
            noise=None,
        )

    def with_noise(self, memory: Memory, noise: Tensor) -> Memory:
        return memory._replace(noise=noise, expected=None)

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        """(h, c), and where regions are sampled from noise, its state (B, num_sequences) int64."""
        state = expand_state(memory.state, num_sequences)
        return state if memory.noise is None else (*state, memory.noise)

    def step(self, ids: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        return decode_step(self, ids, state, memory, append_embedding=True)

    def forward(
        self, ids: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        regions: list[Tensor] = []

        def step_and_record(*inputs: Any) -> tuple[StepOutput, CellState]:
            output, state, region = self._attend_and_update(*inputs)
            regions.append(region)
            return output, state

        output = decode_sequence(
            self, ids, memory, batch_sizes, append_embedding=True, recurrent_step=step_and_record
        )
        if memory.expected is None and memory.noise is None:
            return output
        layout = StepLayout.of(ids, batch_sizes)
        sampled_regions = SampledRegions(
            regions=layout.stack([region[..., None] for region in regions])[..., 0],
            sampled=None if memory.expected is None else ~memory.expected,
            baseline=self.baseline,
            reward=self.config.reward,
            entropy=self.config.entropy,
        )
        return output._replace(sampled_regions=sampled_regions)

    def loop_weights(self) -> LoopWeights:
        return LoopWeights(
            hidden=DeferredGradLinear(self.hidden_proj), context=DeferredGradLinear(self.context_proj)
        )

    def recurrent_step(
        self, input_gates: Tensor, state: CellState, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, CellState]:
        """Attention and LSTM update of one time step; `hidden` of the output is [h_t, z_t]."""
        output, state, _ = self._attend_and_update(input_gates, state, memory, weights)
        return output, state

    def _attend_and_update(
        self, input_gates: Tensor, state: CellState, memory: Memory, weights: LoopWeights
    ) -> tuple[StepOutput, CellState, Tensor]:
        """`recurrent_step`, and the regions (B, K) int64 that were chosen."""
        hidden_gates, query = weights.hidden(state[0]).split([self.gate_size, self.config.attention_size], -1)
        attention = attention_weights(additive_scores(memory.keys, query, self.score_weight), memory.mask)
        cell_state, noise = state[: self.cell.num_states], state[self.cell.num_states :]
        if noise:
            gumbels = gumbel(mix(noise[0], 0), attention.shape[-1])
            region, noise = (attention.detach().log() + gumbels).argmax(-1), (mix(noise[0], 1),)
        elif memory.expected is None:
            region = attention.argmax(-1)
        else:
            region = torch.multinomial(attention.detach().flatten(0, 1), 1).view(attention.shape[:2])
        region_weights = F.one_hot(region, attention.shape[-1]).to(attention.dtype)  # (B, K, N)
        if memory.expected is not None:
            region_weights = torch.where(memory.expected[..., None], attention, region_weights)
        context = torch.bmm(region_weights, memory.regions)
        cell_state, gates = self.cell(input_gates + weights.context(context), hidden_gates, cell_state)
        hidden = torch.cat([cell_state[0], context], -1)
        output = StepOutput(hidden=hidden, attention=attention, gates=(gates,))
        return output, (*cell_state, *noise), region

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(torch.tanh(self.deep_output(hidden))))
