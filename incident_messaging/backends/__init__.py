"""The brokers behind one contract, `incident_messaging.backends.base`; each loaded when first used."""
