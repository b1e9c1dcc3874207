"""The demo: a real incident log through real brokers, by way of the public API, and a check of what arrived.

`run` is the part to read first: it publishes and subscribes as an application would, `witness` handles what
arrives. `replay` makes events of a log, `check` compares what was consumed with what was published, `view`
shows it.
"""
