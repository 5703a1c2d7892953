"""The rights that Onsale's Redis user needs, and which of them a connection lacks.

`ACL DRYRUN` is for administrators, so each command is tried, with the connection's own rights, on a
scratch key of the partition. Redis looks at rights before anything else of a command, and looks at
those of a script's user in the same way: a command that may be called here may be called inside a
script. What else a command answers (of another type, say) is of no interest. A test compares the
commands with those that stand in the scripts and in this package.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from redis.exceptions import ExecAbortError, NoPermissionError

from service import keys

Command = tuple[str | int, ...]

_SCRIPT = "return 1"
_SHA = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
"""The digest of that script."""

KEY_PATTERN = "~{p*}:*"
CHANNEL_PATTERN = "&{p*}:*"
UNTRIED = ("select", "ssubscribe")
"""Rights that are not tried here: no connection to another database is made without `select`, and a
subscription has a connection of its own."""

OPTIONAL = ("config|get",)
"""Redis may hide its configuration: see ONSALE_REDIS_CONFIGURATION."""


def tried(partition: int) -> Mapping[str, Command]:
    """Return a harmless call of each command, by its name in an ACL, to be made in this order.

    The first makes the scratch key a hash, the last removes it.
    """
    key, channel = keys.scratch_key(partition), keys.watermark_channel(partition)
    return {
        "hset": ("HSET", key, "f", "v"),
        "hget": ("HGET", key, "f"),
        "hmget": ("HMGET", key, "f"),
        "hgetall": ("HGETALL", key),
        "hexists": ("HEXISTS", key, "f"),
        "hdel": ("HDEL", key, "g"),
        "hscan": ("HSCAN", key, 0, "COUNT", 1),
        "rpush": ("RPUSH", key, "e"),
        "lindex": ("LINDEX", key, 0),
        "llen": ("LLEN", key),
        "lrange": ("LRANGE", key, 0, 0),
        "ltrim": ("LTRIM", key, 0, 0),
        "zadd": ("ZADD", key, 1, "m"),
        "zcard": ("ZCARD", key),
        "zcount": ("ZCOUNT", key, 0, 1),
        "zrangebyscore": ("ZRANGEBYSCORE", key, 0, 1, "LIMIT", 0, 1),
        "zrem": ("ZREM", key, "m"),
        "zscan": ("ZSCAN", key, 0, "COUNT", 1),
        "sadd": ("SADD", key, "m"),
        "sismember": ("SISMEMBER", key, "m"),
        "sscan": ("SSCAN", key, 0, "COUNT", 1),
        "xadd": ("XADD", key, "1-1", "f", "v"),
        "xrange": ("XRANGE", key, "-", "+", "COUNT", 1),
        "xrevrange": ("XREVRANGE", key, "+", "-", "COUNT", 1),
        "xread": ("XREAD", "COUNT", 1, "STREAMS", key, "0"),
        "xtrim": ("XTRIM", key, "MINID", "1-1"),
        "xinfo|stream": ("XINFO", "STREAM", key),
        "exists": ("EXISTS", key),
        "memory|usage": ("MEMORY", "USAGE", key),
        "scan": ("SCAN", 0, "COUNT", 1),
        "time": ("TIME",),
        "info": ("INFO", "server"),
        "spublish": ("SPUBLISH", channel, ""),
        "ping": ("PING",),
        "multi": ("MULTI",),
        "exec": ("EXEC",),
        "eval": ("EVAL", _SCRIPT, 1, key),
        "evalsha": ("EVALSHA", _SHA, 1, key),
        "script|load": ("SCRIPT", "LOAD", _SCRIPT),
        "script|exists": ("SCRIPT", "EXISTS", _SHA),
        "del": ("DEL", key),
        "unlink": ("UNLINK", key),
    }


def acl_line() -> str:
    """Return the command that makes a user with exactly these rights."""
    words = [f"+{name}" for name in sorted({*tried(0), *UNTRIED, *OPTIONAL})]
    return (
        f"ACL SETUSER onsale reset on >PASSWORD {KEY_PATTERN} {CHANNEL_PATTERN} -@all"
        f" {' '.join(words)}"
    )


def complaint(missing: Iterable[str]) -> str:
    """Return what an operator is told of rights that are missing."""
    return (
        f"the Redis user lacks rights: {' '.join(missing)}; an administrator gives them with ACL"
        " SETUSER (docs/runbook.md, The Redis user)"
    )


async def missing_rights(client: Any, partition: int) -> list[str]:
    """Return the rights that a redis.asyncio client lacks, as words of `ACL SETUSER`, in order.

    Raises redis.exceptions.RedisError and OSError.
    """
    calls = tried(partition)
    replies = dict(zip(calls, await _replies(client, calls.values()), strict=True))
    replies["ssubscribe"] = await _subscribed(client, keys.watermark_channel(partition))
    of_keys = [
        call
        for key in keys.one_of_each(partition)
        for call in (("HDEL", key, "g"), ("HEXISTS", key, "f"))
    ]
    missing = {_lacks(name, reply) for name, reply in replies.items()}
    if missing.isdisjoint({"+hdel", "+hexists"}):
        missing |= {_lacks("", reply) for reply in await _replies(client, of_keys)}
    return sorted(missing - {""})


def _lacks(name: str, reply: object) -> str:
    """Return the right for want of which a command was denied, empty where it was not."""
    text = str(reply)
    # EXEC says why it was denied behind a word of its own.
    if not isinstance(reply, NoPermissionError | ExecAbortError) or "permission" not in text:
        return ""
    if "to run the" in text:
        return f"+{name}"
    return CHANNEL_PATTERN if "channel" in text else KEY_PATTERN


async def _replies(client: Any, commands: Iterable[Command]) -> list[object]:
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies: list[object] = await pipe.execute(raise_on_error=False)
    return replies


async def _subscribed(client: Any, channel: str) -> object:
    subscription = client.pubsub()
    try:
        await subscription.ssubscribe(channel)
        return await subscription.get_message(timeout=None)
    except NoPermissionError as error:
        return error
    finally:
        await subscription.aclose()
