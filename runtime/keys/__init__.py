"""Secrets and keys: the keystore, PKCS#11 tokens, and the certificates that they sign."""
