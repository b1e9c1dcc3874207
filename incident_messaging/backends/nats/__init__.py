"""NATS by nats-py, on an event loop of its own: JetStream, and core NATS on demand."""
