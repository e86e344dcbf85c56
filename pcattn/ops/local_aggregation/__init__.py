"""Local aggregation: maxima over neighborhoods and over clouds, after normalization."""

from pcattn.ops.local_aggregation.op import aggregate, pool

__all__ = ["aggregate", "pool"]
