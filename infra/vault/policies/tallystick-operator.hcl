path "tallystick/data/custody" {
  capabilities = ["create", "read", "update"]
}
path "tallystick/data/portfolio" {
  capabilities = ["create", "read", "update"]
}
path "tallystick/data/keymaster" {
  capabilities = ["create", "read", "update"]
}
