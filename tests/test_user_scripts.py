"""Scripts of users: names that stick, prompts from lists, types that ``mypy --strict`` accepts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.errors import SessionError
from rounds import ROUNDS

SCRIPT = """
import limner
import numpy as np


def work(session: limner.Session) -> None:
    session.add(limner.Click([1, 2]))
    session.add(limner.Click(np.array([1, 2]), positive=False))
    session.add(limner.Box([1, 2], (30, 40)))
    session.add(limner.Scribble([[1, 2], [3, 4]], radius=1))
    session.add(limner.Lasso(np.zeros((3, 2))))
    session.names[1] = "liver"
    session.name(1, "liver")
    print(session.export().names, session.image, session.journal, session.entries)
    list(session.go_on()), session.doubtful()
    position: tuple[float, ...] = limner.Click([1, 2]).at
    print(position, session.predict().mask.sum())


def look() -> list[limner.ModelCard]:
    limner.models.create_model("toy", device="cpu")
    return [*limner.models(), *limner.list_models(), *limner.models.list_models()]


with limner.open_session(np.zeros((9, 9)), "toy") as opened:
    work(opened)
"""


def test_a_name_given_by_item_is_the_objects_name(tmp_path: Path) -> None:
    journal = tmp_path / "case.limner"
    image = phantoms.image(3, (40, 40)).image
    with limner.open_session(image, "toy", journal=journal) as session:
        session.add(limner.Click([20, 20]))
        names = session.names
        session.names[1] = "liver"
        assert names == {1: "liver"}
        assert session.export().names == {1: "liver"}
        session.names.update({1: "spleen"})
        with pytest.raises(ValueError, match="name is a word"):
            session.names[1] = ""
        with pytest.raises(SessionError, match="keeps its name"):
            del session.names[1]
        assert isinstance(names, MutableMapping)
        assert repr(names) == "{1: 'spleen'}"
        assert session.journal == journal
    with limner.resume(journal, image=image) as session:
        assert session.names == {1: "spleen"}


def test_positions_may_be_lists_and_arrays() -> None:
    assert limner.Click([1, 2]) == limner.Click(np.array([1, 2])) == limner.Click((1.0, 2.0))
    assert limner.Click([1, 2]).at == (1.0, 2.0)
    assert limner.Box([1, 2], np.array([3, 4])) == limner.Box((1, 2), (3, 4))
    line = np.array([[1, 2], [3, 4], [5, 2]])
    assert limner.Scribble(line) == limner.Scribble(line.tolist())
    assert limner.Lasso(line) == limner.Lasso(line.tolist())
    assert "at=(1.0, 2.0), positive=True" in repr(limner.Click([1, 2]))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(ROUNDS < 2, reason="takes half a minute; make test-long runs it")
def test_a_script_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    source = Path(limner.__file__).parents[1]
    cache = source.parent / ".mypy_cache"  # of make lint, where there is one
    options = ("--strict", "--follow-imports", "silent")  # the package as one that is installed
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(cache), str(script)],
        env={**os.environ, "MYPYPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
