"""``python -m limner``: the same as the ``limner`` command."""

from __future__ import annotations

from limner.cli.__main__ import main

if __name__ == "__main__":
    main()
