"""Who may read what a run writes: those whom the user's umask lets.

In: files that a library made for their owner alone. Out: the same with the permissions that `open` would have given them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def umask() -> int:
    """Return this process' umask. The system says it on Linux; elsewhere it can only be read by setting it for a moment."""
    status = Path("/proc/self/status")
    found = re.search(r"^Umask:\s*([0-7]+)$", status.read_text(encoding="utf-8"), re.MULTILINE) if status.is_file() else None
    if found:
        return int(found[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def follow_umask(folder: Path) -> None:
    """Give a folder and all below it the permissions that the umask says; links, which may lead elsewhere, are left alone.

    safetensors writes through a temporary file that is its owner's alone (0600), so that nobody else could use the model.
    """
    allowed = ~umask()
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & allowed)
