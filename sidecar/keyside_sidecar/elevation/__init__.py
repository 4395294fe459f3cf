"""People's access to keys, carried out: what access/ decides, in the store and on the record."""
