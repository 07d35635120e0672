import torch
import torchvision

from captioning.models.cost import counting, decoding_flops, flops_per_caption
from captioning.models.decoders import SoftAttentionLSTMConfig, TransformerConfig

for decoder in (SoftAttentionLSTMConfig(embedding=512, hidden=512, features=512), TransformerConfig()):
    size = {"channels": 2048, "vocabulary_size": 9487, "regions": 196, "words": 12}
    print(
        decoder.kind,
        flops_per_caption(decoder, **size),
        flops_per_caption(decoder, **size, train=False),
        decoding_flops(decoder, **size, width=5),
    )
with torch.device("meta"), torch.no_grad(), counting() as counter:
    torchvision.models.resnet101().eval()(torch.empty(1, 3, 448, 448))
print("resnet101", counter.get_total_flops())
