"""Those that are measured: a process each, in the Python that has what it needs.

Nothing here imports the SDK but ``sdk``: peers run in an environment without it. A contestant is a class whose
methods the runner calls by name; what they share is in ``child``.
"""
