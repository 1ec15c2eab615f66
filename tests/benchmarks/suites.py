"""Which rows the bench has and what they claim: for the paper's model with every way to feed it, and for the
default preset.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pairs import BATCH, HIDDEN, NEGATIVES, NUM_ITEMS, NUM_USERS, batches, rate, time_steps
from plain import NUM_THREADS, Plain
from reference import Floor
from streams import EndToEnd, joined_records_per_second, polled_records_per_second, same_bytes
from workload import (
    LearnStep,
    configuration,
    default_configuration,
    fill_store,
    with_settings,
)

from feature_store.configuration import Configuration
from simulators.processor import fastest_precision
from stream_trainer.models.factory import row_layouts


class Row(NamedTuple):
    """Something measured once a round. `run` takes the round's seed and returns things per second."""

    name: str
    what: str
    num_threads: int
    run: Callable[[int], float]


class Claim(NamedTuple):
    """The ratio of two rows of one round, and what it is to reach, if anything."""

    what: str
    row: str
    base: str
    at_least: float | None


# In place of S = 5, or of those that the batch shares: the other positives' items of the batch.
_IN_BATCH = {"negatives_per_positive": 0, "shared_negatives": 0, "in_batch_negatives": True}


class Suite(NamedTuple):
    """Rows in the order in which they are measured."""

    title: str
    rows: list[Row]
    claims: list[Claim]
    streams: dict[str, EndToEnd]
    """By row: whose commits are of interest."""
    steps: dict[str, LearnStep]
    """Whose parts are of interest."""


class _Stores:
    """Copies of a filled store, each with topics of its own: filling one takes a minute."""

    def __init__(self, config: Configuration, folder: Path, address: str) -> None:
        fill_store(config)
        self._config, self._folder, self._address = config, folder, address
        self._num = 0

    def copy(self, log: str = "file", **store: object) -> Configuration:
        """Return settings over a store of their own, with these settings of [store]."""
        self._num += 1
        config, path = self._config, self._folder / f"store{self._num}"
        shutil.copytree(config.store.path, path)
        topics = {
            name: f"{self._folder.name}-{name}-{self._num}" for name in type(config.topics).model_fields
        }
        where = {"path": self._folder / f"log{self._num}", "kind": log, "bootstrap_servers": self._address}
        return config.model_copy(
            update={
                "store": config.store.model_copy(update={"path": path, **store}),
                "log": config.log.model_copy(update=where),
                "topics": config.topics.model_copy(update=topics),
            }
        )


def paper_suite(folder: Path, address: str, num_batches: int, num_positives: int, stack: ExitStack) -> Suite:
    """The paper's model (with what lets it learn) at Amazon Books' size."""
    stores = _Stores(configuration(folder), folder, address)
    plain, keeping = (stack.enter_context(Plain(*options)) for options in ((), ("--keep-memory",)))
    floor = Floor(HIDDEN, BATCH, 6 * BATCH)
    alone = stack.enter_context(closing(LearnStep(stores.copy())))
    tenth = stores.copy(row_memory_mib=_tenth_of_rows_mib(configuration(folder)))
    same_bytes(stores.copy(), stores.copy(row_memory_mib=tenth.store.row_memory_mib), 32 * BATCH)
    files, kafka, small = (
        stack.enter_context(closing(EndToEnd(*given)))
        for given in [
            (stores.copy(), num_positives),
            (stores.copy("kafka"), num_positives),
            (tenth, num_positives // 4),
        ]
    )
    rows = [
        _plain_row("a", "plain in-memory PyTorch loop", plain, "float32", num_batches),
        _plain_row("a-kept", "… that keeps freed memory, as ours does", keeping, "float32", num_batches),
        Row(
            "e", "the towers' matrix products alone (floor)", 2, partial(time_steps, floor.step, num_batches)
        ),
        _plain_row("a-bf16", "the plain loop in bfloat16", plain, "bfloat16", num_batches),
        Row("b", "learn step alone", 2, partial(_learn, alone, num_batches, "float32")),
        Row(
            "b-bf16",
            "… in bfloat16, as the trainer runs it",
            1,  # and the weights' gradients in another thread: in bfloat16 faster than two of torch
            partial(_learn, alone, num_batches, "bfloat16"),
        ),
        Row("c", "end to end, file log, commits", 1, _run(files)),
        Row("c-bf16", "… in bfloat16", 1, _run(files, precision="bfloat16")),
        Row("n", "… with in-batch negatives alone", 1, _run(files, **_IN_BATCH)),
        Row("m", "… with memory for a tenth of the rows, a quarter as long", 1, _run(small)),
        Row("d", "end to end, Kafka, commits", 1, _run(kafka)),
        Row("d-bf16", "… in bfloat16", 1, _run(kafka, precision="bfloat16")),
        Row("p", "kafka-python's poll alone, records", 1, lambda _: polled_records_per_second(kafka)),
        Row("q", "poll, decode, merge and join, records", 1, lambda _: joined_records_per_second(kafka)),
    ]
    best = "-bf16" if fastest_precision() == "bfloat16" else ""
    claims = [
        Claim("learn step ÷ plain loop", "b", "a", 1.5),
        Claim("learn step ÷ floor", "b", "e", 0.5),
        Claim("learn step, bfloat16 ÷ float32", "b-bf16", "b", 1.5),
        Claim("end to end from files, our best precision ÷ plain loop in float32", f"c{best}", "a", 1.4),
        Claim("end to end from Kafka, our best precision ÷ plain loop in float32", f"d{best}", "a", 1.0),
        Claim("end to end from files, both in float32", "c", "a", 0.5),
        Claim("end to end from Kafka, both in float32", "d", "a", 0.35),
        Claim("end to end from files, both in bfloat16", "c-bf16", "a-bf16", None),
        Claim("the plain loop that keeps freed memory ÷ as people run it", "a-kept", "a", None),
        Claim("poll … join ÷ bare poll", "q", "p", 0.5),
        Claim("in-batch ÷ S = 5, end to end", "n", "c", 1.5),
        Claim("memory for a tenth of the rows ÷ for all", "m", "c", 0.5),
    ]
    sizes = f"batch {BATCH}, S = {NEGATIVES}, {NUM_USERS:,} users, {NUM_ITEMS:,} items"
    title = f"the paper's model, rows by row-wise Adagrad (the plain loop: SparseAdam), {sizes}"
    return _possible(
        Suite(
            title,
            rows,
            claims,
            {"c": files, "c-bf16": files, "m": small, "d": kafka, "d-bf16": kafka},
            {"b": alone},
        )
    )


def default_suite(
    folder: Path, address: str, num_batches: int, num_positives: int, stack: ExitStack
) -> Suite:
    """The default preset, without rehearsal and with 8 rehearsed examples to each new one."""
    config = default_configuration(folder)
    stores, learning = _Stores(config, folder, address), config.learning
    title = (
        f"the default preset without its questions in passing: batches of {learning.batch_size}, "
        f"{learning.shared_negatives} shared negatives, rows by row-wise Adagrad (the plain loop: SparseAdam)"
    )
    suite = Suite(title, [], [], {}, {})
    for ratio in (0, 8):
        given = [with_settings(stores.copy(log), rehearsal_ratio=ratio) for log in ("file", "file", "kafka")]
        alone = stack.enter_context(closing(LearnStep(given[0])))
        files, kafka = (
            stack.enter_context(closing(EndToEnd(one, num_positives // (3 + ratio)))) for one in given[1:]
        )
        for key, stream in {"c": files, "d": kafka}.items():
            suite.streams.update({f"{key}{ratio}": stream, f"{key}{ratio}-bf16": stream})
        suite.steps[f"b{ratio}"] = alone
        plain = stack.enter_context(Plain("--default", str(learning.batch_size), str(ratio)))
        num = max(1, num_batches // (4 * (1 + ratio)))
        suite.rows.extend(_default_rows(ratio, num, plain, alone, files, kafka))
        suite.claims.extend(_default_claims(ratio))
        if not ratio:
            _add_other_rows(suite, stores, config, files, num_positives // 12, stack)
    return _possible(suite)


def _add_other_rows(
    suite: Suite,
    stores: _Stores,
    config: Configuration,
    files: EndToEnd,
    num_positives: int,
    stack: ExitStack,
) -> None:
    """Add in-batch negatives, and memory for a tenth of the rows, without rehearsal."""
    mib = _tenth_of_rows_mib(config)
    same_bytes(stores.copy(), stores.copy(row_memory_mib=mib), 32 * config.learning.batch_size)
    tenth = with_settings(stores.copy(row_memory_mib=mib), rehearsal_ratio=0)
    suite.streams["m0"] = small = stack.enter_context(closing(EndToEnd(tenth, num_positives)))
    suite.rows.append(Row("n0", "… with in-batch negatives alone", 1, _run(files, **_IN_BATCH)))
    suite.rows.append(Row("m0", "… with memory for a tenth of the rows, a quarter as long", 1, _run(small)))
    suite.claims.append(Claim("in-batch ÷ shared negatives, end to end", "n0", "c0", 1.5))
    suite.claims.append(Claim("memory for a tenth of the rows ÷ for all", "m0", "c0", 0.5))


def _default_rows(
    ratio: int, num_batches: int, plain: Plain, alone: LearnStep, files: EndToEnd, kafka: EndToEnd
) -> list[Row]:
    batch = alone.config.learning.batch_size
    num_queries = batch * (1 + ratio)
    floor = Floor(HIDDEN, num_queries, num_queries + alone.config.learning.shared_negatives)
    return [
        _plain_row(f"a{ratio}", f"rehearsal {ratio}: plain in-memory loop", plain, "float32", num_batches),
        Row(
            f"e{ratio}",
            "the towers' matrix products alone (floor)",
            2,
            partial(_products, floor, batch, num_batches),
        ),
        _plain_row(f"a{ratio}-bf16", "the plain loop in bfloat16", plain, "bfloat16", num_batches),
        Row(f"b{ratio}", "learn step alone", 2, partial(_learn, alone, num_batches, "float32")),
        Row(f"b{ratio}-bf16", "… in bfloat16", 2, partial(_learn, alone, num_batches, "bfloat16")),
        Row(f"c{ratio}", "end to end, file log, commits", 1, _run(files)),
        Row(f"c{ratio}-bf16", "… in bfloat16", 1, _run(files, precision="bfloat16")),
        Row(f"d{ratio}", "end to end, Kafka, commits", 1, _run(kafka)),
        Row(f"d{ratio}-bf16", "… in bfloat16", 1, _run(kafka, precision="bfloat16")),
    ]


def _default_claims(ratio: int) -> list[Claim]:
    plain, best = f"a{ratio}", f"{ratio}-bf16" if fastest_precision() == "bfloat16" else f"{ratio}"
    return [
        Claim(f"rehearsal {ratio}: learn step ÷ plain loop", f"b{ratio}", plain, 1.5),
        Claim("learn step ÷ floor", f"b{ratio}", f"e{ratio}", 0.5),
        Claim("learn step, bfloat16 ÷ float32", f"b{ratio}-bf16", f"b{ratio}", 1.5),
        Claim("end to end from files, our best ÷ plain loop in float32", f"c{best}", plain, 1.4),
        Claim("end to end from Kafka, our best ÷ plain loop in float32", f"d{best}", plain, 1.0),
        Claim("end to end from files, both in float32", f"c{ratio}", plain, None),
        Claim("end to end from files, both in bfloat16", f"c{ratio}-bf16", f"{plain}-bf16", None),
    ]


def _plain_row(name: str, what: str, plain: Plain, precision: str, num_batches: int) -> Row:
    return Row(name, what, NUM_THREADS, partial(plain.positives_per_second, precision, num_batches))


def _learn(alone: LearnStep, num_batches: int, precision: str, seed: int) -> float:
    alone.set_precision(precision)
    return rate(alone.step, [(alone.facts(*pair),) for pair in batches(num_batches + 2, seed)])


def _products(floor: Floor, batch: int, num_batches: int, seed: int) -> float:
    """Rows of `batch` positives each, though `batches` yields more at once."""

    def step(users_B: torch.Tensor, positive_B: torch.Tensor) -> None:
        for _ in range(len(users_B) // batch):
            floor.step(users_B, positive_B)

    return time_steps(step, num_batches, seed)


def _run(stream: EndToEnd, **learning: object) -> Callable[[int], float]:
    return lambda _: stream.positives_per_second(**learning)


def _tenth_of_rows_mib(config: Configuration) -> int:
    layouts = row_layouts(config.model, config.features, config.learning.rows_optimiser)
    num_bytes = 4 * (NUM_USERS * layouts["user"].width + NUM_ITEMS * layouts["item"].width)
    return round(num_bytes / 10 / 2**20)


def _possible(suite: Suite) -> Suite:
    """Leave out bfloat16 where the processor has no instructions for it."""
    if fastest_precision() == "bfloat16":
        return suite
    rows = [row for row in suite.rows if not row.name.endswith("16")]
    claims = [claim for claim in suite.claims if not claim.row.endswith("16")]
    streams = {name: stream for name, stream in suite.streams.items() if not name.endswith("16")}
    return suite._replace(rows=rows, claims=claims, streams=streams)
