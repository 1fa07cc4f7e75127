"""The lab itself: what its hosts promise to the other tests."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import Host, Lab, UnsupportedError, wait_for
from tests.lab.image import IMAGE
from tests.lab.program import Cli

pytestmark = pytest.mark.lab


def ssh(lab: Lab, host: Host, *command: str, user: str = "root") -> str:
    argv = [*lab.ssh(host, user=user), *command]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def reaches(source: Host, target: str) -> bool:
    dial = f"exec 3<>/dev/tcp/{target}/22"
    return source.run(("timeout", "1", "bash", "-c", dial)).returncode == 0


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """One Docker host, on and healed at the end."""
    chosen = lab.docker_hosts[0]
    yield chosen
    if chosen.process is None:
        chosen.power_on()
    chosen.heal()


def test_hosts_admit_the_key_and_know_their_names(lab: Lab) -> None:
    assert [ssh(lab, host, "hostname").strip() for host in lab.hosts] == [
        "docker-1",
        "docker-2",
        "docker-3",
        "native-1",
    ]


def test_a_container_runs_the_environment_of_this_machine(lab: Lab) -> None:
    volumes = [part for volume in lab.volumes for part in ("-v", volume)]
    probe = "import ray, torch, sys; print(ray.__version__, sys.executable)"
    run = ("docker", "run", "--rm", *volumes, IMAGE, "python", "-c", f"'{probe}'")
    assert ssh(lab, lab.docker_hosts[-1], *run).split() == ["2.60.0", lab.node_python]


def test_the_native_host_has_the_environment_and_no_docker(lab: Lab) -> None:
    (native,) = lab.native_hosts
    command = f"type docker; {lab.node_python} -c 'import ray; print(1)'"
    seen = ssh(lab, native, command, user="ubuntu")
    assert seen == "1\n"


def test_hosts_see_neither_files_nor_processes_of_each_other(lab: Lab) -> None:
    here, there = lab.docker_hosts[:2]
    here.check("touch", *(places := ["/tmp/mark", "/root/mark", "/etc/mark", "/dev/shm/mark"]))
    sleeper = subprocess.Popen([*lab.ssh(here), "sleep", "1234"])
    wait_for(lambda: "sleep 1234" in here.processes(), "the sleeper")
    assert here.files() == {"/tmp/mark", "/root/mark", "/etc/mark"}
    assert not there.files()
    assert "sleep 1234" not in there.processes()
    assert there.run(("ls", *places)).stdout == ""
    here.check("pkill", "-x", "sleep", "--newest")
    sleeper.wait(timeout=60)
    here.check("rm", *places)


def test_what_carries_our_name_is_found_among_logs_and_docker_s_own_files(lab: Lab) -> None:
    host = lab.docker_hosts[0]
    ours = ["/var/log/raycluster-x.log", "/var/lib/docker/volumes/raycluster-x", "/tmp/rc-0123abcd"]
    host.check("touch", *ours, "/var/log/others.log", "/var/lib/docker/others")
    assert host.files() == set(ours)
    host.check("rm", *ours, "/var/log/others.log", "/var/lib/docker/others")
    assert not host.files()


@pytest.mark.parametrize(("user", "admitted"), [("root", 1), ("ubuntu", 1), ("outsider", 0)])
def test_docker_is_for_root_and_its_group(lab: Lab, user: str, admitted: int) -> None:
    done = lab.docker_hosts[1].run(("docker", "ps"), user=user)
    assert (done.returncode == 0) == bool(admitted)
    assert admitted or "permission denied" in done.stderr


def test_a_power_cut_ends_everything_but_the_disk(lab: Lab, host: Host) -> None:
    host.check("docker", "run", "-d", "--name=kept", "--restart=always", IMAGE, "sleep", "99")
    host.check("touch", "/root/kept")
    host.power_off()
    assert not reaches(lab.docker_hosts[1], host.address)
    host.power_on()
    wait_for(lambda: host.containers() == ["kept"], "the container")
    wait_for(lambda: any("sleep 99" in line for line in host.processes()), "its process")
    assert "/root/kept" in host.files()
    host.check("docker", "rm", "--force", "kept")
    host.check("rm", "/root/kept")


def test_a_reboot_runs_crontabs(lab: Lab) -> None:
    (native,) = lab.native_hosts
    mark = "/home/ubuntu/booted"
    ssh(lab, native, f"echo '@reboot touch {mark}' | crontab -", user="ubuntu")
    assert f"@reboot touch {mark}" in native.crontabs()
    native.power_off()
    native.power_on()
    wait_for(lambda: native.run(("test", "-e", mark)).returncode == 0, "the crontab's job")
    ssh(lab, native, f"crontab -r; rm {mark}", user="ubuntu")
    assert not native.files()


@pytest.mark.parametrize("drop", [True, False])
def test_a_partition_cuts_both_families_until_healed(lab: Lab, host: Host, drop: bool) -> None:
    other = lab.docker_hosts[1]
    wait_for(lambda: reaches(other, host.address), "the network")
    wait_for(lambda: reaches(other, host.address6), "the network")
    host.partition(drop=drop)
    assert not reaches(other, host.address)
    assert not reaches(other, host.address6)
    host.heal()
    wait_for(lambda: reaches(other, host.address), "the healed network")
    wait_for(lambda: reaches(other, host.address6), "the healed network")


def test_a_partition_may_be_between_two_hosts(lab: Lab, host: Host) -> None:
    cut, spared = lab.docker_hosts[1:]
    host.partition(peers=[cut])
    assert not reaches(cut, host.address)
    wait_for(lambda: reaches(spared, host.address), "who is not cut off")


def test_latency_delays_what_a_host_sends_or_is_refused_clearly(lab: Lab, host: Host) -> None:
    try:
        host.latency(100)
    except UnsupportedError as error:
        assert str(error).startswith("no netem in this kernel")
    else:
        ping = lab.docker_hosts[1].check("ping", "-c1", host.address)
        host.latency(0)
        assert float(ping.split("time=")[1].split()[0]) >= 100


def test_sshd_can_stop_and_start(lab: Lab, host: Host) -> None:
    host.stop_service("sshd")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host.address, 22), timeout=2).close()
    host.start_service("sshd")
    assert ssh(lab, host, "echo", "back") == "back\n"


def test_options_of_sshd_are_the_tests_choice(lab: Lab) -> None:
    tight = lab.add_host("native", ssh_port=2222, sshd_options={"MaxSessions": "1"})
    try:
        lab.settle([tight])
        assert ssh(lab, tight, "echo", "in") == "in\n"
        assert "maxsessions 1\n" in tight.check("sshd", "-T", "-f", "/etc/ssh/lab_sshd_config")
    finally:
        lab.remove_host(tight)


def test_the_program_reaches_the_hosts_of_a_written_spec(
    lab: Lab, cli: Cli, write_spec: Callable[..., Path]
) -> None:
    planned = cli("plan", write_spec([lab.docker_hosts[0], *lab.native_hosts]))
    assert planned.returncode == 0, planned.stderr
    assert "head" in planned.stdout
    assert "native-1" in planned.stdout
