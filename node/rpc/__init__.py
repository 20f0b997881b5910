"""The node's RPC: JSON-RPC 2.0 over HTTP, specified in ``docs/rpc.md``."""
