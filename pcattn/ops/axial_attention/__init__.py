"""Attention along one axis: inside pencils, the lines of cells that share all coordinates but one."""

from pcattn.ops.axial_attention.op import pencil_attention, pencil_variances

__all__ = ["pencil_attention", "pencil_variances"]
