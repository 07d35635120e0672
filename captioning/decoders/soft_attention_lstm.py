"""Show, Attend and Tell with soft attention. Knows ids and regions, never words or pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.decoders.attention import additive_energy, attend
from captioning.decoders.base import Decoder
from captioning.decoders.recurrence import LoopLinear
from captioning.tensors import Features, Step, Steps

Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class SoftAttentionLSTMConfig:
    """Sizes of the decoder; `features` projects the regions to that many channels first (None: as they come)."""

    __pydantic_config__ = {"extra": "forbid"}
    kind: Literal["soft_attention_lstm"] = "soft_attention_lstm"
    embedding: Size = 512
    hidden: Size = 512
    attention: Size = 512
    features: Size | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @property
    def longest(self) -> None:
        """Captions of any length are read."""
        return None

    def build(self, *, channels: int, vocabulary_size: int) -> SoftAttentionLSTM:
        return SoftAttentionLSTM(self, channels=channels, vocabulary_size=vocabulary_size)


class Memory(NamedTuple):
    regions: Tensor  # (B, N, D)
    keys: Tensor  # (B, N, A)
    valid: Tensor | None  # (B, N)
    hidden: Tensor  # (B, H), before the first word
    cell: Tensor  # (B, H)


class Carry(NamedTuple):
    hidden: Tensor  # (B, K, H)
    cell: Tensor  # (B, K, H)


Product = Callable[[Tensor], Tensor]


class SoftAttentionLSTM(Decoder):
    """LSTM over words that looks at a weighted mean of the regions before each (Xu et al. 2015).

    With a_i the regions, h and c the state, E the embedding:
        h_0, c_0 = tanh(f_h(mean a)), tanh(f_c(mean a))                       (section 3.1.2)
        e_ti     = v . tanh(W_a a_i + W_h h_t-1);  alpha_t = softmax(e_t)     (eqs. 4, 5)
        z_t      = beta_t sum_i alpha_ti a_i;  beta_t = sigmoid(f_beta(h_t-1)) (eq. 13, section 4.2.1)
        h_t, c_t = LSTM([E y_t-1, z_t], h_t-1, c_t-1)                         (eqs. 1-3)
        p(y_t)   = softmax(L_o tanh(L_E E y_t-1 + L_h h_t + L_z z_t))         (eq. 7)
    Differs: eq. 7 has no tanh (the authors' code offers it) and no L_E (sizes needn't agree here);
    the regions may be projected and normalised first (`features`).
    The gates stand in the order of `torch.nn.LSTM`: input, forget, candidate, output.
    """

    def __init__(self, config: SoftAttentionLSTMConfig, *, channels: int, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        size = config.hidden
        context = config.features or channels
        self.project = (
            nn.Sequential(
                nn.Linear(channels, context), nn.LayerNorm(context), nn.ReLU(), nn.Dropout(config.dropout)
            )
            if config.features
            else nn.Identity()
        )
        self.start_hidden = nn.Linear(context, size)
        self.start_cell = nn.Linear(context, size)
        self.keys = nn.Linear(context, config.attention)
        self.energy = nn.Parameter(torch.empty(config.attention))
        self.embedding = nn.Embedding(vocabulary_size, config.embedding)
        self.word_gates = nn.Linear(config.embedding, 4 * size)
        # one product gives what the state says to the gates, to the attention and to beta
        self.from_hidden = nn.Parameter(torch.empty(4 * size + config.attention + 1, size))
        self.beta_bias = nn.Parameter(torch.zeros(()))
        self.from_context = nn.Parameter(torch.empty(4 * size, context))
        self.deep = nn.Linear(size + context + config.embedding, config.embedding)
        self.words = nn.Linear(config.embedding, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        size = self.config.hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.energy, std=self.config.attention**-0.5)
        for gate in self.from_hidden[: 4 * size].data.split(size):
            nn.init.orthogonal_(gate)
        nn.init.xavier_uniform_(self.from_hidden.data[4 * size :])
        nn.init.xavier_uniform_(self.from_context)
        nn.init.zeros_(self.word_gates.bias)
        nn.init.ones_(
            self.word_gates.bias.data[size : 2 * size]
        )  # remember at first (Jozefowicz et al. 2015)

    def remember(self, features: Features) -> Memory:
        regions = self.project(features.regions)
        if features.valid is None:
            mean = regions.mean(1)
        else:
            weight = features.valid.to(regions.dtype)
            mean = torch.einsum("bnd,bn->bd", regions, weight) / weight.sum(1, keepdim=True)
        return Memory(
            regions=regions,
            keys=self.keys(regions),
            valid=features.valid,
            hidden=torch.tanh(self.start_hidden(mean)),
            cell=torch.tanh(self.start_cell(mean)),
        )

    def start(self, memory: Memory, width: int) -> Carry:
        return Carry(
            hidden=memory.hidden[:, None].expand(-1, width, -1),
            cell=memory.cell[:, None].expand(-1, width, -1),
        )

    def step(self, words: Tensor, carry: Carry, memory: Memory) -> tuple[Step, Carry]:
        embedded, gates = self._read(words)
        carry, context, attention = self._cell(
            gates, carry, memory, LoopLinear(self.from_hidden), LoopLinear(self.from_context)
        )
        return Step(hidden=torch.cat([carry.hidden, context, embedded], -1), attention=attention), carry

    def _read(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """What (B, K) words are, (B, K, E), and say to the gates, (B, K, 4H)."""
        if self.training or words.device.type != "cpu":
            embedded = self.dropout(self.embedding(words))
            return embedded, self.word_gates(embedded)
        # hypotheses of many images read the same few words; each is multiplied once
        read, place = words.unique(return_inverse=True)
        embedded = self.embedding(read)
        return embedded[place], self.word_gates(embedded)[place]

    def forward(self, words: Tensor, memory: Memory, running: Sequence[int] | None = None) -> Steps:
        images, width, length = words.shape
        counts = list(running) if running is not None else [width] * length
        # the words of all steps, those still running only: one embedding, one product with the gates
        flat = torch.cat([words[:, :count, t].reshape(-1) for t, count in enumerate(counts)])
        embedded = self.dropout(self.embedding(flat))
        sizes = [images * count for count in counts]
        gates = self.word_gates(embedded).split(sizes)
        from_hidden, from_context = LoopLinear(self.from_hidden), LoopLinear(self.from_context)
        carry = self.start(memory, width)
        hidden, contexts, attentions = [], [], []
        for gate, count in zip(gates, counts, strict=True):
            if count < carry.hidden.shape[1]:
                carry = Carry(hidden=carry.hidden[:, :count], cell=carry.cell[:, :count])
            carry, context, attention = self._cell(
                gate.view(images, count, -1), carry, memory, from_hidden, from_context
            )
            hidden.append(carry.hidden)
            contexts.append(context)
            attentions.append(attention)
        words_read = [
            part.view(images, count, -1) for part, count in zip(embedded.split(sizes), counts, strict=True)
        ]
        return Steps(
            hidden=torch.cat([_stack(part, width) for part in (hidden, contexts, words_read)], -1),
            attention=_stack(attentions, width),
        )

    def _cell(
        self, gates: Tensor, carry: Carry, memory: Memory, from_hidden: Product, from_context: Product
    ) -> tuple[Carry, Tensor, Tensor]:
        """One step for `gates` (B, K, 4H) of the words: the next carry, z_t (B, K, D), alpha_t (B, K, N)."""
        size = self.config.hidden
        said, query, beta = from_hidden(carry.hidden).split([4 * size, self.config.attention, 1], -1)
        context, attention = attend(
            additive_energy(memory.keys, query, self.energy), memory.regions, memory.valid
        )
        context = torch.sigmoid(beta + self.beta_bias) * context
        entered, forget, candidate, out = (gates + said + from_context(context)).split(size, -1)
        cell = torch.sigmoid(forget) * carry.cell + torch.sigmoid(entered) * torch.tanh(candidate)
        return Carry(hidden=torch.sigmoid(out) * torch.tanh(cell), cell=cell), context, attention

    def logits(self, hidden: Tensor) -> Tensor:
        return self.words(self.dropout(torch.tanh(self.deep(hidden))))


def _stack(parts: list[Tensor], width: int) -> Tensor:
    """T tensors (B, at most K, X) -> (B, K, T, X), zeros where a sequence had ended."""
    return torch.stack([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts], 2)
