"""One cluster for all faults; a package, so that it ends with the last test here."""
