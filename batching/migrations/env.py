"""Run by alembic, on the connection that `batching.migration` hands over."""

from __future__ import annotations

from alembic import context

from batching.migration import VERSION_TABLE
from batching.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    compare_server_default=False,
    # A lock that a migration takes is held until its own end, not until that of the last one.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
