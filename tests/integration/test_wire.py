"""The wire: whose reply is whose, and what is known of a command whose reply did not come.

Valkey where it can show it; a server of the test's own where the moment must be chosen exactly.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service import wire as wire_module
from service.wire import MissingScript, NotExecuted, Unknown, Wire

LONG_S = 30.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def wire(empty_valkey: str) -> AsyncIterator[Wire]:
    """A wire to Valkey that waits long enough."""
    wire = Wire(empty_valkey, attempt_timeout_s=LONG_S)
    yield wire
    await wire.close()


@asynccontextmanager
async def served(
    path: Path, serve: Serve, *, greets: bool = True, timeout_s: float = LONG_S
) -> AsyncIterator[Wire]:
    """A wire to a server that does what the test wants, by default after it has said PONG."""
    connections: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while greets and (command := await words(reader)):
                if command[0] == "PING":
                    writer.write(b"+PONG\r\n")
                    break
                writer.write(b"+OK\r\n")
            await serve(reader, writer)
            if not writer.is_closing():
                await reader.read()
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.ensure_future(connected(reader, writer)))

    server = await asyncio.start_unix_server(accept, path)
    wire = Wire(f"unix://{path}?protocol=2", attempt_timeout_s=timeout_s)
    try:
        yield wire
    finally:
        await wire.close()
        server.close()
        await server.wait_closed()
        await asyncio.gather(*connections)


async def words(reader: asyncio.StreamReader) -> list[str]:
    """Read one command, empty at the end of the connection."""
    head = await reader.readline()
    found = []
    for _ in range(int(head[1:] or 0)):
        length = int((await reader.readline())[1:])
        found.append((await reader.readexactly(length + 2))[:-2].decode())
    return found


@pytest.fixture
def socket() -> Iterator[Path]:
    """A path for a Unix socket, short enough for one."""
    path = Path("/tmp") / f"onsale-wire-{uuid.uuid4().hex[:8]}"
    yield path
    path.unlink(missing_ok=True)


async def blocked(client: Redis, count: int = 1) -> None:
    """Wait until that many clients block in Valkey."""
    async with asyncio.timeout(60):
        while (await client.info("clients"))["blocked_clients"] != count:
            await asyncio.sleep(0)


async def test_replies_reach_their_callers(wire: Wire) -> None:
    """A thousand calls at once: each gets its own reply."""
    replies = await asyncio.gather(*(wire.call("ECHO", str(i)) for i in range(1_000)))
    assert replies == [str(i) for i in range(1_000)]


async def test_replies_keep_their_order_among_errors(wire: Wire) -> None:
    """An error is one reply as any other; its neighbours get theirs."""
    calls = [wire.call("ECHO", str(i)) if i % 3 else wire.call("NOTHING") for i in range(30)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    for i, reply in enumerate(replies):
        assert reply == str(i) if i % 3 else isinstance(reply, Unknown)


async def test_commands_of_one_turn_leave_together(socket: Path) -> None:
    """One packet, and one turn of the server."""
    pieces: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces.append(await reader.read(1 << 16))
        writer.write(b"+OK\r\n" * 20)

    async with served(socket, serve) as wire:
        assert await asyncio.gather(*(wire.call("ECHO", i) for i in range(20))) == ["OK"] * 20
    assert [piece.count(b"ECHO") for piece in pieces] == [20]


async def test_callers_share_one_connection(socket: Path) -> None:
    """Those that come while it is being made wait for it."""
    connections: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while command := await words(reader):
            writer.write(f"+{command[1]}\r\n".encode())

    async with served(socket, serve) as wire:
        assert await asyncio.gather(*(wire.call("ECHO", i) for i in range(9))) == list("012345678")
        assert await wire.call("ECHO", "later") == "later"
    assert len(connections) == 1


async def test_a_caller_that_gives_up_gets_nobody_elses_reply(wire: Wire, valkey: Redis) -> None:
    """Nor does anybody get its: its place in the queue stays."""
    async with asyncio.TaskGroup() as group:
        gives_up = group.create_task(wire.call("BLPOP", "list", 0))
        await blocked(valkey)
        behind = [group.create_task(wire.call("ECHO", str(i))) for i in range(3)]
        await asyncio.sleep(0)
        gives_up.cancel()
        behind[1].cancel()
        await valkey.rpush("list", "not yours")
    assert (behind[0].result(), behind[2].result()) == ("0", "2")
    assert gives_up.cancelled()
    assert await wire.call("ECHO", "after") == "after"


async def test_a_caller_with_less_time_gives_up_alone(wire: Wire, valkey: Redis) -> None:
    """Its time is past, the connection's is not: the others get their replies."""
    async with asyncio.TaskGroup() as group:
        holds = group.create_task(wire.call("BLPOP", "list", 0))
        await blocked(valkey)
        stays = group.create_task(wire.call("ECHO", "mine"))
        with pytest.raises(Unknown):
            await wire.call("ECHO", "hurried", timeout_s=0.05)
        await valkey.rpush("list", "x")
    assert holds.result() == ["list", "x"]
    assert stays.result() == "mine"
    assert await wire.call("ECHO", "after") == "after"


async def test_a_caller_that_gives_up_with_an_error_disturbs_nobody(
    wire: Wire, valkey: Redis
) -> None:
    """The error has nobody to go to; the next reply goes where it belongs."""
    async with asyncio.TaskGroup() as group:
        holds = group.create_task(wire.call("BLPOP", "list", 0))
        await blocked(valkey)
        gives_up = group.create_task(wire.call("NOTHING"))
        stays = group.create_task(wire.call("ECHO", "mine"))
        await asyncio.sleep(0)
        gives_up.cancel()
        await valkey.rpush("list", "x")
    assert holds.result() == ["list", "x"]
    assert stays.result() == "mine"


async def test_no_reply_in_time_is_unknown(empty_valkey: str, valkey: Redis) -> None:
    """For everybody on that connection: all of them were sent, none was answered."""
    wire = Wire(empty_valkey, attempt_timeout_s=0.2)
    replies = await asyncio.gather(
        wire.call("BLPOP", "list", 0), wire.call("SET", "k", "v"), return_exceptions=True
    )
    assert [type(reply) for reply in replies] == [Unknown, Unknown]
    assert await wire.call("ECHO", "again") == "again"
    await wire.close()


async def test_a_command_is_never_sent_twice(empty_valkey: str, valkey: Redis) -> None:
    """Not after a time-out, not on the next connection."""
    wire = Wire(empty_valkey, attempt_timeout_s=0.2)
    await wire.call("ECHO", "connected")
    await valkey.client_pause(600_000, all=False)
    try:
        with pytest.raises(Unknown):
            await wire.call("INCR", "counter")
    finally:
        await valkey.client_unpause()
        await wire.close()
    wire = Wire(empty_valkey, attempt_timeout_s=LONG_S)
    await wire.call("ECHO", "again")
    assert await valkey.get("counter") in {None, "1"}
    await wire.close()


async def test_a_killed_connection_is_unknown_and_made_anew(wire: Wire, valkey: Redis) -> None:
    """What was in flight may have run; the next call finds a connection."""
    own = await wire.call("CLIENT", "ID")
    in_flight = asyncio.gather(
        wire.call("BLPOP", "list", 0), wire.call("ECHO", "x"), return_exceptions=True
    )
    await blocked(valkey)
    await valkey.client_kill_filter(_id=own, skipme=False)
    assert [type(reply) for reply in await in_flight] == [Unknown, Unknown]
    assert await wire.call("CLIENT", "ID") != own


async def test_an_idle_connection_that_was_killed_is_made_anew(wire: Wire, valkey: Redis) -> None:
    """At the latest with the second call: the first may be told that its fate is unknown."""
    own = await wire.call("CLIENT", "ID")
    await valkey.client_kill_filter(_id=own, skipme=False)
    await asyncio.gather(wire.call("ECHO", "x"), return_exceptions=True)
    assert await wire.call("ECHO", "again") == "again"


async def test_half_a_reply_is_unknown(socket: Path) -> None:
    """A connection that ends within a reply has told nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await words(reader)
        writer.write(b"$10\r\nhalf")
        writer.close()

    async with served(socket, serve) as wire:
        with pytest.raises(Unknown):
            await wire.call("GET", "k")


async def test_a_reply_that_came_before_the_loss_counts(socket: Path) -> None:
    """The first is answered, the second is unknown."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await words(reader)
        await words(reader)
        writer.write(b"+first\r\n")
        writer.close()

    async with served(socket, serve) as wire:
        replies = await asyncio.gather(
            wire.call("GET", "a"), wire.call("GET", "b"), return_exceptions=True
        )
    assert replies[0] == "first"
    assert isinstance(replies[1], Unknown)


async def test_what_nobody_asked_for_is_nobodys_reply(socket: Path) -> None:
    """A push is passed over; a reply too many costs the connection, and whoever waits on it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await words(reader)
        writer.write(b">2\r\n+invalidate\r\n+x\r\n+mine\r\n")
        await words(reader)
        writer.write(b"+mine again\r\n+whose?\r\n")

    async with served(socket, serve) as wire:
        assert await wire.call("GET", "a") == "mine"
        assert await wire.call("GET", "b") == "mine again"
        link = wire._link
        assert link is not None
        assert link.lost


async def test_a_reply_that_is_none_is_unknown(socket: Path) -> None:
    """What cannot be read ends the connection: whatever follows has no beginning."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await words(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n")

    async with served(socket, serve) as wire:
        with pytest.raises(Unknown):
            await wire.call("GET", "a")


async def test_a_refused_connection_is_not_executed(socket: Path) -> None:
    """Nothing was sent to anybody, for any of those who waited."""
    wire = Wire(f"unix://{socket}")
    replies = await asyncio.gather(
        *(wire.call("ECHO", i) for i in range(3)), return_exceptions=True
    )
    assert [type(reply) for reply in replies] == [NotExecuted] * 3


async def test_a_server_that_says_nothing_is_not_executed(socket: Path) -> None:
    """One that takes the connection and hangs has been given no command."""
    heard: list[bytes] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())

    async with served(socket, hang, greets=False, timeout_s=0.1) as wire:
        with pytest.raises(NotExecuted):
            await wire.call("INCR", "x")
    assert b"INCR" not in b"".join(heard)


@pytest.mark.parametrize("takes", [(), ("HELLO", "AUTH", "CLIENT", "SELECT")], ids=str)
async def test_a_server_that_loads_is_not_executed(socket: Path, takes: tuple[str, ...]) -> None:
    """It refuses the greeting or, as Redis does, what follows it: no command is sent to it."""
    heard: list[str] = []

    async def load(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await words(reader):
            heard.append(command[0])
            if command[0] in takes:
                writer.write(b"+OK\r\n")
                continue
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")

    async with served(socket, load, greets=False) as wire:
        with pytest.raises(NotExecuted):
            await wire.call("INCR", "x")
    assert "INCR" not in heard


async def test_a_missing_script_is_told_apart(wire: Wire, valkey: Redis) -> None:
    """NOSCRIPT asks for a handshake, and nothing is loaded by itself."""
    with pytest.raises(MissingScript):
        await wire.call("EVALSHA", "0" * 40, 0)
    sha = await valkey.script_load("return {'OK', ARGV[1]}")
    assert await wire.call("EVALSHA", sha, 0, "ü 1") == ["OK", "ü 1"]
    await valkey.script_flush()
    with pytest.raises(MissingScript):
        await wire.call("EVALSHA", sha, 0, "x")


async def test_a_script_that_fails_is_unknown(wire: Wire, valkey: Redis) -> None:
    """Lua has no rollback: what it wrote before stands."""
    with pytest.raises(Unknown):
        await wire.call("EVAL", "redis.call('SET', 'k', 'v'); error('broken')", 0)
    assert await valkey.get("k") == "v"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", NotExecuted),
        ("READONLY You can't write against a read only replica.", NotExecuted),
        ("MASTERDOWN Link with MASTER is down", NotExecuted),
        ("CLUSTERDOWN The cluster is down", NotExecuted),
        ("TRYAGAIN Multiple keys request during rehashing of slot", NotExecuted),
        ("MOVED 3999 127.0.0.1:6381", NotExecuted),
        ("ASK 3999 127.0.0.1:6381", NotExecuted),
        ("BUSY Redis is busy running a script.", NotExecuted),
        ("MISCONF Redis is configured to save RDB snapshots", NotExecuted),
        ("NOREPLICAS Not enough good replicas to write.", NotExecuted),
        ("LOADING Redis is loading the dataset in memory", NotExecuted),
        ("NOPERM User x has no permissions to run the 'evalsha' command", NotExecuted),
        ("NOSCRIPT No matching script.", MissingScript),
        ("ERR user_script:7: something", Unknown),
        ("BUSYKEY Target key name already exists.", Unknown),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Unknown),
        ("UNKILLABLE Sorry the script already executed write commands", Unknown),
    ],
)
async def test_errors_say_whether_the_command_ran(
    socket: Path, error: str, kind: type[Exception]
) -> None:
    """Those that come before a script's first line are NotExecuted, all others Unknown."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await words(reader):
            writer.write(f"-{error}\r\n".encode())

    async with served(socket, serve) as wire:
        for _ in range(2):
            with pytest.raises(kind) as found:
                await wire.call("EVALSHA", "x", 0)
            assert isinstance(found.value, MissingScript) == (kind is MissingScript)


async def test_a_full_memory_is_not_executed(wire: Wire, valkey: Redis) -> None:
    """As Valkey words it."""
    await valkey.config_set("maxmemory", "1")
    try:
        with pytest.raises(NotExecuted, match="maxmemory"):
            await wire.call("EVAL", "#!lua\nreturn 1", 0)
    finally:
        await valkey.config_set("maxmemory", "0")


async def test_closing_ends_calls_in_flight_as_unknown(wire: Wire, valkey: Redis) -> None:
    """Nobody is left waiting."""
    call = asyncio.ensure_future(wire.call("BLPOP", "list", 0))
    await blocked(valkey)
    await wire.close()
    with pytest.raises(Unknown):
        await call


async def test_a_caller_that_gives_up_before_a_connection_sends_nothing(socket: Path) -> None:
    """It has left nothing behind; others that wait for the connection are served."""
    seen: list[list[str]] = []
    may_connect = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await words(reader):
            seen.append(command)
            writer.write(b"+OK\r\n")

    async with served(socket, serve) as wire:
        open_, wire._open = wire._open, None  # type: ignore[method-assign,assignment]

        async def later() -> Any:
            await may_connect.wait()
            return await open_()

        wire._open = later  # type: ignore[method-assign]
        gives_up = asyncio.ensure_future(wire.call("SET", "a", "1"))
        stays = asyncio.ensure_future(wire.call("SET", "b", "1"))
        await asyncio.sleep(0)
        gives_up.cancel()
        may_connect.set()
        assert await stays == "OK"
    assert seen == [["SET", "b", "1"]]
    assert gives_up.cancelled()


@pytest.mark.parametrize("error", ["READONLY You can't write", "MASTERDOWN Link", "LOADING Redis"])
async def test_a_server_that_takes_no_changes_is_asked_for_anew(
    socket: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Its name may lead elsewhere by now; replies that are still to come are not lost by that."""
    monkeypatch.setattr(wire_module, "_RETIRE_AFTER_S", 0.0)
    connections = 0
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while command := await words(reader):
            if command[0] == "GET":
                await go_on.wait()
                writer.write(b"+read\r\n")
            else:
                writer.write(f"-{error}\r\n".encode())

    async with served(socket, serve) as wire:
        changing = asyncio.create_task(wire.call("SET", "k", "v"))
        reading = asyncio.create_task(wire.call("GET", "k"))
        try:
            with pytest.raises(NotExecuted) as caught:
                await changing
            assert caught.value.reason
            with pytest.raises(NotExecuted):
                await wire.call("SET", "k", "v")
            assert connections == 2
        finally:
            go_on.set()
        assert await reading == "read"


async def test_a_replica_is_not_stormed(socket: Path) -> None:
    """A connection that has just been made is kept: a refusal does not cost one each."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await words(reader):
            writer.write(b"-READONLY You can't write\r\n")

    async with served(socket, serve) as wire:
        began = asyncio.get_running_loop().time()
        for _ in range(200):
            with pytest.raises(NotExecuted):
                await wire.call("SET", "k", "v")
        assert connections <= 1 + (asyncio.get_running_loop().time() - began) / 0.5
