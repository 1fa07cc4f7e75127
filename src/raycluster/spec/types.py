"""The kinds of values in a spec; each says in words what it expects."""

from __future__ import annotations

import ipaddress
import json
import re
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from raycluster.core.accelerators.requirement import read_requirement
from raycluster.core.accelerators.values import UUID
from raycluster.core.tested_versions import OLDEST_VLLM, startable
from raycluster.core.usernames import wrong_user
from raycluster.serve.settings import SHUT

ENGINE_ARGS_ELSEWHERE = {
    "model": "set `source` of the model instead",
    "served_model_name": "`name` and `aliases` of the model say this",
    "host": "Ray Serve decides where replicas listen",
    "port": "Ray Serve decides where replicas listen",
    "api_key": "use API keys of the gateway instead",
    "lora_modules": "set `adapters` of the model instead",
}
MOST_GPUS = 64
MOST_OF_A_SOCKET = 107  # bytes of a Unix socket's path
MOST_INDEX = 256


def shown(value: object) -> str:
    """Return a value as an error shows it: short, and whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an int beyond sys.get_int_max_str_digits()
        return "such a number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


def _one_line(value: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise ValueError("line breaks and control characters are not allowed")
    return value


def _not_an_option(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("must not begin with `-`, which other programs read as an option")
    return value


class Worded:
    """A pattern for the whole text, whose error says in `words` what is expected."""

    def __init__(self, pattern: str, words: str) -> None:
        self._pattern = pattern
        self._words = words

    def _check(self, value: str) -> str:
        if not re.fullmatch(self._pattern, value):
            raise ValueError(f"{self._words} expected, not {shown(value)}")
        return value

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self._pattern})$"}


def _address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, or None; an IPv6 address that stands for an IPv4 one is that one."""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    with suppress(ValueError):
        found = ipaddress.ip_address(bare)
        if found.version == 4:
            return found if bare == value else None
        if re.fullmatch(r"[A-Za-z0-9_.-]{0,15}", found.scope_id or ""):
            return found.ipv4_mapped or found
    return None


def _of_a_machine(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{address} is not a host's own address")
    return str(address)


def _host(value: str) -> str:
    if "@" in value:
        raise ValueError('only a name or address is allowed; set the user with `user = "..."`')
    if address := _address(value):
        return _of_a_machine(address)
    numeric = re.fullmatch(r"[0-9.]+", value)
    if numeric or not re.fullmatch(r"[A-Za-z0-9_]([\w.-]{0,252}[A-Za-z0-9_])?\.?", value, re.A):
        raise ValueError("a host name, an SSH alias, an IPv4 or an IPv6 address is expected")
    return value


def _user(value: str) -> str:
    name, at, place = value.rpartition("@")
    if at and (_address(place) or not name):
        raise ValueError("only a user name is allowed; set the address with `host`")
    if wrong := wrong_user(_not_an_option(value)):
        raise ValueError(wrong)
    return value


def _docker_socket(value: str) -> str:
    kind = re.match(r"([a-z]{1,10})://", value)
    if kind and kind[1] != "unix":
        raise ValueError(
            f"a Unix socket of the host is expected: Docker by {kind[1]} is not supported, "
            "each host is reached over SSH"
        )
    path = value.removeprefix("unix://")
    if not re.fullmatch(r"~?/[^\0]*[^/\0]", path) or len(path.encode()) > MOST_OF_A_SOCKET:
        raise ValueError(
            "a Unix socket's absolute path is expected, such as `/run/user/1000/docker.sock`, "
            f"of {MOST_OF_A_SOCKET} bytes at most"
        )
    return path


def _jumps(value: str) -> str:
    for jump in value.split(","):
        user, at, place = jump.removeprefix("ssh://").rpartition("@")
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", place)
        if not match or (at and not user) or not 0 < int(match[2] or 22) < 65536:
            raise ValueError("`[user@]host[:port]` is expected, several with commas")
        for part, check in ((user, _user), (match[1], _host)):
            if part or check is _host:
                _not_an_option(check(part))
    return value


def _ip(value: str) -> str:
    address = _address(value)
    if address is None:
        raise ValueError(f"an IPv4 or IPv6 address is expected, not {shown(value)}")
    scoped = address.version == 6 and (address.is_link_local or address.scope_id)
    if address.is_multicast or scoped:
        raise ValueError(
            f"{address} cannot be used by other programs: an address that is not link-local or "
            "multicast is expected"
        )
    return str(address)


def _node(value: str) -> str:
    return _of_a_machine(ipaddress.ip_address(_ip(value)))


def _network(value: str) -> str:
    with suppress(ValueError):
        if "%" not in value:
            return str(ipaddress.ip_network(value))
    raise ValueError(f"a network such as 10.0.0.0/8 is expected, not {shown(value)}")


def _host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if "/" in value:
        raise ValueError(f"`host:port` alone is expected, not {shown(value)}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address needs brackets before its port: `[fd00::1]:9093`")
    if not (colon and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"`host:port` is expected, not {shown(value)}")
    if "%" in _host(host):
        raise ValueError(f"an address without a zone is expected, not {shown(value)}")
    return value


def _registry(value: str) -> str:
    port = value.partition(":")[2]
    if port and not 0 < int(port) < 65536:
        raise ValueError(f"a port from 1 to 65535 is expected, not {port}")
    return value


def _may_be_set(variable: str) -> str:
    if why := SHUT.get(variable):
        raise ValueError(f"{variable} is not allowed here: {why}")
    return variable


def _moment(value: object) -> object:
    """Return the moment that a date or a time of TOML, or of a variable, stands for."""
    if isinstance(text := value, str):  # of a variable
        for read in (datetime.fromisoformat, date.fromisoformat):  # a date is both
            with suppress(ValueError):
                value = read(text)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(
            "a date such as 2027-01-01, or a time with its offset such as 2027-01-01T09:00:00Z, "
            f"is expected, not {shown(value)}"
        )
    return value


def _secret_source(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind not in {"env", "file", "cmd"} or not rest.strip():
        raise ValueError("`env:NAME`, `file:PATH` or `cmd:COMMAND` is expected, never the value")
    return value


def _gpus(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}", value):
        value = int(value)
    if value == "all" or (type(value) is int and 0 <= value <= MOST_GPUS):
        return value
    if isinstance(value, str) and value.lstrip().startswith("["):  # of a variable
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list | tuple):
        return _named_gpus(value)
    given = "" if isinstance(value, dict) else f", not {shown(value)}"
    raise ValueError(
        f'"all", a whole number from 0 to {MOST_GPUS} or a list of GPUs is expected{given}'
    )


def _named_gpus(value: list[object] | tuple[object, ...]) -> tuple[object, ...]:
    if not 0 < len(value) <= MOST_GPUS:
        raise ValueError(f"a list needs 1 to {MOST_GPUS} GPUs; for none set gpus = 0")
    indices = all(type(each) is int and 0 <= each < MOST_INDEX for each in value)
    uuids = all(isinstance(each, str) and re.fullmatch(UUID, each) for each in value)
    if not indices and not uuids:
        raise ValueError(
            "a list contains indices, as [0, 2], or UUIDs of `nvidia-smi -L`, as "
            '["GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"], not both'
        )
    if twice := [each for each in value if value.count(each) > 1]:
        raise ValueError(f"contains {shown(twice[0])} twice")
    return tuple(value)


def _gpu(value: str) -> str:
    read_requirement(value)
    return value


def _startable(value: str) -> str:
    if not startable(value):
        raise ValueError(f"vLLM {value} is not supported: {OLDEST_VLLM} or newer is needed")
    return value


def _engine_args(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("enable_auto_tool_choice") and not value.get("tool_call_parser"):
        raise ValueError(
            "`enable_auto_tool_choice` needs `tool_call_parser`, the name of vLLM's parser for the "
            'model\'s family, such as "hermes" for Qwen'
        )
    for key, given in value.items():
        if key in ENGINE_ARGS_ELSEWHERE:
            raise ValueError(f"`{key}` cannot be set: {ENGINE_ARGS_ELSEWHERE[key]}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            raise ValueError(f"names such as `max_model_len` are expected, not {shown(key)}")
        whole = isinstance(given, int) and not isinstance(given, bool)
        if key.endswith("_parallel_size") and not (whole and given >= 1):
            raise ValueError(f"{key}: a whole number of 1 or more is expected, not {shown(given)}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be passed to an engine: {error}") from error
    return value


def bracketed(address: str) -> str:
    """Return an address or name as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def in_bytes(size: str) -> int:
    """Return the number of bytes that a size such as `64m` means."""
    unit = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(size[-1:])
    return int(size[:-1]) * unit if unit else int(size)


def holds_secrets(annotation: object) -> bool:
    """Tell whether values of this type come from secret sources, so that none may be shown."""
    if isinstance(annotation, AfterValidator):
        return annotation.func is _secret_source
    parts = (*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ()))
    return any(holds_secrets(part) for part in parts)


_IS_NUMBER = BeforeValidator(_not_bool)

Line = Annotated[str, AfterValidator(_one_line)]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_one_line)]
Operand = Annotated[Text, AfterValidator(_not_an_option)]
"""Text that stands alone on command lines."""

Port = Annotated[int, Field(ge=1, le=65535), _IS_NUMBER]
Count = Annotated[int, Field(ge=0, le=1_000_000), _IS_NUMBER]
AtLeastOne = Annotated[int, Field(ge=1, le=1_000_000), _IS_NUMBER]
TokenCount = Annotated[int, Field(ge=1, le=1_000_000_000_000), _IS_NUMBER]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), _IS_NUMBER]
Delay = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False), _IS_NUMBER]
Gpu = Annotated[Text, AfterValidator(_gpu)]
Share = Annotated[float, Field(ge=0, le=4096, allow_inf_nan=False), _IS_NUMBER]
Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False), _IS_NUMBER]
Currency = Annotated[Text, Worded(r"[A-Z]{3}", "three capital letters such as `USD` are")]
GpuCount = Annotated[
    Literal["all"]
    | Annotated[int, Field(ge=0, le=MOST_GPUS)]
    | Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MOST_INDEX)], ...],
        Field(min_length=1, max_length=MOST_GPUS),
    ]
    | Annotated[
        tuple[Annotated[str, Field(pattern=f"^{UUID}$")], ...],
        Field(min_length=1, max_length=MOST_GPUS),
    ],
    BeforeValidator(_gpus),
]
HostName = Annotated[Operand, AfterValidator(_host)]
HostAndPort = Annotated[Operand, AfterValidator(_host_and_port)]
UserName = Annotated[Operand, AfterValidator(_user)]
JumpHosts = Annotated[Operand, AfterValidator(_jumps)]
IpAddress = Annotated[Text, AfterValidator(_ip)]
IpNetwork = Annotated[Text, AfterValidator(_network)]
NodeAddress = Annotated[Text, AfterValidator(_node)]
"""One machine's own."""
HostKeys = Literal["strict", "accept-new"]
HostKey = Annotated[Text, Worded(r"SHA256:[A-Za-z0-9+/]{43}=?", "`SHA256:` and 43 characters are")]
EnvName = Annotated[
    Text,
    Worded(r"[A-Za-z_][A-Za-z0-9_]*", "a name of letters, digits and underscores is"),
    AfterValidator(_may_be_set),
]
Label = Annotated[
    Text,
    Worded(
        r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
        "lower-case letters, digits and hyphens between them, at most 40, are",
    ),
]
SecretSource = Annotated[Text, AfterValidator(_secret_source)]
VolumeText = Annotated[
    Operand,
    Worded(
        r"(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]+(:(ro|rw))?",
        "`/FOLDER:/TARGET` or `VOLUME:/TARGET`, with `:ro` or without, is",
    ),
]
Folder = Annotated[Operand, Worded(r"/[^\0\n]*", "a folder's absolute path is")]
DockerSocket = Annotated[Operand, AfterValidator(_docker_socket)]
Size = Annotated[Text, Worded(r"[0-9]{1,15}[bkmg]?", "a size such as `8g` or `512m` is")]
Bytes = Annotated[Text, Worded(r"[1-9][0-9]{0,8}[kmg]?", "a size such as `64m` or `2g` is")]
Days = Annotated[Text, Worded(r"[1-9][0-9]{0,4}[hdw]", "a time such as `12h`, `15d` or `8w` is")]
KeyOwner = Annotated[
    Text,
    Worded(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "letters, digits and `. _ -`, at most 64, are",
    ),
]
HttpPath = Annotated[
    Text,
    Worded(
        r"/|(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+/?",
        "a path such as `/health`, or `/v1/` for all below it, is",
    ),
]
WebOrigin = Annotated[
    Text,
    Worded(
        r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-][A-Za-z0-9_.-]*)"
        r"(:[0-9]{1,5})?",
        "an origin such as `https://chat.example.com` or `http://localhost:3000`, without a path, "
        "or `*` for all, is",
    ),
]
Device = Annotated[
    Operand,
    Worded(
        r"/dev(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+(:(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+(:[rwm]{1,3})?)?",
        "`/dev/HERE` or `/dev/HERE:/dev/THERE:rwm` is",
    ),
]
Limit = Annotated[int, Field(ge=-1, le=(1 << 63) - 1), _IS_NUMBER]
"""A limit of resources; -1 is none."""
LimitName = Annotated[
    Text,
    Worded(
        "core|cpu|data|fsize|locks|memlock|msgqueue|nice|nofile|nproc|rss|rtprio|rttime|sigpending"
        "|stack",
        "a limit of `docker run --ulimit`, such as `memlock` or `nofile`, is",
    ),
]
Capability = Annotated[
    Text,
    Worded(r"(CAP_)?[A-Z][A-Z_]{1,40}", "a capability such as `IPC_LOCK` is"),
]
ImageName = Annotated[Operand, Worded(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*", "an image's name is")]
PythonVersion = Annotated[Text, Worded(r"3\.(11|12|13)", "`3.11`, `3.12` or `3.13` is")]
VllmVersion = Annotated[
    Text,
    Worded(r"[0-9]+(\.[0-9]+){1,3}((a|b|rc|\.post|\.dev)[0-9]+)?", "a release such as `0.32.0` is"),
    AfterValidator(_startable),
]
RegistryName = Annotated[
    Text,
    Worded(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?", "a registry's `HOST` or `HOST:PORT` is"),
    AfterValidator(_registry),
]
Moment = Annotated[datetime, BeforeValidator(_moment)]
ModelName = Annotated[
    Operand,
    Worded(
        r"[A-Za-z0-9/][A-Za-z0-9._:/@+-]{0,255}",
        "at most 256 letters, digits and `. _ : / @ + -` (a relative path goes into `source`) are",
    ),
]
Function = Annotated[
    Text,
    Worded(
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
        "a function such as `package.module:function` is",
    ),
]
EngineArgs = Annotated[dict[str, Any], AfterValidator(_engine_args)]


class Part(BaseModel):
    """What every table is: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
