"""How processes of several machines find and know each other."""
