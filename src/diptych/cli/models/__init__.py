"""What a trained model does: ``diptych caption``, ``chat``, ``draw``, ``export``."""
