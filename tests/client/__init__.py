"""`kvrt.client`, and the same in TypeScript, against a real server."""
