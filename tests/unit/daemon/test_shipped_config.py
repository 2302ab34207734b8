"""etc/redirectd.toml shows every setting there is, with its default."""

import re
import tomllib
from pathlib import Path

import msgspec

from redirectctl.config import Config, Duration, parse, parse_duration

FILE = Path(__file__).parents[3] / "etc" / "redirectd.toml"
TEXT = FILE.read_text()
UNCOMMENTED = re.sub(r"^#(\w+ = )", r"\1", TEXT, flags=re.MULTILINE)


def test_as_it_is_shipped_it_changes_nothing() -> None:
    assert parse(TEXT) == Config()


def test_what_it_shows_as_defaults_are_the_defaults() -> None:
    assert parse(UNCOMMENTED) == Config()


def test_every_setting_is_in_it() -> None:
    shown = {section: list(keys) for section, keys in tomllib.loads(UNCOMMENTED).items()}
    assert shown == {
        section.name: [field.name for field in msgspec.structs.fields(section.type)]
        for section in msgspec.structs.fields(Config)
    }


def test_times_are_shown_as_people_write_them() -> None:
    document = tomllib.loads(UNCOMMENTED)
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            if field.type is Duration:
                assert parse_duration(document[section.name][field.name]) == field.default
