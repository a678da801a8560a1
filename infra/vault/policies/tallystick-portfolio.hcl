path "tallystick/data/portfolio" {
  capabilities = ["read"]
}
