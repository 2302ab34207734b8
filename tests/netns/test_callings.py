"""What peers are called: by the command line, by a person, by themselves."""

from __future__ import annotations

import pytest

from redirectctl.lab.daemons import CommandError, Daemon
from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.namespaces import program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab
from tests.netns.daemon_pair import PATIENCE, Pair

ASK = '[trust]\nfirst_contact = "ask"\nown_name = "{}"\n[protect]\nlong_lived_after = "1s"\n'
SERVER = ASK.format("rack 7")


def peer(daemon: Daemon) -> dict[str, object]:
    (found,) = daemon.ctl("peers")
    return dict(found)


def listing(daemon: Daemon) -> str:
    """`redirectctl peers`, as people see it."""
    return daemon.host.run([program("redirectctl"), "--socket", str(daemon.socket), "peers"]).stdout


def test_the_word_of_the_command_line_is_a_name_until_a_person_gives_another(lab: Lab) -> None:
    pair = Pair(lab, client=ASK.format("my laptop"), server=SERVER)
    sshd = SshServer(lab.server)
    session = lab.client.popen([*pair.wrap, *sshd.ssh("sleep", "1000")])
    pair.client.wait_peer("pending", timeout=PATIENCE)
    wait_until(lambda: peer(pair.client)["name"] == "server", PATIENCE, "the word of ssh", poll=0.1)
    pair.server.wait_peer("pending", timeout=PATIENCE)
    wait_until(lambda: peer(pair.server).get("says") == "my laptop", PATIENCE, "what the laptop says", poll=0.1)
    assert peer(pair.server)["name"] is None, "nobody has confirmed it"
    assert "says" not in peer(pair.client), "the server does not know who calls, and says nothing"
    shown = listing(pair.server)
    assert '"my laptop"' in shown
    for text in ("my laptop", '"my laptop"'):
        with pytest.raises(CommandError, match="no such peer"):
            pair.server.ctl("approve", text)

    assert pair.client.ctl("approve", "server")["name"] == "server"
    pair.server.ctl("approve", str(pair.client.ctl("identity")["fingerprint"]), "--name", "laptop")
    pair.wait_protected(1)
    wait_until(lambda: peer(pair.client).get("says") == "rack 7", PATIENCE, "what the server says", poll=0.1)
    assert peer(pair.server)["name"] == "laptop"
    pair.client.restart()
    pair.wait_protected(1)
    assert (peer(pair.client)["name"], peer(pair.client)["says"]) == ("server", "rack 7")
    pair.client.ctl("approve", "server", "--name", "office")
    assert peer(pair.client)["name"] == "office"
    with pytest.raises(CommandError, match="no such peer"):
        pair.client.ctl("reject", "server")
    session.kill()
    session.wait()


def test_two_laptops_behind_one_nat_are_told_apart(lab: Lab) -> None:
    gateway = Gateway(lab, lab.home)
    server = Daemon(lab.server, SERVER)
    server.start()
    laptops = []
    for name, number in (("red", 10), ("blue", 11)):
        host = Host(lab, name)
        lab.add(host)
        host.join(gateway.private, number)
        daemon = Daemon(host, ASK.format(name))
        daemon.start()
        laptops.append((daemon, start_ticker(lab.server, host, wrap=daemon.opted_in())))

    def waiting() -> dict[object, object]:
        return {p.get("says"): p["addresses"] for p in server.ctl("peers") if p["state"] == "pending"}

    wait_until(lambda: set(waiting()) == {"red", "blue"}, PATIENCE, f"two that wait: {waiting()}", poll=0.1)
    assert set(map(tuple, waiting().values())) == {(str(gateway.address()),)}, "they are seen at one address"  # type: ignore[arg-type]
    shown = listing(server)
    assert '"red"' in shown
    assert '"blue"' in shown
    for daemon, ticker in laptops:
        assert ticker.stop().ok
        daemon.stop()
    server.stop()
