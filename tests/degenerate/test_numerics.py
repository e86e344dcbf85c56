"""Types, strides, batches of one, and determinism of every operation, mechanism and network."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.data import PointBatch
from pcattn.models import (
    HierarchicalClassifier,
    HierarchicalSegmenter,
    PCTBackbone,
    PCTClassifier,
    PCTNormals,
    PCTSegmenter,
)
from pcattn.ops import ball_query, farthest_point_sample, gather, group, interpolate, knn
from pcattn.tasks import Classification, PartSegmentation
from tests.degenerate.cases import LEVELS, NETWORK

#: The largest error of a result, relative to its largest number in float64.
TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 2e-1, torch.float32: 1e-4, torch.float64: 1e-10}
DTYPES = list(TOLERANCE)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "npct": lambda: PCTClassifier(5, "npct", dropout=0.0, **NETWORK),
    "spct": lambda: PCTClassifier(5, "spct", dropout=0.0, **NETWORK),
    "pct": lambda: PCTClassifier(5, "pct", dropout=0.0, **NETWORK),
    "segmenter": lambda: PCTSegmenter(4, None, "pct", dropout=0.0, **NETWORK),
    "segmenter, sampled": lambda: PCTSegmenter(4, None, "pct_sampled", dropout=0.0, **NETWORK),
    "normals": lambda: PCTNormals("spct", dropout=0.0, **NETWORK),
    "hierarchical": lambda: HierarchicalClassifier(5, dropout=0.0, **LEVELS),
    "hierarchical segmenter": lambda: HierarchicalSegmenter(4, None, dropout=0.0, **LEVELS),
}


def cloud(batch: int = 2, num_points: int = 32) -> Tensor:
    """Numbers that every type can hold."""
    return torch.randint(-64, 65, (batch, num_points, 3)) / 64.0


def strided(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
class TestOperations:
    def test_searches_are_exact_in_every_type(self, dtype: torch.dtype, batch: int) -> None:
        exact = cloud(batch).double()
        pos = strided(exact.to(dtype))
        assert torch.equal(knn(pos, pos, 4).indices, knn(exact, exact, 4).indices)
        assert torch.equal(ball_query(pos, pos.clone(), 0.5, 4).indices, ball_query(exact, exact, 0.5, 4).indices)
        for rule in ("centroid", "pointnet2"):
            assert torch.equal(farthest_point_sample(pos, 7, rule), farthest_point_sample(exact, 7, rule))

    def test_features_keep_their_type(self, dtype: torch.dtype, batch: int) -> None:
        exact = cloud(batch).double()
        pos = strided(exact.to(dtype))
        neighbors = knn(exact, exact, 4).indices
        for call in (
            lambda x: gather(x, neighbors),
            lambda x: group(x, neighbors),
            lambda x: interpolate(exact, exact[:, ::2], x[:, ::2]),
            lambda x: interpolate(x, x[:, ::2], x[:, ::2]),
        ):
            result = call(pos)
            assert result.dtype == dtype
            assert error(result, call(exact)) < TOLERANCE[dtype]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestTypes:
    @pytest.mark.parametrize("name", ATTENTION)
    def test_attention(self, name: str, dtype: torch.dtype, train: bool) -> None:
        """A batch of one, not contiguous; forward and backward."""
        core = build_attention(name, 16).double().train(train)
        self.compare(core, torch.randn(1, 32, 16), dtype, lambda core, x: core(x, Geometry(cloud(1))))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_networks(self, name: str, dtype: torch.dtype, train: bool) -> None:
        network = NETWORKS[name]().double().train(train)
        # Batch normalization over the two clouds of a batch is a step function: train on more of them.
        self.compare(network, cloud(8 if train else 1), dtype, lambda network, x: network(x))

    def compare(
        self, module: nn.Module, x: Tensor, dtype: torch.dtype, run: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        x = x.to(dtype)
        torch.manual_seed(0)
        exact = run(copy.deepcopy(module), x.double())
        module, leaf = module.to(dtype), strided(x).requires_grad_()
        torch.manual_seed(0)
        result = run(module, leaf)
        assert result.dtype == dtype
        assert error(result, exact) < TOLERANCE[dtype]
        result.float().square().sum().backward()
        grads = [leaf.grad, *(parameter.grad for parameter in module.parameters())]
        assert all(grad is None or grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_cloud_does_not_depend_on_its_batch(name: str) -> None:
    """In evaluation, in float32: alone, in a batch, and in another place of it."""
    pos = cloud(5, 80)
    for variant in ("spct", "pct"):
        network = PCTBackbone(variant, name, **NETWORK).eval()
        together = network(pos)[1]
        alone = torch.cat([network(each[None])[1] for each in pos])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(pos.flip(0))[1].flip(0), together, rtol=1e-4, atol=1e-5)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class TestDeterminism:
    """`torch.use_deterministic_algorithms(True)` on the CPU: nothing raises, and two runs agree to the last bit."""

    def twice(self, run: Callable[[], list[Tensor]]) -> None:
        first, second = run(), run()
        assert first
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("name", ATTENTION)
    @pytest.mark.parametrize("num_points", [32, 300])  # offset-attention works in blocks from 257 points on
    def test_attention(self, name: str, num_points: int, deterministic: None) -> None:
        core, pos, x = build_attention(name, 16), cloud(2, num_points), torch.randn(2, num_points, 16)

        def run() -> list[Tensor]:
            module, leaf = copy.deepcopy(core), x.clone().requires_grad_()
            out = module(leaf, Geometry(pos))
            out.square().sum().backward()
            return [out, leaf.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()]

        self.twice(run)

    def test_operations(self, deterministic: None) -> None:
        pos = cloud()

        def run() -> list[Tensor]:
            leaf = pos.clone().requires_grad_()
            near, sampled = knn(leaf, leaf, 4), farthest_point_sample(leaf, 8)
            ball = ball_query(leaf, leaf.detach().clone(), 0.5, 4)
            few = gather(leaf, sampled)
            results = [near.distances, ball.distances.nan_to_num(posinf=0.0), group(leaf, near.indices), few]
            results.append(interpolate(leaf, few, few))
            sum(result.sum() for result in results).backward()
            return [*results, sampled, leaf.grad]

        self.twice(run)

    @pytest.mark.parametrize("kind", ["classification", "parts"])
    def test_training_step(self, kind: str, deterministic: None, monkeypatch: pytest.MonkeyPatch) -> None:
        index, label = torch.arange(4), torch.randint(3, (4, 32))
        network = {**NETWORK, "dropout": 0.5}
        if kind == "classification":
            task, labels = Classification(4, "pct", network_kwargs=network), index
        else:
            task, labels = PartSegmentation([[0, 1, 2]], "pct_sampled", network_kwargs=network, lovasz=0.5), label
        batch = PointBatch(cloud(4), None, labels, None, index, 7)
        monkeypatch.setattr(type(task), "log", lambda *args, **kwargs: None)

        def run() -> list[Tensor]:
            copied = copy.deepcopy(task)
            copied.on_train_batch_start(batch, 0)
            loss = copied.training_step(batch, 0)
            loss.backward()
            return [loss, *(parameter.grad for parameter in copied.network.parameters()), *copied.network.buffers()]

        self.twice(run)
