"""Degenerate and invalid input of networks and attentions: a finite result, or a clear error."""

import pytest
import torch

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.models import PCTClassifier, PCTSegmenter

NETWORK = {"dim": 16, "depth": 1, "out_dim": 16, "k": 4}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def degenerate_clouds(num_points: int = 32) -> dict[str, torch.Tensor]:
    line = torch.zeros(2, num_points, 3)
    line[..., 0] = torch.linspace(-1, 1, num_points)
    cloud = torch.randn(2, num_points, 3)
    return {"one place": torch.full((2, num_points, 3), 0.3), "line": line, "tiny": cloud * 1e-30, "far": cloud + 1e6}


@pytest.fixture(scope="module")
def classifier() -> PCTClassifier:
    torch.manual_seed(0)
    return PCTClassifier(5, **NETWORK)


class TestNetworks:
    @pytest.mark.parametrize("name", degenerate_clouds())
    @pytest.mark.parametrize("train", [True, False])
    def test_degenerate_clouds(self, name: str, train: bool, classifier: PCTClassifier) -> None:
        cloud = degenerate_clouds()[name]
        assert classifier.train(train)(cloud).isfinite().all()
        assert PCTSegmenter(4, None, **NETWORK).train(train)(cloud).isfinite().all()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite(self, value: float, classifier: PCTClassifier) -> None:
        pos = torch.randn(3, 32, 3)
        pos[2, 7, 1] = value
        with pytest.raises(ValueError, match="pos to be finite, but cloud 2"):
            classifier(pos)
        with pytest.raises(ValueError, match="pos to be finite, but cloud 2"):
            PCTSegmenter(4, None, **NETWORK)(pos)
        with pytest.raises(ValueError, match="features to be finite, but cloud 2"):
            PCTClassifier(5, num_features=3, **NETWORK)(torch.randn(3, 32, 3), pos)

    @pytest.mark.parametrize(
        ("pos", "message"),
        [
            (torch.zeros(2, 0, 3), "N >= 1"),
            (torch.zeros(2, 32, 2), "expected pos"),
            (torch.zeros(32, 3), "expected pos"),
            (torch.zeros(2, 32, 3, dtype=torch.long), "floating point"),
            (torch.zeros(2, 3, 3), "at least 8 points"),
        ],
    )
    def test_shapes_and_types(self, pos: torch.Tensor, message: str, classifier: PCTClassifier) -> None:
        with pytest.raises(ValueError, match=message):
            classifier(pos)

    def test_a_cloud_does_not_depend_on_its_batch(self, classifier: PCTClassifier) -> None:
        pos = torch.randn(5, 32, 3)
        together = classifier.eval()(pos)
        alone = torch.cat([classifier(cloud[None]) for cloud in pos])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        strided = pos.transpose(1, 2).contiguous().transpose(1, 2)
        torch.testing.assert_close(classifier(strided), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
class TestAttention:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_dtypes(self, name: str, dtype: torch.dtype) -> None:
        """In training and evaluation, with a batch of one and strided input, close to the result in float64."""
        exact = build_attention(name, 16).double()
        attention = build_attention(name, 16)
        attention.load_state_dict(exact.state_dict())
        attention = attention.to(dtype)
        x = torch.randn(1, 16, 20).transpose(1, 2).to(dtype)
        geometry = Geometry(torch.randn(1, 20, 3))
        for train in (True, False):
            out = attention.train(train)(x, geometry)
            assert out.dtype == dtype
            expected = exact.train(train)(x.double(), geometry)
            error = (out.double() - expected).abs().max() / expected.abs().max()
            assert error < {torch.float16: 0.05, torch.bfloat16: 0.2, torch.float32: 1e-4, torch.float64: 1e-9}[dtype]

    @pytest.mark.parametrize("cloud", degenerate_clouds())
    def test_degenerate_clouds(self, name: str, cloud: str) -> None:
        out = build_attention(name, 16)(torch.randn(2, 32, 16), Geometry(degenerate_clouds()[cloud]))
        assert out.isfinite().all()
