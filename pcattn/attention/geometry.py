"""The positions of a batch of clouds, and the neighbor lists and cells that attention layers derive from them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.ops import KNN, gather, knn
from pcattn.utils.checks import check_finite, check_points
from pcattn.utils.errors import InputError

DILATION_MODES = ("rank", "class")

# A dilated search keeps every `dilation`-th entry of longer lists. This many entries per cloud are in memory at once.
_BLOCK_ENTRIES = 1 << 20

# Largest number of cells along one axis: two cell coordinates and the index of the cloud fit into one 64-bit integer.
_MAX_CELLS = 1 << 20


class Pencils(NamedTuple):
    """Points sorted into pencils: the points of one pencil share their cell coordinates along all axes but one."""

    order: Tensor  #: (B * N,), points b * N + n, pencil by pencil
    label: Tensor  #: (B * N,), the pencil of each of these points, non-decreasing
    coordinate: Tensor  #: (B, N), position along the pencil, in cells


class Geometry:
    """The positions of a batch of clouds, and what attention layers derive from them.

    Everything is computed on first use and cached, so that several layers over the same points search neighbors once.

    Args:
        pos: (B, N, 3).
        search: a neighbor search with the signature and result of `pcattn.ops.knn`, for example for another metric.
        clip: for small clouds, reduce k to N and then the dilation to floor(N / k) instead of raising an error.

    Raises:
        InputError: the positions have another shape or dtype, or on the CPU one is NaN or infinite.
    """

    def __init__(self, pos: Tensor, search: Callable[[Tensor, Tensor, int], KNN] = knn, clip: bool = False) -> None:
        check_points("pos", pos)
        if pos.shape[2] != 3:
            raise InputError(f"expected pos to be (B, N, 3), but got shape {tuple(pos.shape)}")
        check_finite("pos", pos)
        self.pos = pos
        self._search = search
        self._clip = clip
        self._cached_neighbors: dict[tuple[int, int, str], Tensor] = {}
        self._cached_offsets: dict[tuple[int, int, str, bool], Tensor] = {}
        self._cached_pencils: dict[tuple[int, int | None, float | None], Pencils] = {}

    def neighbors(self, k: int, dilation: int = 1, mode: str = "rank") -> Tensor:
        """Neighbors of every point: the point itself first, then by increasing distance.

        Args:
            k: number of neighbors.
            dilation: 1 takes the k nearest points; a larger value reaches further with the same k.
            mode: `"rank"` keeps ranks 0, dilation, 2 dilation, ... of the k * dilation nearest points. `"class"` sorts
                the points by coordinates, puts every dilation-th into one class, and takes the k nearest points of the
                point's own class.

        Shape:
            (B, N, k), int64.

        Raises:
            InputError: the mode is unknown, or the cloud is too small for k and dilation and `clip` is false.
        """
        if mode not in DILATION_MODES:
            raise InputError(f"expected dilation_mode to be one of {', '.join(DILATION_MODES)}, but got {mode!r}")
        num_points = self.pos.shape[1]
        k, dilation = self._fit(k, dilation)
        if not 1 <= k <= num_points:
            raise InputError(f"expected 1 <= k <= {num_points} (the number of points), but got k={k}")
        if not 1 <= dilation <= num_points // k:
            raise InputError(
                f"expected 1 <= dilation <= floor(N / k) = {num_points // k} for N={num_points} points and k={k}, "
                f"but got dilation={dilation}"
            )
        key = (k, dilation, mode if dilation > 1 else "")
        if key not in self._cached_neighbors:
            search = self._class_neighbors if mode == "class" and dilation > 1 else self._rank_neighbors
            self._cached_neighbors[key] = search(k, dilation)
        return self._cached_neighbors[key]

    def offsets(self, k: int, dilation: int = 1, mode: str = "rank") -> Tensor:
        """Positions (B, N, k, 3) of the `neighbors` of every point, relative to the point."""
        k, dilation = self._fit(k, dilation)
        # A result that was computed without gradients must not be reused where gradients are needed.
        key = (k, dilation, mode if dilation > 1 else "", torch.is_grad_enabled())
        if key not in self._cached_offsets:
            self._cached_offsets[key] = gather(self.pos, self.neighbors(k, dilation, mode)) - self.pos[:, :, None]
        return self._cached_offsets[key]

    def pencils(self, axis: int, grid: int | None = None, cell: float | None = None) -> Pencils:
        """The pencils along one axis: points that share their cell coordinates along the two other axes.

        Cells are cubes centered on multiples of their size, counted from the smallest coordinates of the cloud.

        Args:
            axis: 0, 1 or 2.
            grid: number of cells along the longest side of the cloud; None selects sqrt(N) / 4, at least 2.
            cell: size of a cell in units of the positions, instead of `grid`.
        """
        key = (axis, grid, cell)
        if key not in self._cached_pencils:
            self._cached_pencils[key] = self._pencils(axis, grid, cell)
        return self._cached_pencils[key]

    def _fit(self, k: int, dilation: int) -> tuple[int, int]:
        """k and dilation, reduced to what the cloud allows if `clip` is set."""
        if not self._clip:
            return k, dilation
        k = min(k, self.pos.shape[1])
        return k, min(dilation, self.pos.shape[1] // max(1, k))

    def _rank_neighbors(self, k: int, dilation: int) -> Tensor:
        index = torch.arange(self.pos.shape[1], device=self.pos.device).expand(self.pos.shape[:2])
        if dilation == 1:
            return _self_first(self._search(self.pos, self.pos, k).indices, index)
        rows = max(1, _BLOCK_ENTRIES // (k * dilation))
        blocks = [
            _self_first(self._search(query, self.pos, k * dilation).indices, own)[..., ::dilation]
            for query, own in zip(torch.split(self.pos, rows, dim=1), torch.split(index, rows, dim=1), strict=True)
        ]
        return torch.cat(blocks, dim=1)

    def _class_neighbors(self, k: int, dilation: int) -> Tensor:
        batch, num_points, _ = self.pos.shape
        order = _canonical_order(self.pos.detach())  # (B, N)
        ordered = gather(self.pos, order)
        neighbors = order.new_empty(batch, num_points, k)
        # The first N mod dilation classes have one more member than the others: two searches instead of padding.
        size, longer = divmod(num_points, dilation)
        for first, last, length in ((0, longer, size + 1), (longer, dilation, size)):
            if first == last:
                continue
            classes = torch.arange(first, last, device=order.device)[:, None]
            members = classes + dilation * torch.arange(length, device=order.device)  # (classes, length), ranks
            points = ordered[:, members].flatten(0, 1)
            index = torch.arange(length, device=order.device).expand(points.shape[:2])
            found = _self_first(self._search(points, points, k).indices, index)  # within the class
            ranks = (found.view(batch, last - first, length, k) * dilation + classes[:, :, None]).flatten(1, 2)
            own = order[:, members.flatten()]
            in_cloud = order.gather(1, ranks.flatten(1)).view_as(ranks)
            neighbors = neighbors.scatter(1, own[..., None].expand_as(in_cloud), in_cloud)
        return neighbors

    def _pencils(self, axis: int, grid: int | None, cell: float | None) -> Pencils:
        pos = self.pos.detach()
        pos = pos if pos.dtype == torch.float64 else pos.float()
        batch, num_points, _ = pos.shape
        low, high = pos.amin(dim=1, keepdim=True), pos.amax(dim=1, keepdim=True)
        if cell is None:
            cells = grid if grid is not None else max(2, round(num_points**0.5 / 4))
            longest = (high - low).amax(dim=2, keepdim=True).clamp_min(torch.finfo(pos.dtype).tiny)
            scaled = (pos - low) / longest * cells
        else:
            scaled = (pos - low) / cell
        scaled = scaled.nan_to_num()  # NaN, which is not checked for on a GPU, must not become an index
        index = scaled.round().clamp(max=_MAX_CELLS - 1).long()  # (B, N, 3)
        first, second = (index[..., other] for other in range(3) if other != axis)
        cloud = torch.arange(batch, device=pos.device)[:, None]
        label, order = (((cloud * _MAX_CELLS) + first) * _MAX_CELLS + second).flatten().sort(stable=True)
        return Pencils(order, label, scaled[..., axis])


def spacing_of(offsets: Tensor) -> Tensor:
    """Root mean square length (B, 1, 1) of neighbor offsets (B, M, k, 3): the length unit of a cloud, never zero."""
    wide = offsets.to(torch.promote_types(offsets.dtype, torch.float32))  # squares leave the range of float16
    least = torch.finfo(offsets.dtype).tiny
    square = wide.square().sum(dim=-1).mean(dim=(1, 2))
    return square.clamp_min(torch.finfo(wide.dtype).tiny).sqrt()[:, None, None].to(offsets.dtype).clamp_min(least)


def _canonical_order(pos: Tensor) -> Tensor:
    """Indices (B, N) that sort the points by x, then y, then z."""
    order = pos[..., 2].argsort(dim=1, stable=True)
    for axis in (1, 0):
        order = order.gather(1, pos[..., axis].gather(1, order).argsort(dim=1, stable=True))
    return order


def _self_first(neighbors: Tensor, index: Tensor) -> Tensor:
    """Neighbors (B, M, k) with the point itself, `index` (B, M), moved to the front.

    With more than k copies of one point, a list may lack the point itself, which then replaces the last entry.
    """
    own = index[..., None]
    others = (neighbors == own).byte().argsort(dim=-1, stable=True)[..., : neighbors.shape[-1] - 1]
    return torch.cat((own, neighbors.gather(-1, others)), dim=-1)
