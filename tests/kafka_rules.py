"""Access rules of a Kafka broker that was started with `GUARDED`: taken away and given back while it runs."""

from __future__ import annotations

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from waiting import until

#: A broker that knows access rules, and lets everybody do what no rule speaks of.
GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
_PATIENCE = 30.0


def deny(servers: str, resource: ResourceType, name: str, operation: AclOperation) -> None:
    """Let everybody do everything with a thing but this."""
    rules = ((AclOperation.ALL, AclPermissionType.ALLOW), (operation, AclPermissionType.DENY))
    bindings = [AclBinding(resource, name, ResourcePatternType.LITERAL, "User:*", "*", *rule) for rule in rules]
    admin = AdminClient({"bootstrap.servers": servers})  # it has to live until the answers are there
    for answer in admin.create_acls(bindings).values():
        answer.result(_PATIENCE)
    _await(admin, _every_rule_of(resource, name), set(bindings))


def allow(servers: str, resource: ResourceType, name: str) -> None:
    """Take back every rule about a thing."""
    every = _every_rule_of(resource, name)
    admin = AdminClient({"bootstrap.servers": servers})
    for answer in admin.delete_acls([every]).values():
        answer.result(_PATIENCE)
    _await(admin, every, set())


def _every_rule_of(resource: ResourceType, name: str) -> AclBindingFilter:
    return AclBindingFilter(
        resource, name, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )


def _await(admin: AdminClient, every: AclBindingFilter, rules: set[AclBinding]) -> None:
    """Return when the broker has taken over what its controller has decided."""
    assert until(lambda: set(admin.describe_acls(every).result(_PATIENCE)) == rules, _PATIENCE)
