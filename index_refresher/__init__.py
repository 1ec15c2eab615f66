"""The refresher: embeds items, publishes generations of the index, answers queries.

Owns: generations on disk. Reads the feature store, never writes it; takes from the trainer only the models.
"""
