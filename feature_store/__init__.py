"""What is stored and exchanged: events, their bytes, and the RocksDB feature store.

Owns: the event schema, the codec, settings, errors, telemetry, the store. Never imports the other packages.
"""
