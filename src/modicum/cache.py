"""Values that were made before: the second plan of a run needs neither torch nor a trace.

What is asked, the versions of what computes it and the files that are named together name a JSON file
in the folder MODICUM_CACHE, or the user's own cache; an empty MODICUM_CACHE keeps none."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modicum.disk import make_folder, write_whole
from modicum.types import UserError

MOST = 200  # files; the oldest go first


def once(make: Callable[[], Any], *asked: Any) -> Any:
    """What `make` gives for what is asked, or gave before, in JSON values."""
    own = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/modicum"
    if not (folder := os.path.expanduser(os.environ.get("MODICUM_CACHE", own))):
        return make()
    mark = key(*asked)
    path = Path(folder, f"{mark}.json")
    with suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads(path.read_text(encoding="utf-8"))[mark]
    made = make()
    with suppress(OSError, UserError):
        make_folder(path.parent)
        write_whole(path, json.dumps({mark: made}))
        for old in sorted(path.parent.glob("*.json"), key=os.path.getmtime)[:-MOST]:
            old.unlink(missing_ok=True)
    return made


def key(*asked: Any) -> str:
    """Of what is asked and what it depends on."""
    words = {os.path.expanduser(word) for word in re.split(r"""[\\'"(),=:]+""", repr(asked))}
    paths = [Path(word) for word in sorted(words) if word.strip(" ./") and os.path.exists(word)]
    paths += [entry for path in paths if path.is_dir() for entry in sorted(path.glob("*"))]
    paths += sorted(p for p in Path(__file__).parent.rglob("*") if p.suffix in (".py", ".toml"))
    marks = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p.exists()]
    versions = [version(name) for name in ("torch", "transformers", "peft")]
    return hashlib.sha256(repr((asked, marks, versions)).encode()).hexdigest()
