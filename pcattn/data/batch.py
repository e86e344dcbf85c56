"""`PointBatch`: what networks, transforms and tasks are given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PointBatch(NamedTuple):
    """A batch of B clouds with N points each."""

    pos: Tensor  #: (B, N, 3) positions
    normals: Tensor | None  #: (B, N, 3) unit normals, which rotate with the cloud
    label: Tensor  #: (B,) class of each cloud, or (B, N) part of each point
    category: Tensor | None  #: (B,) category of each cloud when `label` is per point
    indices: Tensor  #: (B,) index of each cloud in its data set
    seed: int  #: source of all randomness that is applied to this batch
    features: Tensor | None = None  #: (B, N, F) other input channels: color, intensity, height, ...
    point_indices: Tensor | None = None  #: (B, N) index of each point in its complete cloud
    mixed_label: Tensor | None = None  #: (B, L) classes of a mixed cloud; None if clouds are not mixed
    mixed_weight: Tensor | None = None  #: (B, L) weights of these classes, which sum to 1

    @property
    def channels(self) -> Tensor | None:
        """(B, N, C) everything a network sees besides positions: normals first, then the other features."""
        if self.normals is None or self.features is None:
            return self.normals if self.features is None else self.features
        return torch.cat((self.normals, self.features), dim=2)
