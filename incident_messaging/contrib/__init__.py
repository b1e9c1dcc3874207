"""The SDK in the frameworks that people use: each module needs its framework, and nothing else here imports it."""
