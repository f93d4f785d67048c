"""Names of a session's objects, as a mapping that writes through to the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from limner.errors import SessionError


class ObjectNames(MutableMapping[int, str]):
    """The names by object id; ``session.names[1] = "liver"`` is ``session.name(1, "liver")``.

    Args:
        names: of the session, which stay live.
        give: names an object, and may refuse to.
    """

    def __init__(self, names: Mapping[int, str], give: Callable[[int, str], None]) -> None:
        self._names = names
        self._give = give

    def __getitem__(self, object_id: int) -> str:
        return self._names[object_id]

    def __setitem__(self, object_id: int, name: str) -> None:
        self._give(object_id, name)

    def __delitem__(self, object_id: int) -> None:
        raise SessionError(
            f"Object {object_id} keeps its name until it gets another: "
            f'session.names[{object_id}] = "…".'
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self._names))
