"""Show, Attend and Tell with hard attention. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.cells import LSTM, CellState
from captioning.models.decoders.region_attention import mean_region, projection
from captioning.models.decoders.settings import RecurrentConfig, Size
from captioning.ops.attention import additive_scores, attention_weights
from captioning.ops.cpu_kernels import DeferredGradLinear, VocabProjection
from captioning.ops.time_loop import Product, batch_sizes_of, loop, read
from captioning.tensors import Features, SampledRegions, SequenceOutput, StepOutput

NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class HardAttentionLSTMConfig(RecurrentConfig):
    """The decoder's sizes, and how it learns where to look.

    Attributes:
        features: project the regions to that many channels first (None: as they come).
        expected: share of the images for which training uses the expected region in place of sampled ones.
        reward: lambda_r, the weight of the REINFORCE term.
        entropy: lambda_e, the weight of the attention's entropy, in nats.
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
    valid: Tensor | None  # (B, N)
    state: CellState  # (B, H) each, before the first word
    expected: Tensor | None  # (B, 1) bool: images whose regions are not sampled; None where none are


class Products(NamedTuple):
    from_hidden: Product
    from_context: Product


class HardAttentionLSTM(Decoder):
    """LSTM over words that looks at one region before each (Xu et al. 2015, section 4.1).

    The network is that of `SoftAttentionLSTM` (eqs. 1-7) but for the context:
        s_t ~ Multinoulli(alpha_t);  z_t = sum_i s_ti a_i                                  (eqs. 8, 9)
    which is learned by REINFORCE (eqs. 11, 12), with log p(s) in place of the regions' gradient:
        d log p(y | s) + lambda_r (log p(y | s) - b) d log p(s) + lambda_e d H[s]
    where b is a moving average of log p(y | s) (`losses.hard_attention`). Of a share `expected` of the
    images the expected region is seen in place of sampled ones, as the paper does with a half of them.
    In eval mode the region is the likeliest: so what the LSTM sees is a region, as in training, and the same
    each time, so that a search ranks what it will claim. `Step.attention` is alpha_t in either mode.
    Differs: no beta_t (section 4.2.1 has it for soft attention); as in `SoftAttentionLSTM`.
    """

    baseline: Tensor

    def __init__(self, config: HardAttentionLSTMConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        context = config.features or channels
        self.cell = LSTM(size)
        self.gates = self.cell.blocks * size
        self.project = projection(channels, config.features, dropout=config.dropout)
        self.first = nn.ModuleList(nn.Linear(context, size) for _ in range(self.cell.states))
        self.keys = nn.Linear(context, config.attention_size)
        self.energy = nn.Parameter(torch.empty(config.attention_size))
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, self.gates)
        # one product gives what the state says to the gates and to the attention
        self.from_hidden = skip_init(nn.Linear, size, self.gates + config.attention_size, bias=False)
        self.from_context = skip_init(nn.Linear, context, self.gates, bias=False)
        self.deep = nn.Linear(size + context + config.embedding, config.embedding)
        self.vocab_projection = VocabProjection(config.embedding, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("baseline", torch.tensor(float("nan")))  # b, once there is one
        self._initialise()

    def _initialise(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.energy, std=len(self.energy) ** -0.5)
        for gate in self.from_hidden.weight.data[: self.gates].split(self.config.hidden):
            nn.init.orthogonal_(gate)
        nn.init.xavier_uniform_(self.from_hidden.weight.data[self.gates :])
        nn.init.xavier_uniform_(self.from_context.weight)
        self.cell.initialise(self.word_gates.bias, forget=self.config.forget_bias)

    def encode_memory(self, features: Features) -> Memory:
        features = features._replace(regions=self.project(features.regions))
        mean = mean_region(features)
        expected = None
        if self.training:
            chance = torch.rand(len(mean), 1, device=mean.device)
            expected = chance < self.config.expected
        return Memory(
            regions=features.regions,
            keys=self.keys(features.regions),
            valid=features.valid,
            state=tuple(torch.tanh(first(mean)) for first in self.first),
            expected=expected,
        )

    def init_state(self, memory: Memory, num_sequences: int) -> CellState:
        return tuple(part[:, None].expand(-1, num_sequences, -1) for part in memory.state)

    def step(self, words: Tensor, state: CellState, memory: Memory) -> tuple[StepOutput, CellState]:
        embedded, said = read(words, self.embedding, self.dropout, self.word_gates)
        step, state, _ = self._cell(said, state, memory, self._products())
        return step._replace(hidden=torch.cat([step.hidden, embedded], -1)), state

    def forward(
        self, words: Tensor, memory: Memory, batch_sizes: Sequence[int] | None = None
    ) -> SequenceOutput:
        runs, products = batch_sizes_of(words, batch_sizes), self._products()
        embedded = self.dropout(self.embedding(runs.gathered(words)))
        regions = []

        def cell(said: Tensor, state: CellState) -> tuple[StepOutput, CellState]:
            step, state, region = self._cell(said, state, memory, products)
            regions.append(region)
            return step, state

        steps = loop(runs, self.word_gates(embedded), self.init_state(memory, runs.width), cell)
        behind = runs.stacked(runs.parted(embedded))
        looked = None
        if memory.expected is not None:
            looked = SampledRegions(
                regions=runs.stacked([each[..., None] for each in regions])[..., 0],
                sampled=~memory.expected,
                baseline=self.baseline,
                reward=self.config.reward,
                entropy=self.config.entropy,
            )
        return steps._replace(hidden=torch.cat([steps.hidden, behind], -1), looked=looked)

    def _products(self) -> Products:
        return Products(
            from_hidden=DeferredGradLinear(self.from_hidden),
            from_context=DeferredGradLinear(self.from_context),
        )

    def _cell(
        self, said: Tensor, state: CellState, memory: Memory, products: Products
    ) -> tuple[StepOutput, CellState, Tensor]:
        """One step for what words (B, K) say to the gates; its `hidden` is [h_t, z_t]; and the regions (B, K)."""
        recalled, query = products.from_hidden(state[0]).split([self.gates, self.config.attention_size], -1)
        attention = attention_weights(additive_scores(memory.keys, query, self.energy), memory.valid)
        if memory.expected is None:
            region = attention.argmax(-1)
        else:
            region = torch.multinomial(attention.detach().flatten(0, 1), 1).view(attention.shape[:2])
        weights = F.one_hot(region, attention.shape[-1]).to(attention.dtype)
        if memory.expected is not None:
            weights = torch.where(memory.expected[..., None], attention, weights)
        context = torch.bmm(weights, memory.regions)
        state, gates = self.cell(said + products.from_context(context), recalled, state)
        hidden = torch.cat([state[0], context], -1)
        return StepOutput(hidden=hidden, attention=attention, gates=(gates,)), state, region

    def logits(self, hidden: Tensor) -> Tensor:
        return self.vocab_projection(self.dropout(torch.tanh(self.deep(hidden))))
