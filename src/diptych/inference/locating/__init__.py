"""The capability ``locate``: where in a picture a phrase is, by whatever a model has."""
