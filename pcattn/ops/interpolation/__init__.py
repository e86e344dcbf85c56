"""Features at new positions from those of the nearest points."""

from pcattn.ops.interpolation.op import interpolate

__all__ = ["interpolate"]
