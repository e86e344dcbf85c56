"""Offset-attention: softmax over the queries, then rows divided by their sums."""

from pcattn.ops.offset_attention.op import offset_attention

__all__ = ["offset_attention"]
