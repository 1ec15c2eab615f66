"""Where the time of a learning step goes, by Python's own profiler."""

import cProfile
import pstats
from pathlib import Path

from pairs import BATCH, batches
from workload import LearnStep

_NUM_BATCHES = 20
_CALLERS = ("session._learn", "learner.step")
_Function = tuple[str, int, str]


def milliseconds_per_batch(alone: LearnStep) -> dict[str, float]:
    """Return the time of each function that a learning step is made of, over some batches, largest first;
    those below a hundredth are "all else".
    """
    alone.set_precision("float32")
    facts = [alone.facts(*pair) for pair in batches(_NUM_BATCHES, seed=0)]
    profile = cProfile.Profile()
    profile.enable()
    for batch in facts:
        alone.step(batch)
    profile.disable()
    num_steps = _NUM_BATCHES * BATCH / alone.config.learning.batch_size
    total, parts = 0.0, dict[str, float]()
    for function, (_, _, _, seconds, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        name = _name(function)
        if name == "session._learn":
            total = seconds
        if name not in _CALLERS:
            inside = sum(times[3] for caller, times in callers.items() if _name(caller) in _CALLERS)
            parts[name] = parts.get(name, 0.0) + inside
    large = {name: seconds for name, seconds in parts.items() if seconds >= 0.01 * total}
    ordered = dict(sorted(large.items(), key=lambda item: -item[1]))
    ordered |= {"all else": total - sum(large.values()), "together": total}
    return {name: 1000 * seconds / num_steps for name, seconds in ordered.items()}


def _name(function: _Function) -> str:
    """Return module.function; what is built in has its name alone."""
    path, _, name = function
    return name if path == "~" else f"{Path(path).stem}.{name}"
