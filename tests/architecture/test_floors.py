"""Who may import whom, and what is spelt in one place only (DESIGN, section 6)."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SERVICE = Path(__file__).resolve().parents[2] / "service"

FLOORS: tuple[tuple[str, str], ...] = (
    (
        "words",
        """__init__ errors models settings env_file setting_names loopback keys lineage losses
        postgresql_address resources store_urls soundness room keyed times""",
    ),
    (
        "tools",
        """environment logs slots standard_streams tallies metrics failures witness scripts
        admission batcher wire migrations processes rundir""",
    ),
    (
        "stores",
        """outbox columns rows inspection rights direct redis_store wakeups redis_view projection
        record decision ledger event_record postgresql_client record_view journal_view
        sqlstates sessions letters end_of_record record_tables backup_files""",
    ),
    (
        "domain",
        """verdicts damage assurance succession applying unrecorded orders bringing_forward
        settling handshake suspension opening partition readiness store_watch loader results lanes
        watermark vouching engine lingering loads after_commit writer vitals stopped
        setting_aside deadletters findings comparison waiting_list tail event_reading reconciler
        violations replay journal_replay replay_result kept_heads auditor history
        backing_up restore_plan restoring""",
    ),
    (
        "edge",
        """bodies preferences idempotency answers handlers openapi documentation heads patience
        offers draining prefix http1 stopwatch exposition shedding hot_answers hot_exchange
        hot_reads hot_path hot_http1""",
    ),
    (
        "composition",
        """handshakes app aof_quarantine embedded own_stores supervisor probes listener health
        welcome crowd browser serving demo
        looking reconcile_report audit_report history_report settings_table
        restore backup_report restore_report
        given_verdicts confirming repair deciding terminal operating backup_commands cli __main__
        deadletters_report deadletters_commands""",
    ),
)
FLOOR_OF = {name: floor for floor, (_, names) in enumerate(FLOORS) for name in names.split()}

STORES = frozenset({"redis", "asyncpg"})
NOT_AT_THE_EDGE = STORES | {
    "service.wire",
    "service.redis_store",
    "service.ledger",
    "service.record",
    "service.outbox",
    "service.scripts",
    "service.keys",
}
SPEAKS_SQL = {
    "ledger": "every SQL statement, with record and decision",
    "record": "the statements that put changes on record",
    "projection": "the rows of events and bookings, in record's transaction",
    "letters": "the table dead_letters",
    "event_record": "what a load reads of one event",
    "end_of_record": "what a replay asks of a record that went back",
    "decision": "the statements with which a handshake decides",
    "sessions": "the settings of a session, and how one that is frozen is ended",
    "record_view": "what a comparison reads, in a session that can write nothing",
    "journal_view": "what an audit and a history read, in such a session",
    "record_tables": "the tables as a whole: copied out of a snapshot, and replaced by a backup",
    "inspection": "asks for what soundness depends on",
    "probes": "asks a server that is to be embedded or used whether it is one, before a record is",
}
COPIES = {
    "record_tables": "into temporary tables, out of a snapshot: under no lock that a sale needs",
}
PASSES_ENVIRONMENT_ON = {
    "settings": "names that are no settings are refused",
    "environment": "a process of Onsale's own inherits, and the clients' defaults are removed",
    "serving": "its `onsale up` gets the environment and a port",
    "metrics": "prometheus-client looks there for the directory that processes share",
}

_KEY = re.compile(r"\{p[0-9N{]|:(?:meta|calls|outbox|event|users|waiting_list|gaps|holds)(?::|$)")
_SQL = re.compile(
    r"\b(?:SELECT\b.+|INSERT INTO|UPDATE \w+ SET|DELETE FROM|CREATE (?:TABLE|DATABASE|INDEX)"
    r"|ALTER \w+|DROP (?:TABLE|DATABASE)|LOCK TABLE|TRUNCATE \w+|SET LOCAL|pg_\w+\()"
)

Imports = Mapping[str, frozenset[str]]


# Not at import: each process of a run would parse the package while it collects.
@cache
def trees() -> dict[str, ast.Module]:
    """Return every module of the package, parsed."""
    return {path.stem: ast.parse(path.read_text(), path) for path in sorted(SERVICE.glob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name (`from service.keys import ...`)"
            assert node.module is not None
            if node.module == "service":
                yield from (f"service.{alias.name}" for alias in node.names)
            else:
                yield node.module


def of_the_house(tree: ast.AST) -> frozenset[str]:
    """Return the modules of this package that a module imports."""
    names = (name.split(".") for name in imported(tree))
    found = {parts[1] for parts in names if parts[0] == "service" and len(parts) > 1}
    return frozenset(found & (trees().keys() | FLOOR_OF.keys()))


def climbs(imports: Imports) -> list[str]:
    """Return what reaches up or stands on no floor, each with what to do about it."""
    found = []
    for module, wanted in imports.items():
        if module not in FLOOR_OF:
            found.append(
                f"{module}.py stands on no floor: put it on the lowest one in FLOORS that will do"
            )
            continue
        found += [
            f"{module}.py ({FLOORS[FLOOR_OF[module]][0]}) imports {other}.py"
            f" ({FLOORS[FLOOR_OF[other]][0]}), which is above it: pass what is needed as an"
            f" argument, or move the shared part down"
            for other in sorted(wanted & FLOOR_OF.keys())
            if FLOOR_OF[other] > FLOOR_OF[module]
        ]
    return found


def circle(imports: Imports) -> list[str]:
    """Return modules that import each other, empty when there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every string of a module that is not a docstring."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings:
            yield text


@cache
def imports() -> Imports:
    """Return the modules of this package that each module imports."""
    return {module: of_the_house(tree) for module, tree in trees().items()}


def test_nothing_reaches_up() -> None:
    """A file imports from its own floor and those below, and every file stands on a floor."""
    assert climbs(imports()) == []


def test_no_floor_names_a_file_that_is_gone() -> None:
    """The list of floors is the list of files."""
    assert FLOOR_OF.keys() - trees().keys() == set()
    assert sum(len(names.split()) for _, names in FLOORS) == len(FLOOR_OF)


def test_nothing_imports_itself_round_a_corner() -> None:
    """Within a floor imports are allowed, in one direction."""
    assert circle(imports()) == []


def test_these_checks_would_notice() -> None:
    """Negative control: a reach upwards, a file of no floor and a circle are each found."""
    assert "above it" in climbs({"keys": frozenset({"engine"})})[0]
    assert "no floor" in climbs({"helpers": frozenset()})[0]
    assert climbs({"engine": frozenset({"keys", "partition"})}) == []
    assert circle({"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"})})
    inside = ast.parse("def f():\n  from service import keys\n  import service.wire")
    assert of_the_house(inside) == {"keys", "wire"}
    assert any(_KEY.search(text) for text in texts(ast.parse('f"{{p{n:02d}}}:meta"')))
    assert _SQL.search("SELECT 1")


def test_a_module_says_what_it_owns() -> None:
    """Its docstring is at least one sentence."""
    silent = [m for m, tree in trees().items() if "." not in (ast.get_docstring(tree) or "")]
    assert not silent, "say what these modules own and what they must never do"


def test_the_edge_speaks_to_no_store() -> None:
    """No Redis and no SQL: it decodes, calls the engine and encodes."""
    for module in FLOORS[4][1].split():
        found = {
            name
            for name in imported(trees()[module])
            if name in NOT_AT_THE_EDGE or name.split(".")[0] in STORES
        }
        assert not found, f"{module}.py imports {found}: ask the engine"


def test_only_keys_spells_keys() -> None:
    """Everybody else calls service.keys."""
    for module, tree in trees().items():
        found = [text for text in texts(tree) if _KEY.search(text)]
        assert not found or module == "keys", f"{module}.py spells {found}: build it in keys.py"


def test_only_the_record_speaks_sql() -> None:
    """A statement elsewhere would not be found when the schema changes."""
    for module in trees().keys() - SPEAKS_SQL:
        found = [text for text in texts(trees()[module]) if _SQL.search(text)]
        assert not found, f"{module}.py says {found}: give ledger.py a method for it"


def test_nobody_copies_from_the_client() -> None:
    """A client frozen inside COPY is stopped by no time-out, and keeps its locks (PROTOCOL 7)."""
    for module in trees().keys() - COPIES:
        walked = ast.walk(trees()[module])
        called = {node.attr for node in walked if isinstance(node, ast.Attribute)}
        assert not {name for name in called if name.startswith("copy_")}, module


def test_one_module_connects_to_postgresql() -> None:
    """What asyncpg is not given it takes from the environment; there it is given everything."""
    for module, tree in trees().items():
        called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        connects = called & {"asyncpg.connect", "asyncpg.create_pool"}
        wanted = module == "postgresql_client"
        assert bool(connects) == wanted, f"{module}.py: call postgresql_client"


def test_only_settings_reads_the_environment() -> None:
    """A few modules pass it on; nobody picks a variable out of it."""
    for module, tree in trees().items():
        assert "pydantic_settings" not in set(imported(tree)) or module == "settings", module
        picked = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Load)
                and ast.unparse(node.value) == "os.environ"
            )
            or (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ")
            or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.getenv", "os.putenv"})
        ]
        assert not picked, f"{module}.py: {picked}: make it a setting in settings.py"
        named = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ"
            for node in ast.walk(tree)
        )
        assert named == (module in PASSES_ENVIRONMENT_ON), module


def test_the_web_framework_stays_at_the_edge() -> None:
    """The four lower floors know nothing of HTTP."""
    for module, tree in trees().items():
        web = {name.split(".")[0] for name in imported(tree)} & {"starlette", "uvicorn"}
        assert not web or FLOOR_OF.get(module, 0) >= 4, f"{module}.py imports {web}"
