"""The layers of the package: every folder imports only from those below it."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

#: From top to bottom.
LAYERS = (
    *("cli", "bench", "inference", "training", "tasks", "models", "layers", "attention", "datasets", "transforms"),
    *("data", "visualize", "metrics", "io", "ops", "utils"),
)


def imported(file: Path) -> set[str]:
    """Modules of this package that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "pcattn" else {node.module}
            )
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("pcattn.")}


def test_imports_point_downward() -> None:
    upward = []
    for layer in LAYERS:
        folder = REPOSITORY / ("datasets" if layer == "datasets" else f"pcattn/{layer}")
        files = list(folder.rglob("*.py"))
        assert files, folder
        below = LAYERS[LAYERS.index(layer) :]
        for file in files:
            targets = {name.split(".")[1] for name in imported(file)}
            upward += [f"{file.relative_to(REPOSITORY)} -> {target}" for target in targets & set(LAYERS) - set(below)]
    assert not upward, upward


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in (REPOSITORY / "pcattn").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(LAYERS)


def test_root_is_small() -> None:
    assert {path.name for path in (REPOSITORY / "pcattn").glob("*.py")} <= {"__init__.py", "__main__.py"}
