path "tallystick/data/custody" {
  capabilities = ["read"]
}
