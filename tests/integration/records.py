"""Puts made-up sales on record, by the very statements of the handshake and the writer."""

from service.ledger import connect
from tests.conftest import Stores
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
