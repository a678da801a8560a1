"""Codes of sessions: who lives, the authority that says so, and who is connected to the broker."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, DENIAL, ERROR, NOTICE, REFUSAL, Code

_DEFECT: Final = "It is a defect to report."
_AGAIN: Final = "Nothing at once: it is tried again; if it goes on, look at the broker's log."

CODES: Final = (
    Code(
        "SESSIONS_STALE",
        DENIAL | DEAD,
        "The authority's list of sessions is missing or older than 3 s, so nobody can be believed.",
        "Start the authority again if it is down; look at its log if it is up.",
    ),
    Code(
        "SESSIONS_FUTURE",
        DENIAL | DEAD,
        "The authority's list of sessions is dated ahead of this clock.",
        "Set the clocks of both machines (NTP).",
    ),
    Code(
        "SESSION_UNLISTED",
        DENIAL | DEAD | NOTICE,
        "The authority does not list the session that sealed the message: it never issued it, or it is over.",
        "If the component runs, it renews by itself; if nobody started one, somebody holds its role key: make "
        "new keys.",
    ),
    Code(
        "SESSION_EXPIRED",
        DENIAL | DEAD,
        "The session that sealed the message has expired.",
        "Nothing, if it goes away: the component renews by itself; else look at its log and at the authority's.",
    ),
    Code(
        "SESSION_REVOKED",
        DENIAL | DEAD,
        "The session that sealed the message, or its boot, was revoked or has ended.",
        "Start the component again if it is yours; whatever else uses that session is a thief.",
    ),
    Code("NO_SESSION", ERROR, "The process has no session yet.", "Start it again once the authority is up."),
    Code(
        "SESSION_REFUSED_*",
        NOTICE,
        "The authority refused a session; the rest of the code says why.",
        "Look up that code; a refusal that nobody of yours caused is somebody who tries certificates.",
    ),
    Code(
        "IDENTITY",
        REFUSAL,
        "The certificate is another's than the request says, or not the operator's where only the operator may ask.",
        "Use the certificate of the component that asks; revoking needs the operator's.",
    ),
    Code(
        "METHOD",
        REFUSAL,
        "A component shows something else than the trust root demands of it, or nothing: its certificate alone is not "
        "enough.",
        "If it is yours, start it as docs/identity.md says; else somebody has its certificate: revoke it.",
    ),
    Code(
        "TOKEN",
        REFUSAL,
        "What a strategy shows is no token, or one without a claim that it must have.",
        "Look at what issues its tokens; whoever else shows one holds its certificate.",
    ),
    Code(
        "TOKEN_SIZE",
        REFUSAL,
        "A token longer than the limit.",
        "Find out who sends it: no issuer's tokens are that long.",
    ),
    Code(
        "TOKEN_ALGORITHM",
        REFUSAL,
        "A token that names another algorithm than its key has, or something critical that nobody knows.",
        "It has no effect; it is made by hand: find out who holds the strategy's certificate, and revoke it.",
    ),
    Code(
        "TOKEN_KEY",
        REFUSAL,
        "A token by a key that its issuer does not have, or not yet: an issuer is asked once in some seconds.",
        "Nothing, if it goes away after a change of keys; else it is forged: revoke the strategy.",
    ),
    Code(
        "TOKEN_KEYS",
        REFUSAL | ERROR,
        "The keys of an issuer of tokens cannot be had, or hold none that can be used.",
        "Look whether its URL answers, and whether `ca` in `deployment.toml` still vouches for it.",
    ),
    Code(
        "TOKEN_SIGNATURE",
        REFUSAL,
        "A token that the key it names did not sign.",
        "It is forged: find out who holds the strategy's certificate, and revoke it.",
    ),
    Code(
        "TOKEN_CLAIMS",
        REFUSAL,
        "A token of another issuer, for another audience or another strategy than the operator signed.",
        "If it is yours, correct `[identity.strategies]` and run `tallystick admit DIR`; else revoke the strategy.",
    ),
    Code(
        "TOKEN_TIME",
        REFUSAL,
        "A token that is over, has not begun, or lives longer than ten minutes.",
        "Look at the clocks, and at how long the issuer lets its tokens live.",
    ),
    Code(
        "TOKEN_BINDING",
        REFUSAL,
        "A token that was made for another certificate than the one that is shown.",
        "It was copied from somebody: find out from whom, and revoke both.",
    ),
    Code(
        "TOKEN_USED",
        REFUSAL,
        "A token that has opened a session before: it was copied, and shown a second time.",
        "Find out who reads the strategy's tokens and has its certificate; revoke the strategy.",
    ),
    Code(
        "TOKEN_FILE",
        ERROR,
        "A strategy finds no token that counts where it should lie, or it cannot be written there.",
        "`tallystick up` writes it for strategies that it starts, `tallystick tokens` for others; for another issuer look "
        "at `token_file` in `deployment.toml`.",
    ),
    Code(
        "NO_TOKENS",
        ERROR,
        "Nobody in the deployment shows tokens of its own issuer.",
        "Nothing has to run: the strategies' tokens come from the issuer that `deployment.toml` names.",
    ),
    Code(
        "CHALLENGE",
        REFUSAL,
        "An answer to a challenge that the authority never gave, that was answered before, or is another boot's.",
        "If it happens once, the answer took too long; else somebody plays execution's answers back: revoke execution.",
    ),
    Code(
        "HARDWARE_SIGNATURE",
        REFUSAL,
        "The answer to a challenge is not signed by the hardware token that the operator signed.",
        "If the token was changed, sign its key with `tallystick admit DIR`; else somebody has execution's certificate.",
    ),
    Code(
        "API_KEY_UNKNOWN",
        REFUSAL,
        "An API key that is not the one that is due.",
        "If the component was restored from a backup, run `tallystick revoke` and `tallystick reinstate`; else somebody "
        "has its certificate.",
    ),
    Code(
        "API_KEY_STOLEN",
        REFUSAL,
        "One API key was shown by two holders: it was copied, and no key of the component counts any more.",
        "Run `tallystick revoke` for the component, find out who copied its state, then `tallystick reinstate`.",
    ),
    Code(
        "API_KEYS_KEPT",
        REFUSAL,
        "The authority could not write down that an API key was used, so it gives no session for it.",
        "Free some space on its disk; the component asks again by itself.",
    ),
    Code(
        "API_KEYS_FILE",
        ERROR,
        "What the authority kept of used API keys cannot be read.",
        "Restore `DIR/state/authority/` from a backup, and find out who changed it.",
    ),
    Code(
        "API_KEY_FILE",
        ERROR,
        "A component's API key cannot be read, written, or opened with its passphrase.",
        "Free some space if the disk is full; else run `tallystick revoke` and `tallystick reinstate`, which make another.",
    ),
    Code(
        "KEY_GRANT",
        REFUSAL,
        "An operator's word on an API key that is for another deployment or component, or an old one played back.",
        "Run `tallystick reinstate` again: it makes a new one.",
    ),
    Code("PROOF", REFUSAL, "The requester did not prove that it holds the session key.", _DEFECT),
    Code(
        "RENEWAL",
        REFUSAL,
        "A renewal that no key of the running boot signed: another process asks in its name.",
        "Find out who else has the component's certificate.",
    ),
    Code(
        "BOOT_ENDED",
        ERROR | REFUSAL,
        "The boot has ended or was revoked; it gets no more sessions.",
        "Start the component again: it becomes a new boot.",
    ),
    Code(
        "BOOT_UNKNOWN",
        REFUSAL,
        "The boot has no live session, so nothing vouches for its renewal.",
        "Start the component again.",
    ),
    Code(
        "SESSION_RATE",
        REFUSAL,
        "A component asks for sessions faster than it may.",
        "Find out why it starts so often, or who else uses its certificate.",
    ),
    Code(
        "COMPONENT_REVOKED",
        REFUSAL | ERROR,
        "The operator revoked the component, or its certificate is from before that; it gets no session.",
        "If it is to run again, admit it with `tallystick reinstate`, which makes it a new key and certificate.",
    ),
    Code(
        "REVOCATION",
        REFUSAL,
        "An operator's statement on a component that holds impossible numbers.",
        "Make it with `tallystick revoke` or `tallystick reinstate`.",
    ),
    Code(
        "REVOCATION_SCOPE",
        REFUSAL | DEAD,
        "An operator's statement for another deployment, or on the authority, which nobody could hear admitted again.",
        "Use the keystore of this deployment; to keep the authority out, stop it and make new keys.",
    ),
    Code(
        "REVOCATION_NUMBER",
        REFUSAL,
        "An operator's statement that is not the next one on its component: an old one played back, or two at once.",
        "Run the command again; it takes the next number.",
    ),
    Code(
        "REVOCATION_KEPT",
        REFUSAL,
        "The authority could not write down who is revoked, so that it would forget it; nothing was changed.",
        "Free some space on its disk and run the command again; `tallystick kill` stops trading meanwhile.",
    ),
    Code(
        "REVOCATIONS_FILE",
        ERROR,
        "What the authority kept of the operator's revocations cannot be read, or was not signed by him.",
        "Restore `DIR/state/authority/revocations.json` from a backup, and find out who changed it.",
    ),
    Code(
        "NOT_REVOKED",
        ERROR,
        "The component was never revoked.",
        "Nothing has to be done; look at its name again.",
    ),
    Code(
        "REQUEST_RATE",
        REFUSAL,
        "A component asks the authority more often than it may; it waits, and beyond that it is refused.",
        "Find out who asks so often under its certificate, and revoke it if nobody of yours does.",
    ),
    Code(
        "CERTIFICATE_ENDED",
        REFUSAL | ERROR,
        "A certificate whose life is over: it was not renewed in time, since the process or the authority was down.",
        "`tallystick up` and `run` with the master PIN make a new one by themselves; for another machine run `tallystick "
        "certify` and copy the file. If the component ran all the time, somebody else shows an old copy.",
    ),
    Code(
        "CERTIFICATE_ENDS",
        REFUSAL,
        "A session would outlive the certificate that it is asked for under.",
        "Look in the component's log for why its certificate was not renewed; start it again.",
    ),
    Code(
        "CERTIFICATE_KEY",
        REFUSAL,
        "A certificate is asked for with the key of the present one.",
        "Find out who asks: components make a new key each time.",
    ),
    Code(
        "CERTIFICATE_NAME",
        REFUSAL,
        "A component asks for a certificate in another name than its own.",
        "Find out what runs in its process; revoke the component.",
    ),
    Code(
        "CERTIFICATE_RATE",
        REFUSAL,
        "A component asks for more certificates than it may.",
        "Find out why it asks so often, or who else uses its certificate.",
    ),
    Code(
        "CERTIFICATE_REQUEST",
        REFUSAL,
        "A request for a certificate that is none, of another kind of key, or not signed by the key that it names.",
        "Find out who asks.",
    ),
    Code(
        "BOOT_RATE",
        REFUSAL,
        "A component starts more often than it may; who boots without end would fill the lists of what is revoked.",
        "Find out why it starts so often, or who else uses its certificate, and revoke the component if nobody of yours "
        "does.",
    ),
    Code(
        "REQUEST",
        REFUSAL,
        "The body of a request to the authority does not parse.",
        "Run the same release everywhere.",
    ),
    Code(
        "REQUEST_SIZE",
        REFUSAL,
        "A request to the authority longer than the limit.",
        "Find out who sends it: no component of this system does.",
    ),
    Code(
        "HEX",
        REFUSAL,
        "A key, boot or signature in a request is no hex of its length.",
        "Run the same release everywhere.",
    ),
    Code(
        "CLIENT_CERTIFICATE",
        REFUSAL,
        "A connection to the authority without a client certificate.",
        "Connect with the component's certificate from `DIR/pki`.",
    ),
    Code("AUTHORITY_STARTING", REFUSAL, "The authority has no session of its own yet.", "Nothing: it is tried again."),
    Code(
        "AUTHORITY_ANSWER",
        ERROR,
        "The authority's answer does not parse.",
        "Run the same release everywhere; check what listens at that address.",
    ),
    Code("AUTHORITY_REFUSED", ERROR, "The authority refused and gave no code.", "Look at the authority's log."),
    Code(
        "AUTHORITY_UNREACHABLE",
        ERROR,
        "The authority cannot be reached.",
        "Start the deployment with `tallystick up DIR`, or the authority where it runs; a service manager starts "
        "the component again.",
    ),
    Code(
        "AUTHORITY_CUT_OFF",
        ERROR,
        "The authority's own session ended while the broker was away.",
        "Nothing: the supervisor starts it anew.",
    ),
    Code(
        "AUTHORITY_OWN",
        ERROR,
        "The broker did not confirm the authority's own session in time.",
        "Start the broker if it is down; the supervisor starts the authority anew.",
    ),
    Code(
        "SECOND_AUTHORITY",
        NOTICE,
        "Another process publishes as the authority.",
        "Stop both, find out where the other one runs; if nobody started it, make a new deployment with new keys.",
    ),
    Code(
        "BROKER_REVOCATION",
        NOTICE,
        "Sessions are revoked for all verifiers, but the broker was not told yet.",
        _AGAIN,
    ),
    Code(
        "BROKER_SYSTEM",
        ERROR,
        "The authority cannot log in to the broker's system account.",
        "Start the broker; if it is up, check that it is this deployment's.",
    ),
    Code(
        "ACCOUNT_TOKENS",
        NOTICE,
        "The broker's tokens of the accounts are not as they should be, and could not be put right.",
        _AGAIN,
    ),
    Code(
        "ACCOUNT_ROLLBACK",
        NOTICE,
        "The broker held another token of an account than the one that was pushed; it was pushed again.",
        "Find out who restored or changed the broker's files: a revocation could have been undone.",
    ),
    Code(
        "CLAIMS_LOOKUP",
        NOTICE,
        "The broker did not say which token of an account it holds, or holds one of another issuer.",
        _AGAIN,
    ),
    Code("CLAIMS_UPDATE", NOTICE, "The broker did not take, or did not confirm, a token of an account.", _AGAIN),
    Code("CONNZ", NOTICE, "The broker did not say who is connected, or its list cannot be read whole.", _AGAIN),
    Code(
        "CONNECTION_CERTIFICATE",
        NOTICE,
        "A connection whose client certificate is not that of the component it logged in as; it is kicked.",
        "Revoke that component: somebody uses its session with another certificate.",
    ),
    Code(
        "CONNECTION_CREDENTIAL",
        NOTICE,
        "A connection that logged in with something that is no session's token; it is kicked.",
        "Find out who holds a key of the broker's accounts.",
    ),
    Code(
        "CONNECTION_UNLISTED",
        NOTICE,
        "A connection with a credential that the authority never listed; it is kicked.",
        "Somebody holds that component's role key: make new keys.",
    ),
)
