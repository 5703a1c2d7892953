"""The Dockerfile and compose.yaml against the code that they start.

There is no container engine where these tests run. What can be held without one is held here; the
composition's command lines are run in test_compose.
"""

import re
import shlex
import tomllib
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

from service import app, embedded
from service.cli import main
from service.health import HEALTH_SECONDS
from service.settings import Settings, load_settings, variable_of
from tests.packaging.container_files import (
    DOCKERFILE,
    PASSWORDS,
    ROOT,
    composition,
    image_environment,
    image_health_check,
    instructions,
    let_through,
    seconds,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = composition()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: found for name, found in SERVICES.items() if "build" in found}
STORES = {name: found for name, found in SERVICES.items() if "build" not in found}
LAST = max(i.stage for i in DOCKERFILE)

OF_THE_IMAGE = {
    "valkey": {"REDISCLI_AUTH"},  # read by nothing but its own health check
    "postgresql": {"POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_USER"},
}
"""What the stores' images may be told. Ours read settings."""


def settings_variables() -> set[str]:
    """Return the name of every setting, as the environment spells it."""
    return {variable_of(name) for name in Settings.model_fields}


def commands() -> list[tuple[str, ...]]:
    """Return every `onsale` command line of the two files, its comments included."""
    (entry,) = instructions("ENTRYPOINT")
    assert entry.words == ["onsale"]
    found = [tuple(i.words) for i in instructions("CMD")]
    found += [tuple(image_health_check()[1][1:])]
    found += [tuple(service["command"]) for service in OURS.values()]
    for file in ("Dockerfile", "compose.yaml"):
        text = (ROOT / file).read_text()
        found += [tuple(shlex.split(said)) for said in re.findall(r"`onsale ([a-z ]+)`", text)]
        runs = re.findall(r"docker run .* onsale ([a-z ]+)$", text, re.MULTILINE)
        found += [tuple(said.split()) for said in runs]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_exists(command: tuple[str, ...]) -> None:
    """Whatever the image or the composition starts has a help of its own."""
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0, result.output


def test_every_variable_is_a_setting() -> None:
    """A misspelt one would be passed over in silence."""
    known = settings_variables()
    python = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    assert image_environment().keys() - known <= python
    for service in OURS.values():
        assert set(service["environment"]) <= known
    for name, service in STORES.items():
        assert set(service["environment"]) == OF_THE_IMAGE[name]
    said = re.findall(r"-e (\w+)=", (ROOT / "Dockerfile").read_text())
    assert said
    assert set(said) <= known


def test_the_roles_settings_are_accepted_and_name_the_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image's variables under the composition's: the two stores, by their names there."""
    for name in settings_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in (image_environment() | OURS["api"]["environment"]).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.own_redis_url == f"redis://:{PASSWORDS['VALKEY_PASSWORD']}@valkey:6379/0"
    assert settings.postgresql_url is not None
    assert "@postgresql" in settings.postgresql_url
    assert PASSWORDS["POSTGRES_PASSWORD"] not in settings.postgresql_url  # its @ and / are quoted
    assert {"valkey", "postgresql"} == STORES.keys()
    assert all(service["environment"] == OURS["api"]["environment"] for service in OURS.values())
    made = STORES["postgresql"]["environment"]
    assert (settings.db_user, settings.db_name) == (made["POSTGRES_USER"], made["POSTGRES_DB"])


def test_the_images_python_is_one_that_the_package_takes() -> None:
    """The same in both stages, and as slim as it comes."""
    images = {i.words[0] for i in instructions("FROM")}
    assert len(images) == 1
    match = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", images.pop())
    assert match
    assert SpecifierSet(PROJECT["requires-python"]).contains(match[1])


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    """No .git, no .env and no data can get into a layer, by whatever mistake."""
    copied = {source for i in instructions("COPY", stage=0) for source in i.words[:-1]}
    directories = {"requirements/": "requirements/run.txt"}
    assert {directories.get(source, source) for source in copied} == let_through()
    assert all((ROOT / source).exists() for source in copied)
    assert not instructions("ADD")
    (taken,) = instructions("COPY", stage=LAST)
    assert taken.words[0] == "--from=build"


def test_dependencies_are_the_locked_ones() -> None:
    """By hash, as wheels, and leaving no cache; the project itself brings no others along."""
    steps = " && ".join(i.text for i in instructions("RUN", stage=0)).split(" && ")
    locked, own = (shlex.split(step) for step in steps if " install " in step)
    assert {"--require-hashes", "--only-binary=:all:", "--no-cache-dir"} <= set(locked)
    assert locked[-2:] == ["-r", "requirements/run.txt"]
    assert {"--no-deps", "--no-index", "--no-cache-dir"} <= set(own)
    lock = (ROOT / "requirements" / "run.txt").read_text()
    pinned = re.findall(r"^[a-z][^\n]*==[^\n]*", lock, re.MULTILINE)
    assert len(pinned) > 20
    assert all(pin.endswith("\\") for pin in pinned), "a pin without a hash"


def test_the_last_stage_installs_nothing() -> None:
    """No compiler and no package manager's work: it makes a user and takes what was built."""
    steps = " ".join(i.text for i in instructions("RUN", stage=LAST))
    assert not re.search(r"\b(?:apt-get|apt|pip|curl|wget|gcc|make)\b", steps)


def test_nobody_is_root() -> None:
    """PostgreSQL refuses root, and so should everybody."""
    (user,) = instructions("USER", stage=LAST)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.text), "by number: a cluster looks at it"
    uid = user.text.partition(":")[0]
    steps = " ".join(i.text for i in instructions("RUN", stage=LAST))
    assert f"useradd --uid {uid}" in steps
    for name, service in SERVICES.items():
        assert name in OURS or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert service.get("user", user.text) != "0:0"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_must(name: str) -> None:
    """No capability, no way to get one, no file outside of its volumes and /tmp."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True


def test_a_password_has_no_default() -> None:
    """Without the two the composition does not start, and says which is missing."""
    for missing in PASSWORDS:
        given = {name: value for name, value in PASSWORDS.items() if name != missing}
        with pytest.raises(LookupError, match=missing):
            composition(given)
    assert not re.search(r"PASSWORD:-", (ROOT / "compose.yaml").read_text())
    assert not re.search(r"PASSWORD|SECRET|TOKEN", (ROOT / "Dockerfile").read_text())


def test_only_the_api_is_published_and_only_on_this_machine() -> None:
    """And the image alone refuses to serve others: it is not told that they are welcome."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    port = OURS["api"]["environment"]["PORT"]
    assert published == {"api": [f"127.0.0.1:3000:{port}"]}
    assert [i.text for i in instructions("EXPOSE")] == [port]
    assert image_environment()["PORT"] == port
    assert COMPOSE["networks"]["stores"] == {"internal": True}
    assert all(service["networks"] == ["stores"] for service in STORES.values())
    assert "ONSALE_ALLOW_REMOTE" not in image_environment()


def test_valkey_is_told_what_the_embedded_one_is_told() -> None:
    """Every option on which a promise rests, with the same value."""
    own = embedded._VALKEY_OPTIONS
    told = shlex.split(STORES["valkey"]["command"])[1:]
    given = dict(zip(told[::2], told[1::2], strict=True))
    promised = (
        "appendonly",
        "appendfsync",
        "no-appendfsync-on-rewrite",
        "maxmemory-policy",
        "save",
    )
    for option in (f"--{name}" for name in promised):
        assert given[option] == own[own.index(option) + 1]


def test_a_role_has_the_time_that_it_needs_to_end() -> None:
    """More than it may take to drain, and stopped by the signal on which it does."""
    (signal,) = instructions("STOPSIGNAL")
    assert signal.text == "SIGTERM"
    assert "ONSALE_REQUEST_DEADLINE_MS" not in OURS["api"]["environment"]
    deadline_ms = Settings.model_fields["request_deadline_ms"].default
    drain_s = {
        "api": Settings.model_construct(request_deadline_ms=deadline_ms).in_flight_s
        + int(image_environment()["ONSALE_DRAIN_SECONDS"]),
        "writer": app._WRITER_DRAIN_S,
    }
    for name, needed_s in drain_s.items():
        assert seconds(OURS[name]["stop_grace_period"]) >= needed_s + 5
        assert OURS[name]["init"] is True


def test_roles_start_after_what_they_need() -> None:
    """Stores that answer, then the schema, then the writer, then the API."""
    healthy, done = "service_healthy", "service_completed_successfully"
    waits = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in SERVICES.items()
    }
    stores = {"postgresql": healthy, "valkey": healthy}
    assert waits == {
        "valkey": {},
        "postgresql": {},
        "migrate": {"postgresql": healthy},
        "writer": {"migrate": done, **stores},
        "api": {"migrate": done, "writer": "service_started", **stores},
    }
    assert all("test" in service["healthcheck"] for service in STORES.values())


def test_the_health_check_outlasts_the_question() -> None:
    """The engine's limit is behind the command's own, so that the reason gets into its log."""
    options, command = image_health_check()
    assert command[0] == "onsale"
    assert seconds(options["timeout"]) > HEALTH_SECONDS
    # Those of our roles that serve no HTTP must not count as ill.
    disabled = {name for name, s in OURS.items() if s.get("healthcheck") == {"disable": True}}
    assert disabled == OURS.keys() - {"api"}


def test_volumes_are_where_the_stores_keep_their_data() -> None:
    """The official images' own places, and the image's: with another, data would go with them."""
    assert STORES["valkey"]["volumes"] == ["valkey:/data"]
    assert STORES["postgresql"]["volumes"] == ["postgresql:/var/lib/postgresql"]
    (volume,) = instructions("VOLUME")
    assert volume.words == [image_environment()["ONSALE_DATA_DIR"]]
    assert {"valkey", "postgresql"} <= COMPOSE["volumes"].keys()


def test_writer_and_api_count_together() -> None:
    """In one volume, in memory, that the image's user may write to."""
    directory = OURS["api"]["environment"]["ONSALE_METRICS_DIR"]
    assert {name for name, s in OURS.items() if f"metrics:{directory}" in s.get("volumes", [])} == {
        "api",
        "writer",
    }
    uid = instructions("USER")[0].text.partition(":")[0]
    options = COMPOSE["volumes"]["metrics"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert f"uid={uid}" in options["o"].split(",")


def test_the_version_is_the_projects() -> None:
    """In the image's label and in the composition's tag."""
    labels = " ".join(i.text for i in instructions("LABEL"))
    assert f'image.version="{PROJECT["version"]}"' in labels
    assert {service["image"] for service in OURS.values()} == {f"onsale:{PROJECT['version']}"}
