"""How RocksDB is set for rows that are read by key, one here and one there, and written by the ten thousand.

Owns the options of every column family. Always raw mode: rocksdict's default would unpickle what it reads,
which runs code.
"""

from rocksdict import BlockBasedOptions, DBCompressionType, Options

_FILTER_BITS = 10  # a key: one look in a hundred is for nothing
_MEMTABLE_FILTER = 0.01  # of the write buffer: some 28 bits for a row of 70 floats


def options(keeps_blocks: bool = False) -> Options:
    """Return the options of a database and of each of its column families. Who has no rows in memory of their
    own keeps blocks that were read, some MiB a family.
    """
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_max_open_files(-1)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(32 << 20)
    options.set_max_background_jobs(2)
    options.set_max_total_wal_size(64 << 20)  # a start reads it again
    options.set_max_log_file_size(8 << 20)  # RocksDB's own notes, a page of figures every ten minutes
    options.set_keep_log_file_num(4)
    # Without filters each row is looked for in what was written last, and in every file of the first level.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(_MEMTABLE_FILTER)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(_FILTER_BITS, block_based=False)
    if not keeps_blocks:
        # The trainer's hot rows stand in its tables. A block serves one of the others and goes: to keep it
        # for a while takes longer than to ask the system's cache again.
        blocks.disable_cache()
    options.set_block_based_table_factory(blocks)
    return options
