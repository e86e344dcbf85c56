"""Interpolation of features from the nearest points."""

from pcattn.ops.interpolation.op import interpolate

__all__ = ["interpolate"]
