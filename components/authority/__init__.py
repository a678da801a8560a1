"""The authority: issues, lists, renews and revokes the credentials of all components."""
