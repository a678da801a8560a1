path "auth/approle/role/tallystick-custody/secret-id" {
  capabilities = ["update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "30s"
}
path "auth/approle/role/tallystick-custody/secret-id-accessor/destroy" {
  capabilities = ["update"]
}
path "auth/approle/role/tallystick-portfolio/secret-id" {
  capabilities = ["update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "30s"
}
path "auth/approle/role/tallystick-portfolio/secret-id-accessor/destroy" {
  capabilities = ["update"]
}
path "auth/approle/role/tallystick-keymaster/secret-id" {
  capabilities = ["update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "30s"
}
path "auth/approle/role/tallystick-keymaster/secret-id-accessor/destroy" {
  capabilities = ["update"]
}
