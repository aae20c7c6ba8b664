"""No test reaches another machine; this one it does reach, since ranks of torch.distributed talk over loopback."""

import socket
import urllib.request

import pytest
import torch.distributed

pytestmark = pytest.mark.fast
ELSEWHERE = ("192.0.2.1", 9)  # TEST-NET-1, RFC 5737: nobody answers there


def refused(call: object, *arguments: object) -> None:
    with pytest.raises(Exception, match="tests use this machine alone") as caught:
        call(*arguments)  # type: ignore[operator]
    assert type(caught.value).__name__ == "NetworkRefused"
    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize("how", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_is_refused(how: str) -> None:
    with socket.socket() as made:
        refused(getattr(made, how), ELSEWHERE)


def test_a_packet_to_another_machine_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        refused(made.sendto, b"x", ELSEWHERE)


@pytest.mark.parametrize("how", ["getaddrinfo", "gethostbyname"])
def test_names_of_other_machines_do_not_resolve(how: str) -> None:
    refused(getattr(socket, how), "example.org", *((80,) if how == "getaddrinfo" else ()))


def test_libraries_are_held_too() -> None:
    refused(urllib.request.urlopen, "http://example.org/")
    refused(socket.create_connection, ELSEWHERE)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_reached(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection((host, server.getsockname()[1])):
        server.accept()[0].close()


def test_unix_sockets_are_reached() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def test_gloo_runs_on_loopback(lone_group: None) -> None:
    value = torch.ones(2)
    torch.distributed.all_reduce(value)
    assert value.tolist() == [1.0, 1.0]
