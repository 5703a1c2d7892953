"""What can be set, and how what cannot work is refused."""

import os
import socket
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

from service import env_file
from service.errors import ConfigurationError
from service.loopback import reachable_by_others
from service.settings import Settings, load_settings

SECRET = "p@ss/w:rd?#%41 é"
BOUNDS = {
    "PORT": (0, 65535),
    "DB_PORT": (1, 65535),
    "WEB_CONCURRENCY": (1, 64),
    "ONSALE_PARTITIONS": (1, 100),
    "ONSALE_BATCH_ITEMS_MAX": (1, 256),
    "ONSALE_WAITING_ROOM_MAX": (1, None),
    "ONSALE_REQUEST_DEADLINE_MS": (500, 60_000),
    "ONSALE_STANDING_WAIT_MS_MAX": (5, 60_000),
    "ONSALE_DRAIN_SECONDS": (0, 600),
    "ONSALE_LINGER_MS_MAX": (0, 1_000),
    "ONSALE_RETAINED_BYTES": (1 << 20, None),
    "ONSALE_UNRECORDED_BYTES_MAX": (1 << 20, None),
    "ONSALE_CANCEL_RESERVE_BYTES": (1 << 20, None),
}
WORDS = {
    "HOST", "REDIS_URL", "DATABASE_URL", "DB_HOST", "DB_NAME", "DB_USER", "DB_PASSWORD",
    "ONSALE_ALLOW_REMOTE", "ONSALE_DATA_DIR", "ONSALE_DURABILITY", "ONSALE_REDIS_CONFIGURATION",
    "ONSALE_LOG_FORMAT", "ONSALE_LOG_LEVEL", "ONSALE_ACCESS_LOG", "ONSALE_METRICS_DIR",
    "ONSALE_ROLE", "ONSALE_ROOT_PATH",
}  # fmt: skip


def variable(name: str) -> str:
    """Return the variable behind a field."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"ONSALE_{name.upper()}"


def value_of(settings: Settings, name: str) -> object:
    """Return the setting behind a variable."""
    (field,) = [f for f in Settings.model_fields if variable(f) == name]
    return getattr(settings, field)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty directory, with none of the variables set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Return why these variables are refused."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    # The values are in the context.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_nothing_needs_to_be_set() -> None:
    """The defaults: the original's port on loopback, stores of its own, full durability."""
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 3000)
    assert settings.own_redis_url is None
    assert settings.postgresql_url is None
    assert settings.durability == "fsync"
    assert settings.partitions == settings.web_concurrency == 1
    assert settings.data_dir == Path("data")
    assert not settings.allow_remote


def test_every_setting_is_tested() -> None:
    """A new setting is listed here, with its bounds or among the words."""
    assert {variable(name) for name in Settings.model_fields} == BOUNDS.keys() | WORDS


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Original names as they were, the others under ONSALE_."""
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("ONSALE_PARTITIONS", "16")
    monkeypatch.setenv("ONSALE_DURABILITY", "memory")
    settings = load_settings()
    assert (settings.port, settings.partitions, settings.durability) == (8080, 16, "memory")


def test_dot_env_is_read(directory: Path) -> None:
    """`.env` of the current directory counts, and what is not Onsale's in it is passed over."""
    (directory / ".env").write_text(
        "# the original's\nPORT=8080\nDB_HOST=db\nDB_NAME=tickets\nDB_USER='me'\nDB_PASSWORD=a b\n"
        "NODE_ENV=production\nONSALE_PARTITIONS=4\n"
    )
    settings = load_settings()
    assert (settings.port, settings.partitions) == (8080, 4)
    assert settings.postgresql_url == "postgresql://me:a%20b@db/tickets"


def test_the_environment_comes_before_dot_env(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set for this process wins over the file."""
    (directory / ".env").write_text("PORT=8080\n")
    monkeypatch.setenv("PORT", "8081")
    assert load_settings().port == 8081


def test_a_bad_value_in_dot_env_is_refused_by_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's values are held to the same bounds."""
    (directory / ".env").write_text("ONSALE_PARTITIONS=0\n")
    assert refusal(monkeypatch).startswith("ONSALE_PARTITIONS: ")


@pytest.mark.parametrize("name", sorted(BOUNDS.keys() | WORDS))
def test_an_empty_variable_is_one_that_is_not_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PORT=` in a file of settings means the default."""
    default = value_of(load_settings(), name)
    monkeypatch.setenv(name, "")
    assert value_of(load_settings(), name) == default


@pytest.mark.parametrize("name", BOUNDS)
def test_both_bounds_are_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the most are accepted."""
    for bound in BOUNDS[name]:
        if bound is not None:
            monkeypatch.setenv(name, str(bound))
            assert value_of(load_settings(), name) == bound


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_beyond_the_bounds_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One less, one more, and what is no number: each names its variable alone."""
    least, most = BOUNDS[name]
    values = ["x", "1.5", "1e3", "0x10", "NaN", "9" * 5000, str((least or 0) - 1)]
    if most is not None:
        values.append(str(most + 1))
    for value in values:
        text = refusal(monkeypatch, **{name: value})
        assert text.startswith(f"{name}: ")
        assert len(text) < 200


def test_each_partition_has_room_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB for each of them, not for all together."""
    text = refusal(
        monkeypatch, ONSALE_PARTITIONS="4", ONSALE_UNRECORDED_BYTES_MAX=str((4 << 20) - 1)
    )
    assert "ONSALE_UNRECORDED_BYTES_MAX must be 4194304 at least" in text
    monkeypatch.setenv("ONSALE_UNRECORDED_BYTES_MAX", str(4 << 20))
    assert load_settings().unrecorded_bytes_max == 4 << 20


@pytest.mark.parametrize("value", ["replicated", "Recorded", "FSYNC", "none"])
def test_only_levels_that_can_be_reached_are_accepted(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A durability that this version does not offer is refused, with those that it does."""
    text = refusal(monkeypatch, ONSALE_DURABILITY=value)
    assert text.startswith("ONSALE_DURABILITY: ")
    assert "fsync" in text


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has two mistakes is told of both."""
    text = refusal(monkeypatch, PORT="x", ONSALE_PARTITIONS="0", ONSALE_ALLOW_REMOTE="perhaps")
    assert {part.partition(":")[0] for part in text.split("; ")} == {
        "PORT",
        "ONSALE_PARTITIONS",
        "ONSALE_ALLOW_REMOTE",
    }


@pytest.mark.parametrize(
    ("host", "read"),
    [
        *((host, host) for host in ("127.0.0.1", "127.9.9.9", "127.1", "::1", "::ffff:127.0.0.1")),
        *((host, "localhost") for host in ("localhost", "LOCALHOST", "localhost.", "LocalHost.")),
        ("[::1]", "::1"),
        (" 127.0.0.1 ", "127.0.0.1"),
        ("localhost ", "localhost"),
    ],
)
def test_this_machine_alone_may_always_be_served(
    host: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loopback needs no permission, however it is written."""
    monkeypatch.setenv("HOST", host)
    assert load_settings().host == read


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("0", "HOST=0 is 0.0.0.0, which can be reached from other machines"),
        ("[::]", "HOST=:: can be reached from other machines"),
        ("192.168.1", "HOST=192.168.1 is 192.168.0.1, which can be reached from other machines"),
        ("x" * 64, "cannot be looked up (it is no name of a host)"),
        (" ", "HOST: it is empty"),
    ],
)
def test_a_host_is_refused_for_its_own_reason(
    host: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address behind a short form, and a name that is none: the text says what is true."""
    assert says in refusal(monkeypatch, HOST=host)


def test_a_name_counts_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that others reach is enough to be refused; all on loopback are not."""
    found = ["127.0.1.1", "10.1.2.3"]

    def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert reachable_by_others("here") == (
        "HOST=here is 10.1.2.3, which can be reached from other machines"
    )
    del found[1]
    assert reachable_by_others("here") == ""


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "example.com", "localhost.evil.example"]
)
def test_others_are_served_only_when_asked_for(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without authentication, an address that others reach needs ONSALE_ALLOW_REMOTE=1."""
    if not host[0].isdigit() and ":" not in host:
        # Not looked up in a test: where there is no name server that takes seconds.
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    text = refusal(monkeypatch, HOST=host)
    assert f"HOST={host}" in text
    assert "ONSALE_ALLOW_REMOTE=1" in text
    assert "ONSALE_ALLOW_REMOTE=1" in refusal(monkeypatch, ONSALE_ALLOW_REMOTE="0")
    monkeypatch.setenv("ONSALE_ALLOW_REMOTE", "1")
    assert load_settings().host == host


def test_database_url_comes_before_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is used as it stands, whatever DB_HOST and the others say."""
    monkeypatch.setenv("DB_HOST", "other")
    monkeypatch.setenv("DB_PASSWORD", "other")
    monkeypatch.setenv("DATABASE_URL", "postgres://a:b@c:5433/d?sslmode=prefer")
    assert load_settings().postgresql_url == "postgres://a:b@c:5433/d?sslmode=prefer"


def test_the_parts_make_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """DB_HOST alone is enough: name and user are `onsale`, and there is no password."""
    monkeypatch.setenv("DB_HOST", "db.example:5433")
    assert load_settings().postgresql_url == "postgresql://onsale@db.example:5433/onsale"


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("db", "5433", "postgresql://onsale@db:5433/onsale"),
        ("::1", "", "postgresql://onsale@[::1]/onsale"),
        ("::1", "5433", "postgresql://onsale@[::1]:5433/onsale"),
        ("/run/pg sql", "", "postgresql://onsale@/onsale?host=/run/pg%20sql"),
        ("/run/pg", "5433", "postgresql://onsale@/onsale?host=/run/pg&port=5433"),
    ],
)
def test_the_host_may_be_a_name_an_address_or_a_directory(
    host: str, port: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB_HOST with DB_PORT reaches TCP by name and by address, and a socket by its directory."""
    monkeypatch.setenv("DB_HOST", host)
    monkeypatch.setenv("DB_PORT", port)
    assert load_settings().postgresql_url == url
    assert load_settings().postgresql_setting == "DB_HOST"


@pytest.mark.parametrize("host", ["db:5433", "h,i", "a b", "u@h", "h/d", "h?x=1", ":5433"])
def test_a_host_that_is_none_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ports, several hosts, and what would change the meaning of the URL: one line each."""
    text = refusal(monkeypatch, DB_HOST=host, DB_PORT="5432", DB_PASSWORD=SECRET)
    assert "DB_HOST" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL"])
@pytest.mark.parametrize(
    "url",
    [
        f"https://u:{SECRET}@h/d",
        f"redis://u:{SECRET}@h/0",
        f"postgresql://u:{SECRET}@h/d",
        SECRET,
        f"://{SECRET}@",
        "redis://u:pass/word-of-mine@h/0",
        "postgresql://u:pass/word-of-mine@h/d",
        "postgresql://u:12#word-of-mine@h/d",
        "postgresql://u:12?word-of-mine@h/d",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_repeated(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong scheme, or a password that is not quoted: one line that begins with the setting."""
    text = refusal(monkeypatch, **{name: url})
    assert text.startswith(f"{name}: it is not a URL of the form ")
    assert not [word for word in (SECRET, "word-of-mine", "w:rd") if word in text]
    assert len(text) < 250


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ONSALE_DURABILTY", "ONSALE_DURABILITY"),
        ("onsale_durabilty", "ONSALE_DURABILITY"),
        ("ONSALE_PARTITION", "ONSALE_PARTITIONS"),
        ("ONSALE_DATADIR", "ONSALE_DATA_DIR"),
        ("ONSALE_PORT", "PORT"),
        ("ONSALE_REDIS_URL", "REDIS_URL"),
        ("ONSALE_WEB_CONCURRENCY", "WEB_CONCURRENCY"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["environment", ".env"])
def test_a_name_that_is_no_setting_is_refused(
    name: str, nearest: str, in_file: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the nearest name, wherever it stands; its value, perhaps a secret, is not repeated."""
    if in_file:
        (directory / ".env").write_text(f"{name}={SECRET}\n")
        text = refusal(monkeypatch)
    else:
        text = refusal(monkeypatch, **{name: SECRET})
    assert text == (
        f"{name}: there is no such setting; the nearest name is {nearest};"
        " `onsale settings` lists all"
    )


def test_a_name_that_is_near_to_none_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once, without a guess."""
    text = refusal(monkeypatch, ONSALE_XYZZY="1", ONSALE_="1")
    assert "ONSALE_XYZZY: there is no such setting; `onsale" in text
    assert "ONSALE_: there is no such setting" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ONSALE_SERVICE_HOST", "10.0.0.1"),
        ("ONSALE_SERVICE_PORT", "3000"),
        ("ONSALE_SERVICE_PORT_HTTP", "3000"),
        ("ONSALE_PORT", "tcp://10.0.0.1:3000"),
        ("ONSALE_PORT_3000_TCP", "tcp://10.0.0.1:3000"),
        ("ONSALE_PORT_3000_TCP_ADDR", "10.0.0.1"),
        ("ONSALE_API_PORT_3000_TCP_PROTO", "tcp"),
        ("ONSALE_TEST_SEED", "1"),
        ("ONSALE_SUPERVISED_IN", "/data"),
        ("DURABILITY", "none"),
    ],
)
def test_what_others_put_there_is_passed_over(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service of Kubernetes called onsale, the tests, a supervisor, and other programs."""
    monkeypatch.setenv(name, value)
    assert load_settings().port == 3000


def test_a_setting_in_two_spellings_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one is in force would be left to their order; equal ones are no matter."""
    monkeypatch.setenv("onsale_partitions", "2")
    text = refusal(monkeypatch, ONSALE_PARTITIONS="4")
    said = "ONSALE_PARTITIONS: it is set as ONSALE_PARTITIONS and as onsale_partitions; keep one"
    assert text.startswith(said)
    monkeypatch.setenv("onsale_partitions", "4")
    assert load_settings().partitions == 4
    (directory / ".env").write_text("Port=1\nPORT=2\n")
    assert refusal(monkeypatch).startswith("PORT: it is set as PORT and as Port")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PORT=1\nX=\xff\n", ".env is not UTF-8 in line 2"),
        ("PORT=1\n".encode("utf-16"), ".env is UTF-16"),
        (b"PORT=1\nX=\0\n", ".env has a NUL byte in line 2"),
        (b"PORT=1\n='x\n", ".env has no NAME=value in line 2"),
        (b"#" * (env_file.BYTES_MAX + 1), ".env is larger than 1048576 bytes"),
    ],
    ids=["bytes", "UTF-16", "NUL", "no name", "huge"],
)
def test_a_dot_env_that_cannot_be_read_whole_is_refused(
    content: bytes, says: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text names the line, and nothing of it is in force."""
    (directory / ".env").write_bytes(content)
    assert refusal(monkeypatch).startswith(says)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfPORT=8080\n", b"PORT=8080\r\nX=\r\n", b"export PORT=8080", b"PORT='8080' # x"],
    ids=["byte order mark", "CRLF", "export", "comment"],
)
def test_a_dot_env_may_come_from_any_editor(content: bytes, directory: Path) -> None:
    """A byte order mark, ends of lines of another system, and none at the end."""
    (directory / ".env").write_bytes(content)
    assert load_settings().port == 8080


def test_a_dot_env_that_is_no_file_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO is not waited for, and a directory is not taken for an empty file."""
    path = directory / ".env"
    os.mkfifo(path)
    assert refusal(monkeypatch) == ".env is a FIFO, no file"
    path.unlink()
    path.mkdir()
    assert refusal(monkeypatch) == ".env is a directory, no file"
    path.rmdir()
    path.symlink_to(path)
    assert refusal(monkeypatch).startswith(".env cannot be read: ")


def test_usual_ways_to_have_no_dot_env(directory: Path) -> None:
    """The null device in its place, as in containers, and a virtual environment of that name."""
    path = directory / ".env"
    path.symlink_to(os.devnull)
    assert load_settings().port == 3000
    path.unlink()
    path.mkdir()
    (path / "pyvenv.cfg").touch()
    assert load_settings().port == 3000


def test_what_a_redis_hides_can_be_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of name=value, with the names that a promise depends on and no others."""
    stated = "appendonly=yes  appendfsync=always maxmemory-policy=noeviction"
    monkeypatch.setenv("ONSALE_REDIS_CONFIGURATION", stated)
    assert load_settings().stated_redis_configuration == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }
    for wrong in ("appendonly", "appendonly=", "appendfsnyc=always", "save=60"):
        text = refusal(monkeypatch, ONSALE_REDIS_CONFIGURATION=wrong)
        assert text.startswith("ONSALE_REDIS_CONFIGURATION: expected name=value with names out of")


def test_parts_without_a_host_name_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DB_HOST the embedded PostgreSQL serves, as with nothing set."""
    monkeypatch.setenv("DB_NAME", "tickets")
    monkeypatch.setenv("DB_PASSWORD", "x")
    assert load_settings().postgresql_url is None


def test_user_and_password_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs that mean something in a URL are quoted, and come out as they went in."""
    monkeypatch.setenv("DB_HOST", "db")
    monkeypatch.setenv("DB_USER", "me@home:x/y")
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    url = urlsplit(load_settings().postgresql_url or "")
    assert unquote(url.username or "") == "me@home:x/y"
    assert unquote(url.password or "") == SECRET
    assert (url.hostname, url.path) == ("db", "/onsale")


def test_a_redis_of_ones_own_is_used_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_URL is not rewritten."""
    monkeypatch.setenv("REDIS_URL", "rediss://:a%2Fb@r:6380/0")
    assert load_settings().own_redis_url == "rediss://:a%2Fb@r:6380/0"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings printed nor a refusal repeats a password, even when it is the mistake."""
    quoted = quote(SECRET, safe="")
    secrets = {
        "REDIS_URL": f"redis://:{quoted}@r",
        "DATABASE_URL": f"postgres://u:{quoted}@h/d",
        "DB_PASSWORD": SECRET,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    shown = repr(load_settings()) + str(load_settings().model_dump())
    assert SECRET not in shown
    assert quoted not in shown
    text = refusal(monkeypatch, PORT=SECRET, ONSALE_DURABILITY=SECRET, ONSALE_PARTITIONS=SECRET)
    assert SECRET not in text
