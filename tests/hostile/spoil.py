"""What a hostile host makes of an answer: nonsense of every kind, near to what is expected."""

from __future__ import annotations

import copy
import gzip
import io
import json
import lzma
import random
import re
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.hostile.host import SILENT

STATUSES = (100, 204, 301, 400, 401, 404, 500, 503, 999)
NUMBERS = (
    *("9" * 310, "9" * 5000, "-1", "0", "1e999", "-1e999", "NaN", "Infinity", "1e308", "0x10"),
    *(
        "99999999999999999999",
        "-0.0",
        "1_000",
        "\u0663",
        "1.5.2",
        "",
        "  7",
        "18446744073709551616",
    ),
)
TEXTS = (
    *("", "\0", "a\0b", "\x1b]52;c;ZXZpbA==\x07", "\x1b[2J"),
    *("../../../../tmp/evil", "/etc/passwd"),
    *("\ud800", "x\udfffy", "\u202egnp.exe", "\r\nSet-Cookie: a=b", "[bold]x[/bold]", "[/]", "{}"),
    *(
        "%s%n",
        "$(touch /tmp/evil)",
        "`id`",
        "-oProxyCommand=id",
        "a" * 100_000,
        "\n" * 50,
        "💥" * 9,
    ),
    *("RUNNING", "running", "head", "worker", "ALIVE", "true", "null", "://", "http://[::1", "é"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 10**18, 10**25, 1.5, float("nan"), float("inf"), 1e308),
    *([], {}, [None], [[]], [{}], {"": None}, {"a": {}}, [1, "a", None, {}], [[[[]]]]),
)


class Spoiler:
    """Spoils some answers of one run: one of the first ones, a few, or all."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0
        kind = self._random.random()
        self._first = self._random.randrange(24) if kind < 0.6 else -1
        self._share = 0.0 if kind < 0.6 else 0.05 if kind < 0.85 else 0.4 if kind < 0.95 else 1.0

    def __call__(self, said: bytes) -> bytes:
        """Return what is said instead."""
        self._count += 1
        chosen = self._count - 1 == self._first or self._random.random() < self._share
        return spoiled(self._random, said) if chosen else said


def spoiled(chance: random.Random, said: bytes) -> bytes:
    """Return an answer made worse."""
    if said.startswith(b"HTTP/1."):
        return _http(chance, said)
    if _is_tar(said) and chance.random() < 0.8:
        return chance.choice(_TARS)(chance, said)
    return _content(chance, said)


def _content(chance: random.Random, said: bytes) -> bytes:
    ways: list[Callable[[random.Random, bytes], bytes]] = [_bytes, _words, _lines]
    if b"{" in said or b"[" in said:
        ways += [_json] * 6
    return chance.choice(ways)(chance, said)


def _bytes(chance: random.Random, said: bytes) -> bytes:
    cut = chance.randrange(len(said) + 1)
    if chance.random() < 0.005:
        return b"x" * (33 << 20)
    word = chance.choice(TEXTS).encode("utf-8", "surrogatepass")
    return chance.choice(
        (
            b"",
            chance.randbytes(chance.choice((1, 7, 300, 5000))),
            said[:cut],
            said[cut:],
            said[:cut] + chance.randbytes(3) + said[cut:],
            said[:cut] + word + said[cut:],
            said[:cut] + SILENT,
            said + said,
            said.swapcase(),
            b"[" * 100_000,
            b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        )
    )


def _words(chance: random.Random, said: bytes) -> bytes:
    """Put something else in the place of one number or word."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?|[A-Za-z_./-]{2,}", said[:200_000]))
    if not found:
        return _bytes(chance, said)
    for match in sorted(chance.sample(found, min(len(found), chance.choice((1, 1, 3)))), key=_at):
        number = match[0][:1] in b"-0123456789"
        other = chance.choice(NUMBERS if number and chance.random() < 0.8 else TEXTS)
        said = said[: match.start()] + other.encode("utf-8", "surrogatepass") + said[match.end() :]
    return said


def _at(match: re.Match[bytes]) -> int:
    return -match.start()


def _lines(chance: random.Random, said: bytes) -> bytes:
    lines = said.split(b"\n")
    kind = chance.randrange(5)
    if kind == 0:
        chance.shuffle(lines)
    elif kind == 1:
        del lines[chance.randrange(len(lines))]
    elif kind == 2:
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
    elif kind == 3:
        place = chance.randrange(len(lines))
        lines[place] = _words(chance, lines[place])
    else:
        place = chance.randrange(len(lines))
        lines[place] = lines[place].partition(b" ")[0]
    return b"\n".join(lines)


def _json(chance: random.Random, said: bytes) -> bytes:
    """Change one value, somewhere in what is JSON of it."""
    for start in (m.start() for m in re.finditer(rb"[\[{]", said[:5000])):
        end = said.find(b"\n", start)
        part = said[start:] if end < 0 else said[start:end]
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            try:
                value, part = json.loads(said[start:]), said[start:]
            except (ValueError, RecursionError):
                continue
        if not isinstance(value, dict | list) or not value:
            continue
        for _ in range(chance.choice((1, 1, 1, 4))):
            value = _changed(chance, value)
        after = said[start + len(part) :]
        return said[:start] + json.dumps(value).encode() + after
    return _words(chance, said)


def _changed(chance: random.Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or chance.random() < 0.12:
        if isinstance(value, dict) and value and chance.random() < 0.5:
            value.pop(chance.choice(list(value)))
            return value
        return _strange(chance, value)
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    value[key] = _changed(chance, value[key])
    return value


def _strange(chance: random.Random, value: Any) -> Any:
    if chance.random() < 0.1:
        deep: Any = copy.deepcopy(chance.choice(VALUES))
        for _ in range(chance.choice((20, 500))):
            deep = {"a": deep} if chance.random() < 0.5 else [deep]
        return deep
    kinds = chance.random()
    if kinds < 0.3:
        return chance.choice(TEXTS)
    if kinds < 0.4:
        return chance.choice(NUMBERS)
    if kinds < 0.5 and isinstance(value, list):
        return value * 50
    return copy.deepcopy(chance.choice(VALUES))


def _http(chance: random.Random, said: bytes) -> bytes:
    head, _, body = said.partition(b"\r\n\r\n")
    kind = chance.random()
    if kind < 0.12:
        return _bytes(chance, said)
    if kind < 0.2:
        return _words(chance, head) + b"\r\n\r\n" + body
    status = head.split(b"\r\n")[0]
    if b"application/vnd.docker.multiplexed-stream" in head or b"Upgrade" in head:
        if chance.random() < 0.3:
            return head + b"\r\n\r\n" + _bytes(chance, body)
        return head + b"\r\n\r\n" + _frames(chance, body)
    if b"chunked" in head.lower():
        body = _unchunked(body)
    body = _content(chance, body)
    if chance.random() < 0.1:
        status = b"HTTP/1.1 %d Strange" % chance.choice(
            (100, 204, 301, 400, 401, 404, 500, 503, 999)
        )
    more = [
        b"Content-Type: application/json; charset=" + chance.choice((b"utf-8", b"hex", b"idna"))
    ]
    if chance.random() < 0.05:
        body, extra = gzip.compress(body or b"x"), b"Content-Encoding: gzip"
        more.append(extra)
    if chance.random() < 0.05:
        return (
            b"\r\n".join((status, *more, b"Transfer-Encoding: chunked")) + b"\r\n\r\nFFFFFFFF\r\n"
        )
    length = len(body) + (chance.choice((-1, 1, 10**12)) if chance.random() < 0.05 else 0)
    return b"\r\n".join((status, *more, b"Content-Length: %d" % length)) + b"\r\n\r\n" + body


def _unchunked(body: bytes) -> bytes:
    whole, rest = b"", body
    while (match := re.match(rb"([0-9a-fA-F]+)\r\n", rest)) and (size := int(match[1], 16)):
        whole += rest[match.end() : match.end() + size]
        rest = rest[match.end() + size + 2 :]
    return whole


def _frames(chance: random.Random, body: bytes) -> bytes:
    """Change what stands in Docker's frames, or the frames themselves."""
    parts, rest = [], body
    while len(rest) >= 8:
        kind, size = struct.unpack(">BxxxL", rest[:8])
        parts.append((kind, rest[8 : 8 + size]))
        rest = rest[8 + size :]
    if not parts:
        return _bytes(chance, body)
    place = chance.randrange(len(parts))
    parts[place] = (parts[place][0], spoiled(chance, parts[place][1]))
    if chance.random() < 0.1:
        return struct.pack(">BxxxL", 1, 0xFFFFFFFF) + b"x" * 100
    return b"".join(struct.pack(">BxxxL", kind, len(data)) + data for kind, data in parts)


def _is_tar(said: bytes) -> bool:
    return said[257:262] == b"ustar"


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], pax: dict[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _links(chance: random.Random, _: bytes) -> bytes:
    link = tarfile.TarInfo(chance.choice(("environment.json", "ray/x", "known")))
    link.type = chance.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE))
    link.linkname = chance.choice(("/etc/passwd", "../../x", "known", ""))
    return _tar([(link, b""), (tarfile.TarInfo("known"), b"[]")])


def _traversal(chance: random.Random, _: bytes) -> bytes:
    names = (
        "../../evil",
        "/tmp/evil",
        "ray/../../evil",
        "ray/\x1b[2J",
        "a\nb",
        "..",
        "",
        "x" * 5000,
    )
    return _tar([(tarfile.TarInfo(chance.choice(names)), b"evil")])


def _known(chance: random.Random, _: bytes) -> bytes:
    said = json.dumps(chance.choice([[None], {"a": 1}, [1], [[]], "x", [["a"]], None])).encode()
    name = chance.choice(("known", "environment.json"))
    return _tar([(tarfile.TarInfo(name), chance.choice((said, b"[" * 9000, b"", b"\xff")))])


def _sparse(_: random.Random, __: bytes) -> bytes:
    info = tarfile.TarInfo("ray/sparse")
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 33),
    }
    info.pax_headers = {**headers, "GNU.sparse.name": "ray/sparse"}
    return _tar([(info, b"1\n0\n1\n".ljust(512, b"\0") + b"x")])


@cache
def _bomb(kind: str) -> bytes:
    info = tarfile.TarInfo("ray/bomb")
    packed = _tar([(info, bytes(40 << 20))])
    return gzip.compress(packed) if kind == "gz" else lzma.compress(packed, preset=0)


def _bombs(chance: random.Random, _: bytes) -> bytes:
    return _bomb(chance.choice(("gz", "xz")))


def _many(_: random.Random, __: bytes) -> bytes:
    header = tarfile.TarInfo("pax").tobuf()
    return header * 3000


_TARS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_links, _traversal, _known, _known, _sparse, _bombs, _many, _bytes, _words),
)
