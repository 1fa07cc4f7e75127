"""One cluster that is watched; a package, so that it ends with the last test here."""
