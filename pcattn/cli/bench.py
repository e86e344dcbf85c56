"""`pcattn bench`: time and memory of operations, attention mechanisms, and networks."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pcattn.attention import ATTENTION
from pcattn.bench import attention, networks, ops, train
from pcattn.cli.options import add_device, at_least
from pcattn.models import SEGMENTERS


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(args: Sequence[str]) -> int:
    """Run `pcattn bench`."""
    parser = argparse.ArgumentParser(prog="pcattn bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="{attention,ops,train,networks}")
    for name, module, add_options, run in (
        ("attention", attention, _add_attention_options, _bench_attention),
        ("ops", ops, _add_ops_options, _bench_ops),
        ("train", train, _add_train_options, _bench_train),
        ("networks", networks, _add_networks_options, _bench_networks),
    ):
        benchmark = benchmarks.add_parser(name, help=module.__doc__, description=module.__doc__)
        add_options(benchmark)
        add_device(benchmark)
        benchmark.add_argument("--threads", type=at_least(1), help="threads of torch (default: chosen by torch)")
        benchmark.add_argument("--json", action="store_true", help="print JSON instead of tables")
        benchmark.set_defaults(run=run)
    options = parser.parse_args(args or ["--help"])
    if options.threads:
        torch.set_num_threads(options.threads)
    options.run(options)
    return 0


def _add_attention_options(parser: argparse.ArgumentParser) -> None:
    names = (*ATTENTION, *attention.REFERENCES)
    parser.add_argument("--attention", nargs="+", default=names, help=f"of {', '.join(names)}, or import paths")
    parser.add_argument("--sizes", nargs="+", type=at_least(1), default=attention.SIZES, help="numbers of points")
    parser.add_argument("--dim", type=at_least(1), default=128, help="channels")
    parser.add_argument("--batch", type=at_least(1), default=1, help="clouds")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed runs, of which the fastest counts")
    parser.add_argument("--max_seconds", type=float, default=20.0, help="skip sizes that would take longer")
    parser.add_argument("--max_gib", type=float, help="skip sizes that need more memory (default: half of the free)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a plot of time and memory")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write attention.md, .png and .json to a folder")


def _bench_attention(options: argparse.Namespace) -> None:
    log = _log if options.json else partial(print, flush=True)
    log(attention.HEADER)
    result = attention.bench_attention(
        options.attention,
        options.sizes,
        options.dim,
        options.batch,
        options.device,
        options.repeats,
        options.max_seconds,
        options.max_gib,
        log,
    )
    print(json.dumps(result, indent=2) if options.json else attention.format_summary(result))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "attention.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.out / "attention.md").write_text(attention.format_markdown(result))
        attention.plot(result, options.out / "attention.png")
        log(f"written to {options.out}: attention.md, attention.png, attention.json")
    if options.plot:
        attention.plot(result, options.plot)
        log(f"plot written to {options.plot}")


def _add_ops_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=at_least(1), default=7, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="use small clouds, to see that everything runs")


def _bench_ops(options: argparse.Namespace) -> None:
    rows = ops.bench_ops(options.device, options.repeats, options.quick, _log)
    setting = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**setting, "rows": rows}, indent=1) if options.json else ops.table(rows, options.device))


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    names = tuple(train.NETWORKS)
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of {', '.join(names)} (default: all)")  # fmt: skip
    parser.add_argument("--batch", type=at_least(2), default=16, help="clouds per step (default: %(default)s)")
    parser.add_argument("--num_points", type=at_least(128), default=1024, help="per cloud (default: %(default)s)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="also measure every network compiled")
    parser.add_argument("--autocast", action="store_true", help="also measure every network in bf16-mixed precision")
    parser.add_argument("--quick", action="store_true", help="narrow networks and few points, to see that it runs")


def _bench_train(options: argparse.Namespace) -> None:
    batch, num_points = (4, 128) if options.quick else (options.batch, options.num_points)
    result = train.bench_train(
        options.networks,
        batch,
        num_points,
        options.device,
        options.repeats,
        options.compile,
        options.quick,
        options.autocast,
        _log,
    )
    print(json.dumps(result, indent=1) if options.json else train.table(result))


def _add_networks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", choices=tuple(SEGMENTERS), default=("hierarchical_tiny",),
                        metavar="NAME", help=f"of {', '.join(SEGMENTERS)} (default: hierarchical_tiny)")  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=at_least(2), default=networks.SIZES,
                        help="numbers of points (default: %(default)s)")  # fmt: skip
    parser.add_argument("--attention", help="mechanism (default: that of the network)")
    parser.add_argument("--network_kwargs", type=_json_object, default={}, metavar="JSON",
                        help="more arguments of the networks: '{\"stem_stride\": 4}'")  # fmt: skip


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, but got {text}")
    return value


def _bench_networks(options: argparse.Namespace) -> None:
    result = networks.bench_networks(
        options.networks, options.sizes, options.attention, options.network_kwargs, options.device, _log
    )
    print(json.dumps(result, indent=1) if options.json else networks.table(result))
