"""The bundled `tiny` model and the scripts that made it."""
