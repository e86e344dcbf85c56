"""Farthest point sampling."""

from pcattn.ops.sampling.op import farthest_point_sample

__all__ = ["farthest_point_sample"]
