"""The first tables: the outbox, the lease of its relays, the inbox."""

from typing import Any, ClassVar

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    """As ``models`` describes them."""

    initial = True

    dependencies: ClassVar[list[Any]] = []

    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="OutboxLease",
            fields=[
                ("name", models.CharField(max_length=50, primary_key=True, serialize=False)),
                ("owner", models.CharField(max_length=150)),
                ("until", models.FloatField()),
            ],
        ),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", models.CharField(max_length=200)),
                ("topic", models.CharField(max_length=255)),
                ("key", models.TextField(null=True)),
                ("body", models.BinaryField()),
                ("headers", models.TextField()),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("failed_at", models.DateTimeField(null=True)),
                ("error", models.TextField(blank=True, default="")),
            ],
        ),
        migrations.CreateModel(
            name="InboxMark",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("handler", models.CharField(max_length=255)),
                ("message_id", models.CharField(max_length=200)),
                ("handled_at", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("handler", "message_id"), name="incident_inbox_once")],
            },
        ),
    ]
