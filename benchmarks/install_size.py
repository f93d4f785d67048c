"""What an installation takes on disk, by package, with and without compiled bytecode.

Run with the Python of the environment that is measured: /tmp/size/bin/python
benchmarks/install_size.py. pip and setuptools belong to the environment and are left out. Sizes are
the sum of file lengths in millions of bytes.
"""

from __future__ import annotations

from collections import Counter
from importlib import metadata
from pathlib import Path

NOT_OURS = ("pip", "setuptools")


def main() -> None:
    """Print a table, largest package first."""
    files, bytecode = Counter[str](), Counter[str]()
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name in NOT_OURS:
            continue
        files[name] = 0
        for entry in package.files or ():
            path = Path(str(package.locate_file(entry)))
            if path.is_file():
                (bytecode if path.suffix == ".pyc" else files)[name] += path.stat().st_size
    print("| package | MB | with bytecode |\n| --- | ---: | ---: |")
    for name, size in files.most_common():
        print(f"| {name} | {size / 1e6:.1f} | {(size + bytecode[name]) / 1e6:.1f} |")
    both = files.total() + bytecode.total()
    print(f"| **{len(files)} packages** | **{files.total() / 1e6:.1f}** | **{both / 1e6:.1f}** |")


if __name__ == "__main__":
    main()
