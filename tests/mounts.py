"""Commands run where a disk is mounted for them alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def in_mount(mount: str, folder: Path, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace of its own, entered by the shell line `mount`, whose $0 is `folder`
    and which ends by executing "$@"."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(
        ["unshare", "--mount", *user, "sh", "-c", mount, str(folder), *command],
        capture_output=True,
        text=True,
        timeout=300,
        **options,  # type: ignore[call-overload]
    )
