"""External attention with many heads that share one small memory."""

from pcattn.ops.external_attention.op import multihead_external_attention
from pcattn.ops.external_attention.reference import double_normalize

__all__ = ["double_normalize", "multihead_external_attention"]
