"""The one layer that turns any attention core into a layer of a network."""

from typing import Any

from torch import Tensor, nn

from pcattn.attention.build import build_attention
from pcattn.attention.geometry import Geometry
from pcattn.layers import LBR


class AttentionLayer(nn.Module):
    r"""An attention core with PCT's update around it.

    .. math::
        y = x + \mathrm{LBR}(\mathrm{core}(x)) \quad\text{or}\quad y = x + \mathrm{LBR}(x - \mathrm{core}(x))

    The first is the residual, the second the offset update; a core names the one it belongs to by its class attribute
    `update` (`"residual"` when it has none).

    Args:
        dim: channels C.
        attention: name of a mechanism in `ATTENTION`, or the import path of one's own.
        attention_kwargs: further arguments of the mechanism.

    Shape:
        x (B, N, C) -> (B, N, C).
    """

    def __init__(self, dim: int, attention: str, attention_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.core = build_attention(attention, dim, **(attention_kwargs or {}))
        self.lbr = LBR(dim, dim, bias=True)
        self.offset = getattr(self.core, "update", "residual") == "offset"

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Update the features of every point."""
        core = self.core(x, geometry)
        return x + self.lbr(x - core if self.offset else core)
