path "tallystick/data/custody" {
  capabilities = ["create", "read", "update"]
}
path "auth/approle/role/tallystick-custody" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "auth/cert/certs/tallystick-custody" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "tallystick/data/portfolio" {
  capabilities = ["create", "read", "update"]
}
path "auth/approle/role/tallystick-portfolio" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "auth/cert/certs/tallystick-portfolio" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "tallystick/data/keymaster" {
  capabilities = ["create", "read", "update"]
}
path "auth/approle/role/tallystick-keymaster" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "auth/cert/certs/tallystick-keymaster" {
  capabilities = ["update"]
  allowed_parameters = { "token_period" = [] }
}
path "sys/rotate/root/*" {
  capabilities = ["create", "read", "update", "delete", "sudo"]
}
