"""The gateway: the one door that every order passes, and the only maker of permits."""
