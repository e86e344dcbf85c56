"""The released PCT networks: channels first, convolutions of width one, the authors' names of layers."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.ops import farthest_point_sample, gather, knn


def conv(in_dim: int, out_dim: int, bias: bool = False) -> nn.Conv1d:
    return nn.Conv1d(in_dim, out_dim, 1, bias=bias)


class SA(nn.Module):
    """Offset-attention with tied queries and keys."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_conv = conv(dim, dim // 4)
        self.k_conv = conv(dim, dim // 4)
        self.k_conv.weight = self.q_conv.weight
        self.v_conv, self.trans_conv = conv(dim, dim, True), conv(dim, dim, True)
        self.after_norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q_conv(x).transpose(1, 2) @ self.k_conv(x)).softmax(dim=-1)
        weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
        offset = x - self.v_conv(x) @ weights
        return x + self.after_norm(self.trans_conv(offset)).relu()


def add_lbr(network: nn.Module, *dims: int) -> None:
    """LBRs named conv1, bn1, conv2, bn2, ..."""
    for i, pair in enumerate(pairwise(dims), 1):
        setattr(network, f"conv{i}", conv(*pair))
        setattr(network, f"bn{i}", nn.BatchNorm1d(pair[1]))


def apply_lbr(network: nn.Module, x: Tensor) -> Tensor:
    for i in (1, 2):
        if hasattr(network, f"conv{i}"):
            x = getattr(network, f"bn{i}")(getattr(network, f"conv{i}")(x)).relu()
    return x


def add_attention(network: nn.Module, dim: int) -> None:
    for i in range(1, 5):
        setattr(network, f"sa{i}", SA(dim))


def apply_attention(network: nn.Module, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    outputs = []
    for i in range(1, 5):
        x = getattr(network, f"sa{i}")(x + shift)
        outputs.append(x)
    return torch.cat(outputs, dim=1)


class Local(nn.Module):
    """Two LBRs on grouped features (B, M, k, 2C), then the maximum over the neighbors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        add_lbr(self, dim, dim, dim)

    def forward(self, grouped: Tensor) -> Tensor:
        x = apply_lbr(self, grouped.flatten(0, 1).transpose(1, 2))
        return x.amax(dim=2).unflatten(0, grouped.shape[:2]).transpose(1, 2)


class Tokens(nn.Module):
    """Two LBRs and four attention layers; with `position`, one LBR and a linear map of the positions."""

    def __init__(self, dim: int, position: bool) -> None:
        super().__init__()
        add_lbr(self, *[dim] * (2 if position else 3))
        add_attention(self, dim)
        self.pos_xyz = conv(3, dim, True) if position else None

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        shift = self.pos_xyz(pos.transpose(1, 2)) if self.pos_xyz is not None else 0.0
        return apply_attention(self, apply_lbr(self, x), shift)


class Head(nn.Module):
    """Fusion of (B, C, T) and the classification head, with the slope of its activations."""

    def __init__(self, in_dim: int, out_dim: int, num_classes: int, slope: float) -> None:
        super().__init__()
        self.conv_fuse = nn.Sequential(conv(in_dim, out_dim), nn.BatchNorm1d(out_dim), nn.LeakyReLU(0.2))
        self.linear1, self.bn6 = nn.Linear(out_dim, 512, bias=False), nn.BatchNorm1d(512)
        self.linear2, self.bn7 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.linear3 = nn.Linear(256, num_classes)
        self.slope = slope

    def classify(self, x: Tensor) -> Tensor:
        x = self.conv_fuse(x).amax(dim=2)
        x = F.leaky_relu(self.bn6(self.linear1(x)), self.slope)
        return self.linear3(F.leaky_relu(self.bn7(self.linear2(x)), self.slope))


class ReleasedPCT(Head):
    """`model.py` of the PyTorch port, or `model_new.py` with `position`; slope 0 is the Jittor original."""

    def __init__(self, dim: int, out_dim: int, num_classes: int, position: bool = False, slope: float = 0.2) -> None:
        super().__init__(5 * dim, out_dim, num_classes, slope)
        add_lbr(self, 3, dim // 4, dim // 4)
        self.gather_local_0, self.gather_local_1 = Local(dim // 2), Local(dim)
        self.pt_last = Tokens(dim, position)

    def forward(self, pos: Tensor) -> Tensor:
        x = apply_lbr(self, pos.transpose(1, 2))
        for local in (self.gather_local_0, self.gather_local_1):
            centers = farthest_point_sample(pos, pos.shape[1] // 2, "pointnet2")
            sampled, rows = gather(pos, centers), x.transpose(1, 2)
            neighbors = knn(sampled, pos, 32, query_indices=centers).indices
            center = gather(rows, centers)[:, :, None]
            grouped = gather(rows, neighbors) - center
            x, pos = local(torch.cat((grouped, center.expand_as(grouped)), dim=3)), sampled
        return self.classify(torch.cat((self.pt_last(x, pos), x), dim=1))


class ReleasedSPCT(Head):
    """The Jittor classifier with point embedding."""

    def __init__(self, dim: int, out_dim: int, num_classes: int, slope: float = 0.0) -> None:
        super().__init__(4 * dim, out_dim, num_classes, slope)
        add_lbr(self, 3, dim, dim)
        add_attention(self, dim)

    def forward(self, pos: Tensor) -> Tensor:
        return self.classify(apply_attention(self, apply_lbr(self, pos.transpose(1, 2))))


class ReleasedSPCTSegmenter(nn.Module):
    """The Jittor part segmenter."""

    def __init__(self, dim: int, out_dim: int, num_parts: int = 50) -> None:
        super().__init__()
        add_lbr(self, 3, dim, dim)
        add_attention(self, dim)
        self.conv_fuse = nn.Sequential(conv(4 * dim, out_dim), nn.BatchNorm1d(out_dim), nn.LeakyReLU(0.2))
        self.label_conv = nn.Sequential(conv(16, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.2))
        self.convs1, self.bns1 = conv(3 * out_dim + 64, 512, True), nn.BatchNorm1d(512)
        self.convs2, self.bns2 = conv(512, 256, True), nn.BatchNorm1d(256)
        self.convs3 = conv(256, num_parts, True)

    def forward(self, pos: Tensor, category: Tensor) -> Tensor:
        x = self.conv_fuse(apply_attention(self, apply_lbr(self, pos.transpose(1, 2))))
        one_hot = F.one_hot(category, 16).to(x.dtype)[..., None]
        of_cloud = torch.cat((x.amax(2, keepdim=True), x.mean(2, keepdim=True), self.label_conv(one_hot)), dim=1)
        x = torch.cat((x, of_cloud.expand(-1, -1, x.shape[2])), dim=1)
        x = self.bns1(self.convs1(x)).relu()
        return self.convs3(self.bns2(self.convs2(x)).relu()).transpose(1, 2)


def randomize(network: nn.Module) -> nn.Module:
    """Randomize weights, biases and statistics of batch normalization."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network
