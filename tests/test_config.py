"""Settings: four sources, one Config, and error messages that a person can act on."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from registry.config import SETTINGS, Config, ConfigError, load, mask_url
from tests import settings_files

HOME = {"HOME": "/home/ada"}


def read(options: dict[str, object] | None = None, **environ: str) -> Config:
    return load(options or {}, {**HOME, **environ}, None)


def test_defaults() -> None:
    folder = "/home/ada/.local/share/registry"
    assert read() == Config(data_dir=folder, tokens_file=f"{folder}/tokens.json")


def test_each_layer_is_stronger_than_the_one_below(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=1\nPOOL_MAX=2\nKEY_PREFIX=from-file:\n")
    config = load({"port": "3"}, {**HOME, "PORT": "2", "POOL_MAX": "7"}, str(env_file))
    assert (config.port, config.pool_max, config.key_prefix) == (3, 7, "from-file:")


def test_an_option_that_was_not_given_leaves_the_environment_alone() -> None:
    assert read({"port": None, "listen": [], "help": 1}, PORT="81", LISTEN="tcp:1").port == 81
    assert read({"listen": []}, LISTEN="tcp:1").listen == ("tcp:1",)


def test_options_may_be_spelled_with_dashes() -> None:
    assert read({"queue-timeout": "2.5"}).queue_timeout == 2.5


def test_an_empty_value_means_the_default_and_hides_the_layer_below(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("REDIS_URL=redis://elsewhere\nPORT=99\n")
    config = load({}, {**HOME, "REDIS_URL": "", "PORT": ""}, str(env_file))
    assert (config.redis_url, config.port) == (None, 3000)


def test_the_env_file_need_not_exist_and_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY_PREFIX", raising=False)
    assert load({}, HOME, str(tmp_path / "none")).port == 3000
    (tmp_path / ".env").write_text("KEY_PREFIX='x:'\n")
    assert load({}, HOME, str(tmp_path / ".env")).key_prefix == "x:"
    assert "KEY_PREFIX" not in os.environ


def test_a_password_with_a_dollar_is_kept_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_URL=redis://:a${HOME}b@h\n")
    assert load({}, HOME, str(tmp_path / ".env")).redis_url == "redis://:a${HOME}b@h"


def test_an_unreadable_env_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff\n")
    with pytest.raises(ConfigError, match=r"^The file .* cannot be read: it is not UTF-8 text\.$"):
        load({}, HOME, str(tmp_path / ".env"))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/registry:/var/lib/other", "XDG_DATA_HOME": "/x"}, "/var/lib/registry"),
        ({"XDG_DATA_HOME": "/data"}, "/data/registry"),
        ({"XDG_DATA_HOME": "relative"}, "/home/ada/.local/share/registry"),
        ({"STATE_DIRECTORY": "/s", "DATA_DIR": "/mine"}, "/mine"),
    ],
)
def test_data_dir(environ: dict[str, str], expected: str) -> None:
    assert read(None, **environ).data_dir == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PORT", "0", 0),
        ("PORT", " 65535 ", 65535),
        ("LISTEN", "tcp:1 unix:/run/x", ("tcp:1", "unix:/run/x")),
        ("BROKER", "redis", "redis"),
        ("REDIS_URL", "rediss://u:p@h:6380/2?verify=0", "rediss://u:p@h:6380/2?verify=0"),
        ("REDIS_URL", "redis://[::1]:6379", "redis://[::1]:6379"),
        ("REDIS_URL", "unix:///run/r.sock?db=1&password=x", "unix:///run/r.sock?db=1&password=x"),
        ("REDIS_FSYNC", "everysec", "everysec"),
        ("QUEUE_TIMEOUT", "0.5", 0.5),
        ("MAX_WAIT", "120", 120.0),
        ("MAX_TASK_BYTES", "1", 1),
        ("ACCESS_LOG", "Off", False),
        ("ACCESS_LOG", "1", True),
        ("LOG_LEVEL", "WARNING", "warn"),
        ("ALLOWED_HOSTS", "Tasks.example.org., 10.0.0.1,[::2]", ("tasks.example.org", "10.0.0.1", "::2")),
        ("ALLOWED_HOSTS", "*", ("*",)),
        ("REDIS_SERVER", "/opt/redis-server", "/opt/redis-server"),
        ("PROCESSES", "4", 4),
    ],
)
def test_good_values(name: str, text: str, expected: object) -> None:
    assert getattr(read(None, **{name: text}), name.lower()) == expected


def test_processes_auto_is_at_least_one() -> None:
    assert read(PROCESSES="auto").processes >= 1


def test_max_wait_is_never_less_than_queue_timeout() -> None:
    assert read(QUEUE_TIMEOUT="90").max_wait == 90
    assert read(MAX_WAIT="5").max_wait == 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HOST", "http://x"),
        ("PORT", "80a"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("PORT", "9" * 5000),
        ("BROKER", "amqp"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "redis:localhost"),
        ("REDIS_URL", "redis://h:99999"),
        ("REDIS_URL", "unix://"),
        ("REDIS_FSYNC", "no"),
        ("QUEUE_TIMEOUT", "nan"),
        ("QUEUE_TIMEOUT", "-1"),
        ("QUEUE_TIMEOUT", "ten"),
        ("MAX_WAIT", "inf"),
        ("POOL_MAX", "0"),
        ("MAX_TASK_BYTES", "1e6"),
        ("KEY_PREFIX", "a{b}"),
        ("KEY_PREFIX", "a\nb"),
        ("ACCESS_LOG", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("ALLOWED_HOSTS", "http://a"),
        ("ALLOWED_HOSTS", "a:80"),
        ("ALLOWED_HOSTS", "*.example.org"),
        ("PROCESSES", "0"),
    ],
)
def test_bad_values_are_one_sentence_that_names_setting_and_source(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(None, **{name: text})
    sentence = str(caught.value)
    assert sentence.startswith(f'{name} is "')
    assert " (from the environment): it must be " in sentence
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 500


def test_the_exact_sentence(tmp_path: Path) -> None:
    must = "it must be a whole number from 0 to 65535."
    with pytest.raises(ConfigError) as caught:
        read(PORT="80a")
    assert str(caught.value) == f'PORT is "80a" (from the environment): {must}'
    with pytest.raises(ConfigError) as caught:
        read({"port": "x"})
    assert str(caught.value) == f'PORT is "x" (from the command line): {must}'
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=y\n")
    with pytest.raises(ConfigError) as caught:
        load({}, HOME, str(env_file))
    assert str(caught.value) == f'PORT is "y" (from {env_file}): {must}'


def test_a_wrong_redis_url_is_reported_without_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        read(REDIS_URL="redis://ada:hunter2@h:99999")
    assert "hunter2" not in str(caught.value) and "redis://ada:***@h" in str(caught.value)


def test_redis_url_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("redis://:hunter2@h/3\n")
    assert read(REDIS_URL_FILE=str(secret)).redis_url == "redis://:hunter2@h/3"
    assert read({"redis_url": "redis://other"}, REDIS_URL_FILE=str(secret)).redis_url == "redis://other"
    with pytest.raises(ConfigError, match="both given"):
        read(REDIS_URL_FILE=str(secret), REDIS_URL="redis://x")
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="the file is empty"):
        read(REDIS_URL_FILE=str(secret))
    with pytest.raises(ConfigError, match="No such file"):
        read(REDIS_URL_FILE=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:pw@h", "redis://:***@h"),
        ("rediss://ada:pw@h:1/0?cafile=x", "rediss://ada:***@h:1/0?cafile=x"),
        ("redis://pw@h", "redis://***@h"),
        ("redis://:p@w/x:y@h", "redis://:***@h"),
        ("unix:///run/x?db=1&password=pw&x=1", "unix:///run/x?db=1&password=***&x=1"),
        ("not a url", "not a url"),
    ],
)
def test_mask_url(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_no_password_in_repr_and_describe() -> None:
    config = read(REDIS_URL="redis://ada:hunter%402@h")
    for text in (repr(config), str(config), str(config.describe())):
        assert "hunter" not in text
        assert "redis://ada:***@h" in text
    assert config.secrets() == ("hunter%402", "hunter@2")


def test_describe_names_every_field() -> None:
    shown = read(ALLOWED_HOSTS="a,b", LISTEN="tcp:1 tcp:2").describe()
    assert set(shown) == {field.name.upper() for field in dataclasses.fields(Config)}
    assert shown["REDIS_URL"] == "(embedded)"
    assert (shown["ALLOWED_HOSTS"], shown["LISTEN"]) == ("a,b", "tcp:1 tcp:2")
    assert (shown["QUEUE_TIMEOUT"], shown["ACCESS_LOG"], shown["PORT"]) == ("10", "yes", "3000")


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]


def test_env_sample_sets_what_is_the_default(tmp_path: Path) -> None:
    lines = re.findall(r"^#([A-Z_]+)=(.*)$", settings_files.SAMPLE.read_text(), re.MULTILINE)
    assert [name for name, _ in lines] == [one.name for one in SETTINGS]
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in lines))
    assert load({}, HOME, str(env_file)) == read()
    # and what a reader sees as the default is what the daemon says at its start
    shown = read().describe()
    for name, value in lines:
        if name not in ("REDIS_URL", "DATA_DIR", "TOKENS_FILE"):
            assert shown[name] == value, name


def test_the_files_that_list_the_settings_are_those_of_the_table() -> None:
    again = "write them anew: python -m tests.settings_files"
    assert settings_files.SAMPLE.read_text() == settings_files.sample(), again
    assert settings_files.PAGE.read_text() == settings_files.page(), again


def test_every_setting_has_an_option() -> None:
    from registry.tap import Options  # the composition root: it imports the reactor

    options = {str(row[0]): str(row[3]) for row in Options.optParameters}
    assert set(options) | {"listen"} == {one.option for one in SETTINGS}
    assert options["queue-timeout"].endswith("does not say. [10]")


def test_the_file_of_the_url_may_come_from_the_command_line(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("redis://:hunter2@h/3\n", "utf-8")
    assert read({"redis-url-file": str(secret)}, REDIS_URL="redis://x").redis_url == "redis://:hunter2@h/3"
