"""What refuses, and what only warns, setting by setting and version by version."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from service.assurance import insist, warn_once
from service.errors import ConfigurationError
from service.settings import REDIS_SETTINGS
from service.soundness import (
    Finding,
    PostgresqlAsFound,
    RedisAsFound,
    judge_limits,
    judge_postgresql,
    judge_redis,
    judge_rewrite,
    judge_room,
)

GOOD = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
    "maxmemory": "1073741824",
}
REDIS = RedisAsFound("Redis", (8, 2, 2), "standalone", "master", GOOD)
VALKEY = RedisAsFound("Valkey", (9, 1, 2), "standalone", "master", GOOD)
POSTGRESQL = PostgresqlAsFound(
    18,
    "18.6",
    in_recovery=False,
    settings={
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
    },
)
ALL_STATED = "appendonly=yes appendfsync=always maxmemory-policy=noeviction"


def refused(findings: list[Finding]) -> list[str]:
    """Return the texts of what refuses."""
    return [finding.text for finding in findings if finding.refuses]


def warned(findings: list[Finding]) -> list[str]:
    """Return the texts of what warns."""
    return [finding.text for finding in findings if not finding.refuses]


def with_setting(name: str, value: str) -> RedisAsFound:
    """Return a good Redis but for one setting."""
    return replace(REDIS, configuration={**GOOD, name: value})


@pytest.mark.parametrize("found", [REDIS, VALKEY])
def test_a_good_redis_passes_in_silence(found: RedisAsFound) -> None:
    """Neither a refusal nor a warning, at any durability."""
    for durability in ("fsync", "recorded", "memory"):
        assert judge_redis(found, durability, {}) == []
    assert judge_limits(found) == []


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("appendfsync", "no", "always"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("maxmemory-policy", "volatile-ttl", "noeviction"),
    ],
)
def test_a_setting_that_endangers_fsync_refuses(name: str, value: str, needed: str) -> None:
    """It is named with what it is, what is needed, and why."""
    (text,) = refused(judge_redis(with_setting(name, value), "fsync", {}))
    assert text.startswith(f"Redis has {name} '{value}'; fsync needs '{needed}': ")


def test_memory_needs_no_file_but_no_eviction_either() -> None:
    """At `memory` nothing is promised of disks; bookings still must not be evicted."""
    for name, value in [("appendonly", "no"), ("appendfsync", "no")]:
        assert judge_redis(with_setting(name, value), "memory", {}) == []
    (text,) = refused(judge_redis(with_setting("maxmemory-policy", "allkeys-lru"), "memory", {}))
    assert "memory needs 'noeviction'" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
    ],
)
def test_where_answers_wait_for_the_record_a_file_is_only_wise(name: str, value: str) -> None:
    """It is named with what a restart costs; whether it was shown or stated."""
    for found in (with_setting(name, value), replace(REDIS, configuration={})):
        findings = judge_redis(found, "recorded", {**GOOD, name: value})
        assert refused(findings) == []
        (text,) = warned(findings)
        assert text.startswith(f"Redis has {name} '{value}': recorded does not need ")


def test_recorded_needs_no_eviction() -> None:
    """A booking that is evicted would be sold again, whatever is on record."""
    (text,) = refused(judge_redis(with_setting("maxmemory-policy", "allkeys-lru"), "recorded", {}))
    assert "recorded needs 'noeviction'" in text
    (text,) = refused(judge_redis(replace(REDIS, configuration={}), "recorded", {}))
    assert 'ONSALE_REDIS_CONFIGURATION="maxmemory-policy=noeviction"' in text


def test_all_that_is_wrong_is_said_at_once() -> None:
    """An operator changes everything in one go."""
    found = replace(
        REDIS, role="slave", configuration={**GOOD, "appendonly": "no", "appendfsync": "no"}
    )
    assert len(refused(judge_redis(found, "fsync", {}))) == 3


def test_a_hidden_configuration_is_never_taken_for_a_good_one() -> None:
    """The refusal has the setting that states it, ready to be copied."""
    hidden = replace(REDIS, configuration={})
    (text,) = refused(judge_redis(hidden, "fsync", {}))
    assert f'ONSALE_REDIS_CONFIGURATION="{ALL_STATED}"' in text
    (text,) = refused(judge_redis(hidden, "fsync", {"appendonly": "yes"}))
    assert f'ONSALE_REDIS_CONFIGURATION="{ALL_STATED}"' in text
    (text,) = refused(judge_redis(hidden, "memory", {}))
    assert 'ONSALE_REDIS_CONFIGURATION="maxmemory-policy=noeviction"' in text


def test_what_is_stated_counts_where_nothing_is_shown() -> None:
    """With all of it stated a Redis that hides its configuration passes."""
    stated = dict(word.split("=") for word in ALL_STATED.split())
    hidden = replace(REDIS, configuration={})
    assert judge_redis(hidden, "fsync", stated) == []
    (text,) = refused(judge_redis(hidden, "fsync", {**stated, "appendfsync": "everysec"}))
    assert "appendfsync 'everysec' (as stated)" in text
    (text,) = refused(judge_redis(hidden, "fsync", {**stated, "no-appendfsync-on-rewrite": "yes"}))
    assert "no-appendfsync-on-rewrite 'yes' (as stated)" in text


def test_what_is_shown_wins_over_what_is_stated() -> None:
    """A statement cannot talk a setting away that the server shows."""
    found = with_setting("appendfsync", "everysec")
    (text,) = refused(judge_redis(found, "fsync", {"appendfsync": "always"}))
    assert "appendfsync 'everysec'; fsync needs 'always'" in text


def test_everything_that_is_needed_can_be_stated() -> None:
    """A need that no setting could state would shut a managed Redis out for ever."""
    wrong = replace(REDIS, configuration=dict.fromkeys(REDIS_SETTINGS, "?"))
    assert len(refused(judge_redis(wrong, "fsync", {}))) == len(REDIS_SETTINGS)


@pytest.mark.parametrize(
    ("mode", "role", "why"),
    [
        ("standalone", "slave", "is a replica"),
        ("standalone", "unknown", "is a replica"),
        ("cluster", "master", "runs as cluster"),
        ("sentinel", "sentinel", "runs as sentinel"),
    ],
)
def test_only_a_single_primary_will_do(mode: str, role: str, why: str) -> None:
    """A replica answers reads from the past; several servers are not followed."""
    (text,) = refused(judge_redis(replace(REDIS, mode=mode, role=role), "fsync", {}))
    assert why in text


@pytest.mark.parametrize(
    ("product", "version", "passes"),
    [
        ("Redis", (6, 2, 20), False),
        ("Redis", (7, 0, 0), True),
        ("Redis", (10, 0, 0), True),
        ("Valkey", (7, 2, 0), True),
        ("Valkey", (7, 0, 15), False),
    ],
)
def test_old_servers_are_refused(product: str, version: tuple[int, ...], passes: bool) -> None:
    """Redis from 7.0 and Valkey from 7.2 on know `#!lua` and sharded AOF."""
    found = replace(REDIS, product=product, version=version)
    assert (refused(judge_redis(found, "fsync", {})) == []) == passes


@pytest.mark.parametrize(
    ("product", "open_", "closed"),
    [
        ("Redis", (7, 0, 15), (7, 2, 11)),
        ("Redis", (7, 2, 10), (7, 2, 11)),
        ("Redis", (7, 4, 5), (7, 4, 6)),
        ("Redis", (8, 0, 3), (8, 0, 4)),
        ("Redis", (8, 2, 1), (8, 2, 2)),
        ("Valkey", (7, 2, 10), (7, 2, 11)),
        ("Valkey", (8, 0, 5), (8, 0, 6)),
        ("Valkey", (8, 1, 3), (8, 1, 4)),
        ("Valkey", (9, 0, 2), (9, 0, 3)),
    ],
)
def test_known_holes_warn(product: str, open_: tuple[int, ...], closed: tuple[int, ...]) -> None:
    """A warning, since distributions mend without changing the number; the mended one is mute."""
    findings = judge_redis(replace(REDIS, product=product, version=open_), "fsync", {})
    assert refused(findings) == []
    (text,) = warned(findings)
    assert "CVE-202" in text
    assert f"closed in {'.'.join(map(str, closed))}, unless your distribution has mended" in text
    assert judge_redis(replace(REDIS, product=product, version=closed), "fsync", {}) == []


def test_memory_without_a_limit_is_unwise() -> None:
    """It warns, and says what happens when the machine is full."""
    findings = judge_limits(with_setting("maxmemory", "0"))
    assert refused(findings) == []
    assert "maxmemory '0'" in warned(findings)[0]
    assert judge_limits(replace(REDIS, configuration={})) == []


def test_a_limit_below_what_may_be_off_the_record_warns() -> None:
    """It names both numbers; no limit, a hidden one and one that is large enough are let be."""
    (text,) = warned(judge_room(with_setting("maxmemory", "99"), 100))
    assert "maxmemory '99'" in text
    assert "ONSALE_CANCEL_RESERVE_BYTES together (100)" in text
    for found in (with_setting("maxmemory", "100"), with_setting("maxmemory", "0")):
        assert judge_room(found, 100) == []
    assert judge_room(replace(REDIS, configuration={}), 100) == []


def test_a_good_postgresql_passes_in_silence() -> None:
    """Neither a refusal nor a warning, from 15 on."""
    assert judge_postgresql(POSTGRESQL) == []
    assert judge_postgresql(replace(POSTGRESQL, major=15, version="15.18")) == []


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit"])
def test_a_record_that_a_power_cut_would_shorten_refuses(name: str) -> None:
    """It is named with what it is and what is needed."""
    found = replace(POSTGRESQL, settings={**POSTGRESQL.settings, name: "off"})
    (text,) = refused(judge_postgresql(found))
    assert text.startswith(f"PostgreSQL has {name} 'off'; 'on' is needed: ")


@pytest.mark.parametrize("value", ["on", "local", "remote_write", "remote_apply"])
def test_every_commit_that_waits_for_its_own_disk_will_do(value: str) -> None:
    """What standbys have is beyond what is promised."""
    found = replace(POSTGRESQL, settings={**POSTGRESQL.settings, "synchronous_commit": value})
    assert judge_postgresql(found) == []


def test_a_standby_an_old_server_and_a_poor_encoding_refuse() -> None:
    """None of them could keep the record."""
    assert "standby" in refused(judge_postgresql(replace(POSTGRESQL, in_recovery=True)))[0]
    old = replace(POSTGRESQL, major=14, version="14.9")
    assert refused(judge_postgresql(old)) == [
        "PostgreSQL 14.9 is too old; PostgreSQL 15 or newer is needed"
    ]
    latin = {**POSTGRESQL.settings, "server_encoding": "LATIN1"}
    assert "'UTF8' is needed" in refused(judge_postgresql(replace(POSTGRESQL, settings=latin)))[0]


def test_half_pages_are_unwise() -> None:
    """Without full_page_writes it depends on the file system, which nobody can ask."""
    found = replace(POSTGRESQL, settings={**POSTGRESQL.settings, "full_page_writes": "off"})
    findings = judge_postgresql(found)
    assert refused(findings) == []
    assert "full_page_writes 'off'" in warned(findings)[0]


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """Forget what was warned of."""
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


@pytest.mark.usefixtures("fresh_process")
def test_a_warning_is_said_once_per_process(caplog: pytest.LogCaptureFixture) -> None:
    """The same text again is no news, in whichever handshake; another is."""
    one, other = Finding("one", refuses=False), Finding("other", refuses=False)
    for findings in ([one], [one, other], [other]):
        insist(findings)
    assert [re.search("'why': '(.*?)'", text)[1] for text in caplog.messages] == ["one", "other"]  # type: ignore[index]  # it is there


@pytest.mark.usefixtures("fresh_process")
def test_what_refuses_is_one_line() -> None:
    """All of it, without the warnings."""
    findings = [Finding("a"), Finding("unwise", refuses=False), Finding("b")]
    with pytest.raises(ConfigurationError, match=r"^a; b$"):
        insist(findings)


def test_a_file_that_could_not_be_written_refuses_where_it_is_needed() -> None:
    """At `recorded` and `memory` answers do not rest on it."""
    failed = replace(VALKEY, write_failed=True)
    (text,) = refused(judge_redis(failed, "fsync", {}))
    assert "aof_last_write_status err" in text
    for durability in ("recorded", "memory"):
        assert refused(judge_redis(failed, durability, {})) == []


def test_a_rewrite_that_failed_only_warns() -> None:
    """What was written before it stands, and what comes is written behind it."""
    findings = judge_redis(replace(VALKEY, rewrite_failed=True), "fsync", {})
    assert refused(findings) == []
    assert "aof_last_bgrewrite_status err" in warned(findings)[0]


def test_a_file_that_is_written_anew_is_waited_for_where_it_is_needed() -> None:
    """After it was switched off and on: a restart would not find what came in between."""
    rewriting = replace(VALKEY, rewriting=True)
    assert refused(judge_rewrite(rewriting, "fsync")) == ["Valkey is still writing its AOF anew"]
    assert judge_rewrite(rewriting, "recorded") == judge_rewrite(VALKEY, "fsync") == []
    assert judge_redis(rewriting, "fsync", {}) == []  # by itself it is an everyday thing


@pytest.mark.parametrize(
    ("value", "refuses"),
    [("off", True), ("0", True), ("false", True), ("no", True), ("on", False), ("local", False)],
)
def test_what_the_next_session_is_given_counts(value: str, refuses: bool) -> None:
    """ALTER ROLE and ALTER DATABASE reach a session when it begins, not before."""
    found = replace(POSTGRESQL, next_settings={"synchronous_commit": value})
    texts = refused(judge_postgresql(found))
    assert bool(texts) == refuses
    assert all("for the next session" in text for text in texts)
