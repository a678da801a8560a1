path "tallystick/data/keymaster" {
  capabilities = ["read"]
}
path "tallystick/data/custody" {
  capabilities = ["patch"]
}
path "tallystick/data/portfolio" {
  capabilities = ["patch"]
}
