"""Batch normalization of points-first tensors."""

from pcattn.ops.batch_norm.op import normalize

__all__ = ["normalize"]
