"""What a trained model does: ``diptych caption``, ``chat``, ``compose``, ``draw``, ``export``."""
