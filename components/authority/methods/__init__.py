"""How components prove themselves besides mutual TLS and a session key: one file a method, each pure but for its port."""
