"""The crowd and its verifier. Locust runs as a process of its own: it patches what it imports."""
