from django.db import models


class Incident(models.Model):
    number = models.CharField(max_length=40, unique=True)
    paged = models.BooleanField(default=False)
