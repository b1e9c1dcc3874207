"""Incident events over Apache Kafka and NATS from plain, blocking Python."""
