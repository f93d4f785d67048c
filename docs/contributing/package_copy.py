"""A copy of the package to try an extension in: the scripts beside this file write into it.

The files of the copy are links to those of the checkout, but for what a script writes or edits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


class PackageCopy:
    """A copy of ``src/limner`` in a temporary folder, which is deleted at the end of the block."""

    def __enter__(self) -> PackageCopy:
        self.root = Path(tempfile.mkdtemp(prefix="limner-copy-"))
        for source in (CHECKOUT / "src" / "limner").rglob("*"):
            target = self.root / source.relative_to(CHECKOUT / "src")
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.symlink_to(source)
            except OSError:  # Windows, without the right to make links
                shutil.copyfile(source, target)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root)

    def write(self, path: str, content: str) -> None:
        """Write a file of the package, such as ``models/mine.py``, over one that is there."""
        target = self.root / "limner" / path
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content.lstrip(), encoding="utf-8")

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file of the package."""
        content = (self.root / "limner" / path).read_text(encoding="utf-8")
        if content.count(old) != 1:
            raise ValueError(f"{path} holds {old!r} {content.count(old)} times, not once.")
        self.write(path, content.replace(old, new))

    def run(self, *command: str, code: str = "") -> str:
        """Run ``limner …``, or Python `code`, with the copy; return what it prints."""
        arguments = ["-c", code] if code else ["-m", "limner", *command]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{command or code} failed:\n{done.stdout}{done.stderr}")
        return done.stdout
