"""The safety rules in a process of their own: who holds the key, what is asked of it over a Unix socket, who asks.

`remote` is the daemon's side, everything else the signer's; both share `protocol`, `frames` and `errors`.
"""
