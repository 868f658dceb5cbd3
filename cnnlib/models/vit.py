"""ViT-B/16: an image is a sentence of 16x16 patches.

paper     Dosovitskiy et al. 2020, An image is worth 16x16 words, arXiv:2010.11929
follows   section 3.1 (equations 1 to 4), table 1: 12 layers of width 768, 12 heads, MLP of 3072
          names of parameters: torchvision's vit_b_16, so that its weights load as they are
          weights at the start: patches normal with variance 1 / inputs, MLP and attention Glorot's uniform, MLP biases
          normal with deviation 1e-6, positions normal with deviation 0.02, class token zero, as the authors' code does
differs   the head starts normal with deviation 0.02; the authors start it at zero, which leaves every other parameter
          without a gradient in the first step
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE, PATCH = 224, 16
LAYERS, WIDTH, MLP, HEADS = 12, 768, 3072, 12


class SelfAttention(nn.Module):
    """(N, T, D) -> (N, T, D): each of T tokens becomes a mixture of all, in `heads` ways at once (appendix A)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width // heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def by_head(self, z: Tensor) -> Tensor:
        """(N, T, D) -> (N, heads, T, D / heads)."""
        return z.unflatten(2, (self.heads, self.width)).transpose(1, 2)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = F.linear(z, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)  # eq. 5
        q, k, v = self.by_head(q), self.by_head(k), self.by_head(v)
        a = torch.softmax(q @ k.transpose(2, 3) / self.width**0.5, dim=-1)  # eq. 6
        return self.out_proj((a @ v).transpose(1, 2).flatten(2))  # eq. 7 and 8


class EncoderBlock(nn.Module):
    """(N, T, D) -> (N, T, D): attention, then a two-layer perceptron on each token, each behind a layer norm."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelfAttention(width, heads)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            *[nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, width), nn.Dropout(dropout)]
        )
        for linear in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        z = self.dropout(self.self_attention(self.ln_1(z))) + z  # eq. 2
        return self.mlp(self.ln_2(z)) + z  # eq. 3


class Encoder(nn.Module):
    """(N, T, D) -> (N, T, D): positions, the blocks, a last layer norm."""

    def __init__(self, tokens: int, layers: int, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{i}", EncoderBlock(width, heads, mlp, dropout)) for i in range(layers))
        )
        self.ln = nn.LayerNorm(width, eps=1e-6)
        nn.init.normal_(self.pos_embedding, std=0.02)

    def forward(self, z: Tensor) -> Tensor:
        return self.ln(self.layers(self.dropout(z + self.pos_embedding)))


class VisionTransformer(nn.Module):
    """(N, in_channels, 224, 224) -> (N, num_classes): patches and a class token through the encoder; the token answers."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(in_channels, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.encoder = Encoder((SIZE // PATCH) ** 2 + 1, LAYERS, WIDTH, HEADS, MLP, dropout)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(WIDTH, num_classes)))
        nn.init.trunc_normal_(self.conv_proj.weight, std=(in_channels * PATCH * PATCH) ** -0.5)
        nn.init.zeros_(self.conv_proj.bias)
        nn.init.trunc_normal_(self.heads.head.weight, std=0.02)
        nn.init.zeros_(self.heads.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)  # (N, 196, 768)
        token = self.class_token.expand(x.shape[0], -1, -1)
        z = self.encoder(torch.cat([token, patches], dim=1))  # eq. 1
        return self.heads(z[:, 0])  # eq. 4


def vit_b_16(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> VisionTransformer:
    """(N, in_channels, 224, 224) -> (N, num_classes): ViT-Base with patches of 16x16 pixels.

    `dropout` is 0.1 in the paper's training on ImageNet (table 3) and 0 in torchvision's.
    """
    return VisionTransformer(num_classes, in_channels, dropout)
