"""Whole files: what cannot be read, and what is wrong in what was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycluster.core.errors import SecretError, SpecError
from raycluster.spec import locate, read_spec
from raycluster.spec.secret_sources import resolve_all
from tests.unit.spec.conftest import MINIMAL, Read, Refusal

HEAD = '[head]\nhost = "10.0.0.1"\n'
SOME_GPUS = '"all", a whole number from 0 to 64 or a list of GPUs is expected'
NAMED_GPUS = (
    "a list contains indices, as [0, 2], or UUIDs of `nvidia-smi -L`, as "
    '["GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"], not both'
)
UNUSABLE = (
    "cannot be used by other programs: an address that is not link-local or multicast is expected"
)
NAMED = '[cluster]\nname = "q"\n'


@pytest.mark.parametrize(
    "content",
    [
        MINIMAL,
        "\ufeff" + MINIMAL,
        MINIMAL.replace("\n", "\r\n"),
        "schema = 1\n" + MINIMAL,
        '[cluster]\nname = "q"\n[head]\ntransport = "local"\n',
    ],
    ids=["plain", "BOM", "CRLF", "schema", "this machine"],
)
def test_a_head_alone_is_a_cluster(read: Read, content: str) -> None:
    spec = read(content)
    assert (spec.cluster.name, len(spec.hosts)) == ("q", 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "2 problems\n  cluster: is missing\n  head: is missing"),
        (b"a = 1\n\xff\xfe = 2\n", "line 2 is not UTF-8\n  next: save the file as UTF-8"),
        (b"[cluster\n", "not valid TOML: Expected ']' at the end of a table declaration "
         "(at line 1, column 9)"),
        (b"a = 1\na = 2\n", "not valid TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"a = " + b"9" * 5000, "a number has too many digits"),
        (b"a = " + b"[" * 5000, "lists or tables are nested too deeply"),
        (b"schema = 0x" + b"f" * 5000,
         "schema such a number is newer than this program knows (1)\n"
         "  next: install a newer raycluster"),
        (b"schema = 2\nwhatever = 1\n",
         "schema 2 is newer than this program knows (1)\n  next: install a newer raycluster"),
    ],
    ids=["empty", "not UTF-8", "syntax", "twice", "huge number", "deep", "huge schema", "newer"],
)  # fmt: skip
def test_a_file_that_is_no_spec_is_refused(refusal: Refusal, content: bytes, said: str) -> None:
    assert refusal(content) == f"cluster.toml: {said}"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file\n  next: create one with: raycluster init"):
        read_spec(tmp_path / "none.toml", {})
    with pytest.raises(SpecError, match="is a folder; name the TOML file in it"):
        read_spec(tmp_path, {})


def test_the_spec_is_named_by_argument_then_variable_then_default() -> None:
    environ = {"RAYCLUSTER_SPEC": "/b.toml"}
    assert locate(Path("/a.toml"), environ) == Path("/a.toml")
    assert locate(None, environ) == Path("/b.toml")
    assert locate(None, {}) == Path("cluster.toml")


LABEL = "lower-case letters, digits and hyphens between them, at most 40, are expected"
PLACE = "a host name, an SSH alias, an IPv4 or an IPv6 address is expected"
OPTION = "must not begin with `-`, which other programs read as an option"
OWN_USER = "user: only a user name is allowed; set the address with `host`"
SOCKET = (
    "a Unix socket's absolute path is expected, such as `/run/user/1000/docker.sock`, of 107 bytes "
    "at most"
)
LINE = "line breaks and control characters are not allowed"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prot = 22", "prot: unknown key; did you mean `port`?"),
        ('port = "x"', "port: a whole number is expected, not 'x'"),
        ("port = true", "port: a number is expected, not true or false"),
        ("port = 22.5", "port: a whole number is expected, not 22.5"),
        ("port = nan", "port: a finite number is expected, not nan"),
        ("port = -1", "port: 1 or more is expected, not -1"),
        ("port = 0", "port: 1 or more is expected, not 0"),
        ("port = 65536", "port: at most 65535 is expected, not 65536"),
        (f"port = 0x{'f' * 5000}", "port: at most 65535 is expected, not such a number"),
        ("port = [22]", "port: a whole number is expected"),
        ("user = 5", "user: text in quotes is expected, not 5"),
        ('user = ""', "user: must not be empty"),
        ('user = "-oProxyCommand=x"', f"user: {OPTION}"),
        ('user = "root@10.0.0.1"', OWN_USER),
        ('user = "$(id)"', "user: a user name without quotes and shell signs is expected"),
        ('user = "jane@"', OWN_USER),
        ('user = "root:secret"', "user: a user name without quotes and shell signs is expected"),
        ('user = "jane -oX"',
         "user: a user name without spaces at an end or before a `-` is expected"),
        ('user = "a\\nb"', f"user: {LINE}"),
        ('identity_file = "-oProxyCommand=x"', f"identity_file: {OPTION}"),
        ('known_hosts = "-F"', f"known_hosts: {OPTION}"),
        ('proxy_jump = "-oProxyCommand=x"', f"proxy_jump: {OPTION}"),
        ('proxy_jump = "a,-oProxyCommand=x"', f"proxy_jump: {PLACE}"),
        ('proxy_jump = "a,-o@b"', f"proxy_jump: {OPTION}"),
        ('proxy_jump = "a:0"', "proxy_jump: `[user@]host[:port]` is expected, several with commas"),
        ('proxy_jump = "a b"', f"proxy_jump: {PLACE}"),
        ('host_keys = "off"', "host_keys: 'strict' or 'accept-new' is expected, not 'off'"),
        ('host_key = "MD5:aa"',
         "host_key: `SHA256:` and 43 characters are expected, not 'MD5:aa'"),
        ('private_address = "10.0.0"',
         "private_address: an IPv4 or IPv6 address is expected, not '10.0.0'"),
        ('private_address = "[10.0.0.1]"',
         "private_address: an IPv4 or IPv6 address is expected, not '[10.0.0.1]'"),
        ('private_address = "[fd00::1"',
         "private_address: an IPv4 or IPv6 address is expected, not '[fd00::1'"),
        ('private_address = "gpu-1"',
         "private_address: an IPv4 or IPv6 address is expected, not 'gpu-1'"),
        ('private_address = "::ffff:0.0.0.0"',
         "private_address: 0.0.0.0 is not a host's own address"),
        ('private_address = "fe80::1%eth0"', f"private_address: fe80::1%eth0 {UNUSABLE}"),
        ('private_address = "fd00::1%0"', f"private_address: fd00::1%0 {UNUSABLE}"),
        ('private_address = "fe80::1"', f"private_address: fe80::1 {UNUSABLE}"),
        ('private_address = "ff02::1"', f"private_address: ff02::1 {UNUSABLE}"),
        ('gpus = "al"', f"gpus: {SOME_GPUS}, not 'al'"),
        ("gpus = true", f"gpus: {SOME_GPUS}, not True"),
        ("gpus = -1", f"gpus: {SOME_GPUS}, not -1"),
        ("gpus = 0.5", f"gpus: {SOME_GPUS}, not 0.5"),
        ("gpus = []", "gpus: a list needs 1 to 64 GPUs; for none set gpus = 0"),
        ("gpus = [0, 2, 0]", "gpus: contains 0 twice"),
        ('gpus = ["GPU-aaaa", "GPU-aaaa"]', "gpus: contains 'GPU-aaaa' twice"),
        ('gpus = [0, "GPU-aaaa"]', f"gpus: {NAMED_GPUS}"),
        ("gpus = [true]", f"gpus: {NAMED_GPUS}"),
        ("gpus = [-1]", f"gpus: {NAMED_GPUS}"),
        ("gpus = [256]", f"gpus: {NAMED_GPUS}"),
        ("gpus = [[0]]", f"gpus: {NAMED_GPUS}"),
        ('gpus = ["0"]', f"gpus: {NAMED_GPUS}"),
        ('gpus = ["GPU-aaaa; reboot"]', f"gpus: {NAMED_GPUS}"),
        ('gpus = ["0,1"]', f"gpus: {NAMED_GPUS}"),
        ("gpus = {a = 1}", f"gpus: {SOME_GPUS}"),
        ("connect_timeout = inf", "connect_timeout: a finite number is expected, not inf"),
        ("runtime = 1", "runtime: a table is expected, not 1"),
        ('runtime.image = "-v"', f"runtime.image: {OPTION}"),
        ('runtime.image = "a b"', "runtime.image: an image's name is expected, not 'a b'"),
        ('runtime.python = "-c"', f"runtime.python: {OPTION}"),
        ('runtime.requirements = ["-r"]', f"runtime.requirements[0]: {OPTION}"),
        ('runtime.requirements = "ray"',
         "runtime.requirements: a list is expected, not 'ray'"),
        ('runtime.shm_size = "8 GB"',
         "runtime.shm_size: a size such as `8g` or `512m` is expected, not '8 GB'"),
        ('runtime.devices = ["/etc/passwd"]',
         "runtime.devices[0]: `/dev/HERE` or `/dev/HERE:/dev/THERE:rwm` is expected, "
         "not '/etc/passwd'"),
        ('runtime.devices = ["/dev/../etc"]',
         "runtime.devices[0]: `/dev/HERE` or `/dev/HERE:/dev/THERE:rwm` is expected, "
         "not '/dev/../etc'"),
        ("runtime.ulimits = { memory = -1 }",
         "runtime.ulimits.memory: a limit of `docker run --ulimit`, such as `memlock` or `nofile`, "
         "is expected, not 'memory'"),
        ("runtime.ulimits = { nofile = -2 }",
         "runtime.ulimits.nofile: -1 or more is expected, not -2"),
        ('runtime.cap_add = ["ipc lock"]',
         "runtime.cap_add[0]: a capability such as `IPC_LOCK` is expected, not 'ipc lock'"),
        ('runtime.ipc = "container:x"',
         "runtime.ipc: 'host', 'private' or 'shareable' is expected, not 'container:x'"),
        ('runtime.volumes = ["../a:/b"]',
         "runtime.volumes[0]: `/FOLDER:/TARGET` or `VOLUME:/TARGET`, with `:ro` or without, is "
         "expected, not '../a:/b'"),
        ('runtime.socket = "tcp://10.0.0.5:2375"',
         "runtime.socket: a Unix socket of the host is expected: Docker by tcp is not supported, "
         "each host is reached over SSH"),
        ('runtime.socket = "docker.sock"', f"runtime.socket: {SOCKET}"),
        (f'runtime.socket = "/{"x" * 107}"', f"runtime.socket: {SOCKET}"),
        ('runtime.socket = "/a/"', f"runtime.socket: {SOCKET}"),
        ('runtime.volumes = ["/a:/b\\n"]', f"runtime.volumes[0]: {LINE}"),
        ('runtime.env = { A = "x\\ny" }', f"runtime.env.A: {LINE}"),
        ('runtime.env = { A = 1 }', "runtime.env.A: text in quotes is expected, not 1"),
        ('runtime.env = { "A B" = "x" }',
         "runtime.env.A B: a name of letters, digits and underscores is expected, not 'A B'"),
        ('runtime.start_on_boot = "x"',
         "runtime.start_on_boot: true or false is expected, not 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_line(refusal: Refusal, line: str, said: str) -> None:
    assert refusal(f"{MINIMAL}{line}\n") == f"cluster.toml: line 5: head.{said}"


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=x", "a b", "$(id)", "a;b", "../x", "a\\nb", "1.2.3", "1.2.3.4.5", "[::g]",
     "bücher.example", "a:22", "-", "fe80::1%$(id)", "fe80::1%a b", "fe80::1%", "[10.0.0.1]",
     "fe80::1%aaaaaaaaaaaaaaaa", "[::1", "::1]", "10.0.0.1%eth0", "[gpu-1]"],
)  # fmt: skip
def test_what_is_no_host_is_refused(refusal: Refusal, host: str) -> None:
    said = refusal(f'{NAMED}[head]\nhost = "{host}"\n')
    assert said.startswith("cluster.toml: line 4: head.host: ")
    assert said.endswith((PLACE, OPTION, LINE))


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("gpu-1", "gpu-1"),
        ("gpu_1.example.org.", "gpu_1.example.org."),
        ("::1", "::1"),
        ("[2001:DB8::0001]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[::FFFF:a00:1]", "10.0.0.1"),
    ],
)
def test_hosts_and_addresses_are_kept(read: Read, host: str, kept: str) -> None:
    assert read(f'{NAMED}[head]\nhost = "{host}"\n').head.host == kept


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0"])
def test_what_is_no_machine_is_refused(refusal: Refusal, host: str) -> None:
    assert refusal(f'{NAMED}[head]\nhost = "{host}"\n').endswith("is not a host's own address")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[gateway]\nlisten = "fe80::1%eth0"', f"gateway.listen: fe80::1%eth0 {UNUSABLE}"),
        ('[gateway]\nlisten = "localhost"',
         "gateway.listen: an IPv4 or IPv6 address is expected, not 'localhost'"),
        ('[monitoring]\nalertmanagers = ["[fe80::1%eth0]:9093"]',
         "monitoring.alertmanagers[0]: an address without a zone is expected, not "
         "'[fe80::1%eth0]:9093'"),
        ('[monitoring]\nalertmanagers = ["[10.0.0.9]:9093"]',
         f"monitoring.alertmanagers[0]: {PLACE}"),
        ('[registry]\nserver = "r:65536"\nusername = "env:A"\npassword = "env:B"',
         "registry.server: a port from 1 to 65535 is expected, not 65536"),
        ('[registry]\nserver = "r:0"\nusername = "env:A"\npassword = "env:B"',
         "registry.server: a port from 1 to 65535 is expected, not 0"),
    ],
)  # fmt: skip
def test_addresses_that_programs_cannot_use_are_refused(
    refusal: Refusal, table: str, said: str
) -> None:
    assert refusal(f"{MINIMAL}{table}\n") == f"cluster.toml: line 6: {said}"


SECRETS = (
    "secrets.HF_TOKEN", "gateway.api_keys.a", "gateway.tls.key", "registry.username",
    "registry.password", "secrets", "gateway.api_keys", "gateway.keys.a.key", "gateway.keys.a",
    "gateway.keys", "gateway.tls", "registry",
)  # fmt: skip
WRONG = ("{}", "env:", "env: {}", "ENV:{}", "{}\\n", "cmd:\\u0000{}", "é{}", "-{}", "{}" * 1000)


@pytest.mark.parametrize("place", SECRETS)
@pytest.mark.parametrize("value", [f'"{wrong}"' for wrong in WRONG] + ['["{}"]', "{{ x = '{}' }}"])
def test_a_secret_in_the_place_of_its_source_is_not_shown(
    read: Read, place: str, value: str
) -> None:
    given = value.replace("{{", "{").replace("}}", "}").replace("{}", "hunter2")
    variable = "RAYCLUSTER__" + place.upper().replace(".", "__")
    for content, environ in ((f"{place} = {given}\n{MINIMAL}", {}), (MINIMAL, {variable: given})):
        with pytest.raises((SpecError, SecretError)) as caught:
            resolve_all(read(content, environ), {"PATH": "/bin"})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Q", "a b", "$(id)", "a'b", 'a\\"b', "../a", "é", "-a", "a-", "a" * 41, "a.b"]
)
def test_a_cluster_name_is_a_label(refusal: Refusal, name: str) -> None:
    said = refusal(f'[cluster]\nname = "{name}"\n{HEAD}')
    assert said.startswith(f"cluster.toml: line 2: cluster.name: {LABEL}, not ")


@pytest.mark.parametrize("name", ["$(id)", "a b", "a'b", "../a", "é", "a\\nb", "-x", "a" * 300])
def test_a_model_name_holds_no_surprises(refusal: Refusal, name: str) -> None:
    said = refusal(f'{MINIMAL}[[models]]\nname = "{name}"\n')
    assert said.startswith("cluster.toml: line 6: models[0].name: ")


@pytest.mark.parametrize("value", ["$(id)", "a 'b' \\\"c\\\"", "é", "; rm -rf", "-x"])
def test_an_environment_value_may_be_any_line(read: Read, value: str) -> None:
    spec = read(f'{MINIMAL}[env]\nA = "{value}"\n')
    assert spec.env["A"] == value.replace('\\"', '"')


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[workers]]\nhost = "10.0.0.1"\n', "head and worker-1 are the same machine"),
        ('[[workers]]\nhost = "a"\n[[workers]]\nhost = "A."\n',
         "worker-1 and worker-2 are the same machine"),
        ('[[workers]]\nhost = "a"\nname = "worker-2"\n[[workers]]\nhost = "b"\n',
         "two hosts have the name 'worker-2'"),
        ('[[workers]]\nhost = "a"\nname = "head"\n', "two hosts have the name 'head'"),
        ('[[workers]]\nhost = "a"\nprivate_address = "10.1.0.1"\n'
         '[[workers]]\nhost = "b"\nprivate_address = "10.1.0.1"\n',
         "two hosts have the private_address 10.1.0.1"),
        ("[[workers]]\n", "line 5: workers[0]: `host` is missing "
         '(or set `transport = "local"` for this machine)'),
        ("[workers]\n", "line 5: workers: a list is expected: `[[workers]]` for tables"),
        ('[[models]]\nname = "m"\n[[models]]\nname = "m"\n',
         "line 5: models: two models, aliases or adapters have the name 'm'"),
        ("[ports]\napi = 8265\n", "line 5: ports: api and dashboard are both 8265"),
        ("[ports]\napi = 20001\n",
         "line 5: ports: api (20001) lies between worker_min and worker_max"),
        ("[ports]\nworker_min = 30000\n",
         "line 5: ports: worker_min (30000) is above worker_max"),
        ("[ports]\nreplica_max = 30004\n",
         "line 5: ports: a replica takes three ports: replica_min to replica_max must span at "
         "least 6"),
        ('[worker]\nhost = "a"\n', "line 5: worker: unknown key; did you mean `workers`?"),
        ("[nonsense]\n", "line 5: nonsense: unknown key; allowed here: "),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together(refusal: Refusal, more: str, said: str) -> None:
    assert refusal(MINIMAL + more).startswith(f"cluster.toml: {said}")


def test_two_ports_of_one_address_are_two_machines(read: Read) -> None:
    spec = read(f'{MINIMAL}port = 1\n[[workers]]\nhost = "10.0.0.1"\nport = 2\n')
    assert [h.name for h in spec.hosts] == ["head", "worker-1"]


def test_one_head_is_needed(refusal: Refusal) -> None:
    assert refusal(NAMED) == "cluster.toml: head: is missing"
    said = refusal(NAMED + "[[head]]\n[[head]]\n")
    assert said == "cluster.toml: line 3: head: one table is expected: `[head]`, not `[[head]]`"
    assert "Cannot declare ('head',) twice (at line 5" in refusal(NAMED + HEAD + HEAD)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("replicas = { min = 3, max = 1 }", "replicas: min (3) is more than max (1)"),
        ("replicas = { mn = 3 }", "replicas.mn: unknown key; did you mean `min`?"),
        ("replicas = 0", "replicas: 1 or more is expected, not 0"),
        ('replicas = "x"', "replicas: a whole number is expected, not 'x'"),
        ("replicas = true", "replicas: a number is expected, not true or false"),
        ("num_gpus = -1", "num_gpus: 0 or more is expected, not -1"),
        ("num_cpus = inf", "num_cpus: a finite number is expected, not inf"),
        ('engine = "sglang"',
         "engine: 'auto', 'vllm' or 'transformers' is expected, not 'sglang'"),
        ('engine_args.tensor_parallel_size = "2"',
         "engine_args: tensor_parallel_size: a whole number of 1 or more is expected, not '2'"),
        ("engine_args.tensor_parallel_size = true",
         "engine_args: tensor_parallel_size: a whole number of 1 or more is expected, not True"),
        ("engine_args.pipeline_parallel_size = 0",
         "engine_args: pipeline_parallel_size: a whole number of 1 or more is expected, not 0"),
        ("engine_args.max-model-len = 1",
         "engine_args: names such as `max_model_len` are expected, not 'max-model-len'"),
        ('engine_args.model = "x"',
         "engine_args: `model` cannot be set: set `source` of the model instead"),
        ("engine_args.a = 1979-05-27",
         "engine_args: cannot be passed to an engine: Object of type date is not JSON "
         "serializable"),
        ("engine_args.a = nan", "engine_args: cannot be passed to an engine: "
         "Out of range float values are not JSON compliant"),
        ('source = "-x"', f"source: {OPTION}"),
    ],
)  # fmt: skip
def test_a_wrong_model_is_named_with_its_line(refusal: Refusal, line: str, said: str) -> None:
    text = f'{MINIMAL}[[models]]\nname = "m"\n{line}\n'
    assert refusal(text) == f"cluster.toml: line 7: models[0].{said}"


def test_gpus_must_suffice_where_all_are_counted(read: Read, refusal: Refusal) -> None:
    model = '[[models]]\nname = "m"\nreplicas = 2\nengine_args.tensor_parallel_size = 2\n'
    said = refusal(f"{MINIMAL}gpus = 3\n{model}")
    assert said == "cluster.toml: the models need at least 4 GPUs, but the hosts have 3"
    said = refusal(f"{MINIMAL}gpus = [0, 1, 5]\n{model}")
    assert said == "cluster.toml: the models need at least 4 GPUs, but the hosts have 3"
    for gpus in ('"all"', "4", "0", "[0, 1, 4, 5]"):
        assert read(f"{MINIMAL}gpus = {gpus}\n{model}").models[0].each_gpus == 2


@pytest.mark.parametrize("version", ["true", "0", "-1", "1.5", '"x"', "[]"])
def test_the_schema_is_a_known_number(refusal: Refusal, version: str) -> None:
    said = refusal(f"schema = {version}\n{MINIMAL}")
    assert said.startswith("cluster.toml: line 1: schema: 1 is expected")


def test_every_problem_is_listed_in_the_files_order(refusal: Refusal) -> None:
    said = refusal('[head]\nport = 0\nhost = "a@b"\n[cluster]\nname = "Q"\n')
    assert said.splitlines() == [
        "cluster.toml: 3 problems",
        "  line 2: head.port: 1 or more is expected, not 0",
        '  line 3: head.host: only a name or address is allowed; set the user with `user = "..."`',
        f"  line 5: cluster.name: {LABEL}, not 'Q'",
    ]


@pytest.mark.parametrize(
    "secrets",
    ['HF_TOKEN = "hunter2"', "HF_TOKEN = 112358", 'HF_TOKEN = ["hunter2"]',
     'HF_TOKEN = "env:"', 'HF_TOKEN = { hunter2 = "x" }'],
)  # fmt: skip
def test_a_secret_given_as_a_value_is_never_shown(refusal: Refusal, secrets: str) -> None:
    said = refusal(f"{MINIMAL}[secrets]\n{secrets}\n")
    assert "line 6: secrets.HF_TOKEN: " in said
    assert "hunter2" not in said
    assert "112358" not in said
    assert "hunter2" not in refusal('secrets = "hunter2"\n' + MINIMAL)


def test_a_traceback_shows_no_secret_either(read: Read) -> None:
    with pytest.raises(SpecError) as caught:
        read(f'{MINIMAL}[secrets]\nA = "hunter2"\n')
    assert caught.value.__cause__ is not None
    assert "hunter2" not in str(caught.value.__cause__)


def test_relative_paths_are_the_spec_folders(read: Read, tmp_path: Path) -> None:
    spec = read(
        f'{MINIMAL}identity_file = "../key"\nruntime.python = "./bin/python"\n'
        '[[models]]\nname = "m"\nsource = "./model"\n[secrets]\nT = "file:./token"\n'
    )
    assert spec.head.identity_file == str(tmp_path.parent / "key")
    assert spec.head.runtime.python == str(tmp_path / "bin/python")
    assert spec.models[0].source == str(tmp_path / "model")
    assert spec.secrets["T"] == f"file:{tmp_path}/token"


def test_defaults_reach_every_host_and_hosts_override_them(read: Read) -> None:
    spec = read(
        f'{MINIMAL}user = "ray"\nruntime.env = {{ B = "2" }}\n[ssh]\nuser = "root"\nport = 23\n'
        '[runtime]\nkind = "native"\nenv = { A = "1", B = "1" }\n[[workers]]\nhost = "w"\n'
    )
    head, worker = spec.hosts
    assert (head.ssh.user, worker.ssh.user) == ("ray", "root")
    assert {h.ssh.port for h in spec.hosts} == {23}
    assert {h.kind for h in spec.hosts} == {"native"}
    assert head.runtime.env == {"A": "1", "B": "2"}
    assert worker.runtime.env == {"A": "1", "B": "1"}
