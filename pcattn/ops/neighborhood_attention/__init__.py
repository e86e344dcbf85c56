"""Softmax attention over lists of neighbors."""

from pcattn.ops.neighborhood_attention.op import neighborhood_attention

__all__ = ["neighborhood_attention"]
