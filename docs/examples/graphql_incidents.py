"""GraphQL in Flask: a mutation that opens incidents, and a subscription that streams them.

    pip install 'incident-messaging[flask]' strawberry-graphql
    flask --app graphql_incidents run
    curl -N localhost:5000/graphql/stream -H 'Content-Type: application/json' \\
         -d '{"query": "subscription { incidents(severity: \\"critical\\") { incidentId title } }"}'
    curl localhost:5000/graphql -H 'Content-Type: application/json' \\
         -d '{"query": "mutation { open(severity: \\"critical\\", title: \\"it is down\\") }"}'

Subscriptions go over server-sent events (the "distinct connections" mode of GraphQL over SSE, which the client
library graphql-sse speaks). That is plain HTTP and a plain generator, so any threaded WSGI server will do, where
WebSockets would need an ASGI server and a bridge between its loop and the SDK's blocking calls. GraphQL's own
executor wants an asynchronous generator: it runs on a loop of the request's own, so that blocking it harms nobody.

With broadcast=True every stream sees all incidents, and all streams of a process share one broker consumer.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from uuid import uuid4

import strawberry
from flask import Flask, Response, request
from strawberry.flask.views import GraphQLView

from incident_messaging import IncidentCreated, MessagingConfig
from incident_messaging.contrib.flask import Messaging

#: Seconds after which a silent stream says that it is there, and so finds out whether its reader is.
HEARTBEAT = 3.0

app = Flask(__name__)
app.config["INCIDENT_MESSAGING"] = MessagingConfig.from_env()
messaging = Messaging(app)


@strawberry.type
class Incident:
    incident_id: str
    severity: str
    title: str


@strawberry.type
class Query:
    service: str = "incidents"


@strawberry.type
class Mutation:
    @strawberry.mutation
    def open(self, severity: str, title: str) -> str:
        incident = f"INC-{uuid4().hex[:8]}"
        messaging.service.publish_incident_created(incident, severity, "manual", title)
        return incident


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def incidents(
        self, info: strawberry.Info, severity: str | None = None
    ) -> AsyncGenerator[Incident | None, None]:
        while True:
            delivery = info.context["subscription"].next(HEARTBEAT)  # blocks the loop: there is nobody else on it
            if delivery is None:
                yield None
            elif severity in (None, delivery.payload.severity):
                event = delivery.payload
                yield Incident(incident_id=event.incident_id, severity=event.severity, title=event.title)


schema = strawberry.Schema(Query, Mutation, Subscription)
app.add_url_rule("/graphql", view_func=GraphQLView.as_view("graphql", schema=schema))


@app.post("/graphql/stream")
def stream():
    wanted = request.get_json(silent=True)
    if not isinstance(wanted, dict) or not isinstance(wanted.get("query"), str):
        return {"errors": [{"message": "query is missing"}]}, 400
    subscription = messaging.service.subscribe("incidents.created", IncidentCreated, broadcast=True)
    response = Response(_events(subscription, wanted["query"], wanted.get("variables")), mimetype="text/event-stream")
    response.call_on_close(subscription.close)  # also where the reader leaves before the first event
    return response


def _events(subscription, query, variables):
    """One event for each result; a line with a colon is a comment, which readers skip."""
    with asyncio.Runner() as runner:
        yield ": from here on nothing is missed\n\n"
        for result in _results(runner, query, variables, {"subscription": subscription}):
            if result.errors:
                errors = [error.formatted for error in result.errors]
                yield f"event: next\ndata: {json.dumps({'data': result.data, 'errors': errors})}\n\n"
            elif any(result.data.values()):
                yield f"event: next\ndata: {json.dumps({'data': result.data})}\n\n"
            else:
                yield ": still here\n\n"
        yield "event: complete\ndata:\n\n"


def _results(runner, query, variables, context):
    found = runner.run(schema.subscribe(query, variables, context_value=context))
    if not isinstance(found, AsyncIterator):  # the query is wrong
        yield found
        return
    while (result := runner.run(anext(found, None))) is not None:
        yield result
