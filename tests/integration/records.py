"""Puts made-up sales on record, by the very statements of the writer; and forges entries."""

from service.keys import partition_keys
from service.ledger import connect
from tests.conftest import Client, Stores
from tests.journals import Sale


async def put_on_record(stores: Stores, sale: Sale) -> None:
    """Write a sale as the handshake and the writer write one."""
    async with await connect(stores.postgresql_url, purpose="test") as ledger:
        await ledger.claim_partitions(sale.partitions)
        for epoch in sale.epochs:
            async with ledger.deciding(sale.partition) as decision:
                await decision.put_epoch(
                    epoch.epoch, epoch.verdict, epoch.beginning, epoch.predecessor, "a test"
                )
        async with ledger.applying([sale.partition]) as application:
            await application.record(sale.partition, sale.changes)


async def forge(valkey: Client, partition: int, *changes: str, at: str = "1") -> int:
    """Append an entry that no script would; return the seq of its first change."""
    meta, _, outbox = partition_keys(partition)
    epoch, last = await valkey.hmget(meta, "epoch", "seq")
    first = int(last) + 1
    fields = {"v": "1", "at": at, "first": str(first), "changes": "\n".join(changes)}
    seq = int(last) + len(changes)
    await valkey.xadd(outbox, fields, f"{epoch}-{seq}")
    await valkey.hset(meta, "seq", str(seq))
    return first
