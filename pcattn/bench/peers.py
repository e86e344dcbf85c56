"""Neighbor search and farthest point sampling of other installed libraries."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

#: (query, support, k) -> indices (B, M, k)
Search = Callable[[Tensor, Tensor, int], Tensor]
#: (pos, num_samples) -> indices (B, num_samples)
Sample = Callable[[Tensor, int], Tensor]


def search_peers(device: str) -> dict[str, Search]:
    """Neighbor searches by name; the first is the baseline cdist + topk."""
    candidates: list[tuple[str, str, Search, bool]] = [
        ("cdist + topk", "torch", _cdist, True),
        ("cdist without matmul + topk", "torch", partial(_cdist, mode="donot_use_mm_for_euclid_dist"), True),
        ("torch_cluster", "torch_cluster", _torch_cluster, True),
        ("pyg_lib", "pyg_lib", _pyg_lib, True),
        ("pytorch3d", "pytorch3d", _pytorch3d, True),
        ("keops", "pykeops", _keops, True),
        ("scipy cKDTree", "scipy", _scipy, False),
        ("pykdtree", "pykdtree", _pykdtree, False),
        ("small_gicp", "small_gicp", _small_gicp, False),
        ("open3d", "open3d", _open3d, False),
    ]
    return {
        name: function
        for name, module, function, on_cuda in candidates
        if (device == "cpu" or on_cuda) and find_spec(module)
    }


def sample_peers(device: str) -> dict[str, Sample]:
    """Farthest point samplings by name; the first is the textbook loop."""
    candidates: list[tuple[str, str, Sample]] = [
        ("textbook loop", "torch", textbook_sample),
        ("torch_cluster", "torch_cluster", _torch_cluster_sample),
        ("pytorch3d", "pytorch3d", _pytorch3d_sample),
    ]
    return {name: function for name, module, function in candidates if find_spec(module)}


def _cdist(query: Tensor, support: Tensor, k: int, mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    return torch.cdist(query, support, compute_mode=mode).topk(k, largest=False).indices


def _batched(points: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.arange(points.shape[0], device=points.device).repeat_interleave(points.shape[1])
    return points.flatten(0, 1), batch


def _unbatch(indices: Tensor, query: Tensor, support: Tensor, k: int) -> Tensor:
    offsets = torch.arange(query.shape[0], device=query.device) * support.shape[1]
    return indices.view(query.shape[0], query.shape[1], k) - offsets[:, None, None]


def _torch_cluster(query: Tensor, support: Tensor, k: int) -> Tensor:
    from torch_cluster import knn

    (y, batch_y), (x, batch_x) = _batched(query), _batched(support)
    return _unbatch(knn(x, y, k, batch_x, batch_y)[1], query, support, k)


def _pyg_lib(query: Tensor, support: Tensor, k: int) -> Tensor:
    from torch_geometric.nn import knn

    (y, batch_y), (x, batch_x) = _batched(query), _batched(support)
    return _unbatch(knn(x, y, k, batch_x, batch_y)[1], query, support, k)


def _pytorch3d(query: Tensor, support: Tensor, k: int) -> Tensor:
    from pytorch3d.ops import knn_points

    indices: Tensor = knn_points(query, support, K=k).idx
    return indices


def _keops(query: Tensor, support: Tensor, k: int) -> Tensor:
    from pykeops.torch import LazyTensor

    x, y = LazyTensor(query[:, :, None].contiguous()), LazyTensor(support[:, None].contiguous())
    indices: Tensor = ((x - y) ** 2).sum(-1).argKmin(k, dim=2)
    return indices


def _scipy(query: Tensor, support: Tensor, k: int) -> Tensor:
    from scipy.spatial import cKDTree

    threads = torch.get_num_threads()
    found = [
        torch.from_numpy(cKDTree(s.numpy()).query(q.numpy(), range(1, k + 1), workers=threads)[1])
        for q, s in zip(query, support, strict=True)
    ]
    return torch.stack(found)


def _pykdtree(query: Tensor, support: Tensor, k: int) -> Tensor:
    from pykdtree.kdtree import KDTree

    found = [KDTree(s.numpy()).query(q.numpy(), k)[1] for q, s in zip(query, support, strict=True)]
    return torch.stack([torch.from_numpy(indices.astype("int64")).view(-1, k) for indices in found])


def _small_gicp(query: Tensor, support: Tensor, k: int) -> Tensor:
    from small_gicp import KdTree

    threads = torch.get_num_threads()
    found = []
    for q, s in zip(query, support, strict=True):
        tree = KdTree(s.double().numpy(), num_threads=threads)
        found.append(tree.batch_knn_search(q.double().numpy(), k, num_threads=threads)[0])
    return torch.stack([torch.from_numpy(indices.astype("int64")) for indices in found])


def _open3d(query: Tensor, support: Tensor, k: int) -> Tensor:
    import open3d.core as o3c

    found = []
    for q, s in zip(query, support, strict=True):
        search = o3c.nns.NearestNeighborSearch(o3c.Tensor.from_numpy(s.numpy()))
        search.knn_index()
        found.append(
            torch.from_numpy(search.knn_search(o3c.Tensor.from_numpy(q.numpy()), k)[0].numpy().astype("int64"))
        )
    return torch.stack(found)


def textbook_sample(pos: Tensor, num_samples: int) -> Tensor:
    """The loop that most PyTorch ports of PointNet++ share, from index 0: pos (B, N, 3) -> indices (B, num_samples)."""
    clouds = torch.arange(pos.shape[0], device=pos.device)
    chosen = torch.zeros(pos.shape[0], num_samples, dtype=torch.long, device=pos.device)
    distance = torch.full(pos.shape[:2], 1e10, dtype=pos.dtype, device=pos.device)
    farthest = chosen[:, 0]
    for i in range(num_samples):
        chosen[:, i] = farthest
        to_center = ((pos - pos[clouds, farthest][:, None]) ** 2).sum(-1)
        closer = to_center < distance
        distance[closer] = to_center[closer]
        farthest = distance.max(-1)[1]
    return chosen


def _torch_cluster_sample(pos: Tensor, num_samples: int) -> Tensor:
    from torch_cluster import fps

    points, batch = _batched(pos)
    chosen: Tensor = fps(points, batch, ratio=num_samples / pos.shape[1], random_start=False)
    offsets = torch.arange(pos.shape[0], device=pos.device) * pos.shape[1]
    return chosen.view(pos.shape[0], -1) - offsets[:, None]


def _pytorch3d_sample(pos: Tensor, num_samples: int) -> Tensor:
    from pytorch3d.ops import sample_farthest_points

    indices: Tensor = sample_farthest_points(pos, K=num_samples)[1]
    return indices
