"""Run by Alembic: uses the connection, and the transaction, that ``migrations.upgrade`` was given."""

from alembic import context

from pbxguard.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
