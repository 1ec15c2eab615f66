"""The continuous trainer: poll, merge, join, learn, commit.

Owns: the event logs' readers, the models and all writes to the feature store. Imports only `feature_store`.
"""
