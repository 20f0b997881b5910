"""An index built by several processes, or on a Ray cluster: the same bytes and root as built by one.

`build_index_sharded` writes what every shard needs into a folder that all of them see, has an *engine* run one call per
shard and step, and adds up integers in between (`build`). What a call does is a function of files (`steps`), every file
is checked against its digest when it is read (`files`), and an engine moves nothing but names and digests: child
processes (`processes`, `child`) or Ray tasks (`cluster`, with the optional extra ``openledger[ray]``).
"""

from attribution.sharding.build import SHARDS_MAX, build_index_sharded
from attribution.sharding.errors import ShardFailed, ShardFileWrong, ShardRefused
from attribution.sharding.processes import Processes

__all__ = [
    "SHARDS_MAX",
    "Processes",
    "ShardFailed",
    "ShardFileWrong",
    "ShardRefused",
    "build_index_sharded",
]
