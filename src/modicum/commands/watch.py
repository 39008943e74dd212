"""`modicum watch`."""

import time
from contextlib import suppress
from pathlib import Path

from modicum.options import Parser, show
from modicum.status import Status


def run(args: list[str]) -> int:
    """Show a run in the terminal until it ends, and write `live.html` in its folder."""
    parser = Parser("watch")
    parser.folder("run", "a run folder", metavar="RUN")
    parser.add_argument("--once", action="store_true", help="show it once, as it stands")
    found = parser.read(args)
    folder = Path(found.run)

    from rich.live import Live

    from modicum import disk, live
    from modicum.report.tables import terminal

    status, console = Status(folder), terminal()
    with Live(console=console, auto_refresh=False) as shown:
        while not found.json:
            # A run that shows itself writes its own.
            if status.state != "running" or not status.values.get("watch"):
                with suppress(*disk.errors()):
                    live.write(status)
            shown.update(live.view(status, *console.size), refresh=True)
            if found.once or status.state != "running":
                break
            time.sleep(live.SECONDS)
            status = Status(folder)
    show(found.json, status.values, f"page: {folder / live.PAGE}")
    return 0
