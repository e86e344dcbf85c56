"""Time of a training step, compared with a textbook implementation of PCT, and speed of the data module."""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker
from torch_geometric.data import Data, InMemoryDataset

from pcattn.bench.attention import peak_memory
from pcattn.bench.inputs import noisy_spheres
from pcattn.bench.textbook import SharedSampling, TextbookPCT
from pcattn.bench.timing import interleave, summary, synchronize
from pcattn.models import PCTBackbone, PCTClassifier, build_classifier
from pcattn.training import PointCloudDataModule

#: Networks by name, as (variant, attention).
NETWORKS = {
    "pct": ("pct", "offset"),
    "pct self": ("pct", "self"),
    "pct external": ("pct", "external"),
    "spct": ("spct", "offset"),
    "npct": ("npct", "self"),
    "hierarchical_tiny": ("hierarchical_tiny", "neighborhood"),
}
TEXTBOOK = "textbook pct"

# What follows a network's name where it runs under bfloat16 autocast.
_AUTOCAST = ", bf16-mixed"

#: Where the time of a step goes.
SHARES = ("sampling", "grouping", "attention", "rest")

#: Arguments of small networks: of the PCT family, and hierarchical ones.
NARROW: dict[str, Any] = {"dim": 16, "k": 8, "depth": 1, "out_dim": 32}
NARROW_LEVELS: dict[str, Any] = {"dims": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "k": 8}

#: Number of seeds of weights and clouds for the comparison of gradients.
GRADIENT_SEEDS = 8

#: Size of the data set for the measurement of data loading.
LOADED_CLOUDS = 2048

_AUGMENTATION: list[dict[str, Any]] = [{"scale": {}}, {"translate": {}}, {"dropout": {}}]


class RandomClouds(InMemoryDataset):  # torch-geometric has no types
    """Points on spheres, as a data set."""

    class_names = tuple(str(label) for label in range(40))

    def __init__(self, root: str, train: bool, num_clouds: int, num_points: int) -> None:
        super().__init__(None)
        self._data = Data(pos=noisy_spheres(num_clouds, num_points).flatten(0, 1), y=torch.arange(num_clouds) % 40)
        self.slices = {"pos": torch.arange(num_clouds + 1) * num_points, "y": torch.arange(num_clouds + 1)}


class OperationTimer(TorchDispatchMode):
    """Time of a step, forward and backward, split by the part of the network: one of `SHARES`.

    Neighbor search and farthest point sampling are recognized by their names, other operations by the module that calls
    them. What runs between two operations, such as the kernels of `pcattn.ops.local_aggregation.numba`, counts with the
    later one. On the CPU, it is processor time, which other programs on the machine hardly change.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.modules = ModuleTracker()
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = 0.0

    def __enter__(self) -> "OperationTimer":
        self.last = self.clock()
        self.modules.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.modules.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        synchronize(self.device)
        now = self.clock()
        self.seconds[self._where(func.name())] += now - self.last
        self.last = now
        return result

    def _where(self, operation: str) -> str:
        modules = {part for name in self.modules.parents for part in name.split(".")}
        if "sampling" in modules or operation.startswith(("pcattn::knn", "pcattn::farthest")):
            return "sampling"
        if "groups" in modules:
            return "grouping"
        return "attention" if "layers" in modules else "rest"


def bench_train(
    networks: Sequence[str] = tuple(NETWORKS),
    batch: int = 16,
    num_points: int = 1024,
    device: str = "cpu",
    repeats: int = 5,
    compiled: bool = False,
    narrow: bool = False,
    autocast: bool = False,
    log: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Measure training steps (forward, backward, SGD) of several networks in turns, and the speed of data loading.

    Args:
        networks: names in `NETWORKS`. The textbook PCT is always measured with them.
        batch: clouds per step.
        num_points: points per cloud.
        device: `"cpu"` or `"cuda"`.
        repeats: timed steps of each network, after two warm-up steps.
        compiled: also measure every network compiled.
        narrow: measure small networks, see `NARROW`.
        autocast: also measure every network, the textbook included, under bfloat16 autocast.
        log: called with a line of text for each measurement.

    Returns:
        `rows`: a dictionary per network with `name`, `median_ms`, `spread_ms` (half the distance of the quartiles),
        `clouds_per_second`, `speedup` (over the textbook), `peak_mib`, and `shares` of `SHARES`, measured without
        compilation. `gradient_errors`: for the PCT and the textbook, the distance of all gradients from those in
        float64, relative to their norm, for each of `GRADIENT_SEEDS` seeds of weights and clouds, with the same samples
        and neighbors. These distances vary a lot, because a rounding that moves a value across a kink of ReLU or of a
        maximum changes a gradient by far more than itself. `loading`: clouds per second of the data module, including
        augmentation; `resident_loading`: the same with the clouds in the memory of the device.
    """
    pos, label = noisy_spheres(batch, num_points).to(device), torch.arange(batch, device=device) % 40
    of_pct, of_levels = (NARROW, NARROW_LEVELS) if narrow else ({}, {})

    def build(name: str, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        variant, attention = NETWORKS[name]
        kwargs = of_pct if variant in PCTBackbone.VARIANTS else of_levels
        sampling = {"fps_rule": "pointnet2"} if variant == "pct" else {}
        return build_classifier(40, variant, attention=attention, dropout=0.0, **kwargs, **sampling).to(device)

    def build_textbook(network: nn.Module) -> TextbookPCT:
        return TextbookPCT(cast("PCTClassifier", network), **of_pct).to(device)

    models: dict[str, nn.Module] = {TEXTBOOK: build_textbook(build("pct"))}
    for name in networks:
        models[name] = build(name)
        if compiled:
            models[f"{name}, compiled"] = build(name)
            models[f"{name}, compiled"].compile()
    if autocast:
        models |= {f"{name}{_AUTOCAST}": copy.deepcopy(model) for name, model in models.items()}
    errors: dict[str, list[float]] = {TEXTBOOK: [], "pct": []}
    log("gradients")
    for seed in range(GRADIENT_SEEDS):
        network = build("pct", seed)
        textbook = build_textbook(network)
        textbook.sampling = SharedSampling(textbook.sampling.k)
        drawn = noisy_spheres(batch, num_points, seed).to(device)
        for name, error in _gradient_errors(network, textbook, drawn, label).items():
            errors[name].append(error)
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        log(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        steps[name] = partial(_step, model, optimizer, pos, label, name.endswith(_AUTOCAST))
        for _ in range(2):
            steps[name]()
        optimizer.zero_grad()
        rows[name] = {"name": name, "peak_mib": peak_memory(steps[name], device) / 2**20, "shares": None}
        if "compiled" not in name:
            with OperationTimer(device) as timer:
                steps[name]()
            total = sum(timer.seconds.values())
            rows[name]["shares"] = {where: timer.seconds[where] / total for where in SHARES}
    # With one thread, processor time, which other programs on the machine hardly change.
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    for name, times in interleave(steps, repeats, device, time_limit=600.0, clock=clock).items():
        rows[name] |= summary(times)
        rows[name]["clouds_per_second"] = 1e3 * batch / rows[name]["median_ms"]
        rows[name]["speedup"] = rows[TEXTBOOK]["median_ms"] / rows[name]["median_ms"]
    return {
        "setting": {"batch": batch, "num_points": num_points, "device": device, "threads": torch.get_num_threads()},
        "rows": list(rows.values()),
        "gradient_errors": errors,
        "loading": loading_speed(batch, num_points, device, resident=False),
        "resident_loading": loading_speed(batch, num_points, device, resident=True),
    }


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, pos: Tensor, label: Tensor, autocast: bool) -> None:
    optimizer.zero_grad()
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=autocast):
        loss = nn.functional.cross_entropy(model(pos), label)
    loss.backward()
    optimizer.step()


def _gradient_errors(network: nn.Module, textbook: TextbookPCT, pos: Tensor, label: Tensor) -> dict[str, float]:
    """Relative distance of the gradients of network and textbook from those of the network in float64."""

    def gradients(model: nn.Module, points: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(points), label)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))]).double()

    exact = gradients(copy.deepcopy(network).double(), pos.double())
    models = {TEXTBOOK: textbook, "pct": network}
    return {name: float((gradients(model, pos) - exact).norm() / exact.norm()) for name, model in models.items()}


def loading_speed(batch: int, num_points: int, device: str, resident: bool) -> float:
    """Clouds per second of the data module: indexing, transfer, subsampling and augmentation in batches.

    The first epoch, which moves `resident` clouds to the device, does not count.
    """
    data = PointCloudDataModule(
        "", f"{__name__}.RandomClouds", {"num_clouds": LOADED_CLOUDS, "num_points": max(2048, num_points)},
        num_points=num_points, batch_size=batch, augmentation=_AUGMENTATION, resident=resident,
    )  # fmt: skip
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = cast("Any", SimpleNamespace(training=True, global_rank=0, world_size=1, strategy=strategy))
    loader = data.train_dataloader()
    start = 0.0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        synchronize(device)
        start = time.perf_counter()
        for loaded in loader:
            data.on_after_batch_transfer(data.transfer_batch_to_device(loaded, torch.device(device), 0), 0)
    synchronize(device)
    return len(loader) * batch / (time.perf_counter() - start)


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a Markdown table, followed by gradient errors and data loading."""
    lines = [
        f"| network | clouds/s | ms a step (median ± spread) | speedup | peak MiB (torch) | {' | '.join(SHARES)} |",
        f"| --- {'| --- ' * (4 + len(SHARES))}|",
    ]
    for row in result["rows"]:
        shares = [f"{row['shares'][where]:.0%}" if row["shares"] else "" for where in SHARES]
        lines.append(
            f"| {row['name']} | {row['clouds_per_second']:.1f} | {row['median_ms']:.0f} ± {row['spread_ms']:.0f} "
            f"| {row['speedup']:.2f} | {row['peak_mib']:.0f} | {' | '.join(shares)} |"
        )
    errors = result["gradient_errors"]
    ratios = [ours / theirs for ours, theirs in zip(errors["pct"], errors[TEXTBOOK], strict=True)]
    fastest = max(row["clouds_per_second"] for row in result["rows"])
    lines += [
        "",
        f"distance of all gradients from float64, relative, geometric mean of {len(ratios)} seeds: "
        + ", ".join(f"{name} {statistics.geometric_mean(values):.1e}" for name, values in errors.items())
        + f"; ratio {statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"data loading: {result['loading']:,.0f} clouds/s, {result['loading'] / fastest:.0f} times what the fastest "
        f"of these networks consumes; {result['resident_loading']:,.0f} with the clouds in the memory of the device",
    ]
    return "\n".join(lines)
