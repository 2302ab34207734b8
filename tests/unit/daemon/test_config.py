import os
from pathlib import Path

import pytest

from redirectctl import config
from redirectctl.config import Config, ConfigError

# Word for word as the interface description has it, all values being the defaults.
DEFAULTS = """\
[control]
port = 7747                  # UDP
listen = []                  # addresses; empty = all
[trust]
first_contact = "ask"        # ask | accept-new | refuse
forget_after = "365d"        # peers not met for this long
known_peers = []
dns = false                  # approve keys that DNS has, validated
anchors = ""                 # of DNSSEC; empty: the root's
[protect]
scope = "opted-in"           # opted-in | all
ports = []                   # remote ports that are always opted in
long_lived_after = "10s"
close_short_lived = true     # at an address change
accept_ports = []            # local ports that peers may ask to protect; empty = all
[integrity]
mode = "off"                 # off | on
[path]
prefer = "auto"              # auto | rewritten | tunnel
leave_vpn = false
last = []                    # interfaces, with *
never = []
accept_from = []             # networks; empty: all
[outage]
suspend_after = "10s"        # of silence
give_up_after = "14d"
[rendezvous]
servers = []                 # "host:port"
serve = false
[dns]
lookup = true
names = {}
name = ""
zone = ""
server = ""
key_file = ""
ttl = "30s"
private = false
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "f.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_documented_file_is_the_defaults():
    assert config.parse(DEFAULTS) == Config() == config.parse("")


def test_values():
    read = config.parse(
        """
        control = { port = 7000, listen = ["192.0.2.1", "2001:db8::1"] }
        protect.ports = [22, 5432]
        [trust]
        first_contact = "accept-new"
        forget_after = "2w"
        ["path"]
        'prefer' = "rewritten"
        """
    )
    assert read.control.port == 7000
    assert read.control.listen == ("192.0.2.1", "2001:db8::1")
    assert read.protect.ports == (22, 5432)
    assert read.protect.scope == "opted-in"
    assert read.trust.first_contact == "accept-new"
    assert read.trust.forget_after == 14 * 86400
    assert read.path.prefer == "rewritten"


def test_where_connections_may_go():
    read = config.parse(
        """
        [path]
        leave_vpn = true
        last = ["wwan*", "usb0"]
        never = ["docker*", "virbr*"]
        accept_from = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]
        """
    ).path
    assert (read.leave_vpn, read.last, read.never) == (True, ("wwan*", "usb0"), ("docker*", "virbr*"))
    assert read.accept_from == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")
    assert (Config().path.leave_vpn, Config().path.last, Config().path.never, Config().path.accept_from) == (
        False, (), (), (),
    )  # fmt: skip


def test_names():
    text = """
        [dns]
        name = "Laptop.dyn.example.net."
        zone = "dyn.example.net"
        server = "[2001:db8::53]:53"
        key_file = "/etc/redirectctl/tsig.key"
        [dns.names]
        "SHA256:kmCtQ" = "server.example.net"
        office = "server"
    """
    read = config.parse(text).dns
    assert read.names == {"SHA256:kmCtQ": "server.example.net", "office": "server"}
    assert (read.name, read.ttl) == ("Laptop.dyn.example.net.", 30)


@pytest.mark.parametrize("text", ["", ".", "a..b", "-a.b", "a-.b", "a.b:1", "x" * 64, "a." * 127 + "a", "1.2", "a@b"])
def test_what_is_no_name(text: str):
    assert not config.is_host_name(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("1.5s", 1.5), ("3m", 180), ("2h", 7200), ("365d", 31536000), ("0s", 0)],
)
def test_durations(text: str, seconds: float):
    assert config.parse(f'[protect]\nlong_lived_after = "{text}"').protect.long_lived_after == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[control]\n\nprot = 1", "f.toml:3: control.prot: unknown key; did you mean port? "
         "keys of [control] are port, listen"),
        ("# c\n[contrl]\nport = 1", "f.toml:2: contrl: unknown section; did you mean control? "
         "sections are control, trust, protect, integrity, path, outage, rendezvous, dns, desktop"),
        ("[path]\nsuspend_after = 1", "f.toml:2: path.suspend_after: unknown key; it belongs in [outage]"),
        ("[xyz]", "f.toml:1: xyz: unknown section; "
         "sections are control, trust, protect, integrity, path, outage, rendezvous, dns, desktop"),
        ("control = 3", "f.toml:1: control: is a section, not a key; write [control] on a line"),
        ("[control]\nport = 0", "f.toml:2: control.port: 0 is not a valid value; write a number from 1 to 65535"),
        ("[control]\nport = true", "f.toml:2: control.port: true is not a valid value; "
         "write a number from 1 to 65535"),
        ('[control]\nport = "7747"', "f.toml:2: control.port: '7747' is not a valid value; "
         "write a number from 1 to 65535"),
        ('[control]\nlisten = ["eth0"]', "f.toml:2: control.listen: 'eth0' is not an address; "
         'write addresses as in "192.0.2.1"'),
        ('[trust]\nfirst_contact = "yes"', "f.toml:2: trust.first_contact: 'yes' is not a valid value; "
         'write "ask" or "accept-new" or "refuse"'),
        ("[trust]\nforget_after = 365", "f.toml:2: trust.forget_after: 365 is not a duration; "
         'write a number and ms, s, m, h, d or w, as in "10s"'),
        ('[trust]\nforget_after = "-1d"', "f.toml:2: trust.forget_after: '-1d' is not a duration; "
         'write a number and ms, s, m, h, d or w, as in "10s"'),
        ('[trust]\nforget_after = "0d"', "f.toml:2: trust.forget_after: must be longer than 0; write a longer time"),
        ("[protect]\nports = [22, 65536]", "f.toml:2: protect.ports: [22, 65536] is not a valid value; "
         "write a list of numbers from 1 to 65535, as in [22, 5432]"),
        ("[protect]\nclose_short_lived = 1", "f.toml:2: protect.close_short_lived: 1 is not a valid value; "
         "write true or false"),
        ("[path]\nlast = [3]", "f.toml:2: path.last: [3] is not a valid value; "
         'write a list of interfaces, as in ["wwan*"]'),
        ('[path]\nnever = ["docker0", "a b"]', "f.toml:2: path.never: 'a b' is not the name of an interface; "
         'write interfaces as in "wwan0" or "wwan*"'),
        ('[path]\nnever = [""]', "f.toml:2: path.never: '' is not the name of an interface; "
         'write interfaces as in "wwan0" or "wwan*"'),
        ('[path]\naccept_from = "10.0.0.0/8"', "f.toml:2: path.accept_from: '10.0.0.0/8' is not a valid value; "
         'write a list of networks, as in ["192.0.2.0/24"]'),
        ('[path]\naccept_from = ["10.0.0.0/40"]', "f.toml:2: path.accept_from: '10.0.0.0/40' is not a network; "
         'write networks as in "192.0.2.0/24"'),
        ('[path]\naccept_from = ["10.1.0.0/8"]', "f.toml:2: path.accept_from: '10.1.0.0/8' has bits set beyond its "
         'prefix length; write "10.0.0.0/8"'),
        ('[path]\nleave_vpn = "no"', "f.toml:2: path.leave_vpn: 'no' is not a valid value; write true or false"),
        ('[rendezvous]\nservers = ["here"]', "f.toml:2: rendezvous.servers: 'here' is not HOST:PORT; "
         'write servers as in "rendezvous.example.net:7747"'),
        ('[dns]\nname = "a b"', "f.toml:2: dns.name: 'a b' is not a name; write names as in \"host.example.net\""),
        ('[dns.names]\n"SHA256:x" = "192.0.2.1"', "f.toml:1: dns.names: '192.0.2.1' is not a name; "
         'write names as in "host.example.net"'),
        ('[dns]\nnames = ["a"]', "f.toml:2: dns.names: ['a'] is not a valid value; "
         'write names by peer, as in { "SHA256:kmCtQ" = "host.example.net" }'),
        ('[dns]\nserver = "ns"', "f.toml:2: dns.server: 'ns' is not HOST:PORT; "
         'write servers as in "rendezvous.example.net:7747"'),
        ("[dns]\nkey_file = 3", "f.toml:2: dns.key_file: 3 is not a valid value; write text"),
        ("[dns]\nserver = 3", "f.toml:2: dns.server: 3 is not a valid value; "
         'write a server, as in "ns.example.net:53"'),
        ('[dns]\nname = "h.example.net"', "f.toml:2: dns.name: cannot be kept up to date without dns.zone; "
         "write zone too"),
        ('[dns]\nname = "h.example.net"\nzone = "ample.net"\nserver = "ns:53"\nkey_file = "k"',
         "f.toml:2: dns.name: 'h.example.net' is not in zone 'ample.net'; write the whole name"),
        ("protect.prots = 1", "f.toml:1: protect.prots: unknown key; did you mean ports? "
         "keys of [protect] are scope, ports, long_lived_after, close_short_lived, accept_ports"),
        ("[control]\nport = 1\nport = 2", "f.toml:3: not TOML: cannot overwrite a value; correct the line"),
    ],
)  # fmt: skip
def test_errors_name_key_and_line(text: str, message: str):
    assert refused(text) == message


def test_the_first_wrong_line_is_named():
    assert refused('[protect]\nnope = 1\n[control]\nport = "x"').startswith("f.toml:2: protect.nope:")


def test_a_line_break_in_a_key_or_value_stays_in_one_line():
    assert refused('[control]\n"a\\nb" = 1').startswith("f.toml:1: 'control.a\\nb': unknown key")
    assert "'a\\nb'" in refused('[integrity]\nmode = "a\\nb"')


def test_unfinished_file():
    assert refused('[control]\nlisten = [\n"192.0.2.1"').startswith("f.toml:3: not TOML: ")


def test_a_word_that_is_none_of_the_choices():
    assert "is not a valid value" in refused('[integrity]\nmode = "maybe"')


def test_missing_default_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    assert config.load(None) == Config()


def test_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "redirectd.toml").write_text("[control]\nport = 1234\n")
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "redirectd.toml")
    assert config.load(None).control.port == 1234


def test_missing_named_file_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file; create it"):
        config.load(tmp_path / "none.toml")


def test_directory_and_binary(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Is a directory; make it readable"):
        config.load(tmp_path)
    (tmp_path / "b").write_bytes(b"[control]\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"b:2: not UTF-8 text; save it as UTF-8"):
        config.load(tmp_path / "b")


@pytest.mark.parametrize(("mode", "trusted"), [(0o644, True), (0o600, True), (0o664, False), (0o646, False)])
def test_a_file_that_others_can_change_is_refused(tmp_path: Path, mode: int, trusted: bool):
    file = tmp_path / "redirectd.toml"
    file.write_text("[control]\nport = 1234\n")
    file.chmod(mode)
    if trusted:
        assert config.load(file).control.port == 1234
    else:
        with pytest.raises(ConfigError, match=rf"^{file}: others can change it; chmod go-w {file}$"):
            config.load(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path):
    file = tmp_path / "redirectd.toml"
    file.write_text("")
    os.chown(file, 1000, 0)
    with pytest.raises(ConfigError, match=rf"^{file}: user 1000 owns it, and can change it; chown root {file}$"):
        config.load(file)


@pytest.mark.parametrize(
    "deep",
    [
        "ports = " + "[" * 100_000,
        "ports = " + "[" * 100_000 + "]" * 100_000,
        "ports = " + "{ a = " * 100_000,
        "ports" + ".a" * 2_000 + " = 1",
        "[protect.ports" + ".a" * 2_000 + "]",
    ],
    ids=["lists", "closed-lists", "tables", "dots", "header"],
)
def test_what_is_nested_without_end_is_an_error_of_its_line(deep: str):
    refusal = refused(f"[protect]\nlong_lived_after = '1s'\n{deep}\n")
    assert refusal.startswith("f.toml:3: ")
    assert len(refusal) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[control]\nport = " + "9" * 5000, "f.toml:2: a number is too long"),
        ("[control]\nport = 0x" + "f" * 5000, "f.toml:2: control.port: this is not a valid value"),
        ('[rendezvous]\nservers = ["a:' + "9" * 5000 + '"]', "f.toml:2: rendezvous.servers: "),
        ('[path]\naccept_from = ["has host bits set"]', "f.toml:2: path.accept_from: 'has host bits set' is not a net"),
    ],
    ids=["digits", "hexadecimal", "port", "words of another error"],
)
def test_what_python_refuses_for_its_own_reasons_is_an_error_of_its_line(text: str, message: str):
    assert refused(text).startswith(message)
