"""One download over HTTP, which goes on where an earlier one stopped. Standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from limner.checkpoints import store
from limner.checkpoints.sources import Address
from limner.errors import CheckpointError

STALL_S = 30.0  # without a byte, after which a connection counts as dropped
_CHUNK = 2**18
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # answers that may be others later
_PAGE = "gives a web page (a login, a confirmation), not the file"
_WORDS = {
    401: "asks for a login; a file of the hub may need HF_TOKEN and its terms accepted there",
    403: "refuses access; a file of the hub may need HF_TOKEN and its terms accepted there",
    404: "does not have it (404)",
    410: "no longer has it (410)",
}


class Refused(Exception):
    """The address does not give the file, and asking again will not help."""


class Dropped(Exception):
    """The connection failed; asking again may help."""


@dataclass(frozen=True)
class _Part:
    """What is known of an unfinished download: it may only go on with the same file."""

    url: str
    validator: str | None
    total: int | None


def download(
    address: Address,
    path: Path,
    size: int | None,
    progress: Callable[[int, int | None], None],
) -> str | None:
    """Fetch into the partial file of `path` until that is complete.

    Args:
        address: ``http`` or ``https``.
        path: where the file will be; beside it lie the part and its record (`store.partial_files`).
        size: in bytes, where known.
        progress: called with the bytes so far and those in all.

    Returns:
        The SHA-256 that the server states for it; None if it states none.

    Raises:
        Refused: the file is not there, or something else is.
        Dropped: what came so far is kept.
        CheckpointError: the disk is too full.
    """
    part, record = store.partial_files(path)
    known = _read(record)
    have = part.stat().st_size if part.exists() else 0
    if known is None or known.url != address.url or known.validator is None:
        have = 0
    headers = {"User-Agent": "limner", "Accept-Encoding": "identity"}
    if have and known is not None and known.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    redirects = _Redirects()
    try:
        with _open(address, headers, redirects) as answer:
            start = _start(answer, have)
            total = _total(answer, start)
            _refuse_strangers(answer, total, size)
            store.make_room(path.parent, (total or size or start) - start)
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if validator is not None and validator.startswith("W/"):
                validator = answer.headers.get("Last-Modified")
            facts = asdict(_Part(address.url, validator, total))
            record.write_text(json.dumps(facts), encoding="utf-8")
            _receive(answer, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if known is not None and have == known.total:  # all had come before we were stopped
                return redirects.stated
            part.unlink(missing_ok=True)  # longer than the file, so of another
            raise Dropped("the file has changed meanwhile") from error
        raise _judged(error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error) from error
    return redirects.stated


def _receive(
    answer: Any,
    part: Path,
    start: int,
    total: int | None,
    progress: Callable[[int, int | None], None],
) -> None:
    done = start
    with _writing(part), part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        while chunk := _read_some(answer):
            if done == 0 and chunk.lstrip().lower().startswith((b"<!doctype html", b"<html")):
                raise Refused(_PAGE)
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done != total:
        raise Dropped(f"the connection ended after {done:,} of {total:,} bytes")


@contextlib.contextmanager
def _writing(part: Path) -> Iterator[None]:
    """An error of the disk is none of the connection."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(store.not_kept(part.parent, error)) from error


def _read_some(answer: Any) -> bytes:
    try:
        return bytes(answer.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error) from error


def _open(address: Address, headers: dict[str, str], redirects: _Redirects) -> Any:
    request = urllib.request.Request(address.url, headers=headers)
    token = os.environ.get("HF_TOKEN")
    if token and address.hub:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(redirects)  # with the proxies of the environment
    return opener.open(request, timeout=STALL_S)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a token is shown to no other host, and encryption is not given up."""

    stated: str | None = None  # SHA-256 of a large file of the hub, in the header of its redirect

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send next."""
        stated = (headers.get("X-Linked-Etag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", stated):
            self.stated = stated
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise Refused("redirects to an address without encryption")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            following.remove_header("Authorization")
        return following


def _start(answer: Any, have: int) -> int:
    """The first byte that comes."""
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) > have:
        raise Refused("answers with another part of the file than asked for")
    return int(found[1])


def _total(answer: Any, start: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _refuse_strangers(answer: Any, total: int | None, size: int | None) -> None:
    if answer.headers.get_content_type() == "text/html":
        raise Refused(_PAGE)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("gives it compressed, which was not asked for")
    if size is not None and total is not None and total != size:
        raise Refused(f"has a file of {total:,} bytes; the one wanted has {size:,}")


def _judged(code: int) -> Exception:
    if code in _PASSING:
        return Dropped(f"the server answered {code}")
    return Refused(_WORDS.get(code, f"answers {code}"))


def _failure(error: Exception) -> Exception:
    """Whether it is worth trying again, and what to call it."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Refused(
            "has a certificate that this machine does not trust (SSL_CERT_FILE names the "
            "authorities of your institution)"
        )
    if isinstance(reason, socket.gaierror):
        return Refused("cannot be found: no network, or no such host")
    if isinstance(reason, ConnectionRefusedError):
        return Refused("refuses connections")
    if isinstance(reason, TimeoutError):
        return Dropped("the server is silent")
    return Dropped(f"the connection broke ({reason or type(error).__name__})")


def _read(record: Path) -> _Part | None:
    try:
        return _Part(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
