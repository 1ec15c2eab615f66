"""Turns reviews into the shop's events: what was shown, what was clicked, what was known of items and users.

Pure. Owns the order and the times of the events and every random draw in them. Never looks ahead: an event depends on
reviews up to its own time and on the static metadata alone. Memory grows with items and users, not with events.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from feature_store.schema import Click, EventKind, FeatureValue, Impression, ItemFeatures, UserFeatures
from simulators.amazon_fields import ItemMeta
from simulators.dataset import Dataset

TimelineEvent: TypeAlias = Impression | Click | ItemFeatures | UserFeatures
