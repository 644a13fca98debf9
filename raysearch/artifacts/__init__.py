"""A run on disk or in an object store: its records, its units of work, and its retrieval."""

from raysearch.artifacts import codecs
from raysearch.artifacts.bulletin import Bulletin
from raysearch.artifacts.driver_log import DRIVER_LOG, driver_log, readable
from raysearch.artifacts.listing import ListedRun, list_runs
from raysearch.artifacts.location import DEFAULT_STORAGE, has_keys, redact
from raysearch.artifacts.outage import OUTAGE_SECONDS
from raysearch.artifacts.owner import current_status, owned
from raysearch.artifacts.retrieve import copy_run, hash_file, retrieve
from raysearch.artifacts.run_id import new_run_id, valid_run_id
from raysearch.artifacts.run_store import RunStore, resolve_run
from raysearch.artifacts.seals import hashed, without_hash
from raysearch.artifacts.storage import Storage
from raysearch.artifacts.unit_log import UnitLog

__all__ = [
    "DEFAULT_STORAGE",
    "DRIVER_LOG",
    "OUTAGE_SECONDS",
    "Bulletin",
    "ListedRun",
    "RunStore",
    "Storage",
    "UnitLog",
    "codecs",
    "copy_run",
    "current_status",
    "driver_log",
    "has_keys",
    "hash_file",
    "hashed",
    "list_runs",
    "new_run_id",
    "owned",
    "readable",
    "redact",
    "resolve_run",
    "retrieve",
    "valid_run_id",
    "without_hash",
]
