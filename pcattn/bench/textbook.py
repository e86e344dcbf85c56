"""The PCT classifier in the common style of PyTorch ports, the baseline of `pcattn bench train`.

Channels first, convolutions of width one, loops for sampling, the full matrix of distances for neighbors, and features
that are gathered and concatenated before the first linear map. From the same weights it computes the same function as
`PCTClassifier` with offset-attention.
"""

import torch
from torch import Tensor, nn

from pcattn.bench.peers import textbook_sample
from pcattn.models import PCTClassifier
from pcattn.ops import farthest_point_sample, gather, knn


class Sampling(nn.Module):
    """Farthest points and their nearest neighbors among all points.

    Shape:
        pos (B, N, 3) -> centers (B, M), neighbors (B, M, k).
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pos: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """Sample centers and search their neighbors."""
        centers = textbook_sample(pos, num_samples)
        query = index_points(pos, centers)
        distances = -2 * query @ pos.transpose(1, 2)
        distances += (query**2).sum(-1)[:, :, None] + (pos**2).sum(-1)[:, None]
        return centers, distances.topk(self.k, dim=-1, largest=False).indices


class SharedSampling(Sampling):
    """The samples and neighbors of `PCTClassifier`, for comparing the rest of the two networks."""

    def forward(self, pos: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """Sample centers and search their neighbors."""
        centers = farthest_point_sample(pos, num_samples, "pointnet2")
        return centers, knn(gather(pos, centers), pos, self.k, query_indices=centers).indices


def index_points(points: Tensor, indices: Tensor) -> Tensor:
    """Rows by index: points (B, N, C), indices (B, ...) -> (B, ..., C)."""
    clouds = torch.arange(len(points), device=points.device).view(-1, *[1] * (indices.dim() - 1))
    return points[clouds, indices]


def conv_bn(in_dim: int, out_dim: int, bias: bool = False) -> list[nn.Module]:
    """A linear map of every point, and batch normalization, on (B, C, N)."""
    return [nn.Conv1d(in_dim, out_dim, 1, bias=bias), nn.BatchNorm1d(out_dim)]


class LocalOp(nn.Module):
    """Two LBRs on every neighborhood, then the maximum: (B, M, k, 2C) -> (B, C', M)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.lbr = nn.Sequential(*conv_bn(in_dim, out_dim), nn.ReLU(), *conv_bn(out_dim, out_dim), nn.ReLU())

    def forward(self, grouped: Tensor) -> Tensor:
        """Aggregate."""
        batch, num_groups, k, channels = grouped.shape
        x: Tensor = self.lbr(grouped.transpose(2, 3).reshape(-1, channels, k))
        return x.max(dim=2).values.view(batch, num_groups, -1).transpose(1, 2)


class Offset(nn.Module):
    """A layer of offset-attention on (B, C, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qk = nn.Conv1d(dim, dim // 4, 1, bias=False)
        self.v = nn.Conv1d(dim, dim, 1)
        self.lbr = nn.Sequential(*conv_bn(dim, dim, bias=True), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q = k = self.qk(x)
        weights = (q.transpose(1, 2) @ k).softmax(dim=-1)
        weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
        update: Tensor = self.lbr(x - self.v(x) @ weights)
        return x + update


class TextbookPCT(nn.Module):
    """PCT's classifier with neighbor embedding and offset-attention, sampled from index 0.

    Args:
        network: a `PCTClassifier` with `fps_rule="pointnet2"`, whose weights are copied.
        dim, k, depth, out_dim, num_classes, dropout: the values that the network was built with.

    Shape:
        pos (B, N, 3) -> logits (B, num_classes).
    """

    def __init__(
        self,
        network: PCTClassifier,
        dim: int = 256,
        k: int = 32,
        depth: int = 4,
        out_dim: int = 1024,
        num_classes: int = 40,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # In the order of the network's modules, so that the parameters of both correspond.
        self.embedding = nn.Sequential(*conv_bn(3, dim // 4), nn.ReLU(), *conv_bn(dim // 4, dim // 4), nn.ReLU())
        self.groups = nn.ModuleList([LocalOp(dim // 2, dim // 2), LocalOp(dim, dim)])
        self.mix = nn.Sequential(*conv_bn(dim, dim), nn.ReLU(), *conv_bn(dim, dim), nn.ReLU())
        self.layers = nn.ModuleList(Offset(dim) for _ in range(depth))
        self.fuse = nn.Sequential(*conv_bn((depth + 1) * dim, out_dim), nn.LeakyReLU(0.2))
        self.head = nn.Sequential(
            nn.Linear(out_dim, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )
        self.sampling = Sampling(k)
        with torch.no_grad():
            for ours, theirs in zip(self.parameters(), network.parameters(), strict=True):
                ours.copy_(theirs.view_as(ours))

    def forward(self, pos: Tensor) -> Tensor:
        """Logits of each cloud."""
        x = self.embedding(pos.transpose(1, 2))
        for group in self.groups:
            centers, neighbors = self.sampling(pos, pos.shape[1] // 2)
            rows = x.transpose(1, 2)
            center = index_points(rows, centers)[:, :, None]
            grouped = index_points(rows, neighbors) - center
            x = group(torch.cat((grouped, center.expand_as(grouped)), dim=-1))
            pos = index_points(pos, centers)
        outputs = [x]
        x = self.mix(x)
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        logits: Tensor = self.head(self.fuse(torch.cat(outputs, dim=1)).max(dim=2).values)
        return logits
