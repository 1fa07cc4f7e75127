"""Makes what the site says of settings, commands, errors and figures from the code itself."""
