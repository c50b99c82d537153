"""Kaldi-style data directories and the audio they name."""

from espnet_bestow.datadir.directory import (
    REJECTED,
    TABLES,
    DataDir,
    DataDirError,
    Problem,
    count_problems,
    read_rejected,
    read_table,
    table_lines,
    table_of,
    write_rejected,
    write_table,
)
from espnet_bestow.datadir.rows import Row, write_rows
from espnet_bestow.datadir.source import AudioSource, SourceReader, read_source
from espnet_bestow.datadir.source_workers import map_sources
from espnet_bestow.datadir.task_prompts import TaskError, default_prompt
from espnet_bestow.datadir.workers import map_in_processes

__all__ = [
    "REJECTED",
    "TABLES",
    "AudioSource",
    "DataDir",
    "DataDirError",
    "Problem",
    "Row",
    "SourceReader",
    "TaskError",
    "count_problems",
    "default_prompt",
    "map_in_processes",
    "map_sources",
    "read_rejected",
    "read_source",
    "read_table",
    "table_lines",
    "table_of",
    "write_rejected",
    "write_rows",
    "write_table",
]
