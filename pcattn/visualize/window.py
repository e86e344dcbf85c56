"""Open3D's window, in a separate process: `python -m pcattn.visualize.window`.

If no window can be opened, Open3D crashes its process on some machines and hangs on others. `open_window` reports what
went wrong.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pcattn.utils.processes import child_process
from pcattn.visualize import scene
from pcattn.visualize.camera import look, radius
from pcattn.visualize.colors import MARKED
from pcattn.visualize.offscreen import Open3DError, explain, spheres
from pcattn.visualize.scene import Cloud

_COMMAND = (sys.executable, "-m", "pcattn.visualize.window")
# Distance from one panel to the next, and points of a cloud that are drawn as spheres.
_PITCH, _MAX_SPHERES = 2.3, 8192

_READY = "the window is open"

KEYS = "right, left: next, previous cloud; C: the last panel shows the next of {views}; Q: close"


def open_window(
    clouds: Sequence[Cloud],
    fields: Sequence[str],
    up: str = "z",
    show: Callable[[str], None] = print,
    time_limit: float = 90.0,
) -> None:
    """Show clouds in a window until it is closed.

    Args:
        clouds: clouds to show, one after the other.
        fields: fields shown side by side at first; the others take turns in the last panel.
        up: coordinate that points up.
        show: called with each line that the window prints.
        time_limit: seconds for the window to appear.

    Raises:
        Open3DError: there is no display, or the window did not appear.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise Open3DError("there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)")
    with tempfile.TemporaryDirectory(prefix="pcattn-") as folder:
        path = Path(folder) / "clouds.npz"
        scene.save(clouds, path)
        _watch([*_COMMAND, str(path), up, *fields], show, time_limit)


def _watch(command: list[str], show: Callable[[str], None], time_limit: float) -> None:
    """Run the window's process, which has to be ready within the time limit, and show its lines as they come."""
    output: list[str] = []
    ready = False
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with child_process(command, signal.SIGKILL, **pipes) as process:
        lines: queue.Queue[str | None] = queue.Queue()

        def read(stream: IO[str]) -> None:
            for line in stream:
                lines.put(line.rstrip())
            lines.put(None)

        threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
        try:
            while (line := lines.get(timeout=None if ready else time_limit)) is not None:
                if ready:
                    show(line)
                elif line == _READY:
                    ready = True
                else:
                    output.append(line)
        except queue.Empty:
            raise Open3DError(f"no window of Open3D appeared within {time_limit:g} s") from None
        status = process.wait()
    if not ready:
        raise Open3DError(explain(status, "\n".join(output)))


class _Viewer:
    """The window: the fields of one view side by side, for one cloud at a time."""

    def __init__(self, clouds: list[Cloud], fields: list[str], up: str) -> None:
        self.clouds, self.up = clouds, up
        # Only the last panel changes, so that all views have as many panels and the camera stays where it is.
        others = [name for name in scene.field_names(clouds) if name not in fields]
        self.views = [[*fields[:-1], name] for name in [fields[-1], *others]]
        self.cloud, self.view = 0, 0

    def geometry(self) -> Any:
        """Spheres, or many points, of all panels, next to each other as the camera sees them."""
        import open3d

        cloud = self.clouds[self.cloud]
        seen = look(cloud.pos, self.up)
        flat = np.column_stack((seen.xy, seen.depth))
        size = np.full((len(cloud.pos), 1, 1), radius(len(cloud.pos)))
        if cloud.marked is not None:
            size[cloud.marked] *= 2
        points, colors, sizes = [], [], []
        for place, name in enumerate(self.views[self.view]):
            if name not in cloud.fields:
                continue
            shade = cloud.fields[name].colors().astype(float) / 255
            if cloud.marked is not None:
                shade[cloud.marked] = np.array(MARKED) / 255
            points.append(flat + np.array((_PITCH * place, 0, 0)))
            colors.append(shade)
            sizes.append(size)
        utility = open3d.utility
        pos, rgb = (np.concatenate(each) if each else np.empty((0, 3)) for each in (points, colors))
        if sizes and len(cloud.pos) <= _MAX_SPHERES:
            vertices, triangles, rgb = spheres(pos, rgb, np.concatenate(sizes))
            result: Any = open3d.geometry.TriangleMesh(
                utility.Vector3dVector(vertices), utility.Vector3iVector(triangles)
            )
            result.vertex_colors = utility.Vector3dVector(rgb)
        else:
            result = open3d.geometry.PointCloud(utility.Vector3dVector(pos))
            result.colors = utility.Vector3dVector(rgb)
        return result

    def print_legend(self) -> None:
        """Print title and legend to the terminal."""
        cloud, names = self.clouds[self.cloud], self.views[self.view]
        present = [entry for name in names if name in cloud.fields for entry, _ in cloud.fields[name].present()]
        legend = ", ".join(dict.fromkeys(present))
        print(
            f"{self.cloud + 1} of {len(self.clouds)}: {cloud.title}, {cloud.note} | {' | '.join(names)} | {legend}",
            flush=True,
        )

    def run(self) -> None:
        """Open the window and block until it is closed."""
        import open3d

        window = open3d.visualization.VisualizerWithKeyCallback()
        columns = len(self.views[0])
        if not window.create_window("pcattn show", width=min(1800, 520 * columns), height=560):
            raise SystemExit("no window could be created")
        options = window.get_render_option()
        options.point_size = 3.0
        options.light_on = False  # the shading is painted on
        shown = [self.geometry()]
        window.add_geometry(shown[0])
        control = window.get_view_control()
        control.change_field_of_view(-90.0)  # the closest that the window has to a parallel projection
        control.set_zoom(0.72 / max(1.0, 1.45 * columns**0.9 - 0.45))

        def show(vis: Any, cloud: int = 0, view: int = 0) -> bool:
            self.cloud = (self.cloud + cloud) % len(self.clouds)
            self.view = (self.view + view) % len(self.views)
            vis.remove_geometry(shown[0], False)
            shown[0] = self.geometry()
            vis.add_geometry(shown[0], False)
            self.print_legend()
            return False

        # GLFW's numbers of the arrow keys, then letters.
        window.register_key_callback(262, lambda vis: show(vis, cloud=1))
        window.register_key_callback(263, lambda vis: show(vis, cloud=-1))
        window.register_key_callback(ord("C"), lambda vis: show(vis, view=1))
        window.poll_events()
        window.update_renderer()
        print(_READY, flush=True)
        print(KEYS.format(views=", ".join(view[-1] for view in self.views)), flush=True)
        self.print_legend()
        window.run()
        window.destroy_window()


if __name__ == "__main__":
    _Viewer(scene.load(Path(sys.argv[1])), sys.argv[3:], sys.argv[2]).run()
