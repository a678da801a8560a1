"""The wire: events, subjects, seals and identities.  Pure: no IO and no clock."""
