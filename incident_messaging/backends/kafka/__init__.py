"""Apache Kafka by confluent-kafka, natively: `broker` publishes, `consumer` consumes."""
