"""Faster CPU versions of a few operations, and the only place that calls torch's private operators.

| file | replaces | how it is faster |
|---|---|---|
| `packed_linear` | `nn.Linear` called many times | the weight is laid out once for MKL or oneDNN |
| `vocab_projection` | `nn.Linear` to the vocabulary | oneDNN instead of MKL, which is slow for unaligned rows |
| `deferred_grad_linear` | `nn.Linear` in a time loop | one product for the weight's gradient instead of T |
| `additive_scores` | `tanh(keys + query) @ weight` | blocks that fit the cache, tanh computed as a sigmoid |
| `allocator` | malloc's default thresholds | freed memory is reused instead of mapped anew |

Every kernel has the results of the plain operation up to rounding and falls back to it by itself: where `probe.usable`
refuses the tensors (another device or dtype, autocast, torch.compile), where the operator is missing or failed its
check at import, and everywhere with the environment variable `CAPTIONING_CPU_KERNELS=0`.
"""

from captioning.ops.cpu_kernels.allocator import keep_freed_memory
from captioning.ops.cpu_kernels.deferred_grad_linear import DeferredGradLinear
from captioning.ops.cpu_kernels.packed_linear import prepack_linear, prepack_module
from captioning.ops.cpu_kernels.vocab_projection import VocabProjection

__all__ = ["DeferredGradLinear", "VocabProjection", "keep_freed_memory", "prepack_linear", "prepack_module"]
