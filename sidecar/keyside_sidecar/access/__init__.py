"""May they: the policy table and the reasons for refusing."""
